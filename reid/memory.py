"""What contrastive learning compares a batch with: centres of clusters, of clusters seen by a camera, and instances.

Equations are those of CACCL (camera and cluster contrast): cluster centroids (3) and their momentum update (4) as in
Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification" (ACCV 2022), centres of camera and cluster (5);
the instance memory is that of SpCL (Ge et al., "Self-paced Contrastive Learning with Hybrid Memory", NeurIPS 2020).

A memory is made anew every epoch and changes by `update` alone, which belongs behind the optimiser step. Neither a
row that is not finite nor one that would leave no direction enters it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

OUTLIER = -1
"""Label of an image that is in no cluster."""
_SHORTEST = 1e-6
"""Length of a blend below which it has no direction."""


@dataclass(frozen=True)
class CameraCentres:
    """M centres, one for each camera that sees a cluster, in order of label, then camera.

    Attributes:
        centres: (M, D).
        labels: (M,) int64, the cluster of each.
        camids: (M,) int64, the camera of each.
    """

    centres: Tensor
    labels: Tensor
    camids: Tensor


def cluster_centroids(features: Tensor, labels: Tensor) -> Tensor:
    """The mean of each cluster (3), outliers left out.

    Args:
        features: (N, D).
        labels: (N,) int64 clusters, 0 to K − 1; −1: outlier.

    Returns:
        (K, D), float32 at least, not brought to unit length; the same bits on any device.

    Raises:
        ValueError: no cluster, or one without an image.
    """
    known = _in_clusters(labels)
    return _means(features[known], labels[known])


def camera_centres(features: Tensor, labels: Tensor, camids: Tensor) -> CameraCentres:
    """The mean of what each camera sees of each cluster (5), outliers left out.

    Args:
        features: (N, D).
        labels: (N,) int64 clusters, 0 to K − 1; −1: outlier.
        camids: (N,) int64.

    Returns:
        Centres, float32 at least, not brought to unit length; the same bits on any device.

    Raises:
        ValueError: no cluster, or one without an image.
    """
    known = _in_clusters(labels)
    pairs, index = torch.unique(torch.stack((labels, camids), 1)[known], dim=0, return_inverse=True)
    return CameraCentres(_means(features[known], index), pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


@dataclass(frozen=True)
class ClusterMemory:
    """The centroids of K clusters.

    Attributes:
        centroids: (K, D) unit rows, float32 or float64.
    """

    centroids: Tensor

    @classmethod
    def build(cls, features: Tensor, labels: Tensor) -> ClusterMemory:
        """From (N, D) features of any length and (N,) labels, −1: outlier.

        Raises:
            ValueError: no cluster, or one without an image.
        """
        return cls(unit_rows(cluster_centroids(unit_rows(features), labels)))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, momentum: float, hard: bool = False) -> None:
        """Move centroids towards a batch, c ← m c + (1 − m) f, renormalised (4).

        Args:
            features: (B, D) unit rows.
            labels: (B,) int64 clusters; those of several rows are moved by one after the other.
            momentum: m, share of a centroid that is kept.
            hard: a cluster is moved once, by whichever row is least similar to its centroid (Cluster Contrast's batch
                hard update).
        """
        features, labels = _finite(features, labels)
        if hard:
            similarity = (features.to(self.centroids) * self.centroids[labels]).sum(1)
            order = similarity.argsort(stable=True)
            order = order[_turns(labels[order]) == 0]
            features, labels = features[order], labels[order]
        _blend(self.centroids, labels, features, momentum)


@dataclass(frozen=True)
class InstanceMemory:
    """A feature for each image, and the class it belongs to.

    Attributes:
        features: (N, D) unit rows, float32 or float64.
        classes: (N,) int64: clusters 0 to K − 1, then a class for each outlier.
    """

    features: Tensor
    classes: Tensor

    @classmethod
    def build(cls, features: Tensor, labels: Tensor) -> InstanceMemory:
        """From (N, D) features of any length and (N,) labels, −1: outlier.

        Raises:
            ValueError: no cluster, or one without an image.
        """
        outlier = ~_in_clusters(labels)
        classes = torch.where(outlier, labels.max() + outlier.cumsum(0), labels)
        return cls(unit_rows(features), classes)

    @torch.no_grad()
    def update(self, features: Tensor, rows: Tensor, momentum: float) -> None:
        """Move the instances (B,) `rows`, one after the other, v ← m v + (1 − m) f, renormalised."""
        features, rows = _finite(features, rows)
        _blend(self.features, rows, features, momentum)


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length one, float32 at least; zeros stay."""
    return functional.normalize(full_precision(features), dim=1)


def full_precision(features: Tensor) -> Tensor:
    """Float32 at least."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _in_clusters(labels: Tensor) -> Tensor:
    """(N,) true where an image is no outlier."""
    known = labels != OUTLIER
    if not known.any():
        raise ValueError("labels: expected at least one cluster, got only outliers")
    if labels.min() < OUTLIER:
        raise ValueError(f"labels: expected −1 or clusters from 0, got {int(labels.min())}")
    empty = (torch.bincount(labels[known]) == 0).nonzero()
    if len(empty):
        raise ValueError(
            f"labels: expected an image in each cluster 0 to {int(labels.max())}, got none in {int(empty[0])}"
        )
    return known


def _means(features: Tensor, index: Tensor) -> Tensor:
    """(max index + 1, D) mean of the rows of each index.

    Summed on the CPU, where the order is fixed: processes that train together need the same bits.
    """
    index = index.cpu()
    counts = torch.bincount(index)
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, features.detach().cpu().double())
    return (sums / counts[:, None]).to(full_precision(features))


def _finite(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that are numbers throughout."""
    finite = features.isfinite().all(1)
    return features[finite], index[finite]


def _turns(index: Tensor) -> Tensor:
    """(B,) how often the index of each row was there before: 0 where it is met first."""
    return (index[:, None] == index).tril(-1).sum(1)


def _blend(memory: Tensor, index: Tensor, features: Tensor, momentum: float) -> None:
    """Move the rows `index` of a memory towards features, those that move a row twice or more in turn."""
    features, turns = features.to(memory), _turns(index)
    for turn in range(int(turns.max()) + 1 if len(turns) else 0):
        rows, now = index[turns == turn], features[turns == turn]
        blend = momentum * memory[rows] + (1 - momentum) * now
        length = torch.linalg.vector_norm(blend, dim=1, keepdim=True)
        usable = length.isfinite() & (length > _SHORTEST)
        memory[rows] = torch.where(usable, blend / length, memory[rows])
