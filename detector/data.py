"""Labelled images for joint training, read from where they lie.

A source is written `LAYOUT:PATH[,LABELS][@WEIGHT]`; the weight says how often an epoch shows each of its images.

- `yolo`: a folder of images; labels in LABELS, or in the folder whose name has `labels` in place of the last
  `images`. One text file an image, rows `class cx cy w h` normalised; class 0 is a person, others are left out.
- `jde`: the same with `labels_with_ids` and rows `class identity cx cy w h` (Wang et al., ECCV 2020); identity −1 is
  unknown, class −1 marks a region to be ignored.
- `crops`: a folder of person crops named `PID_cCAM...` (Market-1501's names), pasted on canvases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.augment import Labelled, affine, canvas, finish, mosaic, paste_crops
from detector.losses import IGNORE_LABEL, NO_IDENTITY

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
CROPS_PER_CANVAS = 10
PERSON_CLASS = 0
MAX_COORDINATE = 3.0
"""Normalised boxes may leave the image; beyond this they must be pixels."""


@dataclass
class Source:
    """Images of one layout with their labels.

    Attributes:
        name: the text it was opened with.
        weight: showings of each image in an epoch.
        images: paths of the images.
        labels: per image (n, 6) float64: class, identity, cx, cy, w, h normalised.
        crops: True where an image is one person, pasted on canvases, three to ten at a time.
        teacher: per image (n, T) float16 teacher embeddings, unit rows or zero; empty where there is no teacher.
    """

    name: str
    weight: float
    images: list[Path]
    labels: list[NDArray[np.float64]]
    crops: bool = False
    teacher: list[NDArray[np.float16]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Samples an epoch of weight one draws."""
        return -(-len(self.images) // CROPS_PER_CANVAS) if self.crops else len(self.images)


def open_source(text: str) -> Source:
    """Open `LAYOUT:PATH[,LABELS][@WEIGHT]` and read every label.

    Raises:
        ValueError: the text, a folder or a label row is wrong; the row is named by path and line.
    """
    layout, separator, rest = text.partition(":")
    if layout not in ("yolo", "jde", "crops") or not separator:
        raise ValueError(f"data: expected yolo:PATH, jde:PATH or crops:PATH, got {text!r}")
    location, at, weight_text = rest.rpartition("@")
    if not at or "/" in weight_text:  # no weight, or a folder with an @ in its name
        location, weight_text = rest, "1"
    folder_text, _, labels_text = location.partition(",")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < np.inf:
        raise ValueError(f"data: expected a positive number after @, got {text!r}")
    folder = Path(folder_text)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (from data source {text!r})")
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"{folder}: holds no image (from data source {text!r})")
    if layout == "crops":
        source = Source(text, weight, *_read_crops(images), crops=True)
        if not source.images:
            raise ValueError(f"{folder}: holds no crop of a numbered person (from data source {text!r})")
        return source
    label_folder = Path(labels_text) if labels_text else _label_folder(folder, layout)
    if not label_folder.is_dir():
        raise ValueError(f"{label_folder}: no such folder of labels (from data source {text!r})")
    columns = 5 if layout == "yolo" else 6
    labels = [_read_labels(label_folder / f"{image.stem}.txt", columns) for image in images]
    return Source(text, weight, images, labels)


def _label_folder(images: Path, layout: str) -> Path:
    parts = list(images.parts)
    if "images" not in parts:
        raise ValueError(f"{images}: give the labels as PATH,LABELS: the path has no folder called 'images'")
    last = len(parts) - 1 - parts[::-1].index("images")
    parts[last] = "labels" if layout == "yolo" else "labels_with_ids"
    return Path(*parts)


def _read_crops(images: Sequence[Path]) -> tuple[list[Path], list[NDArray[np.float64]]]:
    kept, labels = [], []
    for image in images:
        try:
            pid = int(image.name.split("_")[0])
        except ValueError:
            raise ValueError(f"{image}: expected a name that starts with a person number, like 0002_c1s1.jpg") from None
        if pid >= 0:
            kept.append(image)
            labels.append(np.array([[PERSON_CLASS, pid, 0.5, 0.5, 1, 1]], np.float64))
    return kept, labels


