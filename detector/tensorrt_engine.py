"""TensorRT engines: built from an exported ONNX file, kept with their manifest in one file, run on torch's memory.

A file is `MAGIC`, the manifest's length (4 bytes, little end first), the manifest, and the engine as TensorRT
serialised it. An engine fits the TensorRT version and the kind of GPU it was built with, and no other.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.graph import INPUT

MAGIC = b"jdetrack-engine\n"
MAX_BATCH = 16
"""Frames in one call at most."""
WORKSPACE = 4 << 30
"""Bytes of GPU memory that building may try out."""
_LENGTH = 4


def build_engine(onnx: Path, target: Path, manifest: str, usual: tuple[int, int], largest: tuple[int, int]) -> None:
    """Build an engine for the GPU at hand, which takes minutes.

    The numbers stay as they are in the ONNX file: an fp16 engine comes from an fp16 file.

    Args:
        onnx: the graph, with free batch and size.
        target: file to write.
        manifest: text to keep with it.
        usual: width and height of the network input that it is made fast for.
        largest: the largest possible ones; the smallest are 32x32.

    Raises:
        ValueError: no TensorRT 10 or newer, no GPU, a graph that TensorRT cannot read or build.
    """
    trt = import_tensorrt()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"TensorRT {trt.__version__} cannot read the graph ({faults})")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is to mean fp32: boxes are to agree
    profile = builder.create_optimization_profile()
    shapes = ((batch, height, width, 3) for batch, (width, height) in ((1, (32, 32)), (1, usual), (MAX_BATCH, largest)))
    profile.set_shape(INPUT, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise ValueError(f"TensorRT refused inputs from 32x32 to {largest[0]}x{largest[1]} pixels")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f"TensorRT {trt.__version__} could not build the engine ({logger.last})")
    notes = manifest.encode()
    target.write_bytes(MAGIC + len(notes).to_bytes(_LENGTH, "little") + notes + bytes(memoryview(plan)))


def split_engine(path: Path) -> tuple[bytes, bytes]:
    """A file of `build_engine` -> manifest and serialised engine.

    Raises:
        ValueError: another file, or one cut short.
    """
    data = path.read_bytes()
    start = len(MAGIC) + _LENGTH
    if not data.startswith(MAGIC):
        raise ValueError(f"{path}: expected an engine that tools/export.py wrote")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    if len(data) <= end:
        raise ValueError(f"{path}: cut short")
    return data[start:end], data[end:]


def open_plan(
    path: Path, plan: bytes, device: torch.device
) -> tuple[Callable[[NDArray[np.uint8]], list[NDArray[Any]]], list[str], int]:
    """Make a serialised engine callable: letterboxed frames (B, H, W, 3) uint8 -> its outputs; their names, largest B.

    Calls from several threads wait for each other.

    Raises:
        ValueError: no TensorRT or GPU, an engine made by another version or for another GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"{path}: a TensorRT engine runs on CUDA devices alone, got device {device}")
    trt = import_tensorrt()
    logger = _logger(trt)
    with torch.cuda.device(device):  # "cuda" without a number is the current one
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise ValueError(f"{path}: not an engine for TensorRT {trt.__version__} and this GPU ({logger.last})")
        context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    outputs = {name: _allocator(trt, device) for name in names if name != INPUT}
    for name, output in outputs.items():
        context.set_output_allocator(name, output)
    dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in outputs}
    largest = tuple(engine.get_tensor_profile_shape(INPUT, 0)[2])
    lock = threading.Lock()

    def run(frames: NDArray[np.uint8]) -> list[NDArray[Any]]:
        with lock, torch.cuda.device(device):
            pixels = torch.from_numpy(frames).to(device)
            if not context.set_input_shape(INPUT, tuple(pixels.shape)):
                height, width = pixels.shape[1:3]
                limits = f"{largest[2]}x{largest[1]}"
                raise ValueError(f"{path}: was built for inputs up to {limits} pixels, got {width}x{height}")
            context.set_tensor_address(INPUT, pixels.data_ptr())
            stream = torch.cuda.current_stream(device)
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError(f"{path}: TensorRT failed ({logger.last})")
            stream.synchronize()
            return [output.array(dtypes[name]) for name, output in outputs.items()]

    return run, list(outputs), largest[0]


def import_tensorrt() -> Any:
    """TensorRT with its plugins; neither it nor a GPU is needed otherwise.

    Raises:
        ValueError: it is not there, too old, or there is no GPU.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ValueError(f"TensorRT is not installed ({error}): pip install tensorrt") from None
    if int(tensorrt.__version__.split(".")[0]) < 10:
        raise ValueError(f"TensorRT: expected version 10 or newer, got {tensorrt.__version__}")
    if not torch.cuda.is_available():
        raise ValueError("TensorRT: needs a CUDA device, and none is available")
    return tensorrt


def _logger(trt: Any) -> Any:
    """Keeps quiet, and remembers the last error, which TensorRT tells nowhere else."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last = " ".join(message.split())

    logger = Logger()
    trt.init_libnvinfer_plugins(logger, "")
    return logger


def _allocator(trt: Any, device: torch.device) -> Any:
    """Memory for an output whose size is known only when the people have been counted."""

    class Output(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.memory: Tensor = torch.empty(1, dtype=torch.uint8, device=device)
            self.shape: tuple[int, ...] = (0,)

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            # torch's blocks are aligned to 512 bytes, more than TensorRT asks for.
            if self.memory.numel() < size:
                self.memory = torch.empty(size, dtype=torch.uint8, device=device)
            return self.memory.data_ptr()

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

        def array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
            count = int(np.prod(self.shape)) * dtype.itemsize
            return self.memory[:count].cpu().numpy().view(dtype).reshape(self.shape)

    return Output()
