"""The files of MOTChallenge: sequences, results, lists of sequences, halves of sequences, archives to hand in."""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tracker.files import replacing
from tracker.images import list_images
from tracker.mot import MotSequence, read_seqinfo
from tracker.preprocessing import Benchmark

Half = Literal["train", "val"]

COMBINED, CLASS_AVERAGED = RESERVED = "COMBINED", "CLASS-AVERAGED"
"""Names of the figures of all sequences together, and of their means over classes."""

# The public detections of MOT17, each with a copy of the same sequences.
_MOT17_COPY = re.compile(r"(MOT17-\d+)-(DPM|FRCNN|SDP)")


@dataclass(frozen=True)
class Task:
    """A result that is to be scored, and against what.

    Attributes:
        name: of the sequence.
        truth: its file of ground truth.
        results: file of the result.
        sequence: its description; None where there is none: it then ends with the last frame that either file names.
        part: first and last frame that are scored; None: all.
        renumbered: whether the result counts frames from the first one that is scored.
        benchmark: whose rules hold; None: see `benchmark_of`.
        class_id: the only class that is scored, without any benchmark's rules; None for the rules.
    """

    name: str
    truth: Path
    results: Path
    sequence: MotSequence | None = None
    part: tuple[int, int] | None = None
    renumbered: bool = False
    benchmark: Benchmark | None = None
    class_id: int | None = None


def find_tasks(
    gt: str | Path, results: str | Path, sequences: Sequence[str] | None = None, need_truth: bool = True
) -> list[Task]:
    """What there is to score.

    Args:
        gt: folder of sequences, each with `gt/gt.txt` and `seqinfo.ini`, or the folder above it with a `train` in it;
            or one sequence; or one file of ground truth.
        results: folder of `<sequence>.txt`, or the folder above it with a `data` in it, as TrackEval has it; or, for
            one sequence, a file.
        sequences: names, or patterns such as `MOT17-*-FRCNN`, of those to score; None: all, and no other result may be
            there.
        need_truth: whether a sequence without ground truth is an error.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an unknown sequence, one without ground truth or result, a faulty `seqinfo.ini`, more pictures than
            the sequence has frames.
    """
    gt, results = Path(gt), Path(results)
    for path in (gt, results):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if gt.is_file():
        return [_pair(gt, results, sequences)]
    folders = find_sequences(gt, sequences)
    if results.is_file():
        if len(folders) != 1:
            names = ", ".join(folder.name for folder in folders)
            raise ValueError(f"{results}: expected a folder with a result for each of {names}, got one file")
        return [_task(folders[0], results, need_truth)]
    data = results / "data"
    if data.is_dir() and not any(results.glob("*.txt")):
        results = data
    known = {folder.name for folder in folders}
    if sequences is None and not _is_sequence(gt):
        unknown = sorted(path for path in results.glob("*.txt") if path.stem not in known)
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown sequence, {gt} has {', '.join(sorted(known))}")
    missing = [name for name in sorted(known) if not (results / f"{name}.txt").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{results / missing[0]}.txt: no such file; expected a result for each of {len(known)} sequences, "
            f"{len(missing)} are missing (an empty file says that nobody was found)"
        )
    return [_task(folder, results / f"{folder.name}.txt", need_truth) for folder in folders]


