"""Compact backbone and pyramid: CSPDarknet with a path-aggregation network, the YOLOX topology.

References:
    Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430.
    Wang et al., "CSPNet", CVPR Workshops 2020; Liu et al., "Path Aggregation Network", CVPR 2018.

Modules are registered in the order in which they run, so that a traced export of the same topology lists its
convolutions in the order of `model.modules()`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

BN_EPS = 1e-3
BN_MOMENTUM = 0.03


class ConvBlock(nn.Module):
    """Convolution, batch norm, activation (SiLU); the padding keeps the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        activate: Callable[..., Tensor] = functional.silu,
        eps: float = BN_EPS,
        momentum: float = BN_MOMENTUM,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        return self.activate(self.norm(self.conv(x)))


def spatial_block(in_channels: int, out_channels: int, stride: int = 1, *, depthwise: bool) -> nn.Module:
    """A 3x3 convolution block, split into depthwise 3x3 and pointwise 1x1 where `depthwise`."""
    if not depthwise:
        return ConvBlock(in_channels, out_channels, 3, stride)
    return nn.Sequential(
        ConvBlock(in_channels, in_channels, 3, stride, groups=in_channels),
        ConvBlock(in_channels, out_channels, 1),
    )


class Focus(nn.Module):
    """Space to depth by two, then a 3x3 convolution: (B, 3, H, W) -> (B, C, H / 2, W / 2)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBlock(12, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Stack the four pixels of each 2x2 block: top left, bottom left, top right, bottom right."""
        rows = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(rows, dim=1))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1 then 3x3, with an optional shortcut."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, channels, 1)
        self.spatial = spatial_block(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        y: Tensor = self.spatial(self.reduce(x))
        return y + x if self.shortcut else y


class CSPLayer(nn.Module):
    """Two half-width branches, one through `depth` bottlenecks, merged by a 1x1 convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, *, shortcut: bool = True, depthwise: bool
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main = ConvBlock(in_channels, hidden, 1)
        self.side = ConvBlock(in_channels, hidden, 1)
        self.blocks = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise) for _ in range(depth)))
        self.merge = ConvBlock(2 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.merge(torch.cat((self.blocks(self.main(x)), self.side(x)), dim=1))  # type: ignore[no-any-return]


class SpatialPyramidPooling(nn.Module):
    """Max pools of 5, 9 and 13 cells beside the input (He et al., TPAMI 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, channels // 2, 1)
        self.merge = ConvBlock(channels * 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape. A 9 pool is two 5 pools in a row, a 13 pool is three."""
        x = self.reduce(x)
        pools = [x]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        return self.merge(torch.cat(pools, dim=1))  # type: ignore[no-any-return]


class CSPBackbone(nn.Module):
    """CSPDarknet: features at strides 4, 8, 16 and 32 with 2, 4, 8 and 16 times `width` channels."""

    def __init__(self, width: int, depth: int, *, depthwise: bool) -> None:
        super().__init__()
        self.stem = Focus(width)
        stages = []
        for i, repeats in enumerate((depth, 3 * depth, 3 * depth, depth)):
            channels = width << (i + 1)
            layers = [spatial_block(channels // 2, channels, 2, depthwise=depthwise)]
            if i == 3:
                layers.append(SpatialPyramidPooling(channels))
            layers.append(CSPLayer(channels, channels, repeats, shortcut=i < 3, depthwise=depthwise))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.channels = (width << 2, width << 3, width << 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps at strides 4, 8, 16, 32."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class PathAggregation(nn.Module):
    """Top-down then bottom-up pyramid over three levels; keeps the channels of its inputs."""

    def __init__(self, channels: tuple[int, int, int], depth: int, *, depthwise: bool) -> None:
        super().__init__()
        small, middle, large = channels

        def merge(in_channels: int, out_channels: int) -> CSPLayer:
            return CSPLayer(in_channels, out_channels, depth, shortcut=False, depthwise=depthwise)

        self.lateral_large = ConvBlock(large, middle, 1)
        self.down_middle = merge(2 * middle, middle)
        self.lateral_middle = ConvBlock(middle, small, 1)
        self.down_small = merge(2 * small, small)
        self.stride_small = spatial_block(small, small, 2, depthwise=depthwise)
        self.up_middle = merge(2 * small, middle)
        self.stride_middle = spatial_block(middle, middle, 2, depthwise=depthwise)
        self.up_large = merge(2 * middle, large)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps at strides 8, 16, 32 -> maps of the same shapes."""
        small, middle, large = maps
        lateral_large = self.lateral_large(large)
        middle = self.down_middle(torch.cat((_double(lateral_large), middle), dim=1))
        lateral_middle = self.lateral_middle(middle)
        out_small = self.down_small(torch.cat((_double(lateral_middle), small), dim=1))
        out_middle = self.up_middle(torch.cat((self.stride_small(out_small), lateral_middle), dim=1))
        out_large = self.up_large(torch.cat((self.stride_middle(out_middle), lateral_large), dim=1))
        return [out_small, out_middle, out_large]


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
