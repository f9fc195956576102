"""Person encoders: crops of people in, embeddings out.

OSNet follows Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019. Its modules
carry the names of the published checkpoints, so that these load key by key.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

CROP_SIZE = (256, 128)
"""Height and width of an encoder's input, in pixels."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_STAGE_CHANNELS = (64, 256, 384, 512)
"""Channels behind the stem and the three stages at width 1 (paper, table 1)."""
_GATE_REDUCTION = 16
_CLASSIFIER_PREFIX = "classifier."


class ConvBlock(nn.Module):
    """Convolution and batch-norm, with a ReLU behind unless `relu` is off."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride)."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class LiteConv(nn.Module):
    """The paper's Lite 3x3: a pointwise convolution, then a depthwise 3x3 one (fig. 3b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(self.bn(self.conv2(self.conv1(x))))


class AggregationGate(nn.Module):
    """Weighs a stream's channels by its own content; all streams of a block share one gate (eq. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _GATE_REDUCTION)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pooled = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class OmniScaleBlock(nn.Module):
    """Residual bottleneck whose four streams see 3, 5, 7 and 9 pixels (fig. 4)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        mid = c_out // 4
        self.conv1 = ConvBlock(c_in, mid)
        self.conv2a = LiteConv(mid)
        self.conv2b = nn.Sequential(*(LiteConv(mid) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LiteConv(mid) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LiteConv(mid) for _ in range(4)))
        self.gate = AggregationGate(mid)
        self.conv3 = ConvBlock(mid, c_out, relu=False)
        self.downsample = ConvBlock(c_in, c_out, relu=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        streams = self.gate(self.conv2a(x))
        for stream in (self.conv2b, self.conv2c, self.conv2d):
            streams = streams + self.gate(stream(x))
        return F.relu(self.conv3(streams) + shortcut)


class OSNet(nn.Module):
    """Omni-scale network without its identity classifier.

    Args:
        width: multiplier of all convolution channels; 1.0 and 0.25 are the published ends.
        embedding_dim: D, length of an embedding.

    Raises:
        ValueError: a width that leaves a stage without channels.
    """

    def __init__(self, width: float = 1.0, embedding_dim: int = 512) -> None:
        super().__init__()
        c1, c2, c3, c4 = (round(width * channels) for channels in _STAGE_CHANNELS)
        if min(c1, c2 // 4) < 1:
            raise ValueError(f"width: expected at least {1 / _STAGE_CHANNELS[0]}, got {width}")
        self.embedding_dim = embedding_dim
        self.conv1 = ConvBlock(3, c1, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(OmniScaleBlock(c1, c2), OmniScaleBlock(c2, c2), _transition(c2))
        self.conv3 = nn.Sequential(OmniScaleBlock(c2, c3), OmniScaleBlock(c3, c3), _transition(c3))
        self.conv4 = nn.Sequential(OmniScaleBlock(c3, c4), OmniScaleBlock(c4, c4))
        self.conv5 = ConvBlock(c4, c4)
        self.fc = nn.Sequential(nn.Linear(c4, embedding_dim), nn.BatchNorm1d(embedding_dim), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W) RGB, ImageNet-normalised; the published weights expect 256x128.

        Returns:
            (B, D) non-negative embeddings, not normalised.
        """
        x = self.maxpool(self.conv1(images))  # (B, c1, H/4, W/4)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))  # (B, c4, H/16, W/16)
        embeddings: Tensor = self.fc(x.mean(dim=(2, 3)))
        return embeddings


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(channels, channels), nn.AvgPool2d(2))


def load_osnet(path: str | Path) -> OSNet:
    """Read a published OSNet state dict; the width follows from the file, the identity classifier is dropped.

    Args:
        path: a `.pth` file with the state dict itself.

    Returns:
        The encoder on the CPU, in eval mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict, or one with missing, unexpected or mis-shaped keys (they are named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected an OSNet state dict, torch cannot read this file") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected an OSNet state dict, got {_describe(content)}")
    state = {key: value for key, value in content.items() if not key.startswith(_CLASSIFIER_PREFIX)}

    encoder = OSNet(
        width=_length(state.get("conv1.conv.weight"), 4, _STAGE_CHANNELS[0]) / _STAGE_CHANNELS[0],
        embedding_dim=_length(state.get("fc.0.weight"), 2, 512),
    )
    expected = encoder.state_dict()
    faults = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "mis-shaped": {
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected.keys() & state.keys()
            if state[key].shape != expected[key].shape
        },
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in faults.items() if keys)
        raise ValueError(f"{path}: not an OSNet state dict: {listed}")
    encoder.load_state_dict(state)
    return encoder.eval()


def _length(weight: Tensor | None, ndim: int, default: int) -> int:
    """Output channels of a layer; the default where the weight cannot be one, which the key check then reports."""
    return len(weight) if weight is not None and weight.ndim == ndim and len(weight) > 0 else default


def _describe(content: object) -> str:
    return f"a dict of {_some(map(str, content))}" if isinstance(content, dict) else type(content).__name__


def _some(keys: Iterable[str], limit: int = 4) -> str:
    names = sorted(keys)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@torch.no_grad()
def encode_crops(encoder: nn.Module, crops: Sequence[NDArray[np.uint8]], batch_size: int = 64) -> NDArray[np.float32]:
    """Embed person crops: resize (bilinear) to 256x128, normalise, encode.

    Args:
        encoder: any module (B, 3, 256, 128) RGB, ImageNet-normalised -> (B, D), in eval mode; the crops are
            sent to the device its parameters are on.
        crops: N uint8 BGR images (h, w, 3) of any size, as OpenCV reads them.
        batch_size: crops encoded at once.

    Returns:
        (N, D) float32, unit rows.

    Raises:
        ValueError: an encoder in training mode, a batch size below 1, a crop that is no such image, or an
            embedding that is zero or not finite (the crop is named).
    """
    if encoder.training:
        raise ValueError("encoder: expected eval mode, got training mode")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    for index, crop in enumerate(crops):
        if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or crop.size == 0:
            raise ValueError(f"crops[{index}]: expected uint8 (h, w, 3), got {crop.dtype} {crop.shape}")
    device = next(encoder.parameters()).device
    mean = torch.tensor(IMAGENET_MEAN, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).mul(255).view(1, 3, 1, 1)
    batches = []
    # An empty list still passes once through the encoder: only its output says what D is.
    for start in range(0, max(len(crops), 1), batch_size):
        batch = crops[start : start + batch_size]
        pixels = np.empty((len(batch), *CROP_SIZE, 3), np.uint8)
        for image, crop in zip(pixels, batch, strict=True):
            image[:] = cv2.resize(crop, CROP_SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        bgr = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)  # (B, 3, 256, 128)
        batches.append(encoder((bgr.flip(1).float() - mean) / std).float())
    embeddings: NDArray[np.float32] = torch.cat(batches).cpu().numpy()
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        index = int(np.argmin(usable))
        raise ValueError(f"crops[{index}]: expected a finite, non-zero embedding, got length {norms[index, 0]}")
    embeddings /= norms
    return embeddings
