"""Detections that someone else made: a MOTChallenge file of them, and embeddings for its rows."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import tlwh_to_xyxy
from tracker.mot import NO_CLASS, MotRows, MotSequence, read_mot, read_seqinfo
from tracker.types import Detections, FloatArray, IntArray
from tracker.video import Frame


@dataclass(frozen=True)
class DetectionFile:
    """The detections of a whole sequence, by frame.

        file = read_detection_file("MOT17-02-FRCNN/det/det.txt")
        tracker = Tracker(frame_rate=file.frame_rate)
        results = [tracker.update(file.at(frame)) for frame in range(1, file.length + 1)]

    Attributes:
        path: where the detections come from.
        name: the sequence folder that holds `det/det.txt`, else the file's stem.
        frame_rate: frames per second as the sequence's `seqinfo.ini` has it; None where there is none.
        length: number of frames as the sequence's `seqinfo.ini` has it; without it, the last frame with a row.
        frames: (R,) frame of each detection from 1, rising.
        detections: the R detections.
        has_classes: whether the file says which class each detection is.
        notes: what a user should know about how the file was read, a line each.
    """

    path: Path
    name: str
    frame_rate: float | None
    length: int
    frames: IntArray
    detections: Detections
    has_classes: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def last_frame(self) -> int:
        """The last frame with a detection; 0 where there is none."""
        return int(self.frames[-1]) if len(self.frames) else 0

    def at(self, frame: int) -> Detections:
        """The detections of a frame, in the file's order; none is no error."""
        low, high = np.searchsorted(self.frames, (frame, frame + 1))
        return self.detections[low:high]

    def frame_range(self, start: int | None, end: int | None) -> tuple[int, int]:
        """First and last frame to track, given those that a user wants, if any.

        Raises:
            ValueError: there are no such frames, or no detections in them.
        """
        first, last = start or 1, min(self.length, end or self.length)
        if first > last:
            raise ValueError(f"{self.path}: start frame {first} lies behind the last, {self.length}")
        if not ((self.frames >= first) & (self.frames <= last)).any():
            raise ValueError(f"{self.path}: no detections in frames {first} to {last}")
        return first, last

    def check_end(self, last: int, location: str) -> None:
        """Refuse detections behind frame `last`, the last of a video that messages call `location`."""
        count = int((self.frames > last).sum())
        if count:
            which = f"{count} detections, up to frame {self.last_frame}"
            raise ValueError(f"{self.path}: {which}, lie behind the last frame of {location}, {last}")

    def replay(self, first: int = 1) -> Callable[[list[Frame]], list[Detections]]:
        """A detector for a `Pipeline` of one worker: frame by frame, what the file has from frame `first` on."""
        numbers = itertools.count(first)
        return lambda frames: [self.at(next(numbers)) for _ in frames]


def read_detection_file(
    path: str | Path,
    embeddings: str | Path | None = None,
    *,
    score_range: tuple[float, float] | None = None,
    classes: Collection[int] | None = None,
) -> DetectionFile:
    """Read detections in the MOTChallenge format: `frame,-1,left,top,width,height[,score[,class,...]]`, any order.

    Scores are 1 where the column is missing, or -1 all through it. Those outside [0, 1], as detectors that are no
    probabilities give them, count as 0 or 1 (and a note says so) unless `score_range` maps them.

    Args:
        path: the file. A sequence's `seqinfo.ini`, beside it or beside its folder `det`, tells name, rate and length.
        embeddings: `.npy` or `.npz` of one array (R, D), row i for row i of the file, empty lines not counted.
        score_range: the file's scores that become 0 and 1; between them the map is linear, outside it ends there.
        classes: take these only; all by default.

    Raises:
        FileNotFoundError: no such file.
        ValueError: `path:line` of a malformed row; or with the path, no row at all, rows with and rows without a class,
            a class that nobody has, embeddings of another number or that are no numbers, an impossible score range.
    """
    path = Path(path)
    rows = read_mot(path)
    if len(rows) == 0:
        raise ValueError(f"{path}: no detections in this file")
    sequence, name = _sequence_of(path)
    notes: list[str] = []
    copies = len(rows) - len(np.unique(np.column_stack([rows.frames, rows.tlwh, rows.classes]), axis=0))
    if copies:
        notes.append(f"{copies} of {len(rows)} rows repeat the box of another in the same frame")
    scores = _map_scores(path, rows.scores, score_range, notes)
    has_classes = _check_classes(path, rows)
    detections = Detections(tlwh_to_xyxy(rows.tlwh), scores, None, rows.classes if has_classes else None)
    if embeddings is not None:
        detections = _with_embeddings(detections, Path(embeddings), path)
    length = sequence.length if sequence else int(rows.frames.max())
    keep = rows.frames <= length
    if not keep.all():
        notes.append(f"{(~keep).sum()} detections lie behind frame {length}, the sequence's last, and are left out")
    if classes is not None:
        keep &= _of_classes(path, rows.classes, has_classes, classes)
    chosen = keep.nonzero()[0]
    order = chosen[rows.frames[chosen].argsort(kind="stable")]
    return DetectionFile(
        path=path,
        name=name,
        frame_rate=sequence.frame_rate if sequence else None,
        length=length,
        frames=rows.frames[order],
        detections=detections[order],
        has_classes=has_classes,
        notes=tuple(notes),
    )


