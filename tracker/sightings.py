"""Footage followed to learn from it: all that was detected beside all that was tracked, and what of it is clear."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker.config import TrackerConfig
from tracker.console import one_line, progress
from tracker.pipeline import Pipeline
from tracker.sources import Source, SourceError
from tracker.tracker import Tracker
from tracker.types import FloatArray, FrameResult, IntArray
from tracker.video import Frame

# From this score on a detection is somebody who may cover somebody else.
_COVERING_SCORE = 0.3
# Frame times are sums of frame periods.
_ROUNDING = 1e-6


Collect = Callable[[Frame, Mapping[str, Any], FrameResult], None]
"""Given a frame, what was detected in it, and who was found."""


@dataclass(frozen=True)
class Seen:
    """What was seen in footage.

    Attributes:
        location: of the footage.
        frames: how many were looked at.
        frame_rate: of these, a second.
        ids: identities given.
        detections: digest of all boxes and scores: the same where these are, to the bit.
        broken: why the footage ended early; None where it did not.
        seconds: on the clock.
    """

    location: str
    frames: int
    frame_rate: float
    ids: int
    detections: str
    broken: str | None
    seconds: float


def follow(
    source: Source,
    detector: Callable[[list[Frame]], Sequence[Mapping[str, Any]]],
    config: TrackerConfig,
    collect: Collect | None = None,
    *,
    workers: int = 1,
    batch_size: int = 1,
) -> Seen:
    """Track a recording, with progress on the terminal.

    Args:
        source: an open source; closed at the end.
        detector: gives dictionaries of `boxes`, `scores` and whatever else.
        config: settings of the tracker; boxes are reported as they were detected, so that each is known by its numbers.
        collect: called for every frame, in order.
        workers: threads that call the detector.
        batch_size: frames in a call of it.

    Raises:
        SourceError: not a single frame can be read. What breaks off later has been seen up to there.
    """
    remember = _Remember(detector)
    tracker = Tracker(replace(config, output="detection"), source.frame_rate)
    pipeline = Pipeline(source, remember, tracker, workers=workers, batch_size=batch_size)
    ids, frames, digest, broken = set[int](), 0, hashlib.sha256(), None
    started = time.perf_counter()
    try:
        for frame, result in progress(pipeline, source.frame_count, doing=f"{source.name}:"):
            found = remember.take(frame)
            frames += 1
            ids.update(result.track_ids.tolist())
            digest.update(found["boxes"].tobytes() + found["scores"].tobytes())
            if collect:
                collect(frame, found, result)
    except SourceError as error:
        if not frames:
            raise
        broken = one_line(error)
    seconds = round(time.perf_counter() - started, 2)
    return Seen(source.location, frames, tracker.frame_rate, len(ids), digest.hexdigest(), broken, seconds)


class _Remember:
    """A detector whose results are kept until whoever iterates over a pipeline has come to their frames."""

    def __init__(self, detector: Callable[[list[Frame]], Sequence[Mapping[str, Any]]]) -> None:
        self._detector = detector
        self._found: dict[int, Mapping[str, Any]] = {}

    def __call__(self, frames: list[Frame]) -> Sequence[Mapping[str, Any]]:
        """Detect, from any thread."""
        found = self._detector(frames)
        self._found.update((id(frame), one) for frame, one in zip(frames, found, strict=True))
        return found

    def take(self, frame: Frame) -> Mapping[str, Any]:
        """What was found in a frame, the very array that was detected in; once."""
        return self._found.pop(id(frame))


class ClearSightings:
    """Takes the clear boxes of tracks, and splits the tracks into tracklets where these have gaps.

    A box is clear where its detection scores enough and no other detection covers much of it. Where a track had no
    clear box for a while, because it was lost, doubtful or behind others, somebody else may have taken it over: what
    follows is another tracklet.

    Args:
        min_score: lowest score of a clear box, [0, 1].
        max_cover: largest share of it that another detection's box may cover, [0, 1].
        max_gap: longest time in seconds between two clear boxes of a tracklet.
    """

    def __init__(self, min_score: float, max_cover: float, max_gap: float) -> None:
        self.min_score, self.max_cover, self.max_gap = min_score, max_cover, max_gap
        self._last: dict[int, tuple[float, int]] = {}
        self._count = 0

    def of(
        self, result: FrameResult, xyxy: FloatArray, scores: FloatArray, seconds: float
    ) -> tuple[IntArray, IntArray]:
        """The clear boxes of a frame.

        Args:
            result: of a tracker with `TrackerConfig.output="detection"`, whose boxes are those of the detections.
            xyxy: (D, 4) the detections of the frame.
            scores: (D,) theirs.
            seconds: time of the frame; frames come in order.

        Returns:
            (M,) rows of the detections, and (M,) numbers of the tracklets they belong to, counted from 0 in order of
            their first boxes.
        """
        rows, tracklets = [], []
        covered = _covered(xyxy, scores)
        for i in np.flatnonzero(~result.predicted) if result.predicted is not None else range(len(result)):
            own = np.flatnonzero((xyxy == result.xyxy[i]).all(axis=1) & (scores == result.scores[i]))
            if not len(own) or scores[own[0]] < self.min_score or covered[own[0]] > self.max_cover:
                continue
            track = int(result.track_ids[i])
            before, tracklet = self._last.get(track, (-np.inf, -1))
            if seconds - before > self.max_gap + _ROUNDING:
                tracklet, self._count = self._count, self._count + 1
            self._last[track] = seconds, tracklet
            rows.append(own[0])
            tracklets.append(tracklet)
        return np.array(rows, np.int64), np.array(tracklets, np.int64)


def _covered(xyxy: FloatArray, scores: FloatArray) -> NDArray[np.float64]:
    """(D,) largest share of each box that another one covers."""
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    inner = np.clip((high - low).astype(np.float64), 0, None).prod(axis=2)
    area = (xyxy[:, 2:] - xyxy[:, :2]).astype(np.float64).prod(axis=1)
    share = inner / np.maximum(area, 1e-9)[:, None] * (scores >= _COVERING_SCORE)
    np.fill_diagonal(share, 0)
    covered: NDArray[np.float64] = share.max(axis=1, initial=0)
    return covered
