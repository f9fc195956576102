"""The compact joint detector: one pass gives person boxes, scores and, at the cells kept, embeddings.

References:
    Wang et al., "Towards Real-Time Multi-Object Tracking" (JDE), ECCV 2020: detection and embedding in one network.
    Ge et al., "YOLOX", arXiv:2107.08430: decoupled anchor-free heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.csp import ConvBlock, CSPBackbone, PathAggregation, spatial_block
from detector.priors import STRIDES, Canvas, Picks, Priors, flatten, make_priors, writes_onnx

Size = Literal["nano", "tiny", "s", "m"]
WIDTHS: dict[Size, float] = {"nano": 0.25, "tiny": 0.375, "s": 0.50, "m": 0.75}
DEPTHS: dict[Size, int] = {"nano": 1, "tiny": 1, "s": 1, "m": 2}
PATCH = (8, 4)
FINE_PATCH = (16, 8)
FINE_STRIDE = 4
EMBEDDING_WIDTH = 128
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


def sample_boxes(level_map: Tensor, boxes: Tensor, image_index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample boxes to a grid, one bilinear sample in the middle of each cell (RoI align, He et al., ICCV 2017).

    Args:
        level_map: (B, C, H, W).
        boxes: (N, 4) xyxy in cells of the map.
        image_index: (N,) row of the batch each box belongs to.
        grid: rows and columns (h, w).

    Returns:
        (N, C, h, w); zero where a sample lies more than a cell outside the map.
    """
    if writes_onnx():
        return _OnnxRoiAlign.apply(level_map, boxes.to(level_map.dtype), image_index, *grid)  # type: ignore[no-any-return]
    from torchvision.ops import roi_align  # takes as long to import as torch

    rois = torch.cat((image_index[:, None].to(boxes), boxes), dim=1).to(level_map.dtype)
    return roi_align(level_map, rois, grid, sampling_ratio=1, aligned=True)  # type: ignore[no-any-return]


