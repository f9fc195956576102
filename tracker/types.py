"""What flows between the parts: detections in, identities out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Detections:
    """The people found in one frame.

    Shapes and values are checked here, once; everything behind trusts the arrays.

    Attributes:
        xyxy: (N, 4) float32 corner boxes in pixels of the original image; they may leave the frame.
        scores: (N,) float32 in [0, 1].
        embeddings: (N, D) float32 unit rows, or None where the detector describes nobody.
        classes: (N,) int64; zeros where not given.

    Raises:
        ValueError: a wrong shape, a non-finite value (the row is named), or an embedding row of length zero.
    """

    xyxy: FloatArray
    scores: FloatArray
    embeddings: FloatArray | None = None
    classes: IntArray | None = None

    def __post_init__(self) -> None:
        xyxy = np.ascontiguousarray(self.xyxy, dtype=np.float32)
        if xyxy.size == 0:
            xyxy = xyxy.reshape(0, 4)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4:
            raise ValueError(f"xyxy: expected shape (N, 4), got {xyxy.shape}")
        n = len(xyxy)
        scores = np.ascontiguousarray(self.scores, dtype=np.float32)
        if scores.shape != (n,):
            raise ValueError(f"scores: expected shape ({n},), got {scores.shape}")
        _check_finite("xyxy", xyxy)
        _check_finite("scores", scores)
        classes = np.zeros(n, dtype=np.int64) if self.classes is None else np.asarray(self.classes, dtype=np.int64)
        if classes.shape != (n,):
            raise ValueError(f"classes: expected shape ({n},), got {classes.shape}")
        embeddings = self.embeddings
        if embeddings is not None:
            embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
            if embeddings.ndim != 2 or len(embeddings) != n:
                raise ValueError(f"embeddings: expected shape ({n}, D), got {embeddings.shape}")
            _check_finite("embeddings", embeddings)
            norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
            if (norms == 0).any():
                raise ValueError(f"embeddings: row {int(np.argmin(norms))} has length zero")
            embeddings = embeddings / norms
        for name, value in (("xyxy", xyxy), ("scores", scores), ("embeddings", embeddings), ("classes", classes)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Detections:
        """Rows chosen by a mask, an index array or a slice."""
        return Detections(
            self.xyxy[rows],
            self.scores[rows],
            None if self.embeddings is None else self.embeddings[rows],
            None if self.classes is None else self.classes[rows],
        )

    @classmethod
    def empty(cls) -> Detections:
        """No detection at all."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def from_torchvision(cls, prediction: Mapping[str, Any]) -> Detections:
        """Read torchvision's detection dictionary: `boxes` (N, 4) xyxy, `scores` (N,), optional `labels`, `embeddings`.

        Values may be NumPy arrays or CPU tensors.
        """
        for key in ("boxes", "scores"):
            if key not in prediction:
                raise ValueError(f"prediction: expected key {key!r}, got {sorted(prediction)}")
        embeddings, labels = prediction.get("embeddings"), prediction.get("labels")
        return cls(
            np.asarray(prediction["boxes"]),
            np.asarray(prediction["scores"]),
            None if embeddings is None else np.asarray(embeddings),
            None if labels is None else np.asarray(labels),
        )


@dataclass(frozen=True)
class FrameResult:
    """The identities in one frame.

    Attributes:
        frame: 1-based frame number.
        track_ids: (M,) int64, unique within the frame, counted from 1.
        xyxy: (M, 4) float32 boxes in pixels of the original image.
        scores: (M,) float32 scores of the detections matched in this frame.
        classes: (M,) int64.
    """

    frame: int
    track_ids: IntArray
    xyxy: FloatArray
    scores: FloatArray
    classes: IntArray

    def __len__(self) -> int:
        return len(self.track_ids)


def _check_finite(name: str, values: FloatArray) -> None:
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1) if values.size else np.ones(0, bool)
    if not finite.all():
        raise ValueError(f"{name}: row {int(np.argmin(finite))} is not finite: {values[np.argmin(finite)]}")
