"""Anything that gives frames: a video file, a camera, a network stream, a folder or glob of images."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from tracker.clock import DEFAULT_FRAME_RATE
from tracker.images import IMAGE_SUFFIXES, ImageSource, list_images, natural_key
from tracker.live import LiveConfig, log_message, open_live
from tracker.mot import read_seqinfo
from tracker.video import Frame, SourceError, VideoSource, check_range, without_secrets

__all__ = [
    "CameraSource",
    "EveryNth",
    "Source",
    "SourceError",
    "expand",
    "is_recording",
    "open_source",
    "recording_name",
]

# What a glob takes for a video; a video that is named itself may end as it likes.
_VIDEO_SUFFIXES = {".3gp", ".avi", ".dav", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov"}
_VIDEO_SUFFIXES |= {".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
# How a film that `tools/track.py` made ends; one that lies among the videos is no input.
_RESULT_SUFFIX = ".tracked.mp4"


class Source(Protocol):
    """What the pipeline needs of a source; `VideoSource` describes the attributes."""

    location: str
    name: str
    frame_rate: float | None
    size: tuple[int, int]
    frame_count: int | None
    first_frame: int
    live: bool
    timestamp: float | None

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR, once; `timestamp` is that of the frame yielded last."""

    def stop(self) -> None:
        """Make an iteration in another thread end soon, should it be waiting."""

    def close(self) -> None:
        """Release what the source holds."""


def open_source(
    source: str | int | Path,
    start: int | None = None,
    end: int | None = None,
    live: LiveConfig | None = None,
    on_message: Callable[[str], None] = log_message,
) -> Source:
    """Open what a user names as the input.

    Args:
        source: a video file; a camera index (a number, or a string of digits); an address such as
            `rtsp://host/path`; a folder of images, or a MOTChallenge sequence folder with its `seqinfo.ini`; a
            glob of images such as `frames/*.jpg`.
        start: 1-based number of the first frame to give, 1 by default.
        end: number of the last one, to the end by default.
        live: for a camera or a live stream: what to do when it breaks off; None is `LiveConfig()`, which tries again
            for a minute.
        on_message: told, a line each time, what happens then; from the thread that iterates. Logs by default.

    Raises:
        FileNotFoundError: no such file or folder.
        SourceError: it cannot be read; further errors of this kind can come while iterating.
        ValueError: an impossible `start` and `end`.
    """
    text = str(source)
    if not text:
        raise ValueError("source: expected a file, camera, address or folder, got nothing")
    if isinstance(source, int) or text.isdecimal():
        return open_live(partial(CameraSource, int(text)), f"camera {int(text)}", start, end, live, on_message)
    if "://" in text:
        return open_live(partial(VideoSource, text), without_secrets(text), start, end, live, on_message)
    path = Path(text)
    if path.is_dir():
        return _open_folder(path, start, end)
    if path.exists():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return ImageSource([path], path.stem, None, start, end)
        return VideoSource(path, start, end)
    if glob.has_magic(text):
        images = [p for p in map(Path, glob.glob(text)) if p.suffix.lower() in IMAGE_SUFFIXES]  # noqa: PTH207
        if not images:
            raise SourceError(f"{text}: no image matches")
        images.sort(key=natural_key)
        return ImageSource(images, _folder_name(images[0].parent), None, start, end)
    raise FileNotFoundError(f"{path}: no such file or folder")


