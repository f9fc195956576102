"""Trackers to compare on the same detections: our default, our presets, and other projects' at their own settings.

    pip install trackers boxmot

Neither package is a dependency: what cannot be imported is left out of the tables, and they say so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs import load_config
from tracker import Detections, FrameResult, Tracker, TrackerConfig

DEFAULT = "ours"
"""Name of the default settings in every table."""

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_TRACKERS = {
    "trackers SORT": "SORTTracker",
    "trackers ByteTrack": "ByteTrackTracker",
    "trackers OC-SORT": "OCSORTTracker",
    "trackers C-BIoU": "CBIoUTracker",
}
_BOXMOT = {"boxmot ByteTrack": "ByteTrack", "boxmot OcSort": "OcSort"}


@dataclass(frozen=True)
class Contestant:
    """A tracker, ours or another's, behind one interface that leaves the conversion of boxes out of its update."""

    name: str
    """Such as `boxmot OcSort`."""
    convert: Callable[[Detections], Any]
    """Our detections as this tracker takes them."""
    start: Callable[[float], Callable[[Any], Any]]
    """From a frame rate, the update of a fresh tracker."""
    read: Callable[[Any, int], FrameResult]
    """What an update returned, for the frame of this number, as ours."""


def presets() -> dict[str, TrackerConfig]:
    """Our default and the shipped `configs/tracker_*.yaml`, by name, the default first."""
    files = sorted(_CONFIGS.glob("tracker_*.yaml"))
    named = {file.stem.removeprefix("tracker_"): load_config(file, (), {"tracker": TrackerConfig}) for file in files}
    return {DEFAULT: TrackerConfig(), **{name: sections["tracker"] for name, sections in named.items()}}


def own(name: str, config: TrackerConfig) -> Contestant:
    """Our tracker with some settings."""
    return Contestant(name, lambda found: found, lambda rate: Tracker(config, rate).update, lambda result, _: result)


def peers() -> list[Contestant]:
    """The other projects' trackers that can be imported here."""
    found: list[Contestant] = []
    trackers, boxmot = _imported("trackers"), _imported("boxmot")
    if trackers is not None:
        supervision = importlib.import_module("supervision")
        found += [_from_trackers(name, getattr(trackers, cls), supervision) for name, cls in _TRACKERS.items()]
    if boxmot is not None:
        found += [_from_boxmot(name, getattr(boxmot, cls)) for name, cls in _BOXMOT.items()]
        logging.getLogger("boxmot").setLevel(logging.WARNING)  # after its classes, which set it when they are loaded
    return found


def peer_versions() -> dict[str, str | None]:
    """Version of each package of peers, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in ("trackers", "boxmot"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def _from_trackers(name: str, cls: Any, supervision: Any) -> Contestant:
    def convert(found: Detections) -> Any:
        return supervision.Detections(xyxy=found.xyxy, confidence=found.scores, class_id=found.classes)

    def read(result: Any, frame: int) -> FrameResult:
        known = result[result.tracker_id >= 0]  # -1 marks detections of tracks that are not confirmed
        return _result(frame, known.tracker_id, known.xyxy, known.confidence)

    return Contestant(name, convert, lambda rate: cls(frame_rate=rate).update, read)


def _from_boxmot(name: str, cls: Any) -> Contestant:
    def convert(found: Detections) -> NDArray[np.float32]:
        return np.column_stack([found.xyxy, found.scores, found.classes]).astype(np.float32)  # type: ignore[list-item]

    def start(rate: float) -> Callable[[Any], Any]:
        # Its buffers are counted in frames whatever the rate, which only one of the classes would take.
        update = cls().update
        blank = np.zeros((1080, 1920, 3), np.uint8)  # for its size alone
        return lambda rows: update(rows, blank)

    return Contestant(name, convert, start, lambda rows, frame: _result(frame, rows[:, 4], rows[:, :4], rows[:, 5]))


def _result(frame: int, ids: NDArray[Any], xyxy: NDArray[Any], scores: NDArray[Any]) -> FrameResult:
    """Another tracker's people as ours; its ids, which may start at 0, become positive."""
    return FrameResult(
        frame, ids.astype(np.int64) + 1, xyxy.astype(np.float32), scores.astype(np.float32), np.zeros(len(ids), int)
    )
