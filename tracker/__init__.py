"""Boxes and embeddings in, identities out: multi-object tracking with NumPy alone."""

from tracker.pipeline import track, track_many
from tracker.tracker import Tracker, TrackerConfig
from tracker.types import Detections, FrameResult

__all__ = ["Detections", "FrameResult", "Tracker", "TrackerConfig", "track", "track_many"]
