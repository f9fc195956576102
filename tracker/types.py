"""What flows between the parts: detections in, identities out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

LARGEST_COORDINATE = 1e15
"""No pixel is this far away; squares of greater numbers would leave single precision."""

# A score this far outside [0, 1] is rounding (a product or mean of probabilities), and brought back.
_ROUNDING = 1e-4
# Between these lengths the squares of an embedding's values stay within float32.
_SAFE_LENGTHS = (1e-12, 1e12)


@dataclass(frozen=True)
class Detections:
    """What was found in one frame.

    Shapes and values are checked here, once; everything behind trusts the arrays. They are copies: the caller may
    overwrite its own afterwards. Numbers may come as arrays, lists or tensors (also on a GPU or with gradients).

    Attributes:
        xyxy: (N, 4) float32 corner boxes in pixels of the original image; they may leave the frame.
        scores: (N,) float32 in [0, 1].
        embeddings: (N, D) float32 unit rows, or None where the detector describes nobody.
        classes: (N,) int64; zeros where not given.

    Raises:
        ValueError: no numbers, a wrong shape, a value that float32 cannot hold (NaN and inf among them), a score
            outside [0, 1], a class that is no whole number, or an embedding of length zero; the row is named.
    """

    xyxy: FloatArray
    scores: FloatArray
    embeddings: FloatArray | None = None
    classes: IntArray | None = None

    def __post_init__(self) -> None:
        xyxy = _as_float32("xyxy", self.xyxy)
        if xyxy.size == 0:
            xyxy = xyxy.reshape(0, 4)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4:
            raise ValueError(f"xyxy: expected shape (N, 4), got {xyxy.shape}")
        if (np.abs(xyxy) > LARGEST_COORDINATE).any():
            row = int(np.argwhere(np.abs(xyxy) > LARGEST_COORDINATE)[0][0])
            raise ValueError(f"xyxy: row {row}: expected coordinates up to {LARGEST_COORDINATE:g}, got {xyxy[row]}")
        scores = _as_scores(self.scores, len(xyxy))
        classes = _as_classes(self.classes, len(xyxy))
        embeddings = None if self.embeddings is None else _as_unit_rows(self.embeddings, len(xyxy))
        for name, value in (("xyxy", xyxy), ("scores", scores), ("embeddings", embeddings), ("classes", classes)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Detections:
        """Rows chosen by a mask, an index array or a slice."""
        chosen = object.__new__(Detections)  # rows of checked arrays need no second check
        for name in ("xyxy", "scores", "embeddings", "classes"):
            value = getattr(self, name)
            object.__setattr__(chosen, name, None if value is None else value[rows])
        if chosen.scores.ndim != 1:
            raise ValueError(f"rows: expected a mask, an index array or a slice, got {rows!r}")
        return chosen

    @classmethod
    def empty(cls) -> Detections:
        """No detection at all."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def from_torchvision(cls, prediction: Mapping[str, Any], embeddings: Any = None) -> Detections:
        """Read torchvision's dictionary of a frame.

        Args:
            prediction: `boxes` (N, 4) xyxy, `scores` (N,) and, where it has them, `labels` and `embeddings` (N, D);
                arrays or tensors, on any device.
            embeddings: (N, D); in place of the dictionary's.

        Raises:
            ValueError: a key is missing, or as for `Detections`.
        """
        for key in ("boxes", "scores"):
            if key not in prediction:
                raise ValueError(f"prediction: expected key {key!r}, got {sorted(prediction)}")
        if embeddings is None:
            embeddings = prediction.get("embeddings")
        return cls(prediction["boxes"], prediction["scores"], embeddings, prediction.get("labels"))

    @classmethod
    def from_supervision(cls, detections: Any, embeddings: Any = None) -> Detections:
        """Read a `Detections` of the package supervision: `xyxy`, `confidence` and `class_id`.

        Args:
            detections: scores count as 1 where `confidence` is None, classes as 0 where `class_id` is None.
            embeddings: (N, D); else `data["embeddings"]` where there is such an entry.

        Raises:
            ValueError: another kind of object, or as for `Detections`.
        """
        _check_attributes("detections", detections, ("xyxy", "confidence", "class_id"))
        scores: Any = detections.confidence
        if scores is None:
            scores = np.ones(len(detections.xyxy), np.float32)
        if embeddings is None:
            embeddings = (getattr(detections, "data", None) or {}).get("embeddings")
        return cls(detections.xyxy, scores, embeddings, detections.class_id)

    @classmethod
    def from_ultralytics(cls, result: Any, embeddings: Any = None) -> Detections:
        """Read what Ultralytics' detectors give for a frame.

        Args:
            result: a `Results`, its `boxes`, or rows: (N, 5) `x1, y1, x2, y2, score`, (N, 6) with a class behind, or
                (N, 7) with a track id, which is not used, between box and score. Pixels of the original image.
            embeddings: (N, D).

        Raises:
            ValueError: another kind of object, the results of several frames, or as for `Detections`.
        """
        if hasattr(result, "boxes"):
            if result.boxes is None:
                raise ValueError("result: expected boxes, got None; is it a model that detects?")
            result = result.boxes
        if hasattr(result, "xyxy"):
            _check_attributes("result", result, ("conf", "cls"))
            return cls(result.xyxy, result.conf, embeddings, result.cls)
        if isinstance(result, (list, tuple)) and any(hasattr(item, "boxes") for item in result):
            raise ValueError(f"result: expected the result of one frame, got a list of {len(result)}; pass result[0]")
        rows = _as_numbers("result", result)
        if rows.size == 0:
            rows = rows.reshape(0, 6)
        if rows.ndim != 2 or rows.shape[1] not in (5, 6, 7):
            raise ValueError(f"result: expected rows of 5, 6 or 7 numbers, got shape {rows.shape}")
        if rows.shape[1] == 5:
            return cls(rows[:, :4], rows[:, 4], embeddings)
        return cls(rows[:, :4], rows[:, -2], embeddings, rows[:, -1])


