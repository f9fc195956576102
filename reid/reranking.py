"""Re-ranking with k-reciprocal encoding (Zhong et al., CVPR 2017), exact, without a dense matrix anywhere.

Everybody's neighbours are found by exact search on the features' device; sets of neighbours, their expansion and the
Jaccard distance are sparse matrices on the CPU. Rows of the final distance are put together when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.distances import Features, Metric, check_metric, feature_pair, squared_lengths
from reid.neighbours import Neighbours, nearest, squared_distances

# Products of the overlap that are in memory at once, some 30 bytes each, and the sums of these, 8 bytes each: few
# enough for the cache.
_BLOCK_PRODUCTS = 500_000
_BLOCK_SUMS = 1_000_000
# Features whose differences are in memory at once.
_PAIR_BYTES = 4_000_000
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
        encoding = self._encode(expanded_neighbours(neighbours, config.k1), found)
        encoding = average_neighbours(encoding, neighbours, config.k2)
        shared = shared_weight(encoding[: self._queries], encoding[self._queries :])
        shared.data = shared.data / (2 - shared.data)  # each encoding sums to 1
        self._similarity = shared

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

    def _encode(self, sets: sp.csr_array, found: Neighbours) -> sp.csr_array:
        """Weights of an image's neighbours, exp(-distance) where the furthest image has distance 1; sums of 1."""
        rows = np.repeat(np.arange(sets.shape[0]), np.diff(sets.indptr))
        share = pair_distances(self._features, found, rows, sets.indices) / self._farthest.cpu().numpy()[rows]
        weights = np.exp(-(share ** (self._config.power // 2)))
        sums = np.bincount(rows, weights, sets.shape[0])
        data = (weights / sums[rows]).astype(np.float32)
        return sp.csr_array((data, sets.indices, sets.indptr), sets.shape)


def reciprocal_neighbours(neighbours: NDArray[np.int64], k: int) -> sp.csr_array:
    """Who is among whose k nearest both ways: the paper's R(p, k).

    Args:
        neighbours: (N, K) the nearest of each image, itself first.
        k: how many of them count besides the image itself, at most K - 1.

    Returns:
        (N, N) symmetric, 1 where it is so.
    """
    n, count = len(neighbours), min(k + 1, neighbours.shape[1])
    ones = np.ones(n * count, np.int32)
    forward = sp.csr_array((ones, neighbours[:, :count].reshape(-1), np.arange(n + 1) * count), (n, n))
    return forward.multiply(forward.T).tocsr()


def expanded_neighbours(neighbours: NDArray[np.int64], k1: int) -> sp.csr_array:
    """The paper's robust sets R*(p, k1): a neighbour brings its own half-sized set, if two thirds are shared.

    Args:
        neighbours: (N, K) the nearest of each image, itself first.
        k1: the paper's k1.

    Returns:
        (N, N) whose stored places are the sets.
    """
    full = reciprocal_neighbours(neighbours, k1)
    half = reciprocal_neighbours(neighbours, round(k1 / 2))
    sizes = half.sum(axis=1)
    welcome = (full @ half.T).multiply(full).tocsr()  # how much of its half-sized set each neighbour shares
    welcome.data = (3 * welcome.data > 2 * sizes[welcome.indices]).astype(np.int32)
    welcome.eliminate_zeros()
    sets = (full + welcome @ half).tocsr()
    sets.sort_indices()
    return sets


def average_neighbours(encoding: sp.csr_array, neighbours: NDArray[np.int64], k2: int) -> sp.csr_array:
    """Local query expansion: each encoding (N, N) becomes the mean of its k2 nearest images'."""
    n, count = len(neighbours), min(k2, neighbours.shape[1])
    if count == 1:  # its own, even where the first of several that coincide is another
        return encoding
    share = np.full(n * count, 1 / count, np.float32)
    chosen = sp.csr_array((share, neighbours[:, :count].reshape(-1), np.arange(n + 1) * count), (n, n))
    return (chosen @ encoding).tocsr()


def shared_weight(queries: sp.csr_array, gallery: sp.csr_array) -> sp.csr_array:
    """Sum of the smaller of two weights over all places, for each pair of encodings.

    Args:
        queries: (Q, N) weights from 0.
        gallery: (G, N) weights from 0.

    Returns:
        (Q, G) float64, stored where it is not zero.
    """
    columns = gallery.tocsc()
    height = np.diff(columns.indptr).astype(np.int64)
    products = np.concatenate(([0], np.cumsum(height[queries.indices])))[queries.indptr]  # up to each query
    n_gallery, most = gallery.shape[0], max(1, _BLOCK_SUMS // max(1, gallery.shape[0]))
    indices: list[NDArray[Any]] = [np.zeros(0, np.int64)]
    ends: list[NDArray[Any]] = [np.zeros(1, np.int64)]
    data: list[NDArray[Any]] = [np.zeros(0)]
    start = 0
    while start < queries.shape[0]:
        fitting = int(np.searchsorted(products, products[start] + _BLOCK_PRODUCTS, side="right")) - 1
        stop = min(max(fitting, start + 1), start + most, queries.shape[0])
        begin, end = queries.indptr[start], queries.indptr[stop]
        # Every weight of a query meets all weights in its column.
        column, count = queries.indices[begin:end], height[queries.indices[begin:end]]
        row = np.repeat(np.arange(stop - start), np.diff(queries.indptr[start : stop + 1]))
        ahead = columns.indptr[column] - (np.cumsum(count) - count)
        met = np.arange(count.sum()) + np.repeat(ahead, count)
        smaller = np.minimum(np.repeat(queries.data[begin:end], count), columns.data[met])
        place = np.repeat(row * n_gallery, count) + columns.indices[met]
        sums = np.bincount(place, smaller, (stop - start) * n_gallery)
        stored = np.flatnonzero(sums > 0)
        indices.append(stored % n_gallery)
        data.append(sums[stored])
        ends.append(ends[-1][-1] + np.searchsorted(stored, np.arange(1, stop - start + 1) * n_gallery))
        start = stop
    shape = (queries.shape[0], n_gallery)
    return sp.csr_array((np.concatenate(data), np.concatenate(indices), np.concatenate(ends)), shape)


def pair_distances(
    features: Tensor, found: Neighbours, rows: NDArray[np.integer[Any]], columns: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Squared Euclidean distances (P,) of pairs of features, most of which the search for neighbours came across."""
    n = len(features)
    keys = (np.arange(n)[:, None] * n + found.indices.cpu().numpy()).reshape(-1)
    order = np.argsort(keys)
    keys, distances = keys[order], found.distances.cpu().numpy().reshape(-1)[order]
    result = np.full(len(rows), np.nan)
    for first, second in ((rows, columns), (columns, rows)):  # either may have the other among its nearest
        wanted = first.astype(np.int64) * n + second
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        known = keys[place] == wanted
        result[known] = distances[place[known]]
    missing = np.flatnonzero(np.isnan(result))
    step = max(1, _PAIR_BYTES // (features.element_size() * max(1, features.shape[1])))
    for start in range(0, len(missing), step):
        part = missing[start : start + step]
        ends = [torch.from_numpy(places[part].astype(np.int64)).to(features.device) for places in (rows, columns)]
        result[part] = ((features[ends[0]] - features[ends[1]]) ** 2).sum(1).cpu().numpy()
    return result