def expand(given: Sequence[str]) -> list[str]:
    """The inputs that a user means, one string each for `open_source`.

    A glob of images is one input, as it is. Of any other glob each video is one, and each folder that holds images, in
    natural order; films that `tools/track.py` made are none.

    Raises:
        SourceError: nothing fits a glob, or images and videos do.
    """
    inputs = []
    for text in given:
        if text.isdecimal() or "://" in text or not glob.has_magic(text) or Path(text).exists():
            inputs.append(text)
            continue
        matches = sorted(map(Path, glob.glob(text)), key=natural_key)  # noqa: PTH207
        images = [path for path in matches if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        videos = [path for path in matches if _is_video(path)]
        if images and any(path.is_file() for path in videos):
            raise SourceError(f"{text}: matches images and videos; expected one kind, such as *{videos[0].suffix}")
        if not images and not videos:
            raise SourceError(f"{text}: no image matches, and no video")
        inputs += [text] if images else map(str, videos)
    return inputs


def _is_video(path: Path) -> bool:
    """Whether a match of a glob is a video, or a folder of images."""
    if path.is_dir():
        return (path / "seqinfo.ini").is_file() or bool(list_images(path))
    return path.suffix.lower() in _VIDEO_SUFFIXES and not path.name.endswith(_RESULT_SUFFIX)


def is_recording(source: str) -> bool:
    """Whether an input is on disk, not a camera or an address."""
    return not source.isdecimal() and "://" not in source


def recording_name(source: str) -> str:
    """The name that a recording will have when it is open, without opening it."""
    path = Path(source)
    if path.is_dir():
        return _folder_name(path)
    if path.exists() or not glob.has_magic(source):
        return path.stem
    return _folder_name(Path(next(glob.iglob(source))).parent)  # noqa: PTH207


def _open_folder(folder: Path, start: int | None, end: int | None) -> Source:
    """A folder of images, or a sequence folder whose `seqinfo.ini` names the folder of images."""
    frame_rate = None
    name = _folder_name(folder)
    for info in (folder / "seqinfo.ini", folder.parent / "seqinfo.ini"):
        if info.is_file():
            sequence = read_seqinfo(info)
            inside = info.parent == folder
            if inside or sequence.image_dir.resolve() == folder.resolve():
                frame_rate = sequence.frame_rate
                folder = sequence.image_dir if inside else folder
                break
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, though {folder.parent / 'seqinfo.ini'} names it")
    images = list_images(folder)
    if not images:
        raise SourceError(f"{folder}: no images in this folder (looked for {' '.join(IMAGE_SUFFIXES)})")
    return ImageSource(images, name, frame_rate, start, end)


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "img1" and folder.parent.name else folder.name or "images"


class EveryNth:
    """Every n-th frame of a recorded source, from its first one on; the attributes are those of `VideoSource`.

    Attributes:
        frame_rate: of the frames given; where the source does not say, as if it had the default one.

    Args:
        source: an open source; closed with this one.
        every: n, at least 1.
        last_frame: number of the last frame that `source` gives, where it was opened with an end.

    Raises:
        ValueError: `every` is below 1, or `source` is live.
    """

    live = False

    def __init__(self, source: Source, every: int, last_frame: int | None = None) -> None:
        if source.live:
            raise ValueError(f"{source.location}: expected a recording, got a live source")
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        self.location, self.name, self.size = source.location, source.name, source.size
        self.frame_rate: float = (source.frame_rate or DEFAULT_FRAME_RATE) / every
        self.frame_count: int | None = None
        if source.frame_count:
            last = min(source.frame_count, last_frame or source.frame_count)
            self.frame_count = max(-(-(last - source.first_frame + 1) // every), 0)
        self.first_frame = 1
        self.timestamp: float | None = None
        self._source, self.every = source, every

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR, counted from 1 as if there were no others."""
        for number, frame in enumerate(self._source):
            if number % self.every == 0:
                self.timestamp = self._source.timestamp
                yield frame

    def stop(self) -> None:
        """Make an iteration in another thread end soon."""
        self._source.stop()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class CameraSource:
    """Frames of a camera of this machine; the attributes are those of `VideoSource`.

    Raises:
        SourceError: no such camera, or (while iterating) it stopped giving frames.
        ValueError: an impossible `start` and `end`.
    """

    live = True
    frame_count: int | None = None

    def __init__(self, index: int, start: int | None = None, end: int | None = None) -> None:
        self.location = f"camera {index}"
        self.name = f"camera{index}"
        self.first_frame, self._last_frame = check_range(start, end)
        self._capture = cv2.VideoCapture(index)
        frame = self._capture.read()[1] if self._capture.isOpened() else None
        if frame is None:
            self._capture.release()
            raise SourceError(f"{self.location}: cannot be opened; is it connected, and free?")
        self.size: tuple[int, int] = (frame.shape[1], frame.shape[0])
        self.frame_rate: float | None = self._capture.get(cv2.CAP_PROP_FPS) or None
        self.timestamp: float | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR until the wanted end."""
        number = 0
        while number != self._last_frame and not self._stopped:
            frame = self._capture.read()[1]
            self.timestamp = time.monotonic()
            if frame is None:
                raise SourceError(f"{self.location}: stopped at frame {number}: no frame arrived")
            number += 1
            if number >= self.first_frame:
                yield np.asarray(frame, np.uint8)

    def stop(self) -> None:
        """Make an iteration in another thread end with the frame that it waits for."""
        self._stopped = True

    def close(self) -> None:
        """Free the camera."""
        self._capture.release()

    def __enter__(self) -> CameraSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
