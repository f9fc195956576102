"""What a run over one input leaves behind, and where: the text file, the film, and what the summary counts."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tracker.draw import TrackDrawer
from tracker.files import replacing
from tracker.mot import MotWriter
from tracker.types import FrameResult
from tracker.video import Frame
from tracker.writer import VideoWriter

_RESULT = "another result"


class Output:
    """Writes the results of consecutive frames, and counts them.

    No file is opened before the first result, so that what fails earlier leaves older files as they are.

    Attributes:
        text: the MOTChallenge file, None for none.
        film: the video with boxes, ids and trails, None for none.
        size: (width, height) of the frames in pixels; None where there are no pictures.
        frame_rate: frames per second.
        with_classes: whether classes are written and drawn, too.
        frames: number of results so far.
        boxes: number of boxes in them.
        ids: identities in them.
        last_frame: frame number of the last one, 0 before the first.

    Args:
        text: see the attributes; so are the others.
        film: needs `size`.
        size: where given, every frame is drawn on, be it filmed or not.
        frame_rate: see the attributes.
        with_classes: see the attributes.
    """

    def __init__(
        self,
        text: Path | None,
        film: Path | None = None,
        size: tuple[int, int] | None = None,
        frame_rate: float = 30.0,
        with_classes: bool = False,
    ) -> None:
        self.text, self.film, self.size = text, film, size
        self.frames, self.boxes, self.last_frame = 0, 0, 0
        self.ids: set[int] = set()
        self.frame_rate, self.with_classes = frame_rate, with_classes
        self._drawer: TrackDrawer | None = None
        self._rows: MotWriter | None = None
        self._video: VideoWriter | None = None
        self._first = 1
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Time spent writing, drawing and encoding so far."""
        return self._seconds + (self._video.seconds if self._video else 0.0)

    def add(self, frame: Frame | None, result: FrameResult) -> None:
        """Take the next frame (H, W, 3) uint8 BGR, drawn on in place, and its result.

        The frame must not be changed afterwards; None where there are no pictures.
        """
        if self.frames == 0:
            self._first = result.frame
            self._open()
        began = time.perf_counter()
        if self._rows:
            self._rows.write(result)
        if self._drawer and frame is not None:
            self._drawer.draw(frame, result)
        self.frames += 1
        self.boxes += len(result)
        self.ids.update(result.track_ids.tolist())
        self.last_frame = result.frame
        self._seconds += time.perf_counter() - began
        if self._video and frame is not None:
            self._video.write(frame, result.frame - self._first)  # its own thread takes the time

    def _open(self) -> None:
        if self.text:
            self._rows = MotWriter(self.text, self.with_classes)
        if self.size:
            self._drawer = TrackDrawer(self.size, self.frame_rate, with_classes=self.with_classes)
        if self.size and self.film:
            self._video = VideoWriter(self.film, self.frame_rate, self.size)

    def close(self) -> None:
        """Finish both files; raises what went wrong with the film unless `add` already did."""
        if self._rows:
            self._rows.close()
        if self._video:
            self._video.close()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def rewritten(output: Output, results: Iterable[FrameResult]) -> Iterator[Output]:
    """Write an output's text file anew, beside its place; the new one takes it where the block succeeds.

    Args:
        output: with a text, closed.
        results: of every frame, at least one.

    Yields:
        What was written, closed, for what it counted.

    Raises:
        OSError: the file cannot be written; the older one is still there.
    """
    assert output.text
    with replacing(output.text) as part:
        with Output(part, frame_rate=output.frame_rate, with_classes=output.with_classes) as made:
            for result in results:
                made.add(None, result)
        made.text = output.text
        yield made


def choose_places(
    folders: Sequence[Path], names: Sequence[str], film: bool, taken: dict[Path, str]
) -> list[tuple[Path, Path | None]]:
    """The text file and the film of several inputs; creates their folders.

    Args:
        folders: of each input's results.
        names: of each input; inputs of one name in one folder get `name`, `name-2` and so on.
        film: whether there is to be one.
        taken: see `claim`.

    Raises:
        ValueError: as `claim`; or a folder cannot be made.
    """
    places = []
    for folder, name in zip(folders, names, strict=True):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be made a folder for results: {str(error.strerror).lower()}") from None
        stems = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        stem = next(stem for stem in stems if taken.get((folder / f"{stem}.txt").resolve()) != _RESULT)
        place = folder / f"{stem}.txt", folder / f"{stem}.tracked.mp4" if film else None
        for path in filter(None, place):
            claim(path, taken)
        places.append(place)
    return places


def claim(path: Path, taken: dict[Path, str]) -> None:
    """Reserve a place for a result.

    Args:
        path: the place.
        taken: what is where, by absolute path; inputs are in it already, and `path` will be.

    Raises:
        ValueError: it is taken, lies in no folder, or cannot be written.
    """
    where = path.resolve()
    if where in taken:
        raise ValueError(f"{path}: the result would overwrite {taken[where]}; choose another place")
    taken[where] = _RESULT
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: cannot be written")
