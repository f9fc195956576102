"""The compact joint detector: one pass gives person boxes, scores and, at the cells kept, embeddings.

References:
    Wang et al., "Towards Real-Time Multi-Object Tracking" (JDE), ECCV 2020: detection and embedding in one network.
    Ge et al., "YOLOX", arXiv:2107.08430: decoupled anchor-free heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from detector.csp import STRIDES, ConvBlock, CSPBackbone, PathAggregation, spatial_block

Size = Literal["nano", "tiny", "s", "m"]
WIDTHS: dict[Size, float] = {"nano": 0.25, "tiny": 0.375, "s": 0.50, "m": 0.75}
DEPTHS: dict[Size, int] = {"nano": 1, "tiny": 1, "s": 1, "m": 2}
PATCH = (8, 4)
PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build the network again."""

    size: Size = "nano"
    """Width and depth of the network; nano alone uses depthwise convolutions."""
    num_classes: int = 1
    """Classes of the detection head; class 0 is person."""
    embedding_dim: int = 128
    """Length D of an embedding; 0 leaves the embedding head out."""

    def __post_init__(self) -> None:
        if self.size not in WIDTHS:
            raise ValueError(f"size: expected one of {sorted(WIDTHS)}, got {self.size!r}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {self.num_classes}")
        if self.embedding_dim < 0:
            raise ValueError(f"embedding_dim: expected 0 or more, got {self.embedding_dim}")


class DetectionHead(nn.Module):
    """Decoupled head of one level: class logits on one branch, box and objectness on the other."""

    def __init__(self, in_channels: int, hidden: int, num_classes: int, *, depthwise: bool) -> None:
        super().__init__()
        self.stem = ConvBlock(in_channels, hidden, 1)
        self.class_branch = nn.Sequential(*(spatial_block(hidden, hidden, depthwise=depthwise) for _ in range(2)))
        self.class_logits = nn.Conv2d(hidden, num_classes, 1)
        self.box_branch = nn.Sequential(*(spatial_block(hidden, hidden, depthwise=depthwise) for _ in range(2)))
        self.box_code = nn.Conv2d(hidden, 4, 1)
        self.objectness = nn.Conv2d(hidden, 1, 1)
        for layer in (self.class_logits, self.objectness):
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 5 + num_classes, H, W): box code, objectness logit, class logits."""
        x = self.stem(x)
        boxes = self.box_branch(x)
        return torch.cat((self.box_code(boxes), self.objectness(boxes), self.class_logits(self.class_branch(x))), dim=1)


class EmbeddingHead(nn.Module):
    """Embedding head of one level, run on the feature patches under the boxes kept and nowhere else.

    A patch is the box resampled to 8x4 cells. Two residual 3x3 blocks mix it, horizontal stripes (mean over the
    width) keep head, torso and legs apart, one linear layer with batch norm gives the embedding.
    """

    def __init__(self, in_channels: int, embedding_dim: int, hidden: int = 96) -> None:
        super().__init__()
        self.reduce = ConvBlock(in_channels, hidden, 1)
        self.mix = nn.ModuleList(spatial_block(hidden, hidden, depthwise=True) for _ in range(2))
        self.project = nn.Linear(hidden * PATCH[0], embedding_dim, bias=False)
        self.norm = nn.BatchNorm1d(embedding_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (N, C, 8, 4) -> embeddings (N, D), unit rows."""
        x = self.reduce(patches)
        for block in self.mix:
            x = x + block(x)
        stripes = x.mean(dim=3).flatten(1)  # (N, hidden * 8)
        x = self.project(stripes)
        if len(x) > 1 or not self.training:
            return functional.normalize(self.norm(x))
        # One row has no statistics of its own: it is measured by those seen so far.
        norm = self.norm
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return functional.normalize(x)


class JDE(nn.Module):
    """Joint detection and embedding network of the compact family.

    Input images are (B, 3, H, W) float32, BGR, 0 to 255, H and W multiples of 32.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        width, depth = int(64 * WIDTHS[config.size]), DEPTHS[config.size]
        depthwise = config.size == "nano"
        self.backbone = CSPBackbone(width, depth, depthwise=depthwise)
        channels = self.backbone.channels
        self.pyramid = PathAggregation(channels, depth, depthwise=depthwise)
        hidden = 4 * width
        self.heads = nn.ModuleList(DetectionHead(c, hidden, config.num_classes, depthwise=depthwise) for c in channels)
        if config.embedding_dim:
            self.embedding_heads = nn.ModuleList(EmbeddingHead(2 * c, config.embedding_dim) for c in channels)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """One pass over the images.

        Args:
            images: (B, 3, H, W) float32, BGR, 0 to 255.

        Returns:
            Raw head outputs per level (stride 8, 16, 32), each (B, 5 + num_classes, H/s, W/s), and the features the
            embedding heads read, each (B, 2C, H/s, W/s): backbone (texture, colour) beside pyramid (context).
        """
        shallow = self.backbone(images)
        deep = self.pyramid(shallow)
        raw = [head(level) for head, level in zip(self.heads, deep, strict=True)]
        features = [torch.cat(pair, dim=1) for pair in zip(shallow, deep, strict=True)]
        return raw, features

    def patches(self, features: Tensor, level: int, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Cut the patches the embedding head of one level reads.

        Args:
            features: (B, 2C, H/s, W/s) of that level.
            level: 0, 1 or 2 for stride 8, 16, 32.
            boxes: (N, 4) xyxy in network pixels.
            image_index: (N,) row of the batch each box belongs to.

        Returns:
            (N, 2C, 8, 4).
        """
        rois = torch.cat((image_index[:, None].to(boxes), boxes), dim=1).to(features.dtype)
        return roi_align(features, rois, PATCH, 1 / STRIDES[level], sampling_ratio=2, aligned=True)  # type: ignore[no-any-return]

    def embed(self, features: Sequence[Tensor], levels: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Embeddings of the given boxes, each by the head of the level it was found at.

        Args:
            features: the maps `forward` returned.
            levels: (N,) level of each box.
            boxes: (N, 4) xyxy in network pixels.
            image_index: (N,) row of the batch each box belongs to.

        Returns:
            (N, D) unit rows in the order of `boxes`.
        """
        out = boxes.new_zeros((len(boxes), self.config.embedding_dim))
        for level, head in enumerate(self.embedding_heads):
            rows = (levels == level).nonzero()[:, 0]
            if len(rows):
                patches = self.patches(features[level], level, boxes[rows], image_index[rows])
                out = out.index_copy(0, rows, head(patches).to(out.dtype))
        return out
