"""A model made ready to run: by ONNX Runtime or by torch, in the numbers that the processor multiplies fastest.

The compact family runs by ONNX Runtime, suppression and embedding head included: on a CPU that takes half of torch's
time, and its threads leave the interpreter alone. Darknet-53 runs by torch, whose oneDNN comes within some percent of
what the processor can do, in bfloat16 where there are instructions for it; on a GPU both families run in float16.
"""

from __future__ import annotations

import copy
import functools
import io
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detector.csp import ConvBlock
from detector.graph import INPUT, MapsGraph, PeopleGraph, to_onnx
from detector.priors import STRIDES, Network, Picks, decode_boxes

AnyJDE = TypeVar("AnyJDE", bound=nn.Module)
Engine = Literal["auto", "onnxruntime", "torch"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Forward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""(B, H, W, 3) uint8 BGR, H and W multiples of 32, on the CPU -> what `JDE.forward` returns."""
Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]
"""(B, H, W, 3) uint8 BGR, H and W multiples of 32 -> what `PeopleGraph` returns."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PROBE = (192, 320)
"""Height and width of the picture on which lower precision is tried."""
_PROBED = 100
"""Boxes compared on it."""


def fused(model: AnyJDE) -> AnyJDE:
    """A copy of the model in evaluation mode with every batch norm behind a convolution folded."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ConvBlock):
                setattr(module, name, _FusedConvBlock(child))
    return model


def choose(model: Network, device: torch.device, engine: Engine, precision: Precision) -> tuple[Engine, Precision]:
    """What runs a model best, in place of "auto".

    Raises:
        ValueError: what was asked for cannot run there.
    """
    on_cpu = device.type == "cpu"
    if engine == "onnxruntime" and not on_cpu:
        raise ValueError(f"engine: onnxruntime runs on the CPU here, got device {device}")
    if engine == "auto":
        engine = model.cpu_engine if on_cpu and precision in ("auto", "fp32") else "torch"
    if engine == "onnxruntime" and precision not in ("auto", "fp32"):
        raise ValueError(f"precision: onnxruntime computes in fp32 on a CPU, got {precision}")
    if precision == "fp16" and on_cpu:
        raise ValueError("precision: fp16 is for GPUs, expected bf16 or fp32 on a CPU")
    if precision == "auto" and on_cpu:  # the compact network gains little by less than fp32
        precision = "bf16" if model.cpu_engine == "torch" == engine and multiplies_bfloat16() else "fp32"
    return engine, "fp16" if precision == "auto" else precision


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; without them bfloat16 is slower than float32."""
    has = (getattr(torch.cpu, f"_is_{feature}_supported", bool)() for feature in ("avx512_bf16", "amx_tile"))
    return any(has)


def people_session(model: Network, score_thresh: float, nms_thresh: float, max_detections: int) -> Run:
    """People and their embeddings by ONNX Runtime on the CPU; calls from several threads at once are safe."""
    session = _session(PeopleGraph(model, score_thresh, nms_thresh, max_detections))
    return lambda frames: list(session.run(None, {INPUT: frames}))


def dense_forward(model: Network, device: torch.device, engine: Engine) -> Forward:
    """Make the dense part of a fused model callable, in fp32.

    Args:
        model: what `fused` returned, on its device.
        device: where the results are wanted.
        engine: "onnxruntime" or "torch".
    """
    if engine == "torch":
        return lambda frames: model(_planes(frames.to(device)))
    session = _session(MapsGraph(model))

    def run(frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [torch.from_numpy(output) for output in session.run(None, {INPUT: frames.numpy()})]
        return outputs[: len(STRIDES)], outputs[len(STRIDES) :]

    return run


def quickened(model: Any, device: torch.device, precision: Precision) -> tuple[Any, Precision]:
    """A fused model as torch runs it fastest, for use alone: it cannot be traced or saved any more.

    Lower precision is tried on a picture first; where boxes, scores or embeddings do not agree with those of float32,
    float32 is kept. Predictions and embedding head are float32 in any case.

    Args:
        model: what `fused` returned, on its device; its parts are used for the result.
        device: where it is.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        The model, and the precision it has.
    """
    if precision in _DTYPES:
        lower = lowered(model, _DTYPES[precision])
        model, precision = (lower, precision) if agrees(model, lower, device) else (model, "fp32")
    if device.type == "cpu":
        _pack(model)
    return model, precision


@torch.inference_mode()
def agrees(model: Network, other: Network, device: torch.device) -> bool:
    """Whether another version of a model sees what the model sees, on a picture of blurred noise.

    Compared are the boxes that score most: mean IoU from 0.95, scores within 0.05, and cosines from 0.99 of what the
    embedding head reads; what that head makes of it has no say, so that detections do not depend on it.
    """
    from torchvision.ops import box_iou  # takes as long to import as torch

    frames = torch.from_numpy(_probe()[None])
    maps = [dense_forward(each, device, "torch")(frames) for each in (model, other)]
    if not all(m.isfinite().all() for m in maps[1][0]):
        return False
    flat, others = (model.flatten(raw)[0] for raw, _ in maps)
    scores, other_scores = model.scores(flat)[0], model.scores(others)[0]
    rows = scores.topk(min(_PROBED, len(scores))).indices
    priors = model.priors(maps[0][0])
    boxes, other_boxes = (decode_boxes(each[rows, :4], priors[rows]) for each in (flat, others))
    alike = box_iou(boxes, other_boxes).diagonal().mean() >= 0.95
    alike &= (scores[rows] - other_scores[rows]).abs().max() <= 0.05
    if model.config.embedding_dim:
        picks = Picks.of(priors, rows, torch.zeros_like(rows), boxes)
        cut = [model.patches(features, picks)[:2] for _, features in maps]
        for part, other_part in zip(*([*coarse, fine] for coarse, fine in cut), strict=True):
            if part is not None and len(part):
                alike &= functional.cosine_similarity(part.flatten(1), other_part.flatten(1)).min() >= 0.99
    return bool(alike)


class Replayed:
    """A dense part on a GPU, recorded once for each shape of input and replayed as one launch (CUDA graphs).

    Args:
        forward: what is recorded; on the GPU alone.
        device: the GPU.
    """

    MAX_SHAPES = 8
    """Shapes that are recorded; each holds memory of its own, and further ones run without a recording."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward, self._device = forward, device
        self._lock = threading.Lock()
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[list[Tensor], list[Tensor]]]] = {}

    def __call__(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Bytes (B, H, W, 3) -> maps; see `Forward`."""
        with self._lock:
            if frames.shape not in self._recorded:
                if len(self._recorded) >= self.MAX_SHAPES:
                    return self._forward(frames)
                self._recorded[frames.shape] = self._record(frames)
            graph, static, outputs = self._recorded[frames.shape]
            static.copy_(frames, non_blocking=True)
            graph.replay()
            raw, features = ([m.clone() for m in maps] for maps in outputs)  # the next replay writes over them
        return raw, features

    def _record(self, frames: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[list[Tensor], list[Tensor]]]:
        static = frames.to(self._device)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # libraries choose their kernels before the recording
            for _ in range(3):
                self._forward(static)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._forward(static)
        return graph, static, outputs


class _FusedConvBlock(nn.Module):
    """A `ConvBlock` with its batch norm folded in, for inference; its input comes in any precision."""

    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv = fuse_conv_bn_eval(block.conv, block.norm)
        self.activate = block.activate

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.conv(x.to(self.conv.weight.dtype)), inplace=True)


class _PackedConvBlock(nn.Module):
    """The same by one oneDNN primitive: results are activated while in the cache, weights in its own layout.

    The layout is the best one for the size of the first input, and right for all.
    """

    def __init__(self, block: _FusedConvBlock, activation: str, scalars: list[float]) -> None:
        super().__init__()
        conv = block.conv
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        self.after = activation, scalars, "none"
        self.bias, self.dtype = conv.bias, conv.weight.dtype
        self._plain: Tensor | None = conv.weight.detach()
        self._weight: Tensor | None = None
        self._lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        weight = self._weight
        if weight is None:
            with self._lock:
                if self._plain is not None:
                    arguments = self._plain, *self.geometry, list(x.shape)
                    self._weight = torch.ops.mkldnn._reorder_convolution_weight(*arguments)
                    self._plain = None
                weight = self._weight
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, *self.after)  # type: ignore[no-any-return]


