"""Checkpoints that others published, read whole or refused by name; nothing in them is ever run.

A file is a state dict, or a dict that holds one as `state_dict` or `model`; the prefixes `module.` (DataParallel) and
`_orig_mod.` (torch.compile) are taken off. Which network it is of follows from its keys:

| whose | their keys | ours |
| --- | --- | --- |
| torchreid, OSNet | `conv1` ... `conv5`, `fc` | `backbone.conv1` ... `backbone.fc` |
| | `classifier` | left out |
| torchreid or torchvision, ResNet-50 (-IBN-a) | `conv1`, `bn1`, `layer1` ... `layer4` | `backbone.conv1` ... |
| | `classifier`, `fc` | left out |
| layumi's baseline, `ft_net` | `model.conv1` ... `model.layer4` | `backbone.conv1` ... |
| `ft_net_dense` | `model.features` | `backbone.features` |
| `ft_net_hr`, `_convnext`, `_swin`, `_swinv2` | `model` | `backbone.model` |
| all of these | `classifier.add_block.0`, `.1` | `necks.0.linear`, `necks.0.norm` |
| trained with `--linear_num 0` | `classifier.add_block.0` | `necks.0.norm` |
| | `classifier.classifier`, `model.fc`, `model.classifier` | left out |
| layumi's baseline, `PCB` | `model.conv1` ... `model.layer4` | `backbone.conv1` ... |
| | `classifier0.add_block.0`, `.1` ... | `necks.0.linear`, `necks.0.norm` ... |
| | `classifier0.classifier` ..., `model.fc` | left out |
| Cluster Contrast, ResNet-50 (-IBN-a) | `base.0`, `base.1` | `backbone.conv1`, `backbone.bn1` |
| | `base.4` ... `base.7` | `backbone.layer1` ... `backbone.layer4` |
| | `gap.p`, `feat`, `feat_bn` | `pool.p`, `necks.0.linear`, `necks.0.norm` |
| | `classifier` | left out |

Numbers that a network computes for itself (Swin's `relative_position_index`, `relative_coords_table`, `attn_mask`) are
left out, too. Swin files of timm before 0.9 have each `downsample` at the end of a stage instead of the start of the
next one, and are taken as well. The baseline's EfficientNet is of another package than timm, with other names, and is
refused.

What a file cannot say is taken from the scripts that wrote such files: input of 256x128 (Swin 224x224, PCB 384x192),
and a last stage of stride 1 in PCB and Cluster Contrast, of 2 in the others; dropout, which has no weights, is 0. Nor
do weights tell average pooling from max pooling, or whether a ReLU stood behind the linear neck, as in the baseline's
first version: average, and none, are assumed. PCB is compared by its pooled parts, as in the baseline's test.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from reid.backbones import OSNET_WIDTHS
from reid.osnet import STAGE_CHANNELS

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_BASE = 128
"""Channels of the first layer of ConvNeXt's and Swin's base size."""
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")


@dataclass(frozen=True)
class Checkpoint:
    """A published file.

    Attributes:
        settings: fields of an `EncoderConfig`, as far as the file's kind says them.
        prefixes: our prefix -> theirs; the first that fits counts.
        state: tensors by their keys, all of which the encoder must take.
        left_out: keys that it must not: classifiers, and what the network computes for itself.
    """

    settings: dict[str, Any]
    prefixes: dict[str, str]
    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def load_whole(
    module: nn.Module, state: Mapping[str, Tensor], source: str, prefixes: Mapping[str, str] | None = None
) -> None:
    """Load a state dict whose keys may have other prefixes; only counters of batch norms may be absent.

    Args:
        module: what to load into; untouched where there is an error.
        state: tensors by the names of their file.
        source: the file.
        prefixes: our prefix -> theirs.

    Raises:
        ValueError: keys that are missing or unexpected, or shapes that differ; the first of each are named.
    """
    own = {k: v for k, v in module.state_dict().items() if not k.endswith(_COMPUTED)}
    theirs = {key: _renamed(key, prefixes or {}) for key in own}
    shapes = {theirs[key]: tuple(value.shape) for key, value in own.items()}
    faults = {
        "missing": [k for k in shapes if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in state if k not in shapes],
        "of another shape": [
            f"{k}: expected {shape}, got {tuple(state[k].shape)}"
            for k, shape in shapes.items()
            if k in state and state[k].shape != shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in faults.items() if keys)
        raise ValueError(f"{source}: the weights do not fit {type(module).__name__}: {listed}")
    module.load_state_dict({key: state[name] for key, name in theirs.items() if name in state}, strict=False)


def read_published(path: str | Path) -> Checkpoint:
    """Read a published checkpoint and tell what network it is of.

    Raises:
        ValueError: no such file, one that cannot be read without running code from it, or of an unknown network.
    """
    path = Path(path)
    state = _read(path)
    settings, prefixes, classifiers = _recognise(path, state)
    left_out = tuple(k for k in state if k.startswith(classifiers) or k.endswith(_COMPUTED))
    kept = {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k not in left_out}
    return Checkpoint({"dropout": 0.0, **settings}, prefixes, kept, left_out)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        # Training scripts store their best score beside the weights, which is a number of NumPy.
        with _numpy_numbers():
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(
            f"{path}: expected a checkpoint of plain tensors, which can be read without running code from the file "
            f"({type(error).__name__})"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: expected a state dict, got {_described(content)}")
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in content):
                content = {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)


@contextlib.contextmanager
def _numpy_numbers() -> Iterator[None]:
    """Let `torch.load` read single numbers of NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    names: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64)]
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):
        yield


_Kind: TypeAlias = tuple[dict[str, Any], dict[str, str], tuple[str, ...]]
"""Settings of the encoder, our prefix -> theirs, and theirs of classifiers."""


