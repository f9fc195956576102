"""Which cell learns which person: SimOTA (Ge et al., "YOLOX", arXiv:2107.08430, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from detector.postprocess import Cells

CENTRE_RADIUS = 2.5
"""Half side, in cells, of the square around a box's centre whose cells may learn it."""
MAX_CELLS = 10
IOU_COST = 3.0
OUTSIDE_COST = 1e5


@torch.no_grad()
def simota(
    cells: Cells, boxes: Tensor, objectness: Tensor, class_logits: Tensor, targets: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Assign the cells of one image to its ground-truth boxes by lowest cost.

    The cost of a pair is the classification loss plus three times −log IoU; pairs outside the box or far from its
    centre come after the others, pairs that are both come last. A box takes as many cells as the sum of its ten best
    IoUs says; a cell wanted by several boxes goes to the cheapest.

    Args:
        cells: the A cells.
        boxes: (A, 4) predicted xyxy in network pixels.
        objectness: (A,) logits.
        class_logits: (A, C) logits.
        targets: (G, 4) ground truth xyxy in network pixels.
        labels: (G,) classes in [0, C).

    Returns:
        matched (A,) int64 row of `targets`, −1 for background; iou (A,) with that row, 0 for background.
    """
    matched = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    iou = boxes.new_zeros(len(boxes))
    if not len(targets):
        return matched, iou
    centre = (cells.xy + 0.5) * cells.stride[:, None]  # (A, 2)
    inside_box = ((centre[None] > targets[:, None, :2]) & (centre[None] < targets[:, None, 2:])).all(-1)
    middle = (targets[:, :2] + targets[:, 2:]) / 2
    reach = CENTRE_RADIUS * cells.stride[None, :, None]
    inside_centre = ((centre[None] - middle[:, None]).abs() < reach).all(-1)  # (G, A)
    candidates = (inside_box | inside_centre).any(0).nonzero()[:, 0]
    if not len(candidates):
        return matched, iou
    outside = (2 - inside_box.int() - inside_centre.int())[:, candidates]

    pair_iou = box_iou(targets, boxes[candidates])  # (G, K)
    probability = (class_logits[candidates].sigmoid() * objectness[candidates, None].sigmoid()).sqrt()
    one_hot = functional.one_hot(labels, class_logits.shape[1]).to(probability)
    class_cost = functional.binary_cross_entropy(
        probability[None].expand(len(targets), -1, -1),
        one_hot[:, None].expand(-1, len(candidates), -1),
        reduction="none",
    ).sum(-1)
    cost = class_cost - IOU_COST * (pair_iou + 1e-8).log() + OUTSIDE_COST * outside

    most = min(MAX_CELLS, len(candidates))
    wanted = pair_iou.topk(most, dim=1).values.sum(1).int().clamp(min=1)  # (G,)
    cheapest = cost.topk(most, dim=1, largest=False).indices  # (G, most)
    chosen = torch.zeros_like(outside, dtype=torch.bool)
    chosen.scatter_(1, cheapest, torch.arange(most, device=boxes.device)[None] < wanted[:, None])
    owner = cost.masked_fill(~chosen, torch.inf).argmin(0)  # (K,)
    taken = chosen.any(0)
    matched[candidates[taken]] = owner[taken]
    iou[candidates[taken]] = pair_iou[owner[taken], taken.nonzero()[:, 0]]
    return matched, iou
