"""Many recordings, each tracked by itself: which are finished, and where a result lies until it is whole.

Beside the text of each recording stands a record, `<name>.done.json`, which says what the results were made from: the
input's size and time, all settings, the weights. It is written last. A recording whose record says what would be said
today, and whose results are still those, is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracker.console import one_line
from tracker.files import write_text

Track = Callable[[str, Path], tuple[dict[str, Any], BaseException | None]]
"""Tracks a recording into an empty folder; returns the summary, and what ended it early."""

FINISHED, TRACKED, FAILED = "finished before", "tracked", "failed"


@dataclass(frozen=True)
class Job:
    """One recording.

    Attributes:
        index: its place among all.
        video: absolute path of a video or of a folder of images, or an absolute glob of images.
        text: where the MOTChallenge file goes.
        film: where the video with boxes goes, None for none.
        origin: what the results are made from, as JSON has it.
    """

    index: int
    video: str
    text: Path
    film: Path | None
    origin: Mapping[str, Any]

    @property
    def record(self) -> Path:
        """The file that says that the results are whole."""
        return self.text.with_suffix(".done.json")

    def finished(self) -> dict[str, Any] | None:
        """The summary of the results that are there; None where they are not, or are made from something else."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            if record["origin"] == self.origin and self._marks().items() <= record["results"].items():
                return dict(record["summary"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # whatever is wrong with the record or the results, they are made anew
        return None

    def scratch(self, attempt: int) -> Path:
        """The folder, beside the text, in which an attempt writes."""
        return self.text.with_name(f".{self.text.stem}.part{attempt}")

    def clear(self) -> None:
        """Remove what attempts left behind that did not end."""
        name = glob.escape(self.text.stem)
        for left in self.text.parent.glob(f".{name}.part[0-9]"):  # not `*`: a recording may be named `a.part2`
            shutil.rmtree(left, ignore_errors=True)

    def publish(self, scratch: Path, summary: dict[str, Any] | None) -> None:
        """Move the results to their places; `summary` makes them finished, None leaves them without a record."""
        self.record.unlink(missing_ok=True)  # first, so that it never stands beside results of two runs
        moves = ((".tracked.mp4", self.film), (".txt", self.text))
        for ending, place in moves:
            for made in scratch.glob(f"*{ending}"):  # one at most; its name may differ where two inputs share one
                assert place
                made.replace(place)
        if summary is not None:
            record = {"origin": self.origin, "results": self._marks(), "summary": summary}
            write_text(self.record, json.dumps(record, indent=2) + "\n")

    def _marks(self) -> dict[str, Any]:
        """What changes when somebody changes the results: the text's digest, and the film's size, as it may be long."""
        film = {self.film.name: self.film.stat().st_size} if self.film else {}
        return {self.text.name: sha256(self.text), **film}


@dataclass(frozen=True)
class Outcome:
    """What became of a recording.

    Attributes:
        state: `FINISHED`, `TRACKED` or `FAILED`.
        summary: counts of the results, empty where there are none.
        error: what went wrong, in one line.
        trace: where, as Python prints it.
        passing: whether it may go well another time: a process was killed, memory ran out.
        attempts: how often it was tried.
    """

    state: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    trace: str = ""
    passing: bool = False
    attempts: int = 1


def make(track: Track, job: Job, attempt: int) -> Outcome:
    """Track a recording in this process, and put the results in their places when they are whole.

    Where the input breaks off, what comes before is put there, too, as a run without an archive leaves it; it counts as
    failed.
    """
    scratch = job.scratch(attempt)
    job.clear()
    try:
        scratch.mkdir()
        summary, error = track(job.video, scratch)
        summary["outputs"] = [str(path) for path in (job.text, job.film) if path] if summary["frames"] else []
        if error is None or _is_input(job, error):
            job.publish(scratch, summary if error is None else None)
        if error is None:
            return Outcome(TRACKED, summary)
    except Exception as raised:
        summary, error = {}, raised
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    trace = "".join(traceback.format_exception(error))
    return Outcome(FAILED, summary, _name(job, error), trace, not _is_input(job, error))


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Keep a folder for the results of this process; two would clear away each other's work. No file is left.

    Raises:
        ValueError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run with --ray writes its results here") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def origin_of(video: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What results are made from, in terms that JSON gives back unchanged.

    Args:
        video: see `Job`.
        settings: all that decides the results but the input; dataclasses and paths are fine.

    Raises:
        OSError: there is no such input.
    """
    pattern = glob.has_magic(video) and not Path(video).exists()
    files = sorted(map(Path, glob.glob(video))) if pattern else [Path(video)]  # noqa: PTH207
    if Path(video).is_dir():
        files = sorted(path for path in Path(video).rglob("*") if path.is_file())
    states = [path.stat() for path in files]
    facts = {
        "name": Path(video).name,
        "files": len(files),
        "bytes": sum(state.st_size for state in states),
        "modified_ns": max((state.st_mtime_ns for state in states), default=0),
    }
    plain = {key: dataclasses.asdict(s) if dataclasses.is_dataclass(s) else s for key, s in settings.items()}  # type: ignore[arg-type]
    return dict(json.loads(json.dumps({"input": facts, **plain}, default=str)))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_input(job: Job, error: BaseException | None) -> bool:
    """Whether an error lies in the input or the settings, and will be there every time."""
    if isinstance(error, FileNotFoundError):
        return not str(error.filename).startswith(str(job.scratch(0))[:-1])  # whose folder somebody else removed
    return isinstance(error, ValueError)


def _name(job: Job, error: BaseException | None) -> str:
    message = one_line(error) if error else ""
    return message if job.video in message else f"{job.video}: {message}"
