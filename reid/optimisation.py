"""One optimiser step: groups and rates of parameters, gradients, and what is checked on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reid.encoders import Encoder
from reid.training import TrainConfig

# Products of such weights with anything overflow in single precision.
_GREATEST_WEIGHT = 1e15


def parameter_groups(step: nn.Module, config: TrainConfig, pretrained: bool) -> list[dict[str, Any]]:
    """Backbone and the rest at their own rates; no decay on vectors and scalars, but that Adam decays all.

    Args:
        step: everything that is trained; its `encoder` has a `backbone`.
        config: how.
        pretrained: whether the backbone started from weights.
    """
    share = config.backbone_share
    if share is None:
        share = 0.1 if pretrained else 1.0
    encoder: Encoder = step.encoder  # type: ignore[assignment]
    backbone = list(encoder.backbone.parameters())
    own = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in step.parameters() if id(parameter) not in own]
    light = config.weight_decay if config.optimizer == "adam" else 0.0
    momentum = {"momentum": config.momentum, "nesterov": config.momentum > 0} if config.optimizer == "sgd" else {}
    return [
        {"params": [p for p in part if (p.ndim > 1) == heavy], "peak": rate, "weight_decay": decay, **momentum}
        for part, rate in ((backbone, share * config.lr), (rest, config.lr))
        for heavy, decay in ((True, config.weight_decay), (False, light))
    ]


def make_optimizer(step: nn.Module, config: TrainConfig, pretrained: bool) -> torch.optim.Optimizer:
    """The optimiser of `parameter_groups`; `set_rates` before each step."""
    groups = [group | {"lr": group["peak"]} for group in parameter_groups(step, config, pretrained)]
    kinds: dict[str, type[torch.optim.Optimizer]]
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[config.optimizer](groups)  # type: ignore[call-arg]


def rate_share(step: int, steps: int, warmup: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step, counted from 0, of `steps`, of which `warmup` rise."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "step":
        return float(0.1 ** sum(step >= share * steps for share in config.milestones))
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """The learning rate of each group, as a share of its `peak`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def optimise(
    runner: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    labels: Tensor,
    clip: float,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """One optimiser step on this process' share of a batch.

    Args:
        runner: a `TrainingStep` or `reid.caccl.ContrastStep`, or what averages its gradients over processes.
        optimizer: its rates are set.
        scaler: of gradients, for fp16.
        images: see `TrainingStep`; so are the labels.
        labels: of the images.
        clip: largest norm of the gradient; 0 leaves it as it is.

    Returns:
        The losses by name, `total` the first; the gradient's norm; and the features the step was made with.

    Raises:
        ValueError: a loss or the gradient is not finite; the weights have not been touched.
    """
    optimizer.zero_grad(set_to_none=True)
    total, terms, features = runner(images, labels)
    losses = {"total": total.detach(), **{name: value.detach() for name, value in terms.items()}}
    _check_finite(losses)
    scaler.scale(total).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(runner.parameters(), clip or math.inf)
    if not scaler.is_enabled():  # it leaves out a step whose gradients overflowed
        _check_finite({"gradient": norm})
    scaler.step(optimizer)
    scaler.update()
    return losses, norm, features


def check_weights(module: nn.Module) -> None:
    """Make sure that what is about to be saved can still be used.

    Raises:
        ValueError: a weight is not finite, or so great that single precision soon overflows; it is named.
    """
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not (value.float().abs() < _GREATEST_WEIGHT).all():
            raise ValueError(f"not finite: {name} after the step")


def _check_finite(values: Mapping[str, Tensor]) -> None:
    if not torch.stack([value.float() for value in values.values()]).isfinite().all():
        bad = {name: value.item() for name, value in values.items() if not value.isfinite()}
        raise ValueError(f"not finite: {bad}")


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Give all processes that train together the mean of their batch norms' running statistics.

    Each process has those of its own share of the batches, unless the norms are synchronised. All must call it.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= distributed.get_world_size()
