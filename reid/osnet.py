"""OSNet, from Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019.

Its modules carry the names of the published checkpoints, so that these load key by key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGE_CHANNELS = (64, 256, 384, 512)
"""Channels behind the stem and the three stages at width 1 (paper, table 1)."""
_GATE_REDUCTION = 16


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
        embedding_dim: C, length of a pooled feature.

    Attributes:
        channels: C.

    Raises:
        ValueError: a width that leaves a stage without channels.
    """

    def __init__(self, width: float = 1.0, embedding_dim: int = 512) -> None:
        super().__init__()
        c1, c2, c3, c4 = (round(width * channels) for channels in STAGE_CHANNELS)
        if min(c1, c2 // 4) < 1:
            raise ValueError(f"width: expected at least {1 / STAGE_CHANNELS[0]}, got {width}")
        self.channels = embedding_dim
        self.conv1 = ConvBlock(3, c1, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(OmniScaleBlock(c1, c2), OmniScaleBlock(c2, c2), _transition(c2))
        self.conv3 = nn.Sequential(OmniScaleBlock(c2, c3), OmniScaleBlock(c3, c3), _transition(c3))
        self.conv4 = nn.Sequential(OmniScaleBlock(c3, c4), OmniScaleBlock(c4, c4))
        self.conv5 = ConvBlock(c4, c4)
        self.fc = nn.Sequential(nn.Linear(c4, embedding_dim), nn.BatchNorm1d(embedding_dim), nn.ReLU())

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB, ImageNet-normalised; the published weights expect 256x128 -> (B, C', H/16, W/16)."""
        x = self.maxpool(self.conv1(images))
        features: Tensor = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return features

    def pooled(self, images: Tensor, pool: nn.Module, parts: int) -> Tensor:
        """(B, 3, H, W) -> (B, 1, C), non-negative: a layer behind the pooling describes the whole image."""
        embeddings: Tensor = self.fc(pool(self.feature_map(images)).flatten(1))
        return embeddings[:, None]


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(channels, channels), nn.AvgPool2d(2))
