"""Images where they lie, in a folder or in a zip archive that stays packed."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_EXIF_ORIENTATION = 274
# What brings an image upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MOST_BYTES = 256 * 2**20
"""Size up to which a member of an archive is unpacked, in memory: a small archive may hold far more."""


class Folder:
    """Files below a folder, called by their names relative to it, with `/`."""

    STAMP = "time of change"

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str = "") -> Path:
        """Where a file or folder lies, as messages call it."""
        return self.root / name

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        return (self.root / name).exists()

    def files(self, folder: str = "") -> list[str]:
        """The files directly in a folder, sorted; hidden ones are left out.

        Links to nothing, pipes and even folders count where they are called like an image: reading them says so.
        """
        entries = self._entries(folder)
        return sorted(_join(folder, path.name) for path in entries if _is_image(path.name) or not path.is_dir())

    def folders(self) -> list[str]:
        """The folders directly below, sorted; hidden ones are left out."""
        return sorted(path.name for path in self._entries("") if path.is_dir())

    def all_files(self) -> list[str]:
        """The files below, at any depth, sorted; hidden files and folders are left out.

        Links to folders are not followed, since they may lead round.
        """
        names = []
        for place, folders, files in os.walk(self.root):
            folders[:] = filter(_visible, folders)
            names += [(Path(place) / name).relative_to(self.root).as_posix() for name in files if _visible(name)]
        return sorted(names)

    def _entries(self, folder: str) -> list[Path]:
        path = self.root / folder
        return [entry for entry in path.iterdir() if _visible(entry.name)] if path.is_dir() else []

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            ValueError: it cannot be read.
        """
        path = self.path(name)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for whoever writes to it
                raise ValueError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'pipe or device'}")
            return path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error

    def stamp(self, name: str) -> tuple[int, int]:
        """Size in bytes and time of the last change in ns: what tells, without reading, whether a file is the same.

        Raises:
            ValueError: there is no such file.
        """
        try:
            found = self.path(name).stat()
        except OSError as error:
            raise ValueError(f"{self.path(name)}: cannot be read ({error.strerror or error})") from error
        return found.st_size, found.st_mtime_ns

    def below(self, folder: str) -> Folder:
        """The same files, called by their names relative to a folder among them."""
        return Folder(self.root / folder)


