"""Nearest neighbours among a set of features by exact search, in blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# One block of distances; some three of its size are in memory at a time.
_BLOCK_BYTES = 192_000_000

# Neighbours kept beyond those that are asked for. Only where all of them are as far as the last one asked for, a
# row has to be looked at again to find who comes first.
_SPARE = 8


@dataclass(frozen=True)
class Neighbours:
    """Nearest neighbours of each of N features among all N, itself included.

    Attributes:
        indices: (N, K) int64, nearest first; of equal distances the lower index comes first.
        distances: (N, K) squared Euclidean distances.
        farthest: (N,) squared distance of the one that is furthest away.
        across: (S, N - S) squared distances from the first S features to the others, where these were asked for.
    """

    indices: Tensor
    distances: Tensor
    farthest: Tensor
    across: Tensor


def nearest(features: Tensor, count: int, lengths: Tensor | None = None, split: int = 0) -> Neighbours:
    """Find the nearest `count` features of every feature (fewer where there are fewer), exactly.

    Distances are symmetric, so only half of them are computed: a block of rows looks at the columns from its own on,
    and what lies behind the block learns from the same numbers who of the block is near.

    Args:
        features: (N, D) finite, float32 or float64, on any device.
        count: neighbours of each, at least 1; a feature is its own neighbour.
        lengths: (N,) squared lengths of the features; None: all have unit length.
        split: S, the number of features whose distances to all others are kept, S x (N - S) numbers.
    """
    n = len(features)
    count = min(count, n)
    kept = min(count + _SPARE, n)
    distances = features.new_full((n, kept), torch.inf)
    indices = torch.zeros((n, kept), dtype=torch.int64, device=features.device)
    farthest = features.new_zeros(n)
    across = features.new_empty((split, n - split))
    step = max(1, _BLOCK_BYTES // (features.element_size() * n))
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = squared_distances(features, slice(start, stop), slice(start, n), lengths)  # (B, N - start)
        if start < split:
            across[start:stop] = block[: split - start, split - start :]
        behind = block[:, stop - start :]
        farthest[start:stop] = farthest[start:stop].maximum(block.amax(1))
        _merge(distances[start:stop], indices[start:stop], block, start)
        if stop < n:
            farthest[stop:] = farthest[stop:].maximum(behind.amax(0))
            _merge(distances[stop:], indices[stop:], behind.T, start)

    indices, order = indices.sort(dim=1)
    distances, order = distances.gather(1, order).sort(dim=1, stable=True)
    indices = indices.gather(1, order)
    if kept < n:
        undecided = (distances[:, count - 1] == distances[:, -1]).nonzero()[:, 0]
        for first in range(0, len(undecided), step):
            rows = undecided[first : first + step]
            again = squared_distances(features, rows, slice(0, n), lengths).sort(dim=1, stable=True)
            distances[rows], indices[rows] = again.values[:, :kept], again.indices[:, :kept]
    return Neighbours(indices[:, :count].contiguous(), distances[:, :count].contiguous(), farthest, across)


def squared_distances(features: Tensor, rows: slice | Tensor, columns: slice, lengths: Tensor | None) -> Tensor:
    """Squared Euclidean distances (R, C) between some features and others.

    Args:
        features: (N, D).
        rows: which of them.
        columns: from which others.
        lengths: (N,) squared lengths of the features; None: all have unit length.
    """
    products = features[rows] @ features[columns].T
    if lengths is None:
        return products.mul_(-2).add_(2).clamp_(min=0)
    return products.mul_(-2).add_(lengths[columns]).add_(lengths[rows, None]).clamp_(min=0)


def _merge(distances: Tensor, indices: Tensor, block: Tensor, offset: int) -> None:
    """Let the nearest of a block's columns, which are the features from `offset` on, into the lists (in place)."""
    kept = distances.shape[1]
    near, places = block.topk(min(kept, block.shape[1]), dim=1, largest=False, sorted=False)
    both = torch.cat((distances, near), dim=1)
    best = both.topk(kept, dim=1, largest=False, sorted=False)
    distances.copy_(best.values)
    indices.copy_(torch.cat((indices, places + offset), dim=1).gather(1, best.indices))
