"""Settings of the tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tracker.kalman import BoxState
from tracker.matching import EmbeddingMetric

Output = Literal["blended", "filtered", "detection"]
Appearance = Literal["gated", "minimum", "none"]
ClassMode = Literal["separate", "vote"]
CameraMotionMethod = Literal["none", "sparse", "ecc"]


@dataclass(frozen=True)
class TrackerConfig:
    """Settings of `Tracker`: every stage of the association can be set, or left out, by itself.

    Limits called `*_thresh` belong to the matched side: a score exactly at its threshold is in, and so is a cost.
    `duplicate_thresh` alone is a strict limit. Times are seconds of the video.

    Raises:
        ValueError: a value out of its range; the message names the field, what is expected and what was given.
    """

    score_thresh: float = 0.6
    """Detections from this score on are matched in every stage, [0, 1]."""
    low_score_thresh: float | None = 0.05
    """Detections from this score up to `score_thresh` may continue a tracked or recently lost person by position, but
    neither start a track nor change what it looks like, [0, 1]; None leaves them out, and so does `score_thresh` or
    more (ByteTrack)."""
    birth_thresh: float = 0.6
    """Score from which an unmatched detection starts a track, [0, 1]; below `score_thresh` that one counts."""
    shape_std: float | None = None
    """Where a number, a detection shaped unlike a standing person must score more to start a track: its score is
    multiplied by exp(-z²/2), where z is the distance of its log(width / height) from log 0.41 in units of this number,
    above 0. A person who is tracked may take any shape. None asks nothing."""
    classes: ClassMode = "separate"
    """"separate": a detection only continues a track of its own class. "vote": classes do not hinder, and a track has
    the class that its detections gave it with the largest sum of scores."""

    appearance: Appearance = "gated"
    """How embeddings take part, where there are any. "gated": a stage of their own, before position, within the gate of
    the Kalman filter (JDE). "minimum": in the stage of position, where the smaller of both costs counts (BoT-SORT).
    "none": not at all."""
    embedding_metric: EmbeddingMetric = "cosine"
    """Distance of embeddings: "cosine" is 1 - a·b, "euclidean" is |a - b|. Thresholds differ: a Euclidean t is a cosine
    t²/2."""
    embedding_thresh: float = 0.5
    """Largest fused embedding cost of a match, in units of `embedding_metric`, (0, 2]; for "minimum" of half the
    distance, as in BoT-SORT."""
    proximity_thresh: float = 0.5
    """For "minimum": largest 1 - IoU of a pair whose embedding counts, [0, 1)."""
    stand_out_margin: float = 0.0
    """Embeddings of pairs that stand out from their row and column weigh more, by at most this share, [0, 1]; 0 weighs
    all alike (Deep OC-SORT; cosine metric alone)."""
    embedding_momentum: float = 0.9
    """Share of a track's embedding kept when a detection's is mixed in, [0, 1)."""
    score_aware_momentum: bool = False
    """Mix in less of an embedding whose detection scores low: none at `score_thresh`, the full share at 1
    (Deep OC-SORT)."""

    iou_thresh: float = 0.8
    """Largest 1 - IoU of a match of confirmed tracks by position, [0, 1)."""
    low_score_iou_thresh: float = 0.5
    """Largest 1 - IoU of a match with a low-score detection, [0, 1)."""
    tentative_iou_thresh: float = 0.7
    """Largest 1 - IoU of a match of tentative tracks, [0, 1)."""
    iou_rematch_seconds: float = 0.5
    """A track lost for at most this long may also be found again by position alone, at least 0. Where detections have
    no embeddings, position is all there is and `track_buffer` is the only limit."""
    fuse_score: bool = False
    """Multiply the IoU of the stages for detections above `score_thresh` by their score (ByteTrack)."""
    iou_buffer: float = 0.0
    """Grow boxes to each side by this share of their size before their IoU is taken, at least 0 (C-BIoU)."""
    small_box: float = 0.0
    """Grow boxes whose root of the area is smaller than this many pixels up to it before their IoU is taken, at
    least 0."""
    direction_weight: float = 0.15
    """How much the way a track came, over `direction_seconds`, decides between boxes within reach, at least 0
    (OC-SORT's momentum)."""
    direction_seconds: float = 0.1
    """Length of that way in frames in which the track was seen, at least one, above 0."""
    recover_by_last_box: bool = False
    """Compare tracks left over also by the box of their last detection in place of the predicted one (OC-SORT's
    recovery)."""

    box_state: BoxState = "xyah"
    """What the Kalman filter follows: centre, aspect ratio and height (JDE), or centre, width and height
    (BoT-SORT)."""
    reupdate: bool = False
    """When a lost track is found, repeat the time between along a straight line of boxes (OC-SORT)."""
    camera_motion: CameraMotionMethod = "sparse"
    """How the camera's own motion is found in the picture, for those who have pictures: by corners followed with sparse
    optical flow, by the correlation of the whole picture (ECC), or not at all."""

    track_buffer: float = 3.0
    """Seconds a lost track is kept (at least one frame), at least 0."""
    duplicate_thresh: float | None = None
    """A tracked and a lost track with 1 - IoU below this are the same person unless they look different, [0, 1]; None
    never merges (JDE 0.15)."""
    confirm_frames: int = 2
    """Consecutive matched frames, birth included, that confirm a track, at least 1."""
    sure_thresh: float = 0.75
    """A track whose best score is below this is only confirmed once it has moved by `min_motion`, [0, 1]: signs and
    statues score in the middle and stay where they are. 0 asks for no motion."""
    min_motion: float = 0.3
    """How far that is, between the centres of the first and the last box, in widths of the box, at least 0."""
    confirm_first_frame: bool = True
    """Confirm the sure tracks of the first frame that has any at once, so that a video's first frame shows people."""
    coast_seconds: float = 0.0
    """A person who is not seen for at most this long stays in the result, at the predicted box, at least 0."""
    output: Output = "blended"
    """Which box is reported: the matched detection's as it came, the Kalman filter's, or 60 % and 40 % of the two."""

    def __post_init__(self) -> None:
        for name in ("score_thresh", "birth_thresh", "stand_out_margin", "sure_thresh"):
            _check_range(name, getattr(self, name), 0, 1)
        for name in ("low_score_thresh", "duplicate_thresh"):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 0, 1)
        _check_range("embedding_thresh", self.embedding_thresh, 0, 2, include_low=False)
        for name in (
            "embedding_momentum",
            "proximity_thresh",
            "iou_thresh",
            "low_score_iou_thresh",
            "tentative_iou_thresh",
        ):
            _check_range(name, getattr(self, name), 0, 1, include_high=False)
        for name in (
            "iou_rematch_seconds",
            "iou_buffer",
            "small_box",
            "direction_weight",
            "track_buffer",
            "min_motion",
            "coast_seconds",
        ):
            _check_range(name, getattr(self, name), 0, math.inf, include_high=False)
        _check_range("direction_seconds", self.direction_seconds, 0, math.inf, include_low=False, include_high=False)
        if self.shape_std is not None:
            _check_range("shape_std", self.shape_std, 0, math.inf, include_low=False, include_high=False)
        if not isinstance(self.confirm_frames, int) or isinstance(self.confirm_frames, bool):
            raise ValueError(f"confirm_frames: expected a whole number, got {self.confirm_frames!r}")
        _check_range("confirm_frames", self.confirm_frames, 1, math.inf)
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), get_args(choices))
        if self.stand_out_margin and self.embedding_metric != "cosine":
            raise ValueError(
                f"stand_out_margin: expected 0 with embedding_metric euclidean, got {self.stand_out_margin}"
            )


_CHOICES = {
    "classes": ClassMode,
    "appearance": Appearance,
    "embedding_metric": EmbeddingMetric,
    "box_state": BoxState,
    "camera_motion": CameraMotionMethod,
    "output": Output,
}


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
