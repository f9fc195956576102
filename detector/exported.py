"""Exported models, ready to look at frames: everything needed is in the file, see detector/manifest.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.inference import DetectorConfig, by_image, in_batches, letterbox_batch
from detector.manifest import Precision, build_meta
from detector.readers import Opened, open_exported


@dataclass(frozen=True)
class ExportedConfig:
    """How an exported model looks at frames."""

    input_size: int
    """As in `DetectorConfig`."""
    score_thresh: float
    """Baked in, or higher."""
    nms_thresh: float
    """Baked in."""
    max_detections: int
    """Baked in, or lower."""
    engine: str
    """What runs it."""
    precision: Precision
    """Numbers that the convolutions use."""
    weights: str
    """Name of the weights file it was made from."""
    weights_sha256: str
    """That file's SHA-256."""


class ExportedDetector:
    """An exported model with the interface of `Detector`: frames in, people in pixels of the frames out.

    Args:
        opened: a file with a "people" graph.
        config: values that may still differ from those baked in; None stands for those.

    Raises:
        ValueError: settings that the file cannot follow.
    """

    def __init__(self, opened: Opened, config: DetectorConfig | None = None) -> None:
        baked = opened.manifest
        self.device, self.opened = opened.device, opened
        self._model = build_meta(baked)
        config = config or DetectorConfig(score_thresh=baked.score_thresh, max_detections=baked.max_detections)
        if config.nms_thresh not in (None, baked.nms_thresh):
            raise ValueError(f"nms_thresh: {baked.nms_thresh} is part of the exported model, got {config.nms_thresh}")
        for name in ("engine", "precision"):
            if getattr(config, name, "auto") != "auto":
                raise ValueError(f"{name}: is part of the exported model, expected auto, got {getattr(config, name)}")
        self.config = ExportedConfig(
            input_size=config.input_size or baked.input_size,
            score_thresh=max(config.score_thresh, baked.score_thresh),
            nms_thresh=baked.nms_thresh,
            max_detections=min(config.max_detections, baked.max_detections),
            engine=opened.engine,
            precision=baked.precision,
            weights=baked.weights,
            weights_sha256=baked.weights_sha256,
        )

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Find the people in frames; see `Detector.__call__`."""
        return in_batches(frames, self._batch, self.opened.max_batch)

    def _batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        canvas = self._model.canvas(*frames[0].shape[:2], self.config.input_size)
        pixels, scale, place = letterbox_batch(frames, canvas, self._model.pad_value)
        results = by_image(len(frames), *self.opened.run(pixels))
        corner, factor = np.array(place * 2, np.float32), np.array(scale * 2, np.float32)
        for found in results:  # rows fall by score
            kept = min(int((found["scores"] >= self.config.score_thresh).sum()), self.config.max_detections)
            found.update({name: rows[:kept] for name, rows in found.items()})
            found["boxes"] = (found["boxes"] - corner) / factor
        return results


def load_exported(path: str | Path, device: str = "auto", config: DetectorConfig | None = None) -> ExportedDetector:
    """Open an exported model and make it ready.

    Args:
        path: a file of `readers.FORMATS`.
        device: "auto" (what the file was made for, or the CPU), "cpu", "cuda" or "cuda:N".
        config: how to look; None is what is baked in.

    Raises:
        ValueError: a file that cannot be read, was not written by tools/export.py, holds another graph than people, or
            cannot run on that device; a runtime that is not installed; settings that are baked in otherwise.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt2":  # torch would unpickle some of it
        raise ValueError(f"{path}: a torch.export program cannot hold people, and is for other programs")
    opened = open_exported(path, device)
    if opened.manifest.graph != "people":
        raise ValueError(f"{path}: holds {opened.manifest.graph} for other programs: export it with --graph people")
    return ExportedDetector(opened, config)
