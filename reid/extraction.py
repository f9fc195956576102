"""Features of crops: one unit row an image, averaged over its mirror image and over scales."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from reid.datasets import Crops
from reid.encoders import Encoder
from reid.transforms import prepare

Precision = Literal["fp32", "bf16"]

# Batches that are read and prepared while one is described.
_AHEAD = 2


@dataclass(frozen=True)
class ExtractionConfig:
    """How features are made."""

    flip: bool = False
    """Average with the feature of the mirror image."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes relative to the encoder's input over which a feature is averaged; each is made from the crop itself."""
    batch_size: int = 64
    """Images described at once."""
    workers: int = 2
    """Threads that read and prepare images."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < 100 for scale in self.scales):
            raise ValueError(f"scales: expected numbers above 0, such as 1,1.1, got {list(self.scales)}")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class Describer(Protocol):
    """What makes features: prepares an image in a thread, then describes several at once."""

    def prepare(self, image: NDArray[np.uint8], scale: float) -> Tensor:
        """An image (H, W, 3) uint8 BGR as it is described, at a size relative to the usual one."""

    def describe(self, prepared: Sequence[Tensor]) -> Tensor:
        """Features (B, D), of any length, of images prepared at one scale."""


class EncoderDescriber:
    """Features by an encoder of crops."""

    def __init__(
        self,
        encoder: Encoder,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """Move the encoder to the device.

        Args:
            encoder: in evaluation mode.
            device: where to run it.
            precision: "bf16" runs what torch's autocast thinks fit in bfloat16; features are float32 either way.

        Raises:
            ValueError: an encoder in training mode, or an unknown precision.
        """
        if encoder.training:
            raise ValueError("encoder: expected evaluation mode, got training mode")
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device)
        self.input_size = encoder.config.input_size
        self.precision = precision

    @property
    def settings(self) -> dict[str, Any]:
        """All that features depend on besides the weights, as JSON can say it."""
        return {
            "encoder": self.encoder.config.name,
            "input_size": "x".join(map(str, self.input_size)),
            "last_stride": self.encoder.config.last_stride,
            "precision": self.precision,
        }

    def prepare(self, image: NDArray[np.uint8], scale: float) -> Tensor:
        """See `Describer`: (3, H, W), normalised."""
        height, width = (max(round(side * scale), 1) for side in self.input_size)
        return prepare(image[..., ::-1], (height, width))

    @torch.no_grad()
    def describe(self, prepared: Sequence[Tensor]) -> Tensor:
        """See `Describer`.

        Raises:
            ValueError: the encoder takes no images of another size than its own.
        """
        # In this order of memory a CPU takes two thirds of the time for convolutions.
        images = torch.stack(tuple(prepared)).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            try:
                features: Tensor = self.encoder(images)
            except (AssertionError, RuntimeError) as error:
                size = tuple(images.shape[2:])
                if size == self.input_size:
                    raise
                raise ValueError(f"scales: the encoder takes no images of {size[0]}x{size[1]} ({error})") from error
        return features.float()


def extract_features(
    describer: Describer, crops: Crops, config: ExtractionConfig | None = None, progress: str = ""
) -> NDArray[np.float32]:
    """Describe all images, a few batches of which are in memory at a time.

    Args:
        describer: makes the features.
        crops: the images.
        config: mirror images, scales, batches.
        progress: what a bar of progress says, where there is a terminal; empty: none.

    Returns:
        (N, D) unit rows: the mean over mirror image and scales, brought to unit length. (0, 0) of no image.

    Raises:
        ValueError: an image that cannot be read, or whose feature is zero or not finite; it is named.
    """
    config = config or ExtractionConfig()
    result = np.empty((0, 0), np.float32)
    hidden = None if progress else True  # None: on a terminal alone
    with tqdm(desc=progress, total=len(crops), unit="image", dynamic_ncols=True, disable=hidden) as bar:
        for start, batch in _batches(describer, crops, config):
            views = [describer.describe(view) for view in zip(*batch, strict=True)]
            mean = torch.stack(views).mean(dim=0)
            lengths = torch.linalg.vector_norm(mean, dim=1)
            usable = (torch.isfinite(lengths) & (lengths > 0)).cpu().numpy()
            if not usable.all():
                place = int(np.argmin(usable))
                path = crops.store.path(crops.names[start + place])
                raise ValueError(
                    f"{path}: expected a finite, non-zero feature from the encoder, got length {lengths[place]:g}"
                )
            if not start:
                result = np.empty((len(crops), mean.shape[1]), np.float32)
            result[start : start + len(mean)] = F.normalize(mean, dim=1).cpu().numpy()
            bar.update(len(mean))
    return result


def _batches(
    describer: Describer, crops: Crops, config: ExtractionConfig
) -> Iterator[tuple[int, list[tuple[Tensor, ...]]]]:
    """First place and all views of the images of each batch, in order."""

    def views(index: int) -> tuple[Tensor, ...]:
        image = crops.read(index)
        faces = (image, image[:, ::-1]) if config.flip else (image,)
        return tuple(describer.prepare(face, scale) for scale in config.scales for face in faces)

    pool = ThreadPoolExecutor(config.workers)
    waiting: deque[tuple[int, list[Future[tuple[Tensor, ...]]]]] = deque()
    try:
        for start in range(0, len(crops), config.batch_size):
            stop = min(start + config.batch_size, len(crops))
            waiting.append((start, [pool.submit(views, index) for index in range(start, stop)]))
            if len(waiting) > _AHEAD:
                first, jobs = waiting.popleft()
                yield first, [job.result() for job in jobs]
        for first, jobs in waiting:
            yield first, [job.result() for job in jobs]
    finally:
        pool.shutdown(cancel_futures=True)
