from pathlib import Path

import pytest

from benchmarks.scale_out import cut, format_table, main
from tests.tracker.clips import decoded, square_left, write_clip


def test_stretches(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 50)
    (tmp_path / "parts").mkdir()
    parts = cut(clip, tmp_path / "parts", 3, 10)
    assert [part.name for part in parts] == ["part0.mp4", "part1.mp4", "part2.mp4"]
    whole = [square_left(frame) for frame in decoded(clip)]
    for part, first in zip(parts, (0, 20, 40), strict=True):
        found = [square_left(frame) for frame in decoded(part)]
        assert found == pytest.approx(whole[first : first + 10], abs=1)


def test_too_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 5)
    assert main(["--video", str(clip), "--frames", "6", "--json", str(tmp_path / "s.json")]) == 1
    assert capsys.readouterr().err == f"error: {clip}: expected at least 6 frames, got 5\n"
    assert not (tmp_path / "s.json").exists()


def test_table() -> None:
    run = {"seconds": 20.0, "times_as_fast": 1.5, "identical": 8}
    result = {"videos": 8, "frames": 60, "workers": 2, "one_after_the_other": {"seconds": 30.0}}
    lines = format_table({**result, "ray": run, "ray_one_killed": run | {"identical": 7}}).splitlines()
    assert [line.split()[-3:] for line in lines[3:]] == [["8", "of", "8"], ["7", "of", "8"]]
