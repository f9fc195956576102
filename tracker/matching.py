"""Costs between tracks and detections, and their assignment."""

from __future__ import annotations

from typing import Any, Literal

import lap
import numpy as np
from numpy.typing import NDArray

from tracker.types import IntArray

EmbeddingMetric = Literal["cosine", "euclidean"]

GATING_THRESH = 9.4877
"""0.95 quantile of the chi-square distribution with 4 degrees of freedom, the size of a measured box."""


def embedding_distance(a: NDArray[Any], b: NDArray[Any], metric: EmbeddingMetric = "cosine") -> NDArray[Any]:
    """Distance between every pair of embeddings.

    Args:
        a: (N, D) unit rows.
        b: (M, D) unit rows.
        metric: "cosine" is `1 - a·b`; "euclidean" is `|a - b| = √(2 - 2 a·b)`, so that a Euclidean limit t is a cosine
            limit t²/2 (0.7 corresponds to 0.245).

    Returns:
        (N, M) in [0, 2].

    Raises:
        ValueError: an unknown metric.
    """
    return _as_metric(1 - a @ b.T, metric)


def embedding_distance_of_pairs(
    a: NDArray[Any], b: NDArray[Any], row: IntArray, column: IntArray, metric: EmbeddingMetric = "cosine"
) -> NDArray[Any]:
    """Distance (P,) between rows `row` of `a` and `column` of `b`, as in `embedding_distance`."""
    if len(row) > len(a) * len(b) // 8:  # one product of matrices is faster, and needs less memory
        return np.asarray(embedding_distance(a, b, metric)[row, column])
    return _as_metric(1 - np.einsum("pd,pd->p", a[row], b[column]), metric)


def _as_metric(cosine: NDArray[Any], metric: EmbeddingMetric) -> NDArray[Any]:
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric: expected 'cosine' or 'euclidean', got {metric!r}")
    cosine = np.maximum(cosine, 0)  # rounding may leave -1e-7 for equal rows
    return np.asarray(cosine if metric == "cosine" else np.sqrt(2 * cosine))


def fuse_motion(cost: NDArray[Any], gating: NDArray[Any], weight: float = 0.98) -> NDArray[Any]:
    """Blend an embedding distance with motion: `weight · cost + (1 - weight) · gating`, of any one shape.

    Args:
        cost: embedding distance.
        gating: squared Mahalanobis distance; what the motion makes implausible is infinite, or left out before.
        weight: share of the embedding distance. Source: Wang et al., ECCV 2020.
    """
    return np.asarray(weight * cost + (1 - weight) * gating)


def stand_out(cost: NDArray[Any], margin: float) -> NDArray[Any]:
    """Lower the embedding distances of pairs that stand out from their row and column.

    Where a track resembles one detection alone, its embedding tells people apart and deserves more weight than where it
    resembles several alike.

    Args:
        cost: (N, M) cosine distance.
        margin: largest lead over the second best that counts.

    Returns:
        (N, M): similarity `1 - cost` times one plus the mean lead of its row and column. Source: Maggiolino et al.,
        "Deep OC-SORT", ICIP 2023 (adaptive weighting).
    """
    similarity = 1 - cost

    def lead(axis: int) -> NDArray[Any]:
        if similarity.shape[axis] < 2:
            return np.zeros_like(similarity.max(axis=axis, keepdims=True, initial=0))
        best = np.partition(similarity, -2, axis=axis).take([-2, -1], axis=axis)
        return np.clip(np.diff(best, axis=axis), 0, margin)

    return np.asarray(np.maximum(1 - similarity * (1 + (lead(0) + lead(1)) / 2), 0))


