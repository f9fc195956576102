"""`tools/track.py --ray`: short videos by a few workers, one of which is killed half way, against one after the other.

    python benchmarks/scale_out.py --video in.mp4
    python benchmarks/scale_out.py --video in.mp4 --videos 4 --frames 20 --json quick.json

The videos are stretches of one, cut beforehand. They are tracked one after the other, each by a process of its own;
then by Ray; then by Ray again, where a worker is ended with SIGKILL while it writes. Every text file must have the same
bytes all three times. Seconds are those of whole processes, with what it takes to start Ray and to load the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import psutil  # noqa: E402

from benchmarks.throughput import machine  # noqa: E402
from tracker.video import VideoSource  # noqa: E402
from tracker.writer import VideoWriter  # noqa: E402

TRACK = [sys.executable, str(ROOT / "tools" / "track.py"), "--device", "cpu", "--no-video"]


def cut(video: Path, folder: Path, count: int, frames: int) -> list[Path]:
    """Write stretches of a video, as far apart as it allows.

    Args:
        video: what to cut.
        folder: for `part0.mp4`, `part1.mp4` and so on.
        count: of stretches.
        frames: in each.

    Raises:
        ValueError: it is too short for one.
    """
    with VideoSource(video) as source:
        length = source.frame_count or 0
    if length < frames:
        raise ValueError(f"{video}: expected at least {frames} frames, got {length}")
    parts = []
    for index in range(count):
        first = 1 + index * (length - frames) // max(count - 1, 1)
        parts.append(folder / f"part{index}.mp4")
        with VideoSource(video, first, first + frames - 1) as source:
            writer = VideoWriter(parts[-1], source.frame_rate or 30.0, source.size)
            for number, frame in enumerate(source):
                writer.write(frame, number)
            writer.close()
    return parts


def kill_one(process: subprocess.Popen[str], folder: Path) -> bool:
    """End a worker with SIGKILL when the first text is on its way; False where none was there to be killed."""
    while process.poll() is None:
        if any(path.stat().st_size for path in folder.glob(".*.part*/*.txt")):
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[:1] == ["ray::work"]:
                    child.kill()
                    return True
        time.sleep(0.02)
    return False


def by_ray(pattern: str, out: Path, workers: int, kill: bool) -> dict[str, Any]:
    """Track all videos by Ray; returns seconds, and how it went."""
    report = out.with_suffix(".json")
    command = [*TRACK, "--video", pattern, "--out", str(out), "--json", str(report)]
    clock = time.perf_counter()
    with subprocess.Popen(
        [*command, "--ray", "--ray-workers", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        killed = kill and kill_one(process, out)
        _, err = process.communicate()
    seconds = time.perf_counter() - clock
    if process.returncode:
        raise ValueError(f"track.py --ray: exit status {process.returncode}: {err.strip()}")
    runs = json.loads(report.read_text())["runs"]
    return {"seconds": seconds, "killed": killed, "attempts": [run["attempts"] for run in runs]}


def measure(video: Path, count: int, frames: int, workers: int) -> dict[str, Any]:
    """Everything that is written to the JSON file."""
    facts = machine()  # before our own work shows in the load
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        parts = cut(video, folder / "videos", count, frames)
        clock = time.perf_counter()
        for part in parts:
            subprocess.run([*TRACK, "--video", part, "--out", folder / "alone"], check=True, capture_output=True)
        alone = time.perf_counter() - clock
        pattern = str(folder / "videos" / "*.mp4")
        undisturbed = by_ray(pattern, folder / "ray", workers, kill=False)
        killed = by_ray(pattern, folder / "killed", workers, kill=True)
        texts = [(folder / "alone" / part.name).with_suffix(".txt") for part in parts]
        same = {
            run: sum((folder / run / text.name).read_bytes() == text.read_bytes() for text in texts)
            for run in ("ray", "killed")
        }
        boxes = sum(len(text.read_text().splitlines()) for text in texts)
    return {
        "video": video.name,
        "videos": count,
        "frames": frames,
        "workers": workers,
        "boxes": boxes,
        "one_after_the_other": {"seconds": alone},
        "ray": {**undisturbed, "identical": same["ray"], "times_as_fast": alone / undisturbed["seconds"]},
        "ray_one_killed": {**killed, "identical": same["killed"], "times_as_fast": alone / killed["seconds"]},
        "machine": facts,
    }


def format_table(result: dict[str, Any]) -> str:
    """Seconds of the three runs."""
    alone = result["one_after_the_other"]["seconds"]
    lines = [
        f"{result['videos']} videos of {result['frames']} frames, {result['workers']} workers",
        f"{'':<24}{'s':>8}{'times':>8}  identical",
        f"{'one after the other':<24}{alone:>8.1f}{1:>8.2f}",
    ]
    for name, key in (("Ray", "ray"), ("Ray, one worker killed", "ray_one_killed")):
        run = result[key]
        same = f"{run['identical']} of {result['videos']}"
        lines.append(f"{name:<24}{run['seconds']:>8.1f}{run['times_as_fast']:>8.2f}  {same}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a result differs, or no worker was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True, help="the videos are cut from it")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60, help="in each (default: 60)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "scale_out.json")
    args = parser.parse_args(argv)
    try:
        for name in ("videos", "frames", "workers"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
        result = measure(args.video, args.videos, args.frames, args.workers)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(format_table(result))
    same = {result["ray"]["identical"], result["ray_one_killed"]["identical"]} == {args.videos}
    return 0 if same and result["ray_one_killed"]["killed"] else 1


if __name__ == "__main__":
    sys.exit(main())
