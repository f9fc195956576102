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
    """M tracks; row i of every array belongs to track i. Times are counted in frame periods.

    Attributes:
        ids: (M,) int64, `NO_ID` before confirmation.
        state: (M,) int8: `TENTATIVE`, `TRACKED` or `LOST`.
        mean: (M, 8) float64 Kalman state, see `tracker.kalman`.
        covariance: (M, 3, 4) float64.
        seen_mean: (M, 8) the Kalman state as the last match left it; it moves with the camera only.
        seen_covariance: (M, 3, 4) the same for the covariance.
        embedding: (M, D) float32 smoothed unit rows; zeros where no embedding has been seen yet.
        born: (M,) float64 time of the first match.
        seen: (M,) float64 time of the last match.
        hits: (M,) int64 number of matched frames.
        box: (M, 4) float32 xyxy of the last matched detection.
        path: (M, K + 1, 2) float32 centres of the last matched detections, the latest last; the first one fills up.
        score: (M,) float32 of the last matched detection.
        best_score: (M,) float32 highest score of all matched detections.
        birthplace: (M, 2) float32 centre of the first matched detection.
        classes: (M,) int64.
        votes: (M, C) float32 sum of the scores that a track's detections gave to each of C classes; (M, 0) where
            classes are kept apart.
    """

    ids: IntArray
    state: NDArray[np.int8]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    seen_mean: NDArray[np.float64]
    seen_covariance: NDArray[np.float64]
    embedding: FloatArray
    born: NDArray[np.float64]
    seen: NDArray[np.float64]
    hits: IntArray
    box: FloatArray
    path: FloatArray
    score: FloatArray
    best_score: FloatArray
    birthplace: FloatArray
    classes: IntArray
    votes: FloatArray

    @classmethod
    def none(cls, path_length: int) -> Tracks:
        """No track at all; `path_length` is K + 1."""
        whole, small, real = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0)
        mean, covariance = np.zeros((0, 8)), np.zeros((0, 3, 4))
        return cls(
            ids=whole,
            state=np.zeros(0, np.int8),
            mean=mean,
            covariance=covariance,
            seen_mean=mean,
            seen_covariance=covariance,
            embedding=np.zeros((0, 0), np.float32),
            born=real,
            seen=real,
            hits=whole,
            box=np.zeros((0, 4), np.float32),
            path=np.zeros((0, path_length, 2), np.float32),
            score=small,
            best_score=small,
            birthplace=np.zeros((0, 2), np.float32),
            classes=whole,
            votes=np.zeros((0, 0), np.float32),
        )

    @classmethod
    def start(
        cls, detections: Detections, measured: NDArray[np.float64], time: float, form: kalman.BoxState, path_length: int
    ) -> Tracks:
        """One tentative track for each detection, described by its embedding or by none; without votes."""
        count = len(detections)
        mean, covariance = kalman.initiate(measured, form)
        centre = boxes.centre(detections.xyxy)
        known = detections.embeddings
        assert detections.classes is not None  # the constructor of Detections fills them in
        return cls(
            ids=np.full(count, NO_ID, np.int64),
            state=np.full(count, TENTATIVE, np.int8),
            mean=mean,
            covariance=covariance,
            seen_mean=mean,
            seen_covariance=covariance,
            embedding=np.zeros((count, 0), np.float32) if known is None else known,
            born=np.full(count, time),
            seen=np.full(count, time),
            hits=np.ones(count, np.int64),
            box=detections.xyxy,
            path=np.repeat(centre[:, None], path_length, axis=1),
            score=detections.scores,
            best_score=detections.scores,
            birthplace=centre.astype(np.float32),
            classes=detections.classes,
            votes=np.zeros((count, 0), np.float32),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, rows: NDArray[Any]) -> None:
        """Drop all tracks but those of a boolean mask or an index array."""
        if rows.dtype == np.bool_:
            rows = rows.nonzero()[0]  # the mask is searched once, not once for every array
        for name in _FIELDS:
            setattr(self, name, getattr(self, name)[rows])

    def append(self, other: Tracks) -> None:
        """Add the tracks of `other` behind the present ones."""
        for name in _FIELDS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(other, name)]))

    def resume(self, row: int, by: int) -> None:
        """Let track `row` go on from where track `by` is, with its own identity, age and embedding."""
        for name in ("state", "mean", "covariance", "seen_mean", "seen_covariance", "seen", "box", "path", "score"):
            values = getattr(self, name)
            values[row] = values[by]
        self.hits[row] += self.hits[by]
        self.votes[row] += self.votes[by]
        self.best_score[row] = max(self.best_score[row], self.best_score[by])

    def move(self, affine: NDArray[np.float64], form: kalman.BoxState) -> None:
        """Carry everything that is a place over to a picture moved by the camera; see `kalman.move`."""
        self.mean, self.covariance = kalman.move(self.mean, self.covariance, affine, form)
        self.seen_mean, self.seen_covariance = kalman.move(self.seen_mean, self.seen_covariance, affine, form)
        linear, shift = affine[:, :2].astype(np.float32), affine[:, 2].astype(np.float32)
        scale = np.float32(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
        half = (self.box[:, 2:] - self.box[:, :2]) / 2 * scale
        centre = boxes.centre(self.box) @ linear.T + shift
        self.box = np.concatenate([centre - half, centre + half], axis=1)
        self.path = self.path @ linear.T + shift
        self.birthplace = np.asarray(self.birthplace @ linear.T + shift, np.float32)


_FIELDS = tuple(field.name for field in fields(Tracks))
