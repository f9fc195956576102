"""`tools/track.py` on several videos at once, and on live ones."""

import json
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.tools.conftest import failing
from tests.tracker.clips import decoded, find_square, scene, square_left, write_clip, write_images
from tests.tracker.feeds import refuses, sends, served
from tracker.mot import read_mot


def check(folder: Path, name: str, frames: int) -> None:
    """Both results of a stream, with the one square in every frame."""
    rows = read_mot(folder / f"{name}.txt")
    assert rows.frames.tolist() == list(range(1, frames + 1))
    assert set(rows.track_ids.tolist()) == {1}
    assert [round(x) for x in rows.tlwh[:, 0]] == pytest.approx([square_left(scene(f)) for f in rows.frames], abs=2.5)
    assert len(decoded(folder / f"{name}.tracked.mp4")) == frames


def test_several_videos(track, tmp_path: Path) -> None:
    a, b = write_clip(tmp_path / "a.mp4", 30), write_clip(tmp_path / "b.mp4", 12, size=(128, 80))
    images = write_images(tmp_path / "frames", 7)
    out = tmp_path / "out"
    status, text, err = track("--video", a, b, images, "--out", out, "--json", tmp_path / "s.json")
    assert (status, err) == (0, "")
    for name, count in [("a", 30), ("b", 12), ("frames", 7)]:
        check(out, name, count)
    lines = text.splitlines()[-4:]
    assert lines[0] == f"{a}: 30 frames, 1.0 people a frame, 1 id"
    assert lines[1] == f"{b}: 12 frames, 1.0 people a frame, 1 id"
    assert lines[3].startswith("49 frames, 1.0 people a frame, 3 ids, ")
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["video"] == [str(a), str(b), str(images)]
    assert (report["frames"], report["ids"], report["error"]) == (49, 3, None)
    assert [(run["input"], run["frames"], run["error"]) for run in report["runs"]] == [
        (str(a), 30, None),
        (str(b), 12, None),
        (str(images), 7, None),
    ]
    assert len(report["outputs"]) == 6


def test_glob_of_videos_stands_for_each(track, tmp_path: Path) -> None:
    for name, count in [("a", 5), ("b", 7)]:
        write_clip(tmp_path / f"{name}.mp4", count)
    for _ in range(2):  # the films of the first time are not tracked
        status, text, err = track("--video", tmp_path / "*.mp4")
        assert (status, err) == (0, "")
        assert text.splitlines()[-1].startswith("12 frames, 1.0 people a frame, 2 ids, ")
        check(tmp_path, "a", 5)
        check(tmp_path, "b", 7)


