"""Contrastive losses of unsupervised re-identification, against memories of clusters, cameras and instances.

CACCL is cluster contrast (2) plus λ camera contrast (6), together (7): images of one pseudo-identity are drawn to its
centroid, and to its centres in the other cameras. Its ablations leave the camera term out (`cluster`), or compare with
instances instead (`self-paced`). All is float32 at least, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from reid.memory import (
    OUTLIER,
    CameraCentres,
    ClusterMemory,
    InstanceMemory,
    camera_centres,
    full_precision,
    unit_rows,
)

Method = Literal["caccl", "cluster", "self-paced"]
UpdateRule = Literal["momentum", "hard"]
NegativeCameras = Literal["other", "all"]
_STATE = {
    "caccl": {"labels", "camids", "centroids", "camera_centres", "camera_labels", "camera_camids"},
    "cluster": {"labels", "camids", "centroids"},
    "self-paced": {"labels", "camids", "instances", "classes"},
}
"""What a memory's state holds, by method."""


def cluster_contrast(features: Tensor, labels: Tensor, centroids: Tensor, temperature: float) -> Tensor:
    """−log exp(f·c⁺/τ) / Σ_k exp(f·c_k/τ), a mean over the batch (2).

    Args:
        features: (B, D) unit rows.
        labels: (B,) int64 clusters, 0 to K − 1.
        centroids: (K, D).
        temperature: τ.

    Returns:
        Scalar; zero, connected to the graph, for an empty batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, centroids = _full(features, centroids)
        return _cross_entropy(features @ centroids.T / temperature, labels)


def camera_contrast(
    features: Tensor,
    labels: Tensor,
    camids: Tensor,
    centres: CameraCentres,
    temperature: float,
    negatives: int = 50,
    across: NegativeCameras = "other",
) -> Tensor:
    """−1/|P| Σ_{i∈P} log exp(f·c_i/τ) / (exp(f·c_i/τ) + Σ_{j∈Neg} exp(f·c_j/τ)), a mean over the batch (6).

    P are the centres of the query's cluster in cameras other than its own; a query without any adds zero to the mean.

    Args:
        features: (B, D) unit rows.
        labels: (B,) int64 clusters.
        camids: (B,) int64 cameras.
        centres: of each cluster in each camera.
        temperature: τ_b.
        negatives: V_neg, how many centres of other clusters are taken, those most similar to the query; all where
            there are fewer.
        across: negatives come from cameras "other" than the query's, or from "all".

    Returns:
        Scalar; a zero is connected to the graph.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, known = _full(features, centres.centres)
        logits = features @ known.T / temperature  # (B, M)
        same_cluster = labels[:, None] == centres.labels
        other_camera = camids[:, None] != centres.camids
        positive = same_cluster & other_camera
        negative = ~same_cluster & other_camera if across == "other" else ~same_cluster

        # Finite, so that nothing computes ∞ − ∞ for a query without any negative; its exponential is zero all the same.
        nowhere = torch.finfo(logits.dtype).min / 2
        nearest = torch.where(negative, logits, nowhere).topk(min(negatives, logits.shape[1])).values
        against = nearest.logsumexp(1, keepdim=True)
        each = torch.where(positive, -functional.logsigmoid(logits - against), 0)
        return (each.sum(1) / positive.sum(1).clamp(min=1)).sum() / max(len(features), 1)


