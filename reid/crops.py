"""Embeddings of crops that are in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from reid.encoders import Encoder
from reid.transforms import prepare


@torch.no_grad()
def encode_crops(encoder: Encoder, crops: Sequence[NDArray[np.uint8]], batch_size: int = 64) -> NDArray[np.float32]:
    """Embed person crops, prepared as everywhere else, see `reid.transforms.prepare`.

    Args:
        encoder: in evaluation mode; the crops are sent to the device its parameters are on.
        crops: N uint8 BGR images (h, w, 3) of any size, as OpenCV reads them.
        batch_size: crops encoded at once.

    Returns:
        (N, D) float32, unit rows.

    Raises:
        ValueError: an encoder in training mode, a batch size below 1, a crop that is no such image, or an
            embedding that is zero or not finite (the crop is named).
    """
    if encoder.training:
        raise ValueError("encoder: expected evaluation mode, got training mode")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    for index, crop in enumerate(crops):
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or crop.size == 0:
            raise ValueError(f"crops[{index}]: expected uint8 (h, w, 3), got {crop.dtype} {crop.shape}")
    size, device = encoder.config.input_size, next(encoder.parameters()).device
    embeddings = np.empty((len(crops), encoder.embedding_dim), np.float32)
    for start in range(0, len(crops), batch_size):
        images = torch.stack([prepare(crop[..., ::-1], size) for crop in crops[start : start + batch_size]])
        embeddings[start : start + len(images)] = encoder(images.to(device)).float().cpu().numpy()
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        index = int(np.argmin(usable))
        raise ValueError(f"crops[{index}]: expected a finite, non-zero embedding, got length {norms[index, 0]}")
    embeddings /= norms
    return embeddings