def _read_labels(path: Path, columns: int) -> NDArray[np.float64]:
    """Rows of one label file as (n, 6); a missing file means no person."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"{path}:{number}: expected {columns} numbers, got {line!r}") from None
        if len(values) != columns:
            raise ValueError(f"{path}:{number}: expected {columns} numbers, got {len(values)}")
        if not np.isfinite(values).all():
            raise ValueError(f"{path}:{number}: expected finite numbers, got {line!r}")
        if columns == 5:
            values.insert(1, NO_IDENTITY)
        if values[0] not in (PERSON_CLASS, IGNORE_LABEL):
            continue
        if values[1] != int(values[1]) or values[1] < NO_IDENTITY:
            raise ValueError(f"{path}:{number}: expected a whole identity, −1 or more, got {values[1]}")
        if max(map(abs, values[2:])) > MAX_COORDINATE:
            raise ValueError(f"{path}:{number}: expected coordinates divided by the image's size, got {line!r}")
        if min(values[4:]) > 0:
            rows.append(values)
    return np.array(rows, np.float64).reshape(-1, 6)


def number_identities(sources: Sequence[Source]) -> int:
    """Renumber the identities of all sources to 0, 1, 2, …, none shared between sources; returns their number."""
    count = 0
    for source in sources:
        known = np.unique(np.concatenate([rows[:, 1] for rows in source.labels]))
        known = known[known >= 0]
        for rows in source.labels:
            labelled = rows[:, 1] >= 0
            rows[labelled, 1] = count + np.searchsorted(known, rows[labelled, 1])
        count += len(known)
    return count


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR.

    Raises:
        ValueError: the file cannot be read as an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not a readable image")
    return np.asarray(image, np.uint8)


@dataclass(frozen=True)
class Draw:
    """One sample to make: everything its pixels depend on."""

    epoch: int
    position: int
    size: int


class TrainingSet(torch.utils.data.Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Augmented samples, each a pure function of (seed, epoch, position): training can resume anywhere.

    Args:
        sources: where images come from.
        seed: of everything drawn.
        mosaic_probability: share of samples made of four images.
    """

    def __init__(self, sources: Sequence[Source], seed: int, mosaic_probability: float = 0.5) -> None:
        self.sources = list(sources)
        self.seed = seed
        self.mosaic_probability = mosaic_probability
        self.full = [i for i, source in enumerate(self.sources) if not source.crops]
        self._plan: tuple[int, NDArray[np.int64]] = (-1, np.zeros((0, 2), np.int64))

    def plan(self, epoch: int) -> NDArray[np.int64]:
        """The (source, row) pairs of an epoch in the order shown."""
        if self._plan[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            pairs = []
            for i, source in enumerate(self.sources):
                count = max(round(source.weight * source.length), 1)
                rows = np.concatenate([rng.permutation(source.length) for _ in range(-(-count // source.length))])
                pairs.append(np.stack((np.full(count, i), rows[:count]), axis=1))
            self._plan = (epoch, rng.permutation(np.concatenate(pairs)))
        return self._plan[1]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """One image (3, S, S) uint8 with its targets."""
        plan = self.plan(draw.epoch)
        index, row = plan[draw.position % len(plan)]
        rng = np.random.default_rng([self.seed, draw.epoch, draw.position, 1])
        source = self.sources[index]
        if source.crops:
            ground = self._read(rng.choice(self.full), None, rng) if self.full and rng.random() < 0.5 else None
            count = min(int(rng.integers(3, CROPS_PER_CANVAS + 1)), len(source.images))
            chosen = rng.choice(len(source.images), count, replace=False)
            crops = [self._read(index, i, rng) for i in chosen]
            sample = paste_crops(canvas(ground, draw.size), crops, rng)
        elif rng.random() < self.mosaic_probability:
            others = [self._read(rng.choice(self.full), None, rng) for _ in range(3)]
            sample = mosaic([self._read(index, row, rng), *others], draw.size, rng)
        else:
            sample = affine(self._read(index, row, rng), draw.size, rng)
        return to_tensors(finish(sample, rng, flip=not source.crops))

    def _read(self, index: int, row: int | None, rng: np.random.Generator) -> Labelled:
        source = self.sources[index]
        row = int(rng.integers(len(source.images))) if row is None else int(row)
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
    """Stack the images (B, 3, S, S), keep the targets a list."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


@dataclass(frozen=True)
class BatchPlan:
    """Batches of draws from a step on, endless; square sizes drawn a batch at a time (multi-scale training)."""

    samples: int
    """Samples in an epoch."""
    batch_size: int
    """Draws in a batch."""
    sizes: tuple[int, ...]
    """Square input sizes to draw from."""
    seed: int
    """Of the sizes."""
    start: int
    """First step to yield."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return max(self.samples // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            size = int(np.random.default_rng([self.seed, step, 2]).choice(self.sizes))
            first = within * self.batch_size
            yield [Draw(epoch, first + i, size) for i in range(self.batch_size)]
            step += 1
