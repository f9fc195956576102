"""k-reciprocal encoding (Zhong et al., CVPR 2017): sets of neighbours, their weights and overlap as sparse matrices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.neighbours import Neighbours

# Pairs of weights that are compared at once, some 20 bytes each: few enough for the cache.
_BLOCK_PRODUCTS = 400_000
# Features whose differences are in memory at once.
_PAIR_BYTES = 4_000_000


def reciprocal_neighbours(neighbours: NDArray[np.int64], count: int) -> sp.csr_array:
    """Who is among whose nearest both ways: the paper's R(p, k) with k = `count` - 1.

    Args:
        neighbours: (N, K) the nearest of each image, itself first.
        count: how many of them count, the image itself among them; K where it is more.

    Returns:
        (N, N) symmetric, 1 where it is so.
    """
    forward = _choice(neighbours[:, :count], np.int32(1))
    return forward.multiply(forward.T).tocsr()


def expanded_neighbours(neighbours: NDArray[np.int64], count: int, half_count: int) -> sp.csr_array:
    """The paper's robust sets R*(p, k): a neighbour brings its own half-sized set, if two thirds are shared.

    Args:
        neighbours: (N, K) the nearest of each image, itself first.
        count: how many of them count, the image itself among them; k + 1 in the paper.
        half_count: the same for the half-sized sets; k / 2 + 1.

    Returns:
        (N, N) whose stored places are the sets.
    """
    full = reciprocal_neighbours(neighbours, count)
    half = reciprocal_neighbours(neighbours, half_count)
    sizes = half.sum(axis=1)
    welcome = (full @ half.T).multiply(full).tocsr()  # how much of its half-sized set each neighbour shares
    welcome.data = (3 * welcome.data > 2 * sizes[welcome.indices]).astype(np.int32)
    welcome.eliminate_zeros()
    sets = (full + welcome @ half).tocsr()
    sets.sort_indices()
    return sets


def neighbour_weights(sets: sp.csr_array, distances: NDArray[np.float64]) -> sp.csr_array:
    """Weights exp(-distance) of the images in each set, brought to a sum of 1.

    Args:
        sets: (N, N) whose stored places are the sets.
        distances: (P,) for each stored place, in its order.
    """
    rows = row_numbers(sets)
    weights = np.exp(-distances)
    weights /= np.bincount(rows, weights, sets.shape[0])[rows]
    return sp.csr_array((weights.astype(np.float32), sets.indices, sets.indptr), sets.shape)


def row_numbers(matrix: sp.csr_array) -> NDArray[np.int64]:
    """Row (P,) of each stored place."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def average_neighbours(encoding: sp.csr_array, neighbours: NDArray[np.int64], k2: int) -> sp.csr_array:
    """Local query expansion: each encoding (N, N) becomes the mean of its k2 nearest images'."""
    if k2 == 1:  # its own, even where the first of several that coincide is another
        return encoding
    nearest = neighbours[:, :k2]
    averaged = (_choice(nearest, np.float32(1 / nearest.shape[1])) @ encoding).tocsr()
    averaged.sort_indices()
    return averaged


def jaccard_similarity(queries: sp.csr_array, gallery: sp.csr_array, least: float = 0.0) -> sp.csr_array:
    """Jaccard similarity s / (2 - s) of each pair of encodings, s being the sum of the smaller of their weights.

    Args:
        queries: (Q, N) weights from 0, of sum 1 in each row; sorted indices.
        gallery: (G, N) likewise.
        least: similarities below it are left out.

    Returns:
        (Q, G), stored where it is not zero and not below `least`. Sums run over the places in order, so that (a, b)
        gives to the last bit what (b, a) gives.
    """
    columns = gallery.T.tocsr()
    products = np.cumsum(np.diff(columns.indptr)[queries.indices], dtype=np.int64)  # up to each weight of the queries
    products = np.concatenate(([0], products))[queries.indptr]  # up to each query
    bounds = [0]
    while bounds[-1] < queries.shape[0]:
        fitting = int(np.searchsorted(products, products[bounds[-1]] + _BLOCK_PRODUCTS, side="right")) - 1
        bounds.append(max(fitting, bounds[-1] + 1))

    def similar(start: int, stop: int) -> sp.csr_array:
        block = queries[start:stop]
        smaller = columns[block.indices]  # each weight of a query meets all weights in its column
        np.minimum(smaller.data, np.repeat(block.data, np.diff(smaller.indptr)), out=smaller.data)
        row_of = (np.ones_like(block.data), np.arange(block.nnz, dtype=block.indices.dtype), block.indptr)
        part = sp.csr_array(row_of, (stop - start, block.nnz)) @ smaller
        part.data /= 2 - part.data
        part.data[part.data < least] = 0
        part.eliminate_zeros()
        return part

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # SciPy lets threads run side by side
        parts = list(pool.map(similar, bounds, bounds[1:]))
    return sp.vstack([sp.csr_array((0, gallery.shape[0]), dtype=queries.dtype), *parts], format="csr")


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


def _choice(neighbours: NDArray[np.int64], value: np.number[Any]) -> sp.csr_array:
    """(N, N) with one value where one image is among the neighbours (N, K) of another."""
    n, count = neighbours.shape
    ends = np.arange(n + 1, dtype=np.int32) * np.int32(count)
    return sp.csr_array((np.full(n * count, value), neighbours.reshape(-1).astype(np.int32), ends), (n, n))
