"""What association costs: milliseconds a frame of `Tracker.update`, beside other trackers on the same detections.

    pip install trackers boxmot      # the peers; without them only ours are timed
    python benchmarks/association_cost.py
    python benchmarks/association_cost.py --people 20 --frames 50 --repeats 1 --json quick.json
    python benchmarks/association_cost.py --people 150 500 --profile benchmarks/association_profile.txt

Detections are those of a synthetic crowd (benchmarks/crowd.py). One thread; all trackers in one process, in turns of a
few frames, so that a disturbance of the machine meets all of them. Frames before the timed ones fill the trackers.
Detections are converted to what each tracker takes outside the clock; the row "ours + Detections" shows what our own
checks of the arrays add. Peers run at their default settings and take no embeddings, so that ours with embeddings do
more than the peers beside them.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before NumPy is loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import cProfile
import gc
import io
import json
import pstats
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from tqdm import tqdm  # noqa: E402

from benchmarks.contestants import DEFAULT, Contestant, own, peer_versions, peers, presets  # noqa: E402
from benchmarks.crowd import FRAME_RATE, Crowd, CrowdConfig  # noqa: E402
from benchmarks.throughput import machine  # noqa: E402
from tracker import Detections, Tracker, TrackerConfig  # noqa: E402

DIMENSION = 128
"""Length of the embeddings, where there are any."""
TURN = 10
"""Frames that a tracker is given before it is the next one's turn."""
WITH_CHECKS = f"{DEFAULT} + Detections"
PROFILE_ROWS = 25


@dataclass(frozen=True)
class Row:
    """One tracker on one crowd.

    Attributes:
        tracker: its name.
        people: in the picture.
        embeddings: whether the tracker was given any.
        median_ms: median over the frames of all repeats, milliseconds.
        mean_ms: mean over the same.
        reported: people in a frame's result, on average.
        ids: identities over the timed frames of a repeat.
        median_ms_of_repeats: the median of each repeat.
    """

    tracker: str
    people: int
    embeddings: bool
    median_ms: float
    mean_ms: float
    reported: float
    ids: int
    median_ms_of_repeats: Sequence[float] = ()


def with_checks() -> Contestant:
    """Our default with the construction of `Detections` inside the clock."""
    config = TrackerConfig()

    def start(rate: float) -> Callable[[Any], Any]:
        update = Tracker(config, rate).update
        return lambda arrays: update(Detections(*arrays))

    def convert(found: Detections) -> tuple[Any, ...]:
        return found.xyxy, found.scores, found.embeddings, found.classes

    return Contestant(WITH_CHECKS, convert, start, lambda result, _: result)


def time_all(
    contestants: Sequence[Contestant], crowd: CrowdConfig, found: Sequence[Detections], warm: int, repeats: int
) -> list[Row]:
    """Every contestant over the frames of a crowd, in turns; the first `warm` are not timed."""
    inputs = [[contestant.convert(each) for each in found] for contestant in contestants]
    count = len(contestants)
    times: list[list[float]] = [[] for _ in contestants]
    ids: list[set[int]] = [set() for _ in contestants]
    reported = [0] * count
    gc.collect()
    gc.freeze()  # the inputs are nobody's garbage: no tracker shall pay for looking through them
    label = f"{crowd.people} people{', embeddings' if crowd.dimension else ''}"
    with tqdm(total=repeats * len(found), desc=label, unit="frame", mininterval=2) as progress:
        for _ in range(repeats):
            updates = [contestant.start(FRAME_RATE) for contestant in contestants]
            ids = [set() for _ in contestants]
            for turn, begin in enumerate(range(0, len(found), TURN)):
                end = min(begin + TURN, len(found))
                for i in ((turn + k) % count for k in range(count)):  # nobody always comes behind the same one
                    for frame in range(begin, end):
                        clock = time.perf_counter()
                        result = updates[i](inputs[i][frame])
                        elapsed = time.perf_counter() - clock
                        if frame >= warm:
                            times[i].append(elapsed * 1e3)
                            seen = contestants[i].read(result, frame + 1).track_ids.tolist()
                            if len(set(seen)) != len(seen):
                                raise RuntimeError(f"{contestants[i].name}: frame {frame + 1}: an id twice")
                            ids[i].update(seen)
                            reported[i] += len(seen)
                progress.update(end - begin)
    gc.unfreeze()
    timed = len(found) - warm
    return [
        Row(
            contestant.name,
            crowd.people,
            crowd.dimension is not None,
            median(times[i]),
            mean(times[i]),
            reported[i] / len(times[i]),
            len(ids[i]),
            [median(times[i][at : at + timed]) for at in range(0, len(times[i]), timed)],
        )
        for i, contestant in enumerate(contestants)
    ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()
    ours = [own(name, config) for name, config in presets().items()]
    rows: list[Row] = []
    crowds = {}
    for people in args.people:
        for dimension in (None, DIMENSION):
            crowd = Crowd(CrowdConfig(people, dimension))
            found = list(islice(crowd, args.warm + args.frames))
            contestants = [*ours, with_checks(), *(() if dimension else peers())]
            rows += time_all(contestants, crowd.config, found, args.warm, args.repeats)
            if dimension is None:
                crowds[people] = {"people_in_all": crowd.born, "boxes_per_frame": mean(map(len, found))}
    return {
        "crowds": crowds,
        "warm_frames": args.warm,
        "frames": args.frames,
        "repeats": args.repeats,
        "peers": peer_versions(),
        "rows": [asdict(row) for row in rows],
        "peer_ms_by_ours": ratios(rows),
        "growth": growth(rows),
        "machine": facts,
    }


def ratios(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """By number of people, how many times our default's median without embeddings each peer's is."""
    base = {row.people: row.median_ms for row in rows if row.tracker == DEFAULT and not row.embeddings}
    names = {row.tracker for row in rows if row.embeddings}  # ours are timed with embeddings too
    result: dict[int, dict[str, float]] = {people: {} for people in base}
    for row in rows:
        if row.tracker not in names:
            result[row.people][row.tracker] = row.median_ms / base[row.people]
    return result


def growth(rows: Sequence[Row]) -> dict[str, float]:
    """How many times longer a frame takes with the most people than with the second most; quadratic beside it."""
    if len({row.people for row in rows}) < 2:
        return {}
    few, many = sorted({row.people for row in rows})[-2:]
    result = {"quadratic": (many / few) ** 2}
    for row in rows:
        if row.people == many:
            before = next(
                other.median_ms
                for other in rows
                if (other.tracker, other.people, other.embeddings) == (row.tracker, few, row.embeddings)
            )
            result[_label(row)] = row.median_ms / before
    return result


def profile(people: Sequence[int], warm: int, frames: int) -> str:
    """Where the time of our default goes: the functions with the most time of their own, for every crowd."""
    parts = []
    for count in people:
        for dimension in (None, DIMENSION):
            found = list(islice(Crowd(CrowdConfig(count, dimension)), warm + frames))
            update = Tracker(frame_rate=FRAME_RATE).update
            for each in found[:warm]:
                update(each)
            profiler = cProfile.Profile()
            profiler.enable()
            for each in found[warm:]:
                update(each)
            profiler.disable()
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILE_ROWS)
            lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
            title = f"{count} people, {f'{dimension}-d embeddings' if dimension else 'no embeddings'}, {frames} frames"
            parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts) + "\n"