def _pack(model: nn.Module) -> None:
    """Let oneDNN run the convolution blocks, where this torch can (in place); the embedding head may see no boxes."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return
    for parent, name, block in _dense_blocks(model):
        activate = block.activate
        if activate is functional.silu:
            setattr(parent, name, _PackedConvBlock(block, "swish", []))
        elif isinstance(activate, functools.partial) and activate.func is functional.leaky_relu:
            setattr(parent, name, _PackedConvBlock(block, "leaky_relu", [activate.keywords["negative_slope"]]))


def lowered(model: AnyJDE, dtype: torch.dtype) -> AnyJDE:
    """A copy whose convolution blocks compute in another type; what follows them reads float32."""
    model = copy.deepcopy(model)
    for _, _, block in _dense_blocks(model):
        block.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.dtype == torch.float32:
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def _dense_blocks(model: nn.Module) -> list[tuple[nn.Module, str, _FusedConvBlock]]:
    """Convolution blocks outside the embedding head: parent, name, block."""
    return [
        (module, name, child)
        for path, module in model.named_modules()
        if not path.startswith("embedding_head")
        for name, child in module.named_children()
        if isinstance(child, _FusedConvBlock)
    ]


@functools.cache
def _probe() -> NDArray[np.uint8]:
    """A picture with structure of several sizes."""
    rng = np.random.default_rng(0)
    height, width = _PROBE
    layers = [rng.uniform(0, 255, (height // n, width // n, 3)).repeat(n, 0).repeat(n, 1) for n in (2, 8, 32)]
    return np.asarray(np.mean(layers, axis=0), np.uint8)


def _planes(frames: Tensor) -> Tensor:
    """(B, H, W, 3) bytes -> (B, 3, H, W) float32; in memory this is channels-last already."""
    return frames.permute(0, 3, 1, 2).float()


def _session(graph: MapsGraph) -> onnxruntime.InferenceSession:
    file = io.BytesIO()
    to_onnx(graph, file)
    options = onnxruntime.SessionOptions()
    # As many as torch uses: whoever calls from several threads at once sets that to one.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
