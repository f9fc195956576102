"""Sequences with the detections of all their frames, and how well a tracker's results on them score.

Public detections are those that the benchmark hands out with a sequence, so that trackers can be compared on the same
boxes, without pixels. Where there are pixels, the bundled model's detections are computed once and kept in a file.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.score_mot import score
from tracker.boxes import tlwh_to_xyxy
from tracker.mot import MotWriter, read_mot, read_seqinfo
from tracker.types import Detections, FrameResult

MOT15_FRAME_RATE = 25.0
"""Frames per second of the two TUD sequences, which come without `seqinfo.ini`."""
_PEDESTRIAN = 1


@dataclass(frozen=True)
class Sequence:
    """A sequence as a tracker without a detector sees it.

    Attributes:
        name: the folder's name, such as `MOT17-02-FRCNN`.
        folder: where `gt/gt.txt` lies.
        frame_rate: frames per second.
        detections: one entry a frame, frame 1 first, frames without people too.
    """

    name: str
    folder: Path
    frame_rate: float
    detections: list[Detections]

    def __len__(self) -> int:
        return len(self.detections)


def load(folder: Path) -> Sequence:
    """Read a sequence's public detections, `det/det.txt`.

    Raises:
        FileNotFoundError: the folder has no detections, or neither `seqinfo.ini` nor ground truth to tell its length.
        ValueError: a malformed file.
    """
    rows = read_mot(folder / "det" / "det.txt")
    frame_rate, length = _rate_and_length(folder)
    order = np.argsort(rows.frames, kind="stable")
    xyxy = tlwh_to_xyxy(rows.tlwh)[order].astype(np.float32)
    scores = rows.scores[order].astype(np.float32)
    bounds = np.searchsorted(rows.frames[order], np.arange(1, length + 2))
    detections = [Detections(xyxy[a:b], scores[a:b]) for a, b in pairwise(bounds.tolist())]
    return Sequence(folder.resolve().name, folder, frame_rate, detections)


def detect(folder: Path, cache: Path) -> Sequence:
    """Detections and embeddings of the bundled model on a sequence's images.

    Args:
        folder: a sequence with `seqinfo.ini` and images.
        cache: folder that keeps `<sequence>.npz`; read where that is newer than the model file, written otherwise.

    Raises:
        ValueError: a kept file of another number of frames.
    """
    frame_rate, length = _rate_and_length(folder)
    name = folder.resolve().name
    file = cache / f"{name}.npz"
    if not file.is_file() or file.stat().st_mtime < _bundled_model().stat().st_mtime:
        cache.mkdir(parents=True, exist_ok=True)
        _write_detections(folder, file)
    with np.load(file) as kept:
        bounds = np.concatenate([[0], kept["counts"].cumsum()])
        if len(bounds) != length + 1:
            raise ValueError(f"{file}: expected {length} frames, got {len(bounds) - 1}; delete it to detect anew")
        everything = Detections(kept["xyxy"], kept["scores"], kept["embeddings"], kept["classes"])
    return Sequence(name, folder, frame_rate, [everything[a:b] for a, b in pairwise(bounds.tolist())])


def score_results(folder: Path, results: Iterable[FrameResult]) -> dict[str, float]:
    """Score a tracker's results against a sequence's ground truth, as MOT17 does.

    Where the ground truth has no classes (MOT15's and older: the eighth column is a coordinate in the world, or -1),
    everybody in it counts as a pedestrian.

    Returns:
        The figures of `benchmarks.score_mot.score`.
    """
    name = folder.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / f"{name}.txt"
        with MotWriter(text) as writer:
            for result in results:
                writer.write(result)
        described = folder if (folder / "seqinfo.ini").is_file() else _as_mot17(folder, Path(scratch) / name)
        return score(described, text)[name]


def _rate_and_length(folder: Path) -> tuple[float, int]:
    if (folder / "seqinfo.ini").is_file():
        info = read_seqinfo(folder / "seqinfo.ini")
        return info.frame_rate, info.length
    return MOT15_FRAME_RATE, int(read_mot(folder / "gt" / "gt.txt").frames.max())


def _as_mot17(folder: Path, target: Path) -> Path:
    """A copy of a sequence's ground truth in MOT17's nine columns, with a `seqinfo.ini`."""
    truth = read_mot(folder / "gt" / "gt.txt")
    (target / "gt").mkdir(parents=True)
    count = len(truth)
    table = np.column_stack(
        [truth.frames, truth.track_ids, truth.tlwh, truth.scores, np.full(count, _PEDESTRIAN), np.ones(count)]
    )
    np.savetxt(target / "gt" / "gt.txt", table, fmt="%.12g", delimiter=",")
    frame_rate, length = _rate_and_length(folder)
    (target / "seqinfo.ini").write_text(
        f"[Sequence]\nname={target.name}\nframeRate={frame_rate:g}\nseqLength={length}\n", encoding="utf-8"
    )
    return target


def _bundled_model() -> Path:
    return Path(__file__).resolve().parents[1] / "detector" / "weights" / "nano.safetensors"


def _write_detections(folder: Path, file: Path) -> None:
    from detector import load_detector  # torch takes seconds to import, and is only needed here
    from tracker.sources import open_source

    detector = load_detector(device="cpu")
    with contextlib.closing(open_source(folder)) as source:
        found = [Detections.from_torchvision(detector([frame])[0]) for frame in source]
    np.savez(
        file,
        counts=[len(each) for each in found],
        xyxy=np.concatenate([each.xyxy for each in found]),
        scores=np.concatenate([each.scores for each in found]),
        embeddings=np.concatenate([each.embeddings for each in found]),
        classes=np.concatenate([each.classes for each in found]),
    )
