"""A trained model made ready to look at frames: letterbox, one pass, people in original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detector.checkpoint import load_model
from detector.darknet import DarknetJDE
from detector.engine import Engine, dense_forward, fused
from detector.model import JDE
from detector.postprocess import postprocess
from detector.priors import STRIDES, Canvas, Picks, rows_at

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
    """What runs the convolutions: "onnxruntime" (CPU alone), "torch", or the faster of them on the device at hand."""

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
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine: expected one of {', '.join(get_args(Engine))}, got {self.engine!r}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections: expected at least 1, got {self.max_detections}")


def letterbox(
    image: NDArray[np.uint8], canvas: Canvas, pad_value: int
) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[int, int]]:
    """Scale an image and lay it on grey.

    Args:
        image: (H, W, 3) uint8.
        canvas: size of the network input, and how the image lies in it.
        pad_value: the grey.

    Returns:
        The network input (h, w, 3) uint8, the scale (x, y): input pixels per image pixel, and the place (x, y) of the
        image's corner in the input.
    """
    height, width = image.shape[:2]
    new_width = min(max(round(width * canvas.ratio), 1), canvas.width)
    new_height = min(max(round(height * canvas.ratio), 1), canvas.height)
    x, y = ((canvas.width - new_width) // 2, (canvas.height - new_height) // 2) if canvas.centred else (0, 0)
    pixels = np.full((canvas.height, canvas.width, 3), pad_value, np.uint8)
    # Plain bilinear shrinking skips pixels beyond a factor of two; area averaging does not.
    mode = cv2.INTER_AREA if canvas.ratio < 0.5 or (canvas.centred and canvas.ratio < 1) else cv2.INTER_LINEAR
    pixels[y : y + new_height, x : x + new_width] = cv2.resize(image, (new_width, new_height), interpolation=mode)
    return pixels, (new_width / width, new_height / height), (x, y)


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
        self.config = replace(
            config,
            input_size=config.input_size or model.input_size,
            nms_thresh=model.nms_thresh if config.nms_thresh is None else config.nms_thresh,
        )
        self.device = torch.device(device)
        self.patches = patches
        self.model = fused(model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward = dense_forward(self.model, self.device, self.config.engine)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
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
        results: list[dict[str, Any]] = [{} for _ in frames]
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
        pixels, scale, place = self._letterbox(frame)
        raw, features = self._forward(torch.from_numpy(pixels[None]))
        scaled = torch.from_numpy(boxes * np.array(scale * 2, np.float32) + np.array(place * 2, np.float32))
        scaled = scaled.to(self.device)
        priors = self.model.priors(raw)
        scores = self.model.scores(self.model.flatten(raw)[0])[0]  # (A,)
        centre = (scaled[:, :2] + scaled[:, 2:]) / 2
        candidates = rows_at(centre, raw, len(scores) // sum(m[0, 0].numel() for m in raw))
        surest = candidates.gather(1, scores[candidates].argmax(1, keepdim=True))[:, 0]
        picks = Picks.of(priors, surest, torch.zeros_like(surest), scaled)
        return np.asarray(self.model.embed(features, picks).cpu().numpy(), np.float32)

    def _letterbox(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[float, float], tuple[int, int]]:
        canvas = self.model.canvas(*frame.shape[:2], self.config.input_size)
        return letterbox(frame, canvas, self.model.pad_value)

    @torch.inference_mode()
    def _batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        inputs, scales, places = zip(*map(self._letterbox, frames), strict=True)
        raw, features = self._forward(torch.from_numpy(np.stack(inputs)))
        config = self.config
        assert config.nms_thresh is not None
        limits = config.score_thresh, config.nms_thresh, config.max_detections
        found = postprocess(self.model, raw, features, *limits, patches=self.patches)
        scale, place = np.array(scales[0] * 2, np.float32), np.array(places[0] * 2, np.float32)
        results = []
        for prediction in found:
            arrays = {name: value.cpu().numpy() for name, value in prediction.items() if name != "patches"}
            arrays["boxes"] = (arrays["boxes"] - place) / scale
            if self.patches:
                arrays["patches"] = prediction["patches"]
            results.append(arrays)
        return results


def load_detector(
    weights: str | Path | None = None, device: str = "auto", config: DetectorConfig | None = None
) -> Detector:
    """Load a model file and make it ready.

    Args:
        weights: a `.safetensors` model file, or a published JDE `.pt`; None is the bundled nano model.
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
