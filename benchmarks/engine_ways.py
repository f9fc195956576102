"""Every way to run the compact network on a CPU that benchmarks/engines.py compares."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.coco_people import MAX_DETECTIONS, NMS_THRESH, SCORE_THRESH
from detector import DetectorConfig, load_detector, load_model
from detector.checkpoint import family_of
from detector.engine import multiplies_bfloat16
from detector.evaluation import Detect
from detector.exported import ExportedDetector
from detector.graph import INPUT
from detector.inference import letterbox_batch
from detector.manifest import Manifest
from detector.openvino_library import import_openvino, signal_stack_kept
from detector.postprocess import postprocess
from detector.quantize import calibration_batches, quantize_onnx, quantize_openvino
from detector.readers import open_exported
from detector.writers import WRITERS

EAGER, FUSED, BUILT_IN = "eager", "torch", "built-in"
FILES = {
    "onnx": ("onnx", "fp32"),
    "onnx-int8": ("onnx", "int8"),
    "openvino": ("openvino", "fp32"),
    "openvino-bf16": ("openvino", "fp32"),
    "openvino-int8": ("openvino", "int8"),
    "torchscript": ("torchscript", "fp32"),
}
"""Way -> format of tools/export.py, and precision."""
WAYS = (EAGER, FUSED, BUILT_IN, *FILES)
NEEDS = {"openvino": ("openvino",), "openvino-bf16": ("openvino",), "openvino-int8": ("openvino", "nncf")}
USUAL, LOW = DetectorConfig(), DetectorConfig(None, SCORE_THRESH, NMS_THRESH, MAX_DETECTIONS)
"""What `tools/track.py` asks of a detector, and what average precision does."""

Frame = NDArray[np.uint8]


class EagerDetector:
    """A model as it was trained, by torch, with what a `Detector` does around it."""

    def __init__(self, model: Any, config: DetectorConfig) -> None:
        self.model, self.config = model.eval(), config

    @torch.inference_mode()
    def forward(self, pixels: Frame) -> Any:
        """The dense part: (B, H, W, 3) letterboxed bytes -> raw maps and feature maps."""
        return self.model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())

    @torch.inference_mode()
    def __call__(self, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        """As `Detector` does, frame by frame."""
        return [self._find(frame) for frame in frames]

    def _find(self, frame: Frame) -> dict[str, Any]:
        canvas = self.model.canvas(*frame.shape[:2], None)
        pixels, scale, place = letterbox_batch([frame], canvas, self.model.pad_value)
        limits = self.config.score_thresh, self.config.nms_thresh or self.model.nms_thresh, self.config.max_detections
        (found,) = postprocess(self.model, *self.forward(pixels), *limits)
        arrays = {name: value.numpy() for name, value in found.items()}
        return arrays | {"boxes": (arrays["boxes"] - np.float32(place * 2)) / np.float32(scale * 2)}


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Attributes:
        name: one of `WAYS`.
        forward: makes the dense part: (1, H, W, 3) letterboxed bytes -> anything.
        detect: makes the detector of a configuration, `USUAL` or `LOW`.
        options: of `tools/track.py`; None where that has none for it.
        size: bytes to be stored.
    """

    name: str
    forward: Callable[[], Callable[[Frame], Any]]
    detect: Callable[[DetectorConfig], Detect]
    options: list[str] | None
    size: int


def left_out(name: str) -> str | None:
    """Why this machine cannot run a way; None where it can."""
    missing = [library for library in NEEDS.get(name, ()) if importlib.util.find_spec(library) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "the processor has no bf16" if name.endswith("-bf16") and not multiplies_bfloat16() else None


def make_way(name: str, weights: Path, folder: Path, calibration: Sequence[Path], count: int) -> Way:
    """A way to run the weights; exported files are written to the folder."""
    if name == EAGER:
        make = functools.partial(EagerDetector, load_model(weights))
        return Way(name, lambda: make(USUAL).forward, make, None, weights.stat().st_size)
    if name in FILES:
        paths = [write(name, weights, folder, config, calibration, count) for config in (None, USUAL, LOW)]
        run = functools.partial(open_file, bf16=name == "openvino-bf16")

        def detect(config: DetectorConfig) -> Detect:
            return ExportedDetector(run(paths[1 if config is USUAL else 2]))

        size = sum(part.stat().st_size for part in {paths[1], paths[1].with_suffix(".bin")} if part.exists())
        options = None if name == "openvino-bf16" else ["--weights", str(paths[1])]
        return Way(name, lambda: run(paths[0]).run, detect, options, size)
    changes = {"engine": "torch", "precision": "fp32"} if name == FUSED else {}

    def load(config: DetectorConfig) -> Any:
        return load_detector(weights, "cpu", dataclasses.replace(config, **changes))

    def forward() -> Callable[[Frame], Any]:
        dense = load(USUAL)._forward
        return torch.inference_mode()(lambda pixels: dense(torch.from_numpy(pixels)))

    options = ["--weights", str(weights), "--set", *(f"detector.{key}={value}" for key, value in changes.items())]
    return Way(name, forward, load, options if changes else options[:2], weights.stat().st_size)


def write(
    name: str, weights: Path, folder: Path, config: DetectorConfig | None, calibration: Sequence[Path], count: int
) -> Path:
    """Export the graph of people for a configuration, or without one the graph of maps; once for each format."""
    kind, precision = FILES[name]
    limits = config or USUAL
    model = load_model(weights)
    manifest = Manifest(
        family=family_of(model),
        model=dataclasses.asdict(model.config),
        graph="people" if config else "maps",
        precision=precision,
        input_size=model.input_size,
        score_thresh=limits.score_thresh,
        nms_thresh=limits.nms_thresh or model.nms_thresh,
        max_detections=limits.max_detections,
        weights=weights.name,
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )
    suffix, writer = WRITERS[kind]
    stem = "maps" if config is None else "usual" if config is USUAL else "low"
    place = folder / kind / precision
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{stem}{suffix}"
    if path.exists():
        return path
    if precision == "fp32":
        writer(model, manifest, path)
        return path
    source = place / f"{stem}-source{suffix}"
    writer(model, manifest, source)
    quantize = quantize_onnx if kind == "onnx" else quantize_openvino
    quantize(source, path, pictures(calibration, model, count))
    return path


def pictures(calibration: Sequence[Path], model: Any, count: int) -> Iterator[Frame]:
    """As many pictures of each folder or video, `count` in all."""

    def shrink(frame: Frame) -> Frame:
        return letterbox_batch([frame], model.canvas(*frame.shape[:2], None), model.pad_value)[0][0]

    each = max(count // len(calibration), 1)
    return itertools.chain.from_iterable(calibration_batches(path, shrink, each) for path in calibration)


def open_file(path: Path, *, bf16: bool) -> Any:
    """An exported file; with `bf16`, OpenVINO may compute in it, which detector/readers.py does not let it."""
    opened = open_exported(path, "cpu")
    if not bf16:
        return opened
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
    with signal_stack_kept():
        request = import_openvino().Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(frames: Frame) -> list[NDArray[Any]]:
        answers = request.infer({INPUT: frames})
        return [answers[output] for output in request.model_outputs]

    return dataclasses.replace(opened, run=run)
