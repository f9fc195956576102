"""One sequence of ground truth and result: which boxes overlap, and which belong together frame by frame.

Where several matchings are equally good, the one is taken that the benchmarks' official evaluation takes, since figures
that look at more than one frame depend on it: it is that of SciPy's solver, for the whole frame.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from tracker.mot import MotRows
from tracker.types import IntArray

ROUNDING = float(np.finfo(np.float64).eps)
"""An overlap this little below a threshold still reaches it, except in Identity."""

# A person followed in the frame before is worth more than any sum of overlaps.
_CONTINUES = 1000
# Scores closer than this count as equal.
_TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """Ground truth and result of one sequence, and the boxes of theirs that overlap.

    Attributes:
        frames: length of the sequence.
        truth_frames: (N,) rising frame of each box of the ground truth, from 1.
        truth_ids: (N,) its identity, numbered from 0; none comes twice in a frame.
        result_frames: (M,) rising frame of each box of the result.
        result_ids: (M,) its identity, numbered from 0; none comes twice in a frame.
        pair_truth: (P,) rising; box of the ground truth, in 0 ... N - 1, of each pair that overlaps.
        pair_result: (P,) box of the result, in 0 ... M - 1, of each pair.
        similarity: (P,) intersection over union, above 0.
        truth_rows: (N,) where each box of the ground truth stands among the rows that were compared.
        result_rows: (M,) the same of the result.
    """

    frames: int
    truth_frames: IntArray
    truth_ids: IntArray
    result_frames: IntArray
    result_ids: IntArray
    pair_truth: IntArray
    pair_result: IntArray
    similarity: NDArray[np.float64]
    truth_rows: IntArray
    result_rows: IntArray

    def keep(self, truth: NDArray[np.bool_], result: NDArray[np.bool_]) -> Comparison:
        """What is left of it with some of the boxes: masks (N,) of the ground truth and (M,) of the result."""
        pairs = truth[self.pair_truth] & result[self.pair_result]
        return Comparison(
            frames=self.frames,
            truth_frames=self.truth_frames[truth],
            truth_ids=self.truth_ids[truth],
            result_frames=self.result_frames[result],
            result_ids=self.result_ids[result],
            pair_truth=(truth.cumsum() - 1)[self.pair_truth[pairs]],
            pair_result=(result.cumsum() - 1)[self.pair_result[pairs]],
            similarity=self.similarity[pairs],
            truth_rows=self.truth_rows[truth],
            result_rows=self.result_rows[result],
        )

    def begins(self) -> tuple[list[int], list[int], list[int]]:
        """First box of the ground truth, of the result, and first pair of each frame, at the place of its number."""
        numbers = np.arange(self.frames + 2)
        of_frames = (self.truth_frames, self.result_frames, self.truth_frames[self.pair_truth])
        truth, result, pair = (frames.searchsorted(numbers).tolist() for frames in of_frames)
        return truth, result, pair

    @functools.cached_property
    def identity_pairs(self) -> tuple[IntArray, IntArray]:
        """The U different pairs of identities that overlap in some frame, and which of them each pair of boxes is.

        A pair of identities (U,) is one number: id of the truth times R, plus id of the result; R is the greatest id of
        the result plus 1. The second array (P,) has places in the first.
        """
        ids = self.result_ids.max(initial=0) + 1
        numbers = self.truth_ids[self.pair_truth] * ids + self.result_ids[self.pair_result]
        different, of_pair = np.unique(numbers, return_inverse=True)
        return different, of_pair

    def compared_frames(self) -> NDArray[np.bool_]:
        """Whether both sides have a box in a frame (frames + 1,), at the place of its number."""
        length = self.frames + 1
        truth = np.bincount(self.truth_frames, minlength=length) > 0
        return np.asarray(truth & (np.bincount(self.result_frames, minlength=length) > 0))


@dataclass(frozen=True)
class Compared:
    """One sequence after reading, checking and pre-processing.

    Attributes:
        name: of the sequence.
        truth: ground truth of the frames that are scored, numbered as in the file.
        results: the result in these frames.
        first_frame: number in the file of what is frame 1 in `comparison`.
        comparison: what is scored; its `truth_rows` and `result_rows` point into `truth` and `results`.
    """

    name: str
    truth: MotRows
    results: MotRows
    first_frame: int
    comparison: Comparison


def matches(c: Comparison, score: NDArray[np.float64], go_on: bool = False) -> IntArray:
    """Match the boxes of each frame one to one, so that the sum of their scores is greatest.

    Args:
        c: the sequence.
        score: (P,) of each pair; 0 where it must not be matched.
        go_on: identities matched in the last frame where both sides have a box come first.

    Returns:
        (K,) rising places among the pairs.
    """
    pairs = (score > 0).nonzero()[0]
    truth, result, score = c.pair_truth[pairs], c.pair_result[pairs], score[pairs]
    chosen = _alone(truth, result) if go_on else _certain(truth, result, score)
    contested = (~_touched(truth, result, chosen)).nonzero()[0]
    frames = c.truth_frames[truth]
    begin = frames.searchsorted(np.arange(c.frames + 2))
    truth_begin, result_begin, _ = c.begins()
    latest = np.maximum.accumulate(np.where(c.compared_frames(), np.arange(c.frames + 1), 0))
    # Pairs of identities that were matched in the frame before, marked while its successor is looked at.
    who = c.identity_pairs[1][pairs]
    marked = np.zeros(len(c.identity_pairs[0]), bool)

    for frame in np.unique(frames[contested]).tolist():
        now = slice(begin[frame], begin[frame + 1])
        if go_on:
            before = slice(begin[latest[frame - 1]], begin[latest[frame - 1] + 1])
            known = who[before][chosen[before]]
            marked[known] = True
            score[now] += _CONTINUES * marked[who[now]]
            marked[known] = False
        row, column = truth[now] - truth_begin[frame], result[now] - result_begin[frame]
        table = np.zeros((truth_begin[frame + 1] - truth_begin[frame], result_begin[frame + 1] - result_begin[frame]))
        table[row, column] = score[now]
        column_of = np.full(len(table), -1)
        best_row, best_column = linear_sum_assignment(table, maximize=True)
        column_of[best_row] = best_column
        chosen[now] = column_of[row] == column
    return pairs[chosen]


def _alone(truth: IntArray, result: IntArray) -> NDArray[np.bool_]:
    """Whether each pair (P,) is the only one of both its boxes, and so in every optimum."""
    return np.asarray((np.bincount(truth)[truth] == 1) & (np.bincount(result)[result] == 1))


def _certain(truth: IntArray, result: IntArray, score: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each pair (P,) is certainly in the only optimum.

    It is where its score is above the best other score of its one box plus that of its other box: to match it and leave
    both others is better than the reverse. Then the other pairs of these boxes are out, which makes more pairs certain.
    """
    certain = np.zeros(len(score), bool)
    open_pairs = np.arange(len(score))
    while len(open_pairs):
        row, column, value = truth[open_pairs], result[open_pairs], score[open_pairs]
        best = (value == _greatest(row, value)[row]) & (value == _greatest(column, value)[column])
        others = np.where(best, 0, value)
        wins = best & (value > _greatest(row, others)[row] + _greatest(column, others)[column] + _TIE)
        wins[best] &= (np.bincount(row[best])[row[best]] == 1) & (np.bincount(column[best])[column[best]] == 1)
        if not wins.any():
            break
        certain[open_pairs[wins]] = True
        open_pairs = open_pairs[~_touched(row, column, wins)]
    return certain


def _touched(row: IntArray, column: IntArray, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each pair (P,) has a row or a column of one of the chosen."""
    rows, columns = np.zeros(row.max(initial=0) + 1, bool), np.zeros(column.max(initial=0) + 1, bool)
    rows[row[chosen]] = True
    columns[column[chosen]] = True
    return np.asarray(rows[row] | columns[column])


def _greatest(group: IntArray, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Greatest value of each group, at the place of its number."""
    greatest = np.zeros(group.max() + 1)
    np.maximum.at(greatest, group, value)
    return greatest
