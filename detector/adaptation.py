"""Refining the embedding of a detector on footage without labels: settings, and what is computed in a step.

Either the embedding head alone learns, from patches that were cut once (detector/patches.py), and detection stays as it
is to the bit; or the pyramid below it learns, too, from frames, and its detections are held to what they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from detector.darknet import DarknetJDE
from detector.model import JDE
from detector.patches import Patches, TrackedBoxes, embed_all, embed_patches
from detector.priors import Picks, decode_boxes
from detector.training import belongs_to, is_embedding, is_head

BACKGROUND_WEIGHT = 0.01
"""Of a prior that nobody is at, beside 1 of one that is sure of somebody, where detections are held."""
FRAMES_AT_ONCE = 4


@dataclass(frozen=True)
class AdaptConfig:
    """How to adapt a model to footage."""

    frame_rate: float = 10.0
    """Frames per second that are looked at and tracked."""
    min_score: float = 0.6
    """Boxes to learn from score at least this."""
    max_cover: float = 0.5
    """At most this share of one is covered by another box."""
    max_gap: float = 0.5
    """Where a track has no such box for longer, in seconds, another tracklet begins: somebody else may have taken it
    over."""
    min_seconds: float = 1.0
    """Shorter tracklets are left out."""
    boxes_per_tracklet: int = 32
    """Most boxes kept of a tracklet, spread over its time."""
    max_boxes: int = 10_000
    """Most boxes kept of a video, 20 to 50 kB each; where there are more, fewer are kept of each tracklet."""
    half: bool = True
    """Keep patches as float16, which moves an embedding by 1e-6 in cosine distance."""

    part: Literal["head", "neck"] = "head"
    """What learns: the embedding head, from patches; or the pyramid as well, from frames."""
    epochs: int = 20
    """At most so many; every epoch starts with new pseudo-identities."""
    steps: int = 20
    """Steps of an epoch; more where there are more pseudo-identities than so many batches show."""
    people: int = 16
    """Pseudo-identities in a batch, where there are so many."""
    images: int = 4
    """Boxes of each."""
    sampled: int = 8
    """Boxes of each tracklet that are clustered; more of them are near duplicates."""
    lr: float = 3e-4
    """Learning rate of the embedding head."""
    hold: float = 1.0
    """Weight of the squared distance between new and old embedding of a box, so that distances stay where the tracker's
    thresholds expect them; 0 lets them go."""
    norm: Literal["frozen", "train"] = "frozen"
    """Statistics of the embedding head's batch norms: those of its training, or new ones."""
    mirror: float = 0.5
    """Share of the boxes that are mirrored."""
    noise: float = 0.0
    """Standard deviation of the noise that patches are multiplied with, 1 on average."""

    neck_frames: int = 200
    """Frames that `part` neck learns from, of all videos together; they are kept in memory."""
    frames_per_step: int = 8
    """Of them in a batch."""
    neck_lr: float = 3e-5
    """Learning rate of the pyramid."""
    detection: float = 10.0
    """Weight of the squared distance between new and old raw detections; 0 leaves these free to drift."""

    held_out: float = 0.25
    """Share of the tracklets that are not learned from: how well these are told apart decides which epoch is best.
    0: all are learned from, and measured."""
    patience: int = 5
    """Epochs without gain before training stops."""
    seed: int = 0
    """Of everything random, 0 to 2^32 - 1."""

    def __post_init__(self) -> None:
        for name in ("min_score", "max_cover", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: expected a number in [0, 1), got {self.held_out}")
        for name in ("frame_rate", "lr", "neck_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("max_gap", "min_seconds", "hold", "noise", "detection", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed: expected at most {2**32 - 1}, got {self.seed}")
        for name in ("epochs", "steps", "images", "sampled", "frames_per_step", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("people", "boxes_per_tracklet", "max_boxes", "neck_frames"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")
        for name, kind in get_type_hints(AdaptConfig).items():
            if (choices := get_args(kind)) and getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def learns(self, name: str) -> bool:
        """Whether the tensor of a network that has this name changes."""
        if self.part == "head":
            return is_embedding(name)
        return not belongs_to(name, "backbone") and not is_head(name)


class HeadTraining:
    """The embedding head learns from patches.

    Args:
        model: of either family; its other parts are frozen.
        boxes: N boxes with the patches that this model cut.
        config: how.
        device: where to compute.

    Attributes:
        before: (N, D) embeddings of the boxes by the model as it was given.
    """

    def __init__(
        self, model: JDE | DarknetJDE, boxes: TrackedBoxes, config: AdaptConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.patches, self.config, self.device = model.to(device).eval(), boxes.patches, config, device
        _freeze(model, config)
        self.before = self.describe()

    def describe(self) -> Tensor:
        """(N, D) unit rows, by the model as it is now."""
        self.model.eval()
        return embed_all(self.model, self.patches, self.device)

    def forward(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Embed some boxes, varied.

        Args:
            rows: (B,) which.
            generator: of what is random, on the CPU.

        Returns:
            (B, D) unit rows with gradients, and what is to be minimised besides: "hold".
        """
        for name, module in self.model.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and is_embedding(name):
                module.train(self.config.norm == "train")
        patches = vary(self.patches[rows], self.config, generator).to(self.device)
        features = embed_patches(self.model, patches)
        return features, {"hold": self.config.hold * squared_distance(features, self.before[rows])}


class NeckTraining:
    """Pyramid and embedding head learn from frames; the heads of detection are frozen, and so are all batch norms.

    Args:
        model: of either family; its other parts are frozen.
        boxes: N boxes that this model found.
        frames: F network inputs (h, w, 3) uint8 BGR.
        place: (N,) the frame of each box.
        config: how.
        device: where to compute.

    Attributes:
        before: (N, D) embeddings of the boxes by the model as it was given.
        place: as given.
    """

    def __init__(
        self,
        model: JDE | DarknetJDE,
        boxes: TrackedBoxes,
        frames: Sequence[Tensor],
        place: Tensor,
        config: AdaptConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.config, self.device = model.to(device).eval(), config, device
        self.frames, self.place = frames, place
        self._picks = boxes.patches.picks
        _freeze(model, config)
        with torch.no_grad():
            self._raw = [[level[0] for level in self._look([i])[0]] for i in range(len(frames))]
        self.before = self.describe()

    @torch.no_grad()
    def describe(self) -> Tensor:
        """(N, D) unit rows, by the model as it is now."""
        features, order = [], []
        for group in self._groups(torch.arange(len(self.frames))):
            order.append(torch.isin(self.place, torch.tensor(group)).nonzero()[:, 0])
            features.append(self._embed(group, self._look(group)[1], order[-1]))
        return torch.cat(features)[torch.cat(order).argsort().to(self.device)]

    def forward(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Embed some boxes, (B,) in ascending order, not varied; see `HeadTraining.forward`.

        There is one more loss, "detection".
        """
        frames: Tensor = torch.unique(self.place[rows])
        features, order, drift = [], [], []
        for group in self._groups(frames):
            raw, maps = self._look(group)
            own = rows[torch.isin(self.place[rows], torch.tensor(group))]
            order.append(own)
            features.append(self._embed(group, maps, own))
            drift.append(self._drift(group, raw) * len(group) / len(frames))
        found = torch.cat(features)[torch.cat(order).argsort().to(self.device)]
        hold = self.config.hold * squared_distance(found, self.before[rows])
        return found, {"hold": hold, "detection": self.config.detection * torch.stack(drift).sum()}

    def batches(self, labels: NDArray[np.int64], epoch: int) -> Iterator[NDArray[np.int64]]:
        """The rows of an epoch's steps: all boxes of some frames, but those labelled −1 (N,)."""
        place = self.place.numpy()
        frames = np.unique(place[labels >= 0])
        rng = np.random.default_rng([self.config.seed, epoch])
        for _ in range(self.config.steps):
            chosen = rng.choice(frames, min(self.config.frames_per_step, len(frames)), replace=False)
            yield np.flatnonzero(np.isin(place, chosen) & (labels >= 0))

    @torch.no_grad()
    def detection_change(self, score_thresh: float) -> dict[str, float]:
        """How far detection has moved on the frames, at the priors that scored at least `score_thresh` before."""
        scores, boxes = [0.0], [0.0]
        for i in range(len(self.frames)):
            new, old = self._look([i])[0], self._before([i])
            (score, flat), (was, flat_was) = (self._scores(raw) for raw in (new, old))
            at = was[0] >= score_thresh
            priors = self.model.priors(new)[at]
            moved = decode_boxes(flat[0, at, :4], priors) - decode_boxes(flat_was[0, at, :4], priors)
            scores.append(float((score - was)[0, at].abs().max()) if at.any() else 0.0)
            boxes.append(float(moved.abs().max()) if at.any() else 0.0)
        return {"score": max(scores), "box_pixels": max(boxes)}

    def _scores(self, raw: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        flat = self.model.flatten(raw)
        return self.model.scores(flat)[0], flat

    def _groups(self, frames: Tensor) -> list[list[int]]:
        """Frames of one size that are looked at together."""
        groups = []
        for shape in dict.fromkeys(self.frames[i].shape for i in frames.tolist()):
            same = [i for i in frames.tolist() if self.frames[i].shape == shape]
            groups += [same[i : i + FRAMES_AT_ONCE] for i in range(0, len(same), FRAMES_AT_ONCE)]
        return groups

    def _look(self, group: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        images = torch.stack([self.frames[i] for i in group]).to(self.device).permute(0, 3, 1, 2).float()
        raw, maps = self.model(images)
        return raw, maps

    def _embed(self, group: Sequence[int], maps: Sequence[Tensor], rows: Tensor) -> Tensor:
        """Embeddings of some boxes, all of which are in these frames."""
        image = torch.zeros(len(self.frames), dtype=torch.int64)
        image[torch.tensor(group)] = torch.arange(len(group))
        picks = self._picks
        parts = image[self.place[rows]], picks.level[rows], picks.xy[rows], picks.boxes[rows]
        return self.model.embed(maps, Picks(*(part.to(self.device) for part in parts)))

    def _before(self, group: Sequence[int]) -> list[Tensor]:
        return [torch.stack(levels) for levels in zip(*(self._raw[i] for i in group), strict=True)]

    def _drift(self, group: Sequence[int], raw: Sequence[Tensor]) -> Tensor:
        """Squared distance of raw detections to what they were, mostly where somebody was found."""
        was, flat_was = self._scores(self._before(group))
        weight = was[..., None] + BACKGROUND_WEIGHT
        moved = (self.model.flatten(raw) - flat_was).square()
        return (weight * moved).sum() / (weight.sum() * moved.shape[-1])


def choose_frames(boxes: TrackedBoxes, count: int) -> Tensor:
    """At most so many frames, those with most boxes: (F, 2) video and number, ascending."""
    keys = torch.stack((boxes.videos, boxes.frames), dim=1)
    frames, people = torch.unique(keys, dim=0, return_counts=True)
    chosen: Tensor = frames[people.argsort(descending=True, stable=True)[:count].sort().values]
    return chosen


def make_optimizer(model: nn.Module, config: AdaptConfig) -> torch.optim.Optimizer:
    """Adam over what learns, without decay: `hold` keeps the weights where they were."""
    named = [(name, p) for name, p in model.named_parameters() if config.learns(name)]
    groups = [([p for name, p in named if is_embedding(name)], config.lr)]
    groups += [([p for name, p in named if not is_embedding(name)], config.neck_lr)]
    return torch.optim.Adam([{"params": part, "lr": rate} for part, rate in groups if part])


def learned_state(model: nn.Module, config: AdaptConfig) -> dict[str, Tensor]:
    """Copies of the tensors that change, on the CPU."""
    state = model.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items() if config.learns(name)}


def vary(patches: Patches, config: AdaptConfig, generator: torch.Generator) -> Patches:
    """Patches as float32, some of them mirrored, all of them noisy."""
    varied = patches.mirrored(torch.rand(len(patches), generator=generator) < config.mirror).to("cpu", torch.float32)
    if not config.noise:
        return varied

    def noisy(part: Tensor) -> Tensor:
        return part * (1 + config.noise * torch.randn(part.shape, generator=generator))

    fine = None if varied.fine is None else noisy(varied.fine)
    return replace(varied, coarse=tuple(noisy(part) for part in varied.coarse), fine=fine)


def squared_distance(features: Tensor, before: Tensor) -> Tensor:
    """Mean of |f - f_before|² over unit rows (B, D): twice the cosine distance."""
    return functional.mse_loss(features, before, reduction="sum") / max(len(features), 1)


def _freeze(model: nn.Module, config: AdaptConfig) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.learns(name))
