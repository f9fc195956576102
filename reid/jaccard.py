"""Jaccard distances of k-reciprocal encodings (Zhong et al., CVPR 2017) as a sparse graph, ready for clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from reid.distances import Features, check_features
from reid.neighbours import nearest, nearest_by_faiss
from reid.reciprocal import (
    average_neighbours,
    expanded_neighbours,
    jaccard_similarity,
    neighbour_weights,
    pair_distances,
    row_numbers,
)


@dataclass(frozen=True)
class JaccardConfig:
    """Settings of the Jaccard distance; the defaults are those of CACCL."""

    k1: int = 30
    """Nearest images among which reciprocal neighbours are looked for."""
    k2: int = 6
    """Nearest images, an image itself counted, over which its encoding is averaged (local query expansion). As
    published, no more of them than k1 are known."""
    reading: Literal["published", "paper"] = "published"
    """"published" counts an image itself among its k1 nearest, as the code of Cluster Contrast does and published
    figures come from; "paper" takes k1 others (Zhong et al.). The half-sized sets have round(k1 / 2) others in both."""
    search: Literal["torch", "faiss"] = "torch"
    """What finds the nearest images, exactly either way: our own search in torch, or faiss where it is installed."""

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise ValueError(f"k1: expected at least 1, got {self.k1}")
        if self.k2 < 1:
            raise ValueError(f"k2: expected at least 1, got {self.k2}")
        if self.reading not in ("published", "paper"):
            raise ValueError(f"reading: expected published or paper, got {self.reading!r}")
        if self.search not in ("torch", "faiss"):
            raise ValueError(f"search: expected torch or faiss, got {self.search!r}")


def jaccard_graph(
    features: Features,
    config: JaccardConfig | None = None,
    *,
    max_distance: float = 1.0,
    device: str | torch.device | None = None,
    progress: str = "",
) -> sp.csr_array:
    """Jaccard distances between images, where their encodings overlap.

    An image is encoded by weights of its neighbours; the distance of two images is 1 - s / (2 - s), where s is the sum
    of the smaller of their weights over all neighbours: 0 for equal encodings, 1 where no neighbour is common.

    Args:
        features: (N, D), of any length but zero; brought to unit length here.
        config: the settings; None: the defaults. With fewer than k1 images all are neighbours.
        max_distance: distances above it are left out, in [0, 1].
        device: where to search for neighbours; None: where the features are.
        progress: what a bar of progress says, where there is a terminal; empty: none.

    Returns:
        (N, N) float32, symmetric, sorted by columns. Stored are the diagonal, as 0, and the distances below 1 that are
        not above `max_distance`; `sklearn.cluster.DBSCAN` takes it with `metric="precomputed"`.

    Raises:
        ValueError: no image, a row that is not finite or zero, or a `max_distance` outside [0, 1].
    """
    config = config or JaccardConfig()
    if not 0 <= max_distance <= 1:
        raise ValueError(f"max_distance: expected a number from 0 to 1, got {max_distance}")
    rows = check_features(features, "features")
    if not len(rows):
        raise ValueError("features: expected at least one image, got none")
    zero = (torch.linalg.vector_norm(rows, dim=1) < 1e-12).nonzero()  # `normalize` below leaves them short
    if len(zero):
        raise ValueError(f"features: expected no row of zeros, got one in row {int(zero[0])} ({len(zero)} in all)")
    rows = torch.nn.functional.normalize(rows.to(device or rows.device), dim=1)

    count = config.k1 if config.reading == "published" else config.k1 + 1
    searched = count if config.reading == "published" else max(count, config.k2)
    by_faiss = config.search == "faiss"
    found = nearest_by_faiss(rows, searched) if by_faiss else nearest(rows, searched, progress=progress)
    neighbours = found.indices.cpu().numpy()
    sets = expanded_neighbours(neighbours, count, round(config.k1 / 2) + 1)
    encoding = neighbour_weights(sets, pair_distances(rows, found, row_numbers(sets), sets.indices))
    encoding = average_neighbours(encoding, neighbours, config.k2)
    similarity = jaccard_similarity(encoding, encoding, 1 - max_distance - 1e-6).tocoo()
    distances = np.clip(1 - similarity.data, 0, 1)
    stored = (distances < 1) & (distances <= max_distance) & (similarity.row != similarity.col)
    diagonal = np.arange(len(rows), dtype=np.int32)
    places = [np.concatenate((ends[stored], diagonal)) for ends in (similarity.row, similarity.col)]
    data = np.concatenate((distances[stored], np.zeros(len(rows), np.float32)))
    graph = sp.csr_array((data, places), similarity.shape)
    graph.sort_indices()
    return graph


def dense_distances(graph: sp.csr_array) -> NDArray[np.float32]:
    """The matrix (N, N) of a graph of `jaccard_graph`, 1 where nothing is stored."""
    dense = np.ones(graph.shape, np.float32)
    dense[row_numbers(graph), graph.indices] = graph.data
    return dense
