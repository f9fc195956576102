"""End-to-end speed of `tools/track.py`, beside the yardstick of YOLOX-nano in ONNX Runtime at the same input size.

    python benchmarks/throughput.py --video in.mp4 --onnx yolox_nano.onnx
    python benchmarks/throughput.py --video in.mp4 --onnx yolox_nano.onnx --frames 100 --repeats 1 --json quick.json

Both decode the video, find people, draw them and write H.264 of the source's size; ours also follows them. Each runs
in a process of its own, in turns, so that a disturbance of the machine meets both; the figures are medians over the
repeats. "frames/s" counts from the first frame to the closed file, "process" is everything from start to exit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks import yardstick  # noqa: E402

LIBRARIES = ("torch", "torchvision", "onnxruntime", "opencv-python", "numpy", "av")
FORWARD_REPEATS = 30


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores this process may use, load before the start, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def timed(command: Sequence[str | Path], report: Path) -> dict[str, Any]:
    """Run a command that writes a JSON report; returns that, and what the process took: seconds and memory."""
    clock = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise ValueError(f"{command[1]}: exit status {process.returncode}: {errors.read().strip()}")
    result: dict[str, Any] = json.loads(report.read_text())
    cpu = used.ru_utime + used.ru_stime
    return {**result, "process_seconds": elapsed, "cpu_seconds": cpu, "peak_bytes": used.ru_maxrss * 1024}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs of the same command: frames/s, milliseconds a frame of each stage, what the process took."""
    frames = runs[0]["frames"]
    stages = [stage for stage in runs[0]["seconds"] if stage != "total"]
    return {
        "frames": frames,
        "fps": median(run["fps"] for run in runs),
        "fps_runs": [run["fps"] for run in runs],
        "ms_per_frame": {stage: median(run["seconds"][stage] for run in runs) / frames * 1e3 for stage in stages},
        **{name: median(run[name] for run in runs) for name in ("process_seconds", "cpu_seconds", "peak_bytes")},
    }


def network_size(video: Path, weights: Path | None, input_size: int | None) -> tuple[int, int]:
    """Height and width of the network input for frames of this video, by the model's own canvas."""
    from detector import load_model

    capture = cv2.VideoCapture(str(video))
    read, frame = capture.read()
    if not read:
        raise ValueError(f"{video}: cannot be read as a video")
    canvas = load_model(weights).canvas(*frame.shape[:2], input_size)
    return canvas.height, canvas.width


def own_forward_ms(weights: Path | None, size: tuple[int, int]) -> float:
    """Median milliseconds of one forward pass of our model on a blank image, all cores, no suppression."""
    import torch

    from detector import load_detector
    from detector.engine import dense_forward

    detector = load_detector(weights, device="cpu")
    forward = dense_forward(detector.model, detector.device, detector.config.engine)
    image = torch.full((1, *size, 3), 114, dtype=torch.uint8)
    times = []
    with torch.inference_mode():
        for _ in range(FORWARD_REPEATS + 3):
            clock = time.perf_counter()
            forward(image)
            times.append(time.perf_counter() - clock)
    return float(np.median(times[3:]) * 1e3)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()  # before our own work shows in the load
    video, onnx, frames = args.video.resolve(), args.onnx.resolve(), args.frames
    size = network_size(video, args.weights, args.input_size)
    with tempfile.TemporaryDirectory() as name:
        out, report = Path(name), Path(name) / "report.json"
        ours: list[str | Path] = [sys.executable, "tools/track.py", "--video", video, "--device", "cpu"]
        ours += [] if args.weights is None else ["--weights", args.weights.resolve()]
        ours += [] if args.input_size is None else ["--input-size", str(args.input_size)]
        ours += [] if frames is None else ["--end", str(frames)]
        theirs: list[str | Path] = [sys.executable, "benchmarks/yardstick.py", "--video", video, "--onnx", onnx]
        theirs += ["--size", f"{size[0]}x{size[1]}"]
        theirs += [] if frames is None else ["--frames", str(frames)]
        runs: dict[str, list[dict[str, Any]]] = {"track": [], "yardstick": []}
        for _ in range(args.repeats):
            runs["track"].append(timed([*ours, "--out", out, "--json", report], report))
            runs["yardstick"].append(timed([*theirs, "--out", out / "yardstick.mp4", "--json", report], report))
    track, reference = summary(runs["track"]), summary(runs["yardstick"])
    if track["frames"] != reference["frames"]:
        raise ValueError(f"frames: track.py read {track['frames']}, the yardstick {reference['frames']}")
    track["forward_ms"] = own_forward_ms(args.weights, size)
    reference["forward_ms"] = yardstick.forward_ms(onnx, size, FORWARD_REPEATS)
    return {
        "command": " ".join(["python", *(part.name if isinstance(part, Path) else part for part in ours[1:])]),
        "video": video.name,
        "network_input": list(size),
        "repeats": args.repeats,
        "track": track,
        "yardstick": reference,
        "fps_ratio": track["fps"] / reference["fps"],
        "forward_ms_ratio": track["forward_ms"] / reference["forward_ms"],
        "machine": facts,
    }


def format_table(result: dict[str, Any]) -> str:
    """Figures of both, one a column, with their ratio."""
    track, reference = result["track"], result["yardstick"]
    rows = [
        ("frames/s", track["fps"], reference["fps"]),
        ("forward, ms", track["forward_ms"], reference["forward_ms"]),
        ("process, s", track["process_seconds"], reference["process_seconds"]),
        ("CPU, s", track["cpu_seconds"], reference["cpu_seconds"]),
        ("memory, MiB", track["peak_bytes"] / 2**20, reference["peak_bytes"] / 2**20),
    ]
    height, width = result["network_input"]
    lines = [
        f"{result['video']}: {track['frames']} frames, network input {height}x{width}, median of {result['repeats']}",
        f"{'':<14}{'track.py':>12}{'yardstick':>12}{'ratio':>8}",
        *(f"{name:<14}{ours:>12.1f}{theirs:>12.1f}{ours / theirs:>8.2f}" for name, ours, theirs in rows),
    ]
    for name, part in (("track.py", track), ("yardstick", reference)):
        split = ", ".join(f"{stage} {ms:.1f}" for stage, ms in part["ms_per_frame"].items())
        lines.append(
            f"{name}, ms a frame (stages of track.py overlap): {split}" if part is track else f"{name}: {split}"
        )
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True, help="YOLOX-nano as exported by its authors")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns (default: 3)")
    parser.add_argument("--frames", type=int, help="stop after so many frames")
    parser.add_argument("--weights", type=Path, help="our model (default: the bundled one)")
    parser.add_argument("--input-size", type=int, help="long side of the network input (default: the model's)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "throughput.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        if args.repeats < 1:
            raise ValueError(f"--repeats: expected at least 1, got {args.repeats}")
        result = measure(args)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"throughput: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
