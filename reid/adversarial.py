"""Adversarial training: crops changed by little, so that the encoder is wrong about them, to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reid.transforms import IMAGENET_MEAN, IMAGENET_STD


def perturb(encoder: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor, epsilon: float) -> Tensor:
    """Crops moved by the fast gradient sign method, x + ε·sign(∂L/∂x) (Goodfellow et al., ICLR 2015).

    They are pictures still: no value leaves black to white. The encoder is attacked as at test (dropout off, batch-norm
    by its running statistics) and in float32; neither its gradients nor its statistics change. Where several processes
    train it, hand over the encoder itself, not what wraps it.

    Args:
        encoder: what `loss` runs.
        loss: images -> scalar that is to rise, the classifier's for instance.
        images: (B, 3, H, W) RGB, ImageNet-normalised.
        epsilon: change of each value, in grey levels of 0 to 255.

    Returns:
        (B, 3, H, W) like `images`, without a graph.

    Raises:
        ValueError: an epsilon that is no number of grey levels.
    """
    if not 0 <= epsilon <= 255:
        raise ValueError(f"epsilon: expected grey levels of 0 to 255, got {epsilon}")
    mean = images.new_tensor(IMAGENET_MEAN, dtype=torch.float32)[:, None, None]
    std = images.new_tensor(IMAGENET_STD, dtype=torch.float32)[:, None, None]
    start = images.detach().float().requires_grad_()
    # In half precision most slopes would be zero, which has no sign.
    with _as_at_test(encoder), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        (slope,) = torch.autograd.grad(loss(start), start)
    changed = start.detach() + epsilon / 255 / std * slope.sign()
    return changed.clamp((0 - mean) / std, (1 - mean) / std).to(images.dtype)


@contextmanager
def _as_at_test(module: nn.Module) -> Iterator[None]:
    """In eval mode; every part is put back into its own mode after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
