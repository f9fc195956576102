"""Augmented samples for joint training, and the batches they are drawn in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.augment import DEFAULT, PAD_VALUE, Augmentation, Labelled, affine, canvas, finish, mosaic, paste_crops
from detector.layouts import open_source
from detector.source import CROPS_PER_CANVAS, Source, number_identities, read_image

__all__ = [
    "BatchPlan",
    "Draw",
    "Source",
    "TrainingSet",
    "collate",
    "number_identities",
    "open_source",
    "read_image",
]


@dataclass(frozen=True)
class Draw:
    """One sample to make: everything its pixels depend on."""

    epoch: int
    position: int
    size: tuple[int, int]
    """(width, height) in pixels."""


class TrainingSet(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Augmented samples, each a pure function of (seed, epoch, position): training can resume anywhere.

    Args:
        sources: where images come from.
        seed: of everything drawn.
        augmentation: how samples are varied.
        pad_value: grey around pictures, the network's.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        augmentation: Augmentation = DEFAULT,
        pad_value: int = PAD_VALUE,
    ) -> None:
        self.sources = list(sources)
        self.seed = seed
        self.augmentation = augmentation
        self.pad_value = pad_value
        self._planned = -1

    def plan(self, epoch: int) -> NDArray[np.int64]:
        """The (source, row) pairs of an epoch in the order shown."""
        if self._planned != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            pairs = []
            for i, source in enumerate(self.sources):
                count = max(round(source.weight * source.length), 1)
                rows = np.concatenate([rng.permutation(source.length) for _ in range(-(-count // source.length))])
                pairs.append(np.stack((np.full(count, i), rows[:count]), axis=1))
            self._planned, self._plan = epoch, rng.permutation(np.concatenate(pairs))
            crops = np.array([source.crops for source in self.sources])
            self._whole = np.flatnonzero(~crops[self._plan[:, 0]])
        return self._plan

    def path(self, epoch: int, position: int) -> Path:
        """The image a sample is made from: of a mosaic the first; of pasted crops, the folder they are from."""
        plan = self.plan(epoch)
        index, row = plan[position % len(plan)].tolist()
        source: Source = self.sources[index]
        return source.images[0].parent if source.crops else source.images[row]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """One image (3, H, W) uint8 with its targets.

        Targets: `boxes` (G, 4) float32 xyxy in its pixels; `labels` (G,) int64, 0 person, −1 region to be ignored;
        `ids` (G,) int64, −1 unknown; `teacher` (G, T) float32; `draw` (2,) int64 epoch and position: what is random
        in a loss can be seeded by it, and is then the same however a batch is split.

        Raises:
            ValueError: a file cannot be read as an image.
        """
        plan = self.plan(draw.epoch)
        index, row = plan[draw.position % len(plan)]
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position, 1])
        source = self.sources[index]
        if source.crops:
            ground = self._another(rng) if rng.random() < 0.5 else None
            count = min(int(rng.integers(3, CROPS_PER_CANVAS + 1)), len(source.images))
            chosen = rng.choice(len(source.images), count, replace=False)
            crops = [self._read(index, i) for i in chosen]
            sample = paste_crops(canvas(ground, draw.size, self.pad_value), crops, rng, self.augmentation)
        elif rng.random() < self.augmentation.mosaic:
            others = [found for _ in range(3) if (found := self._another(rng))]
            sample = mosaic([self._read(index, row), *others], draw.size, rng, self.pad_value)
        else:
            sample = affine(self._read(index, row), draw.size, rng, self.augmentation, self.pad_value)
        image, target = to_tensors(finish(sample, rng, self.augmentation, flip=not source.crops))
        return image, target | {"draw": torch.tensor([draw.epoch, draw.position])}

    def _another(self, rng: np.random.Generator) -> Labelled | None:
        """Some image of the epoch, as often as its source is to be shown; None where there are crops alone."""
        return self._read(*self._plan[rng.choice(self._whole)]) if len(self._whole) else None

    def _read(self, index: int, row: int) -> Labelled:
        source = self.sources[index]
        image, rows = read_image(source.images[row]), source.labels[row]
        height, width = image.shape[:2]
        centre, half = rows[:, 2:4], rows[:, 4:6] / 2
        boxes = np.concatenate((centre - half, centre + half), axis=1) * [width, height, width, height]
        teacher = source.teacher[row] if source.teacher else np.zeros((len(rows), 0), np.float16)
        return Labelled(image, boxes.astype(np.float32), rows[:, :2].astype(np.int64), teacher)


def to_tensors(sample: Labelled) -> tuple[Tensor, dict[str, Tensor]]:
    """A sample as the model and the criterion take it."""
    image = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
    return image, {
        "boxes": torch.from_numpy(sample.boxes),
        "labels": torch.from_numpy(sample.tags[:, 0].copy()),
        "ids": torch.from_numpy(sample.tags[:, 1].copy()),
        "teacher": torch.from_numpy(sample.teacher.astype(np.float32)),
    }


def collate(samples: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Stack the images (B, 3, H, W), keep the targets a list."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


@dataclass(frozen=True)
class BatchPlan:
    """Batches of draws from a step on, endless; canvas sizes drawn a batch at a time (multi-scale training).

    Several processes that train together share each batch: every one has a plan of its own rank, and the joint batches
    are the same however many there are.
    """

    samples: int
    """Samples in an epoch."""
    batch_size: int
    """Draws in a batch, of all processes together."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of the canvases to draw from."""
    seed: int
    """Of the sizes."""
    start: int
    """First step to yield."""
    rank: int = 0
    """Which process this is, from 0."""
    world: int = 1
    """How many processes there are."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: expected 0 to {self.world - 1}, got {self.rank}")
        if self.batch_size < 1 or self.batch_size % self.world:
            raise ValueError(f"batch_size: expected a multiple of {self.world} processes, got {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return max(self.samples // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.batch_size // self.world
        step = self.start
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            size = self.sizes[np.random.default_rng([self.seed, step, 2]).integers(len(self.sizes))]
            first = within * self.batch_size + self.rank * share
            yield [Draw(epoch, first + i, size) for i in range(share)]
            step += 1
