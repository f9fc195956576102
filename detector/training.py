"""How a joint detector is trained: settings, rates, freezing, averaging. The loop is in tools/train_detector.py."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.losses import AnchorCriterion, JDECriterion, Targets, UncertaintyWeighting
from detector.priors import STRIDES

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    family: Literal["compact", "darknet53"] = "compact"
    """Network: the compact one (section `model`) or the published one on Darknet-53 (section `darknet53`)."""
    data: tuple[str, ...] = ()
    """Sources to learn from, each LAYOUT:PATH[,LABELS][@WEIGHT]; see detector/layouts.py."""
    val: tuple[str, ...] = ()
    """Sources to validate on, written the same way."""
    init: str | None = None
    """Weights to start from: a model of ours (.safetensors), YOLOX's of the same size (.onnx, compact), a published JDE
    checkpoint (.pt) or a Darknet-53 backbone (darknet53.conv.74); None starts from random ones."""
    teacher: str | None = None
    """torchreid OSNet checkpoint whose embeddings are distilled; None trains on labelled identities alone."""
    steps: int | None = None
    """Optimiser steps; 2,000 where `epochs` is not given either."""
    epochs: float | None = None
    """Passes over the data, in place of `steps`."""
    batch_size: int = 16
    """Images a step, over all processes."""
    accumulate: int = 1
    """Parts each process cuts its share of a batch into, one after the other, for less memory. Gradients are averaged
    over the parts, each a mean of its own: people in a part with few weigh more than in the undivided batch."""
    sizes: tuple[int | tuple[int, int], ...] = ()
    """Input sizes, one drawn for every batch: the side of a square or [width, height]. None given: squares of 352, 416
    and 480 for the compact family, the network's own `input_size` on Darknet-53."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with `momentum`."""
    detector_lr: float = 2e-4
    """Peak learning rate of backbone, pyramid and detection heads; 0 freezes them: only the embedding is learned,
    which is right for weights from more images than `data` has; they soon forget."""
    embedding_lr: float = 2e-3
    """Peak learning rate of embedding head, classifier, teacher projection and uncertainty weights."""
    classifier_lr: float | None = None
    """That of classifier, teacher projection and uncertainty weights, where it is another."""
    head_start: int = 0
    """Steps in which only the classifier and the teacher projection learn, the embedding branch keeps its weights: what
    it learned earlier is not spoilt by gradients through random layers."""
    momentum: float = 0.9
    """SGD's."""
    weight_decay: float = 1e-2
    """On weights with more than one dimension."""
    warmup: int = 100
    """Steps of warm-up; at most a quarter of all."""
    warmup_power: float = 1.0
    """Warm-up rises with this power of the step: 1 linear, 4 as published."""
    schedule: Literal["cosine", "step"] = "cosine"
    """After warm-up: a cosine to one hundredth, or a tenth of the rate at each of `milestones`."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the steps."""
    clip: float = 10.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    ema: float = 0.998
    """Decay of the moving average of weights that is saved; 0 saves the weights themselves."""
    precision: Precision = "fp32"
    """Arithmetic of the network's forward and backward pass; losses are always fp32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    freeze: Literal["nothing", "backbone", "features", "detector"] = "nothing"
    """Part that keeps its weights, to the bit; features are backbone and pyramid, so that the heads learn."""
    frozen_norm: Literal["auto", "nothing", "detector", "all"] = "auto"
    """Batch norms that keep their statistics. "auto": the detection part's, where the compact network starts from
    `init` (YOLOX's were folded and have none of their own), else nothing."""
    sync_norm: bool = False
    """Batch statistics over all GPUs; the embedding head keeps its own."""
    weighting: Literal["learned", "fixed"] = "learned"
    """Weights of the losses: learned uncertainties, or one half each."""
    joint_confidence: bool = False
    """Compact family: learn the score, objectness times class, in place of its two factors."""
    parity: bool = False
    """Darknet-53: targets exactly as published, without our corrections."""
    save_every: int = 200
    """Steps between checkpoints."""
    validate_every: int = 1000
    """Steps between validations; the last step is always validated, where there is `val`."""
    val_size: int | None = None
    """Long side of the network input at validation; None is the family's own."""
    picture_every: int = 200
    """Steps between pictures of targets and predictions."""
    seed: int = 0
    """Of everything random, 0 or more."""

    def __post_init__(self) -> None:
        given = [side for size in self.sizes for side in (size if isinstance(size, tuple) else (size,))]
        if any(side < STRIDES[-1] or side % STRIDES[-1] for side in given):
            raise ValueError(f"sizes: expected positive multiples of {STRIDES[-1]}, got {list(self.sizes)}")
        for name in ("steps", "batch_size", "accumulate", "save_every", "validate_every", "picture_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"epochs: expected null beside steps={self.steps}, got {self.epochs}: one says it all")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs: expected a number above 0, got {self.epochs}")
        rates = ("detector_lr", "embedding_lr", "classifier_lr")
        for name in (*rates, "head_start", "weight_decay", "warmup", "warmup_power", "clip", "seed"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.val_size is not None and (self.val_size < STRIDES[-1] or self.val_size % STRIDES[-1]):
            raise ValueError(f"val_size: expected a positive multiple of {STRIDES[-1]}, got {self.val_size}")
        for name in ("ema", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.joint_confidence and self.family != "compact":
            raise ValueError(f"joint_confidence: expected family compact, got {self.family}")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones: expected shares of the steps in (0, 1), got {list(self.milestones)}")
        hints = get_type_hints(TrainConfig)
        for name in ("family", "optimizer", "schedule", "precision", "freeze", "frozen_norm", "weighting"):
            if getattr(self, name) not in get_args(hints[name]):
                raise ValueError(
                    f"{name}: expected one of {', '.join(get_args(hints[name]))}, got {getattr(self, name)!r}"
                )

    def canvases(self, own: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """`sizes` as (width, height); `own` is the input size of the network on Darknet-53."""
        sizes = self.sizes or ((352, 416, 480) if self.family == "compact" else (own,))
        return tuple((size, size) if isinstance(size, int) else size for size in sizes)

    def count_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return max(round(self.epochs * steps_per_epoch), 1) if self.epochs else self.steps or 2000

    @property
    def frozen(self) -> str:
        """What is frozen: "nothing", "backbone", "features" or "detector"."""
        return self.freeze if self.detector_lr else "detector"


class TrainingStep(nn.Module):
    """Everything that is trained, as one module: images and targets in, the weighted loss and its parts out."""

    def __init__(
        self,
        model: nn.Module,
        criterion: JDECriterion | AnchorCriterion,
        weighting: UncertaintyWeighting,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.weighting = model, criterion, weighting
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def forward(self, images: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, H, W) and B targets -> the weighted sum, and the losses by name."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            raw, features = self.model(images)
        check_finite({"prediction": torch.stack([level.float().sum() for level in raw]).sum()})  # no assignment of NaN
        losses = self.criterion(self.model, raw, features, targets)
        return self.weighting({task: losses[task] for task in self.weighting.s}), losses


def is_embedding(name: str) -> bool:
    """Whether a parameter of a network belongs to its embedding branch."""
    return name.startswith("embedding_head.") or ".embedding." in name


def is_head(name: str) -> bool:
    """Whether a parameter of a network belongs to its detection heads: behind the pyramid, nothing else reads them."""
    return name.startswith("heads.") or ".spread." in name or ".detect." in name


def belongs_to(name: str, part: str) -> bool:
    """Whether a parameter is in a part of the network.

    The parts: "nothing"; "backbone"; "features", what heads and embedding branch read; "detector", all but the latter.
    """
    return {
        "nothing": False,
        "backbone": name.startswith("backbone."),
        "features": not is_head(name) and not is_embedding(name),
        "detector": not is_embedding(name),
    }[part]


def freeze(model: nn.Module, part: str) -> None:
    """Exclude a part from training; see `belongs_to`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not belongs_to(name, part))


def freeze_norms(model: nn.Module, config: TrainConfig) -> None:
    """Put batch norms whose statistics are kept into evaluation mode; after each `model.train()`."""
    part = config.frozen_norm
    if part == "auto":
        part = "detector" if config.init and config.family == "compact" else "nothing"
    for name, module in model.named_modules():
        still = part == "all" or belongs_to(name, part) or belongs_to(name, config.frozen)
        if still and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def parameter_groups(step: TrainingStep, config: TrainConfig) -> list[dict[str, Any]]:
    """Detection part, embedding branch and classifier at their own rates; no decay on vectors and scalars."""
    detector = [p for name, p in step.model.named_parameters() if not is_embedding(name)]
    embedding = [p for name, p in step.model.named_parameters() if is_embedding(name)]
    classifier = [*step.criterion.parameters(), *step.weighting.parameters()]
    classifier_lr = config.embedding_lr if config.classifier_lr is None else config.classifier_lr
    momentum = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    return [
        {
            "params": [p for p in part if p.requires_grad and (p.ndim > 1) == heavy],
            "peak": rate,
            "start": start,
            "weight_decay": decay,
            **momentum,
        }
        for part, rate, start in (
            (detector, config.detector_lr, 0),
            (embedding, config.embedding_lr, config.head_start),
            (classifier, classifier_lr, 0),
        )
        for heavy, decay in ((True, config.weight_decay), (False, 0.0))
    ]


def make_optimizer(step: TrainingStep, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser; `set_rates` before each step."""
    groups = [group | {"lr": group["peak"]} for group in parameter_groups(step, config)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups)
    return torch.optim.AdamW(groups)


def rate_share(step: int, steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step, counted from 0, of `steps`."""
    warmup = min(config.warmup, steps // 4)
    if step < warmup:
        return float(((step + 1) / warmup) ** config.warmup_power)
    if config.schedule == "step":
        return float(0.1 ** sum(step >= share * steps for share in config.milestones))
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: TrainConfig) -> None:
    """The learning rates of a step, counted from 0, of `steps`: the `rate_share` of each group's `peak`.

    Before a group's `start` its rate is 0: its weights stay to the bit, and the optimiser gets to know their gradients.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate_share(step, steps, config) if step >= group["start"] else 0.0


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights (and batch-norm statistics) towards the model's."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


class NotFiniteError(ValueError):
    """A loss or the gradient is not a number, or infinite; the message names which."""


def optimise(
    runner: nn.Module,
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    config: TrainConfig,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step on this process' share of a batch, in `config.accumulate` parts.

    Args:
        runner: `step`, or what averages its gradients over processes.
        step: everything that is trained.
        optimizer: its rates are set.
        scaler: of gradients, for fp16.
        images: (B, 3, H, W), 0 to 255.
        targets: of the images.
        config: how to train.

    Returns:
        The losses by name, `total` the first, and the gradient's norm.

    Raises:
        NotFiniteError: before the weights are touched.
    """
    optimizer.zero_grad(set_to_none=True)
    size = len(images) // config.accumulate
    sums: dict[str, Tensor] = {}
    for first in range(0, len(images), size):
        last = first + size == len(images)
        alone = last or not isinstance(runner, DistributedDataParallel)
        with contextlib.nullcontext() if alone else runner.no_sync():  # type: ignore[operator]
            total, losses = runner(images[first : first + size], targets[first : first + size])
            check_finite({"total": total, **losses})
            scaler.scale(total / config.accumulate).backward()
        for name, value in {"total": total, **losses}.items():
            sums[name] = sums.get(name, 0) + value.detach() / config.accumulate
    scaler.unscale_(optimizer)
    trained = [p for p in step.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
    if not scaler.is_enabled():  # it leaves out a step whose gradients overflowed
        check_finite({"gradient": norm})
    scaler.step(optimizer)
    scaler.update()
    return sums, norm


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Stop before a NaN reaches the weights.

    Raises:
        NotFiniteError: names what is not finite.
    """
    if not torch.stack([value.detach() for value in values.values()]).isfinite().all():
        bad = {name: value.item() for name, value in values.items() if not value.isfinite()}
        raise NotFiniteError(f"not finite: {bad}")
