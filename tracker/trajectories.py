"""The result of a whole video as one table: what the offline steps take and give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import tlwh_to_xyxy
from tracker.mot import MotRows
from tracker.types import FloatArray, FrameResult, IntArray

_COLUMNS = ("frames", "track_ids", "xyxy", "scores", "classes", "predicted")


@dataclass(frozen=True)
class Trajectories:
    """All boxes of all identities, R rows sorted by identity, then by frame.

    The constructor checks and sorts; rows may be given in any order.

    Attributes:
        frames: (R,) int64 from 1.
        track_ids: (R,) int64.
        xyxy: (R, 4) float64 pixels of the original image.
        scores: (R,) float32.
        classes: (R,) int64.
        predicted: (R,) bool, True where nothing was detected and the box is a guess, from before or from both sides.
        embeddings: unit vector (D,) float32 of each identity that has been described; empty where nobody is.

    Raises:
        ValueError: a wrong shape, a row that is not finite, a frame below 1, two boxes of an identity in one frame.
    """

    frames: IntArray
    track_ids: IntArray
    xyxy: NDArray[np.float64]
    scores: FloatArray
    classes: IntArray
    predicted: NDArray[np.bool_]
    embeddings: Mapping[int, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = np.asarray(self.frames, np.int64)
        count = len(frames)
        columns: dict[str, NDArray[Any]] = {
            "frames": frames,
            "track_ids": np.asarray(self.track_ids, np.int64),
            "xyxy": np.asarray(self.xyxy, np.float64),
            "scores": np.asarray(self.scores, np.float32),
            "classes": np.asarray(self.classes, np.int64),
            "predicted": np.asarray(self.predicted, bool),
        }
        for name, column in columns.items():
            shape = (count, 4) if name == "xyxy" else (count,)
            if column.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {column.shape}")
        finite = np.isfinite(columns["xyxy"]).all(axis=1) & np.isfinite(columns["scores"])
        if not finite.all():
            raise ValueError(f"xyxy, scores: row {int(np.argmin(finite))} is not finite")
        if count and frames.min() < 1:
            raise ValueError(f"frames: expected numbers from 1, got {frames.min()} in row {int(np.argmin(frames))}")
        order = np.lexsort((frames, columns["track_ids"]))
        for name, column in columns.items():
            object.__setattr__(self, name, column[order])
        twice = (~self.starts[1:] & (np.diff(self.frames) == 0)).nonzero()[0]
        if len(twice):
            row = twice[0]
            raise ValueError(f"track_ids: identity {self.track_ids[row]} has two boxes in frame {self.frames[row]}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def starts(self) -> NDArray[np.bool_]:
        """(R,) True at the first row of each identity."""
        first = np.ones(len(self), bool)
        first[1:] = self.track_ids[1:] != self.track_ids[:-1]
        return first

    @property
    def ends(self) -> NDArray[np.bool_]:
        """(R,) True at the last row of each identity."""
        return np.roll(self.starts, -1)

    def embedding_rows(self) -> FloatArray:
        """The embeddings (T, D) of the identities, in ascending order; zeros where one is not described."""
        unknown = np.zeros(len(next(iter(self.embeddings.values()), ())), np.float32)
        known = [self.embeddings.get(track_id, unknown) for track_id in self.track_ids[self.starts].tolist()]
        return np.array(known, np.float32).reshape(len(known), len(unknown))

    def __getitem__(self, rows: NDArray[np.bool_]) -> Trajectories:
        """The rows of a mask; embeddings stay."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def overlay(self, under: Trajectories) -> Trajectories:
        """These rows, and those of another table for identities and frames that have none here."""
        both: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(under, name)]) for name in _COLUMNS}
        order = np.lexsort((both["frames"], both["track_ids"]))  # stable: of two boxes for one frame ours comes first
        track_ids, frames = both["track_ids"][order], both["frames"][order]
        first = np.ones(len(order), bool)
        first[1:] = (track_ids[1:] != track_ids[:-1]) | (frames[1:] != frames[:-1])
        rows = order[first]
        return replace(self, **{name: column[rows] for name, column in both.items()})

    def renamed(self, track_ids: IntArray) -> Trajectories:
        """Other ids (T,) for the identities, in ascending order of theirs; those that get the same one are joined.

        Joined identities have the mean of their embeddings, weighted by their boxes. Where they have two boxes in a
        frame, a predicted one is left out.

        Raises:
            ValueError: identities joined that are both seen in one frame.
        """
        rows = np.diff(self.starts.nonzero()[0], append=len(self))
        names, part_of = np.unique(track_ids, return_inverse=True)
        parts = self.embedding_rows()
        total = np.zeros((len(names), parts.shape[1]))
        np.add.at(total, part_of, parts * rows[:, None])
        length = np.linalg.norm(total, axis=1)
        means = {int(names[row]): (total[row] / length[row]).astype(np.float32) for row in length.nonzero()[0]}

        row_ids = np.repeat(track_ids, rows)
        order = np.lexsort((self.predicted, self.frames, row_ids))
        again = (np.diff(row_ids[order]) == 0) & (np.diff(self.frames[order]) == 0) & self.predicted[order][1:]
        keep = np.ones(len(self), bool)
        keep[order[1:][again]] = False
        columns: dict[str, Any] = {name: getattr(self, name)[keep] for name in _COLUMNS}
        return replace(self, **(columns | {"track_ids": row_ids[keep], "embeddings": means}))

    @classmethod
    def from_mot(cls, rows: MotRows) -> Trajectories:
        """The rows of a MOTChallenge result file, as `tracker.mot.read_mot` gives them."""
        scores, predicted = rows.scores.astype(np.float32), np.zeros(len(rows), bool)
        return cls(rows.frames, rows.track_ids, tlwh_to_xyxy(rows.tlwh), scores, rows.classes, predicted)

    @classmethod
    def from_results(cls, results: Iterable[FrameResult]) -> Trajectories:
        """The results of a tracker; see `Recorder` for results that come one by one."""
        recorder = Recorder()
        for result in results:
            recorder.add(result)
        return recorder.trajectories()

    def results(self, first: int = 1, last: int | None = None) -> Iterator[FrameResult]:
        """One result for every frame from `first` to `last` (by default the last that shows anybody), empty ones too.

        Identities are in ascending order within a frame, and have no embeddings.
        """
        if last is None:
            last = int(self.frames.max(initial=first - 1))
        order = np.lexsort((self.track_ids, self.frames))
        bounds = np.searchsorted(self.frames[order], np.arange(first, last + 2)).tolist()
        track_ids, xyxy = self.track_ids[order], self.xyxy[order].astype(np.float32)
        scores, classes, predicted = self.scores[order], self.classes[order], self.predicted[order]
        for frame, low, high in zip(range(first, last + 1), bounds[:-1], bounds[1:], strict=True):
            rows = slice(low, high)
            guessed = predicted[rows] if predicted[rows].any() else None
            yield FrameResult(frame, track_ids[rows], xyxy[rows], scores[rows], classes[rows], predicted=guessed)


