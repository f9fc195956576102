"""Exported models, ready to look at frames: what tools/export.py wrote, run by the runtime it was written for.

Everything needed is in the file: beside the graph a `Manifest` says which network it is and what is baked in.

Nothing is unpickled. ONNX and OpenVINO files are data; TorchScript archives and TensorRT engines are programs, and are
read only where their own suffix is given: load none that a stranger made.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from detector.checkpoint import build_model
from detector.graph import INPUT, BoxesGraph, GraphKind, MapsGraph, PeopleGraph
from detector.inference import DetectorConfig, by_image, check_frame, choose_device, letterbox_batch
from detector.openvino_library import import_openvino, signal_stack_kept
from detector.tensorrt_engine import open_plan, split_engine

FORMAT = "jdetrack-export"
"""Name of the manifest in a file's metadata."""
Precision = Literal["fp32", "fp16", "int8"]
Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]
"""(B, H, W, 3) uint8 BGR letterboxed frames -> what the graph returns, in its order."""
OPENVINO_STREAMS = 4
"""Frames at the same time at most: each takes memory of its own."""
MAX_NOTES = 1 << 20
"""No manifest is longer than so many bytes."""
EXTRA = f"{FORMAT}.json"
"""Name of the manifest among the extra files of torch's archives."""


@dataclass(frozen=True)
class Manifest:
    """What an exported file says of itself."""

    family: str
    """"compact" or "darknet53"."""
    model: dict[str, Any]
    """The network's configuration."""
    graph: GraphKind
    """What the graph returns; "people" can be run by itself."""
    precision: Precision
    """Numbers that the convolutions use."""
    input_size: int
    """Long side of the network input in pixels, unless told otherwise when it is run."""
    score_thresh: float
    """People who score lower are left out, as are those whom the next two settings leave out."""
    nms_thresh: float
    """Of two boxes whose IoU is higher, the one that scores lower is dropped."""
    max_detections: int
    """At most so many people a frame."""
    weights: str
    """Name of the weights file it was made from."""
    weights_sha256: str
    """That file's SHA-256, in hexadecimal digits."""
    device: str = "cpu"
    """Where a program of torch runs, "cpu" or "cuda"."""

    @classmethod
    def parse(cls, path: Path, text: str | bytes | None) -> Manifest:
        """Read the manifest of a file.

        Raises:
            ValueError: there is none, or not one of this version.
        """
        if not text:
            raise ValueError(f"{path}: expected a model that tools/export.py wrote, found no {FORMAT} notes in it")
        try:
            manifest = cls(**json.loads(text))
            for names, kinds in _TYPES.items():
                for name in names:
                    value = getattr(manifest, name)
                    if not isinstance(value, kinds) or isinstance(value, bool):
                        raise ValueError(f"{name}: expected {kinds[-1].__name__}, got {type(value).__name__}")
            for name, allowed in _ALLOWED.items():
                if getattr(manifest, name) not in allowed:
                    raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(manifest, name)!r}")
            DetectorConfig(manifest.input_size, manifest.score_thresh, manifest.nms_thresh, manifest.max_detections)
            _ = manifest.outputs  # which builds the network
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: unreadable {FORMAT} notes ({_first_line(error)})") from error
        return manifest

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return json.dumps(asdict(self))

    @functools.cached_property
    def outputs(self) -> list[str]:
        """Names of what the graph returns, in its order."""
        return list(graph_of(self, build_meta(self)).outputs)

    def check_outputs(self, path: Path, found: Sequence[str]) -> None:
        """Refuse a file whose graph returns something else; where no names are kept, "" stands for each.

        Raises:
            ValueError: other names, or another number.
        """
        names = self.outputs if any(found) else [""] * len(self.outputs)
        if list(found) != names:
            got = ", ".join(found) if any(found) else f"{len(found)} of them"
            raise ValueError(
                f"{path}: not the {self.graph} graph that its notes tell of: "
                f"expected {len(names)} outputs, {', '.join(self.outputs)}, got {got}"
            )


_TYPES: dict[tuple[str, ...], tuple[type, ...]] = {
    ("family", "graph", "precision", "weights", "weights_sha256", "device"): (str,),
    ("model",): (dict,),
    ("input_size", "max_detections"): (int,),
    ("score_thresh", "nms_thresh"): (int, float),
}
_ALLOWED = {"graph": get_args(GraphKind), "precision": get_args(Precision), "device": ("cpu", "cuda")}


@dataclass(frozen=True)
class ExportedConfig:
    """How an exported model looks at frames."""

    input_size: int
    """As in `DetectorConfig`."""
    score_thresh: float
    """Baked in, or higher."""
    nms_thresh: float
    """Baked in."""
    max_detections: int
    """Baked in, or lower."""
    engine: str
    """What runs it."""
    precision: Precision
    """Numbers that the convolutions use."""
    weights: str
    """Name of the weights file it was made from."""
    weights_sha256: str
    """That file's SHA-256."""


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


