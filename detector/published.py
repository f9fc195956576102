"""Weights published by others, taken over whole or refused by name; nothing is ever unpickled.

A published JDE checkpoint (Wang et al., ECCV 2020) is `{"model": state_dict, ...}` whose keys number the layers of its
network; a Darknet file (`darknet53.conv.74`) is a header and then the numbers of each convolution in running order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.csp import ConvBlock
from detector.darknet import PUBLISHED_ANCHORS, RESIDUALS, Darknet53, DarknetConfig, DarknetJDE
from detector.priors import STRIDES

DARKNET_HEADER = 5
"""Words of 32 bits before the first weight: version (3), images seen (2)."""


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whole, or say what is missing, unexpected or of another shape.

    Raises:
        ValueError: the keys or shapes differ; the first few of each kind are named.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    _check_fit({k: tuple(v.shape) for k, v in own.items()}, state, source)
    model.load_state_dict(dict(state), strict=False)


def load_published(path: str | Path) -> tuple[DarknetJDE, dict[str, Tensor]]:
    """Rebuild a published JDE checkpoint.

    The network's width and embedding length are read off the tensors; its input size, which decides the anchors, off
    the file's name (`jde.864x480.pt`; 1088x608 where the name does not say).

    Args:
        path: `{"model": state_dict, ...}` as torch saves it.

    Returns:
        The network on the CPU, and what only training needs: `classifier.weight` (nID, D), `classifier.bias` (nID,)
        and the uncertainties `s.box_8`, `s.conf_8`, `s.id_8`, … of the three levels.

    Raises:
        ValueError: no such file, unreadable without running code, another kind of file, or tensors that do not fit.
    """
    path = Path(path)
    state = _read(path)
    config = _config_of(path, state)
    model = DarknetJDE(config)
    names, wanted = published_names(model), model.state_dict()
    classifier = state.get("classifier.weight")
    ids = len(classifier) if classifier is not None and classifier.ndim == 2 else 0
    shapes = {theirs: tuple(wanted[ours].shape) for ours, theirs in names.items()}
    extra = training_names()
    shapes |= {theirs: (1,) for theirs in extra.values()}
    shapes |= {"classifier.weight": (ids, config.embedding_dim), "classifier.bias": (ids,)}
    own = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    _check_fit(shapes, own, str(path))
    model.load_state_dict({ours: state[theirs] for ours, theirs in names.items()}, strict=False)
    training = {name: state[name] for name in ("classifier.weight", "classifier.bias")}
    return model, training | {ours: state[theirs].reshape(()) for ours, theirs in extra.items()}


def load_darknet53(path: str | Path, backbone: Darknet53) -> int:
    """Initialise the backbone from a Darknet binary such as `darknet53.conv.74`.

    For each convolution in running order: batch-norm bias, weight, mean and variance, then the kernels, all float32.

    Returns:
        The number of convolutions taken over.

    Raises:
        ValueError: no such file, or one that does not hold exactly the backbone's numbers.
    """
    path = Path(path)
    try:
        words = np.fromfile(path, dtype="<f4")
    except OSError as error:
        raise ValueError(f"{path}: not a readable file ({error.strerror})") from error
    blocks = [module for module in backbone.modules() if isinstance(module, ConvBlock)]
    expected = DARKNET_HEADER + sum(4 * len(b.norm.bias) + b.conv.weight.numel() for b in blocks)
    if len(words) != expected or path.stat().st_size != 4 * expected:
        raise ValueError(
            f"{path}: expected {4 * expected} bytes ({len(blocks)} convolutions of Darknet-53), "
            f"got {path.stat().st_size}"
        )
    numbers = torch.from_numpy(words[DARKNET_HEADER:].astype(np.float32))
    if not torch.isfinite(numbers).all():
        raise ValueError(f"{path}: holds numbers that are not finite")
    first = 0
    with torch.no_grad():
        for block in blocks:
            norm = block.norm
            for target in (norm.bias, norm.weight, norm.running_mean, norm.running_var, block.conv.weight):
                assert target is not None
                target.copy_(numbers[first : first + target.numel()].view_as(target))
                first += target.numel()
    return len(blocks)


def published_names(model: DarknetJDE) -> dict[str, str]:
    """Our key -> published key, for every tensor of the network.

    The published network numbers all its layers, those without weights too: a residual block is two convolutions and
    a sum; a level seven convolutions, a route, the embedding, a route, the loss; between levels a route, a
    convolution, an upsampling and a route.
    """
    numbers, layer = [0], 1
    for repeats in RESIDUALS:
        numbers += [layer, *(layer + 1 + 3 * i + k for i in range(repeats) for k in (0, 1))]
        layer += 1 + 3 * repeats
    for level in range(len(STRIDES)):
        if level:
            numbers.append(layer)
            layer += 3
        numbers += [*range(layer, layer + 7), layer + 8]
        layer += 12
    convolutions = [(name, m) for name, m in model.named_modules() if isinstance(m, ConvBlock | nn.Conv2d)]
    blocks = {f"{name}.conv" for name, m in convolutions if isinstance(m, ConvBlock)}
    names = {}
    for (name, module), number in zip([c for c in convolutions if c[0] not in blocks], numbers, strict=True):
        prefix = f"module_list.{number}"
        if isinstance(module, ConvBlock):
            names[f"{name}.conv.weight"] = f"{prefix}.conv_{number}.weight"
            for key in ("weight", "bias", "running_mean", "running_var"):
                names[f"{name}.norm.{key}"] = f"{prefix}.batch_norm_{number}.{key}"
        else:
            names |= {f"{name}.{key}": f"{prefix}.conv_{number}.{key}" for key in ("weight", "bias")}
    return names


def training_names() -> dict[str, str]:
    """Our name of each uncertainty -> published key (levels 32, 16, 8 are layers 85, 100, 115)."""
    layers = zip(reversed(STRIDES), (85, 100, 115), strict=True)
    tasks = (("box", "s_r"), ("conf", "s_c"), ("id", "s_id"))
    return {
        f"s.{ours}_{stride}": f"module_list.{n}.yolo_{n}.{theirs}" for stride, n in layers for ours, theirs in tasks
    }


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict, with the prefix of parallel training taken off."""
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(f"{path}: not a readable checkpoint of plain tensors ({type(error).__name__})") from error
    if isinstance(content, dict) and "parts" in content:
        raise ValueError(f"{path}: a checkpoint to resume training from; the model is model.safetensors beside it")
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a published JDE checkpoint, {{'model': state_dict, ...}}")
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _config_of(path: Path, state: Mapping[str, Tensor]) -> DarknetConfig:
    size = re.search(r"(\d+)x(\d+)", path.name)
    input_size = (int(size[1]), int(size[2])) if size else (1088, 608)
    if input_size not in PUBLISHED_ANCHORS:
        known = ", ".join(f"{w}x{h}" for w, h in PUBLISHED_ANCHORS)
        raise ValueError(f"{path}: input size in the name: expected one of {known}, got {size and size[0]}")
    try:
        return DarknetConfig(
            width=_channels(state, "module_list.0.conv_0.weight") / 32 or 1.0,
            embedding_dim=_channels(state, "module_list.83.conv_83.weight") or 512,
            input_size=input_size,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _channels(state: Mapping[str, Tensor], key: str) -> int:
    """Output channels of a convolution, 0 where there is none of that name."""
    weight = state.get(key)
    return len(weight) if weight is not None and weight.ndim == 4 else 0


def _check_fit(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: str) -> None:
    faults = {
        "missing": [k for k in shapes if k not in state],
        "unexpected": [k for k in state if k not in shapes],
        "mis-shaped": [
            f"{k} {tuple(state[k].shape)} for {shape}"
            for k, shape in shapes.items()
            if k in state and state[k].shape != shape
        ],
    }
    if any(faults.values()):
        text = "; ".join(
            f"{len(v)} {k} ({', '.join(v[:3])}{', …' if len(v) > 3 else ''})" for k, v in faults.items() if v
        )
        raise ValueError(f"{source}: the weights do not fit the model: {text}")