def instance_contrast(features: Tensor, classes: Tensor, memory: InstanceMemory, temperature: float) -> Tensor:
    """Contrast of classes whose logit is the mean similarity of their instances, a mean over the batch (SpCL, eq. 1).

    Args:
        features: (B, D) unit rows.
        classes: (B,) int64, see `InstanceMemory`.
        memory: of N instances.
        temperature: τ.

    Returns:
        Scalar; zero, connected to the graph, for an empty batch.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, instances = _full(features, memory.features)
        sizes = torch.bincount(memory.classes)
        # The mean of similarities is the similarity to the mean, which is found once for all of the batch.
        sums = instances.new_zeros(len(sizes), instances.shape[1]).index_add(0, memory.classes, instances)
        return _cross_entropy(features @ (sums / sizes[:, None]).T / temperature, classes)


@dataclass(frozen=True)
class ContrastConfig:
    """What an encoder is drawn to, and how its memory follows."""

    method: Method = "caccl"
    """"caccl": clusters and cameras; "cluster": clusters alone; "self-paced": instances, as in SpCL."""
    temperature: float = 0.05
    """τ of clusters and instances."""
    momentum: float = 0.1
    """m, share of a memory that an update keeps; CACCL: 0.1 to 0.2, SpCL: 0.2."""
    update: UpdateRule = "momentum"
    """"momentum": each image of the batch moves its centroid; "hard": the least similar one of each cluster alone.
    Instances have the first only."""
    camera_weight: float = 0.8
    """λ, weight of the camera contrast."""
    camera_temperature: float = 0.07
    """τ_b of the camera contrast, which the paper leaves open."""
    camera_negatives: int = 50
    """V_neg, centres of other clusters that a query is held against; left open, too."""
    negative_cameras: NegativeCameras = "other"
    """Cameras of these: "other" than the query's, or "all"."""

    def __post_init__(self) -> None:
        choices = {"method": Method, "update": UpdateRule, "negative_cameras": NegativeCameras}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        for name in ("temperature", "camera_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {self.momentum}")
        if not 0 <= self.camera_weight < math.inf:
            raise ValueError(f"camera_weight: expected a number of at least 0, got {self.camera_weight}")
        if self.camera_negatives < 1:
            raise ValueError(f"camera_negatives: expected at least 1, got {self.camera_negatives}")
        if self.method == "self-paced" and self.update == "hard":
            raise ValueError("update: expected 'momentum' with method 'self-paced', got 'hard'")