def _recognise(path: Path, state: Mapping[str, Tensor]) -> _Kind:
    """Tell the network from its keys; see the table above."""
    if "conv1.conv.weight" in state:
        return _osnet(path, state)
    if "layer1.0.conv1.weight" in state:
        settings = {"name": _resnet(state), "neck": "none", "last_stride": 2}
        return settings, {"backbone.": ""}, ("classifier.weight", "classifier.bias", "fc.weight", "fc.bias")
    if "base.0.weight" in state:
        return _cluster_contrast(state)
    if "classifier0.add_block.0.weight" in state:
        return _pcb(state)
    if "classifier.add_block.0.weight" in state:
        return _baseline(path, state)
    raise ValueError(
        f"{path}: expected weights of torchreid (OSNet, ResNet-50), layumi's baseline or Cluster Contrast; "
        f"got the keys {_some(state)}"
    )


def _osnet(path: Path, state: Mapping[str, Tensor]) -> _Kind:
    stem = state["conv1.conv.weight"]
    width = len(stem) / STAGE_CHANNELS[0] if stem.ndim == 4 else 0.0
    names = {known: name for name, known in OSNET_WIDTHS.items()}
    if width not in names:
        widths = ", ".join(str(STAGE_CHANNELS[0] * known) for known in names)
        raise ValueError(f"{path}: conv1.conv.weight: expected one of {widths} channels, got {tuple(stem.shape)}")
    return {"name": names[width], "neck": "none"}, {"backbone.": ""}, ("classifier.",)


def _resnet(state: Mapping[str, Tensor]) -> str:
    return "resnet50_ibn" if any(".bn1.IN." in key for key in state) else "resnet50"


def _cluster_contrast(state: Mapping[str, Tensor]) -> _Kind:
    settings: dict[str, Any] = {"name": _resnet(state), "last_stride": 1, "neck": "bn"}
    if "gap.p" in state:
        settings["pooling"] = "gem"
    if "feat.weight" in state:
        settings |= {"neck": "linear", "embedding_size": len(state["feat.weight"])}
    prefixes = {f"backbone.layer{i}.": f"base.{i + 3}." for i in (1, 2, 3, 4)}
    prefixes |= {"backbone.conv1.": "base.0.", "backbone.bn1.": "base.1.", "pool.": "gap."}
    prefixes |= {"necks.0.linear.": "feat.", "necks.0.norm.": "feat_bn."}
    return settings, prefixes, ("classifier.",)


def _pcb(state: Mapping[str, Tensor]) -> _Kind:
    parts = sum(re.fullmatch(r"classifier\d+\.add_block\.0\.weight", key) is not None for key in state)
    blocks = [f"classifier{i}." for i in range(parts)]
    settings, prefixes = _bottlenecks(state, blocks)
    settings |= {"name": _resnet(state), "last_stride": 1, "input_size": (384, 192)}
    settings |= {"parts": parts, "compared": "pooled"}
    return settings, prefixes | {"backbone.": "model."}, ("model.fc.", *(f"{block}classifier." for block in blocks))


def _baseline(path: Path, state: Mapping[str, Tensor]) -> _Kind:
    settings, prefixes = _bottlenecks(state, ["classifier."])
    if "model.stage2.0.branches.0.0.conv1.weight" in state:  # has a layer1, too
        settings["name"] = "hrnet18"
    elif "model.layer1.0.conv1.weight" in state:
        settings |= {"name": _resnet(state), "last_stride": 2}
        prefixes["backbone."] = "model."
    elif "model.features.conv0.weight" in state:
        settings |= {"name": "densenet121", "last_stride": 2}
        prefixes["backbone."] = "model."
    elif "model._conv_stem.weight" in state:
        raise ValueError(f"{path}: EfficientNet of the package efficientnet_pytorch, whose names are not timm's")
    elif "model.stem.0.weight" in state:
        settings["name"] = "convnext_base" if len(state["model.stem.0.weight"]) == _BASE else "convnext_tiny"
    elif "model.layers.0.blocks.0.attn.qkv.weight" in state and "model.patch_embed.proj.weight" in state:
        version = "swinv2" if "model.layers.0.blocks.0.attn.logit_scale" in state else "swin"
        size = "base" if len(state["model.patch_embed.proj.weight"]) == _BASE else "tiny"
        settings |= {"name": f"{version}_{size}", "input_size": (256, 128) if version == "swinv2" else (224, 224)}
        if "model.layers.0.downsample.norm.weight" in state:  # timm before 0.9
            for i in range(3):
                prefixes[f"backbone.model.layers.{i + 1}.downsample."] = f"model.layers.{i}.downsample."
    else:
        raise ValueError(f"{path}: expected a backbone of layumi's baseline, got the keys {_some(state)}")
    prefixes["backbone.model."] = "model."
    return settings, prefixes, ("model.fc.", "model.classifier.", "classifier.classifier.")


def _bottlenecks(state: Mapping[str, Tensor], blocks: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and prefixes of the baseline's bottlenecks: a linear layer, where there is one, and a norm."""
    first = state[f"{blocks[0]}add_block.0.weight"]
    if first.ndim == 1:
        return {"neck": "bn"}, {f"necks.{i}.norm.": f"{block}add_block.0." for i, block in enumerate(blocks)}
    prefixes = {f"necks.{i}.linear.": f"{block}add_block.0." for i, block in enumerate(blocks)}
    prefixes |= {f"necks.{i}.norm.": f"{block}add_block.1." for i, block in enumerate(blocks)}
    return {"neck": "linear", "embedding_size": len(first)}, prefixes


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def _described(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {_some(map(str, content))}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def _some(keys: Iterable[str], limit: int = 4) -> str:
    names = list(keys)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
