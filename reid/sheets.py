"""Sheets: rows of captioned images in coloured frames, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.files import replacing

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

RIGHT, WRONG, QUERY = (80, 190, 60), (60, 50, 235), (235, 160, 40)
"""Frames (BGR): green, red, and blue for what is looked for."""
_GROUND, _BAND, _LIGHT = (32, 32, 32), (58, 46, 40), (235, 235, 235)

# In pixels. An image is scaled to fit a box, height and width; its frame lies around it, its lines of text below.
_BOX = (176, 144)
_LEAST_WIDTH = 78
_FRAME, _GAP, _LINE, _BAND_HEIGHT = 4, 8, 17, 26
_LINE_SIZE, _HEADLINE_SIZE = 0.42, 0.48


@dataclass(frozen=True)
class Tile:
    """An image (H, W, 3) BGR on a sheet, what is written below, and the colour of its frame."""

    image: Picture
    lines: tuple[str, ...]
    colour: Colour | None = None


def draw_sheet(path: str | Path, rows: Sequence[tuple[str, Sequence[Sequence[Tile]]]]) -> None:
    """Write a PNG of rows, each a headline and groups of images, as a file that is there whole or not at all."""
    tiles = [tile for _, groups in rows for group in groups for tile in group]
    box = max(min(max(_scaled(tile.image)[0] for tile in tiles), _BOX[1]), _LEAST_WIDTH)
    drawn = [(text, _row(groups, box)) for text, groups in rows]
    wide = max(_GAP * 2 + _text_width(text, _HEADLINE_SIZE) for text, _ in drawn)
    wide = max(wide, *(row.shape[1] for _, row in drawn))
    parts = []
    for text, row in drawn:
        band = np.full((_BAND_HEIGHT, wide, 3), _BAND, np.uint8)
        _write(band, text, (_GAP, 18), _HEADLINE_SIZE)
        padded = np.full((_GAP + len(row), wide, 3), _GROUND, np.uint8)
        padded[_GAP:, : row.shape[1]] = row
        parts += [band, padded]
    with replacing(path) as part:
        part.write_bytes(cv2.imencode(".png", np.concatenate(parts))[1].tobytes())


def _row(groups: Sequence[Sequence[Tile]], box: int) -> Picture:
    """Groups of tiles side by side, with some room between the groups."""
    lines = max(len(tile.lines) for group in groups for tile in group)
    height = _BOX[0] + 2 * _FRAME + _LINE * lines + _GAP
    parts = []
    for group in groups:
        parts += [_draw_tile(tile, height, box + 2 * _FRAME + _GAP) for tile in group]
        parts.append(np.full((height, 2 * _GAP, 3), _GROUND, np.uint8))
    return np.hstack(parts[:-1])


def _draw_tile(tile: Tile, height: int, width: int) -> Picture:
    """An image scaled into its box, with its frame and its lines below."""
    size = _scaled(tile.image)
    method = cv2.INTER_AREA if size[1] < tile.image.shape[0] else cv2.INTER_CUBIC
    drawn = np.full((height, width, 3), _GROUND, np.uint8)
    x, y = (width - size[0]) // 2, _FRAME + (_BOX[0] - size[1]) // 2
    if tile.colour:
        drawn[y - _FRAME : y + size[1] + _FRAME, x - _FRAME : x + size[0] + _FRAME] = tile.colour
    drawn[y : y + size[1], x : x + size[0]] = cv2.resize(tile.image, size, interpolation=method)
    for number, line in enumerate(tile.lines, start=1):
        left = max((width - _text_width(line, _LINE_SIZE)) // 2, 0)
        _write(drawn, line, (left, _BOX[0] + 2 * _FRAME + _LINE * number - 3), _LINE_SIZE)
    return drawn


def _scaled(image: Picture) -> tuple[int, int]:
    """Width and height of an image on a sheet."""
    height, width = image.shape[:2]
    scale = min(_BOX[0] / height, _BOX[1] / width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _write(picture: Picture, text: str, place: tuple[int, int], size: float) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, _LIGHT, 1, cv2.LINE_AA)


def _text_width(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0])