def test_results_lie_beside_each_input_unless_told(track, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    a, b = write_clip(tmp_path / "cam.mp4", 3), write_clip(tmp_path / "x" / "cam.mp4", 4)
    assert track("--video", a, b)[0] == 0
    check(tmp_path, "cam", 3)
    check(tmp_path / "x", "cam", 4)


def test_inputs_of_one_name_get_different_ones(track, tmp_path: Path) -> None:
    videos = []
    for folder, count in [("x", 3), ("y", 4), ("z", 5)]:
        (tmp_path / folder).mkdir()
        videos.append(write_clip(tmp_path / folder / "cam.mp4", count))
    out = tmp_path / "out"
    assert track("--video", *videos, "--out", out)[0] == 0
    for name, count in [("cam", 3), ("cam-2", 4), ("cam-3", 5)]:
        check(out, name, count)


def test_one_that_breaks_off_does_not_end_the_others(track, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", 60)
    broken = write_images(tmp_path / "broken", 9)
    (broken / "5.png").write_bytes(b"to be or not to be")
    out = tmp_path / "out"
    outcome = track("--video", broken, whole, "--out", out, "--json", tmp_path / "s.json")
    assert f"{broken / '5.png'}: not a readable image" in failing(outcome)
    check(out, "broken", 4)
    check(out, "whole", 60)
    assert outcome[1].splitlines()[-1].startswith("64 frames, ")
    report = json.loads((tmp_path / "s.json").read_text())
    assert ["not a readable image" in (run["error"] or "") for run in report["runs"]] == [True, False]
    assert "not a readable image" in report["error"]


def test_two_that_break_off_are_told_one_by_one(track, tmp_path: Path) -> None:
    folders = [write_images(tmp_path / name, 9) for name in ("a", "b", "c")]
    for folder in folders[:2]:
        (folder / "5.png").write_bytes(b"")
    status, _, err = track("--video", *folders, "--out", tmp_path / "out", "--no-video")
    assert status == 1
    lines = sorted(err.splitlines())
    assert [line.split(": ")[1] for line in lines] == [str(folder / "5.png") for folder in folders[:2]]


def test_nothing_starts_where_one_cannot_be_opened(track, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", 5), tmp_path / "out"
    assert "gone.mp4: no such file" in failing(track("--video", clip, tmp_path / "gone.mp4", "--out", out))
    assert not out.exists()


def test_a_broken_detector_ends_all(track, track_tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    clips = [write_clip(tmp_path / name, 30) for name in ("a.mp4", "b.mp4")]

    def detector(frames: list) -> object:
        if square_left(frames[0]) == 9:
            raise RuntimeError("out of memory")
        return find_square(frames)

    monkeypatch.setattr(track_tool, "load", lambda args, config: (detector, 1, 1))
    line = failing(track("--video", *clips, "--out", tmp_path / "out"))
    assert line == "error: RuntimeError: out of memory (--debug shows where)"
    for name in ("a", "b"):
        frames = read_mot(tmp_path / "out" / f"{name}.txt").frames.tolist()
        assert frames == list(range(1, len(frames) + 1))
        assert len(decoded(tmp_path / "out" / f"{name}.tracked.mp4")) == len(frames)


def test_results_of_several_do_not_overwrite_inputs(track, tmp_path: Path) -> None:
    a = write_clip(tmp_path / "a.mp4", 3)
    b = write_clip(tmp_path / "b.mp4", 3).rename(tmp_path / "a.tracked.mp4")
    before = b.read_bytes()
    assert "would overwrite an input" in failing(track("--video", a, b))
    assert b.read_bytes() == before


def test_show_wants_one_video(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    assert "--show: expected one --video, got 2" in failing(track("--video", clip, clip, "--show"))


def test_real_time_drops_what_the_detector_cannot_take(
    track, track_tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "a.mp4", 25)

    def slow(frames: list) -> object:
        time.sleep(0.12)
        return find_square(frames)

    monkeypatch.setattr(track_tool, "load", lambda args, config: (slow, 1, 1))
    options = ("--realtime", "--max-latency", 0.05, "--json", tmp_path / "s.json")
    status, out, _ = track("--video", clip, "--out", tmp_path / "out", *options)
    assert status == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["dropped"] > 5
    assert report["frames"] + report["dropped"] == 25
    assert report["config"]["live"]["max_latency"] == 0.05
    assert f"{report['frames']} frames, {report['dropped']} dropped, " in out.splitlines()[-1]
    assert "max_latency: expected" in failing(track("--video", clip, "--max-latency", -1, "--out", tmp_path / "out"))


def test_a_stream_that_comes_back(track, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 40, g="10", bf="0").read_bytes()
    settings = [f"live.{text}" for text in ("first_wait=0.05", "give_up_after=0.3", "max_latency=9")]
    options = [word for text in settings for word in ("--set", text)]
    with served(sends(data), refuses, sends(data)) as address:
        outcome = track("--video", address, "--out", tmp_path / "out", "--json", tmp_path / "s.json", *options)
    status, out, err = outcome
    assert status == 1
    *said, last = err.splitlines()
    assert "connection lost" in said[0] and "trying again in 0.05 s" in said[0]
    assert any("connected after" in line for line in said)
    assert last.startswith("error: ") and "given up" in last
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["frames"] + report["dropped"] == 80
    assert "secret" not in out + err + (tmp_path / "s.json").read_text()
    frames = read_mot(tmp_path / "out" / "cam.txt").frames.tolist()
    assert frames[-1] == report["frames"]


def test_a_frame_rate_is_only_for_what_has_none(track, tmp_path: Path) -> None:
    clip, images = write_clip(tmp_path / "a.mp4", 3), write_images(tmp_path / "frames", 3)
    out = tmp_path / "out"
    assert f"--fps: {clip} has a frame rate of its own, 25" in failing(
        track("--video", clip, "--fps", 10, "--out", out)
    )
    assert "12.5 frames/s" in track("--video", images, "--fps", 12.5, "--out", out)[1]
    shutil.rmtree(out)