@dataclass(frozen=True)
class FrameResult:
    """The identities in one frame.

    Attributes:
        frame: 1-based frame number.
        track_ids: (M,) int64, unique within the frame, counted from 1.
        xyxy: (M, 4) float32 boxes in pixels of the original image.
        scores: (M,) float32 scores of the detections matched last.
        classes: (M,) int64.
        embeddings: (M, D) float32 smoothed unit embeddings of the tracks, zeros where a track was never described;
            None where nobody is.
        predicted: (M,) bool, True where no detection was matched in this frame and the box is the motion's guess, see
            `TrackerConfig.coast_seconds`; its score is the last one's. None where nobody tells.
    """

    frame: int
    track_ids: IntArray
    xyxy: FloatArray
    scores: FloatArray
    classes: IntArray
    embeddings: FloatArray | None = None
    predicted: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.track_ids)


def _as_numbers(name: str, values: Any) -> NDArray[Any]:
    """Anything array-like as an array of integers or floats, not copied where it is one."""
    if hasattr(values, "detach"):  # a tensor: NumPy reads none that lies on a GPU, has gradients, or is bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name}: expected an array of numbers, got rows of different lengths") from None
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected an array of numbers, got one of {array.dtype}")
    return array


def _as_float32(name: str, values: Any) -> FloatArray:
    """A copy in float32, rows checked to be finite."""
    given = _as_numbers(name, values)
    with np.errstate(over="ignore"):  # becomes inf, which is refused below
        array = np.array(given, dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
        raise ValueError(f"{name}: row {row} is not finite in float32: {np.atleast_1d(given)[row]}")
    return array


def _as_scores(values: Any, count: int) -> FloatArray:
    scores = _as_float32("scores", values)
    if scores.shape != (count,):
        raise ValueError(f"scores: expected shape ({count},), got {scores.shape}")
    outside = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"scores: row {row}: expected a number in [0, 1], got {scores[row]:g}")
    return np.clip(scores, 0, 1, out=scores)


def _as_classes(values: Any, count: int) -> IntArray:
    if values is None:
        return np.zeros(count, np.int64)
    given = _as_numbers("classes", values)
    if given.shape != (count,):
        raise ValueError(f"classes: expected shape ({count},), got {given.shape}")
    if given.dtype.kind == "f":
        whole = (given == np.floor(given)) & (np.abs(given) < 2**53)  # false for NaN and inf, too
        if not whole.all():
            row = int(np.argmin(whole))
            raise ValueError(f"classes: row {row}: expected a whole number, got {given[row]:g}")
    return np.array(given, dtype=np.int64)


def _as_unit_rows(values: Any, count: int) -> FloatArray:
    embeddings = _as_float32("embeddings", values)
    if count == 0 and embeddings.size == 0:
        return embeddings.reshape(0, embeddings.shape[1] if embeddings.ndim == 2 else 0)
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise ValueError(f"embeddings: expected shape ({count}, D), got {embeddings.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    if not (norms.min() > _SAFE_LENGTHS[0] and norms.max() < _SAFE_LENGTHS[1]):
        largest = np.abs(embeddings).max(axis=1, initial=0)
        if not largest.all():
            raise ValueError(f"embeddings: row {int(np.argmin(largest))} has length zero")
        embeddings = embeddings / largest[:, None]
        norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    embeddings /= norms[:, None]
    return embeddings


def _check_attributes(name: str, value: Any, expected: tuple[str, ...]) -> None:
    missing = [attribute for attribute in expected if not hasattr(value, attribute)]
    if missing:
        raise ValueError(f"{name}: expected attributes {', '.join(expected)}, got {type(value).__name__} without them")
