"""Encoders for other programs: batch norms folded away, TorchScript, ONNX; each held against the encoder itself.

A result is compared on random images, in batches of other sizes than it was made with, before it is returned or its
file appears. The difference is the largest of any number of a feature, relative to the largest number of all.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reid.encoders import Encoder
from reid.files import replacing

TOLERANCE = 1e-4
ONNX_OPSET = 17
_TRACED_BATCH = 2
_COMPARED_BATCHES = (1, 3)


def fuse(encoder: Encoder, tolerance: float = TOLERANCE) -> tuple[Encoder, float]:
    """Fold each batch norm that directly follows a convolution into that convolution.

    Such pairs are found by running the encoder: the norm is given the very tensor that the convolution returned. Norms
    behind linear layers stay, as do those that stand before a convolution, as in DenseNet.

    Args:
        encoder: in evaluation mode; unchanged.
        tolerance: largest difference allowed.

    Returns:
        A copy with the same features, to be run, not to be trained or saved; and the difference.

    Raises:
        ValueError: an encoder in training mode, or a difference that is too large.
    """
    _check_mode(encoder)
    fused = copy.deepcopy(encoder)
    for conv_name, norm_name in _pairs(fused):
        conv, norm = fused.get_submodule(conv_name), fused.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _replace(fused, conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's norms bring their activation along.
        act = getattr(norm, "act", None)
        _replace(fused, norm_name, nn.Identity() if act is None else act)
    return fused, _compare("the fused encoder", encoder, fused, tolerance)


def export_torchscript(encoder: Encoder, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """Write a traced encoder that C++ and `torch.jit.load` run: (B, 3, H, W) -> (B, D), any B.

    Args:
        encoder: in evaluation mode, on the CPU.
        path: target; appears when the file has been read back and compared.
        tolerance: largest difference allowed.

    Returns:
        The difference between file and encoder.

    Raises:
        ValueError: an encoder in training mode, or a difference that is too large.
    """
    _check_mode(encoder)

    def write(target: Path) -> Callable[[Tensor], Tensor]:
        traced = torch.jit.trace(encoder, _images(encoder, _TRACED_BATCH), check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(target))
        script: Callable[[Tensor], Tensor] = torch.jit.load(str(target))  # type: ignore[no-untyped-call]
        return script

    return _export(encoder, Path(path), tolerance, write)


def export_onnx(encoder: Encoder, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """Write an ONNX model with input `images` (B, 3, H, W) and output `features` (B, D), any B.

    Images are RGB, ImageNet-normalised, of the configuration's size, which is stored in the model as `encoder`.

    Args:
        encoder: in evaluation mode, on the CPU.
        path: target; appears when ONNX Runtime has run the file and the result has been compared.
        tolerance: largest difference allowed.

    Returns:
        The difference between file and encoder.

    Raises:
        ValueError: an encoder in training mode, or a difference that is too large.
    """
    _check_mode(encoder)

    def write(target: Path) -> Callable[[Tensor], Tensor]:
        batch = {0: "batch"}
        torch.onnx.export(
            encoder,
            (_images(encoder, _TRACED_BATCH),),
            str(target),
            dynamo=False,  # the newer exporter needs one more package
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": batch, "features": batch},
        )
        model = onnx.load(str(target))
        onnx.helper.set_model_props(model, {"encoder": json.dumps(asdict(encoder.config))})
        onnx.checker.check_model(model)
        onnx.save(model, str(target))
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return _export(encoder, Path(path), tolerance, write)


def _export(
    encoder: Encoder, path: Path, tolerance: float, write: Callable[[Path], Callable[[Tensor], Tensor]]
) -> float:
    """Write beside the target, compare what was written, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        with torch.no_grad(), warnings.catch_warnings():
            # About what tracing may get wrong, which the comparison would show, and about the exporters' age.
            warnings.simplefilter("ignore")
            written = write(part)
        return _compare(str(path), encoder, written, tolerance)


@torch.no_grad()
def _compare(what: str, encoder: Encoder, other: Callable[[Tensor], Tensor], tolerance: float) -> float:
    difference = 0.0
    for batch in _COMPARED_BATCHES:
        images = _images(encoder, batch)
        expected, got = encoder(images), other(images)
        if got.shape != expected.shape:
            raise ValueError(f"{what}: expected features {tuple(expected.shape)}, got {tuple(got.shape)}")
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        away = float((got - expected).abs().max() / scale)
        if not away <= tolerance:  # NaN, too
            raise ValueError(f"{what}: expected the encoder's features within {tolerance:g}, got {away:g} away")
        difference = max(difference, away)
    return difference


def _check_mode(encoder: Encoder) -> None:
    if encoder.training:
        raise ValueError("encoder: expected evaluation mode, got training mode")


def _images(encoder: Encoder, batch: int) -> Tensor:
    """(B, 3, H, W) as numbers of normalised images are spread, on the encoder's device."""
    generator = torch.Generator().manual_seed(batch)
    device = next(encoder.parameters()).device
    return torch.randn(batch, 3, *encoder.config.input_size, generator=generator).to(device)


@torch.no_grad()
def _pairs(encoder: Encoder) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that directly follow them, each run just once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other gets the same id
    found: list[tuple[str, str]] = []
    runs: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output)
            elif id(args[0]) in made:
                found.append((made[id(args[0])][0], name))

        return after

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    encoder(_images(encoder, 1))
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in found if runs[conv] == runs[norm] == 1]


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
