"""The published joint detector: Darknet-53, a three-level pyramid, anchor boxes, an embedding map for each level.

References:
    Wang et al., "Towards Real-Time Multi-Object Tracking" (JDE), ECCV 2020.
    Redmon and Farhadi, "YOLOv3: An Incremental Improvement", arXiv:1804.02767.

Modules are registered in the order in which the published network lists its layers, so that its weights can be taken
over in running order (detector/published.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.csp import ConvBlock
from detector.priors import STRIDES, Canvas, Picks, Priors, flatten, make_priors

RESIDUALS = (1, 2, 8, 8, 4)
"""Residual blocks at strides 2, 4, 8, 16 and 32."""
OUTPUTS = 6
"""Of a prior: four numbers of box code, logits of background and foreground."""
PUBLISHED_ANCHORS: dict[tuple[int, int], tuple[int, ...]] = {
    (1088, 608): (
        8, 24, 11, 34, 16, 48, 23, 68,
        32, 96, 45, 135, 64, 192, 90, 271,
        128, 384, 180, 540, 256, 640, 512, 640,
    ),
    (864, 480): (
        6, 19, 9, 27, 13, 38, 18, 54,
        25, 76, 36, 107, 51, 152, 71, 215,
        102, 305, 143, 429, 203, 508, 407, 508,
    ),
    (576, 320): (
        6, 16, 8, 23, 11, 32, 16, 45,
        21, 64, 30, 90, 43, 128, 60, 180,
        85, 255, 120, 360, 170, 420, 340, 320,
    ),
}  # fmt: skip
"""Input width and height -> width, height, width, height, … of the anchors in pixels, four a level, finest first."""


@dataclass(frozen=True)
class DarknetConfig:
    """What it takes to build the network again."""

    width: float = 1.0
    """Factor on the channels of every layer; 1 is the published network."""
    embedding_dim: int = 512
    """Length D of an embedding; 0 leaves the embedding maps out."""
    input_size: tuple[int, int] = (1088, 608)
    """Width and height of the network input in pixels, multiples of 32; published: 1088x608, 864x480, 576x320."""
    anchors: tuple[int, ...] = ()
    """Width and height of each anchor in pixels of that input, finest level first, as many for each of three levels.
    None given: the published ones of `input_size`, or those of 1088x608 scaled by the width."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ValueError(f"width: expected a number in (0, 4], got {self.width}")
        if self.embedding_dim < 0:
            raise ValueError(f"embedding_dim: expected 0 or more, got {self.embedding_dim}")
        if len(self.input_size) != 2:
            raise ValueError(f"input_size: expected width and height, got {self.input_size}")
        if any(side < STRIDES[-1] or side % STRIDES[-1] for side in self.input_size):
            raise ValueError(f"input_size: expected positive multiples of {STRIDES[-1]}, got {self.input_size}")
        if len(self.anchors) % (2 * len(STRIDES)) or any(side < 1 for side in self.anchors):
            raise ValueError(
                f"anchors: expected pairs of positive numbers, as many for each of {len(STRIDES)} levels, "
                f"got {self.anchors}"
            )

    @property
    def anchor_levels(self) -> list[list[tuple[float, float]]]:
        """Per level, finest first, the (width, height) of its anchors in pixels of the input."""
        flat: Sequence[float] = self.anchors or PUBLISHED_ANCHORS.get(self.input_size, ())
        if not flat:
            scale = self.input_size[0] / 1088
            flat = [round(side * scale, 2) for side in PUBLISHED_ANCHORS[1088, 608]]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        count = len(pairs) // len(STRIDES)
        return [pairs[i : i + count] for i in range(0, len(pairs), count)]


