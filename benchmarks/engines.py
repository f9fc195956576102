r"""What runs the compact network best on a CPU: speed, size and accuracy of every way to run it, in one run.

    python benchmarks/engines.py --images coco256/images/val2017 --labels coco256/object_detection/labels/val2017 \
        --sequence mot/PETS09-S2L1-dev --calibration coco256/images/train2017 capston2_unique/train/images people.mp4
    python benchmarks/engines.py ... --only onnxruntime onnx-int8 --threads 1 --frames 5 --repeats 1 --json quick.json

Of each way:

- forward: milliseconds of one pass of the dense part over one letterboxed frame of the clip
- call: milliseconds of the whole detector on one frame: letterbox, network, suppression, embeddings
- track.py: frames/s of `tools/track.py` on the clip, without drawing, all cores
- MB: what has to be stored
- AP50: of people in the images, as benchmarks/coco_people.py counts it
- HOTA, IDF1, MOTA: of the sequence, by the tracker's defaults and `tracker.evaluation`
- box, cosine: largest difference of a box, and lowest cosine similarity of an embedding, from "eager" on some of both;
  "lost": share of people that only one of the two reports

"eager" is the model as it was trained, run by torch; "torch" the same with batch norms folded; "built-in" what a
`Detector` does by itself. Forward and call are medians over --repeats turns in which every way runs after the other;
track.py takes turns too. 8-bit models are calibrated on the pictures of --calibration, which must not be evaluated on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks.engine_ways import LOW, USUAL, WAYS, EagerDetector, Frame, Way, left_out, make_way  # noqa: E402
from benchmarks.throughput import machine, timed  # noqa: E402
from detector import load_model  # noqa: E402
from detector.agreement import agreement  # noqa: E402
from detector.checkpoint import BUNDLED  # noqa: E402
from detector.evaluation import Detect, validate  # noqa: E402
from detector.inference import letterbox_batch  # noqa: E402
from detector.layouts import open_source as open_labels  # noqa: E402
from detector.quantize import CALIBRATION_COUNT  # noqa: E402
from detector.source import read_image  # noqa: E402
from tracker.evaluation import evaluate  # noqa: E402
from tracker.metrics import summary  # noqa: E402
from tracker.mot import MotWriter  # noqa: E402
from tracker.pipeline import track  # noqa: E402
from tracker.sources import open_source  # noqa: E402

SCORES = ("HOTA", "IDF1", "MOTA")
LIBRARIES = ("openvino", "nncf")
Row = dict[str, Any]


def speeds(
    ways: Sequence[Way], frames: Sequence[Frame], pixels: Frame, threads: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of `forward` on `pixels` and of `call` on the frames, all ways in turns."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    contestants: list[tuple[str, str, Callable[[Frame], Any]]] = []
    for way in ways:
        detect, forward = way.detect(USUAL), way.forward()
        contestants.append((way.name, "forward", lambda _, forward=forward: forward(pixels)))
        contestants.append((way.name, "call", lambda frame, detect=detect: detect([frame])))
    times: dict[str, dict[str, list[float]]] = {way.name: {"forward": [], "call": []} for way in ways}
    for _ in range(repeats):
        for name, what, work in contestants:
            for frame in frames[:2]:
                work(frame)
            for frame in frames:
                clock = time.perf_counter()
                work(frame)
                times[name][what].append((time.perf_counter() - clock) * 1e3)
    return {name: {what: median(some) for what, some in both.items()} for name, both in times.items()}


def track_speeds(ways: Sequence[Way], video: Path, frames: int | None, repeats: int) -> dict[str, float]:
    """Median frames/s of `tools/track.py` of each way that has options for it, in turns."""
    runs: dict[str, list[float]] = {way.name: [] for way in ways if way.options is not None}
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.json"
        command: list[str | Path] = [
            sys.executable,
            "tools/track.py",
            "--video",
            video,
            "--device",
            "cpu",
            "--no-video",
        ]
        command += ["--out", name, "--json", report, *([] if frames is None else ["--end", str(frames)])]
        for _ in range(repeats):
            for way in ways:
                if way.options is not None:
                    runs[way.name].append(timed([*command, *way.options], report)["fps"])
    return {name: median(some) for name, some in runs.items()}


def tracked(detect: Detect, sequence: Path) -> Row:
    """Scores of a sequence, followed by the tracker's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        with MotWriter(Path(folder) / f"{sequence.name}.txt") as writer:
            for _, result in track(open_source(sequence), detect):
                writer.write(result)
        figures = summary(evaluate(sequence, folder)["COMBINED"])
    return {name: figures[name] for name in SCORES}


def check_calibration(calibration: Sequence[Path], evaluation: Sequence[Path]) -> None:
    """Refuse pictures that are evaluated on."""
    for path in calibration:
        if not path.exists():
            raise ValueError(f"--calibration: {path}: no such file or folder")
        for other in evaluation:
            below, above = path.resolve(), other.resolve()
            if below.is_relative_to(above) or above.is_relative_to(below):
                raise ValueError(f"--calibration: expected pictures that are not evaluated on, got {path} and {other}")


