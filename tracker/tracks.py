"""All tracks of one tracker, as a struct of arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker import boxes, kalman
from tracker.types import Detections, FloatArray, IntArray

NO_ID = 0
"""Stands in `Tracks.ids` until a track is confirmed; public ids count from 1."""


TENTATIVE = 0
"""State: not believed yet, see `confirm_frames` and `sure_thresh` of `TrackerConfig`. The states are plain integers,
which compare with arrays fast."""
TRACKED = 1
"""State: confirmed and matched in the last frame."""
LOST = 2
"""State: confirmed and not matched lately; may come back until the buffer is over. A removed track, the fourth state,
leaves the arrays."""


@dataclass
class Tracks:
    """M tracks; row i of every array belongs to track i.

    Attributes:
        ids: (M,) int64, `NO_ID` before confirmation.
        state: (M,) int8: `TENTATIVE`, `TRACKED` or `LOST`.
        mean: (M, 8) float64 Kalman state, see `tracker.kalman`.
        covariance: (M, 8, 8) float64.
        embedding: (M, D) float32 smoothed unit rows; zeros where no embedding has been seen yet.
        start_frame: (M,) int64 frame of the first match.
        last_frame: (M,) int64 frame of the last match.
        hits: (M,) int64 number of matched frames.
        box: (M, 4) float32 xyxy of the last matched detection.
        score: (M,) float32 of the last matched detection.
        best_score: (M,) float32 highest score of all matched detections.
        birthplace: (M, 2) float32 centre of the first matched detection.
        classes: (M,) int64.
    """

    ids: IntArray
    state: NDArray[np.int8]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    embedding: FloatArray
    start_frame: IntArray
    last_frame: IntArray
    hits: IntArray
    box: FloatArray
    score: FloatArray
    best_score: FloatArray
    birthplace: FloatArray
    classes: IntArray

    @classmethod
    def start(cls, detections: Detections, rows: NDArray[Any], frame: int, dimension: int) -> Tracks:
        """One tentative track for each of the given rows of `detections`, with embeddings of `dimension` numbers."""
        count = len(rows)
        xyxy = detections.xyxy[rows]
        mean, covariance = kalman.initiate(boxes.xyxy_to_xyah(xyxy.astype(np.float64)))
        if detections.embeddings is None:
            embedding = np.zeros((count, dimension), np.float32)
        else:
            embedding = detections.embeddings[rows]
        assert detections.classes is not None  # the constructor of Detections fills them in
        return cls(
            ids=np.full(count, NO_ID, np.int64),
            state=np.full(count, TENTATIVE, np.int8),
            mean=mean,
            covariance=covariance,
            embedding=embedding,
            start_frame=np.full(count, frame, np.int64),
            last_frame=np.full(count, frame, np.int64),
            hits=np.ones(count, np.int64),
            box=xyxy,
            score=detections.scores[rows],
            best_score=detections.scores[rows],
            birthplace=(xyxy[:, :2] + xyxy[:, 2:]) / 2,
            classes=detections.classes[rows],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, rows: NDArray[Any]) -> None:
        """Drop all tracks but those of a boolean mask or an index array."""
        for name in _FIELDS:
            setattr(self, name, getattr(self, name)[rows])

    def append(self, other: Tracks) -> None:
        """Add the tracks of `other` behind the present ones."""
        for name in _FIELDS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))

    def resume(self, row: int, by: int) -> None:
        """Let track `row` go on from where track `by` is, with its own identity, age and embedding."""
        for name in ("state", "mean", "covariance", "last_frame", "box", "score"):
            values = getattr(self, name)
            values[row] = values[by]
        self.hits[row] += self.hits[by]
        self.best_score[row] = max(self.best_score[row], self.best_score[by])


_FIELDS = tuple(field.name for field in fields(Tracks))