def direction_similarity(path: NDArray[Any], centre: NDArray[Any]) -> NDArray[Any]:
    """How well a step to a detection would go on in the direction in which a track has come, pair by pair.

    Args:
        path: (P, K, 2) places where the track of each pair was seen, the latest last.
        centre: (P, 2) centre of the detection of each pair.

    Returns:
        (P,) in [-0.5, 0.5]: 0.5 straight on, 0 at right angles, -0.5 back; 0 for a track that has not moved.
        Source: Cao et al., "Observation-Centric SORT", CVPR 2023 (observation-centric momentum).
    """
    origin = path[:, 0]
    way, step = path[:, -1] - origin, centre - origin
    length = np.hypot(way[:, 0], way[:, 1]) * np.hypot(step[:, 0], step[:, 1])
    cosine = np.einsum("pi,pi->p", way, step) / np.maximum(length, np.finfo(np.float32).tiny)
    return np.asarray(0.5 - np.arccos(np.clip(cosine, -1, 1)) / np.pi)


def assign(cost: NDArray[Any], limit: float) -> tuple[IntArray, IntArray, IntArray]:
    """One-to-one assignment of least total cost, where leaving a pair unmatched costs `limit`.

    Args:
        cost: (N, M); infinite entries are never matched.
        limit: finite; pairs with a larger cost are never matched, a pair of exactly this cost may be.

    Returns:
        matches (K, 2) of (row, column) sorted by row, unmatched rows (N - K,), unmatched columns (M - K,).

    Raises:
        ValueError: NaN in `cost`, or a limit that is not finite.
    """
    invalid = np.isnan(cost)
    if invalid.any():
        row, column = np.argwhere(invalid)[0]
        raise ValueError(f"cost: expected numbers, got NaN at row {row}, column {column}")
    # Flat positions and one division are ten times faster than two-dimensional `nonzero`.
    rows, columns = np.divmod(np.flatnonzero(np.less_equal(cost, limit)), max(cost.shape[1], 1))
    rows, columns = assign_pairs(rows, columns, cost[rows, columns], limit)
    row_free, column_free = np.ones(cost.shape[0], bool), np.ones(cost.shape[1], bool)
    row_free[rows] = False
    column_free[columns] = False
    return np.array([rows, columns]).T, row_free.nonzero()[0], column_free.nonzero()[0]


def assign_pairs(rows: IntArray, columns: IntArray, cost: NDArray[Any], limit: float) -> tuple[IntArray, IntArray]:
    """`assign` where only some pairs may be matched at all.

    Args:
        rows: (P,) row of each pair.
        columns: (P,) column of each pair; no pair comes twice.
        cost: (P,) finite costs.
        limit: as for `assign`.

    Returns:
        Rows (K,), rising, and columns (K,) of the matches.

    Raises:
        ValueError: NaN in `cost`, or a limit that is not finite.
    """
    if not np.isfinite(limit):
        raise ValueError(f"limit: expected a finite number, got {limit}")
    if np.isnan(cost).any():
        pair = int(np.isnan(cost).argmax())
        raise ValueError(f"cost: expected numbers, got NaN at row {rows[pair]}, column {columns[pair]}")
    allowed = (cost <= limit).nonzero()[0]
    rows, columns, cost = rows[allowed], columns[allowed], cost[allowed]
    if len(rows) == 0:
        return rows, columns
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    if not alone.all():
        # A pair alone in its row and its column is in every optimum: the solver sees only those who compete.
        compete = (~alone).nonzero()[0]
        rivals, wanted = rows[compete], columns[compete]
        block_rows, block_columns = _present(rivals), _present(wanted)
        block = np.full((len(block_rows), len(block_columns)), np.inf)
        block[np.searchsorted(block_rows, rivals), np.searchsorted(block_columns, wanted)] = cost[compete]
        # A little above the limit, so that a pair exactly at the limit is better matched than not.
        _, column_of_row, _ = lap.lapjv(block, extend_cost=True, cost_limit=limit + 1e-6)
        matched = (column_of_row >= 0).nonzero()[0]
        rows = np.concatenate([rows[alone], block_rows[matched]])
        columns = np.concatenate([columns[alone], block_columns[column_of_row[matched]]])
    order = rows.argsort()
    return rows[order], columns[order]


def _present(numbers: IntArray) -> IntArray:
    """The different ones among whole numbers from 0 on, rising."""
    return np.bincount(numbers).nonzero()[0]
