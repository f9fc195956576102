"""Nearest neighbours among a set of features by exact search, in tiles of distances; or by faiss, where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

# Rows and columns of a tile of distances: on the CPU few enough for the cache, elsewhere enough to keep a device busy.
_CPU_SIDE, _DEVICE_SIDE = 1536, 8192

# Neighbours kept beyond those that are asked for. Only where all of them are as far as the last one asked for, a
# row has to be looked at again to find who comes first.
_SPARE = 8

# Share of a tile from which on choosing among whole rows is faster than picking what may be near.
_DENSE_SHARE = 1 / 8


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


def nearest(
    features: Tensor, count: int, lengths: Tensor | None = None, split: int = 0, progress: str = ""
) -> Neighbours:
    """Find the nearest `count` features of every feature (fewer where there are fewer), exactly.

    Distances are symmetric, so only half of them are computed: a tile's rows and its columns learn from the same
    numbers who is near.

    Args:
        features: (N, D) finite, float32 or float64, on any device.
        count: neighbours of each, at least 1; a feature is its own neighbour.
        lengths: (N,) squared lengths of the features; None: all have unit length.
        split: S, the number of features whose distances to all others are kept, S x (N - S) numbers.
        progress: what a bar of progress says, where there is a terminal; empty: none.
    """
    n = len(features)
    count = min(count, n)
    kept = min(count + _SPARE, n)
    distances = features.new_full((n, kept), torch.inf)
    indices = torch.zeros((n, kept), dtype=torch.int64, device=features.device)
    farthest = features.new_zeros(n)
    across = features.new_empty((split, n - split))
    side = _CPU_SIDE if features.device.type == "cpu" else _DEVICE_SIDE
    parts = [slice(start, min(start + side, n)) for start in range(0, n, side)]
    tiles = [(rows, columns) for i, rows in enumerate(parts) for columns in parts[i:]]
    hidden = None if progress else True  # None: on a terminal alone
    for rows, columns in tqdm(tiles, progress, unit="tile", dynamic_ncols=True, disable=hidden):
        tile = squared_distances(features, rows, columns, lengths)
        top, left = min(rows.stop, split), max(columns.start, split)
        if rows.start < top and left < columns.stop:
            seen = tile[: top - rows.start, left - columns.start :]
            across[rows.start : top, left - split : columns.stop - split] = seen
        sides = [(rows, columns, 1), (columns, rows, 0)]
        for own, others, dim in sides[: 1 if rows == columns else 2]:
            farthest[own] = farthest[own].maximum(tile.amax(dim))
            _merge(distances[own], indices[own], tile, others.start, dim)

    indices, order = indices.sort(dim=1)
    distances, order = distances.gather(1, order).sort(dim=1, stable=True)
    indices = indices.gather(1, order)
    if kept < n:
        undecided = (distances[:, count - 1] == distances[:, -1]).nonzero()[:, 0]
        height = max(1, side * side // n)
        for first in range(0, len(undecided), height):
            row = undecided[first : first + height]
            again = squared_distances(features, row, slice(0, n), lengths).sort(dim=1, stable=True)
            distances[row], indices[row] = again.values[:, :kept], again.indices[:, :kept]
    return Neighbours(indices[:, :count].contiguous(), distances[:, :count].contiguous(), farthest, across)


def nearest_by_faiss(features: Tensor, count: int) -> Neighbours:
    """What `nearest` finds for features of unit length, by faiss' exact index, on its GPUs where it sees any.

    Of distances that are equal in faiss' arithmetic, others may be among the nearest.

    Raises:
        ValueError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError("search: 'faiss' asked for, but it is not installed (pip install faiss-cpu)") from None
    rows = np.ascontiguousarray(features.float().cpu().numpy())
    index = faiss.IndexFlatL2(rows.shape[1])
    if getattr(faiss, "get_num_gpus", int)():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(rows)
    distances, indices = index.search(rows, min(count, len(rows)))
    order = np.lexsort((indices, distances))
    near, far = (torch.from_numpy(np.take_along_axis(values, order, 1)) for values in (indices, distances.clip(0)))
    none = features.new_empty(0)
    return Neighbours(near.to(features.device), far.to(features.device), none, none)


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


def _merge(distances: Tensor, indices: Tensor, tile: Tensor, offset: int, dim: int) -> None:
    """Let the nearest along one side of a tile into the lists (in place).

    Args:
        distances: (R, K) of the nearest so far.
        indices: (R, K).
        tile: distances (R, C) to the features from `offset` on.
        offset: the first of them.
        dim: 1; or 0 where the tile is (C, R).
    """
    kept = distances.shape[1]
    place = _true_places(tile < distances.amax(1).unsqueeze(dim))  # whoever is nearer than the last of a list
    lists: Tensor | slice
    if len(place) > _DENSE_SHARE * tile.numel():
        near, others = tile.topk(min(kept, tile.shape[dim]), dim, largest=False, sorted=False)
        lists, near, others = slice(None), near.movedim(dim, 1), others.movedim(dim, 1)
    else:
        ends = place // tile.shape[1], place % tile.shape[1]
        own, order = ends[1 - dim].sort(stable=True)
        found = own.bincount(minlength=len(distances))
        lists = found.nonzero()[:, 0]
        # One row for each list that something is found for, as wide as the most that is found.
        row = (found > 0).cumsum(0)[own] - 1
        column = torch.arange(len(own), device=own.device) - (found.cumsum(0) - found)[own]
        near = tile.new_full((len(lists), int(found.max())), torch.inf)
        others = torch.zeros_like(near, dtype=torch.int64)
        near[row, column], others[row, column] = tile.view(-1)[place[order]], ends[dim][order]
    best, chosen = torch.cat((distances[lists], near), 1).topk(kept, 1, largest=False, sorted=False)
    distances[lists] = best
    indices[lists] = torch.cat((indices[lists], others + offset), 1).gather(1, chosen)


def _true_places(mask: Tensor) -> Tensor:
    """Where a mask is true, counted through its rows, in order."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as torch's
    return mask.view(-1).nonzero()[:, 0]
