"""Score result files against MOTChallenge ground truth: HOTA, CLEAR and Identity by the `trackeval` package.

    python benchmarks/score_mot.py GT RESULTS
    python benchmarks/score_mot.py GT RESULTS --sequences MOT17-02-FRCNN MOT17-05-FRCNN --json scores.json

GT is a folder of sequences, each with `gt/gt.txt` and `seqinfo.ini`, or one such sequence. RESULTS is a folder of
`<sequence>.txt` files, or one such file. Pre-processing is that of MOT17: result boxes on static people, people on
vehicles, distractors and reflections are dropped before scoring, and ground truth of confidence zero does not count.

HOTA: Luiten et al., IJCV 2021. CLEAR: Bernardin and Stiefelhagen, 2008. Identity: Ristani et al., ECCV-W 2016.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMBINED = "COMBINED"

# our name -> metric family and field of trackeval
FIELDS = {
    "HOTA": ("HOTA", "HOTA"),
    "DetA": ("HOTA", "DetA"),
    "AssA": ("HOTA", "AssA"),
    "MOTA": ("CLEAR", "MOTA"),
    "IDF1": ("Identity", "IDF1"),
    "IDSW": ("CLEAR", "IDSW"),
    "recall": ("CLEAR", "CLR_Re"),
    "precision": ("CLEAR", "CLR_Pr"),
    "FP": ("CLEAR", "CLR_FP"),
    "FN": ("CLEAR", "CLR_FN"),
    "TP": ("CLEAR", "CLR_TP"),
    "LocA": ("HOTA", "LocA"),
    "MOTP": ("CLEAR", "MOTP"),
    "MT": ("CLEAR", "MT"),
    "PT": ("CLEAR", "PT"),
    "ML": ("CLEAR", "ML"),
    "Frag": ("CLEAR", "Frag"),
    "IDP": ("Identity", "IDP"),
    "IDR": ("Identity", "IDR"),
}
COLUMNS = list(FIELDS)[:10]
COUNTS = {"IDSW", "FP", "FN"}


def score(gt_root: Path, results: Path, sequences: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Score one tracker's result files.

    Args:
        gt_root: folder of MOTChallenge sequences, or one sequence.
        results: folder of `<sequence>.txt`, or one such file.
        sequences: the ones to score; None for all that have ground truth (with a single result file: its own).

    Returns:
        Sequence name -> figure -> value, and the figures over all sequences under "COMBINED". Ratios are 0 to 1
        (MOTA may be negative); HOTA, DetA, AssA and LocA are means over the localisation thresholds 0.05 to 0.95.

    Raises:
        ValueError: no sequence to score, or ground truth or results missing or malformed.
    """
    from trackeval.datasets import MotChallenge2DBox
    from trackeval.metrics import CLEAR, HOTA, Identity
    from trackeval.utils import TrackEvalException

    gt_root, results, names = _resolve(gt_root, results, sequences)
    metrics = {
        "HOTA": HOTA(),
        "CLEAR": CLEAR({"THRESHOLD": 0.5, "PRINT_CONFIG": False}),
        "Identity": Identity({"THRESHOLD": 0.5, "PRINT_CONFIG": False}),
    }
    raw: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
    try:
        dataset = MotChallenge2DBox(
            {
                "GT_FOLDER": str(gt_root),
                "TRACKERS_FOLDER": str(results.parent),
                "TRACKERS_TO_EVAL": [results.name],
                "TRACKER_SUB_FOLDER": "",
                "SKIP_SPLIT_FOL": True,
                "SEQ_INFO": dict.fromkeys(names),  # lengths are read from each seqinfo.ini
                "BENCHMARK": "MOT17",
                "DO_PREPROC": True,
                "PRINT_CONFIG": False,
            }
        )
        for name in names:
            data = dataset.get_raw_seq_data(results.name, name)
            data = dataset.get_preprocessed_seq_data(data, "pedestrian")
            for metric, evaluator in metrics.items():
                raw[metric][name] = evaluator.eval_sequence(data)
    except (TrackEvalException, KeyError) as error:
        raise ValueError(f"{results}: {error}") from error
    for metric, evaluator in metrics.items():
        raw[metric][COMBINED] = evaluator.combine_sequences(dict(raw[metric]))
    return {
        name: {ours: float(np.mean(raw[metric][name][field])) for ours, (metric, field) in FIELDS.items()}
        for name in [*names, COMBINED]
    }


def _resolve(gt_root: Path, results: Path, sequences: Sequence[str] | None) -> tuple[Path, Path, list[str]]:
    """Folder of sequences, folder of results, names to score: one sequence or one result file stands for its folder."""
    gt_root, results = gt_root.resolve(), results.resolve()
    if results.is_file():
        sequences = [results.stem] if sequences is None else sequences
        results = results.parent
    if (gt_root / "gt" / "gt.txt").is_file():
        sequences = [gt_root.name] if sequences is None else sequences
        gt_root = gt_root.parent
    if sequences is None:
        sequences = sorted(file.parents[1].name for file in gt_root.glob("*/gt/gt.txt"))
    if not sequences:
        raise ValueError(f"{gt_root}: expected folders with gt/gt.txt, found none")
    needed = [gt_root / name / part for name in sequences for part in ("gt/gt.txt", "seqinfo.ini")]
    for file in [*needed, *(results / f"{name}.txt" for name in sequences)]:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
    return gt_root, results, list(sequences)


def format_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """An aligned table, one sequence a line; "COMBINED" is left out where it repeats a single sequence."""
    rows = {name: row for name, row in scores.items() if name != COMBINED or len(scores) > 2}
    width = max(map(len, [*rows, "sequence"]))
    lines = [f"{'sequence':<{width}}" + "".join(f"{column:>10}" for column in COLUMNS)]
    for name, row in rows.items():
        cells = (f"{row[column]:>10.0f}" if column in COUNTS else f"{row[column]:>10.3f}" for column in COLUMNS)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gt", type=Path, help="folder of sequences, or one sequence")
    parser.add_argument("results", type=Path, help="folder of <sequence>.txt, or one file")
    parser.add_argument("--sequences", nargs="+", help="names to score (default: all)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        scores = score(args.gt, args.results, args.sequences)
        print(format_table(scores))
        if args.json:
            args.json.write_text(json.dumps(scores, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"score_mot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
