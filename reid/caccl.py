"""Training without labels: every epoch all images are clustered anew, and the clusters stand for people.

CACCL, and the ablations of it that `reid.contrast.ContrastConfig` names: features of all images, their Jaccard
distances (`reid/jaccard.py`), clusters as pseudo-labels (`reid/pseudo_labels.py`), memories made from them, then steps
of contrast with the memories (`reid/contrast.py`). True identities are reported on where they are known, and nothing
that is learned depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.data import Dataset

from reid.contrast import ContrastConfig, ContrastCriterion
from reid.datasets import Crops
from reid.encoders import Encoder
from reid.extraction import EncoderDescriber, ExtractionConfig, extract_features
from reid.jaccard import JaccardConfig, jaccard_graph
from reid.optimisation import average_statistics
from reid.pseudo_labels import ClusterConfig, ClusterReport, advice, centre_cameras, cluster_graph, describe_labels
from reid.samplers import Batches, Draw, IdentitySampler
from reid.training import AUTOCAST, Precision, TrainConfig, chunks
from reid.transforms import AugmentConfig, augment


class NoClustersError(ValueError):
    """There are too few clusters to learn from; the message says what to change."""


class UnlabelledCrops(Dataset[tuple[Tensor, int]]):
    """Augmented crops with their rows, drawn by `reid.samplers.Draw`.

    Args:
        crops: the images.
        size: height and width to make of them.
        augmentation: how they are varied.
        seed: of what is random in that.
    """

    def __init__(self, crops: Crops, size: tuple[int, int], augmentation: AugmentConfig, seed: int) -> None:
        self.crops, self.size, self.augmentation, self.seed = crops, size, augmentation, seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.crops)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        """An image (3, H, W), normalised, and its row.

        Raises:
            ValueError: it cannot be read.
        """
        image = np.asarray(self.crops.read(draw.row)[..., ::-1])
        return augment(image, self.size, draw.rng(self.seed), self.augmentation), draw.row


class ContrastStep(nn.Module):
    """Everything that is trained without labels, as one module: inputs and rows in, the loss and its terms out.

    Args:
        encoder: inputs (B, ...) -> features (B, D) of any length: an encoder of crops, or an embedding head.
        criterion: contrast with its memories.
        precision: arithmetic of the encoder; the losses are always fp32.
        bn_chunk: inputs whose batch statistics are taken by themselves; 0: all.
        compile: run the encoder by torch.compile.
    """

    def __init__(
        self,
        encoder: nn.Module,
        criterion: ContrastCriterion,
        precision: Precision = "fp32",
        bn_chunk: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.criterion, self.bn_chunk = encoder, criterion, bn_chunk
        self._dtype = AUTOCAST[precision]
        self._describe: Callable[[Tensor], Tensor] = torch.compile(encoder.forward) if compile else encoder.forward

    def forward(self, inputs: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Learn from a batch.

        Args:
            inputs: (B, ...) as the encoder takes them.
            rows: (B,) which of the images that the memories were made from they show.

        Returns:
            The loss; its terms by name; and the features (B, D), unit rows without a graph, by which the memories are
            to follow once the optimiser has made its step: `criterion.update(features, rows)`.
        """
        with torch.autocast(inputs.device.type, self._dtype, enabled=self._dtype is not None):
            features = torch.cat([self._describe(chunk) for chunk in chunks(inputs, self.bn_chunk)])
        features = functional.normalize(features.float(), dim=1)
        terms = self.criterion(features, rows)
        return self.criterion.total(terms), terms, features.detach()


def build_contrast_step(encoder: Encoder, contrast: ContrastConfig, config: TrainConfig) -> ContrastStep:
    """Put an encoder of crops and the contrast together.

    Raises:
        ValueError: settings of training that only make sense with labels.
    """
    for name, usual in (("extra", None), ("adversarial", 0.0), ("sampler", "identities")):
        if getattr(config, name) != usual:
            raise ValueError(f"train.{name}: expected {usual} without labels, got {getattr(config, name)}")
    return ContrastStep(encoder, ContrastCriterion(contrast), config.precision, config.bn_chunk, config.compile)