def _sequence_of(path: Path) -> tuple[MotSequence | None, str]:
    """The description of the sequence that a file of detections belongs to, and the name for its results."""
    folder = path.resolve().parent
    in_det = folder.name == "det" and path.name == "det.txt" and folder.parent.name != ""
    info = (folder.parent if folder.name == "det" else folder) / "seqinfo.ini"
    return read_seqinfo(info) if info.is_file() else None, folder.parent.name if in_det else path.stem


def _map_scores(
    path: Path, scores: NDArray[np.float64], score_range: tuple[float, float] | None, notes: list[str]
) -> FloatArray:
    """The file's scores in [0, 1]."""
    if score_range is not None:
        low, high = score_range
        if not 0 < high - low < np.inf:  # also true of NaN
            raise ValueError(f"score range: expected a lower and a higher score, got {low:g} and {high:g}")
        scores = (scores - low) / (high - low)
    elif (scores == -1).all():
        scores = np.ones_like(scores)
    elif outside := int(((scores < 0) | (scores > 1)).sum()):
        notes.append(
            f"{outside} of {len(scores)} scores lie outside 0 to 1 (they go from {scores.min():g} to {scores.max():g}) "
            "and count as 0 or 1; a score range maps them instead"
        )
    return np.clip(scores, 0, 1).astype(np.float32)


def _check_classes(path: Path, rows: MotRows) -> bool:
    """Whether the rows have a class: all or none of them."""
    given = rows.classes != NO_CLASS
    if given.any() and not given.all():
        raise ValueError(f"{path}: class: expected it in every row or in none, {(~given).sum()} of {len(rows)} lack it")
    if (rows.classes < NO_CLASS).any():
        raise ValueError(f"{path}: class: expected numbers from 0, or -1 for none, got {rows.classes.min()}")
    return bool(given.all())


def _of_classes(path: Path, given: IntArray, has_classes: bool, wanted: Collection[int]) -> NDArray[np.bool_]:
    if not has_classes:
        raise ValueError(f"{path}: its detections have no class to choose by")
    present = np.unique(given).tolist()
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise ValueError(f"{path}: no detection of class {missing[0]}; there are {', '.join(map(str, present))}")
    return np.isin(given, list(wanted))


def _with_embeddings(detections: Detections, path: Path, rows_path: Path) -> Detections:
    """The detections with the embeddings of a file, row by row."""
    array = _read_array(path)
    if array.ndim != 2 or len(array) != len(detections):
        expected = f"({len(detections)}, D), a row for each of {rows_path}"
        raise ValueError(f"{path}: expected an array {expected}, got {array.shape}")
    try:
        return Detections(detections.xyxy, detections.scores, array, detections.classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_array(path: Path) -> NDArray[Any]:
    """The one array of a `.npy` or `.npz` file; nothing in it is run."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as arrays:
            if len(arrays.files) != 1:
                raise ValueError(f"expected one array, got {len(arrays.files)}: {', '.join(arrays.files)}")
            return np.asarray(arrays[arrays.files[0]])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npy or .npz file of numbers: {error}") from None
