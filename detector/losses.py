"""The joint loss: boxes, confidence, identity, distilled appearance, weighed by learned uncertainty.

A criterion returns unweighted named scalars, means over what they are about. Where several processes share a batch, a
mean is over all of it: each process divides its sum by its share of the whole count, so that averaging over processes
(as DistributedDataParallel does with gradients) gives the loss of the joint batch.

References:
    Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020, equations 1 to 3.
    Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018.
    Ge et al., "YOLOX", arXiv:2107.08430: IoU and objectness losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from detector.assign import BACKGROUND, IGNORED, anchor_match, centred_inside, simota
from detector.priors import STRIDES, Network, Picks, Priors, decode_boxes, encode_boxes

IGNORE_LABEL = -1
NO_IDENTITY = -1
UNCERTAINTY_START = {"box": -4.85, "conf": -4.15, "id": -2.3}
"""Published first values of s (Wang et al.), those of a level on Darknet-53."""

Targets = Sequence[Mapping[str, Tensor]]
"""One dictionary an image: `boxes` (G, 4) xyxy in network pixels; `labels` (G,), −1 for a region to be ignored; `ids`
(G,) identity, −1 where unknown; `teacher` (G, T) unit rows, zero rows where none (may be absent); `draw` (2,) whole
numbers that say which sample it is (may be absent)."""


class UncertaintyWeighting(nn.Module):
    """L = ½ Σ exp(−s_t)·L_t + s_t with one s a task, learned unless `fixed` (Kendall et al.).

    A loss of exactly zero had nothing to learn from (nobody is large enough for the coarsest level, say): its task is
    left out of the sum, or s would fall with every such batch, without end.
    """

    def __init__(self, start: Mapping[str, float], *, fixed: bool = False) -> None:
        super().__init__()
        self.s = nn.ParameterDict(
            {task: nn.Parameter(torch.tensor(float(value)), requires_grad=not fixed) for task, value in start.items()}
        )

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the scalars in `losses`; every one must be a known task."""
        terms = torch.stack([torch.exp(-self.s[task]) * loss + self.s[task] for task, loss in losses.items()])
        used = torch.stack(list(losses.values())).detach().ne(0).to(terms)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(used, distributed.ReduceOp.MAX)  # some process had something to learn from
        return 0.5 * (terms * used).sum()


