"""What an evaluation costs: seconds and peak memory of `tracker.evaluation`, beside TrackEval on the same files.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --data LifT_MOT17_train --people 20 --frames 50 --repeats 1 --json quick.json

Three cases: real results on the 21 sequences of MOT17's training part, and two synthetic crowds, one of them of boxes
on a coarse grid, where equally good matchings are everywhere. Each run is a process of its own that reads the files,
scores them (HOTA, CLEAR, Identity) and ends; the evaluations take turns, so that a disturbance of the machine meets
all. TrackEval is called sequence by sequence as in its own loop, without its tables and plots. Imports are timed apart
and are not in the seconds; the peak of the memory has them. A figure that differs is an error.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before NumPy is loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

OURS, TWO_PROCESSES, TRACKEVAL = "ours", "ours, 2 processes", "trackeval"
ENGINES = (OURS, TWO_PROCESSES, TRACKEVAL)
COMBINED = "COMBINED"
SHOWN = ("HOTA", "MOTA", "IDF1", "IDSW", "CLR_FP", "CLR_FN")

CROWD = "crowd"
GRIDS = {"crowd": 0.01, "crowd on a grid": 8.0}
"""Pixels of which all coordinates are multiples."""
PEDESTRIAN, DISTRACTOR, NO_CLASS = 1, 8, -1


@dataclass(frozen=True)
class Case:
    """What is scored, by the rules of MOT17.

    Attributes:
        gt: folder of sequences, each with `gt/gt.txt` and `seqinfo.ini`.
        results: folder of `<sequence>.txt`.
        first: score only so many sequences; None for all.
    """

    gt: Path
    results: Path
    first: int | None = None

    def sequences(self) -> list[str]:
        """Their names, sorted."""
        return sorted(path.name for path in self.gt.iterdir())[: self.first]


@dataclass(frozen=True)
class Run:
    """One evaluation in a process of its own.

    Attributes:
        seconds: of reading and scoring.
        import_seconds: of loading the library before that.
        peak_mb: most memory that the process, or the largest one it started, ever held.
        imported_mb: the same when the library was loaded.
        figures: sequence -> figure -> value, the mean over the thresholds where there are several.
    """

    seconds: float
    import_seconds: float
    peak_mb: float
    imported_mb: float
    figures: dict[str, dict[str, float]]


def by_trackeval(gt: Path, results: Path, sequences: Sequence[str], benchmark: str) -> dict[str, dict[str, Any]]:
    """The official figures of each sequence and of all as "COMBINED", by the names of `tracker.evaluation.evaluate`."""
    import trackeval

    config = {
        "BENCHMARK": benchmark,
        "GT_FOLDER": str(gt),
        "TRACKERS_FOLDER": str(results.parent),
        "TRACKERS_TO_EVAL": [results.name],
        "TRACKER_SUB_FOLDER": "",
        "SKIP_SPLIT_FOL": True,
        "SEQ_INFO": dict.fromkeys(sequences),  # lengths are read from each seqinfo.ini
        "PRINT_CONFIG": False,
    }
    silent = {"PRINT_CONFIG": False}
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.MotChallenge2DBox(config)
        metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(silent), trackeval.metrics.Identity(silent)]
        parts: list[dict[str, Any]] = [{} for _ in metrics]
        for name in sequences:
            data = dataset.get_preprocessed_seq_data(dataset.get_raw_seq_data(results.name, name), "pedestrian")
            for metric, part in zip(metrics, parts, strict=True):
                part[name] = metric.eval_sequence(data)
        for metric, part in zip(metrics, parts, strict=True):
            part[COMBINED] = metric.combine_sequences(dict(part))
    return {name: {key: value for part in parts for key, value in part[name].items()} for name in parts[0]}


def run(engine: str, case: Case) -> Run:
    """Evaluate once; to be called in a fresh process."""
    begin = time.perf_counter()
    if engine == TRACKEVAL:
        import trackeval  # noqa: F401
    else:
        from tracker.evaluation import evaluate
    imported, imported_mb = time.perf_counter(), peak_mb()
    if engine == TRACKEVAL:
        figures = by_trackeval(case.gt, case.results, case.sequences(), "MOT17")
    else:
        processes = 2 if engine == TWO_PROCESSES else 1
        figures = evaluate(case.gt, case.results, case.sequences(), "MOT17", processes)
    end = time.perf_counter()
    numbers = {name: {key: float(np.mean(value)) for key, value in part.items()} for name, part in figures.items()}
    return Run(end - imported, imported - begin, peak_mb(), imported_mb, numbers)


def peak_mb() -> float:
    """Most memory that this process, or one that it started and that has ended, ever held; Linux alone tells it."""
    # What getrusage says of a process itself would have begun with the size of the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise ValueError("/proc/self/status: expected a line VmHWM, found none")
    return max(int(found[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024 / 1e6


def compare(case: Case, repeats: int, title: str) -> dict[str, Any]:
    """All evaluations of a case in turns: medians over the repeats, and how many times as long TrackEval takes.

    Raises:
        ValueError: two evaluations differ in a figure.
    """
    several = len(case.sequences()) > 1
    names = [engine for engine in ENGINES if several or engine != TWO_PROCESSES]
    runs: dict[str, list[Run]] = {engine: [] for engine in names}
    with tqdm(total=repeats * len(names), desc=title, unit="run") as progress:
        for turn in range(repeats):
            first = turn % len(names)  # nobody always comes behind the same one
            for engine in names[first:] + names[:first]:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    runs[engine].append(process.submit(run, engine, case).result())
                progress.update()
    expected = runs[TRACKEVAL][0].figures
    for engine, done in runs.items():
        for each in done:
            check_equal(each.figures, expected, f"{title}: {engine}")
    engines: dict[str, dict[str, Any]] = {}
    for engine, done in runs.items():
        engines[engine] = {
            name: median(getattr(each, name) for each in done)
            for name in ("seconds", "import_seconds", "peak_mb", "imported_mb")
        }
        engines[engine]["seconds_of_runs"] = [each.seconds for each in done]
    slow = engines[TRACKEVAL]["seconds"]
    return {
        "sequences": len(expected) - 1,
        "frames": expected[COMBINED]["CLR_Frames"],
        "figures": {name: expected[COMBINED][name] for name in SHOWN},
        "engines": engines,
        "times_faster_than_trackeval": {name: slow / engine["seconds"] for name, engine in engines.items()},
    }


def check_equal(figures: dict[str, dict[str, float]], expected: dict[str, dict[str, float]], what: str) -> None:
    """Raise a ValueError where a figure differs by more than rounding."""
    for name, part in expected.items():
        for key, value in part.items():
            if abs(figures[name][key] - value) > 1e-9 * max(1, abs(value)):
                raise ValueError(f"{what}: {name}: {key}: expected {value!r}, got {figures[name][key]!r}")


def write_crowd(folder: Path, people: int, frames: int, grid: float) -> Case:
    """People who drift past each other and a result with errors, as files.

    In each frame a tenth of the people is missed and a twentieth is found twice; in every fifth, two tracks exchange
    their ids. Every tenth person is a distractor.

    Args:
        folder: gets `gt/crowd/` and `results/crowd.txt`.
        people: in each frame.
        frames: how many.
        grid: pixels of which all coordinates and sizes are multiples.
    """
    rng = np.random.default_rng(0)
    place, size = rng.uniform(0, (1920, 1080), (people, 2)), rng.uniform((40, 80), (60, 140), (people, 2))
    person = np.arange(people)
    class_id, track = np.where(person % 10 == 9, DISTRACTOR, PEDESTRIAN), person.copy()
    truth, result = [], []
    for frame in range(1, frames + 1):
        place += rng.normal(0, 3, place.shape)
        if frame % 5 == 0:
            pair = rng.choice(people, 2, replace=False)
            track[pair] = track[pair[::-1]]
        found = rng.random(people) < 0.9
        twice = found & (rng.random(people) < 0.05)
        ids = np.concatenate([track[found], people + track[twice]])
        tlwh = np.hstack([place, size])
        seen = np.vstack([tlwh[found], tlwh[twice]])
        seen += rng.normal(0, 3, seen.shape)
        truth.append(_rows(frame, person, np.round(tlwh / grid) * grid, class_id))
        result.append(_rows(frame, ids, np.round(seen / grid) * grid, NO_CLASS))
    case = Case(folder / "gt", folder / "results")
    (case.gt / CROWD / "gt").mkdir(parents=True)
    case.results.mkdir()
    (case.gt / CROWD / "seqinfo.ini").write_text(f"[Sequence]\nname={CROWD}\nframeRate=25\nseqLength={frames}\n")
    for file, rows in ((case.gt / CROWD / "gt" / "gt.txt", truth), (case.results / f"{CROWD}.txt", result)):
        np.savetxt(file, np.vstack(rows), fmt="%.12g", delimiter=",")
    return case


def _rows(frame: int, ids: NDArray[Any], tlwh: NDArray[np.float64], class_id: NDArray[Any] | int) -> NDArray[Any]:
    """Nine columns: frame, id, box, score 1, class, visibility 1."""
    table = np.ones((len(ids), 9))
    table[:, 0], table[:, 1], table[:, 2:6], table[:, 7] = frame, ids, tlwh, class_id
    return table


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    from benchmarks.throughput import machine  # loads libraries that have no place in the measured processes

    facts = machine()
    cases = {}
    with tempfile.TemporaryDirectory() as scratch:
        todo = {"Lif_T on MOT17 train": Case(args.data / "MOT17" / "train", args.data / "Lif_T", args.sequences)}
        for name, grid in GRIDS.items():
            todo[f"{name}, {args.people} people"] = write_crowd(Path(scratch) / name, args.people, args.frames, grid)
        for title, case in todo.items():
            cases[title] = compare(case, args.repeats, title)
    return {
        "cases": cases,
        "people": args.people,
        "repeats": args.repeats,
        "trackeval": importlib.metadata.version("trackeval"),
        "scipy": importlib.metadata.version("scipy"),
        "machine": facts,
    }


def format_table(result: dict[str, Any]) -> str:
    """One evaluation a line, for each case."""
    lines = []
    for name, case in result["cases"].items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in case["figures"].items())
        lines += [
            f"{name}: {case['sequences']} sequences, {case['frames']:.0f} frames; {figures}",
            f"  {'':<20}{'seconds':>9}{'x faster':>10}{'imports s':>11}{'peak MB':>9}{'imports MB':>12}",
        ]
        for engine, row in case["engines"].items():
            lines.append(
                f"  {engine:<20}{row['seconds']:>9.2f}{case['times_faster_than_trackeval'][engine]:>10.1f}"
                f"{row['import_seconds']:>11.2f}{row['peak_mb']:>9.0f}{row['imported_mb']:>12.0f}"
            )
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "mot_results" / "LifT_MOT17_train"
    parser.add_argument("--data", type=Path, default=default, help="folder with MOT17/train and Lif_T")
    parser.add_argument("--sequences", type=int, help="score only so many of MOT17's (default: all)")
    parser.add_argument("--people", type=int, default=150, help="in each frame of the crowds (default: 150)")
    parser.add_argument("--frames", type=int, default=500, help="of the crowds (default: 500)")
    parser.add_argument("--repeats", type=int, default=3, help="of each evaluation of each case (default: 3)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "evaluation.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        for name, least in (("people", 2), ("frames", 1), ("repeats", 1), ("sequences", 1)):
            if getattr(args, name) is not None and getattr(args, name) < least:
                raise ValueError(f"--{name}: expected at least {least}, got {getattr(args, name)}")
        result = measure(args)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"evaluation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
