"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a place beside `path` to write to; it becomes `path` where the block succeeds, and is removed where not.

    An older file is lost only to a complete one.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
