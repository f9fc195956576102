"""Write a model for other runtimes, and hold every file against the model itself.

    python tools/export.py --format onnx                                  # the bundled model, as nano.onnx
    python tools/export.py --weights runs/first/model.safetensors --format onnx openvino --out exported --check hall.mp4
    python tools/export.py --format openvino --half --check hall.mp4 door.mp4
    python tools/export.py --format onnx openvino --int8 --calibration footage.mp4 --check hall.mp4
    python tools/export.py --format onnx --check hall.mp4 --data yolo:val/images --gt MOT17/train/MOT17-02-FRCNN
    python tools/export.py --format onnx torch-export --graph boxes       # for programs of your own

Then, with nothing else of the model:

    python tools/track.py --weights exported/nano.onnx --video in.mp4

Formats: onnx (.onnx; ONNX Runtime), openvino (.xml with a .bin beside it), torchscript (.torchscript), torch-export
(.pt2; boxes and maps only: torch.export cannot hold people, whose number it would have to know), tensorrt (.engine;
where TensorRT 10 and a GPU are, and for that kind of GPU alone). Batch and size of the frames stay free; TensorRT takes
at most 16 frames at once, no larger than --input-size.

Graphs take letterboxed frames (B, H, W, 3) uint8 BGR, H and W multiples of 32, as `frames`, and return

- people: image (N,), boxes (N, 4) xyxy in pixels of the input, scores (N,), labels (N,), embeddings (N, D): suppression
  and embedding head are inside, with the thresholds given here
- boxes: boxes (B, A, 4), scores (B, A), labels (B, A) before suppression, and the feature maps
- maps: the network's raw maps and feature maps

Each file is run on the frames of --check before it appears under its name: one that differs from the model by more than
--tolerance is an error, and no file. Without --check, on pictures put together from a sample portrait.

TorchScript archives and TensorRT engines are programs: run none that a stranger made.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__":  # while the libraries load, Ctrl-C and termination have nothing to save
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av.logging
import cv2
import numpy as np
import torch
from matplotlib import cbook

from detector import Detector, DetectorConfig, load_model
from detector.agreement import agreement
from detector.checkpoint import BUNDLED, family_of
from detector.evaluation import validate
from detector.exported import ExportedDetector
from detector.graph import GraphKind, MapsGraph
from detector.inference import letterbox
from detector.layouts import open_source as open_labels
from detector.manifest import Manifest
from detector.openvino_library import import_openvino
from detector.readers import Opened, open_exported
from detector.tensorrt_engine import import_tensorrt
from detector.writers import WRITERS, make_graph
from tracker.challenge import describe, find_sequences
from tracker.console import fail, one_line, progress, say, stop_signals
from tracker.evaluation import evaluate
from tracker.mot import MotWriter
from tracker.pipeline import track
from tracker.sources import open_source
from tracker.video import Frame

INT8_FORMATS = ("onnx", "openvino")
DRAWN_FRAMES = 4
CALIBRATION_FRAMES = 128
CHECK_FRAMES = 20
PEOPLE_OPTIONS = ("score_thresh", "nms_thresh", "max_detections", "tolerance")
# Largest box error in pixels and lowest cosine of embeddings that pass, and how many people in a hundred may be
# reported by one alone: those whose score is a hair from the threshold.
TOLERANCES = {"fp32": (0.01, 0.9999, 1.0), "fp16": (32.0, 0.7, 5.0), "int8": (64.0, 0.5, 25.0)}
# Of boxes and maps graphs: largest difference relative to the largest number.
MAP_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}
Row = dict[str, Any]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to write").add_argument
    add("--weights", type=Path, help="model: .safetensors, or a published JDE .pt (default: the bundled one)")
    add("--format", nargs="+", choices=list(WRITERS), required=True, help="one or several")
    add("--graph", choices=get_args(GraphKind), default="people", help="what it returns (default: people)")
    add("--out", type=Path, default=Path("exported"), metavar="DIR", help="folder of the files (default: exported)")
    add("--half", action="store_true", help="in fp16")
    add("--int8", action="store_true", help="convolutions in int8: onnx and openvino; needs --calibration")
    add("--calibration", type=Path, metavar="PATH", help="folder of images or video like those it will see, for --int8")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where torchscript and torch-export files are to run")

    defaults = DetectorConfig()
    add = parser.add_argument_group("baked into the people graph").add_argument
    add("--score-thresh", type=float, default=defaults.score_thresh, metavar="S", help="default %(default)g")
    add("--nms-thresh", type=float, metavar="IOU", help="default: the family's, 0.65 or 0.4")
    add("--max-detections", type=int, default=defaults.max_detections, metavar="N", help="default %(default)d")
    add("--input-size", type=int, metavar="N", help="long side to letterbox to unless told otherwise, a multiple of 32")

    add = parser.add_argument_group("how it is held against the model").add_argument
    add("--check", nargs="+", metavar="PATH", help="videos or folders of images")
    add(
        "--frames",
        type=int,
        default=CHECK_FRAMES,
        metavar="N",
        help="frames of each, spread over its start (default %(default)d)",
    )
    add("--tolerance", nargs=2, type=float, metavar=("PX", "COSINE"), help=tolerance_help())
    add("--data", metavar="LAYOUT:PATH", help="labelled images (see train_detector.py --data): change of AP50")
    add("--gt", type=Path, metavar="PATH", help="MOTChallenge sequences with images: change of IDF1")
    add("--json", type=Path, metavar="FILE", help="also write the table here")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def tolerance_help() -> str:
    """The tolerances of the people graph, as --help tells them."""
    each = ", ".join(f"{box:g} {cosine:g} for {name}" for name, (box, cosine, _) in TOLERANCES.items())
    return f"largest box error and lowest cosine that pass (default: {each})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv)
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    with stop_signals():
        try:
            check_options(args)
            return export(args)
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before minutes are spent."""
    if args.half and args.int8:
        raise ValueError("--half: expected either --half or --int8")
    if args.int8 != (args.calibration is not None):
        raise ValueError("--int8: needs --calibration, and --calibration is for --int8")
    for name in args.format:
        if args.int8 and name not in INT8_FORMATS:
            raise ValueError(f"--int8: is for {' and '.join(INT8_FORMATS)}, not {name}")
    if args.graph == "people" and "torch-export" in args.format:
        raise ValueError("--format: a torch-export program cannot hold people: give --graph boxes or maps")
    if args.graph != "people" and (args.data or args.gt):
        raise ValueError("--data, --gt: are for --graph people")
    for option in PEOPLE_OPTIONS:
        if args.graph != "people" and getattr(args, option) != getattr(DetectorConfig, option, None):
            raise ValueError(f"--{option.replace('_', '-')}: is for --graph people")
    if args.frames != CHECK_FRAMES and not args.check:
        raise ValueError("--frames: is for the footage of --check")
    if args.device != "cpu" and not any(name.startswith("torch") for name in args.format):
        raise ValueError("--device: is for torchscript and torch-export")
    if args.json and not args.json.parent.is_dir() and args.json.parent.resolve() != args.out.resolve():
        raise ValueError(f"--json: {args.json.parent}: no such folder")
    if args.json and args.json.is_dir():
        raise ValueError(f"--json: {args.json}: is a folder")
    if args.calibration and not args.calibration.exists():
        raise ValueError(f"--calibration: {args.calibration}: no such file or folder")
    if args.frames < 1:
        raise ValueError(f"--frames: expected at least 1, got {args.frames}")
    if args.tolerance and not (args.tolerance[0] >= 0 and -1 <= args.tolerance[1] <= 1):
        raise ValueError(f"--tolerance: expected pixels and a cosine, got {args.tolerance}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda asked for, but no CUDA device is available")
    if "openvino" in args.format:
        import_openvino()
    if "tensorrt" in args.format:
        import_tensorrt()


