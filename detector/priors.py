"""Where boxes are predicted: priors, the box code between a prior and a box, and the cells that were picked.

Both families share one code (Wang et al., ECCV 2020; Redmon and Farhadi, "YOLOv3", arXiv:1804.02767): with a prior of
size (pw, ph) at cell (x, y),

    cx = x + pw·dx,   cy = y + ph·dy,   w = pw·exp(dw),   h = ph·exp(dh),   all times the stride.

The anchor-free family (Ge et al., YOLOX, arXiv:2107.08430) has one prior of one cell in each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

STRIDES = (8, 16, 32)
MAX_LOG_SIZE = 8.0
"""A box beyond e^8 priors is none: the clamp keeps a wild code finite."""


@dataclass(frozen=True)
class Priors:
    """The rows of a flattened prediction: levels, then priors of a level, then grid rows, then grid columns.

    Attributes:
        xy: (A, 2) column and row of the cell.
        size: (A, 2) width and height in cells.
        stride: (A,) stride of the level in network pixels.
        level: (A,) index of the level.
    """

    xy: Tensor
    size: Tensor
    stride: Tensor
    level: Tensor

    def __getitem__(self, rows: Tensor) -> Priors:
        """Some of the rows."""
        return Priors(self.xy[rows], self.size[rows], self.stride[rows], self.level[rows])

    @property
    def xyxy(self) -> Tensor:
        """(A, 4) the priors as boxes in network pixels, centred on the integer cell as the code has it."""
        half = self.size / 2
        return torch.cat((self.xy - half, self.xy + half), dim=1) * self.stride[:, None]


@dataclass(frozen=True)
class Picks:
    """Boxes of a batch that are to be embedded, and the cell that found each.

    Attributes:
        image: (N,) row of the batch.
        level: (N,) index of the level.
        xy: (N, 2) column and row of the cell.
        boxes: (N, 4) xyxy in network pixels.
    """

    image: Tensor
    level: Tensor
    xy: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, priors: Priors, rows: Tensor, image: Tensor, boxes: Tensor) -> Picks:
        """The cells of some rows of the priors."""
        return cls(image, priors.level[rows], priors.xy[rows].long(), boxes)


class Canvas(NamedTuple):
    """How a frame lies in the network's input."""

    width: int
    height: int
    ratio: float
    """Pixels of the input for one of the frame."""
    centred: bool
    """Picture in the middle, grey around it; else top left."""


class Network(Protocol):
    """What both families offer; inference, training and evaluation need no more.

    Images are (B, 3, H, W) float32, BGR, 0 to 255, H and W multiples of 32.
    """

    config: Any
    """Frozen dataclass that rebuilds the network; has `embedding_dim`."""
    pad_value: int
    """Grey around a letterboxed picture."""
    cpu_engine: Literal["onnxruntime", "torch"]
    """What runs the convolutions on a CPU, unless told otherwise."""
    nms_thresh: float
    """IoU above which the family drops the lower-scored of two boxes."""

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images -> raw maps and feature maps."""

    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images -> raw maps and feature maps."""

    def flatten(self, raw: Sequence[Tensor]) -> Tensor:
        """Raw maps -> (B, A, 4 + K) float32, box codes then logits, in the order of `priors`."""

    def priors(self, raw: Sequence[Tensor]) -> Priors:
        """The priors of raw maps."""

    def scores(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 4 + K) -> scores (...) in [0, 1] and class labels (...)."""

    def embed(self, features: Sequence[Tensor], picks: Picks) -> Tensor:
        """Feature maps and N picks -> (N, D) unit rows."""

    def patches(self, features: Sequence[Tensor], picks: Picks) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Feature maps and N picks -> what the embedding head reads, and in which order.

        (N_l, C_l, h, w) for each level; of a finer map (N, C, h, w) in the order of the levels, or None; and (N,) the
        rows of `picks` in that order.
        """

    def embed_patches(self, coarse: Sequence[Tensor], fine: Tensor | None) -> Tensor:
        """The first two of these -> (N, D) unit rows in the order of the levels."""

    def canvas(self, height: int, width: int, input_size: int | None) -> Canvas:
        """Network input for a frame of that height and width; `input_size` None is the family's own."""


def make_priors(raw: Sequence[Tensor], sizes: Sequence[Sequence[tuple[float, float]]]) -> Priors:
    """Priors of raw maps.

    Args:
        raw: per level (B, C, H, W).
        sizes: per level the (width, height) of its priors in cells.
    """
    xy, size, stride, level = [], [], [], []
    for i, output in enumerate(raw):
        height, width = output.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(height, device=output.device), torch.arange(width, device=output.device), indexing="ij"
        )
        cells = torch.stack((x, y), dim=-1).reshape(-1, 2).float()
        own = torch.tensor(sizes[i], dtype=torch.float32, device=output.device)
        # Shapes, not len(): an exported graph must not keep the number of cells it was traced with.
        count = own.shape[0] * cells.shape[0]
        xy.append(cells.repeat(own.shape[0], 1))
        size.append(own[:, None].expand(-1, cells.shape[0], -1).reshape(-1, 2))
        stride.append(torch.full((count,), float(STRIDES[i]), device=output.device))
        level.append(torch.full((count,), i, device=output.device))
    return Priors(torch.cat(xy), torch.cat(size), torch.cat(stride), torch.cat(level))


def rows_at(points: Tensor, raw: Sequence[Tensor], priors_per_cell: int) -> Tensor:
    """Rows of the priors whose cells hold given points: (N, 2) in network pixels -> (N, levels · priors_per_cell)."""
    rows, first = [], 0
    for output, stride in zip(raw, STRIDES, strict=True):
        height, width = output.shape[-2:]
        x = (points[:, 0] / stride).long().clamp(0, width - 1)
        y = (points[:, 1] / stride).long().clamp(0, height - 1)
        for _ in range(priors_per_cell):
            rows.append(first + y * width + x)
            first += height * width
    return torch.stack(rows, dim=1)


def flatten(raw: Sequence[Tensor], priors_per_cell: int) -> Tensor:
    """Raw maps (B, P·K, H, W) of P priors a cell -> (B, A, K) in the row order of `Priors`, float32."""
    rows = [
        output.reshape(output.shape[0], priors_per_cell, -1, output.shape[-2] * output.shape[-1])
        .transpose(2, 3)
        .flatten(1, 2)
        for output in raw
    ]
    return torch.cat([r.float() for r in rows], dim=1)


def decode_boxes(codes: Tensor, priors: Priors) -> Tensor:
    """Box codes (..., A, 4) -> boxes (..., A, 4) xyxy in network pixels."""
    stride = priors.stride[..., None]
    centre = (priors.xy + priors.size * codes[..., :2]) * stride
    half = codes[..., 2:4].clamp(max=MAX_LOG_SIZE).exp() * priors.size * stride / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def encode_boxes(boxes: Tensor, priors: Priors) -> Tensor:
    """Boxes (A, 4) xyxy in network pixels, of positive size -> box codes (A, 4): what `decode_boxes` undoes."""
    scaled = boxes / priors.stride[:, None]
    side = scaled[:, 2:] - scaled[:, :2]
    centre = (scaled[:, :2] + scaled[:, 2:]) / 2
    return torch.cat(((centre - priors.xy) / priors.size, (side / priors.size).log()), dim=1)


def writes_onnx() -> bool:
    """Whether this thread is writing an ONNX graph just now; torch's own flag counts for all threads."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined, no-untyped-call]