class _OnnxRoiAlign(torch.autograd.Function):
    """ONNX's own RoI align, so that its graphs are made without torchvision."""

    @staticmethod
    def forward(ctx: Any, level_map: Tensor, boxes: Tensor, image_index: Tensor, height: int, width: int) -> Tensor:
        """Patches without content as an example; what is exported is `symbolic`."""
        return level_map.new_zeros((len(boxes), level_map.shape[1], height, width))

    @staticmethod
    def symbolic(g: Any, level_map: Any, boxes: Any, image_index: Any, height: int, width: int) -> Any:
        """The node; opset 16 and later have the half-pixel shift of `aligned`."""
        grid = {"output_height_i": height, "output_width_i": width, "sampling_ratio_i": 1, "spatial_scale_f": 1.0}
        how = {"mode_s": "avg", "coordinate_transformation_mode_s": "half_pixel"}
        return g.op("RoiAlign", level_map, boxes, image_index, **grid, **how)


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
    """Embeddings from the features under the boxes kept, computed there and nowhere else.

    A box is resampled twice: to 8x4 cells of the level it was found at (what the detector makes of the person) and to
    16x8 cells of the shallow map of stride 4 (texture and colour). Every level has a reduction of its own; what follows
    is shared, so that a person who comes nearer and changes level keeps the same description. Residual 3x3 blocks mix
    the patch, horizontal stripes (means over the width) keep head, torso and legs apart, and one linear layer with
    batch norm gives the embedding.
    """

    def __init__(self, level_channels: Sequence[int], fine_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(ConvBlock(c, EMBEDDING_WIDTH // 2, 1) for c in level_channels)
        self.fine = ConvBlock(fine_channels, EMBEDDING_WIDTH // 2, 3, 2)
        self.mix = nn.ModuleList(spatial_block(EMBEDDING_WIDTH, EMBEDDING_WIDTH, depthwise=True) for _ in range(3))
        self.project = nn.Linear(EMBEDDING_WIDTH * PATCH[0], embedding_dim, bias=False)
        self.norm = nn.BatchNorm1d(embedding_dim)

    def forward(self, coarse: Sequence[Tensor], fine: Tensor) -> Tensor:
        """Embed patches.

        Args:
            coarse: per level (N_l, C_l, 8, 4).
            fine: (ΣN_l, C, 16, 8) in the order of the levels.

        Returns:
            (ΣN_l, D) unit rows in the same order.
        """
        # Batch norm cannot learn from no rows; in use it may see none, so that a traced graph has every level.
        used = (pair for pair in zip(self.reduce, coarse, strict=True) if not self.training or len(pair[1]))
        reduced = [layer(patches) for layer, patches in used]
        x = torch.cat((torch.cat(reduced), self.fine(fine)), dim=1)
        for block in self.mix:
            x = x + block(x)
        stripes = x.mean(dim=3).flatten(1)  # (N, width * 8)
        x = self.project(stripes)
        if not self.training or len(x) > 1:
            return functional.normalize(self.norm(x))
        # One row has no statistics of its own: it is measured by those seen so far.
        norm = self.norm
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return functional.normalize(x)


class JDE(nn.Module):
    """Joint detection and embedding network of the compact family.

    Input images are (B, 3, H, W) float32, BGR, 0 to 255, H and W multiples of 32.
    """

    pad_value = 114
    cpu_engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    nms_thresh = 0.65
    input_size = 640
    """Long side of a frame, unless told otherwise."""

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
            self.embedding_head = EmbeddingHead([2 * c for c in channels], channels[0] // 2, config.embedding_dim)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """One pass over the images.

        Args:
            images: (B, 3, H, W) float32, BGR, 0 to 255.

        Returns:
            Raw head outputs per level (stride 8, 16, 32), each (B, 5 + num_classes, H/s, W/s), and the features the
            embedding head reads: the shallow map (B, C/2, H/4, W/4), then per level the backbone's and the pyramid's
            map, each (B, C, H/s, W/s).
        """
        fine, *shallow = self.backbone(images)
        deep = self.pyramid(shallow)
        raw = [head(level) for head, level in zip(self.heads, deep, strict=True)]
        return raw, [fine, *(level for pair in zip(shallow, deep, strict=True) for level in pair)]

    def flatten(self, raw: Sequence[Tensor]) -> Tensor:
        """Raw maps -> (B, A, 5 + C) float32: box code, objectness logit, class logits."""
        return flatten(raw, 1)

    def priors(self, raw: Sequence[Tensor]) -> Priors:
        """One prior of one cell in each place."""
        return make_priors(raw, [[(1.0, 1.0)]] * len(STRIDES))

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness times the best class probability, and that class: (..., 5 + C) -> (...), (...)."""
        probability, labels = flat[..., 5:].sigmoid().max(dim=-1)
        return flat[..., 4].sigmoid() * probability, labels

    def canvas(self, height: int, width: int, input_size: int | None) -> Canvas:
        """The frame's shape with `input_size` as its long side, sides rounded up to multiples of 32; top left."""
        ratio = (input_size or self.input_size) / max(height, width)
        grid = STRIDES[-1]
        new_width, new_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
        return Canvas(-(-new_width // grid) * grid, -(-new_height // grid) * grid, ratio, centred=False)

    def patches(self, features: Sequence[Tensor], picks: Picks) -> tuple[list[Tensor], Tensor, Tensor]:
        """Cut what the embedding head reads from under some boxes.

        Args:
            features: the maps `forward` returned.
            picks: the N boxes.

        Returns:
            Patches per level, each (N_l, 2C, 8, 4); fine patches (N, C/2, 16, 8) in the order of the levels; and
            (N,) the rows of `picks` in that order. All float32.
        """
        features = [level_map.float() for level_map in features]
        rows = [(picks.level == level).nonzero()[:, 0] for level in range(len(STRIDES))]
        coarse = []
        for level, stride in enumerate(STRIDES):
            own = picks.boxes[rows[level]] / stride, picks.image[rows[level]]
            maps = features[1 + 2 * level : 3 + 2 * level]
            coarse.append(torch.cat([sample_boxes(level_map, *own, PATCH) for level_map in maps], dim=1))
        order = torch.cat(rows)
        fine = sample_boxes(features[0], picks.boxes[order] / FINE_STRIDE, picks.image[order], FINE_PATCH)
        return coarse, fine, order

    def embed(self, features: Sequence[Tensor], picks: Picks) -> Tensor:
        """Embeddings of the picked boxes.

        Returns:
            (N, D) unit rows in the order of `picks`.
        """
        if not len(picks.boxes):
            return picks.boxes.new_zeros((0, self.config.embedding_dim))
        coarse, fine, order = self.patches(features, picks)
        return self.embed_patches(coarse, fine)[order.argsort()]

    def embed_patches(self, coarse: Sequence[Tensor], fine: Tensor | None) -> Tensor:
        """Embeddings of what `patches` cut out.

        Args:
            coarse: patches per level, each (N_l, 2C, 8, 4).
            fine: (N, C/2, 16, 8) in the order of the levels.

        Returns:
            (N, D) unit rows in the same order.
        """
        return self.embedding_head(coarse, fine)  # type: ignore[no-any-return]
