"""Frames from a folder or a glob of images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from tracker.video import Frame, SourceError, check_range

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# How a whole file of these formats ends; decoders fill the missing part of a cut one with grey.
_ENDINGS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key that puts `2.jpg` before `10.jpg`."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=natural_key)


def read_image(path: Path) -> Frame:
    """An image as (H, W, 3) uint8 BGR, turned upright by its EXIF orientation.

    Raises:
        SourceError: not an image, or cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    for start, end in _ENDINGS:
        if data.startswith(start) and end not in data[-4096:]:
            raise SourceError(f"{path}: the image is cut short")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise SourceError(f"{path}: not a readable image" if data else f"{path}: the file is empty")
    return np.asarray(image, np.uint8)


class ImageSource:
    """Frames from image files, all of one size; the attributes are those of `VideoSource`.

    Raises:
        SourceError: no images, `start` behind the last one, or (while iterating) an unreadable image or one of
            another size.
        ValueError: an impossible `start` and `end`.
    """

    live = False
    timestamp: float | None = None  # a picture does not tell when in a video it was taken

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        frame_rate: float | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        self.name = name
        self.location = str(paths[0].parent) if paths else name
        self.frame_rate = frame_rate
        self.first_frame, last = check_range(start, end)
        if not paths:
            raise SourceError(f"{name}: no images")
        if self.first_frame > len(paths):
            raise SourceError(f"{self.location}: start frame {self.first_frame} lies behind the last, {len(paths)}")
        self.frame_count: int | None = len(paths)
        self._paths = paths[self.first_frame - 1 : last]
        self._head: Frame | None = read_image(self._paths[0])
        self.size: tuple[int, int] = (self._head.shape[1], self._head.shape[0])

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR."""
        for path in self._paths:
            image = read_image(path) if self._head is None else self._head
            self._head = None
            got = (image.shape[1], image.shape[0])
            if got != self.size:
                raise SourceError(
                    f"{path}: expected {self.size[0]}x{self.size[1]} pixels like {self._paths[0].name}, "
                    f"got {got[0]}x{got[1]}"
                )
            yield image

    def stop(self) -> None:
        """Nothing to end: an image never keeps anyone waiting."""

    def close(self) -> None:
        """Nothing stays open between images."""

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
