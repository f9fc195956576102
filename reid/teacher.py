"""A re-identification network as the teacher of people whose identity nobody labelled: embeddings of labelled boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from reid.crops import encode_crops
from reid.encoders import Encoder
from reid.files import replacing

TEACHER_DIM = 512
MIN_HEIGHT = 24
"""People lower than this, in pixels, are too small to describe."""
CHUNK = 32
"""Images whose people are described in one go."""
CACHE_VERSION = 2
"""Part of a cached file's name; another one wherever crops are cut or prepared in another way."""


def describe_boxes(
    encoder: Encoder,
    encoder_file: Path,
    images: Sequence[Path],
    labels: Sequence[NDArray[np.float64]],
    cache: Path,
    caption: str,
) -> list[NDArray[np.float16]]:
    """Embeddings of the people in some images, computed once and kept.

    Args:
        encoder: in evaluation mode, with embeddings of 512.
        encoder_file: where its weights are from; part of the cached file's name.
        images: paths.
        labels: per image (n, 6) class, identity, cx, cy, w, h normalised; negative classes are regions.
        cache: folder for `teacher-<version>-<hash of images and labels>.npy`.
        caption: of the progress bar.

    Returns:
        Per image (n, 512) unit rows; zero rows for regions and for people too small.

    Raises:
        ValueError: an image cannot be read.
    """
    pairs = list(zip(images, labels, strict=True))
    weights = encoder_file.stat()
    listing = [f"{encoder_file} {weights.st_size} {weights.st_mtime_ns}"]
    for image, rows in pairs:
        stat = image.stat()
        listing.append(f"{image} {stat.st_size} {stat.st_mtime_ns} {rows[:, [0, 2, 3, 4, 5]].round(6).tolist()}")
    file = cache / f"teacher-{CACHE_VERSION}-{hashlib.sha256(chr(10).join(listing).encode()).hexdigest()[:16]}.npy"
    if not file.is_file():
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        bar = tqdm(chunks, desc=f"teacher: {caption}", unit="chunk", dynamic_ncols=True, mininterval=2)
        rows = np.concatenate([_describe(encoder, chunk) for chunk in bar])
        with replacing(file) as part, part.open("wb") as opened:
            np.save(opened, rows)
    flat = np.load(file, allow_pickle=False)
    return np.split(flat, np.cumsum([len(rows) for rows in labels])[:-1])


def _describe(encoder: Encoder, pairs: Sequence[tuple[Path, NDArray[np.float64]]]) -> NDArray[np.float16]:
    result = np.zeros((sum(len(rows) for _, rows in pairs), TEACHER_DIM), np.float16)
    crops, places, first = [], [], 0
    for path, rows in pairs:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"{path}: not a readable image")
        pixels = np.asarray(image, np.uint8)
        side = np.array(pixels.shape[1::-1])
        half = rows[:, 4:6] / 2
        low = np.clip((rows[:, 2:4] - half) * side, 0, side).round().astype(int)
        high = np.clip((rows[:, 2:4] + half) * side, 0, side).round().astype(int)
        width, height = (high - low).T
        large = (height >= MIN_HEIGHT) & (width >= MIN_HEIGHT // 4)
        for i in np.flatnonzero(large & (rows[:, 0] >= 0)):
            crops.append(pixels[low[i, 1] : high[i, 1], low[i, 0] : high[i, 0]])
            places.append(first + i)
        first += len(rows)
    if crops:
        result[places] = encode_crops(encoder, crops)
    return result
