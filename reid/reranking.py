"""Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017), exact, without a dense matrix anywhere.

Everybody's neighbours are found by exact search on the features' device; sets of neighbours, their expansion and the
Jaccard distance are sparse matrices on the CPU. Rows of the final distance are put together when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reid.distances import Features, Metric, check_metric, feature_pair, squared_lengths
from reid.neighbours import nearest, squared_distances
from reid.reciprocal import (
    average_neighbours,
    expanded_neighbours,
    jaccard_similarity,
    neighbour_weights,
    pair_distances,
    row_numbers,
)

# Original distances of the queries up to this size are kept from the search; larger ones are computed again by rows.
_ACROSS_BYTES = 400_000_000


@dataclass(frozen=True)
class RerankConfig:
    """Settings of k-reciprocal re-ranking; the defaults are the paper's for Market-1501."""

    k1: int = 20
    """Neighbours that count as reciprocal, an image itself not counted."""
    k2: int = 6
    """Nearest images, an image itself counted, over which its encoding is averaged (local query expansion)."""
    original_weight: float = 0.3
    """The paper's lambda: share of the original distance in the final one, in [0, 1]."""
    power: Literal[2, 4] = 4
    """Power of the Euclidean distance that is the original distance. 4 is what the published codes compute, which
    square a distance that was squared before, and what published figures come from; 2 is the paper's."""

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise ValueError(f"k1: expected at least 1, got {self.k1}")
        if self.k2 < 1:
            raise ValueError(f"k2: expected at least 1, got {self.k2}")
        if not 0 <= self.original_weight <= 1:
            raise ValueError(f"original_weight: expected a number from 0 to 1, got {self.original_weight}")
        if self.power not in (2, 4):
            raise ValueError(f"power: expected 2 or 4, got {self.power}")


class RerankedDistances:
    """Re-ranked distances (Q, G) of queries to a gallery, in [0, 1]; what is dense is computed a slice at a time.

    `distances[a:b]` is a tensor (b - a, G) on the features' device, so that `reid.ranking.evaluate_ranking` can use
    this in place of a matrix. The images' encodings are found once, in the constructor.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        config: RerankConfig | None = None,
        metric: Metric = "cosine",
        device: str | torch.device | None = None,
    ) -> None:
        """Find neighbours and encodings of all images.

        Args:
            query: (Q, D).
            gallery: (G, D).
            config: the settings; None: the defaults.
            metric: "cosine" brings the features to unit length first, "euclidean" takes them as they are.
            device: where to search; None: where the query features are.

        Raises:
            ValueError: an unknown metric, shapes that do not fit, an empty side, or a row that is not finite.
        """
        check_metric(metric)
        config = config or RerankConfig()
        first, second = feature_pair(query, gallery, device)
        for name, rows in (("query", first), ("gallery", second)):
            if not len(rows):
                raise ValueError(f"{name}: expected at least one image, got none")
        features = torch.cat((first, second))
        if metric == "cosine":
            torch.nn.functional.normalize(features, dim=1, out=features)
        self._lengths = None if metric == "cosine" else squared_lengths(features)
        self._config, self._features, self._queries = config, features, len(first)

        keep = len(first) * len(second) * features.element_size() <= _ACROSS_BYTES
        found = nearest(features, max(config.k1 + 1, config.k2), self._lengths, len(first) if keep else 0)
        self._across = found.across if keep else None
        neighbours = found.indices.cpu().numpy()
        self._farthest = found.farthest.clamp(min=torch.finfo(features.dtype).tiny)
        sets = expanded_neighbours(neighbours, config.k1 + 1, round(config.k1 / 2) + 1)
        place = row_numbers(sets)
        share = pair_distances(features, found, place, sets.indices) / self._farthest.cpu().numpy()[place]
        encoding = neighbour_weights(sets, share ** (config.power // 2))
        encoding = average_neighbours(encoding, neighbours, config.k2)
        self._similarity = jaccard_similarity(encoding[: self._queries], encoding[self._queries :])

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, G)."""
        return self._queries, len(self._features) - self._queries

    def __getitem__(self, rows: slice) -> Tensor:
        """(B, G): the share of the original distance, and the Jaccard distance, 1 where nothing overlaps."""
        weight = self._config.original_weight
        if self._across is None:
            start, stop, _ = rows.indices(self._queries)
            gallery = slice(self._queries, len(self._features))
            squared = squared_distances(self._features, slice(start, stop), gallery, self._lengths)
        else:
            squared = self._across[rows]
        block = squared / self._farthest[: self._queries][rows, None]
        block.pow_(self._config.power // 2).mul_(weight).add_(1 - weight)
        overlap = self._similarity[rows].tocoo()
        where = [torch.from_numpy(places.astype(np.int64)).to(block.device) for places in (overlap.row, overlap.col)]
        values = torch.from_numpy(overlap.data).to(block.device, block.dtype)
        block[where[0], where[1]] -= (1 - weight) * values
        return block
