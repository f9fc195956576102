"""Small sequences, made up for tests, with what an evaluation compares and finds."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from tracker.comparison import Compared
from tracker.events import Events, clear_events
from tracker.mot import MotRows
from tracker.preprocessing import prepare

Row = tuple[float, ...]


def standing(
    identity: int, frames: Iterable[int], left: float = 0, top: float = 0, score: float = 1, class_id: int = 1
) -> list[Row]:
    """Rows of one who stands there, 20 pixels wide and 40 high."""
    return [(frame, identity, left, top, 20, 40, score, class_id) for frame in frames]


def mot_rows(rows: list[Row]) -> MotRows:
    """Rows of frame, id, left, top, width, height, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 8)
    whole = table[:, [0, 1, 7]].astype(np.int64)
    return MotRows(whole[:, 0], whole[:, 1], table[:, 2:6], table[:, 6], whole[:, 2], np.ones(len(table)))


def scored(truth: list[Row], results: list[Row], frames: int, first: int = 1) -> tuple[Compared, Events]:
    """A sequence "A" of so many frames that are numbered from `first`, and its events."""
    sides = mot_rows(truth), mot_rows(results)
    counted = (dataclasses.replace(rows, frames=rows.frames - first + 1) for rows in sides)
    compared = Compared("A", *sides, first, prepare(*counted, frames, "MOT17"))
    return compared, clear_events(compared)
