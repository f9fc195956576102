"""The dense part of a model, ready to run: by ONNX Runtime or by torch itself.

On two cores ONNX Runtime takes about two thirds of torch's time for the compact graph, and its threads leave the
interpreter alone. The embedding head stays in torch: it sees the boxes kept, whose number changes with every frame.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detector.csp import ConvBlock
from detector.priors import STRIDES, Network

AnyJDE = TypeVar("AnyJDE", bound=nn.Module)
Engine = Literal["auto", "onnxruntime", "torch"]
Forward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""(B, H, W, 3) uint8 BGR, H and W multiples of 32, on the CPU -> what `JDE.forward` returns."""


def fused(model: AnyJDE) -> AnyJDE:
    """A copy of the model in evaluation mode with every batch norm behind a convolution folded."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ConvBlock):
                setattr(module, name, _FusedConvBlock(child))
    return model


def dense_forward(model: Network, device: torch.device, engine: Engine) -> Forward:
    """Make the dense part of a fused model callable.

    Args:
        model: what `fused` returned, on its device.
        device: where the results are wanted.
        engine: "auto" is what the family runs best by on a CPU, and torch elsewhere.

    Raises:
        ValueError: ONNX Runtime asked for on another device than the CPU.
    """
    if engine == "onnxruntime" and device.type != "cpu":
        raise ValueError(f"engine: onnxruntime runs on the CPU here, got device {device}")
    if engine == "auto":
        engine = model.cpu_engine if device.type == "cpu" else "torch"
    if engine == "torch":
        return lambda frames: model(_planes(frames.to(device)))
    session = _session(model)

    def run(frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [torch.from_numpy(output) for output in session.run(None, {"frames": frames.numpy()})]
        return outputs[: len(STRIDES)], outputs[len(STRIDES) :]

    return run


class _FusedConvBlock(nn.Module):
    """A `ConvBlock` with its batch norm folded in, for inference."""

    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv = fuse_conv_bn_eval(block.conv, block.norm)
        self.activate = block.activate

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.conv(x), inplace=True)


class _Graph(nn.Module):
    """The dense part as exported: bytes in, a flat tuple of maps out."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        raw, features = self.model(_planes(frames))
        return (*raw, *features)


def _planes(frames: Tensor) -> Tensor:
    """(B, H, W, 3) bytes -> (B, 3, H, W) float32; in memory this is channels-last already."""
    return frames.permute(0, 3, 1, 2).float()


def _session(model: Network) -> onnxruntime.InferenceSession:
    example = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)
    graph = _Graph(model).eval()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further packages announces its successor
        outputs = [f"map{i}" for i in range(len(graph(example)))]
        axes = {"frames": {0: "batch", 1: "height", 2: "width"}} | {
            name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in outputs
        }
        file = io.BytesIO()
        torch.onnx.export(
            graph,
            (example,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["frames"],
            output_names=outputs,
            dynamic_axes=axes,
        )
    options = onnxruntime.SessionOptions()
    # As many as torch uses: whoever calls from several threads at once sets that to one.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
