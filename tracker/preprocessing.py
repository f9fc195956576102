"""What the benchmarks score of a sequence: classes, distractors, ignored ground truth.

A result that is matched to something that need not be tracked (a person in a vehicle, one who never moves, a
reflection, a distractor) is taken out and neither helps nor harms; then only pedestrians of the ground truth are left
whose score is not 0. MOT15 has no classes: only the score counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import iou_of_edges, sweep, tlwh_to_xyxy
from tracker.comparison import ROUNDING, Comparison, matches
from tracker.metrics import MATCH_THRESH
from tracker.mot import NO_CLASS, MotRows
from tracker.types import IntArray

Benchmark = Literal["MOT15", "MOT16", "MOT17", "MOT20"]

PEDESTRIAN = 1
CLASSES = range(1, 14)
"""Classes of ground truth from MOT16 on."""

_DISTRACTORS = (2, 7, 8, 12)  # person on a vehicle, static person, distractor, reflection
_NON_MOT_VEHICLE = 6  # a distractor in MOT20 alone

# So many boxes of the ground truth are compared at once: the arrays of their pairs stay in the cache.
_BLOCK = 4096


def benchmark_of(name: str, truth: MotRows) -> Benchmark:
    """Whose rules hold for a sequence: those its name begins with; else MOT15's without classes, MOT17's with them."""
    return benchmark_of_name(name) or ("MOT15" if (truth.classes == NO_CLASS).all() else "MOT17")


def benchmark_of_name(name: str) -> Benchmark | None:
    """The benchmark that the name of a sequence begins with; None: it begins with none."""
    return next((cast(Benchmark, one) for one in get_args(Benchmark) if name.startswith(one)), None)


def within(rows: MotRows, first: int, last: int) -> MotRows:
    """The rows of frames `first` to `last`, both included, which keep their numbers."""
    return _take(rows, ((rows.frames >= first) & (rows.frames <= last)).nonzero()[0])


def renumber(rows: MotRows, offset: int) -> MotRows:
    """The same rows with `offset` added to every frame."""
    return dataclasses.replace(rows, frames=rows.frames + offset)


def prepare(truth: MotRows, results: MotRows, frames: int, benchmark: Benchmark) -> Comparison:
    """Compare the boxes of all frames, and leave out what the benchmark does not score. Arguments are trusted."""
    everything = _compare(truth, results, frames)
    truth_classes = truth.classes[everything.truth_rows]
    scored = _counts(truth)[everything.truth_rows]
    left = np.ones(len(results), bool)
    if benchmark != "MOT15":
        scored &= truth_classes == PEDESTRIAN
        similarity = everything.similarity
        matched = matches(everything, np.where(similarity >= MATCH_THRESH - ROUNDING, similarity, 0))
        distractors = (*_DISTRACTORS, _NON_MOT_VEHICLE) if benchmark == "MOT20" else _DISTRACTORS
        on_distractor = np.isin(truth_classes[everything.pair_truth[matched]], distractors)
        left[everything.pair_result[matched[on_distractor]]] = False
    return everything.keep(scored, left)


def prepare_class(truth: MotRows, results: MotRows, frames: int, class_id: int) -> Comparison:
    """Compare the boxes of one class, for data in which every class is scored by itself and none is a distractor.

    Ground truth whose score is 0 does not count. Arguments are trusted.
    """
    everything = _compare(truth, results, frames)
    return everything.keep(
        (_counts(truth) & (truth.classes == class_id))[everything.truth_rows],
        (results.classes == class_id)[everything.result_rows],
    )


def classes_of(truth: MotRows) -> list[int]:
    """The classes, from 1, of which there is ground truth that counts."""
    return [int(number) for number in np.unique(truth.classes[_counts(truth)]) if number >= 1]


def _counts(truth: MotRows) -> NDArray[np.bool_]:
    return np.asarray(np.trunc(truth.scores) != 0)


def _compare(truth: MotRows, results: MotRows, frames: int) -> Comparison:
    """All boxes by rising frame; those of a frame keep their order, which decides between equally good matches."""
    truth_rows, result_rows = (rows.frames.argsort(kind="stable") for rows in (truth, results))
    truth, results = _take(truth, truth_rows), _take(results, result_rows)
    truth_ids, result_ids = (np.unique(rows.track_ids, return_inverse=True)[1] for rows in (truth, results))
    pair_truth, pair_result, similarity = _overlaps(truth, results)
    return Comparison(
        frames=frames,
        truth_frames=truth.frames,
        truth_ids=truth_ids,
        result_frames=results.frames,
        result_ids=result_ids,
        pair_truth=pair_truth,
        pair_result=pair_result,
        similarity=similarity,
        truth_rows=truth_rows,
        result_rows=result_rows,
    )


def _take(rows: MotRows, places: IntArray) -> MotRows:
    return MotRows(*(getattr(rows, field.name)[places] for field in dataclasses.fields(rows)))


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
