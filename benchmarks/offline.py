"""What filling gaps, smoothing and relinking change in finished results, each on and off.

    python benchmarks/offline.py
    python benchmarks/offline.py --mot MOT --sequences TUD-Campus --json quick.json

MOT is a folder of MOTChallenge sequences. Those with `det/det.txt` are tracked on these public detections, by motion
alone; the others on the detections and embeddings of the bundled model, which are computed once and kept under --cache.
Relinking is for tracks that the tracker lost, so it is also measured behind one that gives up early. A second table
varies the limits. Scores are those of `tracker.evaluation`; the time is that of the refinement alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from tqdm import tqdm  # noqa: E402

from benchmarks import public_detections  # noqa: E402
from benchmarks.association import SEQUENCES, load  # noqa: E402
from configs import dump_config  # noqa: E402
from tracker import Tracker, TrackerConfig  # noqa: E402
from tracker.offline import FILL_SECONDS, OfflineConfig, refine  # noqa: E402
from tracker.trajectories import Trajectories  # noqa: E402

TRACKERS = {
    "ours": TrackerConfig(),
    "ours, giving up after 0.3 s": TrackerConfig(track_buffer=0.3),
}
STEPS = {
    "none": OfflineConfig(),
    "fill": OfflineConfig(fill_gaps=FILL_SECONDS),
    "smooth": OfflineConfig(smooth=True),
    "fill + smooth": OfflineConfig(fill_gaps=FILL_SECONDS, smooth=True),
    "relink": OfflineConfig(relink=True),
    "relink + fill + smooth": OfflineConfig(relink=True, fill_gaps=FILL_SECONDS, smooth=True),
}
LIMITS = {
    "fill_gaps": (0.25, 0.5, 1.0, 2.0, 3.0),
    "relink_seconds": (5.0, 10.0, 30.0),
    "relink_embedding_thresh": (0.2, 0.3, 0.4),
    "relink_deviation": (0.0, 0.1, 0.2, 0.3, 0.6),
    "relink_motion_seconds": (1.0, 2.0, 5.0),
    "relink_motion_thresh": (0.15, 0.25, 0.4, 0.6),
}
"""Values of each limit, the others at their defaults; relinking alone, but for the gaps to fill."""

FIGURES = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1", "IDSW", "Frag", "CLR_FP", "CLR_FN")
COLUMNS = ("HOTA", "IDF1", "MOTA")
MEAN = "mean"

Scores = dict[str, dict[str, float]]
"""Sequence (and `MEAN`) -> figure -> value."""


def track(sequence: public_detections.Sequence, config: TrackerConfig) -> Trajectories:
    """The result to be refined."""
    tracker = Tracker(config, sequence.frame_rate)
    return Trajectories.from_results(tracker.update(found) for found in sequence.detections)


def measure(
    sequences: Sequence[public_detections.Sequence], results: Sequence[Trajectories], config: OfflineConfig
) -> Scores:
    """Scores of the refined results, with the number of identities and the milliseconds it took."""
    scores: Scores = {}
    for sequence, result in zip(sequences, results, strict=True):
        started = time.perf_counter()
        refined = refine(result, sequence.frame_rate, config)
        elapsed = time.perf_counter() - started
        row = public_detections.score_results(sequence.folder, refined.results(last=len(sequence)))
        scores[sequence.name] = {
            **{figure: round(row[figure], 4) for figure in FIGURES},
            "ids": len(set(refined.track_ids.tolist())),
            "ms": round(elapsed * 1e3, 1),
        }
    scores[MEAN] = {figure: round(mean(row[figure] for row in scores.values()), 4) for figure in COLUMNS}
    return scores


def steps(sequences: Sequence[public_detections.Sequence]) -> dict[str, dict[str, Scores]]:
    """Tracker -> step -> scores."""
    table: dict[str, dict[str, Scores]] = {}
    with tqdm(total=len(TRACKERS) * len(STEPS), desc="steps", mininterval=2) as bar:
        for tracker, config in TRACKERS.items():
            results = [track(sequence, config) for sequence in sequences]
            table[tracker] = {}
            for step, offline in STEPS.items():
                table[tracker][step] = measure(sequences, results, offline)
                bar.update()
    return table


def limits(sequences: Sequence[public_detections.Sequence]) -> dict[str, dict[str, dict[str, Scores]]]:
    """Tracker -> limit -> value -> scores."""
    table: dict[str, dict[str, dict[str, Scores]]] = {}
    with tqdm(total=len(TRACKERS) * sum(map(len, LIMITS.values())), desc="limits", mininterval=2) as bar:
        for tracker, config in TRACKERS.items():
            results = [track(sequence, config) for sequence in sequences]
            table[tracker] = {}
            for name, values in LIMITS.items():
                base = OfflineConfig(relink=name.startswith("relink"))
                table[tracker][name] = {}
                for value in values:
                    change: dict[str, Any] = {name: value}
                    scores = measure(sequences, results, dataclasses.replace(base, **change))
                    table[tracker][name][f"{value:g}"] = {
                        sequence: {figure: row[figure] for figure in COLUMNS} for sequence, row in scores.items()
                    }
                    bar.update()
    return table


def format_rows(title: str, rows: dict[str, Scores], columns: Sequence[str]) -> str:
    """An aligned table: a line for each setting, under each sequence the figures named in `columns`."""
    names = list(next(iter(rows.values())))
    width = max(len(label) for label in (title, *rows))
    field = max(8 * len(columns), *(len(name) + 2 for name in names))
    lines = [f"{title:<{width}}" + "".join(f"{name:>{field}}" for name in names)]
    if len(columns) > 1:
        lines.append(" " * width + "".join(f"{column:>8}" for column in columns).rjust(field) * len(names))
    for label, scores in rows.items():
        cells = ("".join(f"{scores[name][column]:8.3f}" for column in columns).rjust(field) for name in names)
        lines.append(f"{label:<{width}}" + "".join(cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mot", type=Path, default=ROOT.parent / "shared" / "data" / "mot", help="folder of sequences")
    add("--sequences", nargs="+", default=list(SEQUENCES), help="names of the sequences")
    add("--cache", type=Path, default=ROOT / "runs" / "detections", help="where the model's detections are kept")
    add("--json", type=Path, default=ROOT / "benchmarks" / "offline.json", help="write every figure to this file")
    args = parser.parse_args(argv)
    try:
        sequences = [load(args.mot / name, args.cache) for name in args.sequences]
        by_step, by_limit = steps(sequences), limits(sequences)
        report: dict[str, Any] = {
            "config": dump_config({"offline": OfflineConfig(fill_gaps=FILL_SECONDS)})["offline"],
            "trackers": {name: dump_config({"tracker": config})["tracker"] for name, config in TRACKERS.items()},
            "steps": by_step,
            "limits": by_limit,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"offline: {error}", file=sys.stderr)
        return 2
    for tracker, rows in by_step.items():
        print(format_rows(tracker, rows, COLUMNS), end="\n\n")
    for tracker, tables in by_limit.items():
        print(f"{tracker}: HOTA")
        for name, rows in tables.items():
            print(format_rows(name, rows, COLUMNS[:1]), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