class ExportedDetector:
    """An exported model with the interface of `Detector`: frames in, people in pixels of the frames out.

    Args:
        opened: a file with a "people" graph.
        config: values that may still differ from those baked in; None stands for those.

    Raises:
        ValueError: settings that the file cannot follow.
    """

    def __init__(self, opened: Opened, config: DetectorConfig | None = None) -> None:
        baked = opened.manifest
        self.device, self.opened = opened.device, opened
        self._model = build_meta(baked)
        config = config or DetectorConfig(score_thresh=baked.score_thresh, max_detections=baked.max_detections)
        if config.nms_thresh not in (None, baked.nms_thresh):
            raise ValueError(f"nms_thresh: {baked.nms_thresh} is part of the exported model, got {config.nms_thresh}")
        for name in ("engine", "precision"):
            if getattr(config, name, "auto") != "auto":
                raise ValueError(f"{name}: is part of the exported model, expected auto, got {getattr(config, name)}")
        self.config = ExportedConfig(
            input_size=config.input_size or baked.input_size,
            score_thresh=max(config.score_thresh, baked.score_thresh),
            nms_thresh=baked.nms_thresh,
            max_detections=min(config.max_detections, baked.max_detections),
            engine=opened.engine,
            precision=baked.precision,
            weights=baked.weights,
            weights_sha256=baked.weights_sha256,
        )

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        """Find the people in frames; see `Detector.__call__`."""
        for i, frame in enumerate(frames):
            check_frame(f"frame {i}", frame)
        results: list[dict[str, Any]] = [{} for _ in frames]
        for shape in dict.fromkeys(frame.shape for frame in frames):
            rows = [i for i, frame in enumerate(frames) if frame.shape == shape]
            step = self.opened.max_batch or len(rows)
            for first in range(0, len(rows), step):
                batch = rows[first : first + step]
                for i, found in zip(batch, self._batch([frames[i] for i in batch]), strict=True):
                    results[i] = found
        return results

    def _batch(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
        canvas = self._model.canvas(*frames[0].shape[:2], self.config.input_size)
        pixels, scale, place = letterbox_batch(frames, canvas, self._model.pad_value)
        results = by_image(len(frames), *self.opened.run(pixels))
        corner, factor = np.array(place * 2, np.float32), np.array(scale * 2, np.float32)
        for found in results:  # rows fall by score
            kept = min(int((found["scores"] >= self.config.score_thresh).sum()), self.config.max_detections)
            found.update({name: rows[:kept] for name, rows in found.items()})
            found["boxes"] = (found["boxes"] - corner) / factor
        return results


def load_exported(path: str | Path, device: str = "auto", config: DetectorConfig | None = None) -> ExportedDetector:
    """Open an exported model and make it ready.

    Args:
        path: a file of `FORMATS`.
        device: "auto" (what the file was made for, or the CPU), "cpu", "cuda" or "cuda:N".
        config: how to look; None is what is baked in.

    Raises:
        ValueError: a file that cannot be read, was not written by tools/export.py, holds another graph than people, or
            cannot run on that device; a runtime that is not installed; settings that are baked in otherwise.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt2":  # torch would unpickle some of it
        raise ValueError(f"{path}: a torch.export program cannot hold people, and is for other programs")
    opened = open_exported(path, device)
    if opened.manifest.graph != "people":
        raise ValueError(f"{path}: holds {opened.manifest.graph} for other programs: export it with --graph people")
    return ExportedDetector(opened, config)


def open_exported(path: Path, device: str = "auto") -> Opened:
    """Open a file with any graph; see `load_exported`.

    Of programs of torch.export only what was written just now: torch unpickles part of a `.pt2`.
    """
    if device != "auto":
        choose_device(device)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected an exported model, one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty file")
    return FORMATS[suffix](path, device)


def build_meta(manifest: Manifest) -> Any:
    """The network of a manifest without its weights: for its canvas and outputs alone."""
    with torch.device("meta"):
        return build_model(manifest.family, manifest.model).eval()


def graph_of(manifest: Manifest, model: Any) -> MapsGraph:
    """The graph that a manifest describes, of a network that is ready for it."""
    if manifest.graph == "people":
        return PeopleGraph(model, manifest.score_thresh, manifest.nms_thresh, manifest.max_detections)
    return (BoxesGraph if manifest.graph == "boxes" else MapsGraph)(model)


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
        raise ValueError(f"{path}: not a readable ONNX model ({_first_line(error)})") from error
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
        raise ValueError(f"{path}: not a readable OpenVINO model ({_first_line(error)})") from error
    notes = model.get_rt_info(FORMAT).astype(str) if model.has_rt_info(FORMAT) else None
    manifest = Manifest.parse(path, notes)
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
        raise ValueError(f"{path}: not readable ({_first_line(error)})") from error
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


def _zipped(path: Path, name: str) -> bytes | None:
    """A small file that torch stored beside a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(f"/extra/{name}") and entry.file_size <= MAX_NOTES:
                    return archive.read(entry)
    except Exception as error:  # of what cannot be unpacked: its errors have no common type
        raise ValueError(f"{path}: not a readable archive of torch ({_first_line(error)})") from error
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line for line in lines if line and not line.startswith(("Exception from", "Check "))), type(error).__name__
    )


FORMATS: dict[str, Callable[[Path, str], Opened]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".torchscript": _open_program,
    ".pt2": _open_program,
    ".engine": _open_engine,
}
"""What opens a file, by its suffix."""
