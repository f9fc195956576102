"""MOTChallenge evaluation: folders of ground truth and results, the benchmarks' pre-processing, and the figures.

What is scored, as the benchmarks do it: a result that is matched to something that need not be tracked (a
person in a vehicle, one who never moves, a reflection, a distractor) is taken out and neither helps nor harms; then
only pedestrians of the ground truth are left whose score is not 0. MOT15 has no classes: only the score counts.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import iou_of_edges, sweep, tlwh_to_xyxy
from tracker.comparison import ROUNDING, Comparison, matches
from tracker.metrics import MATCH_THRESH, Figures, combine, sequence_figures
from tracker.mot import NO_CLASS, MotRows, read_mot, read_seqinfo
from tracker.types import LARGEST_COORDINATE, IntArray

Benchmark = Literal["MOT15", "MOT16", "MOT17", "MOT20"]

COMBINED = "COMBINED"
"""Name of the figures of all sequences together."""

PEDESTRIAN = 1
CLASSES = range(1, 14)
"""Classes of ground truth from MOT16 on."""

_DISTRACTORS = (2, 7, 8, 12)  # person on a vehicle, static person, distractor, reflection
_NON_MOT_VEHICLE = 6  # a distractor in MOT20 alone

# So many boxes of the ground truth are compared at once: the arrays of their pairs stay in the cache.
_BLOCK = 4096


def evaluate(
    gt_root: str | Path,
    results_root: str | Path,
    sequences: Sequence[str] | None = None,
    benchmark: Benchmark | None = None,
    parts: Mapping[str, tuple[int, int]] | None = None,
    processes: int = 1,
) -> dict[str, Figures]:
    """Score a folder of result files.

    Args:
        gt_root: folder of sequences, each with `gt/gt.txt` and `seqinfo.ini`.
        results_root: folder of `<sequence>.txt`.
        sequences: names of those to score; None: all of `gt_root`, and no other result may be there.
        benchmark: whose rules hold; None: see `benchmark_of`.
        parts: first and last frame to score of some of the sequences; the others are scored as a whole.
        processes: how many sequences are scored at the same time.

    Returns:
        Figures of each sequence by its name, and of all together as "COMBINED".

    Raises:
        FileNotFoundError: a file of ground truth, a sequence's description or a result is missing.
        ValueError: an unknown sequence or benchmark; with `path:line`, what `read_mot` refuses, a frame beyond the
            sequence, an identity that comes twice in a frame, a class that the benchmark does not know.
    """
    gt_root, results_root = Path(gt_root), Path(results_root)
    # A folder that lacks one of the two is an error later, not a sequence less.
    known = sorted(
        path.name for path in gt_root.iterdir() if (path / "gt").is_dir() or (path / "seqinfo.ini").is_file()
    )
    if not known:
        raise ValueError(f"{gt_root}: expected folders of sequences with gt/gt.txt and seqinfo.ini, found none")
    if sequences is None:
        sequences = known
        unknown = sorted(path for path in results_root.glob("*.txt") if path.stem not in known)
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown sequence, {gt_root} has {', '.join(known)}")
    for name in sequences:
        if name not in known:
            raise ValueError(f"sequence: expected one of {', '.join(known)} ({gt_root}), got {name!r}")
    if not sequences or len(set(sequences)) < len(sequences):
        raise ValueError(f"sequences: expected different names, at least one, got {list(sequences)}")
    for name in parts or ():
        if name not in sequences:
            raise ValueError(f"parts: expected one of {', '.join(sequences)}, got {name!r}")
    score = functools.partial(evaluate_files, benchmark=benchmark)
    part = [(parts or {}).get(name) for name in sequences]
    folders = [gt_root / name for name in sequences]
    files = [results_root / f"{name}.txt" for name in sequences]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            figures = list(pool.map(score, folders, files, part))
    else:
        figures = list(map(score, folders, files, part))
    return dict(zip(sequences, figures, strict=True)) | {COMBINED: combine(figures)}


def evaluate_files(
    sequence: str | Path,
    results: str | Path,
    part: tuple[int, int] | None = None,
    benchmark: Benchmark | None = None,
) -> Figures:
    """Score one result file against the folder of its sequence.

    Args:
        sequence: folder with `gt/gt.txt` and `seqinfo.ini`.
        results: the file.
        part: first and last frame to score; None: all.
        benchmark: as for `evaluate`, which also names the errors.
    """
    sequence, results = Path(sequence), Path(results)
    gt = sequence / "gt" / "gt.txt"
    info = read_seqinfo(sequence / "seqinfo.ini")
    truth = _read_truth(gt)
    return _evaluate(
        truth,
        _read(results),
        info.length,
        part,
        benchmark or benchmark_of(sequence.name, truth),
        lambda row: f"{gt}:{_line_of(gt, row)}",
        lambda row: f"{results}:{_line_of(results, row)}",
    )


def evaluate_sequence(truth: MotRows, results: MotRows, frames: int, benchmark: Benchmark = "MOT17") -> Figures:
    """Score the rows of one sequence.

    Args:
        truth: ground truth, in any order of frames.
        results: identities not below 0; classes 1 or not given.
        frames: length of the sequence.
        benchmark: whose rules hold.

    Raises:
        ValueError: an unknown benchmark; with the number of the row, from 0, what `evaluate` gives a line for.
    """
    return _evaluate(
        truth, results, frames, None, benchmark, lambda row: f"truth: row {row}", lambda row: f"results: row {row}"
    )


def benchmark_of(name: str, truth: MotRows) -> Benchmark:
    """Whose rules hold for a sequence: those its name begins with; else MOT15's without classes, MOT17's with them."""
    for benchmark in get_args(Benchmark):
        if name.startswith(benchmark):
            return cast(Benchmark, benchmark)
    return "MOT15" if (truth.classes == NO_CLASS).all() else "MOT17"


def crop(rows: MotRows, first: int, last: int) -> MotRows:
    """The rows of frames `first` to `last`, both included, which become frames 1 to `last - first + 1`."""
    inside = ((rows.frames >= first) & (rows.frames <= last)).nonzero()[0]
    part = _take(rows, inside)
    return dataclasses.replace(part, frames=part.frames - first + 1)


def prepare(truth: MotRows, results: MotRows, frames: int, benchmark: Benchmark) -> Comparison:
    """Compare the boxes of all frames, and leave out what the benchmark does not score. Arguments are trusted."""
    truth, results = _by_frame(truth), _by_frame(results)
    pair_truth, pair_result, similarity = _overlaps(truth, results)
    truth_ids, result_ids = (np.unique(rows.track_ids, return_inverse=True)[1] for rows in (truth, results))
    comparison = Comparison(
        frames, truth.frames, truth_ids, results.frames, result_ids, pair_truth, pair_result, similarity
    )
    scored = np.trunc(truth.scores) != 0
    left = np.ones(len(results), bool)
    if benchmark != "MOT15":
        scored &= truth.classes == PEDESTRIAN
        matched = matches(comparison, np.where(similarity >= MATCH_THRESH - ROUNDING, similarity, 0))
        distractors = (*_DISTRACTORS, _NON_MOT_VEHICLE) if benchmark == "MOT20" else _DISTRACTORS
        left[pair_result[matched[np.isin(truth.classes[pair_truth[matched]], distractors)]]] = False
    return comparison.keep(scored, left)


def _evaluate(
    truth: MotRows,
    results: MotRows,
    frames: int,
    part: tuple[int, int] | None,
    benchmark: Benchmark,
    truth_place: Callable[[int], str],
    results_place: Callable[[int], str],
) -> Figures:
    if benchmark not in get_args(Benchmark):
        raise ValueError(f"benchmark: expected one of {', '.join(get_args(Benchmark))}, got {benchmark!r}")
    _check_rows(truth, frames, truth_place)
    _check_rows(results, frames, results_place)
    if benchmark != "MOT15":
        strange = ~np.isin(truth.classes, CLASSES)
        if strange.any():
            row = int(strange.argmax())
            raise ValueError(
                f"{truth_place(row)}: class: expected 1 to {CLASSES[-1]} in ground truth of {benchmark}, "
                f"got {truth.classes[row]}"
            )
    strange = results.classes > PEDESTRIAN
    if strange.any():
        row = int(strange.argmax())
        raise ValueError(
            f"{results_place(row)}: class: expected {PEDESTRIAN} or {NO_CLASS}, got {results.classes[row]}"
        )
    if part is not None:
        first, last = part
        if not 1 <= first <= last <= frames:
            raise ValueError(f"part: expected first and last frame within 1 to {frames}, got {first} to {last}")
        truth, results, frames = crop(truth, first, last), crop(results, first, last), last - first + 1
    return sequence_figures(prepare(truth, results, frames, benchmark))


def _check_rows(rows: MotRows, frames: int, place: Callable[[int], str]) -> None:
    """Refuse frames beyond the sequence, negative identities, and identities that come twice in a frame."""
    outside = (rows.frames < 1) | (rows.frames > frames)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{place(row)}: frame: expected 1 to {frames}, the sequence's length, got {rows.frames[row]}")
    negative = rows.track_ids < 0
    if negative.any():
        row = int(negative.argmax())
        raise ValueError(f"{place(row)}: id: expected a number from 0, got {rows.track_ids[row]}")
    order = np.lexsort((rows.track_ids, rows.frames))
    frame, identity = rows.frames[order], rows.track_ids[order]
    again = ((frame[1:] == frame[:-1]) & (identity[1:] == identity[:-1])).nonzero()[0] + 1
    if len(again):
        row = int(order[again].min())
        raise ValueError(f"{place(row)}: id {rows.track_ids[row]} comes twice in frame {rows.frames[row]}")


def _take(rows: MotRows, places: IntArray) -> MotRows:
    return MotRows(*(getattr(rows, field.name)[places] for field in dataclasses.fields(rows)))


def _by_frame(rows: MotRows) -> MotRows:
    """Rising frames; rows of a frame keep their order, which decides between equally good matches."""
    return _take(rows, rows.frames.argsort(kind="stable"))


def _overlaps(truth: MotRows, results: MotRows) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """Places of all pairs of boxes that overlap in a frame, and their intersection over union, for rising frames."""
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    if len(truth) == 0 or len(results) == 0:
        return none
    a, b = tlwh_to_xyxy(truth.tlwh), tlwh_to_xyxy(results.tlwh)
    # Frames are laid side by side, so that one sweep from left to right goes through many of them.
    width = max(a[:, 2].max(), b[:, 2].max()) - min(a[:, 0].min(), b[:, 0].min()) + 1
    a_left, b_left = truth.frames * width, results.frames * width
    rounding = 4 * np.spacing(max(a_left[-1], b_left[-1]) + width)
    a_swept, b_swept = a + a_left[:, None], b + b_left[:, None]
    a_swept += np.array([-rounding, 0, rounding, 0])

    frame_begin = np.append(truth.frames.searchsorted(np.unique(truth.frames)), len(truth))
    blocks = np.unique(frame_begin[frame_begin.searchsorted(np.arange(0, len(truth), _BLOCK))]).tolist()
    parts: list[tuple[IntArray, IntArray, NDArray[Any]]] = [none]
    for begin, end in zip(blocks, [*blocks[1:], len(truth)], strict=True):
        first, last = results.frames.searchsorted([truth.frames[begin], truth.frames[end - 1] + 1]).tolist()
        if first == last:
            continue
        row, column = sweep(a_swept[begin:end], b_swept[first:last])
        row, column = row + begin, column + first
        meet = np.minimum(a[row, 3], b[column, 3]) > np.maximum(a[row, 1], b[column, 1])
        meet &= truth.frames[row] == results.frames[column]
        row, column = row[meet], column[meet]
        value = iou_of_edges(a[row].T, b[column].T)
        found = value.nonzero()[0]
        parts.append((row[found], column[found], value[found]))
    rows, columns, values = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)


def _read(path: Path) -> MotRows:
    """`read_mot`, with a faster reader for what has nothing unusual."""
    rows = _parse(path.read_bytes())
    return read_mot(path) if rows is None else rows


def _read_truth(path: Path) -> MotRows:
    """As `_read`, but the same text as before is not read again: MOT17 has each sequence three times."""
    rows = _parse_once(path.read_bytes())
    return read_mot(path) if rows is None else rows


def _parse(text: bytes) -> MotRows | None:
    """Rows of plain numbers between commas, as many in each; None for anything else."""
    if not text.strip():
        return None
    try:
        table = np.loadtxt(io.StringIO(text.decode()), delimiter=",", comments=None, ndmin=2)
    except ValueError:
        return None
    count, width = table.shape
    whole = table[:, [0, 1, *range(7, min(width, 8))]]
    usual = (
        count > 0
        and 6 <= width <= 10
        and bool((np.abs(table) <= LARGEST_COORDINATE).all())
        and bool((whole == np.trunc(whole)).all())
        and bool((table[:, 0] >= 1).all())
        and bool((table[:, 4:6] >= 0).all())
        and (width < 10 or bool((table[:, 9] == -1).all()))
    )
    if not usual:
        return None
    return MotRows(
        frames=table[:, 0].astype(np.int64),
        track_ids=table[:, 1].astype(np.int64),
        tlwh=np.ascontiguousarray(table[:, 2:6]),
        scores=table[:, 6].copy() if width > 6 else np.ones(count),
        classes=table[:, 7].astype(np.int64) if width > 7 else np.full(count, NO_CLASS),
        visibility=table[:, 8].copy() if width > 8 else np.full(count, -1.0),
    )


_parse_once = functools.lru_cache(maxsize=1)(_parse)


def _line_of(path: Path, row: int) -> int:
    """Line, from 1, of a row of what `read_mot` returned: empty lines are none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip())
        return next(number for place, number in enumerate(filled) if place == row)
