"""The figures of a detector as functions of arrays: average precision of boxes, verification rate of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.losses import IGNORE_LABEL, NO_IDENTITY

Arrays = Mapping[str, NDArray[Any]]

IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALL_LEVELS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SIMILARITY_STEPS = 2**20
"""Cosine similarities are told apart in steps of 1 / this, about what float32 holds of a sum of products."""
_BLOCK_ELEMENTS = 2_000_000


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """How well boxes were found.

    Without a person to find, every figure is nan: there is nothing to recall. With people but no detection the
    averages and the best F1 are zero, and the score and the precision of the best F1 are nan.

    Attributes:
        ap50: average precision at IoU 0.5, in [0, 1].
        ap: the same averaged over all IoU thresholds.
        precision: (K,) precision at IoU 0.5 when the first k detections are kept, not smoothed.
        recall: (K,) recall at IoU 0.5 of the same.
        scores: (K,) falling scores of these detections; those that do not count are left out.
        best_f1: highest F1 at IoU 0.5 over all score thresholds.
        best_score: the threshold that reaches it: keep the scores that are not lower.
        best_precision: precision there.
        best_recall: recall there.
        people: how many there were to find; regions to be ignored and people outside the height range do not count.
        images: how many images.
    """

    ap50: float
    ap: float
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    best_f1: float
    best_score: float
    best_precision: float
    best_recall: float
    people: int
    images: int


def detection_scores(
    predictions: Sequence[Arrays],
    targets: Sequence[Arrays],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    height_range: tuple[float, float] | None = None,
) -> DetectionScores:
    """Average precision of one class by COCO's rules (Lin et al., "Microsoft COCO", ECCV 2014).

    In each image the 100 best detections choose a person each, by falling score: the free one of highest IoU, if
    that reaches the threshold. Precision, made monotone, is averaged over 101 levels of recall. A region to be
    ignored takes any number of detections that found nobody and cover it (IoU is the intersection over the
    detection's own area); these count neither as right nor as wrong.

    Args:
        predictions: an image each, `boxes` (N, 4) xyxy and `scores` (N,), in any order.
        targets: an image each, `boxes` (G, 4) xyxy and `labels` (G,): -1 is a region to be ignored, others people.
        iou_thresholds: for `ap`, in (0, 1].
        height_range: (low, high) in pixels; people whose height is not in [low, high) are ignored, and so are
            detections outside it that match nobody.

    Raises:
        ValueError: lists of different lengths, a wrong shape, a non-finite number, an impossible threshold or range.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"predictions: expected one for each of {len(targets)} targets, got {len(predictions)}")
    thresholds = np.array([0.5, *iou_thresholds], np.float64)
    if len(thresholds) < 2 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"iou_thresholds: expected numbers in (0, 1], got {tuple(iou_thresholds)}")
    low, high = height_range or (-np.inf, np.inf)
    if not low < high:
        raise ValueError(f"height_range: expected low < high, got {height_range}")

    people, scores = 0, [np.zeros(0)]
    found, ignored = [np.zeros((len(thresholds), 0), bool)], [np.zeros((len(thresholds), 0), bool)]
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        boxes, score = _checked(f"predictions[{i}]", prediction, "scores")
        truth, labels = _checked(f"targets[{i}]", target, "labels")
        best = np.argsort(-score, kind="stable")[:MAX_DETECTIONS]
        boxes, score = boxes[best], score[best]
        region = labels == IGNORE_LABEL
        skip = region | _outside(truth, low, high)
        match = _match(_overlaps(boxes, truth, region), thresholds, skip, region)  # (T, N)
        matched = match >= 0
        taken_by_skipped = matched & np.append(skip, False)[match]
        scores.append(score)
        found.append(matched & ~taken_by_skipped)
        ignored.append(taken_by_skipped | (~matched & _outside(boxes, low, high)))
        people += int((~skip).sum())

    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    score = score[order]
    hits, counted = np.concatenate(found, axis=1)[:, order], ~np.concatenate(ignored, axis=1)[:, order]
    curves = [_curve(hit[count], people) for hit, count in zip(hits, counted, strict=True)]
    averages = [_average_precision(precision, recall) if people else np.nan for precision, recall in curves]
    precision, recall = curves[0]
    score = score[counted[0]]
    return DetectionScores(
        averages[0],
        float(np.mean(averages[1:])),
        precision,
        recall,
        score,
        *_best_f1(precision, recall, score, people),
        people,
        len(targets),
    )


