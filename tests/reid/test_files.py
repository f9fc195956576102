"""Files that are whole or absent."""

import os
import re
from pathlib import Path

import pytest

from reid.files import replacing


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_nothing_is_left_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(OSError, match=re.escape(f"No such file or directory: '{path}'")), replacing(path) as part:
        part.write_text("x")


def test_a_librarys_error_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"encoder error: '.*a\.png'"), replacing(tmp_path / "a.png"):
        raise OSError("encoder error")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.txt")
    with replacing(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


def test_a_device_is_written_to_as_it_is() -> None:
    with replacing(os.devnull) as part:
        assert part == Path(os.devnull)
        part.write_text("x")
    assert Path(os.devnull).is_char_device()


def test_a_pipe_without_a_path_is_written_to_as_it_is() -> None:
    reading, writing = os.pipe()
    with replacing(f"/dev/fd/{writing}") as part:
        part.write_text("x")
    assert os.read(reading, 9) == b"x"
    os.close(reading)
    os.close(writing)
