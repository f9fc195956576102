"""A network written for other runtimes, with its manifest; see detector/graph.py for what a graph returns."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import Dim

from detector.darknet import DarknetJDE
from detector.engine import fused, lowered
from detector.graph import MapsGraph, to_onnx
from detector.inference import MAX_INPUT_SIZE
from detector.manifest import FORMAT, Manifest, first_line, graph_of
from detector.model import JDE
from detector.openvino_library import import_openvino, signal_stack_kept
from detector.priors import STRIDES
from detector.readers import EXTRA, WEIGHTS, digest_of
from detector.tensorrt_engine import build_engine

AnyJDE = JDE | DarknetJDE


def make_graph(model: AnyJDE, manifest: Manifest, device: torch.device | str = "cpu") -> MapsGraph:
    """The graph that a manifest describes, on a fused copy of the model, in fp16 where the manifest says so."""
    ready = fused(model).to(device)
    if manifest.precision == "fp16":
        ready = lowered(ready, torch.float16)
    return graph_of(manifest, ready)


def write_onnx(model: AnyJDE, manifest: Manifest, path: Path) -> None:
    """An ONNX model; the manifest is in its metadata."""
    to_onnx(make_graph(model, manifest), path)
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, {FORMAT: manifest.text})
    onnx.checker.check_model(written)
    onnx.save(written, str(path))


@signal_stack_kept()
def write_openvino(model: AnyJDE, manifest: Manifest, path: Path) -> None:
    """An OpenVINO model, `.xml` with its weights in a `.bin` beside it; the manifest is in its `rt_info`.

    In fp16 are the weights alone, which halves the file; they are multiplied in fp32.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        step = Path(folder) / "step.onnx"
        to_onnx(make_graph(model, replace(manifest, precision="fp32")), step)
        converted = openvino.convert_model(step)
    save_openvino(converted, manifest.text, path, half=manifest.precision == "fp16")


def save_openvino(model: Any, notes: str, path: Path, *, half: bool = False) -> None:
    """Write an OpenVINO model, with notes and with what tells its `.bin` from others, see `readers.WEIGHTS`.

    Raises:
        OSError: it could not be written.
    """
    openvino = import_openvino()
    model.set_rt_info(notes, FORMAT)
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
        model.set_rt_info(digest_of(path.with_suffix(".bin")), WEIGHTS)
        openvino.save_model(model, path, compress_to_fp16=half)  # the digest is known now
    except RuntimeError as error:
        raise OSError(f"{path}: could not be written ({first_line(error)})") from error


def write_torchscript(model: AnyJDE, manifest: Manifest, path: Path) -> None:
    """A TorchScript archive for the manifest's device; the manifest is one of its extra files."""
    graph = make_graph(model, manifest, manifest.device)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that tracing might keep, and of TorchScript's age
        traced = torch.jit.trace(graph, graph.example, check_trace=False)  # type: ignore[no-untyped-call]
        archive = io.BytesIO()  # where the disk is full, torch's own files end the process
        torch.jit.save(traced, archive, _extra_files={EXTRA: manifest.text})
        path.write_bytes(archive.getbuffer())


def write_torch_export(model: AnyJDE, manifest: Manifest, path: Path) -> None:
    """A program of torch.export for the manifest's device; the manifest is one of its extra files.

    Raises:
        ValueError: a graph of people, whose number is not known in advance: torch.export takes two or more for granted.
    """
    if manifest.graph == "people":
        raise ValueError(f"{path}: a torch.export program cannot hold people: use the boxes or maps graph")
    graph = make_graph(model, manifest, manifest.device)
    # Sizes of one are taken for constants, so the example has none.
    example = torch.cat((graph.example, graph.example))
    grid = STRIDES[-1]
    sides = {i: grid * Dim(name, min=1, max=MAX_INPUT_SIZE // grid) for i, name in ((1, "rows"), (2, "columns"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: Dim("batch", min=1)} | sides,)
        program = torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
        archive = io.BytesIO()
        torch.export.save(program, archive, extra_files={EXTRA: manifest.text})
        path.write_bytes(archive.getbuffer())


def write_tensorrt(model: AnyJDE, manifest: Manifest, path: Path) -> None:
    """A TensorRT engine for the GPU at hand; takes minutes.

    Raises:
        ValueError: no TensorRT or no GPU, or a graph that cannot be built.
    """
    wide, high, square = (model.canvas(*shape, manifest.input_size) for shape in ((9, 16), (16, 9), (9, 9)))
    largest = max(wide.width, square.width), max(high.height, square.height)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        step = Path(folder) / "step.onnx"
        write_onnx(model, manifest, step)
        build_engine(step, path, manifest.text, (wide.width, wide.height), largest)


WRITERS: dict[str, tuple[str, Callable[[Any, Manifest, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "openvino": (".xml", write_openvino),
    "torchscript": (".torchscript", write_torchscript),
    "torch-export": (".pt2", write_torch_export),
    "tensorrt": (".engine", write_tensorrt),
}
"""Suffix and writer of each format."""
