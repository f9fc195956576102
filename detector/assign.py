"""Which prior learns which person.

SimOTA for the anchor-free family (Ge et al., "YOLOX", arXiv:2107.08430, section 2.1), thresholds of overlap for the
anchor boxes of the published network (Wang et al., ECCV 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from detector.priors import STRIDES, Priors

CENTRE_RADIUS = 2.5
"""Half side, in cells, of the square around a box's centre whose cells may learn it."""
MAX_CELLS = 10
IOU_COST = 3.0
OUTSIDE_COST = 1e5
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.4
BACKGROUND, IGNORED = -1, -2
"""In place of a matched row."""


@torch.no_grad()
def simota(
    priors: Priors, boxes: Tensor, objectness: Tensor, class_logits: Tensor, targets: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Assign the cells of one image to its ground-truth boxes by lowest cost.

    The cost of a pair is the classification loss plus three times −log IoU; pairs outside the box or far from its
    centre come after the others, pairs that are both come last. A box takes as many cells as the sum of its ten best
    IoUs says; a cell wanted by several boxes goes to the cheapest.

    Args:
        priors: the A cells.
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
    centre = (priors.xy + 0.5) * priors.stride[:, None]  # (A, 2)
    inside_box = ((centre[None] > targets[:, None, :2]) & (centre[None] < targets[:, None, 2:])).all(-1)
    middle = (targets[:, :2] + targets[:, 2:]) / 2
    reach = CENTRE_RADIUS * priors.stride[None, :, None]
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


@torch.no_grad()
def anchor_match(priors: Priors, shape: tuple[int, int], boxes: Tensor, *, parity: bool) -> tuple[Tensor, Tensor]:
    """Match the anchor boxes of one image to its ground truth by overlap (Wang et al., ECCV 2020).

    A prior belongs to the box it overlaps most: foreground above 0.5, background below 0.4, ignored between. As
    published, a box no prior reaches teaches nobody; unless `parity`, it takes the free prior that overlaps it most.

    Args:
        priors: the A priors.
        shape: height and width of the network input in pixels.
        boxes: (G, 4) xyxy in network pixels.
        parity: as published.

    Returns:
        matched (A,) int64 row of `boxes`, −1 for background, −2 for ignored; iou (A,) with the box overlapped most.
    """
    matched = torch.full((len(priors.xy),), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes):
        return matched, boxes.new_zeros(len(matched))
    overlap = boxes.new_zeros((len(matched), len(boxes)))
    for level, stride in enumerate(STRIDES):
        rows = priors.level == level
        overlap[rows] = box_iou(priors[rows].xyxy, centred_inside(boxes, shape, stride))
    iou, best = overlap.max(dim=1)
    matched[iou >= BACKGROUND_IOU] = IGNORED
    foreground = iou > FOREGROUND_IOU
    matched[foreground] = best[foreground]
    missed = (torch.bincount(best[foreground], minlength=len(boxes)) == 0).nonzero()[:, 0]
    if not parity and len(missed):
        free = overlap[:, missed].masked_fill(foreground[:, None], -1)
        # Two boxes with the same nearest prior: it goes to the one it overlaps more.
        chosen = torch.zeros_like(free, dtype=torch.bool).scatter_(0, free.argmax(dim=0, keepdim=True), True)
        own, owner = free.masked_fill(~chosen, -1).max(dim=1)
        taken = chosen.any(dim=1)
        matched[taken], iou[taken] = missed[owner[taken]], own[taken]
    return matched, iou


def centred_inside(boxes: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Boxes as the priors of a level see them: a centre beyond the first or last cell counts at that cell.

    Args:
        boxes: (G, 4) xyxy in network pixels.
        shape: height and width of the network input in pixels.
        stride: of the level.

    Returns:
        (G, 4) boxes of the same sizes.
    """
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    last = boxes.new_tensor([shape[1] // stride - 1, shape[0] // stride - 1]) * stride
    centre = (boxes[:, :2] + half).clamp(min=0).minimum(last)
    return torch.cat((centre - half, centre + half), dim=1)
