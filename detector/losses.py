"""The joint loss: boxes, confidence, identity, distilled appearance, weighed by learned uncertainty.

References:
    Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020, equations 1 to 3.
    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018.
    Ge et al., "YOLOX", arXiv:2107.08430: IoU and objectness losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.assign import simota
from detector.model import JDE
from detector.postprocess import Cells, cells_of, decode_boxes, flatten

TASKS = ("box", "conf", "id", "distill")
IGNORE_LABEL = -1
NO_IDENTITY = -1


class UncertaintyWeighting(nn.Module):
    """L = ½ Σ exp(−s_t)·L_t + s_t with one learned s a task (Kendall et al.)."""

    def __init__(self, start: Mapping[str, float]) -> None:
        super().__init__()
        self.s = nn.ParameterDict({task: nn.Parameter(torch.tensor(float(value))) for task, value in start.items()})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the scalars in `losses`; every one must be a known task."""
        terms = [torch.exp(-self.s[task]) * loss + self.s[task] for task, loss in losses.items()]
        return 0.5 * torch.stack(terms).sum()


class JDECriterion(nn.Module):
    """The unweighted losses of a batch as named scalars.

    Targets are one dictionary an image: `boxes` (G, 4) xyxy in network pixels; `labels` (G,), −1 for a region to be
    ignored; `ids` (G,) identity, −1 where unknown; `teacher` (G, T) unit rows, zero rows where none.

    Args:
        num_ids: identities of the classifier; 0 leaves the identity loss out.
        embedding_dim: D of the model.
        teacher_dim: T of the teacher's embeddings; 0 leaves distillation out.
        samples_per_box: cells of a person that are embedded in a step, drawn from those assigned to it.
    """

    def __init__(self, num_ids: int, embedding_dim: int, teacher_dim: int, samples_per_box: int = 2) -> None:
        super().__init__()
        self.samples_per_box = samples_per_box
        self.identity = nn.Linear(embedding_dim, num_ids) if num_ids else None
        # Fewer than three identities give ln(nID − 1) <= 0: the scale is held at one from below.
        self.scale = max(math.sqrt(2) * math.log(num_ids - 1), 1.0) if num_ids > 2 else 1.0
        self.to_teacher = nn.Linear(embedding_dim, teacher_dim) if teacher_dim else None

    def forward(
        self,
        model: JDE,
        raw: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses `box`, `conf`, `id`, `distill` (the last two only where asked for).

        Without a person to learn from, a loss is zero yet connected to the graph.
        """
        flat, cells = flatten(raw), cells_of(raw)
        boxes = decode_boxes(flat[..., :4], cells)
        assigned = [self._assign(cells, boxes[i], flat[i], target) for i, target in enumerate(targets)]
        matched = torch.stack([a[0] for a in assigned])  # (B, A)
        iou = torch.stack([a[1] for a in assigned])
        counted = torch.stack([a[2] for a in assigned])
        foreground = matched >= 0
        count = foreground.sum().clamp(min=1)

        wanted = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        box_loss = (1 - _aligned_iou(boxes[foreground], wanted).square()).sum() / count
        objectness = functional.binary_cross_entropy_with_logits(
            flat[..., 4], foreground.to(flat), weight=counted.to(flat), reduction="sum"
        )
        labels = torch.cat([t["labels"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        class_target = functional.one_hot(labels, flat.shape[2] - 5).to(flat) * iou[foreground][:, None]
        classes = functional.binary_cross_entropy_with_logits(flat[foreground][:, 5:], class_target, reduction="sum")
        losses = {"box": box_loss + 0 * flat[..., :4].sum(), "conf": (objectness + classes) / count}
        if self.identity is not None or self.to_teacher is not None:
            losses |= self._appearance(model, features, boxes.detach(), cells.level, matched, targets, generator)
        return losses

    @staticmethod
    def _assign(
        cells: Cells, boxes: Tensor, flat: Tensor, target: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SimOTA on the people; background cells that predict an ignored region do not count."""
        people = (target["labels"] != IGNORE_LABEL).nonzero()[:, 0]
        matched, iou = simota(
            cells,
            boxes.detach(),
            flat[:, 4].detach(),
            flat[:, 5:].detach(),
            target["boxes"][people],
            target["labels"][people],
        )
        if len(people):
            matched = torch.where(matched >= 0, people[matched.clamp(min=0)], matched)
        counted = torch.ones_like(matched, dtype=torch.bool)
        ignored = target["boxes"][target["labels"] == IGNORE_LABEL]
        if len(ignored):
            inside = _share_inside(boxes.detach(), ignored).amax(1) > 0.5
            counted = ~inside | (matched >= 0)
        return matched, iou, counted

    def _appearance(
        self,
        model: JDE,
        features: Sequence[Tensor],
        boxes: Tensor,
        level: Tensor,
        matched: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Embed a few of each person's cells; compare with its identity and its teacher embedding."""
        image, cell = (matched >= 0).nonzero(as_tuple=True)
        sizes = torch.tensor([len(t["boxes"]) for t in targets], device=matched.device)
        person = (sizes.cumsum(0) - sizes)[image] + matched[image, cell]  # row over all targets of the batch
        keep = _sample_per_group(person, self.samples_per_box, generator)
        image, cell, person = image[keep], cell[keep], person[keep]
        embeddings = model.embed(features, level[cell], boxes[image, cell], image)
        zero = embeddings.sum() * 0 + sum(f.sum() * 0 for f in features)
        losses: dict[str, Tensor] = {}
        if self.identity is not None:
            ids = torch.cat([t["ids"] for t in targets])[person]
            known = ids != NO_IDENTITY
            logits = self.identity(embeddings[known] * self.scale)
            losses["id"] = functional.cross_entropy(logits, ids[known]) if known.any() else zero
        if self.to_teacher is not None:
            teacher = torch.cat([t["teacher"] for t in targets])[person]
            known = teacher.abs().sum(1) > 0
            student = self.to_teacher(embeddings[known])
            distance = 1 - functional.cosine_similarity(student, teacher[known])
            losses["distill"] = distance.mean() if known.any() else zero
        return losses


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box's area that lies in each region: (N, 4) and (M, 4) xyxy -> (N, M)."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-9)
    return (high - low).clamp(min=0).prod(2) / area[:, None]


def _aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (N, 4) with (N, 4) xyxy, row by row."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    area = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area - overlap).clamp(min=1e-9)


def _sample_per_group(group: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """Indices of at most `most` random members of each group."""
    noise = torch.rand(len(group), generator=generator).to(group.device)
    order = torch.argsort(group.double() + noise.double())  # group ids are integers: noise only shuffles within
    ordered = group[order]
    starts = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(group), device=group.device) - starts
    return order[rank < most]
