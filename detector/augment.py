"""Geometry and colour of training samples; boxes, identities and teacher rows follow the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from detector.losses import IGNORE_LABEL
from detector.model import JDE

PAD_VALUE = JDE.pad_value
"""Grey around a picture, unless the network pads with another."""
MIN_VISIBLE = 0.3
"""A person less visible than this after cropping is a region to be ignored."""
MIN_SIDE = 4.0
"""Boxes with a shorter side, in pixels, are regions to be ignored."""


@dataclass(frozen=True)
class Augmentation:
    """How samples are varied; every range is drawn from evenly.

    Wang et al. (ECCV 2020): `mosaic=0, scale=(0.5, 1.2), hue=0, saturation=0.5, value=0.5, grey=0`, the rest as here.
    """

    mosaic: float = 0.5
    """Share of samples made of four images."""
    rotation: float = 5.0
    """Largest turn, in degrees, either way."""
    scale: tuple[float, float] = (0.5, 1.25)
    """Smallest and largest size, as a share of what fits the canvas."""
    shear: float = 2.0
    """Largest shear along either axis, in degrees."""
    shift: float = 0.1
    """Largest shift, as a share of the canvas, along either axis."""
    hue: float = 0.02
    """Largest change of hue, as a share of it."""
    saturation: float = 0.4
    """Largest change of saturation, as a share of it."""
    value: float = 0.4
    """Largest change of brightness, as a share of it."""
    grey: float = 0.1
    """Share of samples without colour."""
    flip: float = 0.5
    """Share of samples that are mirrored."""

    def __post_init__(self) -> None:
        for name in ("mosaic", "grey", "flip", "hue", "saturation", "value"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        for name, limit in (("rotation", 180), ("shear", 45), ("shift", 1)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}: expected a number in [0, {limit}], got {getattr(self, name)}")
        if not 0 < self.scale[0] <= self.scale[1] < np.inf:
            raise ValueError(f"scale: expected two positive numbers, the smaller first, got {self.scale}")


DEFAULT = Augmentation()


@dataclass(frozen=True)
class Labelled:
    """An image with what is known of the people in it.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        boxes: (G, 4) float32 xyxy in its pixels.
        tags: (G, 2) int64 label (−1: region to be ignored) and identity (−1: unknown).
        teacher: (G, T) float16 teacher embeddings.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    tags: NDArray[np.int64]
    teacher: NDArray[np.float16]


def affine(
    sample: Labelled,
    size: tuple[int, int],
    rng: np.random.Generator,
    ranges: Augmentation = DEFAULT,
    pad_value: int = PAD_VALUE,
) -> Labelled:
    """Turned, sheared, scaled and shifted on a grey canvas of (width, height)."""
    height, width = sample.image.shape[:2]
    scale = rng.uniform(*ranges.scale) * min(size[0] / width, size[1] / height)
    angle = np.deg2rad(rng.uniform(-ranges.rotation, ranges.rotation))
    shear = np.tan(np.deg2rad(rng.uniform(-ranges.shear, ranges.shear, 2)))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[1, shear[0]], [shear[1], 1]]) @ np.array([[cos, -sin], [sin, cos]])
    centre = np.array(size) * (0.5 + rng.uniform(-ranges.shift, ranges.shift, 2))
    offset = centre - linear @ [width / 2, height / 2]
    matrix = np.concatenate((linear, offset[:, None]), axis=1)
    return _warp(sample, matrix, (0, 0, *size), canvas(None, size, pad_value), pad_value)


def mosaic(
    samples: Sequence[Labelled], size: tuple[int, int], rng: np.random.Generator, pad_value: int = PAD_VALUE
) -> Labelled:
    """Four images around a random centre, each scaled on its own (Bochkovskiy et al., "YOLOv4", arXiv:2004.10934)."""
    right, bottom = size
    cx, cy = (int(v) for v in rng.uniform(0.3, 0.7, 2) * size)
    windows = ((0, 0, cx, cy), (cx, 0, right, cy), (0, cy, cx, bottom), (cx, cy, right, bottom))
    pixels = canvas(None, size, pad_value)
    parts = []
    for sample, window in zip(samples, windows, strict=True):
        x1, y1, x2, y2 = window
        height, width = sample.image.shape[:2]
        fit = max((x2 - x1) / width, (y2 - y1) / height)
        scale = fit * rng.uniform(0.7, 1.4)
        spare = np.array([x2 - x1 - scale * width, y2 - y1 - scale * height])
        offset = np.array([x1, y1]) + spare * rng.uniform(0, 1, 2)
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        parts.append(_warp(sample, matrix, window, pixels, pad_value))
        pixels = parts[-1].image
    return Labelled(
        pixels,
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.tags for p in parts]),
        np.concatenate([p.teacher for p in parts]),
    )


def canvas(ground: Labelled | None, size: tuple[int, int], pad_value: int = PAD_VALUE) -> NDArray[np.uint8]:
    """A (width, height) of grey, or of an image blurred until nobody in it can be made out."""
    if ground is None:
        return np.full((size[1], size[0], 3), pad_value, np.uint8)
    blurred = cv2.resize(cv2.resize(ground.image, (6, 6), interpolation=cv2.INTER_AREA), size)
    return np.asarray(blurred, np.uint8)


