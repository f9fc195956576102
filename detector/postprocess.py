"""From raw maps to people: decode, non-maximum suppression, embeddings at the cells kept, letterbox undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.csp import STRIDES
from detector.model import JDE

MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class Cells:
    """Where the rows of a flattened prediction lie.

    Attributes:
        xy: (A, 2) column and row of each cell.
        stride: (A,) its stride in network pixels.
        level: (A,) index of its level.
    """

    xy: Tensor
    stride: Tensor
    level: Tensor


def cells_of(raw: Sequence[Tensor]) -> Cells:
    """Cells of raw maps in row order: levels, then grid rows, then grid columns."""
    xy, stride, level = [], [], []
    for i, output in enumerate(raw):
        height, width = output.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(height, device=output.device), torch.arange(width, device=output.device), indexing="ij"
        )
        xy.append(torch.stack((x, y), dim=-1).reshape(-1, 2).float())
        stride.append(torch.full((height * width,), float(STRIDES[i]), device=output.device))
        level.append(torch.full((height * width,), i, device=output.device))
    return Cells(torch.cat(xy), torch.cat(stride), torch.cat(level))


def flatten(raw: Sequence[Tensor]) -> Tensor:
    """Raw maps -> (B, A, 5 + C) in the row order of `cells_of`, float32."""
    return torch.cat([output.flatten(2).transpose(1, 2).float() for output in raw], dim=1)


def decode_boxes(codes: Tensor, cells: Cells) -> Tensor:
    """Box codes -> boxes (Ge et al., YOLOX): centre = (code + cell) · stride, size = exp(code) · stride.

    Args:
        codes: (..., A, 4) dx, dy, log w, log h.
        cells: the A cells.

    Returns:
        (..., A, 4) xyxy in network pixels.
    """
    stride = cells.stride[:, None]
    centre = (codes[..., :2] + cells.xy) * stride
    # A size beyond e^8 cells is no box: the clamp keeps a wild code finite.
    half = codes[..., 2:4].clamp(max=8.0).exp() * stride / 2
    return torch.cat((centre - half, centre + half), dim=-1)


@torch.no_grad()
def postprocess(
    model: JDE,
    raw: Sequence[Tensor],
    features: Sequence[Tensor],
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
) -> list[dict[str, Tensor]]:
    """People in each image of a batch, in network pixels.

    The score of a cell is objectness times the best class probability. Embeddings are computed only for the boxes
    that survive non-maximum suppression.

    Returns:
        One dictionary an image, rows by falling score: `boxes` (N, 4) xyxy, `scores` (N,), `labels` (N,),
        and `embeddings` (N, D) unit rows where the model has an embedding head.
    """
    flat, cells = flatten(raw), cells_of(raw)
    probability, labels = flat[..., 5:].sigmoid().max(dim=-1)
    scores = flat[..., 4].sigmoid() * probability  # (B, A)
    kept: list[dict[str, Tensor]] = []
    levels, image_index = [], []
    for i in range(len(flat)):
        rows = (scores[i] >= score_thresh).nonzero()[:, 0]
        if len(rows) > MAX_CANDIDATES:
            rows = rows[scores[i, rows].topk(MAX_CANDIDATES).indices]
        boxes = decode_boxes(flat[i, rows, :4], Cells(cells.xy[rows], cells.stride[rows], cells.level[rows]))
        keep = batched_nms(boxes, scores[i, rows], labels[i, rows], nms_thresh)[:max_detections]
        rows = rows[keep]
        kept.append({"boxes": boxes[keep], "scores": scores[i, rows], "labels": labels[i, rows]})
        levels.append(cells.level[rows])
        image_index.append(torch.full_like(rows, i))
    if model.config.embedding_dim:
        embeddings = model.embed(
            features, torch.cat(levels), torch.cat([k["boxes"] for k in kept]), torch.cat(image_index)
        )
        for prediction, rows in zip(kept, torch.split(embeddings, [len(k["boxes"]) for k in kept]), strict=True):
            prediction["embeddings"] = rows
    return kept
