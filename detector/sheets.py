"""Sheets of pictures with their labels drawn in: what a source holds, and what the network will see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detector.data import Draw, TrainingSet
from detector.source import Source, read_image

TILE = (640, 480)
"""Largest (width, height) of a picture on a sheet, in pixels."""
CAPTION = 26
COLUMNS = 3
LARGE = 80
"""People from this height on, in pixels of a sheet, get a thick frame."""


def contact_sheet(sources: Sequence[Source], path: Path, rng: np.random.Generator, count: int = 12) -> None:
    """Write a PNG with images of all sources in turn and their labels; those with people come first.

    People are framed in the colour of their identity, white where they have none; regions to be ignored are hatched.
    """
    order = []
    for source in sources:
        chosen = rng.permutation(len(source.images))
        peopled = np.array([(source.labels[i][:, 0] >= 0).any() for i in chosen], bool)
        order.append(np.concatenate((chosen[peopled], chosen[~peopled])))
    picks = [
        (s, rows[turn]) for turn in range(count) for s, rows in zip(sources, order, strict=True) if turn < len(rows)
    ]
    tiles = []
    for source, i in picks[:count]:
        image, rows = read_image(source.images[i]), source.labels[i]
        size = np.array(image.shape[1::-1])
        low, high = (rows[:, 2:4] - rows[:, 4:] / 2) * size, (rows[:, 2:4] + rows[:, 4:] / 2) * size
        tiles.append(_tile(image, np.concatenate((low, high), axis=1), rows[:, 0], rows[:, 1], str(source.images[i])))
    _write_sheet(path, tiles)


def training_sheet(data: TrainingSet, path: Path, size: tuple[int, int], epoch: int = 0, count: int = 12) -> None:
    """Write a PNG of an epoch's first samples as the network sees them on a canvas of (width, height)."""
    tiles = []
    for position in range(count):
        image, target = data[Draw(epoch, position, size)]
        tiles.append(_sample_tile(image, target, str(data.path(epoch, position))))
    _write_sheet(path, tiles)


def _sample_tile(image: Tensor, target: dict[str, Tensor], caption: str) -> NDArray[np.uint8]:
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    boxes, labels, identities = (target[key].numpy().astype(np.float64) for key in ("boxes", "labels", "ids"))
    return _tile(pixels, boxes, labels, identities, caption)


def _tile(
    image: NDArray[np.uint8],
    xyxy: NDArray[np.float64],
    labels: NDArray[np.float64],
    identities: NDArray[np.float64],
    caption: str,
) -> NDArray[np.uint8]:
    """A labelled picture with its caption on a tile."""
    height, width = image.shape[:2]
    scale = min(TILE[0] / width, TILE[1] / height)
    fitted = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(image, fitted, interpolation=method), np.uint8)
    boxes = (xyxy * scale).round().astype(int)
    for box in boxes[labels < 0]:
        _hatch(picture, box)
    named = []
    for box, identity in zip(boxes[labels >= 0], identities[labels >= 0].astype(int), strict=True):
        colour = _colour(identity) if identity >= 0 else (255, 255, 255)
        corners = (int(box[0]), int(box[1])), (int(box[2]) - 1, int(box[3]) - 1)
        if box[3] - box[1] >= LARGE:  # the small would vanish behind a thick frame
            cv2.rectangle(picture, *corners, (0, 0, 0), 3)
        cv2.rectangle(picture, *corners, colour, 2 if box[3] - box[1] >= LARGE and identity >= 0 else 1)
        if identity >= 0:
            named.append((str(identity), corners[0], colour))
    for name, (x, y), colour in named:  # over all frames
        (w, h), _ = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
        x, y = min(max(x, 0), fitted[0] - w - 4), min(max(y - h - 5, 0), fitted[1] - h - 5)
        cv2.rectangle(picture, (x, y), (x + w + 3, y + h + 4), colour, -1)
        cv2.putText(picture, name, (x + 2, y + h + 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    tile = np.full((fitted[1] + CAPTION, TILE[0], 3), 32, np.uint8)
    x = (TILE[0] - fitted[0]) // 2
    tile[: fitted[1], x : x + fitted[0]] = picture
    people, regions = int((labels >= 0).sum()), int((labels < 0).sum())
    words = f"{people} people, {regions} ignored  {Path(caption).parent.name}/{Path(caption).name}  {width}x{height}"
    words = words.encode("ascii", "replace").decode()  # all that the font has
    cv2.putText(tile, words, (6, fitted[1] + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230, 230, 230), 1, cv2.LINE_AA)
    return tile


def _hatch(picture: NDArray[np.uint8], box: NDArray[np.int64]) -> None:
    """Grey a region and stripe it."""
    height, width = picture.shape[:2]
    x1, y1 = np.clip(box[:2], 0, (width, height))
    x2, y2 = np.clip(box[2:], 0, (width, height))
    y, x = np.mgrid[y1:y2, x1:x2]
    region = picture[y1:y2, x1:x2]
    region[:] = (region * 0.6 + 51).astype(np.uint8)
    region[(x + y) % 10 < 2] = 200
    cv2.rectangle(picture, (int(x1), int(y1)), (int(x2) - 1, int(y2) - 1), (200, 200, 200), 1)


def _colour(identity: int) -> tuple[int, int, int]:
    """A bright colour; golden steps around the hues keep neighbours apart."""
    hue = int(identity * 0.618034 % 1 * 180)
    b, g, r = cv2.cvtColor(np.array([[[hue, 170, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(b), int(g), int(r)


def _write_sheet(path: Path, tiles: Sequence[NDArray[np.uint8]]) -> None:
    """Tiles in rows, as a PNG."""
    rows = []
    for first in range(0, len(tiles), COLUMNS):
        part = tiles[first : first + COLUMNS]
        row = np.full((max(map(len, part)), COLUMNS * TILE[0], 3), 32, np.uint8)
        for i, tile in enumerate(part):
            row[: len(tile), i * TILE[0] : (i + 1) * TILE[0]] = tile
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.concatenate(rows)):
        raise OSError(f"{path}: cannot be written")