def _checked(name: str, arrays: Arrays, values: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (N, 4) and the named values (N,) as finite float64."""
    boxes, numbers = np.asarray(arrays["boxes"], np.float64), np.asarray(arrays[values], np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"{name} boxes: expected finite numbers of shape (N, 4), got {_faults(boxes)}")
    if numbers.shape != (len(boxes),) or not np.isfinite(numbers).all():
        raise ValueError(f"{name} {values}: expected finite numbers of shape ({len(boxes)},), got {_faults(numbers)}")
    return boxes, numbers


def _faults(values: NDArray[np.float64]) -> str:
    return f"{values.shape} with {int((~np.isfinite(values)).sum())} non-finite values"


def _outside(boxes: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    height = boxes[:, 3] - boxes[:, 1]
    return np.asarray((height < low) | (height >= high))


def _overlaps(boxes: NDArray[np.float64], truth: NDArray[np.float64], region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU (N, G); in the columns of regions the intersection over the box's own area."""
    side = np.minimum(boxes[:, None, 2:], truth[None, :, 2:]) - np.maximum(boxes[:, None, :2], truth[None, :, :2])
    common = side.clip(0).prod(-1)
    area, truth_area = (b[:, 2:] - b[:, :2] for b in (boxes, truth))
    own = area.prod(-1)[:, None]
    union = np.where(region, own, own + truth_area.prod(-1) - common)
    iou: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=common > 0)
    return iou


