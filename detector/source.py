"""Images with what is known of the people in them, whatever layout they were read from."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.losses import NO_IDENTITY

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
CROPS_PER_CANVAS = 10
PERSON_CLASS = 0
MAX_IDENTITY = 2**53
"""Labels are float64, which hold whole numbers up to here."""
MAX_SIDE = 10.0
"""A person cut off by the image is larger than it at most by this factor."""
_EXIF_ORIENTATION, _ON_ITS_SIDE = 274, {5, 6, 7, 8}


@dataclass
class Source:
    """Images of one layout with their labels.

    Attributes:
        name: the text it was opened with.
        weight: showings of each image in an epoch.
        images: paths of the images.
        labels: per image (n, 6) float64: class (0 person, −1 region to be ignored), identity (−1 unknown), cx, cy, w, h
            normalised.
        crops: True where an image is one person, pasted on canvases, three to ten at a time.
        teacher: per image (n, T) float16 teacher embeddings, unit rows or zero; empty where there is no teacher.
        sizes: (width, height) in pixels by image, as the labels state it; only for layouts that do.
        missing_labels: label files that do not exist; their images show nobody.
        missing_images: images that labels speak of and that do not exist; they are left out.
        dropped: what was left out, reason -> count.
        faults: what is wrong, `path:line: what`; empty for a source that may be trained on.
    """

    name: str
    weight: float = 1.0
    images: list[Path] = field(default_factory=list)
    labels: list[NDArray[np.float64]] = field(default_factory=list)
    crops: bool = False
    teacher: list[NDArray[np.float16]] = field(default_factory=list)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    missing_labels: list[Path] = field(default_factory=list)
    missing_images: list[Path] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Samples an epoch of weight one draws."""
        return -(-len(self.images) // CROPS_PER_CANVAS) if self.crops else len(self.images)

    def add(self, image: Path, rows: Sequence[Sequence[float]]) -> None:
        """Append an image with its label rows."""
        self.images.append(image)
        self.labels.append(np.array(rows, np.float64).reshape(-1, 6))

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that is left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def usable(self, row: Sequence[float]) -> bool:
        """Whether a finite label row is a box that shows in its image; counts it where it is not."""
        cx, cy, w, h = row[2:]
        if w <= 0 or h <= 0:
            self.drop("boxes of zero or negative size")
        elif max(w, h) > MAX_SIDE:
            self.drop(f"boxes larger than {MAX_SIDE:g} images")
        elif abs(cx - 0.5) >= (w + 1) / 2 or abs(cy - 0.5) >= (h + 1) / 2:
            self.drop("boxes outside the image")
        else:
            return True
        return False


def number_identities(sources: Sequence[Source]) -> int:
    """Renumber the identities of all sources to 0, 1, 2, …, none shared between sources; returns their number."""
    count = 0
    for source in sources:
        for rows in source.labels:
            rows[rows[:, 0] != PERSON_CLASS, 1] = NO_IDENTITY  # a region to be ignored is nobody
        known = np.unique(np.concatenate([rows[:, 1] for rows in source.labels]))
        known = known[known >= 0]
        for rows in source.labels:
            labelled = rows[:, 1] >= 0
            rows[labelled, 1] = count + np.searchsorted(known, rows[labelled, 1])
        count += len(known)
    return count


def as_identity(value: float) -> int:
    """An identity as files write it.

    Raises:
        ValueError: it is not a whole number, −1 (unknown) or more.
    """
    if value != value // 1 or not NO_IDENTITY <= value <= MAX_IDENTITY:
        raise ValueError(f"expected a whole identity, −1 or more, got {value}")
    return int(value)


def normalised(tlwh: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A cxcywh box divided by the image's (width, height), from pixels."""
    left, top, w, h = tlwh
    width, height = size
    return (left + w / 2) / width, (top + h / 2) / height, w / width, h / height


def inside(root: Path, name: str) -> Path:
    """The path that a file names below a root, absolute only where it lies there.

    Raises:
        ValueError: it leaves the root.
    """
    absolute = Path(name).is_absolute()
    base = Path(os.path.abspath(root)) if absolute else root  # noqa: PTH100 (links stay links)
    path = base / name
    if not name or "\0" in name or ".." in re.split(r"[/\\]", name) or not path.is_relative_to(base):
        raise ValueError(f"expected a path below {root}, got {name!r}")
    return path


def read_text(path: Path) -> str:
    """A whole text file.

    Raises:
        ValueError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error


def other_shape(path: Path, stated: tuple[int, int], size: tuple[int, int]) -> str:
    """A fault, where labels stated for one (width, height) do not fit an image of another shape; else ''."""
    if abs(stated[0] * size[1] - stated[1] * size[0]) <= max(*stated, *size):
        return ""
    return f"{path}: its labels are for an image of {stated}, it has {size}"


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, in order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header, turned as `read_image` turns it.

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _ON_ITS_SIDE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image") from error
    return (height, width) if turned else (width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR.

    Raises:
        ValueError: the file is not a whole image.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not data:
        raise ValueError(f"{path}: {'empty file' if path.is_file() else 'no such image'}")
    if cut := cut_short(data):
        raise ValueError(f"{path}: {cut}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not a readable image")
    return np.asarray(image, np.uint8)


def cut_short(data: bytes) -> str:
    """Why the bytes of an image are not whole, '' where they seem so; OpenCV reads what is left, the rest is grey.

    A JPEG's scan (from FF DA) is followed by an end marker (FF D9), which cannot occur inside of it.
    """
    if data.startswith(b"\xff\xd8"):
        return "" if data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") else "cut short: a JPEG without its end"
    if data.startswith(b"\x89PNG"):
        return "" if b"IEND" in data[-1024:] else "cut short: a PNG without its end"
    if data.startswith((b"RIFF", b"BM")):
        start, extra = (4, 8) if data.startswith(b"RIFF") else (2, 0)
        stated = int.from_bytes(data[start : start + 4], "little") + extra
        return "" if len(data) >= stated else f"cut short: {len(data)} of {stated} bytes"
    return ""