def conv_block(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> ConvBlock:
    """Convolution, batch norm, leaky rectifier of slope 0.1."""
    leaky = functools.partial(functional.leaky_relu, negative_slope=0.1)
    return ConvBlock(in_channels, out_channels, kernel, stride, activate=leaky, eps=1e-5, momentum=0.1)


class Residual(nn.Module):
    """1x1 to half the channels, 3x3 back, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv_block(channels, channels // 2, 1)
        self.expand = conv_block(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return x + self.expand(self.reduce(x))  # type: ignore[no-any-return]


class Darknet53(nn.Module):
    """Backbone: 52 convolutions; maps at strides 8, 16, 32 with 8, 16, 32 times `width` channels (published: 32)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = conv_block(3, width, 3)
        self.stages = nn.ModuleList(
            nn.Sequential(
                conv_block(width << i, width << (i + 1), 3, 2), *(Residual(width << (i + 1)) for _ in range(repeats))
            )
            for i, repeats in enumerate(RESIDUALS)
        )
        self.channels = (8 * width, 16 * width, 32 * width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> three maps at strides 8, 16, 32."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


class Level(nn.Module):
    """Pyramid level: five convolutions alternate 1x1 and 3x3; a sixth feeds the detection map."""

    def __init__(self, in_channels: int, channels: int, outputs: int, embedding_dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_block(in_channels, channels, 1),
            conv_block(channels, 2 * channels, 3),
            conv_block(2 * channels, channels, 1),
            conv_block(channels, 2 * channels, 3),
            conv_block(2 * channels, channels, 1),
        )
        self.spread = conv_block(channels, 2 * channels, 3)
        self.detect = nn.Conv2d(2 * channels, outputs, 1)
        if embedding_dim:
            self.embedding = nn.Conv2d(channels, embedding_dim, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in_channels, H, W) -> detections (B, outputs, H, W) and what is embedded (B, channels, H, W)."""
        reduced = self.body(x)
        return self.detect(self.spread(reduced)), reduced


class DarknetJDE(nn.Module):
    """Joint detection and embedding network on Darknet-53, as published.

    Input images are (B, 3, H, W) float32, BGR, 0 to 255, H and W multiples of 32; the published network reads RGB
    from 0 to 1, and `forward` sees to that.
    """

    pad_value = 128
    # Exporting so large a network takes seconds and another gigabyte, and wins no time on a frame.
    cpu_engine: Literal["onnxruntime", "torch"] = "torch"
    nms_thresh = 0.4

    def __init__(self, config: DarknetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DarknetConfig()
        self.anchors = config.anchor_levels
        self.backbone = Darknet53(max(round(32 * config.width), 2))
        small, middle, large = self.backbone.channels
        per_cell = len(self.anchors[0])
        outputs, dim = OUTPUTS * per_cell, config.embedding_dim
        self.level32 = Level(large, large // 2, outputs, dim)
        self.lateral16 = conv_block(large // 2, middle // 2, 1)
        self.level16 = Level(middle + middle // 2, middle // 2, outputs, dim)
        self.lateral8 = conv_block(middle // 2, small // 2, 1)
        self.level8 = Level(small + small // 2, small // 2, outputs, dim)
        # A random start believes in no one: foreground is one prior in a hundred.
        for level in self.levels:
            bias = level.detect.bias
            assert bias is not None
            nn.init.zeros_(bias)
            bias.data.view(per_cell, OUTPUTS)[:, 4] = math.log(99)

    @property
    def input_size(self) -> int:
        """Width of the canvas, unless told otherwise."""
        return self.config.input_size[0]

    @property
    def levels(self) -> tuple[Level, Level, Level]:
        """Pyramid levels, finest first."""
        return self.level8, self.level16, self.level32

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """One pass over the images.

        Args:
            images: (B, 3, H, W) float32, BGR, 0 to 255.

        Returns:
            Raw detection maps per level (stride 8, 16, 32), each (B, 6·anchors, H/s, W/s), and the maps that the
            embedding convolutions read, each (B, C_l, H/s, W/s).
        """
        small, middle, large = self.backbone(images[:, [2, 1, 0]] / 255)
        raw32, reduced32 = self.level32(large)
        raw16, reduced16 = self.level16(torch.cat((_double(self.lateral16(reduced32)), middle), dim=1))
        raw8, reduced8 = self.level8(torch.cat((_double(self.lateral8(reduced16)), small), dim=1))
        return [raw8, raw16, raw32], [reduced8, reduced16, reduced32]

    def flatten(self, raw: Sequence[Tensor]) -> Tensor:
        """Raw maps -> (B, A, 6) float32: box code, background logit, foreground logit."""
        return flatten(raw, len(self.anchors[0]))

    def priors(self, raw: Sequence[Tensor]) -> Priors:
        """The anchors at every cell."""
        levels = zip(self.anchors, STRIDES, strict=True)
        return make_priors(raw, [[(w / stride, h / stride) for w, h in level] for level, stride in levels])

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of the foreground (softmax of two logits), and class 0: (..., 6) -> (...), (...)."""
        scores = (flat[..., 5] - flat[..., 4]).sigmoid()
        return scores, torch.zeros_like(scores, dtype=torch.int64)

    def canvas(self, height: int, width: int, input_size: int | None) -> Canvas:
        """The same canvas for every frame: the configuration's, or one of that width and nearly that shape."""
        w, h = self.config.input_size
        if input_size:
            grid = STRIDES[-1]
            w, h = input_size, max(input_size * h // w // grid, 1) * grid
        return Canvas(w, h, min(w / width, h / height), centred=True)

    def patches(self, features: Sequence[Tensor], picks: Picks) -> tuple[list[Tensor], None, Tensor]:
        """Cut what the embedding convolutions read around the cells of some boxes.

        Args:
            features: the maps `forward` returned.
            picks: N boxes with their cells.

        Returns:
            Windows per level, each (N_l, C_l, 3, 3); None, as there is no finer map; and (N,) the rows of `picks` in
            the order of the levels. All float32.
        """
        around = torch.arange(3, device=picks.xy.device)
        rows = [(picks.level == level).nonzero()[:, 0] for level in range(len(STRIDES))]
        windows = []
        for level_map, own in zip(features, rows, strict=True):
            # A traced graph must not keep that nobody was found while it was made.
            needed = torch.jit.is_tracing() or len(own)  # type: ignore[attr-defined, no-untyped-call]
            padded = functional.pad(level_map, (1, 1, 1, 1)) if needed else level_map
            image, (x, y) = picks.image[own], picks.xy[own].unbind(1)
            window = padded[image[:, None, None], :, y[:, None, None] + around[:, None], x[:, None, None] + around]
            windows.append(window.permute(0, 3, 1, 2).float())
        return windows, None, torch.cat(rows)

    def embed_patches(self, coarse: Sequence[Tensor], fine: Tensor | None = None) -> Tensor:
        """Embeddings of what `patches` cut out: the embedding convolution of each level, at the cells alone.

        Args:
            coarse: windows per level, each (N_l, C_l, 3, 3).
            fine: None.

        Returns:
            (N, D) unit rows in the order of the levels.
        """
        embeddings = []
        for windows, level in zip(coarse, self.levels, strict=True):
            weight = level.embedding.weight.permute(0, 2, 3, 1).flatten(1)  # (D, 3·3·C)
            embeddings.append(functional.linear(windows.permute(0, 2, 3, 1).flatten(1), weight, level.embedding.bias))
        return functional.normalize(torch.cat(embeddings))

    def embed(self, features: Sequence[Tensor], picks: Picks) -> Tensor:
        """The embedding convolution of each level, evaluated at the picked cells and nowhere else.

        Args:
            features: the maps `forward` returned.
            picks: N boxes with their cells.

        Returns:
            (N, D) unit rows in the order of `picks`.
        """
        windows, _, order = self.patches(features, picks)
        return self.embed_patches(windows)[order.argsort()]


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
