"""Crops as an encoder takes them: scaled and normalised, and varied at random for training.

In training and test alike a crop is scaled by OpenCV without keeping its proportions: along an axis that shrinks by
averaging areas, along one that grows bilinearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue, where white is 1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
_MEAN = np.array(IMAGENET_MEAN, np.float32) * 255
_STD = np.array(IMAGENET_STD, np.float32) * 255
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_ERASING_TRIES = 100


@dataclass(frozen=True)
class AugmentConfig:
    """How training crops are varied."""

    flip: float = 0.5
    """Share of crops that are mirrored."""
    pad: int = 10
    """Black pixels put around a scaled crop before a part of the wanted size is cut from it; 0 leaves that out."""
    colour: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share of each; 0 leaves colours alone."""
    erasing: float = 0.5
    """Share of crops with a rectangle erased (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020)."""
    erasing_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest rectangle, as a share of the crop."""
    erasing_aspect: tuple[float, float] = (0.3, 3.33)
    """Smallest and largest height of a rectangle, as a multiple of its width."""
    erasing_fill: Literal["mean", "pixels"] = "mean"
    """What fills a rectangle: ImageNet's mean colour, or pixels of random colours."""

    def __post_init__(self) -> None:
        for name in ("flip", "colour", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        if self.pad < 0:
            raise ValueError(f"pad: expected at least 0, got {self.pad}")
        for name, limit in (("erasing_area", 1.0), ("erasing_aspect", np.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= limit or high == np.inf:
                raise ValueError(
                    f"{name}: expected two numbers above 0 and up to {limit}, the smaller first, got {low}, {high}"
                )
        if self.erasing_fill not in ("mean", "pixels"):
            raise ValueError(f"erasing_fill: expected mean or pixels, got {self.erasing_fill!r}")


DEFAULT = AugmentConfig()


def prepare(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """A crop as it is embedded at test: scaled, normalised.

    Args:
        image: (h, w, 3) uint8 RGB.
        size: (height, width) in pixels.

    Returns:
        (3, height, width) float32 RGB, less ImageNet's mean, by its standard deviation.

    Raises:
        ValueError: not such an image.
    """
    return torch.from_numpy(_normalise(resize(image, size)))


def augment(
    image: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator, config: AugmentConfig = DEFAULT
) -> Tensor:
    """A crop as it is learned from: scaled, mirrored, shifted, coloured, normalised, partly erased.

    Args:
        image: (h, w, 3) uint8 RGB.
        size: (height, width) in pixels.
        rng: all that is random; a generator in the same state gives the same pixels.
        config: how the crop is varied.

    Returns:
        (3, height, width) float32, normalised as by `prepare`.

    Raises:
        ValueError: not such an image.
    """
    pixels = resize(image, size)
    if rng.random() < config.flip:
        pixels = pixels[:, ::-1]
    if config.pad:
        pixels = _shift(pixels, config.pad, rng)
    if config.colour:
        pixels = _jitter(pixels, config.colour, rng)
    planes = _normalise(pixels)
    if rng.random() < config.erasing:
        _erase(planes, rng, config)
    return torch.from_numpy(planes)


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image (h, w, 3) uint8 to `size` (height, width), see above.

    Raises:
        ValueError: not such an image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image: expected uint8 (h, w, 3), got {image.dtype} {image.shape}")
    pixels = np.ascontiguousarray(image)
    height, width = size
    less = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if less != pixels.shape[1::-1]:
        pixels = np.asarray(cv2.resize(pixels, less, interpolation=cv2.INTER_AREA), np.uint8)
    if less != (width, height):
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return pixels


def _normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    planes: NDArray[np.float32] = np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1))
    return planes


def _shift(pixels: NDArray[np.uint8], pad: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What is seen through a window moved by up to `pad` pixels either way, on black."""
    height, width = pixels.shape[:2]
    top, left = rng.integers(2 * pad + 1, size=2)
    return np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))[top : top + height, left : left + width]


def _jitter(pixels: NDArray[np.uint8], most: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another brightness, then contrast (about the mean grey), then saturation (about each pixel's grey)."""
    brightness, contrast, saturation = rng.uniform(1 - most, 1 + most, 3).astype(np.float32)
    values = (pixels * brightness).clip(0, 255)
    mean = (values @ _GREY).mean()
    values = (mean + contrast * (values - mean)).clip(0, 255)
    grey = (values @ _GREY)[..., None]
    values = grey + saturation * (values - grey)
    return np.asarray(values.round().clip(0, 255), np.uint8)


def _erase(planes: NDArray[np.float32], rng: np.random.Generator, config: AugmentConfig) -> None:
    """Erase a rectangle in place (Zhong et al., algorithm 1); a shape that does not fit is drawn again."""
    height, width = planes.shape[1:]
    for _ in range(_ERASING_TRIES):
        area = rng.uniform(*config.erasing_area) * height * width
        aspect = rng.uniform(*config.erasing_aspect)
        tall, wide = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < tall < height and 0 < wide < width:
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            filled = planes[:, top : top + tall, left : left + wide]
            if config.erasing_fill == "pixels":
                filled[:] = _normalise(rng.integers(256, size=(tall, wide, 3), dtype=np.uint8))
            else:
                filled[:] = 0
            return
