"""The yardstick for speed: YOLOX-nano in ONNX Runtime, one frame after the other, detections only.

    python benchmarks/yardstick.py --onnx yolox_nano.onnx --video in.mp4 --size 384x640 --out out.mp4 --json out.json

What one would write in an afternoon: decode with OpenCV, letterbox, forward, suppress, draw boxes, encode H.264 with
PyAV. No identities, no threads of its own; ONNX Runtime uses all cores for the forward pass. Ge et al., "YOLOX:
Exceeding YOLO Series in 2021".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

STRIDES = (8, 16, 32)
SCORE_THRESH, NMS_THRESH = 0.4, 0.45
# What tools/track.py writes with, so that the encoder decides nothing.
ENCODER = {"preset": "ultrafast", "crf": "23", "x264-params": "no-deblock=0:log-level=none"}


def load_session(onnx_file: Path, size: tuple[int, int]) -> onnxruntime.InferenceSession:
    """The network for an input of this height and width, in multiples of 32, whatever size it was exported with.

    The layers are convolutions and the reshapes before the output take their length from the data: only the declared
    shapes of input, output and intermediate values hold it to one size.
    """
    model = onnx.load(str(onnx_file))
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[2].dim_value, shape.dim[3].dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = sum(size[0] * size[1] // s**2 for s in STRIDES)
    del model.graph.value_info[:]
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def letterbox(frame: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], float]:
    """Frame (H, W, 3) BGR -> network input (1, 3, height, width), picture top left on grey, and its scale."""
    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    resized = cv2.resize(frame, (round(frame.shape[1] * scale), round(frame.shape[0] * scale)))
    canvas = np.full((*size, 3), 114, np.uint8)
    canvas[: resized.shape[0], : resized.shape[1]] = resized
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], dtype=np.float32), scale


def cell_grid(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row (A, 2), and stride (A, 1), of the cells in the order of the network's output."""
    xy, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride]
        xy.append(np.stack((x, y), axis=-1).reshape(-1, 2))
        strides.append(np.full((len(xy[-1]), 1), stride))
    return np.concatenate(xy).astype(np.float32), np.concatenate(strides).astype(np.float32)


def people(
    output: NDArray[np.float32], grid: tuple[NDArray[np.float32], NDArray[np.float32]], scale: float
) -> NDArray[np.float32]:
    """Raw output (A, 85) -> xyxy (N, 4) of people in pixels of the frame."""
    scores = output[:, 4] * output[:, 5]
    keep = scores >= SCORE_THRESH
    cells, strides = grid
    centre = (output[keep, :2] + cells[keep]) * strides[keep]
    wh = np.exp(output[keep, 2:4]) * strides[keep]
    tlwh = np.concatenate((centre - wh / 2, wh), axis=1) / scale
    rows = np.asarray(cv2.dnn.NMSBoxes(tlwh.tolist(), scores[keep].tolist(), SCORE_THRESH, NMS_THRESH), dtype=np.int64)
    tlwh = tlwh[rows.reshape(-1)]
    return np.concatenate((tlwh[:, :2], tlwh[:, :2] + tlwh[:, 2:]), axis=1)


def run(onnx_file: Path, video: Path, size: tuple[int, int], out: Path, limit: int | None) -> dict[str, Any]:
    """Process the video; returns frames, people, fps over the whole loop, and seconds spent in each stage."""
    session = load_session(onnx_file, size)
    grid = cell_grid(size)
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise ValueError(f"{video}: cannot be opened as a video")
    seconds: dict[str, float] = defaultdict(float)
    frames = boxes = 0
    started = time.perf_counter()
    with av.open(str(out), "w") as container:
        rate = Fraction(capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        stream.height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        stream.pix_fmt = "yuv420p"
        while limit is None or frames < limit:
            clock = time.perf_counter()
            read, frame = capture.read()
            clock = _lap(seconds, "decode", clock)
            if not read:
                break
            images, scale = letterbox(frame, size)
            clock = _lap(seconds, "resize", clock)
            output = session.run(None, {"images": images})[0][0]
            clock = _lap(seconds, "forward", clock)
            xyxy = people(output, grid, scale)
            clock = _lap(seconds, "suppress", clock)
            for x1, y1, x2, y2 in xyxy.round().astype(int).tolist():
                cv2.rectangle(frame, (x1, y1), (x2, y2), (0, 255, 0), 2)
            clock = _lap(seconds, "draw", clock)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
            _lap(seconds, "write", clock)
            frames, boxes = frames + 1, boxes + len(xyxy)
        container.mux(stream.encode())
    elapsed = time.perf_counter() - started
    return {"frames": frames, "boxes": boxes, "fps": frames / elapsed, "seconds": dict(seconds)}


def forward_ms(onnx_file: Path, size: tuple[int, int], repeats: int) -> float:
    """Median milliseconds of one forward pass on a blank image."""
    session = load_session(onnx_file, size)
    image = np.full((1, 3, *size), 114, np.float32)
    times = []
    for _ in range(repeats + 3):
        clock = time.perf_counter()
        session.run(None, {"images": image})
        times.append(time.perf_counter() - clock)
    return float(np.median(times[3:]) * 1e3)


def parse_size(text: str) -> tuple[int, int]:
    """`384x640` -> (384, 640), height first."""
    height, _, width = text.partition("x")
    size = int(height), int(width)
    if min(size) <= 0 or size[0] % 32 or size[1] % 32:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in multiples of 32, got {text}")
    return size


def _lap(seconds: dict[str, float], stage: str, since: float) -> float:
    now = time.perf_counter()
    seconds[stage] += now - since
    return now


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--onnx", type=Path, required=True, help="YOLOX-nano without decoding, as exported by its authors"
    )
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--size", type=parse_size, default=(384, 640), help="network input, HEIGHTxWIDTH")
    parser.add_argument("--out", type=Path, required=True, help="H.264 file to write")
    parser.add_argument("--frames", type=int, help="stop after so many frames")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    try:
        result = run(args.onnx, args.video, args.size, args.out, args.frames)
    except (ValueError, OSError) as error:
        print(f"yardstick: {error}", file=sys.stderr)
        return 2
    print(f"{result['frames']} frames, {result['boxes']} boxes, {result['fps']:.1f} frames/s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