def _match(
    overlaps: NDArray[np.float64], thresholds: NDArray[np.float64], skip: NDArray[np.bool_], region: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Which truth each detection takes, (T, N), -1 for none; detections in the order given, thresholds side by side.

    People that count go before what is skipped, however much they overlap; of equal overlaps the last one wins, as
    in COCO's code.
    """
    detections, people = overlaps.shape
    match = np.full((len(thresholds), detections), -1)
    if not overlaps.size:
        return match
    floor = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.ones((len(thresholds), people), bool)
    every = np.arange(len(thresholds))
    for row in np.flatnonzero(overlaps.max(1) >= floor.min()):
        able = (overlaps[row] >= floor) & (free | region)
        counting = able & ~skip
        able = np.where(counting.any(1, keepdims=True), counting, able)
        chosen = people - 1 - np.where(able, overlaps[row], -1)[:, ::-1].argmax(1)
        taken = able[every, chosen]
        match[taken, row] = chosen[taken]
        free[every[taken], chosen[taken]] = False
    return match


def _curve(hits: NDArray[np.bool_], people: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall (K,) of the first k detections."""
    right = np.cumsum(hits).astype(np.float64)
    return right / np.arange(1, len(hits) + 1), right / people if people else np.full(len(hits), np.nan)


def _average_precision(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """The mean, over the levels of recall, of the best precision at that recall or a higher one."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(recall, RECALL_LEVELS)].mean())


def _best_f1(
    precision: NDArray[np.float64], recall: NDArray[np.float64], scores: NDArray[np.float64], people: int
) -> tuple[float, float, float, float]:
    """Highest F1, its score, precision and recall; equal scores cannot be told apart by a threshold."""
    if not people:
        return np.nan, np.nan, np.nan, np.nan
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    if not len(last) or not recall[-1]:
        return 0.0, np.nan, np.nan, 0.0
    f1 = 2 * recall[last] * people / (last + 1 + people)
    best = last[f1.argmax()]
    return float(f1.max()), float(scores[best]), float(precision[best]), float(recall[best])


def tpr_at_far(
    embeddings: NDArray[Any], pids: NDArray[np.integer[Any]], fars: Sequence[float] = FARS
) -> dict[float, float]:
    """Verification: the share of pairs of one person accepted where so many pairs of different people are.

    The evaluation of embeddings of Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020. All pairs
    i < j are ranked by cosine similarity. Each similarity taken as threshold gives a point (false accept rate, true
    accept rate); the points, from (0, 0) on, are joined by straight lines. Where a line is vertical its upper end
    counts: the most people accepted at that rate. A rate below 1 / (number of negative pairs) cannot be measured:
    the answer is then the share accepted without any false accept, unless the most similar negative pair ties with
    positive ones.

    Similarities closer than about 1e-6 count as equal (`SIMILARITY_STEPS`); so the working memory, some hundred
    megabytes, does not grow with the number of pairs.

    Args:
        embeddings: (N, D), of any length.
        pids: (N,) identities; -1 is unknown and left out.
        fars: false accept rates in [0, 1].

    Returns:
        The true accept rate in [0, 1] of each rate asked for; nan where no pair is positive, or none negative.

    Raises:
        ValueError: a wrong shape, a non-finite embedding, or a rate outside [0, 1].
    """
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        raise ValueError(f"embeddings: expected finite numbers of shape (N, D), got {_faults(np.asarray(embeddings))}")
    if pids.shape != (len(embeddings),):
        raise ValueError(f"pids: expected shape ({len(embeddings)},), got {pids.shape}")
    if not all(0 <= far <= 1 for far in fars):
        raise ValueError(f"fars: expected numbers in [0, 1], got {tuple(fars)}")
    known = pids != NO_IDENTITY
    negatives, positives = _pair_histograms(np.asarray(embeddings[known], np.float32), pids[known])
    # From the most similar down; the number accepted at each threshold.
    accepted = np.stack([counts[::-1].cumsum() for counts in (negatives, positives)])
    steps = (negatives + positives)[::-1] > 0
    accepted = np.concatenate((np.zeros((2, 1)), accepted[:, steps]), axis=1)
    if not accepted[:, -1].all():
        return dict.fromkeys(fars, float("nan"))
    false_rate, true_rate = accepted / accepted[:, -1:]
    # np.interp leaves open which end of a vertical line it takes.
    right = np.searchsorted(false_rate, fars, side="right")
    left, right = right - 1, right.clip(max=len(false_rate) - 1)
    gap = false_rate[right] - false_rate[left]
    share = np.divide(np.asarray(fars) - false_rate[left], gap, out=np.zeros(len(fars)), where=gap > 0)
    rates = true_rate[left] + share * (true_rate[right] - true_rate[left])
    return dict(zip(fars, rates.tolist(), strict=True))


def _pair_histograms(
    embeddings: NDArray[np.float32], pids: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many pairs i < j of different, and of the same identity, have each cosine similarity, -1 to 1 in steps."""
    norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(norm, np.finfo(np.float32).tiny)
    number = len(unit)
    counts = np.zeros(2 * (2 * SIMILARITY_STEPS + 1), np.int64)
    rows = max(1, _BLOCK_ELEMENTS // max(1, number))
    for start in range(0, number, rows):
        block, others = slice(start, start + rows), slice(start, None)
        similarity = np.rint((unit[block] @ unit[others].T).clip(-1, 1) * SIMILARITY_STEPS)
        same = pids[block, None] == pids[None, others]
        cells = 2 * (similarity.astype(np.int32) + SIMILARITY_STEPS) + same
        counts += np.bincount(cells[np.triu(np.ones(cells.shape, bool), 1)], minlength=len(counts))
    return counts[::2], counts[1::2]
