"""What compensating the camera's motion is worth: a sequence of a still camera, tracked as if the camera shook.

    python benchmarks/camera_motion.py
    python benchmarks/camera_motion.py --sequence MOT/PETS09-S2L1-dev --step 4 8 --json shaken.json

Every picture is shifted along a random walk that is drawn to its start (steps of --step pixels; the uncovered border is
filled by reflection), and so are the bundled model's detections and the ground truth: a perfect compensation gives the
scores of the still camera. Rows: no compensation, both methods, and the true motion. Times are one thread's, the
detector's left out; they depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks import public_detections  # noqa: E402
from tracker import Detections, FrameResult, Tracker  # noqa: E402
from tracker.camera_motion import CameraMotion  # noqa: E402
from tracker.mot import read_mot  # noqa: E402
from tracker.sources import open_source  # noqa: E402

METHODS = ("none", "sparse", "ecc", "true")
COLUMNS = ("HOTA", "MOTA", "IDF1", "IDSW", "error", "ms")


def walk(length: int, step: float, seed: int = 0) -> NDArray[np.float64]:
    """(length, 2) shift of every picture in pixels; the steps are about `step` long, the first is none."""
    rng = np.random.default_rng(seed)
    place, speed = np.zeros((length, 2)), np.zeros(2)
    for frame in range(1, length):
        speed = 0.7 * speed + rng.normal(0, step, 2)
        place[frame] = 0.95 * place[frame - 1] + speed
    return place


def shaken_pictures(folder: Path, place: NDArray[np.float64]) -> Iterator[NDArray[np.uint8]]:
    """The sequence's pictures, each shifted."""
    with contextlib.closing(open_source(folder / "img1")) as source:
        for picture, (x, y) in zip(source, place, strict=True):
            affine = np.array([[1, 0, x], [0, 1, y]])
            yield np.asarray(
                cv2.warpAffine(picture, affine, picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT), np.uint8
            )


def write_shaken_truth(folder: Path, target: Path, place: NDArray[np.float64]) -> None:
    """The sequence's ground truth, shifted as its pictures are."""
    truth = read_mot(folder / "gt" / "gt.txt")
    tlwh = truth.tlwh.copy()
    tlwh[:, :2] += place[truth.frames - 1]
    (target / "gt").mkdir(parents=True)
    columns = [truth.frames, truth.track_ids, tlwh, truth.scores, truth.classes, truth.visibility]
    np.savetxt(target / "gt" / "gt.txt", np.column_stack(columns), fmt="%.12g", delimiter=",")
    (target / "seqinfo.ini").write_text((folder / "seqinfo.ini").read_text())


def track(
    sequence: public_detections.Sequence, place: NDArray[np.float64], method: str
) -> tuple[list[FrameResult], dict[str, float]]:
    """Results under the shaking camera; median error of the shift in pixels, and milliseconds a frame to find it."""
    tracker = Tracker(None, sequence.frame_rate)
    camera = CameraMotion("ecc" if method == "ecc" else "sparse")
    steps = np.diff(place, axis=0, prepend=place[:1])
    results, errors, seconds = [], [], 0.0
    for picture, found, shift, step in zip(
        shaken_pictures(sequence.folder, place), sequence.detections, place, steps, strict=True
    ):
        xyxy = found.xyxy + np.tile(shift, 2)
        affine = np.array([[1, 0, step[0]], [0, 1, step[1]]]) if method == "true" else None
        if method in ("sparse", "ecc"):
            began = time.process_time()
            affine = camera.estimate(picture, xyxy)
            seconds += time.process_time() - began
        if affine is not None:
            errors.append(float(np.abs(affine[:, 2] - step).max()))
        results.append(
            tracker.update(Detections(xyxy, found.scores, found.embeddings, found.classes), camera_motion=affine)
        )
    return results, {"error": float(np.median(errors or [np.nan])), "ms": seconds / len(place) * 1e3}


def measure(folder: Path, cache: Path, steps: list[float]) -> dict[str, Any]:
    """Scores by step and method."""
    sequence = public_detections.detect(folder, cache)
    scores: dict[str, Any] = {}
    for step in steps:
        place = walk(len(sequence), step)
        length = float(np.linalg.norm(np.diff(place, axis=0), axis=1).mean())
        row = scores[f"{length:.1f}"] = {}
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / sequence.name
            write_shaken_truth(folder, target, place)
            for method in METHODS:
                results, figures = track(sequence, place, method)
                row[method] = {**public_detections.score_results(target, results), **figures}
    return {"sequence": sequence.name, "scores": scores}


def format_table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [f"| {result['sequence']}: mean step | motion | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for length, rows in result["scores"].items():
        for method, figures in rows.items():
            cells = [f"{figures[key]:.0f}" if key == "IDSW" else f"{figures[key]:.3f}" for key in COLUMNS[:4]]
            cells += ["" if np.isnan(figures["error"]) else f"{figures['error']:.2f}", f"{figures['ms']:.1f}"]
            lines.append(f"| {length} pixels | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "mot" / "PETS09-S2L1-dev"
    parser.add_argument("--sequence", type=Path, default=default, help="sequence of a still camera, with pictures")
    parser.add_argument("--step", type=float, nargs="+", default=[0.0, 4.0, 8.0], help="default: 0 4 8")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "detections", help="default: runs/detections")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "camera_motion.json")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        result = measure(args.sequence, args.cache, args.step)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"camera_motion: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
