r"""How well people are found in COCO images: our models beside YOLOX-nano in ONNX Runtime, scored by the same code.

    python benchmarks/coco_people.py --images ../shared/data/det/coco256/images/val2017 \
        --labels ../shared/data/det/coco256/object_detection/labels/val2017 \
        --onnx ../shared/data/weights/yolox_nano.onnx
    python benchmarks/coco_people.py ... --weights runs/nano/model.safetensors --sizes 640 --plot curves.png

Each network sees the images as it was made to: ours with the long side at the input size and padded to multiples of
32, YOLOX-nano on a square of the input size. Both suppress at IoU 0.65 and report their best 100 people an image from
score 0.001 on. "small" are people lower than 64 pixels in the original image. The labels are text files of YOLO's
layout, which know no crowd regions. COCO: Lin et al., ECCV 2014; YOLOX: Ge et al., "YOLOX: Exceeding YOLO Series in
2021".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks.throughput import machine  # noqa: E402
from benchmarks.yardstick import cell_grid, letterbox, load_session  # noqa: E402
from detector import DetectorConfig, load_detector  # noqa: E402
from detector.evaluation import Detect, Validation, plot_precision_recall, validate  # noqa: E402
from detector.layouts import open_source  # noqa: E402

SCORE_THRESH, NMS_THRESH, MAX_DETECTIONS = 0.001, 0.65, 100
COLUMNS = ("AP50", "AP50:95", "AP50_small", "F1", "precision", "recall")
FIGURES = ("images", "people", "people_small", *COLUMNS, "AP50:95_small", "F1_score")


class YoloxPeople:
    """YOLOX in ONNX Runtime at a square input size; called with frames, it returns people as a `Detector` does.

    The score is objectness times the probability of the class person, whatever other class is more probable.
    """

    def __init__(self, onnx_file: Path, input_size: int) -> None:
        self.size = (input_size, input_size)
        self.session = load_session(onnx_file, self.size)
        self.cells, self.strides = cell_grid(self.size)

    def __call__(self, frames: Sequence[NDArray[np.uint8]]) -> list[dict[str, NDArray[np.float32]]]:
        """`boxes` (N, 4) xyxy in pixels of the frame and `scores` (N,) of each frame."""
        return [self._find(frame) for frame in frames]

    def _find(self, frame: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        image, scale = letterbox(frame, self.size)
        output = self.session.run(None, {"images": image})[0][0]  # (A, 85)
        scores = output[:, 4] * output[:, 5]
        keep = scores >= SCORE_THRESH
        centre = (output[keep, :2] + self.cells[keep]) * self.strides[keep]
        half = np.exp(output[keep, 2:4]) * self.strides[keep] / 2
        boxes, scores = np.concatenate((centre - half, centre + half), axis=1), scores[keep]
        rows = nms(torch.from_numpy(boxes), torch.from_numpy(scores), NMS_THRESH)[:MAX_DETECTIONS].numpy()
        return {"boxes": boxes[rows] / scale, "scores": scores[rows]}


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Validation]]:
    """Everything that is written to the JSON file, from the options of `main`, and the results by name."""
    facts = machine()
    source = open_source(f"yolo:{args.images},{args.labels}")
    rows, results = [], {}
    for size in args.sizes:
        config = DetectorConfig(size, SCORE_THRESH, NMS_THRESH, MAX_DETECTIONS)
        models: dict[str, Detect] = {}
        if args.onnx:
            models[args.onnx.stem] = YoloxPeople(args.onnx, size)
        for weights in args.weights or [None]:
            models[str(weights or "bundled")] = load_detector(weights, args.device, config)
        for name, detect in models.items():
            result = validate(detect, source.images, source.labels, progress=f"{name} {size}")
            rows.append({"model": name, "input_size": size, **{figure: result.figures[figure] for figure in FIGURES}})
            results[f"{name} {size}"] = result
    report = {
        "command": "python benchmarks/coco_people.py " + " ".join(args.given),
        "score_thresh": SCORE_THRESH,
        "nms_thresh": NMS_THRESH,
        "max_detections": MAX_DETECTIONS,
        "rows": rows,
        "machine": facts,
    }
    return report, results


def format_table(report: dict[str, Any]) -> str:
    """Figures of each model and size, one a line; precision and recall are those of the best F1."""
    rows = report["rows"]
    width = max(len(row["model"]) for row in rows)
    first = rows[0]
    lines = [
        f"{first['images']} images, {first['people']} people, {first['people_small']} of them lower than 64 pixels",
        f"{'':<{width}}{'size':>6}" + "".join(f"{column:>12}" for column in COLUMNS),
    ]
    for row in rows:
        cells = (f"{'-':>12}" if row[column] is None else f"{row[column]:>12.3f}" for column in COLUMNS)
        lines.append(f"{row['model']:<{width}}{row['input_size']:>6}" + "".join(cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of YOLO text files, person is class 0")
    parser.add_argument("--onnx", type=Path, help="YOLOX-nano as exported by its authors (default: not compared)")
    parser.add_argument("--weights", type=Path, nargs="+", help="our models (default: the bundled one)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 416], help="input sizes (default: 640 416)")
    parser.add_argument("--device", default="cpu", help="for our models (default: cpu)")
    parser.add_argument("--plot", type=Path, help="draw the precision-recall curves to this PNG file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    args.given = list(sys.argv[1:] if argv is None else argv)
    try:
        report, results = measure(args)
        print(format_table(report))
        if args.plot:
            plot_precision_recall(args.plot, {name: result.detection for name, result in results.items()})
        if args.json:
            args.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"coco_people: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