class Relabelling:
    """The pseudo-labels of an epoch, the memories that belong to them, and the batches that they make up.

    Several processes describe a part of the images each; the first one clusters for all.

    Args:
        crops: the images; their identities are for the report alone.
        criterion: whose memories to make.
        jaccard: distances of images.
        clusters: how they are clustered.
        config: how to train.
        device: where to compute.
        workers: threads that read images.
        rank: which process this is.
        world: how many there are.
        say: takes each remark, once.

    Attributes:
        labels: (N,) the clusters of this epoch, −1 for outliers; None before the first.

    Raises:
        ValueError: fewer than two images.
    """

    def __init__(
        self,
        crops: Crops,
        criterion: ContrastCriterion,
        jaccard: JaccardConfig,
        clusters: ClusterConfig,
        config: TrainConfig,
        device: str | torch.device = "cpu",
        workers: int = 2,
        rank: int = 0,
        world: int = 1,
        say: Callable[[str], object] = print,
    ) -> None:
        if len(crops) < 2:
            raise ValueError(f"train: expected at least two images to tell apart, got {len(crops)}")
        self.crops, self.criterion, self.jaccard, self.clusters = crops, criterion, jaccard, clusters
        self.config, self.device, self.rank, self.world = config, torch.device(device), rank, world
        self.extraction = ExtractionConfig(workers=max(workers, 2))
        self.labels: NDArray[np.int64] | None = None
        self._camids = torch.from_numpy(crops.camids)
        self._say, self._said = say, set[str]()
        if len(crops) <= jaccard.k1:
            self._note(f"{len(crops)} images are no more than jaccard.k1={jaccard.k1}: all are neighbours of all")
        self._across_cameras = criterion.config.method == "caccl" and len(np.unique(crops.camids)) > 1
        if criterion.config.method == "caccl" and not self._across_cameras:
            self._note("one camera only: the camera term is off")

    def renew(self, encoder: Encoder) -> ClusterReport:
        """Cluster the images by their features of now, and make the memories. All processes must call it.

        Args:
            encoder: what is trained; its mode is left as it was.

        Returns:
            What came out, also where the labels of the epoch before were kept.

        Raises:
            ValueError: an image that cannot be read, or whose feature is not finite.
            NoClustersError: fewer than two clusters, and no labels that may be kept.
        """
        features = self._describe(encoder)
        labels = self._cluster(features)
        report = describe_labels(labels, self.crops.pids)
        problem = advice(report, self.clusters)
        if report.clusters >= 2:
            self.labels = labels
        elif self.labels is None or self.config.no_clusters == "stop":
            raise NoClustersError(problem)
        if problem:
            kept = "" if report.clusters >= 2 else "; the labels of the epoch before are kept"
            self._note(f"{problem}{kept}")
        self.criterion.rebuild(features, torch.from_numpy(self.labels), self._camids)
        if self._across_cameras and not self.criterion.shared_clusters:
            self._note("no cluster is seen by several cameras: the camera term is zero; try clusters.centre_cameras")
        return report

    def batches(self, epoch: int, start: int = 0) -> tuple[int, Iterator[list[Draw]]]:
        """Steps of an epoch, and the batches of this process from one of them on, endless.

        Raises:
            ValueError: no labels yet, or a batch that the processes cannot share.
        """
        if self.labels is None:
            raise ValueError("labels: expected those of an epoch, got none: renew first")
        each, found = self.config.images_per_identity, int(self.labels.max()) + 1
        wanted = self.config.batch_size // each
        people = wanted
        if found < wanted:
            people = found - found % (self.world // math.gcd(each, self.world))  # that the processes can share
            if not people:
                raise ValueError(f"clusters: {found} are too few for a batch that {self.world} processes can share")
            self._note("fewer clusters than people in a batch: batches are as small as that")
        sampler = IdentitySampler(self.labels, self.crops.camids, people, each, self.config.seed)
        steps = self.config.steps_per_epoch or sampler.steps_per_epoch
        passes = -(-steps // sampler.steps_per_epoch)
        first = epoch * passes * sampler.steps_per_epoch + start
        return steps, iter(Batches(sampler, first, self.rank, self.world))

    def state(self) -> dict[str, Tensor]:
        """Labels and memories, for a checkpoint; empty before the first epoch."""
        return {} if self.labels is None else self.criterion.memory_state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        if state:
            self.criterion.load_memory(state, self.device)
            self.labels = self.criterion.labels.cpu().numpy()

    def _describe(self, encoder: Encoder) -> Tensor:
        """Unit rows (N, D) on the device, the same in all processes."""
        average_statistics(encoder)
        parts = np.array_split(np.arange(len(self.crops)), self.world)
        training = encoder.training
        describer = EncoderDescriber(encoder.eval(), self.device)
        progress = "describing" if self.rank == 0 else ""
        own = extract_features(describer, self.crops.select(parts[self.rank]), self.extraction, progress)
        encoder.train(training)
        features = torch.from_numpy(own).to(self.device)
        if self.world == 1:
            return features
        gathered = [features.new_empty(len(part), encoder.embedding_dim) for part in parts]
        for rank, part in enumerate(gathered):
            if rank == self.rank and len(part):
                part.copy_(features)
            distributed.broadcast(part, rank)
        return torch.cat(gathered)

    def _cluster(self, features: Tensor) -> NDArray[np.int64]:
        """(N,) clusters found by the first process."""
        labels = torch.zeros(len(features), dtype=torch.int64)
        if self.rank == 0:
            reach = self.clusters.max_distance
            compared = centre_cameras(features, self._camids) if self.clusters.centre_cameras else features
            graph = jaccard_graph(compared, self.jaccard, max_distance=reach, progress="comparing")
            labels = torch.from_numpy(cluster_graph(graph, self.clusters))
        if self.world > 1:
            labels = labels.to(self.device)
            distributed.broadcast(labels, 0)
        found: NDArray[np.int64] = labels.cpu().numpy()
        return found

    def _note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(f"note: {text}")
