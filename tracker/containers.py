"""Where a media file says that it ends: a file that is shorter was cut."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_BOX_NAMES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"sidx", b"styp", b"pnot", b"uuid"}
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def declared_end(path: Path) -> int | None:
    """The file position, in bytes, at which the container's own headers say that the last of its parts ends.

    Decoders read a file that was cut (a copy that broke off, a full disk) without complaint up to where it
    stops. Its outermost headers carry the sizes that were meant, so comparing this number with the file's size
    tells a cut file from a whole one.

    Args:
        path: an MP4/MOV file (ISO/IEC 14496-12 boxes), Matroska/WebM (RFC 8794 elements) or AVI (RIFF chunks).

    Returns:
        The position; None for other formats, or where the writer left the size open, as live recorders do.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOX_NAMES:
            return _end_of_boxes(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _end_of_segment(file)
        if head[:4] == b"RIFF":
            return _end_of_riff(file, size)
    return None


def cut_to_whole_parts(path: Path) -> None:
    """Shorten an MP4 file to its last whole part: a fragment's index and its pictures belong together.

    Args:
        path: a fragmented MP4 file that the writer could not finish.
    """
    size, position, whole = path.stat().st_size, 0, 0
    with path.open("r+b") as file:
        while position + 16 <= size:
            file.seek(position)
            length, name, wide = struct.unpack(">I4sQ", file.read(16))
            position += wide if length == 1 else length or size
            if position > size or (length not in (0, 1) and length < 8):
                break
            if name != b"moof":
                whole = position
        if whole:
            file.truncate(whole)


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 0:  # "to the end of the file"
            return None
        if length == 1:
            wide = file.read(8)
            if len(wide) < 8:
                return position + 16
            length = struct.unpack(">Q", wide)[0]
        # Bytes behind the last box that are no box (padding, a camera maker's trailer) say nothing.
        if length < 8 or not name.isalnum():
            return None
        position += length
    return position


def _end_of_segment(file: BinaryIO) -> int | None:
    while True:
        element, _ = _variable_integer(file, keep_marker=True)
        length, unknown = _variable_integer(file, keep_marker=False)
        if element is None or length is None:
            return None
        if element == _SEGMENT:
            return None if unknown else file.tell() + length
        if element != _EBML:
            return None
        file.seek(length, 1)


def _variable_integer(file: BinaryIO, keep_marker: bool) -> tuple[int | None, bool]:
    """An EBML number and whether all its bits are set, which as a length stands for "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None, False
    width = 9 - first[0].bit_length()
    raw = first + file.read(width - 1)
    if len(raw) < width:
        return None, False
    value = int.from_bytes(raw, "big")
    low_bits = (1 << 7 * width) - 1
    return (value if keep_marker else value & low_bits), value & low_bits == low_bits


def _end_of_riff(file: BinaryIO, size: int) -> int | None:
    position = 0
    while position + 8 <= size:  # AVI files over 1 GB are several RIFF chunks in a row
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or length == 0:
            break
        position += 8 + length + length % 2
    return position or None