def compared_frames(images: Sequence[Path], sequence: Path, count: int) -> list[Frame]:
    """Frames to compare boxes on, half of them images and half of the sequence, evenly spaced."""
    paths = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, count // 2).round().astype(int))]
    with contextlib.closing(open_source(sequence)) as source:
        step = max((source.frame_count or 1) // max(count // 2, 1), 1)
        return [read_image(path) for path in paths] + list(itertools.islice(source, 0, step * (count // 2), step))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()  # before our own work shows in the load
    check_calibration(args.calibration, (args.images, args.sequence))
    weights, sequence = (args.weights or BUNDLED).resolve(), args.sequence.resolve()
    video = (args.video or args.sequence).resolve()
    labelled = open_labels(f"yolo:{args.images},{args.labels}")
    with contextlib.closing(open_source(video)) as source:
        frames = list(itertools.islice(source, args.frames))
    model = load_model(weights)
    pixels = letterbox_batch(frames[:1], model.canvas(*frames[0].shape[:2], None), model.pad_value)[0]
    shown = compared_frames(labelled.images, sequence, args.compared)
    reasons = {name: left_out(name) for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in args.only if reasons[name] is None]
        ways = [make_way(name, weights, Path(folder), args.calibration, args.calibration_count) for name in names]
        rows: dict[str, Row] = {way.name: {"bytes": way.size, "ms": {}} for way in ways}
        for threads in args.threads:
            for name, ms in speeds(ways, frames, pixels, threads, args.repeats).items():
                rows[name]["ms"][str(threads)] = ms
        fps = track_speeds(ways, video, args.track_frames, args.repeats)
        eager = EagerDetector(model, USUAL)
        for way in ways:
            row, usual = rows[way.name], way.detect(USUAL)
            row["fps"] = fps.get(way.name)
            row["AP50"] = validate(
                way.detect(LOW), labelled.images, labelled.labels, progress=f"{way.name} AP50"
            ).figures["AP50"]
            row |= tracked(usual, sequence)
            row["agreement"] = dataclasses.asdict(agreement(eager, usual, shown))
    return {
        "command": "python benchmarks/engines.py " + " ".join(args.given),
        "weights": weights.name,
        "video": video.name,
        "network_input": list(pixels.shape[1:3]),
        "sequence": sequence.name,
        "images": len(labelled.images),
        "threads": args.threads,
        "repeats": args.repeats,
        "rows": rows,
        "left_out": {name: reason for name, reason in reasons.items() if reason},
        "machine": facts | {name: version(name) for name in LIBRARIES},
    }


def version(library: str) -> str | None:
    """What is installed of a library that need not be."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def format_table(report: dict[str, Any]) -> str:
    """A Markdown table, one way a line, with the machine below."""
    threads = report["threads"]
    heads = ["", *(f"{what} ms, {n} thread{'s' * (n > 1)}" for what in ("forward", "call") for n in threads)]
    heads += ["track.py frames/s", "MB", "AP50", *SCORES, "box px", "cosine", "lost"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, row in report["rows"].items():
        found = row["agreement"]
        reported = found["people"] + found["other_people"]
        cells = [cell(row["ms"][str(n)][what], 1) for what in ("forward", "call") for n in threads]
        cells += [cell(row["fps"], 1), cell(row["bytes"] / 1e6, 1)]
        cells += [cell(row[figure], 3) for figure in ("AP50", *SCORES)]
        cells += [cell(found["max_box_error"], 2), cell(found["min_cosine"], 4)]
        cells += [cell((reported - 2 * found["matched"]) / reported if reported else None, 3)]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    facts = report["machine"]
    height, width = report["network_input"]
    lines += [
        "",
        f"{report['video']}, network input {height}x{width}; AP50 on {report['images']} images; {report['sequence']}; "
        f"median of {report['repeats']}",
        *(f"{name}: left out, {reason}" for name, reason in report["left_out"].items()),
        f"{facts['cpu']}, {facts['cores']} cores, load average {cell(facts['load_average'], 1)} before the start",
    ]
    return "\n".join(lines)


def cell(value: float | None, digits: int) -> str:
    """A number as the table shows it; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of images to evaluate boxes on")
    add("--labels", type=Path, required=True, help="folder of their YOLO text files, person is class 0")
    add("--sequence", type=Path, required=True, help="MOTChallenge sequence with images to evaluate identities on")
    add("--calibration", type=Path, nargs="+", required=True, help="folders of images, or videos, for 8-bit models")
    add("--calibration-count", type=int, default=CALIBRATION_COUNT, help="pictures in all (default: %(default)s)")
    add("--video", type=Path, help="clip for the speeds (default: the sequence)")
    add("--weights", type=Path, help="our model, of the compact family (default: the bundled one)")
    add("--only", nargs="+", choices=WAYS, default=list(WAYS), help="ways to compare (default: all)")
    add("--threads", type=int, nargs="+", default=[1, 2], help="for forward and call (default: 1 2)")
    add("--frames", type=int, default=30, help="frames of the clip for forward and call (default: %(default)s)")
    add("--track-frames", type=int, help="frames of the clip for track.py (default: all)")
    add("--repeats", type=int, default=3, help="turns (default: %(default)s)")
    add("--compared", type=int, default=64, help="frames on which boxes and embeddings are compared (default: 64)")
    add("--json", type=Path, default=ROOT / "benchmarks" / "engines.json", help="write every figure to this file")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    args.given = list(sys.argv[1:] if argv is None else argv)
    try:
        for name in ("calibration_count", "frames", "repeats", "compared"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
        report = measure(args)
        print(format_table(report))
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"engines: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
