"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a place beside `path` to write to; it becomes `path` where the block succeeds, and is removed where not.

    An older file is lost only to a complete one. What is no file, a pipe or a terminal, is written to as it is.

    Raises:
        OSError: naming `path`.
    """
    if Path(path).exists() and not Path(path).is_file():
        yield Path(path)  # unresolved: what /dev/stdout leads to may have no path of its own
        return
    target = Path(path).resolve()  # where a link leads to
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.errno is None or (error.filename and error.filename != str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
