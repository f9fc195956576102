"""What a training run shows of itself: `log.jsonl`, TensorBoard scalars, pictures of targets and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.losses import IGNORE_LABEL, Targets
from detector.postprocess import postprocess
from detector.priors import Network

PICTURES = 4
TARGET, IGNORED, PREDICTED = (80, 220, 80), (150, 150, 150), (40, 120, 255)
SHOWN_SCORE = 0.3


class Monitor:
    """Writes beside the checkpoints of a run. A run that goes on continues its log where the checkpoint was.

    Args:
        out: folder of the run.
        start: steps that are done; later rows of an earlier log are cut off, those steps are run again. A run that
            starts afresh leaves nothing of an earlier one's validation.
    """

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second: only who trains pays it

        path = out / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True)[:start] if start and path.is_file() else []
        shortened = path.with_suffix(".partial")
        try:
            shortened.write_text("".join(lines))
            shortened.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            shortened.unlink(missing_ok=True)
        if not start:
            for name in ("validation.jsonl", "best.safetensors"):
                (out / name).unlink(missing_ok=True)
        self._log = path.open("a")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1, flush_secs=30)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._board.close()

    def step(self, row: Mapping[str, float]) -> None:
        """One line of the log; `step` counts from 1."""
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._log.write(json.dumps(finite) + "\n")
        for name, value in row.items():
            if name != "step":
                group = "uncertainty" if name.startswith("s_") else "train"
                self._board.add_scalar(f"{group}/{name}", value, int(row["step"]))

    def validation(self, figures: Mapping[str, float | int | None], step: int, group: str = "val") -> None:
        """Figures of a validation, or of another group that is not of each step."""
        for name, value in figures.items():
            if value is not None:
                self._board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """(H, W, 3) BGR."""
        rgb = np.ascontiguousarray(image[..., ::-1])
        self._board.add_image(name, rgb, step, dataformats="HWC")

    def flush(self) -> None:
        """On disk, as far as it has come."""
        self._log.flush()
        self._board.flush()


@torch.no_grad()
def draw_batch(model: Network, images: Tensor, targets: Targets, most: int = PICTURES) -> NDArray[np.uint8]:
    """The first images of a batch side by side: targets green with their identity, regions grey, predictions orange.

    Args:
        model: the network, in evaluation mode.
        images: (B, 3, H, W), 0 to 255, BGR.
        targets: of the images.
        most: so many images.

    Returns:
        (H, n·W, 3) uint8 BGR.
    """
    raw, features = model(images[:most])
    found = postprocess(model, raw, features, SHOWN_SCORE, model.nms_thresh, 100, embed=False)
    panels = []
    for image, target, people in zip(images[:most], targets, found, strict=False):
        panel = np.ascontiguousarray(image.permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy())
        for box, score in zip(people["boxes"].tolist(), people["scores"].tolist(), strict=True):
            _box(panel, box, PREDICTED, f"{score:.2f}", below=True)
        for box, label, pid in zip(*(target[k].tolist() for k in ("boxes", "labels", "ids")), strict=True):
            ignored = label == IGNORE_LABEL
            _box(panel, box, IGNORED if ignored else TARGET, "" if ignored or pid < 0 else str(pid))
        panels.append(panel)
    return np.concatenate(panels, axis=1)


def _box(
    panel: NDArray[np.uint8], box: Sequence[float], colour: tuple[int, int, int], text: str, *, below: bool = False
) -> None:
    x1, y1, x2, y2 = (int(np.clip(v, -9999, 9999)) for v in box)
    cv2.rectangle(panel, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
    if text:
        place = (x1 + 2, y2 - 3 if below else y1 + 10)
        cv2.putText(panel, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)


def summary(figures: Mapping[str, Any]) -> str:
    """Figures as aligned lines."""
    width = max(map(len, figures), default=0)
    lines = []
    for name, value in figures.items():
        text = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"  {name:<{width}}  {text}")
    return "\n".join(lines)
