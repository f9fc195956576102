"""Pseudo-identities of people in unlabelled video: clusters of tracklets, and whether learning from them helps.

What `reid/caccl.py` does with crops: Jaccard distance, clusters, labels; here of boxes that come in tracklets, which
limit what a cluster may be (`reid/constraints.py`) and tell how good embeddings are without any label
(`reid/separation.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.constraints import ConstraintConfig, constrain
from reid.contrast import ContrastConfig
from reid.jaccard import JaccardConfig, jaccard_graph
from reid.pseudo_labels import ClusterConfig, advice, centre_cameras, cluster_graph, describe_labels
from reid.samplers import IdentitySampler
from reid.separation import agreement, separation
from reid.tracklets import IntArray, Tracklets, sample


class TooFewIdentitiesError(ValueError):
    """There are fewer than two people to tell apart."""


@dataclass(frozen=True)
class TrackletJaccardConfig(JaccardConfig):
    """For a few boxes of each tracklet, and people who have few tracklets."""

    k1: int = 20
    """Nearest boxes among which reciprocal neighbours are looked for: two or three tracklets' worth."""


@dataclass(frozen=True)
class TrackletClusterConfig(ClusterConfig):
    """For clusters that are joined by their tracklets afterwards."""

    eps: float = 0.4
    """Largest distance of neighbours, above 0 and below 1; not used by `hdbscan`."""


@dataclass(frozen=True)
class TrackletLabels:
    """How tracklets are clustered.

    Attributes:
        sampled: boxes of each tracklet that are clustered, see `reid.tracklets.sample`.
        jaccard: their distances.
        clusters: how these are clustered.
        constraints: how clusters of boxes become clusters of tracklets.
    """

    sampled: int = 8
    jaccard: JaccardConfig = field(default_factory=TrackletJaccardConfig)
    clusters: ClusterConfig = field(default_factory=TrackletClusterConfig)
    constraints: ConstraintConfig = field(default_factory=ConstraintConfig)

    def find(self, features: Tensor, tracklets: Tracklets) -> tuple[IntArray, dict[str, Any]]:
        """Cluster tracklets by the features (N, D) of their boxes.

        Returns:
            (N,) labels from 0, −1 for outliers, and figures of them; under `boxes_alone` those of the clusters that the
            sampled boxes made before tracklets had a say.

        Raises:
            TooFewIdentitiesError: fewer than two clusters; the message says what to change.
        """
        rows = sample(tracklets, self.sampled)
        compared = features
        if self.clusters.centre_cameras:
            compared = centre_cameras(features, torch.from_numpy(tracklets.camids))
        graph = jaccard_graph(compared[rows], self.jaccard, max_distance=self.clusters.max_distance)
        found = cluster_graph(graph, self.clusters)
        labels = constrain(found, graph, tracklets, self.constraints, rows)
        alone, together = describe_labels(found), describe_labels(labels)
        if together.clusters < 2:
            reason = advice(alone, self.clusters) or "all tracklets are joined"
            raise TooFewIdentitiesError(f"{together.clusters} pseudo-identities, two are needed at least: {reason}")
        figures: dict[str, Any] = {"boxes_alone": alone.figures() | agreement(found, tracklets[rows]).figures()}
        return labels, figures | agreement(labels, tracklets).figures() | together.figures()

    def limits(self, tracklets: Tracklets, contrast: ContrastConfig) -> list[str]:
        """What the footage does not allow, a line each.

        Raises:
            TooFewIdentitiesError: there is one tracklet only.
        """
        if len(tracklets.sizes) < 2:
            raise TooFewIdentitiesError("one tracklet only: at least two people are needed, give more footage")
        notes = []
        if contrast.method == "caccl" and len(np.unique(tracklets.camids)) < 2:
            notes.append("one camera only: the camera term is off")
        boxes = len(sample(tracklets, self.sampled))
        if boxes <= self.jaccard.k1:
            notes.append(f"{boxes} boxes to cluster are no more than jaccard.k1={self.jaccard.k1}: all are neighbours")
        if not len(tracklets.boxes_together()):
            notes.append("no two people are seen at once: nothing tells which epoch is good, the last one is kept")
        return notes


def separations(features: Tensor, tracklets: Tracklets, held: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """How well features (N, D) tell tracklets apart: those that are `held` out (N,), and all; see `Separation`."""
    described = features.cpu().numpy()
    return {
        "held": separation(described, tracklets, measured=held).figures(),
        "all": separation(described, tracklets).figures(),
    }


def better(row: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
    """Whether one epoch's `separations` are better than another's; also where there is nothing to tell by.

    Those held out decide, or all where none are.
    """
    part = "held" if row["held"]["auc"] is not None else "all"
    now, before = row[part]["auc"], than[part]["auc"]
    return now is None or bool(now > before)


def identity_batches(
    labels: IntArray, camids: IntArray, people: int, images: int, steps: int, epoch: int, seed: int
) -> Iterator[IntArray]:
    """Rows of the labels, `images` of each of `people` pseudo-identities, or of all where there are fewer.

    There are `steps` batches, or more where these have no room for every pseudo-identity once. Those with many boxes
    come several times, so that others may be left to a later epoch.
    """
    count = int(labels.max()) + 1
    people = min(people, count)
    steps = max(steps, -(-count // people))
    sampler = IdentitySampler(labels, camids, people, images, seed)
    passes = -(-steps // sampler.steps_per_epoch)
    yield from np.concatenate([sampler.epoch(epoch * passes + i) for i in range(passes)])[:steps]


def leave_out(labels: IntArray, held: NDArray[np.bool_]) -> IntArray:
    """Labels (N,) to learn from, numbered anew: boxes that are `held` out (N,) become outliers.

    Raises:
        TooFewIdentitiesError: fewer than two clusters are left.
    """
    left = np.where(held, -1, labels)
    inside = left >= 0
    names, left[inside] = np.unique(left[inside], return_inverse=True)
    if len(names) < 2:
        reason = "hold out less, or give more footage"
        raise TooFewIdentitiesError(f"fewer than two pseudo-identities are left to learn from: {reason}")
    return np.asarray(left, np.int64)
