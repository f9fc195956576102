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

from tracker.boxes import tlwh_to_xyxy
from tracker.challenge import Task
from tracker.evaluation import score
from tracker.metrics import summary
from tracker.mot import MotSequence, MotWriter, read_mot, read_seqinfo
from tracker.types import Detections, FrameResult

MOT15_FRAME_RATE = 25.0
"""Frames per second of the two TUD sequences, which come without `seqinfo.ini`."""

FIGURES = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "MOTP", "IDF1", "IDP", "IDR", "CLR_Re", "CLR_Pr")
FIGURES += ("CLR_TP", "CLR_FP", "CLR_FN", "IDSW", "MT", "PT", "ML", "Frag")
"""What `score_results` tells."""


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
    described = _describe(folder)
    frame_rate, length = described.frame_rate, described.length
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
    described = _describe(folder)
    frame_rate, length = described.frame_rate, described.length
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
    """Score a tracker's results against a sequence's ground truth, by the rules of its benchmark.

    Where the ground truth has no classes (MOT15's and older: the eighth column is a coordinate in the world, or -1),
    everybody in it counts as a pedestrian.

    Returns:
        `FIGURES`.
    """
    name = folder.resolve().name
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / f"{name}.txt"
        with MotWriter(text) as writer:
            for result in results:
                writer.write(result)
        figures = summary(score(Task(name, folder / "gt" / "gt.txt", text, _describe(folder))))
    return {figure: figures[figure] for figure in FIGURES}


def _describe(folder: Path) -> MotSequence:
    """A sequence by its `seqinfo.ini`; those of MOT15 have none, and end with their ground truth."""
    if (folder / "seqinfo.ini").is_file():
        return read_seqinfo(folder / "seqinfo.ini")
    length = int(read_mot(folder / "gt" / "gt.txt").frames.max())
    return MotSequence(folder.resolve().name, MOT15_FRAME_RATE, length, folder / "img1", folder)


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
