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
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric: expected 'cosine' or 'euclidean', got {metric!r}")
    cosine = np.maximum(1 - a @ b.T, 0)  # rounding may leave -1e-7 for equal rows
    return np.asarray(cosine if metric == "cosine" else np.sqrt(2 * cosine))


def fuse_motion(
    cost: NDArray[Any], gating: NDArray[Any], limit: float = GATING_THRESH, weight: float = 0.98
) -> NDArray[Any]:
    """Blend an embedding distance with motion, and forbid what the motion makes implausible.

    Args:
        cost: (N, M) embedding distance.
        gating: (N, M) squared Mahalanobis distance.
        limit: pairs with a larger Mahalanobis distance get infinite cost.
        weight: share of the embedding distance; the rest is the Mahalanobis distance's.

    Returns:
        (N, M) `weight · cost + (1 - weight) · gating`. Source: Wang et al., ECCV 2020.
    """
    return np.where(gating > limit, np.inf, weight * cost + (1 - weight) * gating)


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
    if not np.isfinite(limit):
        raise ValueError(f"limit: expected a finite number, got {limit}")
    allowed: NDArray[np.bool_] = np.less_equal(cost, limit)
    rows, columns = allowed.nonzero()
    row_free, column_free = np.ones(cost.shape[0], bool), np.ones(cost.shape[1], bool)
    row_free[rows] = False
    column_free[columns] = False
    if not len(rows) == np.count_nonzero(~row_free) == np.count_nonzero(~column_free):  # some compete
        # Rows and columns without an allowed pair stay unmatched in every optimum: the solver need not see them.
        rows, columns = np.nonzero(~row_free)[0], np.nonzero(~column_free)[0]
        block = (rows[:, None], columns)
        # A little above the limit, so that a pair exactly at the limit is better matched than not.
        _, column_of_row, _ = lap.lapjv(
            np.where(allowed[block], cost[block], np.inf), extend_cost=True, cost_limit=limit + 1e-6
        )
        matched = column_of_row >= 0
        row_free[rows], column_free[columns] = True, True
        rows, columns = rows[matched], columns[column_of_row[matched]]
        row_free[rows], column_free[columns] = False, False
    return np.array([rows, columns]).T, row_free.nonzero()[0], column_free.nonzero()[0]
