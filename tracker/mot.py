"""The MOTChallenge text format, in and out, and the description of its sequences.

A row is `frame,id,left,top,width,height,score,class,visibility` (ground truth) or
`frame,id,left,top,width,height,score,-1,-1,-1` (results and detections; the first -1 is the class where there is more
than one): frames and ids from 1, pixels of the original image.
"""

from __future__ import annotations

import configparser
import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import xyxy_to_tlwh
from tracker.types import LARGEST_COORDINATE, FrameResult, IntArray

NO_CLASS = -1
"""Stands in the class column where no class is given."""


class MotWriter:
    """Appends the result of each frame to a MOTChallenge file as soon as it is known.

    Each frame's rows reach the operating system in one piece, so a program that is killed leaves a file that is
    complete up to its last frame, and a disk that fills up leaves no half row.

    Args:
        path: the file; what it held before is lost.
        with_classes: put each person's class in the eighth column. Else there is -1, "not given", as the benchmarks
            of one class expect it: TrackEval's refuses results with a class above 1.

    Raises:
        OSError: the file cannot be created or written; the error names it.
    """

    def __init__(self, path: str | Path, with_classes: bool = False) -> None:
        self.path = Path(path)
        self._with_classes = with_classes
        self._file = self.path.open("wb", buffering=0)
        self._size = 0

    def write(self, result: FrameResult) -> None:
        """Append one frame: one row a person, none where the frame is empty."""
        tlwh = xyxy_to_tlwh(result.xyxy.astype(np.float64))
        classes = result.classes.tolist() if self._with_classes else [NO_CLASS] * len(result)
        rows = "".join(
            f"{result.frame},{track_id},{left:.2f},{top:.2f},{width:.2f},{height:.2f},{score:.4f},{class_id},-1,-1\n"
            for track_id, (left, top, width, height), score, class_id in zip(
                result.track_ids.tolist(), tlwh.tolist(), result.scores.tolist(), classes, strict=True
            )
        ).encode()
        if not rows:
            return
        rest = memoryview(rows)
        try:
            while rest:  # a disk that is nearly full takes a part, and gives its reason the next time
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a device has no length to cut; the error below tells the rest
                self._file.truncate(self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._size += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class MotRows:
    """The rows of a MOTChallenge file, in the file's order.

    Attributes:
        frames: (R,) int64 from 1.
        track_ids: (R,) int64; -1 in files of detections.
        tlwh: (R, 4) float64 left, top, width, height in pixels.
        scores: (R,) float64; in ground truth 0 marks a row to be ignored. 1 where the column is missing.
        classes: (R,) int64; -1 where not given, or where columns 8 to 10 are a place in the world (MOT15).
        visibility: (R,) float64 in [0, 1]; -1 where not given.
    """

    frames: IntArray
    track_ids: IntArray
    tlwh: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: IntArray
    visibility: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)


_COLUMNS = ("frame", "id", "left", "top", "width", "height", "score", "class", "visibility", "tenth")


def read_mot(path: str | Path) -> MotRows:
    """Read a MOTChallenge file: results, ground truth or detections, 6 to 10 columns; empty lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: with `path:line`, a value that is not a finite number, a wrong number of fields, a frame, id or
            class that is not a whole number, a frame below 1, a negative width or height.
    """
    path = Path(path)
    values: list[list[float]] = []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                values.append(_parse_row(line, f"{path}:{number}"))
    table = np.array(values, dtype=np.float64).reshape(-1, len(_COLUMNS))
    return MotRows(
        frames=table[:, 0].astype(np.int64),
        track_ids=table[:, 1].astype(np.int64),
        tlwh=np.ascontiguousarray(table[:, 2:6]),
        scores=table[:, 6].copy(),
        classes=table[:, 7].astype(np.int64),
        visibility=table[:, 8].copy(),
    )


def _parse_row(line: str, where: str) -> list[float]:
    fields = line.split(",") if "," in line else line.split()
    if not 6 <= len(fields) <= len(_COLUMNS):
        raise ValueError(f"{where}: expected 6 to 10 fields (frame,id,left,top,width,height,...), got {len(fields)}")
    row = []
    for name, field in zip(_COLUMNS, fields, strict=False):
        try:
            value = float(field)
        except ValueError:
            raise ValueError(f"{where}: {name}: expected a number, got {field.strip()!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name}: expected a finite number, got {field.strip()!r}")
        if abs(value) > LARGEST_COORDINATE:
            raise ValueError(f"{where}: {name}: expected a number up to {LARGEST_COORDINATE:g}, got {field.strip()}")
        row.append(value)
    row += [1.0, NO_CLASS, -1.0, -1.0][len(row) - 6 :]
    if row[9] != -1:  # x, y and z in the world, no class
        row[7:] = [NO_CLASS, -1.0, -1.0]
    for column in (0, 1, 7):
        if row[column] != int(row[column]):
            raise ValueError(f"{where}: {_COLUMNS[column]}: expected a whole number, got {row[column]}")
    if row[0] < 1:
        raise ValueError(f"{where}: frame: expected a number from 1, got {int(row[0])}")
    for name, value in (("width", row[4]), ("height", row[5])):
        if value < 0:
            raise ValueError(f"{where}: {name}: expected a size of at least 0, got {value:g}")
    return row


@dataclass(frozen=True)
class MotSequence:
    """A MOTChallenge sequence as its `seqinfo.ini` describes it.

    Attributes:
        name: such as `MOT17-02-FRCNN`.
        frame_rate: frames per second.
        length: number of frames.
        image_dir: the folder of images; it need not exist.
    """

    name: str
    frame_rate: float
    length: int
    image_dir: Path


def read_seqinfo(path: str | Path) -> MotSequence:
    """Read a sequence's `seqinfo.ini`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: with the path, a key that is missing or has no usable value.
    """
    path = Path(path)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8", errors="replace"))
        section = parser["Sequence"]
    except (configparser.Error, KeyError) as error:
        reason = "no section [Sequence]" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"{path}: not a sequence description: {reason}") from None

    def positive(key: str) -> float:
        text = section.get(key, "")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{path}: {key}: expected a number above 0, got {text!r}")
        return value

    return MotSequence(
        name=section.get("name", path.resolve().parent.name),
        frame_rate=positive("frameRate"),
        length=int(positive("seqLength")),
        image_dir=path.parent / section.get("imDir", "img1"),
    )