def find_sequences(root: str | Path, sequences: Sequence[str] | None = None) -> list[Path]:
    """The folders of sequences, sorted by name.

    Args:
        root: as `gt` of `find_tasks`, but for the file.
        sequences: as for `find_tasks`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there are none, or none of that name.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if _is_sequence(root):
        found = [_named(root)]
    else:
        # One that lacks its ground truth or its description is an error later, not a sequence less.
        found = sorted(path for path in root.iterdir() if _is_sequence(path))
        if not found and (root / "train").is_dir():
            return find_sequences(root / "train", sequences)
    for path in found:
        if path.name in RESERVED:
            raise ValueError(f"{path}: expected another name, figures of several sequences have this one")
    if not found:
        raise ValueError(f"{root}: expected folders of sequences with gt/gt.txt and seqinfo.ini, found none")
    if sequences is None:
        return found
    if not sequences or len(set(sequences)) < len(sequences):
        raise ValueError(f"sequences: expected different names, at least one, got {list(sequences)}")
    names = [path.name for path in found]
    for pattern in sequences:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"sequences: expected one of {', '.join(names)} ({root}), got {pattern!r}")
    return [path for path in found if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in sequences)]


def read_seqmap(path: str | Path) -> list[str]:
    """The names in a list of sequences: one a line, the first line may be the heading `name`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: with `path:line`, a name that is none or comes twice; there is none.
    """
    path = Path(path)
    names: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        name = line.strip()
        if not name or (name == "name" and not names):
            continue
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise ValueError(f"{path}:{number}: expected the name of a sequence, got {name!r}")
        if name in names:
            raise ValueError(f"{path}:{number}: {name} comes twice")
        names.append(name)
    if not names:
        raise ValueError(f"{path}: expected names of sequences, one a line, found none")
    return names


def half_of(length: int, half: Half) -> tuple[int, int]:
    """First and last frame of a half of a sequence, as CenterTrack, FairMOT and ByteTrack divide MOT17.

    The first half, for training, has one frame more than half of the frames (rounded down).
    """
    middle = length // 2 + 1
    return (1, min(middle, length)) if half == "train" else (middle + 1, length)


def same_pictures(sequences: Iterable[MotSequence]) -> list[list[MotSequence]]:
    """Groups of sequences with the same pictures: MOT17 has each sequence three times."""
    groups: dict[tuple[str, int], list[MotSequence]] = {}
    for sequence in sequences:
        copy = _MOT17_COPY.fullmatch(sequence.folder.name)
        name = copy[1] if copy else sequence.folder.name
        groups.setdefault((name, sequence.length), []).append(sequence)
    return list(groups.values())


def write_submission(path: str | Path, results: Mapping[str, Path]) -> None:
    """Write the archive that the benchmarks' server takes: `<sequence>.txt` of each sequence, in no folder.

    Args:
        path: the zip file; it is written beside its place, then renamed.
        results: files of results by sequence.
    """
    with (
        replacing(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive,
    ):
        for name, file in results.items():
            archive.write(file, f"{name}.txt")


def _is_sequence(folder: Path) -> bool:
    return (folder / "gt").is_dir() or (folder / "seqinfo.ini").is_file()


def _named(folder: Path) -> Path:
    """A folder by a path that ends with its name, which `.` and `..` do not."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def _task(folder: Path, results: Path, need_truth: bool) -> Task:
    sequence, truth = describe(folder), folder / "gt" / "gt.txt"
    if need_truth and not truth.is_file():
        raise FileNotFoundError(f"{truth}: no such file; there is nothing to score {folder.name} against")
    return Task(folder.name, truth, results, sequence)


def describe(folder: Path) -> MotSequence:
    """What the `seqinfo.ini` of a sequence says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is faulty, or there are more pictures than it says.
    """
    path = folder / "seqinfo.ini"
    sequence = read_seqinfo(path)
    pictures = len(list_images(sequence.image_dir)) if sequence.image_dir.is_dir() else 0
    if pictures > sequence.length:  # a few are enough to look at, but more than there are frames cannot be
        raise ValueError(
            f"{path}: seqLength: expected at least {pictures}, the pictures in {sequence.image_dir}, "
            f"got {sequence.length}"
        )
    return sequence


def _pair(gt: Path, results: Path, sequences: Sequence[str] | None) -> Task:
    """One file of ground truth and one of a result. The sequence's description is used where it lies at its place."""
    if not results.is_file():
        raise ValueError(f"{results}: expected a file of results, as {gt} is one of ground truth")
    name, sequence = results.stem, None
    if gt.resolve().parent.name == "gt":
        folder = _named(gt.parent.parent if gt.parent.name == "gt" else gt.resolve().parent.parent)
        name = folder.name
        sequence = describe(folder) if (folder / "seqinfo.ini").is_file() else None
    task = Task(name, gt, results, sequence)
    if sequences is not None and not any(fnmatch.fnmatchcase(task.name, pattern) for pattern in sequences):
        raise ValueError(f"sequences: expected {task.name} ({gt}), got {', '.join(map(repr, sequences))}")
    return task