class ContrastCriterion(nn.Module):
    """The contrastive losses of a batch, and the memories that it is compared with.

    Every epoch begins with `rebuild`; every step ends with `update`. Features of a batch are expected as unit rows, an
    encoder's normalised output.

    Args:
        config: which losses.
    """

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.labels = torch.empty(0, dtype=torch.int64)
        self.camids = torch.empty(0, dtype=torch.int64)
        self.memory: ClusterMemory | InstanceMemory | None = None
        self.cameras: CameraCentres | None = None

    @torch.no_grad()
    def rebuild(self, features: Tensor, labels: Tensor, camids: Tensor) -> None:
        """Make the memories of an epoch, on the features' device.

        Processes that train together are to hand over the same; they make the same memories, to the bit.

        Args:
            features: (N, D) of all images, of any length; memories are float64 if these are, else float32.
            labels: (N,) int64 clusters, 0 to K − 1; −1: outlier.
            camids: (N,) int64.

        Raises:
            ValueError: shapes that do not fit, features that are not finite, no cluster, or one without an image.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1] or camids.shape != features.shape[:1]:
            shapes = ", ".join(str(tuple(values.shape)) for values in (features, labels, camids))
            raise ValueError(f"features, labels, camids: expected shapes (N, D), (N,), (N,), got {shapes}")
        wrong = (~features.isfinite().all(1)).nonzero()
        if len(wrong):
            raise ValueError(f"features: expected finite numbers, got others in row {int(wrong[0])}")
        labels, camids = (ids.to(features.device, torch.int64, copy=True) for ids in (labels, camids))
        if self.config.method == "self-paced":
            self.memory = InstanceMemory.build(features, labels)
        else:
            self.memory = ClusterMemory.build(features, labels)
        if self.config.method == "caccl":
            means = camera_centres(unit_rows(features), labels, camids)
            self.cameras = replace(means, centres=unit_rows(means.centres))
        self.labels, self.camids = labels, camids

    @property
    def shared_clusters(self) -> int:
        """How many clusters are seen by several cameras. Where none is, the camera contrast is zero for all."""
        return 0 if self.cameras is None else int((torch.bincount(self.cameras.labels) > 1).sum())

    def forward(self, features: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The unweighted losses of a batch: "cluster" and "camera", "cluster" alone, or "instance", by the method.

        Of several processes each computes those of its own rows, for gradients to be averaged.

        Args:
            features: (B, D) unit rows of any precision.
            rows: (B,) int64, which of the N images of `rebuild` they are of; no outlier is among them.

        Raises:
            ValueError: no memory yet, shapes that do not fit, a row that is no image, or an outlier's.
        """
        memory, rows = self._look_up(features, rows)
        labels = self.labels[rows]
        if isinstance(memory, InstanceMemory):
            return {"instance": instance_contrast(features, labels, memory, self.config.temperature)}
        terms = {"cluster": cluster_contrast(features, labels, memory.centroids, self.config.temperature)}
        if self.cameras is not None:
            terms["camera"] = camera_contrast(
                features,
                labels,
                self.camids[rows],
                self.cameras,
                self.config.camera_temperature,
                self.config.camera_negatives,
                self.config.negative_cameras,
            )
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """What to minimise: cluster contrast plus λ camera contrast (7), or the one term there is."""
        if "camera" in terms:
            return terms["cluster"] + self.config.camera_weight * terms["camera"]
        (term,) = terms.values()
        return term

    @torch.no_grad()
    def update(self, features: Tensor, rows: Tensor) -> None:
        """Let the memory follow a batch, after the optimiser step; rows that are not finite are left out.

        Several processes must call this together, with equally many rows each. All take the joint batch, in order of
        rank, so that their memories stay the same.

        Args:
            features: (B, D) unit rows, those that `forward` was given.
            rows: (B,) int64, see `forward`.

        Raises:
            ValueError: as `forward`.
        """
        memory, rows = self._look_up(features, rows)
        features, rows = _joint(full_precision(features.detach())), _joint(rows)
        if isinstance(memory, InstanceMemory):
            memory.update(features, rows, self.config.momentum)
        else:
            memory.update(features, self.labels[rows], self.config.momentum, hard=self.config.update == "hard")

    def memory_state(self) -> dict[str, Tensor]:
        """A copy of all that `rebuild` made and `update` moved, as tensors; empty before the first `rebuild`."""
        if self.memory is None:
            return {}
        state = {"labels": self.labels, "camids": self.camids}
        if isinstance(self.memory, InstanceMemory):
            state |= {"instances": self.memory.features, "classes": self.memory.classes}
        else:
            state |= {"centroids": self.memory.centroids}
        if self.cameras is not None:
            state |= {f"camera_{name}": values for name, values in vars(self.cameras).items()}
        return {name: values.clone() for name, values in state.items()}

    def load_memory(self, state: Mapping[str, Tensor], device: torch.device | str | None = None) -> None:
        """Go on from what `memory_state` returned.

        Args:
            state: the tensors, of a criterion of the same method.
            device: where the memories are to be; None: where the tensors are.

        Raises:
            ValueError: the state of another method.
        """
        if not state:
            self.memory = self.cameras = None
            return
        expected, got = _STATE[self.config.method], set(state)
        if got != expected:
            wanted, found = ", ".join(sorted(expected)), ", ".join(sorted(got))
            raise ValueError(f"memory: expected {wanted} for method {self.config.method!r}, got {found}")
        own = {name: values.to(device or values.device, copy=True) for name, values in state.items()}
        self.labels, self.camids = own["labels"], own["camids"]
        if self.config.method == "self-paced":
            self.memory = InstanceMemory(own["instances"], own["classes"])
        else:
            self.memory = ClusterMemory(own["centroids"])
        if self.config.method == "caccl":
            self.cameras = CameraCentres(own["camera_centres"], own["camera_labels"], own["camera_camids"])

    def _look_up(self, features: Tensor, rows: Tensor) -> tuple[ClusterMemory | InstanceMemory, Tensor]:
        """The memory, and the rows on its device, when both fit the features."""
        if self.memory is None:
            raise ValueError("memory: expected rebuild() or load_memory() first")
        held = self.memory.features if isinstance(self.memory, InstanceMemory) else self.memory.centroids
        if features.shape != (len(rows), held.shape[1]):
            raise ValueError(f"features: expected shape {(len(rows), held.shape[1])}, got {tuple(features.shape)}")
        rows = rows.to(held.device)
        if ((rows < 0) | (rows >= len(self.labels))).any():
            raise ValueError(f"rows: expected 0 to {len(self.labels) - 1}, got {int(rows.min())} to {int(rows.max())}")
        outliers = rows[self.labels[rows] == OUTLIER]
        if len(outliers):
            raise ValueError(f"rows: expected images in a cluster, got {int(outliers[0])}, an outlier")
        return self.memory, rows


def _full(features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types, float32 at least."""
    dtype = torch.promote_types(full_precision(features).dtype, known.dtype)
    return features.to(dtype), known.to(dtype)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """A mean over the batch that is zero without any."""
    return functional.cross_entropy(logits, targets, reduction="sum") / max(len(logits), 1)


def _joint(own: Tensor) -> Tensor:
    """The rows of all processes, in order of rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return own
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)
