"""The MOTChallenge text format, in and out, and the description of its sequences.

A row is `frame,id,left,top,width,height,score,class,visibility` (ground truth) or
`frame,id,left,top,width,height,score,-1,-1,-1` (results and detections; the first -1 is the class where there is more
than one): frames and ids from 1, pixels of the original image.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import xyxy_to_tlwh
from tracker.types import LARGEST_COORDINATE, FrameResult, IntArray

NO_CLASS = -1
"""Stands in the class column where no class is given."""

MOST_FRAMES = 10_000_000
"""A day at 100 frames per second: a number above it is none of a frame."""


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
# What stands for the seventh column and those behind it where they are missing.
_MISSING = [1.0, float(NO_CLASS), -1.0, -1.0]


def read_mot(path: str | Path, world: bool = True) -> MotRows:
    """Read a MOTChallenge file: results, ground truth or detections, 6 to 10 columns; empty lines are skipped.

    Args:
        path: the file.
        world: a row of ten columns whose tenth is not -1 ends with a place in the world, as in MOT15, and has no class;
            False: the eighth column is the class in any case.

    Raises:
        FileNotFoundError: no such file.
        ValueError: with `path:line`, a value that is not a finite number, a wrong number of fields, a frame, id or
            class that is not a whole number, a frame below 1 or above `MOST_FRAMES`, a negative width or height.
    """
    path = Path(path)
    table = _plain_table(path.read_bytes(), world)
    if table is None:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = list(_filled(file))
            values = [_parse_row(line, f"{path}:{number}", world) for number, line in lines]
        if lines and not lines[-1][1].endswith("\n") and lines[-1][1].count(",") < lines[0][1].count(","):
            raise ValueError(f"{path}:{lines[-1][0]}: the file is cut here: expected as many fields as in other lines")
        table = np.array(values, dtype=np.float64).reshape(-1, len(_COLUMNS))
    return MotRows(
        frames=table[:, 0].astype(np.int64),
        track_ids=table[:, 1].astype(np.int64),
        tlwh=np.ascontiguousarray(table[:, 2:6]),
        scores=table[:, 6].copy(),
        classes=table[:, 7].astype(np.int64),
        visibility=table[:, 8].copy(),
    )


def line_of(path: str | Path, row: int) -> int:
    """Line, from 1, of a row, from 0, of what `read_mot` returned for a file: they differ by the empty lines."""
    with Path(path).open(encoding="utf-8-sig", errors="replace") as file:
        return next(itertools.islice(_filled(file), row, None))[0]


def _filled(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


@functools.lru_cache(maxsize=2)  # MOT17 has each ground truth three times
def _plain_table(text: bytes, world: bool) -> NDArray[np.float64] | None:
    """The ten columns (R, 10) of a file with nothing unusual, read all at once; None for any other, and for faults."""
    if not text.strip():
        return None
    try:
        table = np.loadtxt(io.StringIO(text.decode()), delimiter=",", comments=None, ndmin=2)
    except ValueError:
        return None
    count, width = table.shape
    if not (count and 6 <= width <= len(_COLUMNS)):
        return None
    table = np.column_stack([table, np.tile(_MISSING[width - 6 :], (count, 1))])
    if world:
        table[table[:, 9] != -1, 7:] = _MISSING[1:]
    whole = table[:, [0, 1, 7]]
    usual = (
        bool((np.abs(table) <= LARGEST_COORDINATE).all())  # and finite
        and bool((whole == np.trunc(whole)).all())
        and bool(((table[:, 0] >= 1) & (table[:, 0] <= MOST_FRAMES)).all())
        and bool((table[:, 4:6] >= 0).all())
    )
    return table if usual else None


def _parse_row(line: str, where: str, world: bool) -> list[float]:
    fields = line.split(",") if "," in line else line.split()
    if not 6 <= len(fields) <= len(_COLUMNS):
        raise ValueError(f"{where}: expected 6 to 10 fields (frame,id,left,top,width,height,...), got {len(fields)}")
    row = []
    for name, field in zip(_COLUMNS, fields, strict=False):
        try:
            value = float(field.replace("_", "?"))  # Python's own numbers may have underscores
        except ValueError:
            raise ValueError(f"{where}: {name}: expected a number, got {field.strip()!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name}: expected a finite number, got {field.strip()!r}")
        if abs(value) > LARGEST_COORDINATE:
            raise ValueError(f"{where}: {name}: expected a number up to {LARGEST_COORDINATE:g}, got {field.strip()}")
        row.append(value)
    row += _MISSING[len(row) - 6 :]
    if world and row[9] != -1:
        row[7:] = _MISSING[1:]
    for column in (0, 1, 7):
        if row[column] != int(row[column]):
            raise ValueError(f"{where}: {_COLUMNS[column]}: expected a whole number, got {row[column]}")
    if not 1 <= row[0] <= MOST_FRAMES:
        expected = "a number from 1" if row[0] < 1 else f"a number up to {MOST_FRAMES:,}"
        raise ValueError(f"{where}: frame: expected {expected}, got {int(row[0])}")
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
        folder: of the sequence.
    """

    name: str
    frame_rate: float
    length: int
    image_dir: Path
    folder: Path


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

    frame_rate, length = positive("frameRate"), positive("seqLength")
    if length != int(length) or length > MOST_FRAMES:
        raise ValueError(f"{path}: seqLength: expected a whole number up to {MOST_FRAMES:,}, got {length:g}")
    return MotSequence(
        name=section.get("name", path.resolve().parent.name),
        frame_rate=frame_rate,
        length=int(length),
        image_dir=path.parent / section.get("imDir", "img1"),
        folder=path.parent,
    )
