"""Exported networks with 8-bit convolutions, by calibration on unlabelled pictures (post-training quantisation).

What is 8-bit: the dense part but for `FLOAT_LAYERS`, weights by output channel, activations by tensor (Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Decoding,
suppression and the embedding head stay in floating point.

Calibrate on pictures like those the model is to see, and never on those it is evaluated on.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from detector.graph import INPUT
from detector.manifest import FORMAT
from detector.openvino_library import import_openvino, signal_stack_kept
from detector.source import images_in, read_image
from detector.writers import save_openvino

Batch = NDArray[np.uint8]
"""(B, H, W, 3) BGR letterboxed frames, H and W multiples of 32."""
CALIBRATION_COUNT = 128
_NETWORK = "/model/"
"""Scope of the dense part in what detector/graph.py writes; decoding and embedding head have others."""
FLOAT_LAYERS = (
    r"/backbone/stem/",
    r"/backbone/stages\.0/",
    r"/heads\.\d+/(Concat|box_code/|objectness/|class_logits/)",
    r"/level\d+/detect/",
)
"""Layers of the dense part that stay in floating point: patterns of their names.

The predictions, whose last bits are pixels; and the shallowest layers: a few of their channels reach to 150, where
those of deeper layers reach to 20 at most, and one range for all channels leaves the others hardly any steps.
"""
_OPERATORS = ["Conv", "Sigmoid", "Mul", "LeakyRelu", "Add", "Concat", "MaxPool", "Resize"]
"""Convolutions and what lies between them, so that a map need not leave its 8 bits on the way to the next."""


def calibration_batches(
    source: Path, letterbox: Callable[[Batch], Batch], count: int = CALIBRATION_COUNT
) -> Iterator[Batch]:
    """Pictures to calibrate on, evenly spaced over a folder of images or a video.

    Args:
        source: the folder, or the video file.
        letterbox: frame (H, W, 3) uint8 BGR -> network input (h, w, 3) uint8, sides multiples of 32.
        count: at most so many.

    Returns:
        Batches (1, h, w, 3) uint8, read when asked for; sizes may differ.

    Raises:
        ValueError: no images, or what cannot be read.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    frames = _images(source, count) if source.is_dir() else _video_frames(source, count)
    return (letterbox(frame)[None] for frame in frames)


def quantize_onnx(
    source: Path, target: Path, batches: Iterable[Batch], *, float_layers: Sequence[str] = FLOAT_LAYERS
) -> None:
    """Write an 8-bit copy of an ONNX model of tools/export.py, of any graph, metadata included.

    By ONNX Runtime: static, QDQ. The range of a tensor is the mean of the frames' lowest values to the mean of their
    highest. Processors without 8-bit dot products (VNNI) add such products with saturation, which costs accuracy.

    Args:
        source: the `.onnx` file.
        target: the file to write.
        batches: what `calibration_batches` gives; looked at once.
        float_layers: patterns of the names of layers of the dense part that stay in floating point.

    Raises:
        ValueError: no batches, or a file without the layers of an exported network.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    try:
        model = onnx.load(str(source))
    except Exception as error:  # protobuf's own type
        raise ValueError(f"{source}: not a readable ONNX model") from error
    nodes = [node.name for node in model.graph.node if _is_quantized(node.name, float_layers)]
    _check_nodes(source, nodes)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _silence():
        file = Path(scratch) / target.name
        quantize_static(
            source,
            file,
            _Reader(_at_least_one(batches)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )
        file.replace(target)


@signal_stack_kept()
def quantize_openvino(
    source: Path, target: Path, batches: Iterable[Batch], *, float_layers: Sequence[str] = FLOAT_LAYERS
) -> None:
    """Write an 8-bit copy of an OpenVINO model of tools/export.py, of any graph, notes included.

    By NNCF: symmetric weights, asymmetric activations, biases corrected for the mean error of each channel.

    Args:
        source: the `.xml` file, its `.bin` beside it.
        target: the `.xml` file to write; its `.bin` lies beside it.
        batches: what `calibration_batches` gives; kept in memory, as they are looked at more than once.
        float_layers: patterns of the names of layers of the dense part that stay in floating point.

    Raises:
        ValueError: no batches, a file without the layers of an exported network, or a library that is not installed.
    """
    openvino, nncf = import_openvino(), _import_nncf()
    try:
        model = openvino.Core().read_model(source)
    except Exception as error:  # its errors have no common type
        raise ValueError(f"{source}: not a readable OpenVINO model") from error
    names = [node.get_friendly_name() for node in model.get_ops()]
    _check_nodes(source, [name for name in names if _is_quantized(name, float_layers)])
    ignored = [name for name in names if not _is_quantized(name, float_layers)]
    kept = list(_at_least_one(batches))
    with _silence():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(kept),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(kept),
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
        )
    notes = model.get_rt_info(FORMAT).astype(str) if model.has_rt_info(FORMAT) else ""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        file = Path(scratch) / target.name
        save_openvino(quantized, notes, file)
        for suffix in (".bin", ".xml"):
            file.with_suffix(suffix).replace(target.with_suffix(suffix))


class _Reader:
    """Batches as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Batch] | None:
        """The next batch by the name of its input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _is_quantized(name: str, float_layers: Sequence[str]) -> bool:
    return name.startswith(_NETWORK) and not any(re.search(pattern, name) for pattern in float_layers)


def _check_nodes(source: Path, nodes: Sequence[str]) -> None:
    if not nodes:
        raise ValueError(f"{source}: expected a model that tools/export.py wrote, found no layers below {_NETWORK}")


def _at_least_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("batches: expected at least one picture to calibrate on, got none")
    return itertools.chain([first], rest)


def _images(folder: Path, count: int) -> Iterator[Batch]:
    paths = images_in(folder)
    if not paths:
        raise ValueError(f"{folder}: expected images, found none")
    return (read_image(paths[i]) for i in _spread(len(paths), count))


def _video_frames(path: Path, count: int) -> Iterator[Batch]:
    capture = cv2.VideoCapture(str(path))
    wanted = set(_spread(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), count))
    found = False
    for i in range(max(wanted, default=-1) + 1):
        if not capture.grab():
            break
        if i in wanted:
            read, frame = capture.retrieve()
            if read:
                found = True
                yield np.asarray(frame, np.uint8)
    capture.release()
    if not found:
        raise ValueError(f"{path}: expected a folder of images or a video, and cannot be read as one")


def _spread(length: int, count: int) -> list[int]:
    """At most `count` of the indices below `length`, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, length - 1, min(length, count)).round()}) if length > 0 else []


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the chatter of the libraries; their errors still come."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _import_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise ValueError(f'NNCF is not installed ({error}): pip install -e ".[export]"') from None
    return nncf
