"""Settings of the tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tracker.matching import EmbeddingMetric

DEFAULT_FRAME_RATE = 30.0
"""Frames per second assumed where a video does not tell."""

Output = Literal["filtered", "detection"]


@dataclass(frozen=True)
class TrackerConfig:
    """Settings of `Tracker`.

    Limits called `*_thresh` belong to the matched side: a score exactly at its threshold is in, and so is a cost.
    `duplicate_thresh` alone is a strict limit.

    Raises:
        ValueError: a value out of its range; the message names the field, what is expected and what was given.
    """

    score_thresh: float = 0.5
    """Detections from this score on are matched in every stage, [0, 1]."""
    low_score_thresh: float | None = 0.1
    """Detections from this score up to `score_thresh` may continue a tracked or recently lost person by position, but
    neither start a track nor change what it looks like, [0, 1]; None leaves them out, and so does `score_thresh` or
    more."""
    birth_thresh: float = 0.6
    """Score from which an unmatched detection starts a track, [0, 1]; below `score_thresh` that one counts."""
    embedding_metric: EmbeddingMetric = "cosine"
    """Distance of embeddings: "cosine" is 1 - a·b, "euclidean" is |a - b|. Thresholds differ: a Euclidean t is a cosine
    t²/2."""
    embedding_thresh: float = 0.5
    """Largest fused embedding cost of a match, in units of `embedding_metric`, (0, 2]."""
    embedding_momentum: float = 0.9
    """Share of a track's embedding kept when a detection's is mixed in, [0, 1)."""
    iou_thresh: float = 0.8
    """Largest 1 - IoU of a match of confirmed tracks by position, [0, 1)."""
    low_score_iou_thresh: float = 0.5
    """Largest 1 - IoU of a match with a low-score detection, [0, 1)."""
    tentative_iou_thresh: float = 0.7
    """Largest 1 - IoU of a match of tentative tracks, [0, 1)."""
    iou_rematch_seconds: float = 0.5
    """A track lost for at most this long may also be found again by position alone, at least 0. Where detections have
    no embeddings, position is all there is and `track_buffer` is the only limit."""
    track_buffer: float = 3.0
    """Seconds a lost track is kept (at least one frame), at least 0."""
    duplicate_thresh: float | None = 0.15
    """A tracked and a lost track with 1 - IoU below this are the same person unless they look different, [0, 1]; None
    never merges."""
    confirm_frames: int = 2
    """Consecutive matched frames, birth included, that confirm a track, at least 1."""
    sure_thresh: float = 0.75
    """A track whose best score is below this is only confirmed once it has moved by `min_motion`, [0, 1]: signs and
    statues score in the middle and stay where they are. 0 asks for no motion."""
    min_motion: float = 0.3
    """How far that is, between the centres of the first and the last box, in widths of the box, at least 0."""
    confirm_first_frame: bool = True
    """Confirm the sure tracks of the first frame that has any at once, so that a video's first frame shows people."""
    output: Output = "detection"
    """Which box is reported: the Kalman filter's, or the matched detection's as it came."""

    def __post_init__(self) -> None:
        _check_range("score_thresh", self.score_thresh, 0, 1)
        if self.low_score_thresh is not None:
            _check_range("low_score_thresh", self.low_score_thresh, 0, 1)
        _check_range("birth_thresh", self.birth_thresh, 0, 1)
        _check_choice("embedding_metric", self.embedding_metric, get_args(EmbeddingMetric))
        _check_range("embedding_thresh", self.embedding_thresh, 0, 2, include_low=False)
        _check_range("embedding_momentum", self.embedding_momentum, 0, 1, include_high=False)
        for name in ("iou_thresh", "low_score_iou_thresh", "tentative_iou_thresh"):
            _check_range(name, getattr(self, name), 0, 1, include_high=False)
        _check_range("iou_rematch_seconds", self.iou_rematch_seconds, 0, math.inf, include_high=False)
        _check_range("track_buffer", self.track_buffer, 0, math.inf, include_high=False)
        if self.duplicate_thresh is not None:
            _check_range("duplicate_thresh", self.duplicate_thresh, 0, 1)
        if isinstance(self.confirm_frames, bool) or int(self.confirm_frames) != self.confirm_frames:
            raise ValueError(f"confirm_frames: expected a whole number, got {self.confirm_frames!r}")
        _check_range("confirm_frames", self.confirm_frames, 1, math.inf)
        _check_range("sure_thresh", self.sure_thresh, 0, 1)
        _check_range("min_motion", self.min_motion, 0, math.inf, include_high=False)
        _check_choice("output", self.output, get_args(Output))


def _check_range(
    name: str, value: float, low: float, high: float, include_low: bool = True, include_high: bool = True
) -> None:
    above = value >= low if include_low else value > low
    below = value <= high if include_high else value < high
    if not (above and below):  # also true of NaN
        left, right = "[" if include_low else "(", "]" if include_high else ")"
        raise ValueError(f"{name}: expected a number in {left}{low}, {high}{right}, got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