def paste_crops(
    pixels: NDArray[np.uint8], crops: Sequence[Labelled], rng: np.random.Generator, ranges: Augmentation = DEFAULT
) -> Labelled:
    """Person crops side by side in a grid of cells on a canvas, each at 0.6 to 1.8 times its size."""
    size = np.array(pixels.shape[1::-1])
    pixels = pixels.copy()
    columns = min(int(np.ceil(np.sqrt(2.5 * len(crops) * size[0] / size[1]))), len(crops))
    rows = -(-len(crops) // columns)
    cell = size / (columns, rows)
    boxes = np.zeros((len(crops), 4), np.float32)
    for i, crop in enumerate(crops):
        height, width = crop.image.shape[:2]
        scale = min(rng.uniform(0.6, 1.8), cell[0] / width, cell[1] / height)
        new = np.maximum(np.array([width, height]) * scale, 2).astype(int)
        corner = (np.array([i % columns, i // columns]) * cell + rng.uniform(0, 1, 2) * (cell - new)).astype(int)
        patch = np.asarray(cv2.resize(crop.image, (int(new[0]), int(new[1]))), np.uint8)
        if rng.random() < ranges.flip:
            patch = patch[:, ::-1]
        x, y = np.clip(corner, 0, size - new)
        pixels[y : y + new[1], x : x + new[0]] = _jitter(patch, rng, ranges)
        boxes[i] = (x, y, x + new[0], y + new[1])
    tags, teacher = np.concatenate([c.tags for c in crops]), np.concatenate([c.teacher for c in crops])
    return Labelled(pixels, boxes, tags, teacher)


def finish(sample: Labelled, rng: np.random.Generator, ranges: Augmentation = DEFAULT, *, flip: bool) -> Labelled:
    """Random horizontal flip, then colour."""
    image, boxes = sample.image, sample.boxes
    if flip and rng.random() < ranges.flip:
        image = image[:, ::-1]
        boxes = boxes.copy()
        boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return replace(sample, image=_jitter(image, rng, ranges), boxes=boxes)


def _jitter(image: NDArray[np.uint8], rng: np.random.Generator, ranges: Augmentation) -> NDArray[np.uint8]:
    """Another hue, saturation and brightness; some images without colour."""
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
    gain = 1 + rng.uniform(-1, 1, 3) * (ranges.hue, ranges.saturation, ranges.value)
    if rng.random() < ranges.grey:
        gain[1] = 0
    ramp = np.arange(256)
    tables = (
        (ramp * gain[0] % 180).astype(np.uint8),
        np.clip(ramp * gain[1], 0, 255).astype(np.uint8),
        np.clip(ramp * gain[2], 0, 255).astype(np.uint8),
    )
    channels = [cv2.LUT(channel, table) for channel, table in zip(cv2.split(hsv), tables, strict=True)]
    return np.asarray(cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2BGR), np.uint8)


def _warp(
    sample: Labelled,
    matrix: NDArray[np.float64],
    window: tuple[int, int, int, int],
    pixels: NDArray[np.uint8],
    pad_value: int,
) -> Labelled:
    """Draw an image through a 2x3 affine matrix into a window of a canvas; boxes are cut at the window."""
    x1, y1, x2, y2 = window
    local = matrix.copy()
    local[:, 2] -= (x1, y1)
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    image = sample.image
    if scale < 0.5:  # bilinear sampling skips pixels beyond a factor of two: shrink by area first
        shrink = int(1 / scale)
        height, width = image.shape[:2]
        fewer = (max(width // shrink, 1), max(height // shrink, 1))
        image = np.asarray(cv2.resize(image, fewer, interpolation=cv2.INTER_AREA), np.uint8)
        local[:, :2] *= (width / image.shape[1], height / image.shape[0])
    # The matrix speaks of pixel edges, as boxes do; OpenCV's of pixel centres.
    local[:, 2] += local[:, :2].sum(axis=1) / 2 - 0.5
    part = cv2.warpAffine(image, local, (x2 - x1, y2 - y1), borderValue=(pad_value,) * 3)
    pixels = pixels.copy()
    pixels[y1:y2, x1:x2] = part

    corners = sample.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    low, high = corners.min(1), corners.max(1)
    # A turned box's hull is larger than the person: halve what the turn added.
    upright = scale * (sample.boxes[:, 2:] - sample.boxes[:, :2])
    surplus = (high - low - upright).clip(min=0) / 4
    low, high = low + surplus, high - surplus
    full = (high - low).prod(1)
    low, high = np.clip(low, (x1, y1), (x2, y2)), np.clip(high, (x1, y1), (x2, y2))
    side = (high - low).clip(min=0)
    visible = side.prod(1) / np.maximum(full, 1e-6)
    tags = sample.tags.copy()
    tags[(visible < MIN_VISIBLE) | (side.min(1) < MIN_SIDE), 0] = IGNORE_LABEL
    inside = side.min(1) >= 1
    boxes = np.concatenate((low, high), axis=1).astype(np.float32)
    return Labelled(pixels, boxes[inside], tags[inside], sample.teacher[inside])