class Appearance(nn.Module):
    """What embeddings learn from: the identity of their person, and a teacher's embedding of it.

    Args:
        num_ids: identities of the classifier; 0 leaves the identity loss out.
        embedding_dim: D of the model.
        teacher_dim: T of the teacher's embeddings; 0 leaves distillation out.
    """

    def __init__(self, num_ids: int, embedding_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.identity = nn.Linear(embedding_dim, num_ids) if num_ids else None
        # Fewer than three identities give ln(nID − 1) <= 0: the scale is held at one from below.
        self.scale = max(math.sqrt(2) * math.log(num_ids - 1), 1.0) if num_ids > 2 else 1.0
        self.to_teacher = nn.Linear(embedding_dim, teacher_dim) if teacher_dim else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the losses `forward` returns."""
        return ("id",) * (self.identity is not None) + ("distill",) * (self.to_teacher is not None)

    def forward(self, embeddings: Tensor, ids: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Losses of N embedded cells.

        Args:
            embeddings: (N, D) unit rows.
            ids: (N,) identities, −1 where unknown.
            teacher: (N, T) unit rows, zero where there is none.

        Returns:
            `id`: cross-entropy of the classifier applied to e·√2·ln(nID − 1); `distill`: cosine distance to the
            teacher. Without anything to learn from, a zero that is connected to the graph.
        """
        losses = {}
        if self.identity is not None:
            known = ids != NO_IDENTITY
            logits = self.identity(embeddings[known] * self.scale)
            losses["id"] = functional.cross_entropy(logits, ids[known], reduction="sum") / _share(known.sum())
        if self.to_teacher is not None:
            known = teacher.abs().sum(1) > 0
            distance = 1 - functional.cosine_similarity(self.to_teacher(embeddings[known]), teacher[known])
            losses["distill"] = distance.sum() / _share(known.sum())
        return losses


class JDECriterion(nn.Module):
    """The losses of the compact family: `box`, `conf`, and, where asked for, `id` and `distill`.

    Args:
        num_ids: identities of the classifier; 0 leaves the identity loss out.
        embedding_dim: D of the model.
        teacher_dim: T of the teacher's embeddings; 0 leaves distillation out.
        samples_per_box: cells of a person that are embedded in a step, drawn from those assigned to it.
        joint_confidence: learn the score itself, objectness times class, towards the IoU. A car whose class says "no
            person" then costs nothing: weights learned from many classes keep what they know of the others.
    """

    def __init__(
        self,
        num_ids: int,
        embedding_dim: int,
        teacher_dim: int = 0,
        samples_per_box: int = 2,
        *,
        joint_confidence: bool = False,
    ) -> None:
        super().__init__()
        self.samples_per_box = samples_per_box
        self.joint_confidence = joint_confidence
        self.appearance = Appearance(num_ids, embedding_dim, teacher_dim)
        self.start = dict.fromkeys(("box", "conf", *self.appearance.tasks), 0.0)
        """Tasks, and the first values of their uncertainties."""

    def forward(
        self, model: Network, raw: Sequence[Tensor], features: Sequence[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses of a batch; without a person to learn from, a loss is zero yet connected to the graph."""
        with torch.autocast(raw[0].device.type, enabled=False):
            flat, priors = model.flatten(raw), model.priors(raw)
            boxes = decode_boxes(flat[..., :4], priors)
            assigned = [self._assign(priors, boxes[i], flat[i], target) for i, target in enumerate(targets)]
            matched = torch.stack([a[0] for a in assigned])  # (B, A)
            iou = torch.stack([a[1] for a in assigned])
            counted = torch.stack([a[2] for a in assigned])
            foreground = matched >= 0
            count = _share(foreground.sum())

            wanted = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
            box_loss = (1 - _aligned_iou(boxes[foreground], wanted).square()).sum() / count
            labels = torch.cat([t["labels"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
            class_target = functional.one_hot(labels, flat.shape[2] - 5).to(flat) * iou[foreground][:, None]
            if self.joint_confidence:
                target = torch.zeros_like(flat[..., 5:])
                target[foreground] = class_target
                confidence = (joint_cross_entropy(flat[..., 4:5], flat[..., 5:], target) * counted[..., None]).sum()
            else:
                confidence = functional.binary_cross_entropy_with_logits(
                    flat[..., 4], foreground.to(flat), weight=counted.to(flat), reduction="sum"
                ) + functional.binary_cross_entropy_with_logits(flat[foreground][:, 5:], class_target, reduction="sum")
            losses = {"box": box_loss + 0 * flat[..., :4].sum(), "conf": confidence / count}
            if self.appearance.tasks:
                image, cell = foreground.nonzero(as_tuple=True)
                person = _first_rows(targets, image) + matched[image, cell]
                keep = _sample_per_group(person, self.samples_per_box, _noise(targets, image))
                image, cell, person = image[keep], cell[keep], person[keep]
                picks = Picks.of(priors, cell, image, boxes[image, cell].detach())
                losses |= _appearance(self.appearance, model.embed(features, picks), person, targets, features)
        return losses

    @staticmethod
    def _assign(
        priors: Priors, boxes: Tensor, flat: Tensor, target: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SimOTA on the people; background cells that predict an ignored region do not count."""
        people = (target["labels"] != IGNORE_LABEL).nonzero()[:, 0]
        matched, iou = simota(
            priors,
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


def joint_cross_entropy(objectness: Tensor, classes: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the product of two probabilities, a = σ(objectness) and b = σ(classes).

    Args:
        objectness: (..., 1) logits.
        classes: (..., C) logits.
        target: (..., C) what the product should be, in [0, 1].

    Returns:
        (..., C).
    """
    log_a, log_not_a = functional.logsigmoid(objectness), functional.logsigmoid(-objectness)
    log_b, log_not_b = functional.logsigmoid(classes), functional.logsigmoid(-classes)
    # 1 - ab = (1 - a) + a (1 - b): no difference of nearly equal numbers.
    return -target * (log_a + log_b) - (1 - target) * torch.logaddexp(log_not_a, log_a + log_not_b)


class AnchorCriterion(nn.Module):
    """The losses of the published network, per level: `box_8`, `conf_8`, `id_8` (and `distill_8`), … `_16`, … `_32`.

    Smooth L1 on the codes of foreground priors; cross-entropy of background and foreground, ignored priors left out;
    identity of each cell with foreground (Wang et al., ECCV 2020). As published with `parity`; otherwise a box that no
    prior reaches takes its best one, and a cell shared by several people has the identity of the box it overlaps most,
    not the largest number.

    Args:
        num_ids: identities of the classifier; 0 leaves the identity loss out.
        embedding_dim: D of the model.
        teacher_dim: T of the teacher's embeddings; 0 leaves distillation out.
        parity: as published.
    """

    def __init__(self, num_ids: int, embedding_dim: int, teacher_dim: int = 0, *, parity: bool = False) -> None:
        super().__init__()
        self.parity = parity
        self.appearance = Appearance(num_ids, embedding_dim, teacher_dim)
        tasks = ("box", "conf", *self.appearance.tasks)
        self.start = {f"{task}_{stride}": UNCERTAINTY_START.get(task, 0.0) for stride in STRIDES for task in tasks}
        """Tasks, and the first values of their uncertainties."""

    def forward(
        self, model: Network, raw: Sequence[Tensor], features: Sequence[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses of a batch; without a person to learn from, a loss is zero yet connected to the graph."""
        losses = {}
        with torch.autocast(raw[0].device.type, enabled=False):
            flat, priors = model.flatten(raw), model.priors(raw)
            shape = raw[0].shape[2] * STRIDES[0], raw[0].shape[3] * STRIDES[0]
            assigned = [self._assign(priors, shape, target) for target in targets]
            matched, iou = (torch.stack(part) for part in zip(*assigned, strict=True))  # (B, A)
            for index, stride in enumerate(STRIDES):
                rows = (priors.level == index).nonzero()[:, 0]
                own, codes, logits = matched[:, rows], flat[:, rows, :4], flat[:, rows, 4:]
                image, prior = (own >= 0).nonzero(as_tuple=True)
                person = _first_rows(targets, image) + own[image, prior]
                people = _tag(targets, "boxes", person)
                seen = centred_inside(people, shape, stride) if self.parity else people
                wanted = encode_boxes(seen, priors[rows[prior]])
                error = functional.smooth_l1_loss(codes[image, prior], wanted, reduction="sum")
                losses[f"box_{stride}"] = error / _share(4 * own.ge(0).sum()) + 0 * codes.sum()
                known = own != IGNORED
                entropy = functional.cross_entropy(logits[known], own[known].ge(0).long(), reduction="sum")
                losses[f"conf_{stride}"] = entropy / _share(known.sum())
                if self.appearance.tasks:
                    cells = raw[index][0, 0].numel()
                    keep = self._one_per_cell(
                        image * cells + prior % cells, iou[image, rows[prior]], _tag(targets, "ids", person)
                    )
                    image, prior, person = image[keep], prior[keep], person[keep]
                    picks = Picks.of(priors, rows[prior], image, people[keep])
                    found = _appearance(self.appearance, model.embed(features, picks), person, targets, features)
                    losses |= {f"{task}_{stride}": loss for task, loss in found.items()}
        return losses

    def _assign(self, priors: Priors, shape: tuple[int, int], target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Overlap with people; background priors inside an ignored region do not count."""
        people = (target["labels"] != IGNORE_LABEL).nonzero()[:, 0]
        matched, iou = anchor_match(priors, shape, target["boxes"][people], parity=self.parity)
        if len(people):
            matched = torch.where(matched >= 0, people[matched.clamp(min=0)], matched)
        ignored = target["boxes"][target["labels"] == IGNORE_LABEL]
        if len(ignored):
            inside = _share_inside(priors.xyxy, ignored).amax(1) > 0.5
            # A region smaller than the priors is no background either to those a person of its size would have.
            near = anchor_match(priors, shape, ignored, parity=False)[0] != BACKGROUND
            matched = torch.where((matched == BACKGROUND) & (inside | near), IGNORED, matched)
        return matched, iou

    def _one_per_cell(self, cell: Tensor, iou: Tensor, ids: Tensor) -> Tensor:
        """Of the foreground priors in a cell, the one that decides its identity: (N,), (N,), (N,) -> rows kept."""
        order = (ids if self.parity else iou).argsort(descending=True, stable=True)
        order = order[cell[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = cell[order][1:] != cell[order][:-1]
        return order[first]


def _appearance(
    appearance: Appearance, embeddings: Tensor, person: Tensor, targets: Targets, features: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Losses of embedded cells, each of one of the batch's people; connected to the features in any case."""
    teacher = _tag(targets, "teacher", person) if appearance.to_teacher else embeddings.new_zeros((len(person), 0))
    zero = 0 * sum(f.float().sum() for f in features)
    return {task: loss + zero for task, loss in appearance(embeddings, _tag(targets, "ids", person), teacher).items()}


def _tag(targets: Targets, name: str, person: Tensor) -> Tensor:
    return torch.cat([t[name] for t in targets])[person]


def _first_rows(targets: Targets, image: Tensor) -> Tensor:
    """Row over all targets of the batch at which those of some images begin."""
    sizes = torch.tensor([len(t["boxes"]) for t in targets], device=image.device)
    return (sizes.cumsum(0) - sizes)[image]


def _share(count: Tensor) -> Tensor:
    """This process' share of a count over all of them, at least one in all; alone: the count, at least one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    count = count.float()
    distributed.all_reduce(count)
    return count.clamp(min=1) / distributed.get_world_size()


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


def _noise(targets: Targets, image: Tensor) -> Tensor:
    """A number in [0, 1) for each of some rows of the batch, grouped by image.

    Of an image that says which sample it is, the numbers depend on that alone: not on the images beside it, nor on
    the process that has it.
    """
    counts = torch.bincount(image, minlength=len(targets)).tolist()
    parts = []
    for target, count in zip(targets, counts, strict=True):
        if "draw" in target:
            parts.append(torch.from_numpy(np.random.default_rng(target["draw"].tolist()).random(count)))
        else:
            parts.append(torch.rand(count, dtype=torch.float64))
    return torch.cat(parts).to(image.device)


def _sample_per_group(group: Tensor, most: int, noise: Tensor) -> Tensor:
    """Indices of at most `most` members of each group, those of least noise in [0, 1)."""
    order = torch.argsort(group + noise)  # group ids are integers: noise only shuffles within
    ordered = group[order]
    starts = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(group), device=group.device) - starts
    return order[rank < most]
