"""How well distances rank a gallery: CMC, mean average precision by both conventions, mINP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.datasets import JUNK_PID
from reid.distances import DistanceRows, check_labels

# Distances ranked at once. A distance takes some 20 bytes on its way: this bounds the working memory to 160 MB.
_BLOCK_ELEMENTS = 8_000_000


@dataclass(frozen=True)
class RankingResult:
    """Scores of one query set against one gallery.

    A query without a match to find counts in no mean.

    Attributes:
        mean_ap: mean average precision in [0, 1], rectangle rule: precision averaged over the matches.
        mean_ap_trapezoid: the same by the trapezoid rule of Market-1501's own evaluation code.
        mean_inp: mean inverse negative penalty, matches by the rank of the last of them (Ye et al., "Deep Learning
            for Person Re-identification: A Survey and Outlook", TPAMI 2021).
        cmc: (G,) cumulative matching characteristic; `cmc[k - 1]` is the share of queries with a match among
            the first k, so `cmc[0]` is rank-1.
        queries: number of queries.
        valid_queries: number of those with a match to find.
        average_precisions: (Q,) of each query, rectangle rule; NaN without a match.
        first_ranks: (Q,) rank of each query's first match, from 1; 0 without a match.
    """

    mean_ap: float
    mean_ap_trapezoid: float
    mean_inp: float
    cmc: NDArray[np.float64]
    queries: int
    valid_queries: int
    average_precisions: NDArray[np.float64]
    first_ranks: NDArray[np.int64]

    def figures(self, ranks: Sequence[int] = (1, 5, 10, 20)) -> dict[str, float | int]:
        """The scores under the names that reports use: shares in [0, 1] and the two numbers of queries.

        Args:
            ranks: of the CMC, from 1; behind the gallery's end the last one counts.
        """
        if any(rank < 1 for rank in ranks):
            raise ValueError(f"ranks: expected numbers from 1, got {list(ranks)}")
        return {
            "mAP": self.mean_ap,
            "mAP_trapezoid": self.mean_ap_trapezoid,
            **{f"rank-{rank}": float(self.cmc[min(rank, len(self.cmc)) - 1]) for rank in ranks},
            "mINP": self.mean_inp,
            "queries": self.queries,
            "valid_queries": self.valid_queries,
        }


def evaluate_ranking(
    distances: DistanceRows | NDArray[np.floating[Any]] | Tensor,
    query_pids: NDArray[np.integer[Any]],
    gallery_pids: NDArray[np.integer[Any]],
    query_camids: NDArray[np.integer[Any]],
    gallery_camids: NDArray[np.integer[Any]],
) -> RankingResult:
    """Score a ranking by the protocol of Market-1501 (Zheng et al., "Scalable Person Re-identification", ICCV 2015).

    For each query, gallery images of its identity from its own camera are left out, and so is junk (pid -1);
    distractors (pid 0) stay, as wrong answers. A query without a match among the rest is left out of the means.
    Equal distances rank in gallery order. Work is done in blocks of queries where the distances are, CPU or GPU.

    Args:
        distances: (Q, G), lower is nearer; infinite allowed. A matrix, or `reid.distances.FeatureDistances` and
            `reid.reranking.RerankedDistances`, which compute a block's rows when it is their turn.
        query_pids: (Q,) identities, from 1.
        gallery_pids: (G,) identities.
        query_camids: (Q,) cameras.
        gallery_camids: (G,) cameras.

    Raises:
        ValueError: shapes that do not fit, a query that is nobody (pid below 1), a NaN distance (its place is named),
            or no query with a match.
    """
    if len(distances.shape) != 2:
        raise ValueError(f"distances: expected shape (Q, G), got {tuple(distances.shape)}")
    queries, gallery = distances.shape
    check_labels(queries, query_pids=query_pids, query_camids=query_camids)
    check_labels(gallery, gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    if queries and query_pids.min() < 1:
        row = int(query_pids.argmin())
        raise ValueError(
            f"query_pids: expected identities from 1 (0 is a distractor, -1 junk), got {query_pids[row]} at [{row}]"
        )

    pids, others, camids, cameras = (
        torch.from_numpy(np.asarray(labels, np.int64))
        for labels in (query_pids, gallery_pids, query_camids, gallery_camids)
    )
    ap, trapezoid, inp = (np.full(queries, np.nan) for _ in range(3))
    first_ranks = np.zeros(queries, np.int64)
    step = max(1, _BLOCK_ELEMENTS // max(1, gallery))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        block = _floating(distances[rows])
        nan = block.isnan()
        if nan.any():
            row, column = nan.nonzero()[0].tolist()
            raise ValueError(f"distances: expected numbers, got NaN at [{start + row}, {column}]")
        others, cameras = others.to(block.device), cameras.to(block.device)
        same_pid = others == pids[rows, None].to(block.device)  # (B, G)
        same_camera = cameras == camids[rows, None].to(block.device)
        keep = (others != JUNK_PID) & ~(same_pid & same_camera)
        query, rank = _match_ranks(block, keep, same_pid & keep)

        # Flat arrays over the matches of all queries of the block, sorted by query, then rank.
        n_matches = np.bincount(query, minlength=len(block))
        last = np.cumsum(n_matches)  # where each query's matches end
        found = np.arange(1, len(query) + 1) - (last - n_matches)[query]  # matches up to and with this one
        precision = found / rank
        # Precision just before the match; by convention 1 before the first rank.
        precision_before = np.where(rank > 1, (found - 1) / np.maximum(rank - 1, 1), 1.0)
        area = (precision + precision_before) / 2
        valid = n_matches > 0
        n_valid = n_matches[valid]
        ap[rows][valid] = np.bincount(query, precision, len(block))[valid] / n_valid
        trapezoid[rows][valid] = np.bincount(query, area, len(block))[valid] / n_valid
        inp[rows][valid] = n_valid / rank[last[valid] - 1]
        first_ranks[rows][valid] = rank[found == 1]

    valid = first_ranks > 0
    if not valid.any():
        raise ValueError(f"query_pids: expected a query with a match seen by another camera, got none among {queries}")
    return RankingResult(
        mean_ap=float(ap[valid].mean()),
        mean_ap_trapezoid=float(trapezoid[valid].mean()),
        mean_inp=float(inp[valid].mean()),
        cmc=np.cumsum(np.bincount(first_ranks[valid] - 1, minlength=gallery)) / valid.sum(),
        queries=queries,
        valid_queries=int(valid.sum()),
        average_precisions=ap,
        first_ranks=first_ranks,
    )


def _match_ranks(block: Tensor, keep: Tensor, matches: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank of every match among the images that are kept, from 1.

    Args:
        block: (B, G) distances.
        keep: (B, G) what is ranked at all.
        matches: (B, G) which of these are right.

    Returns:
        Row and rank of each match, sorted by row, then rank.
    """
    kept = block.masked_fill(~keep, torch.inf)
    query, place = matches.nonzero(as_tuple=True)  # in order of rows
    counts = matches.sum(1)
    # Each row's matches side by side, so that all rows are searched at once.
    column = torch.arange(len(query), device=block.device) - (counts.cumsum(0) - counts)[query]
    values = block.new_full((len(block), int(counts.max()) if len(query) else 0), torch.inf)
    values[query, column] = kept[query, place]
    ascending = _ascending(kept)
    nearer = torch.searchsorted(ascending, values)[query, column]
    as_near = torch.searchsorted(ascending, values, right=True)[query, column]  # itself too
    rank = nearer + 1

    tied = as_near - nearer > 1
    if tied.any():  # only a stable sort of the whole row says who comes first
        rows = torch.unique_consecutive(query[tied])
        order = kept[rows].argsort(dim=1, stable=True)
        ranks = torch.zeros_like(order).scatter_(1, order, keep[rows].gather(1, order).cumsum(1))
        within = torch.full((len(block),), -1, device=block.device)
        within[rows] = torch.arange(len(rows), device=block.device)
        again = within[query] >= 0
        rank[again] = ranks[within[query[again]], place[again]]

    flat_query, flat_rank = query.cpu().numpy(), rank.cpu().numpy()
    by_rank = np.lexsort((flat_rank, flat_query))
    return flat_query[by_rank], flat_rank[by_rank]


def _floating(block: Any) -> Tensor:
    """Distances as float32 or float64, which can be sorted and hold infinity."""
    rows = torch.as_tensor(block)
    if rows.dtype in (torch.float32, torch.float64):
        return rows
    return rows.float() if rows.is_floating_point() else rows.double()


def _ascending(rows: Tensor) -> Tensor:
    """Values of each row in rising order; on the CPU by NumPy, whose vectorised sort is several times faster."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values
