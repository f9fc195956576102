"""A trained model made ready to look at frames: letterbox, one pass, people in original pixels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detector.checkpoint import load_model
from detector.darknet import DarknetJDE
from detector.engine import (
    Engine,
    Forward,
    Precision,
    Replayed,
    choose,
    dense_forward,
    fused,
    people_session,
    quickened,
)
from detector.model import JDE
from detector.postprocess import postprocess
from detector.priors import STRIDES, Canvas, Picks, rows_at

if TYPE_CHECKING:
    from detector.exported import ExportedDetector

MAX_INPUT_SIZE = 8192


@dataclass(frozen=True)
class DetectorConfig:
    """How a model looks at frames."""

    input_size: int | None = None
    """Long side of the network input in pixels, a multiple of 32. None is the family's own: 640 for the compact one,
    whose short side follows the frame; what the network was trained for on Darknet-53, whose input has one shape."""
    score_thresh: float = 0.1
    """Boxes that score lower are not reported; the tracker sets its own, higher thresholds."""
    nms_thresh: float | None = None
    """Of two boxes whose IoU is higher, the one that scores lower is dropped. None is the family's own: 0.65 for the
    compact one, 0.4 on Darknet-53."""
    max_detections: int = 300
    """At most this many boxes a frame, the best."""
    engine: Engine = "auto"
    """What runs the network: "onnxruntime" (CPU alone), "torch", or the faster of them on the device at hand."""
    precision: Precision = "auto"
    """Numbers the convolutions compute with: "fp32", "bf16", "fp16" (GPU alone); "auto" is fp32 by ONNX Runtime, else
    what the device at hand multiplies fastest. Where lower precision does not agree with fp32, that is used."""

    def __post_init__(self) -> None:
        size = self.input_size
        if size is not None and (not STRIDES[-1] <= size <= MAX_INPUT_SIZE or size % STRIDES[-1]):
            raise ValueError(
                f"input_size: expected a positive multiple of {STRIDES[-1]} up to {MAX_INPUT_SIZE}, got {size}"
            )
        for name in ("score_thresh", "nms_thresh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
        for name, kinds in (("engine", Engine), ("precision", Precision)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")


def letterbox(
    image: NDArray[np.uint8], canvas: Canvas, pad_value: int, out: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[int, int]]:
    """Scale an image, straight into its place on grey.

    Args:
        image: (H, W, 3) uint8.
        canvas: size of the network input, and how the image lies in it.
        pad_value: the grey.
        out: (h, w, 3) uint8, where to draw; None for a new array.

    Returns:
        The network input (h, w, 3) uint8, the scale (x, y): input pixels per image pixel, and the place (x, y) of the
        image's corner in the input.
    """
    height, width = image.shape[:2]
    new_width = min(max(round(width * canvas.ratio), 1), canvas.width)
    new_height = min(max(round(height * canvas.ratio), 1), canvas.height)
    x, y = ((canvas.width - new_width) // 2, (canvas.height - new_height) // 2) if canvas.centred else (0, 0)
    pixels: NDArray[np.uint8] = np.empty((canvas.height, canvas.width, 3), np.uint8) if out is None else out
    for margin in (pixels[:y], pixels[y + new_height :], pixels[:, :x], pixels[:, x + new_width :]):
        margin[...] = pad_value
    # Plain bilinear shrinking skips pixels beyond a factor of two; area averaging does not.
    mode = cv2.INTER_AREA if canvas.ratio < 0.5 or (canvas.centred and canvas.ratio < 1) else cv2.INTER_LINEAR
    cv2.resize(image, (new_width, new_height), pixels[y : y + new_height, x : x + new_width], interpolation=mode)
    return pixels, (new_width / width, new_height / height), (x, y)


def letterbox_batch(
    images: Sequence[NDArray[np.uint8]], canvas: Canvas, pad_value: int
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[int, int]]:
    """The same for images of one size: (B, h, w, 3), with the scale and place that all of them have."""
    pixels: NDArray[np.uint8] = np.empty((len(images), canvas.height, canvas.width, 3), np.uint8)
    drawn = [letterbox(image, canvas, pad_value, out) for image, out in zip(images, pixels, strict=True)]
    return pixels, *drawn[0][1:]


class Detector:
    """A model bound to a device and a configuration.

    Called with frames, it returns the people in each as NumPy arrays: `boxes` (N, 4) float32 xyxy in pixels of
    the frame, `scores` (N,) float32, `labels` (N,) int64, and `embeddings` (N, D) float32 unit rows.
    Calls from several threads at once are safe: nothing is kept between them. `config` is the configuration with the
    family's own values in place of None.

    With `patches` there are also the `patches` that the embeddings were computed from, on the device: `Patches` of
    detector/patches.py.
    """

    def __init__(
        self,
        model: JDE | DarknetJDE,
        device: torch.device | str = "cpu",
        config: DetectorConfig | None = None,
        *,
        patches: bool = False,
    ) -> None:
        config = config or DetectorConfig()
        self.device = torch.device(device)
        engine, precision = choose(model, self.device, config.engine, config.precision)
        model = fused(model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if engine == "torch":
            model, precision = quickened(model, self.device, precision)
        self.model, self.patches = model, patches
        self.config = replace(
            config,
            input_size=config.input_size or model.input_size,
            nms_thresh=model.nms_thresh if config.nms_thresh is None else config.nms_thresh,
            engine=engine,
            precision=precision,
        )
        self._people = None
        if engine == "onnxruntime" and not patches:
            self._people = people_session(model, *self._limits)
        else:
            _ = self._forward  # made here, not by several threads at once

    @functools.cached_property
    def _forward(self) -> Forward:
        """The dense part alone."""
        forward = dense_forward(self.model, self.device, self.config.engine)
        return Replayed(forward, self.device) if self.device.type == "cuda" else forward

    @property
    def _limits(self) -> tuple[float, float, int]:
        assert self.config.nms_thresh is not None
        return self.config.score_thresh, self.config.nms_thresh, self.config.max_detections

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Find the people in frames.

        Args:
            frames: images (H, W, 3) uint8 BGR; sizes may differ, equal ones share a batch.

        Returns:
            One dictionary a frame, rows by falling score.

        Raises:
            ValueError: a frame is not an (H, W, 3) uint8 image with pixels.
        """
        return in_batches(frames, self._batch)

    @torch.inference_mode()
    def embed(self, frame: NDArray[np.uint8], boxes: NDArray[Any]) -> NDArray[np.float32]:
        """Embeddings of people whose boxes are known.

        Each is described at the level that is surest of a person at the box's centre.

        Args:
            frame: (H, W, 3) uint8 BGR.
            boxes: (N, 4) xyxy in pixels of the frame.

        Returns:
            (N, D) float32 unit rows.

        Raises:
            ValueError: no such frame or boxes, or a model without embedding head.
        """
        check_frame("frame", frame)
        if not self.model.config.embedding_dim:
            raise ValueError("embed: the model has no embedding head")
        boxes = np.asarray(boxes, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes: expected finite numbers of shape (N, 4), got {boxes.shape}")
        pixels, scale, place = self._letterbox([frame])
        raw, features = self._forward(torch.from_numpy(pixels))
        scaled = torch.from_numpy(boxes * np.array(scale * 2, np.float32) + np.array(place * 2, np.float32))
        scaled = scaled.to(self.device)
        priors = self.model.priors(raw)
        scores = self.model.scores(self.model.flatten(raw)[0])[0]  # (A,)
        centre = (scaled[:, :2] + scaled[:, 2:]) / 2
        candidates = rows_at(centre, raw, len(scores) // sum(m[0, 0].numel() for m in raw))
        surest = candidates.gather(1, scores[candidates].argmax(1, keepdim=True))[:, 0]
        picks = Picks.of(priors, surest, torch.zeros_like(surest), scaled)
        return np.asarray(self.model.embed(features, picks).cpu().numpy(), np.float32)

    def _letterbox(
        self, frames: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[int, int]]:
        height, width = frames[0].shape[:2]
        canvas = self.model.canvas(height, width, self.config.input_size)
        return letterbox_batch(frames, canvas, self.model.pad_value)

    def _batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        pixels, scale, place = self._letterbox(frames)
        found = by_image(len(frames), *self._people(pixels)) if self._people else self._search(pixels)
        corner, factor = np.array(place * 2, np.float32), np.array(scale * 2, np.float32)
        for prediction in found:
            prediction["boxes"] = (prediction["boxes"] - corner) / factor
        return found

    @torch.inference_mode()
    def _search(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """People by the dense part and `postprocess`."""
        raw, features = self._forward(torch.from_numpy(pixels))
        return [
            {name: value if name == "patches" else value.cpu().numpy() for name, value in prediction.items()}
            for prediction in postprocess(self.model, raw, features, *self._limits, patches=self.patches)
        ]


def in_batches(
    frames: Sequence[NDArray[np.uint8]],
    find: Callable[[Sequence[NDArray[np.uint8]]], list[dict[str, Any]]],
    most: int | None = None,
) -> list[dict[str, Any]]:
    """Look at frames of any sizes, those of one size together.

    Args:
        frames: images (H, W, 3) uint8.
        find: looks at frames of one size; returns one result a frame.
        most: frames in one call of it; None for any number.

    Returns:
        The results in the order of the frames.

    Raises:
        ValueError: a frame is not an (H, W, 3) uint8 image with pixels.
    """
    frames = list(frames)  # a generator would be over before it is looked at
    for i, frame in enumerate(frames):
        check_frame(f"frame {i}", frame)
    results: list[dict[str, Any]] = [{} for _ in frames]
    for shape in dict.fromkeys(frame.shape for frame in frames):
        rows = [i for i, frame in enumerate(frames) if frame.shape == shape]
        step = most or len(rows)
        for first in range(0, len(rows), step):
            batch = rows[first : first + step]
            for i, found in zip(batch, find([frames[i] for i in batch]), strict=True):
                results[i] = found
    return results


def by_image(
    count: int,
    image: NDArray[np.int64],
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    embeddings: NDArray[np.float32] | None = None,
) -> list[dict[str, Any]]:
    """What a "people" graph returns for a batch of `count` images, as one dictionary an image; see `PeopleGraph`."""
    table: dict[str, NDArray[Any]] = {"boxes": boxes, "scores": scores, "labels": labels}
    table |= {} if embeddings is None else {"embeddings": embeddings}
    starts = np.searchsorted(image, np.arange(count + 1))
    return [{name: rows[a:b] for name, rows in table.items()} for a, b in itertools.pairwise(starts)]


def load_detector(
    weights: str | Path | None = None, device: str = "auto", config: DetectorConfig | None = None
) -> Detector | ExportedDetector:
    """Load a model file and make it ready.

    Args:
        weights: a `.safetensors` model file, or a published JDE `.pt`; or what tools/export.py wrote, see
            detector/readers.py; None is the bundled nano model.
        device: "auto" (a CUDA device where there is one), "cpu", "cuda" or "cuda:N".
        config: how to look; None is the default.

    Raises:
        ValueError: the weights file or the device cannot be used.
    """
    from detector.exported import load_exported  # which needs this module
    from detector.readers import FORMATS

    if weights is not None and Path(weights).suffix.lower() in FORMATS:
        return load_exported(weights, device, config)
    return Detector(load_model(weights), choose_device(device), config)


def choose_device(device: str) -> torch.device:
    """The device of that name; of "auto" a CUDA device where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}") from None
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device!r} asked for, but {torch.cuda.device_count()} CUDA devices are available")
    return place


def check_frame(name: str, frame: NDArray[Any]) -> None:
    """Refuse what is no (H, W, 3) uint8 image with pixels."""
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{name}: expected (H, W, 3) uint8, got {type(frame).__name__}")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise ValueError(f"{name}: expected (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