class Archive:
    """Files in a zip archive below one of its folders; nothing is unpacked to disk.

    Reading is safe from several threads, and from processes that were forked or got a pickled copy: each process
    opens the archive for itself, when it first reads. A name is only looked up in the archive's table of contents, so
    that none can lead outside.
    """

    STAMP = "checksum"

    def __init__(self, file: Path, folder: str = "") -> None:
        self.file = file
        self.folder = folder
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __reduce__(self) -> tuple[Callable[[Path, str], Archive], tuple[Path, str]]:
        return Archive, (self.file, self.folder)

    def path(self, name: str = "") -> Path:
        """Archive and member, as messages call them."""
        return self.file / self.folder / name

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        parent, _, _ = name.rpartition("/")
        return name in self._contents or name in self._contents.get(parent, ())

    def files(self, folder: str = "") -> list[str]:
        """The files directly in a folder, sorted; hidden ones are left out."""
        return sorted(self._contents.get(folder, ()))

    def folders(self) -> list[str]:
        """The folders directly below, sorted; hidden ones are left out."""
        return sorted(name for name in self._contents if name and "/" not in name)

    def all_files(self) -> list[str]:
        """The files below, at any depth, sorted; hidden files and folders are left out."""
        return sorted(name for names in self._contents.values() for name in names)

    @cached_property
    def _contents(self) -> dict[str, set[str]]:
        """Folder -> files directly in it, all named relative to `self.folder`."""
        contents: dict[str, set[str]] = {"": set()}
        start = _join(self.folder, "")
        for entry in self._zip().namelist():
            name = entry[len(start) :]
            if not entry.startswith(start) or not all(map(_visible, name.rstrip("/").split("/"))):
                continue
            parent, _, last = name.rpartition("/")
            if last:
                contents.setdefault(parent, set()).add(name)
            while parent:
                contents.setdefault(parent, set())
                parent = parent.rpartition("/")[0]
        return contents

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            ValueError: it is not there, is larger than `MOST_BYTES`, or cannot be read whole.
        """
        member = self._member(name)
        if member.file_size > MOST_BYTES:  # of which zipfile unpacks no more than this says
            raise ValueError(
                f"{self.path(name)}: expected at most {MOST_BYTES >> 20} MiB unpacked, "
                f"got {member.file_size / 2**20:,.0f}"
            )
        archive = self._zip()
        try:
            return archive.read(member)
        except Exception as error:  # encrypted, or damaged, of which each way of packing makes errors of its own
            raise ValueError(f"{self.path(name)}: cannot be unpacked ({error})") from error

    def stamp(self, name: str) -> tuple[int, int]:
        """Size in bytes and CRC-32: what tells, without unpacking, whether a member is the same.

        Raises:
            ValueError: there is no such member.
        """
        member = self._member(name)
        return member.file_size, member.CRC

    def below(self, folder: str) -> Archive:
        """The same files, called by their names relative to a folder among them."""
        child = Archive(self.file, _join(self.folder, folder))
        child._opened = self._opened
        return child

    def _member(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._zip().getinfo(_join(self.folder, name))
        except KeyError as error:
            raise ValueError(f"{self.path(name)}: no such file in the archive") from error

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a fork shares the place in the parent's file
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.file)
            except Exception as error:  # whatever a damaged table of contents leads to
                raise ValueError(f"{self.file}: not a readable zip archive ({error})") from error
        return self._opened[1]


Store = Folder | Archive


def open_store(path: Path) -> Store:
    """A folder, a zip archive or a folder inside of one (`a.zip/b`) as a store.

    Raises:
        ValueError: it is neither.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        for parent in path.parents:
            if zipfile.is_zipfile(parent) and Archive(parent).has(folder := path.relative_to(parent).as_posix()):
                return Archive(parent, folder)
        raise ValueError(f"{path}: no such file or folder")
    if not zipfile.is_zipfile(path):
        cut = "; this archive is cut short or no zip at all" if path.suffix.lower() == ".zip" else ""
        raise ValueError(f"{path}: expected a folder, a zip archive or a .csv{cut}")
    return Archive(path)


def read_text(store: Store, name: str) -> str:
    """A whole text file.

    Raises:
        ValueError: it cannot be read, or is no text.
    """
    data = store.read(name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{store.path(name)}: not a text file ({error})") from error


def inside(store: Store, name: str) -> str:
    """The name that a list gives a file, as the store calls it.

    Raises:
        ValueError: it leads out of the store.
    """
    given = PurePosixPath(name.strip().replace("\\", "/"))
    if given.is_absolute() and given.is_relative_to(root := store.path().absolute().as_posix()):
        given = given.relative_to(root)
    if given.is_absolute() or ".." in given.parts or not given.parts or "\0" in name:
        raise ValueError(f"expected a path below {store.path()}, got {name!r}")
    return str(given)


def images_in(store: Store, folder: str = "") -> list[str]:
    """The images directly in a folder, in order of their names."""
    return list(filter(_is_image, store.files(folder)))


def images_below(store: Store) -> list[str]:
    """The images of a store at any depth, in order of their names."""
    return list(filter(_is_image, store.all_files()))


def read_image(store: Store, name: str) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 BGR, turned upright by its EXIF orientation.

    Grey, 1-bit, 16-bit, palette and CMYK images are converted, an alpha channel is left out. Damaged EXIF data are as
    good as none.

    Raises:
        ValueError: the file cannot be read, or is not a whole image; names the file, or archive and member.
    """
    data = store.read(name)
    if not data:
        raise ValueError(f"{store.path(name)}: empty file")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            turn = _UPRIGHT.get(_orientation(opened))
            image = opened if turn is None else opened.transpose(turn)
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.ascontiguousarray(np.asarray(image.convert("RGB"), np.uint8)[..., ::-1])
    except UnidentifiedImageError as error:
        raise ValueError(f"{store.path(name)}: not an image") from error
    except Exception as error:  # PIL's readers raise what they come upon in a damaged file
        raise ValueError(f"{store.path(name)}: not a whole image ({error})") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # of many kinds, and about what is beside the picture
        return 1
    return value if isinstance(value, int) else 1


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _visible(name: str) -> bool:
    """False for hidden files, and for what macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
