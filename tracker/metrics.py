"""HOTA, CLEAR and Identity: how good a tracking result is, in one sequence and in many.

The figures have the names that TrackEval gives them, and its values: the benchmarks' official evaluation.

Sources: Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-object Tracking", IJCV 2021; Bernardin and
Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics", EURASIP JIVP 2008; Ristani et
al., "Performance Measures and a Data Set for Multi-target, Multi-camera Tracking", ECCV Workshops 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from tracker.comparison import ROUNDING, Comparison, matches
from tracker.types import IntArray

Figures = dict[str, Any]
"""Figures by name: a number each, or an array (19,), one value for each of `HOTA_THRESHOLDS`."""

# Rounded as 0.05 + i · 0.05 in double precision; an overlap that is exactly a threshold reaches it.
HOTA_THRESHOLDS: NDArray[np.float64] = np.arange(0.05, 0.99, 0.05)
"""Overlaps (19,) from which a pair counts as found in HOTA: 0.05, 0.10 ... 0.95."""

MATCH_THRESH = 0.5
"""Overlap from which a pair counts as found in CLEAR, Identity and the pre-processing."""

_CLEAR_SUMS = ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW", "MT", "PT", "ML", "Frag", "CLR_Frames", "MOTP_sum")
_SUMS = (*_CLEAR_SUMS, "IDTP", "IDFN", "IDFP", "HOTA_TP", "HOTA_FN", "HOTA_FP")


def sequence_figures(comparison: Comparison) -> Figures:
    """All figures of one pre-processed sequence: those of `hota`, `clear` and `identity`."""
    return hota(comparison) | clear(comparison) | identity(comparison)


def hota(comparison: Comparison) -> Figures:
    """HOTA and its parts, as arrays (19,) over `HOTA_THRESHOLDS`.

    Boxes are matched once for all thresholds, by overlap times how well their two identities go together in the whole
    sequence.

    Returns:
        `HOTA`, `DetA`, `AssA`, `DetRe`, `DetPr`, `AssRe`, `AssPr`, `LocA`, `OWTA` in [0, 1], `HOTA_TP`, `HOTA_FN`,
        `HOTA_FP`; and `HOTA(0)`, `LocA(0)`, `HOTALocA(0)`, numbers at the lowest threshold.
    """
    c = comparison
    who = _identity_pairs(c)
    together = who.sum(_share_of_overlap(c))  # how long two identities overlap, and with how little competition
    score = (together / (who.truth_count + who.result_count - together))[who.of_pair] * c.similarity
    matched = matches(c, score)
    similarity = c.similarity[matched]

    # The thresholds that a pair reaches are the first ones: it counts for all columns up to its own.
    level = np.searchsorted(HOTA_THRESHOLDS - ROUNDING, similarity, "right")
    size = len(HOTA_THRESHOLDS) + 1

    def reaching(group: IntArray, groups: int, weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        counts = np.bincount(group * size + level, weights, minlength=groups * size).reshape(groups, size)
        return np.asarray(counts[:, ::-1].cumsum(1)[:, -2::-1], np.float64)

    count = reaching(who.of_pair[matched], len(who.truth_count))  # (identity pairs, 19)
    found = count.sum(0)
    truth_count, result_count = who.truth_count[:, None], who.result_count[:, None]
    overlap = reaching(np.zeros_like(matched), 1, similarity)[0]
    weight = np.maximum(1, found)
    figures: Figures = {
        "HOTA_TP": found,
        "HOTA_FN": len(c.truth_ids) - found,
        "HOTA_FP": len(c.result_ids) - found,
        "AssA": (count * (count / np.maximum(1, truth_count + result_count - count))).sum(0) / weight,
        "AssRe": (count * (count / np.maximum(1, truth_count))).sum(0) / weight,
        "AssPr": (count * (count / np.maximum(1, result_count))).sum(0) / weight,
        "LocA": _mean_overlap(overlap, found),
    }
    return figures | _hota_ratios(figures)


def clear(comparison: Comparison) -> Figures:
    """The CLEAR figures at an overlap of 0.5; a match of the frame before goes on where it still overlaps enough.

    A frame in which there is no box of one of the sides is passed over: what was matched before it may go on after it.

    Returns:
        `MOTA`, `MODA`, `sMOTA`, `MOTAL` up to 1; `MOTP`, `CLR_Re`, `CLR_Pr`, `CLR_F1`, `MTR`, `PTR`, `MLR` in [0, 1];
        `FP_per_frame`; counts `CLR_TP`, `CLR_FN`, `CLR_FP`, `IDSW`, `Frag`, of identities `MT`, `PT`, `ML`, and
        `CLR_Frames`; `MOTP_sum`. As in the official evaluation, the ratios and `CLR_Frames` of a sequence without any
        box of one of the sides are 0, but `MLR` is 1.
    """
    c = comparison
    boxes = np.bincount(c.truth_ids)  # of each person; none, where all have been left out
    people = int((boxes > 0).sum())
    figures: Figures = dict.fromkeys(_CLEAR_SUMS, 0)
    figures |= {"CLR_FN": len(c.truth_ids), "CLR_FP": len(c.result_ids), "ML": people}
    if len(c.truth_ids) == 0 or len(c.result_ids) == 0:
        return figures | dict.fromkeys(_clear_ratios(figures), 0.0) | {"MLR": 1.0}

    found = clear_matches(c)
    matched = found.pairs
    person = c.truth_ids[c.pair_truth[matched]]
    ratio = np.bincount(person, minlength=len(boxes))[boxes > 0] / boxes[boxes > 0]
    most, some = int((ratio > 0.8).sum()), int((ratio >= 0.2).sum())
    figures |= {
        "CLR_TP": len(matched),
        "CLR_FN": len(c.truth_ids) - len(matched),
        "CLR_FP": len(c.result_ids) - len(matched),
        "IDSW": int(found.switched.sum()),
        "MT": most,
        "PT": some - most,
        "ML": people - some,
        "Frag": int(found.resumed.sum()),
        "CLR_Frames": c.frames,
        "MOTP_sum": float(c.similarity[matched].sum()),
    }
    return figures | _clear_ratios(figures)


@dataclass(frozen=True)
class ClearMatches:
    """The K pairs of boxes that `clear` counts as found: those of each person one behind the other, by rising frame.

    Attributes:
        pairs: (K,) places among the pairs of boxes.
        switched: (K,) whether another track found this person the last time.
        resumed: (K,) whether the person was missed, or not there, since then.
    """

    pairs: IntArray
    switched: NDArray[np.bool_]
    resumed: NDArray[np.bool_]


def clear_matches(comparison: Comparison) -> ClearMatches:
    """Who finds whom, see `clear`."""
    c = comparison
    pairs = matches(c, np.where(c.similarity >= MATCH_THRESH - ROUNDING, c.similarity, 0), go_on=True)
    pairs = pairs[c.truth_ids[c.pair_truth[pairs]].argsort(kind="stable")]
    person, track = c.truth_ids[c.pair_truth[pairs]], c.result_ids[c.pair_result[pairs]]
    step = c.compared_frames().cumsum()[c.truth_frames[c.pair_truth[pairs]]]
    again = np.diff(person, prepend=-1) == 0
    return ClearMatches(
        pairs=pairs,
        switched=again & (np.diff(track, prepend=-1) != 0),
        resumed=again & (np.diff(step, prepend=0) > 1),
    )


def identity(comparison: Comparison) -> Figures:
    """The Identity figures: each person is compared with the one track that covers it best, one to one.

    Returns:
        `IDF1`, `IDP`, `IDR` in [0, 1]; counts of boxes `IDTP`, `IDFN`, `IDFP`.
    """
    who = _identity_pairs(comparison)
    covered = who.sum(comparison.similarity >= MATCH_THRESH).astype(np.int64)
    # Of the table of all identities only those rows and columns are left that are covered at all.
    pairs = covered.nonzero()[0]
    (truths, row), (results, column) = (np.unique(ids[pairs], return_inverse=True) for ids in (who.truth, who.result))
    table = np.zeros((len(truths), len(results)))
    table[row, column] = covered[pairs]
    common = int(table[linear_sum_assignment(table, maximize=True)].sum())
    figures: Figures = {
        "IDTP": common,
        "IDFN": len(comparison.truth_ids) - common,
        "IDFP": len(comparison.result_ids) - common,
    }
    return figures | _identity_ratios(figures)


def combine(sequences: Sequence[Figures]) -> Figures:
    """The figures of several sequences (or cameras) as of one: counts are added, and ratios follow from the sums.

    Args:
        sequences: at least one; what `sequence_figures` or `combine` returned.
    """
    figures: Figures = {name: sum(one[name] for one in sequences) for name in _SUMS}
    found = figures["HOTA_TP"]
    for name in ("AssA", "AssRe", "AssPr"):
        figures[name] = sum(one[name] * one["HOTA_TP"] for one in sequences) / np.maximum(1, found)
    figures["LocA"] = _mean_overlap(sum(one["LocA"] * one["HOTA_TP"] for one in sequences), found)
    return figures | _hota_ratios(figures) | _clear_ratios(figures) | _identity_ratios(figures)


def class_average(classes: Sequence[Figures]) -> Figures:
    """The mean over classes of each figure, so that a rare one counts as much as a frequent one; counts are added.

    A class that neither side has is left out. `combine` gives the other reading, in which each box counts as much.

    Args:
        classes: at least one; what `sequence_figures` or `combine` returned for each class.
    """
    counts = set(_SUMS) - {"MOTP_sum"}
    present = [one for one in classes if one["CLR_TP"] + one["CLR_FN"] + one["CLR_FP"] > 0] or classes
    totals = {name: sum(one[name] for one in present) for name in present[0]}
    return {name: total if name in counts else total / len(present) for name, total in totals.items()}


def summary(figures: Figures) -> dict[str, float]:
    """One number for each figure: arrays over the thresholds become their means, as the benchmarks report them."""
    return {name: float(value.mean()) if isinstance(value, np.ndarray) else value for name, value in figures.items()}


def _hota_ratios(figures: Figures) -> Figures:
    found, missed, wrong = figures["HOTA_TP"], figures["HOTA_FN"], figures["HOTA_FP"]
    recall = found / np.maximum(1, found + missed)
    accuracy = found / np.maximum(1, found + missed + wrong)
    value = np.sqrt(accuracy * figures["AssA"])
    return {
        "DetA": accuracy,
        "DetRe": recall,
        "DetPr": found / np.maximum(1, found + wrong),
        "HOTA": value,
        "OWTA": np.sqrt(recall * figures["AssA"]),
        "HOTA(0)": float(value[0]),
        "LocA(0)": float(figures["LocA"][0]),
        "HOTALocA(0)": float(value[0] * figures["LocA"][0]),
    }


def _clear_ratios(figures: Figures) -> Figures:
    found, missed, wrong, switches = (figures[name] for name in ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW"))
    boxes = max(1, found + missed)
    people = max(1, figures["MT"] + figures["PT"] + figures["ML"])
    return {
        "MOTA": (found - wrong - switches) / boxes,
        "MODA": (found - wrong) / boxes,
        "sMOTA": (figures["MOTP_sum"] - wrong - switches) / boxes,
        "MOTAL": (found - wrong - float(np.log10(max(1, switches)))) / boxes,
        "MOTP": figures["MOTP_sum"] / max(1, found),
        "CLR_Re": found / boxes,
        "CLR_Pr": found / max(1, found + wrong),
        "CLR_F1": found / max(1, found + missed / 2 + wrong / 2),
        "FP_per_frame": wrong / max(1, figures["CLR_Frames"]),
        "MTR": figures["MT"] / people,
        "PTR": figures["PT"] / people,
        "MLR": figures["ML"] / people,
    }


def _identity_ratios(figures: Figures) -> Figures:
    found, missed, wrong = figures["IDTP"], figures["IDFN"], figures["IDFP"]
    return {
        "IDF1": found / max(1, found + missed / 2 + wrong / 2),
        "IDP": found / max(1, found + wrong),
        "IDR": found / max(1, found + missed),
    }


def _mean_overlap(total: Any, found: Any) -> Any:
    """Mean overlap of the pairs found; 1 where none was."""
    return np.maximum(1e-10, total) / np.maximum(1e-10, found)


@dataclass(frozen=True)
class _IdentityPairs:
    """The U pairs of identities that overlap in some frame.

    `truth` and `result` (U,) number the identities; `truth_count` and `result_count` (U,) say of how many boxes each
    consists; `of_pair` (P,) is the pair of identities of each pair of boxes.
    """

    truth: IntArray
    result: IntArray
    truth_count: IntArray
    result_count: IntArray
    of_pair: IntArray

    def sum(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """Sums (U,) of weights (P,) of pairs of boxes, in the order of the frames."""
        return np.bincount(self.of_pair, weights, minlength=len(self.truth)).astype(np.float64)


def _identity_pairs(c: Comparison) -> _IdentityPairs:
    different, of_pair = c.identity_pairs
    truth, result = np.divmod(different, c.result_ids.max(initial=0) + 1)
    truth_count, result_count = np.bincount(c.truth_ids)[truth], np.bincount(c.result_ids)[result]
    return _IdentityPairs(truth, result, truth_count, result_count, of_pair)


def _share_of_overlap(c: Comparison) -> NDArray[np.float64]:
    """Overlap (P,) of each pair relative to all overlaps that either of its boxes has."""
    of_result = np.bincount(c.pair_result, c.similarity, minlength=len(c.result_ids))
    of_truth = np.zeros(len(c.truth_ids))
    truth_begin, result_begin, pair_begin = c.begins()
    for frame in np.unique(c.truth_frames[c.pair_truth]).tolist():
        pairs = slice(pair_begin[frame], pair_begin[frame + 1])
        first, last, left = truth_begin[frame], truth_begin[frame + 1], result_begin[frame]
        # The sum of a row of the full matrix: equal to the last bit is what decides a tie as the official code does.
        table = np.zeros((last - first, result_begin[frame + 1] - left))
        table[c.pair_truth[pairs] - first, c.pair_result[pairs] - left] = c.similarity[pairs]
        of_truth[first:last] = table.sum(1)
    either = of_result[c.pair_result] + of_truth[c.pair_truth] - c.similarity
    return np.where(either > ROUNDING, c.similarity / np.maximum(either, ROUNDING), 0)