class Recorder:
    """Collects results while they come. Of embeddings it keeps one sum an identity, not one an appearance."""

    def __init__(self) -> None:
        self._frames: list[IntArray] = []
        self._columns: list[tuple[NDArray[Any], ...]] = []
        self._sums: dict[int, NDArray[Any]] = {}

    def add(self, result: FrameResult) -> None:
        """Take the result of one more frame."""
        if len(result) == 0:
            return
        self._frames.append(np.full(len(result), result.frame, np.int64))
        predicted = np.zeros(len(result), bool) if result.predicted is None else result.predicted
        self._columns.append((result.track_ids, result.xyxy, result.scores, result.classes, predicted))
        if result.embeddings is not None:
            for track_id, embedding in zip(result.track_ids.tolist(), result.embeddings, strict=True):
                self._sums[track_id] = self._sums.get(track_id, 0) + embedding

    def trajectories(self) -> Trajectories:
        """All that has been added."""
        if not self._frames:
            none = np.zeros(0, np.int64)
            return Trajectories(none, none, np.zeros((0, 4)), np.zeros(0, np.float32), none, np.zeros(0, bool))
        columns = (np.concatenate(column) for column in zip(*self._columns, strict=True))
        track_ids, xyxy, scores, classes, predicted = columns
        embeddings = {
            track_id: (total / np.linalg.norm(total)).astype(np.float32)
            for track_id, total in self._sums.items()
            if np.any(total)
        }
        frames = np.concatenate(self._frames)
        return Trajectories(frames, track_ids, xyxy, scores, classes, predicted, embeddings)
