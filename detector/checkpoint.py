"""Weights in and out: a model is rebuilt from its file alone; nothing is ever unpickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from detector.csp import BN_EPS
from detector.darknet import DarknetConfig, DarknetJDE
from detector.model import JDE, ModelConfig
from detector.published import load_published, load_state

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "compact": (JDE, ModelConfig),
    "darknet53": (DarknetJDE, DarknetConfig),
}
FORMAT = "jdetrack-detector"
BUNDLED = Path(__file__).parent / "weights" / "nano.safetensors"
PERSON = 0


def save_model(
    path: str | Path, model: JDE | DarknetJDE, notes: Mapping[str, Any] | None = None, *, half: bool = True
) -> None:
    """Write a model file: weights as safetensors, configuration and notes as its metadata.

    Args:
        path: target; written beside it first, then renamed, so that a file is whole or absent.
        model: the network.
        notes: anything JSON can say, kept under "notes".
        half: store float tensors as float16, where their numbers fit.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (_halved(value) if half else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    metadata = {
        "format": FORMAT,
        "family": family_of(model),
        "model": json.dumps(asdict(model.config)),
        "notes": json.dumps(dict(notes or {})),
    }
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_bytes(save(tensors, metadata=metadata))
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path: str | Path | None = None) -> JDE | DarknetJDE:
    """Rebuild a model from its file, on the CPU and in evaluation mode.

    Args:
        path: a `.safetensors` file written by `save_model`, or a published JDE checkpoint (`.pt`, `.pth`); None is the
            bundled nano model.

    Raises:
        ValueError: no such file, not a readable one, written by something else, tensors that do not fit, or weights
            that are not finite.
    """
    path = BUNDLED if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(
            f"{path}: expected a .safetensors model, or a published JDE .pt; exported models (.onnx, .xml, "
            ".torchscript, .engine) find people in frames and are for nothing else"
        )
    model = _read_saved(path) if suffix == ".safetensors" else load_published(path)[0]
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} has weights that are not finite")
    return model.eval()


def _read_saved(path: Path) -> JDE | DarknetJDE:
    """The model of a file that `save_model` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a {FORMAT} file, got format {metadata.get('format')!r}")
    try:
        model = build_model(metadata.get("family", "compact"), json.loads(metadata["model"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: unreadable model configuration ({error})") from error
    load_state(model, state, str(path))
    return model


def family_of(model: JDE | DarknetJDE) -> str:
    """The name in `FAMILIES`."""
    return next(name for name, (network, _) in FAMILIES.items() if isinstance(model, network))


def build_model(family: str, config: Mapping[str, Any]) -> JDE | DarknetJDE:
    """A network with random weights, from what a file says of it.

    Raises:
        KeyError: no such family.
        TypeError: a configuration with other names or types.
        ValueError: a configuration that cannot be.
    """
    network, config_type = FAMILIES[family]
    model: JDE | DarknetJDE = network(config_type(**_tuples(config)))
    return model


def load_yolox_onnx(path: str | Path, model: JDE) -> int:
    """Initialise a model from an exported YOLOX of the same size, tensor by tensor.

    The export has batch norm folded into its convolutions; each weight goes to the convolution of the same place in
    running order and the bias to a batch norm that does nothing else. A one-class model takes the person row of an
    80-class export. The embedding head is left as it is.

    Args:
        path: the ONNX file.
        model: network of the matching size.

    Returns:
        The number of tensors taken over.

    Raises:
        ValueError: not an ONNX file, or the convolutions differ in number or shape.
    """
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # onnx raises protobuf's own error types
        raise ValueError(f"{path}: not a readable ONNX file ({error})") from error
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    sources = [node for node in graph.node if node.op_type == "Conv"]
    targets = _convolutions(model)
    if len(sources) != len(targets):
        raise ValueError(f"{path}: expected {len(targets)} convolutions, got {len(sources)}")
    for node, (name, conv, norm) in zip(sources, targets, strict=True):
        if len(node.input) < 3 or any(name not in initializers for name in node.input[1:3]):
            raise ValueError(f"{path}: {node.name}: expected a convolution with stored weight and bias")
        weight, bias = (torch.from_numpy(np.array(numpy_helper.to_array(initializers[i]))) for i in node.input[1:3])
        if "class_logits" in name and len(weight) == 80 and conv.out_channels == 1:
            weight, bias = weight[PERSON : PERSON + 1], bias[PERSON : PERSON + 1]
        if weight.shape != conv.weight.shape:
            raise ValueError(
                f"{path}: {node.name}: expected a weight of {tuple(conv.weight.shape)} for {name}, "
                f"got {tuple(weight.shape)}"
            )
        conv.weight.data.copy_(weight)
        if norm is None:
            assert conv.bias is not None
            conv.bias.data.copy_(bias)
        else:
            norm.reset_running_stats()
            norm.weight.data.fill_(math.sqrt(1 + BN_EPS))
            norm.bias.data.copy_(bias)
    return 2 * len(sources)


def _halved(value: Tensor) -> Tensor:
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() else value


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone; configurations hold tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def _convolutions(model: JDE) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d | None]]:
    """The detection part's convolutions in running order, each with the batch norm behind it."""
    found: list[tuple[str, nn.Conv2d, nn.BatchNorm2d | None]] = []
    for name, module in model.named_modules():
        if name.startswith("embedding_head"):
            continue
        if isinstance(module, nn.Conv2d):
            found.append((name, module, None))
        elif isinstance(module, nn.BatchNorm2d):
            found[-1] = (*found[-1][:2], module)
    return found