def _label(row: Row) -> str:
    return f"{row.tracker}, {DIMENSION}-d" if row.embeddings else row.tracker


def format_table(result: dict[str, Any]) -> str:
    """Milliseconds a frame, one tracker a line."""
    rows = [Row(**row) for row in result["rows"]]
    people = sorted({row.people for row in rows})
    table = {
        label: {row.people: row for row in rows if _label(row) == label} for label in dict.fromkeys(map(_label, rows))
    }
    width = max(map(len, table)) + 2
    head = "".join(f"{f'{count} people':>14}{'mean':>9}{'x ours':>8}" for count in people)
    lines = [f"{'ms a frame (median)':<{width}}{head}{'growth':>8}{'reported':>10}{'ids':>6}"]
    base = table[DEFAULT]
    for label, by_people in table.items():
        cells = "".join(
            f"{by_people[count].median_ms:>14.3f}{by_people[count].mean_ms:>9.3f}"
            f"{by_people[count].median_ms / base[count].median_ms:>8.1f}"
            for count in people
        )
        last = by_people[people[-1]]
        grown = result["growth"].get(label)
        lines.append(
            f"{label:<{width}}{cells}{'' if grown is None else f'{grown:.1f}':>8}{last.reported:>10.1f}{last.ids:>6}"
        )
    lines += [
        f"{count} people: the fastest peer takes {min(by_peer.values()):.1f} times as long as ours, without embeddings"
        for count, by_peer in result["peer_ms_by_ours"].items()
        if by_peer
    ]
    if result["growth"]:
        lines.append(
            f"growth: from {people[-2]} to {people[-1]} people; quadratic is {result['growth']['quadratic']:.1f}"
        )
    lines += [
        f"{count} people: {facts['people_in_all']} in all, {facts['boxes_per_frame']:.1f} boxes a frame"
        for count, facts in result["crowds"].items()
    ]
    lines += [f"{name}: {version or 'not installed'}" for name, version in result["peers"].items()]
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, one thread, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[30, 150, 500], help="default: 30 150 500")
    parser.add_argument("--frames", type=int, default=120, help="timed frames of a repeat (default: 120)")
    parser.add_argument("--warm", type=int, default=40, help="frames before them (default: 40)")
    parser.add_argument("--repeats", type=int, default=3, help="with trackers anew (default: 3)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="profile our default instead, into this file")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "association_cost.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        for name in ("frames", "repeats"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
        if min(args.people) < 1 or args.warm < 0:
            raise ValueError(
                f"expected --people of at least 1 and --warm of at least 0, got {args.people}, {args.warm}"
            )
        if args.profile:
            text = profile(args.people, args.warm, args.frames)
            args.profile.write_text(text)
            print(text)
            return 0
        result = measure(args)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"association_cost: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
