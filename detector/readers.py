"""Files for other runtimes, opened by the runtime each was written for; the counterpart of detector/writers.py.

Nothing is unpickled. ONNX and OpenVINO files are data; TorchScript archives and TensorRT engines are programs, and are
read only where their own suffix is given: load none that a stranger made.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from detector.graph import INPUT
from detector.inference import choose_device
from detector.manifest import FORMAT, Manifest, first_line
from detector.openvino_library import import_openvino, signal_stack_kept
from detector.tensorrt_engine import open_plan, split_engine

Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]
"""(B, H, W, 3) uint8 BGR letterboxed frames -> what the graph returns, in its order."""
OPENVINO_STREAMS = 4
"""Frames at the same time at most: each takes memory of its own."""
MAX_NOTES = 1 << 20
"""No manifest is longer than so many bytes."""
EXTRA = f"{FORMAT}.json"
"""Name of the manifest among the extra files of torch's archives."""
WEIGHTS = f"{FORMAT}-weights"
"""Name of the digest of the weights beside an OpenVINO model, in its metadata."""


@dataclass(frozen=True)
class Opened:
    """An exported file, opened.

    Attributes:
        manifest: what it says of itself.
        run: runs it; calls from several threads at once are safe.
        engine: the runtime's name.
        device: where it runs.
        max_batch: frames in one call at most; None for any number.
    """

    manifest: Manifest
    run: Run
    engine: str
    device: torch.device
    max_batch: int | None = None


def open_exported(path: Path, device: str = "auto") -> Opened:
    """Open a file with any graph; for errors see `exported.load_exported`.

    Of programs of torch.export only what was written just now: torch unpickles part of a `.pt2`.
    """
    if device != "auto":
        choose_device(device)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected an exported model, one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder" if path.is_dir() else f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty file")
    return FORMATS[suffix](path, device)


def _open_onnx(path: Path, device: str) -> Opened:
    available = onnxruntime.get_available_providers()
    if device.startswith("cuda") and "CUDAExecutionProvider" not in available:
        raise ValueError(f"device: {device} asked for, but this ONNX Runtime has no CUDA: install onnxruntime-gpu")
    on_gpu = device.startswith("cuda") or (device == "auto" and "CUDAExecutionProvider" in available)
    providers: list[Any] = ["CPUExecutionProvider"]
    index = (torch.device(device).index if device != "auto" else None) or 0
    if on_gpu:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    options = onnxruntime.SessionOptions()
    # As many as torch uses: whoever calls from several threads at once sets that to one.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; its own lines about them say the same
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no common type
        raise ValueError(f"{path}: not a readable ONNX model ({first_line(error)})") from error
    manifest = Manifest.parse(path, session.get_modelmeta().custom_metadata_map.get(FORMAT))
    manifest.check_outputs(path, [output.name for output in session.get_outputs()])
    # Where it cannot use a GPU that it was made for, ONNX Runtime takes the CPU instead.
    on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"
    if device.startswith("cuda") and not on_gpu:
        raise ValueError(
            f"device: {device} asked for, but ONNX Runtime cannot use CUDA here: "
            "does it fit the CUDA and cuDNN that are installed?"
        )
    place = torch.device("cuda", index) if on_gpu else torch.device("cpu")
    return Opened(manifest, lambda frames: list(session.run(None, {INPUT: frames})), "onnxruntime", place)


@signal_stack_kept()
def _open_openvino(path: Path, device: str) -> Opened:
    if device.startswith("cuda"):
        raise ValueError(f"device: {path.suffix} runs by OpenVINO, which has no CUDA; expected cpu or auto")
    openvino = import_openvino()
    core = openvino.Core()
    with path.open("rb") as file:
        if b"<net" not in file.read(1024):  # OpenVINO would try what else it could be, aloud
            raise ValueError(f"{path}: not an OpenVINO model")
    if not path.with_suffix(".bin").is_file():
        raise ValueError(f"{path}: the weights beside it, {path.with_suffix('.bin').name}, are missing")
    try:
        model = core.read_model(path)
    except Exception as error:  # its errors have no common type
        raise ValueError(f"{path}: not a readable OpenVINO model ({first_line(error)})") from error
    notes = model.get_rt_info(FORMAT).astype(str) if model.has_rt_info(FORMAT) else None
    manifest = Manifest.parse(path, notes)
    weights = path.with_suffix(".bin")
    if not model.has_rt_info(WEIGHTS) or model.get_rt_info(WEIGHTS).astype(str) != digest_of(weights):
        raise ValueError(f"{path}: the weights beside it, {weights.name}, are not those it was written with")
    known = [[name for name in manifest.outputs if name in output.get_names()] for output in model.outputs]
    manifest.check_outputs(path, [names[0] if names else "an unknown one" for names in known])
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    streams = max(1, min(cores // threads, OPENVINO_STREAMS))
    settings: dict[str, Any] = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads * streams}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # a processor with bf16 would use it unasked, at boxes' expense
    compiled = core.compile_model(model, "CPU", settings)
    local = threading.local()  # a request answers one call at a time

    def run(frames: NDArray[np.uint8]) -> list[NDArray[Any]]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        answers = local.request.infer({INPUT: frames})
        return [answers[output] for output in compiled.outputs]

    return Opened(manifest, run, "openvino", torch.device("cpu"))


def _open_program(path: Path, device: str) -> Opened:
    """A TorchScript archive, or a program of torch.export."""
    import torchvision  # noqa: F401 - they use its operators

    manifest = Manifest.parse(path, _zipped(path, EXTRA))
    place = torch.device(manifest.device if device == "auto" else device)
    if place.type != manifest.device:
        raise ValueError(f"{path}: was exported on {manifest.device} and runs there alone, got device {device}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{path}: was exported on cuda and runs there alone, and no CUDA device is available")
    is_export = path.suffix.lower() == ".pt2"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript's age
            program: Any
            if is_export:
                exported = torch.export.load(path)
                program, count = exported.module(), len(exported.graph_signature.user_outputs)
            else:
                program = torch.jit.load(str(path), map_location=place)  # type: ignore[no-untyped-call]
                kind = next(program.graph.outputs()).type()
                count = len(kind.elements()) if kind.kind() == "TupleType" else 1
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not readable ({first_line(error)})") from error
    manifest.check_outputs(path, [""] * count)

    @torch.inference_mode()
    def run(frames: NDArray[np.uint8]) -> list[NDArray[Any]]:
        return [output.cpu().numpy() for output in program(torch.from_numpy(frames).to(place))]

    return Opened(manifest, run, "torch.export" if is_export else "torchscript", place)


def _open_engine(path: Path, device: str) -> Opened:
    notes, plan = split_engine(path)
    manifest = Manifest.parse(path, notes)
    place = torch.device("cuda" if device == "auto" else device)
    run, outputs, max_batch = open_plan(path, plan, place)
    manifest.check_outputs(path, outputs)
    return Opened(manifest, run, "tensorrt", place, max_batch)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _zipped(path: Path, name: str) -> bytes | None:
    """A small file that torch stored beside a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(f"/extra/{name}") and entry.file_size <= MAX_NOTES:
                    return archive.read(entry)
    except Exception as error:  # of what cannot be unpacked: its errors have no common type
        raise ValueError(f"{path}: not a readable archive of torch ({first_line(error)})") from error
    return None


FORMATS: dict[str, Callable[[Path, str], Opened]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".torchscript": _open_program,
    ".pt2": _open_program,
    ".engine": _open_engine,
}
"""What opens a file, by its suffix."""
