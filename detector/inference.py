"""A trained model made ready to look at frames: letterbox, one pass, people in original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detector.checkpoint import load_model
from detector.csp import STRIDES
from detector.engine import Engine, dense_forward, fused
from detector.model import JDE
from detector.postprocess import postprocess

PAD_VALUE = 114
MAX_INPUT_SIZE = 8192


@dataclass(frozen=True)
class DetectorConfig:
    """How a model looks at frames."""

    input_size: int = 640
    """Long side of the network input in pixels, a multiple of 32; the short side follows the frame."""
    score_thresh: float = 0.1
    """Boxes that score lower are not reported; the tracker sets its own, higher thresholds."""
    nms_thresh: float = 0.65
    """Of two boxes whose IoU is higher, the one that scores lower is dropped."""
    max_detections: int = 300
    """At most this many boxes a frame, the best."""
    engine: Engine = "auto"
    """What runs the convolutions: "onnxruntime" (CPU alone), "torch", or the faster of them on the device at hand."""

    def __post_init__(self) -> None:
        if not STRIDES[-1] <= self.input_size <= MAX_INPUT_SIZE or self.input_size % STRIDES[-1]:
            raise ValueError(
                f"input_size: expected a positive multiple of {STRIDES[-1]} up to {MAX_INPUT_SIZE}, "
                f"got {self.input_size}"
            )
        for name in ("score_thresh", "nms_thresh"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine: expected one of {', '.join(get_args(Engine))}, got {self.engine!r}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")


def letterbox(image: NDArray[np.uint8], input_size: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Scale an image so that its long side is `input_size`, then pad right and bottom with grey to multiples of 32.

    Args:
        image: (H, W, 3) uint8.
        input_size: long side in pixels, a multiple of 32.

    Returns:
        The network input (h, w, 3) uint8, and the scale (x, y): input pixels per image pixel.
    """
    height, width = image.shape[:2]
    ratio = input_size / max(height, width)
    new_width, new_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
    grid = STRIDES[-1]
    canvas = np.full((-(-new_height // grid) * grid, -(-new_width // grid) * grid, 3), PAD_VALUE, np.uint8)
    # Plain bilinear shrinking skips pixels beyond a factor of two; area averaging does not.
    mode = cv2.INTER_AREA if ratio < 0.5 else cv2.INTER_LINEAR
    canvas[:new_height, :new_width] = cv2.resize(image, (new_width, new_height), interpolation=mode)
    return canvas, (new_width / width, new_height / height)


class Detector:
    """A model bound to a device and a configuration.

    Called with frames, it returns the people in each as NumPy arrays: `boxes` (N, 4) float32 xyxy in pixels of
    the frame, `scores` (N,) float32, `labels` (N,) int64, and `embeddings` (N, D) float32 unit rows.
    Calls from several threads at once are safe: nothing is kept between them.
    """

    def __init__(self, model: JDE, device: torch.device | str = "cpu", config: DetectorConfig | None = None) -> None:
        self.config = config or DetectorConfig()
        self.device = torch.device(device)
        self.model = fused(model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward = dense_forward(self.model, self.device, self.config.engine)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, NDArray[Any]]]:
        """Find the people in frames.

        Args:
            frames: images (H, W, 3) uint8 BGR; sizes may differ, equal ones share a batch.

        Returns:
            One dictionary a frame, rows by falling score.

        Raises:
            ValueError: a frame is not an (H, W, 3) uint8 image with pixels.
        """
        for i, frame in enumerate(frames):
            _check_frame(f"frame {i}", frame)
        results: list[dict[str, NDArray[Any]]] = [{} for _ in frames]
        for shape in dict.fromkeys(frame.shape for frame in frames):
            rows = [i for i, frame in enumerate(frames) if frame.shape == shape]
            for i, found in zip(rows, self._batch([frames[i] for i in rows]), strict=True):
                results[i] = found
        return results

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
        _check_frame("frame", frame)
        if not self.model.config.embedding_dim:
            raise ValueError("embed: the model has no embedding head")
        boxes = np.asarray(boxes, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes: expected finite numbers of shape (N, 4), got {boxes.shape}")
        pixels, scale = letterbox(frame, self.config.input_size)
        raw, features = self._forward(torch.from_numpy(pixels[None]))
        scaled = torch.from_numpy(boxes * np.array(scale * 2, np.float32))
        scaled = scaled.to(self.device)
        centre = (scaled[:, :2] + scaled[:, 2:]) / 2
        surest = []
        for stride, output in zip(STRIDES, raw, strict=True):
            x = (centre[:, 0] / stride).long().clamp(0, output.shape[3] - 1)
            y = (centre[:, 1] / stride).long().clamp(0, output.shape[2] - 1)
            logits = output[0, 4:, y, x].float().sigmoid()  # (1 + C, N)
            surest.append(logits[0] * logits[1:].amax(0))
        levels = torch.stack(surest).argmax(0)
        embeddings = self.model.embed(features, levels, scaled, torch.zeros_like(levels))
        return np.asarray(embeddings.cpu().numpy(), np.float32)

    @torch.inference_mode()
    def _batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, NDArray[Any]]]:
        inputs, scales = zip(*(letterbox(frame, self.config.input_size) for frame in frames), strict=True)
        raw, features = self._forward(torch.from_numpy(np.stack(inputs)))
        config = self.config
        found = postprocess(self.model, raw, features, config.score_thresh, config.nms_thresh, config.max_detections)
        scale = np.array(scales[0] * 2, np.float32)
        results = []
        for prediction in found:
            arrays = {name: value.cpu().numpy() for name, value in prediction.items()}
            arrays["boxes"] = arrays["boxes"] / scale
            results.append(arrays)
        return results


def load_detector(
    weights: str | Path | None = None, device: str = "auto", config: DetectorConfig | None = None
) -> Detector:
    """Load a model file and make it ready.

    Args:
        weights: a `.safetensors` model file; None is the bundled nano model.
        device: "auto" (a CUDA device where there is one), "cpu", "cuda" or "cuda:N".
        config: how to look; None is the default.

    Raises:
        ValueError: the weights file or the device cannot be used.
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
    return Detector(load_model(weights), place, config)


def _check_frame(name: str, frame: NDArray[Any]) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise ValueError(f"{name}: expected (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
