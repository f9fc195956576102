"""Person crops described by a detector: each laid on grey, as if it were part of a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from detector.inference import Detector

SAME_PERSON = 0.5
"""Overlap (IoU) with a crop from which a person found in it is the one that it shows."""
BATCH = 16
"""Crops on grey that are looked at together."""


def describe_crops(
    detector: Detector, crops: Sequence[NDArray[np.uint8]], canvas: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Describe the person that each crop shows.

    Args:
        detector: with an embedding branch.
        crops: N images (h, w, 3) uint8 BGR, not scaled; one that is larger than the grey has grey of its own size.
        canvas: side of the grey square in whose middle a crop is laid, in pixels.

    Returns:
        Embeddings (N, D), unit rows, and whether (N,) the detector found the person; if not, the whole crop is
        described.

    Raises:
        ValueError: no such image, or a model without embedding head.
    """
    if not detector.model.config.embedding_dim:
        raise ValueError("detector: expected a model with an embedding head, this one has none")
    for i, crop in enumerate(crops):
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or not crop.size:
            raise ValueError(f"crops[{i}]: expected (h, w, 3) uint8, got {crop.shape} {crop.dtype}")
    rows = np.empty((len(crops), detector.model.config.embedding_dim), np.float32)
    found = np.zeros(len(crops), bool)
    for start in range(0, len(crops), BATCH):
        laid = [_on_grey(crop, canvas, detector.model.pad_value) for crop in crops[start : start + BATCH]]
        people = detector([image for image, _ in laid])
        for i, ((image, box), those) in enumerate(zip(laid, people, strict=True), start):
            overlaps = box_iou(torch.from_numpy(those["boxes"]), torch.from_numpy(box))[:, 0].numpy()
            found[i] = overlaps.max(initial=0) >= SAME_PERSON
            rows[i] = those["embeddings"][overlaps.argmax()] if found[i] else detector.embed(image, box)[0]
    return rows, found


def _on_grey(crop: NDArray[np.uint8], canvas: int, grey: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A square picture with a crop in its middle, and the crop's box (1, 4) xyxy."""
    height, width = crop.shape[:2]
    side = max(canvas, height, width)
    image = np.full((side, side, 3), grey, np.uint8)
    x, y = (side - width) // 2, (side - height) // 2
    image[y : y + height, x : x + width] = crop
    return image, np.array([[x, y, x + width, y + height]], np.float32)
