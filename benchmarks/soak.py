"""Does a tracker that never stops stay as small and as fast as it was? A hundred thousand frames of a synthetic crowd.

    python benchmarks/soak.py
    python benchmarks/soak.py --frames 20000 --people 100 --json quick.json

That is almost an hour of video at 30 frames/s: people with embeddings come and go, and ids grow into the thousands.
Memory is the resident size of the process, read every thousand frames; time is `Tracker.update` alone. Exit status 1
where memory grew by 5 MB or more after frame 1,000, or the last tenth of the frames took more than 1.2 times as long as
the first.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before NumPy is loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.crowd import FRAME_RATE, Crowd, CrowdConfig  # noqa: E402
from benchmarks.throughput import machine  # noqa: E402
from configs import load_config  # noqa: E402
from tracker import Tracker, TrackerConfig  # noqa: E402

MEMORY_EVERY = 1000
"""Frames between two looks at the memory; growth counts from the first."""
MOST_GROWTH_MB = 5.0
MOST_SLOWDOWN = 1.2


def soak(config: TrackerConfig, crowd: Crowd, frames: int) -> dict[str, Any]:
    """Run a fresh tracker over a crowd.

    Args:
        config: the tracker's settings.
        crowd: the people.
        frames: how many, at least two thousand.

    Returns:
        `growth_mb` after frame 1,000 (the most, not the last), `slowdown` of the last tenth, the series they come
        from, and what was seen.
    """
    process, tracker = psutil.Process(), Tracker(config, FRAME_RATE)
    milliseconds = np.full(frames, np.nan, np.float32)  # all of it now: it shall not look like growth of the tracker
    memory_mb: list[float] = []
    reported, last_id = 0, 0
    for frame, found in enumerate(tqdm(islice(crowd, frames), total=frames, unit="frame", mininterval=5)):
        clock = time.perf_counter()
        result = tracker.update(found)
        milliseconds[frame] = (time.perf_counter() - clock) * 1e3
        reported += len(result)
        last_id = max(last_id, int(result.track_ids.max(initial=0)))
        if (frame + 1) % MEMORY_EVERY == 0:
            memory_mb.append(process.memory_info().rss / 1e6)
    tenths = [float(np.median(part)) for part in np.array_split(milliseconds, 10)]
    return {
        "frames": frames,
        "growth_mb": max(memory_mb) - memory_mb[0],
        "slowdown": tenths[-1] / tenths[0],
        "median_ms_by_tenth": tenths,
        "mean_ms": float(milliseconds.mean()),
        "longest_ms": float(milliseconds.max()),
        "memory_mb": memory_mb[:: max(1, len(memory_mb) // 10)],
        "reported_per_frame": reported / frames,
        "people_in_all": crowd.born,
        "last_id": last_id,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 flat, 1 not flat, 2 an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000, help="default: 100,000")
    parser.add_argument("--people", type=int, default=30, help="in the picture (default: 30)")
    parser.add_argument("--dimension", type=int, default=128, help="of their embeddings, 0 for none (default: 128)")
    parser.add_argument("--config", help="YAML file with a section tracker, or a preset's name (default: ours)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "soak.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        if args.frames < 2 * MEMORY_EVERY:
            raise ValueError(f"--frames: expected at least {2 * MEMORY_EVERY}, got {args.frames}")
        if args.people < 1 or args.dimension < 0:
            raise ValueError(f"expected --people from 1 and --dimension from 0, got {args.people}, {args.dimension}")
        facts = machine()
        config = load_config(args.config, (), {"tracker": TrackerConfig})["tracker"]
        figures = soak(config, Crowd(CrowdConfig(args.people, args.dimension or None)), args.frames)
        settings = {"people": args.people, "dimension": args.dimension, "config": args.config}
        args.json.write_text(json.dumps({**settings, **figures, "machine": facts}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"soak: {error}", file=sys.stderr)
        return 2
    flat = figures["growth_mb"] < MOST_GROWTH_MB and figures["slowdown"] <= MOST_SLOWDOWN
    print(
        f"{figures['frames']} frames of {args.people} people, {figures['people_in_all']} in all, last id "
        f"{figures['last_id']}: memory {figures['growth_mb']:+.1f} MB after frame {MEMORY_EVERY}, last tenth "
        f"{figures['slowdown']:.2f} times the first, {figures['mean_ms']:.2f} ms a frame: "
        f"{'flat' if flat else 'NOT flat'}"
    )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
