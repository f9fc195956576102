"""How well distances rank a gallery: CMC and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.datasets import JUNK_PID

# Distances sorted at once: bounds the working memory to some tens of megabytes.
_BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True)
class RankingResult:
    """Scores of one query set against one gallery.

    Attributes:
        mean_ap: mean average precision in [0, 1], rectangle rule: precision averaged over the matches.
        mean_ap_trapezoid: the same by the trapezoid rule of Market-1501's own evaluation code.
        cmc: (G,) cumulative matching characteristic; `cmc[k - 1]` is the share of queries with a match among
            the first k, so `cmc[0]` is rank-1.
        valid_queries: number of queries with a match to find; the others do not count.
    """

    mean_ap: float
    mean_ap_trapezoid: float
    cmc: NDArray[np.float64]
    valid_queries: int


def evaluate_ranking(
    distances: NDArray[np.floating[Any]],
    query_pids: NDArray[np.integer[Any]],
    gallery_pids: NDArray[np.integer[Any]],
    query_camids: NDArray[np.integer[Any]],
    gallery_camids: NDArray[np.integer[Any]],
) -> RankingResult:
    """Score a ranking by the protocol of Market-1501 (Zheng et al., "Scalable Person Re-identification", ICCV 2015).

    For each query, gallery images of its identity from its own camera are left out, and so is junk (pid -1);
    distractors (pid 0) stay. A query without a match among the rest is skipped. Equal distances rank in gallery
    order.

    Args:
        distances: (Q, G), lower is nearer; infinite allowed.
        query_pids: (Q,) identities.
        gallery_pids: (G,) identities.
        query_camids: (Q,) cameras.
        gallery_camids: (G,) cameras.

    Raises:
        ValueError: shapes that do not fit, a NaN distance (its place is named), or no query with a match.
    """
    if distances.ndim != 2:
        raise ValueError(f"distances: expected shape (Q, G), got {distances.shape}")
    for name, labels, length in (
        ("query_pids", query_pids, distances.shape[0]),
        ("gallery_pids", gallery_pids, distances.shape[1]),
        ("query_camids", query_camids, distances.shape[0]),
        ("gallery_camids", gallery_camids, distances.shape[1]),
    ):
        if labels.shape != (length,):
            raise ValueError(f"{name}: expected shape ({length},), got {labels.shape}")

    gallery_size = distances.shape[1]
    ap_sum = ap_trapezoid_sum = 0.0
    first_match_counts = np.zeros(gallery_size, np.int64)  # [k - 1]: queries whose first match has rank k
    step = max(1, _BATCH_ELEMENTS // max(1, gallery_size))
    for start in range(0, len(distances), step):
        rows = slice(start, start + step)
        nan = np.isnan(distances[rows])
        if nan.any():
            row, column = np.argwhere(nan)[0]
            raise ValueError(f"distances: expected numbers, got NaN at [{start + row}, {column}]")
        order = np.argsort(distances[rows], axis=1, kind="stable")  # (B, G)
        same_pid = gallery_pids[order] == query_pids[rows, None]
        same_camera = gallery_camids[order] == query_camids[rows, None]
        keep = (gallery_pids[order] != JUNK_PID) & ~(same_pid & same_camera)
        matches = same_pid & keep
        n_matches = matches.sum(axis=1)  # (B,)

        # Only the places of matches matter from here on: flat arrays over the matches of all queries.
        query, place = np.nonzero(matches)
        rank = np.cumsum(keep, axis=1)[query, place]  # from 1, among what is kept
        first = np.cumsum(n_matches) - n_matches  # where each query's matches begin in the flat arrays
        found = np.arange(1, len(query) + 1) - first[query]  # matches up to and with this one
        precision = found / rank
        # Precision just before the match; by convention 1 before the first rank.
        precision_before = np.where(rank > 1, (found - 1) / np.maximum(rank - 1, 1), 1.0)
        weight = 1.0 / n_matches[query]
        ap_sum += float(weight @ precision)
        ap_trapezoid_sum += float(weight @ (precision + precision_before)) / 2
        first_match_counts += np.bincount(rank[found == 1] - 1, minlength=gallery_size)

    valid_queries = int(first_match_counts.sum())
    if valid_queries == 0:
        raise ValueError(
            f"query_pids: expected a query with a match seen by another camera, got none among {len(distances)}"
        )
    return RankingResult(
        mean_ap=ap_sum / valid_queries,
        mean_ap_trapezoid=ap_trapezoid_sum / valid_queries,
        cmc=np.cumsum(first_match_counts) / valid_queries,
        valid_queries=valid_queries,
    )