def export(args: argparse.Namespace) -> int:
    """Write and check every format; one that fails does not keep the others from their turn."""
    weights = args.weights or BUNDLED
    model = load_model(weights)
    config = DetectorConfig(
        input_size=args.input_size,
        score_thresh=args.score_thresh,
        nms_thresh=args.nms_thresh,
        max_detections=args.max_detections,
        engine="torch",
        precision="fp32",
    )
    reference = Detector(model, "cpu", config)
    labels = open_labels(args.data) if args.data else None
    sequences = [describe(folder) for folder in find_sequences(args.gt)] if args.gt else []
    frames = list(check_frames(args))
    measures: dict[str, Callable[[Any], float]] = {}
    if labels:
        measures["AP50"] = lambda detect: validate(detect, labels.images, labels.labels).detection.ap50
    if sequences:
        measures["IDF1"] = lambda detect: identity_f1(detect, args.gt, sequences)
    before = {name: measure(reference) for name, measure in measures.items()}
    manifest = Manifest(
        family=family_of(model),
        model=dataclasses.asdict(model.config),
        graph=args.graph,
        precision="int8" if args.int8 else "fp16" if args.half else "fp32",
        input_size=reference.config.input_size,
        score_thresh=reference.config.score_thresh,
        nms_thresh=reference.config.nms_thresh,
        max_detections=reference.config.max_detections,
        weights=weights.name,
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )
    rows: list[Row] = []
    failed: dict[str, Exception] = {}
    for name in dict.fromkeys(args.format):
        try:
            rows.append(export_one(args, name, model, manifest, reference, frames, measures, before))
        except Exception as error:  # of whichever library: the other formats do not depend on it
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(args.out)
            failed[name] = error
            if len(args.format) > 1:
                say(f"error: {name}: {one_line(error)}")
                if args.debug:
                    traceback.print_exception(error)
    if rows:
        print_table(rows)
    if args.json:
        facts = {
            "weights": str(weights),
            "manifest": dataclasses.asdict(manifest),
            "frames": len(frames),
            "files": rows,
            "failed": {name: one_line(error) for name, error in failed.items()},
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if not failed:
        return 0
    return 1 if len(args.format) > 1 else fail(failed[args.format[0]], args.debug)


def export_one(
    args: argparse.Namespace,
    name: str,
    model: Any,
    manifest: Manifest,
    reference: Detector,
    frames: Sequence[Frame],
    measures: dict[str, Callable[[Any], float]],
    before: dict[str, float],
) -> Row:
    """Write one format to a folder of its own, compare what was written, and only then put it in its place."""
    suffix, write = WRITERS[name]
    if name.startswith("torch"):
        manifest = dataclasses.replace(manifest, device=args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=args.out) as folder:
        path = Path(folder) / (file_stem(manifest) + suffix)
        say(f"{name}: writing {args.out / path.name}")
        write(model, manifest, path)
        if args.int8:
            say(f"{name}: int8, calibrating on {args.calibration}")
            quantize(name, path, args.calibration, reference)
        say(f"{name}: comparing {len(frames)} frames")
        opened = open_exported(path)
        row: Row = {"format": name, "file": str(args.out / path.name), "bytes": size_of(path)}
        if manifest.graph == "people":
            exported = ExportedDetector(opened)
            row |= compare_people(args, reference, exported, frames, manifest)
            for measure, function in measures.items():
                row |= {f"{measure} model": before[measure], measure: function(exported)}
        else:
            row |= compare_maps(
                opened, make_graph(model, dataclasses.replace(manifest, precision="fp32")), frames, reference
            )
        for part in (path.with_suffix(".bin"), path):  # the weights first: a file is whole when it is there
            if part.exists():
                part.replace(args.out / part.name)
    return row


def file_stem(manifest: Manifest) -> str:
    """Name of a file without its suffix: of the weights, and what is not as usual."""
    graph = "" if manifest.graph == "people" else f"-{manifest.graph}"
    return Path(manifest.weights).stem + graph + {"fp32": "", "fp16": "-half", "int8": "-int8"}[manifest.precision]


def quantize(name: str, path: Path, calibration: Path, reference: Detector) -> None:
    """Replace a file by its int8 version."""
    from detector.quantize import calibration_batches, quantize_onnx, quantize_openvino

    def network_input(frame: Frame) -> Frame:
        canvas = reference.model.canvas(*frame.shape[:2], reference.config.input_size)
        return letterbox(frame, canvas, reference.model.pad_value)[0]

    target = path.with_name(f"int8-{path.name}")
    batches = calibration_batches(calibration, network_input, count=CALIBRATION_FRAMES)
    (quantize_onnx if name == "onnx" else quantize_openvino)(path, target, batches)
    for suffix in (".bin", path.suffix):
        if target.with_suffix(suffix).exists():
            target.with_suffix(suffix).replace(path.with_suffix(suffix))


def size_of(path: Path) -> int:
    """Bytes of a file, and of the weights beside it."""
    return sum(part.stat().st_size for part in {path, path.with_suffix(".bin")} if part.exists())


# --- how it is held against the model


def check_frames(args: argparse.Namespace) -> Iterator[Frame]:
    """Frames of what --check names, about one a second; drawn ones without it."""
    if not args.check:
        say("no --check: comparing on pictures put together from a sample portrait")
        yield from (drawn_frame(seed) for seed in range(DRAWN_FRAMES))
        return
    for given in args.check:
        source = open_source(given)
        with contextlib.closing(source):
            if source.live:
                raise ValueError(f"--check: {source.location}: expected a recording, got a live source")
            second = max(round(source.frame_rate or 1), 1)
            every = min(max((source.frame_count or second) // args.frames, 1), second)
            yield from itertools.islice(source, 0, every * args.frames, every)


def drawn_frame(seed: int) -> Frame:
    """(720, 1280, 3) uint8 BGR: a portrait that matplotlib brings along, in six sizes and places on grey shades."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    rng = np.random.default_rng(seed)
    frame = cv2.resize(rng.integers(90, 200, (9, 16, 3), np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    for left in range(0, 1280, 220):
        height = int(rng.integers(120, 240))
        width, top = height * portrait.shape[1] // portrait.shape[0], int(rng.integers(0, 720 - height))
        width = min(width, 1280 - left)
        person = cv2.resize(portrait, (width, height), interpolation=cv2.INTER_AREA)
        frame[top : top + height, left : left + width] = person[:, :: rng.choice((-1, 1))]
    return np.asarray(frame, np.uint8)


def compare_people(
    args: argparse.Namespace,
    reference: Detector,
    exported: ExportedDetector,
    frames: Sequence[Frame],
    manifest: Manifest,
) -> Row:
    """What both report; raises a ValueError where that is not the same people."""
    found = agreement(reference, exported, progress(frames, len(frames), doing="comparing"))
    if found.people and found.other_people and not found.matched:
        raise ValueError(
            f"the file differs from the model: none of {found.people} people by the model is among the "
            f"{found.other_people} by the file in {found.frames} frames; it was not kept"
        )
    if not found.matched:
        raise ValueError(
            f"nothing could be compared: {found.people} people by the model and {found.other_people} by the file in "
            f"{found.frames} frames: give --check footage with people, or a lower --score-thresh"
        )
    box, cosine, lost = TOLERANCES[manifest.precision]
    box, cosine = args.tolerance or (box, cosine)
    faults = []
    if not found.max_box_error <= box:  # NaN, too
        faults.append(f"boxes {found.max_box_error:.3g} pixels away, expected {box:g}")
    if found.min_cosine is not None and not found.min_cosine >= cosine:
        faults.append(f"an embedding with cosine {found.min_cosine:.6f}, expected {cosine:g}")
    if 100 * found.unmatched > lost * (found.people + found.other_people):
        faults.append(f"{found.unmatched} people reported by one alone, of {found.people} and {found.other_people}")
    if faults:
        raise ValueError(f"the file differs from the model: {'; '.join(faults)}; it was not kept")
    return dataclasses.asdict(found)


def compare_maps(opened: Opened, graph: MapsGraph, frames: Sequence[Frame], reference: Detector) -> Row:
    """Largest difference of an output, relative to its largest number; raises a ValueError where that is too large."""
    away: dict[str, float] = dict.fromkeys(graph.outputs, 0.0)
    precision = opened.manifest.precision
    for frame in progress(frames, len(frames), doing="comparing"):
        canvas = reference.model.canvas(*frame.shape[:2], reference.config.input_size)
        pixels = letterbox(frame, canvas, reference.model.pad_value)[0][None]
        with torch.inference_mode():
            expected = graph(torch.from_numpy(pixels))
        for name, ours, theirs in zip(away, expected, opened.run(pixels), strict=True):
            ours = ours.double().numpy()
            scale = np.abs(ours).max() or 1.0
            away[name] = max(away[name], float(np.nan_to_num(np.abs(ours - theirs).max() / scale, nan=np.inf)))
    worst = max(away, key=lambda name: away[name])
    if away[worst] > MAP_TOLERANCES[precision]:
        limit = MAP_TOLERANCES[precision]
        raise ValueError(
            f"the file differs from the model: {worst} {away[worst]:.3g} away, expected {limit:g}; it was not kept"
        )
    return {"frames": len(frames), "max_relative_error": away[worst]}


def identity_f1(detect: Any, gt: Path, sequences: Sequence[Any]) -> float:
    """IDF1 of all sequences together, tracked with the tracker's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        for sequence in sequences:
            source = open_source(sequence.folder)
            with MotWriter(Path(folder) / f"{sequence.folder.name}.txt") as results:
                for _, result in progress(track(source, detect), source.frame_count, doing=f"IDF1, {sequence.name}"):
                    results.write(result)
        return float(evaluate(gt, folder)["COMBINED"]["IDF1"])


def print_table(rows: Sequence[Row]) -> None:
    """A row a file, on stdout."""
    people = "matched" in rows[0]
    heads = ["file", "MB", "frames"]
    heads += ["people matched", "max box error", "min cosine", "mean cosine"] if people else ["max relative error"]
    heads += [name for name in ("AP50", "IDF1") if name in rows[0]]
    table = [heads]
    for row in rows:
        cells = [row["file"], f"{row['bytes'] / 1e6:.1f}", str(row["frames"])]
        if people:
            cosines = ["-" if row[name] is None else f"{row[name]:.6f}" for name in ("min_cosine", "mean_cosine")]
            cells += [f"{row['matched']} of {row['people']}", f"{row['max_box_error']:.2g} px", *cosines]
        else:
            cells += [f"{row['max_relative_error']:.2g}"]
        for name in heads[len(cells) :]:
            change = 100 * (row[name] - row[f"{name} model"])
            cells.append(f"{100 * row[name]:.2f} ({change:+.2f})")
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
