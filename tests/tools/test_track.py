import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest

from tests.tools.conftest import TRACK, failing
from tests.tracker.clips import SQUARE, decoded, find_square, scene, square_left, write_clip, write_images
from tracker.mot import read_mot

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = sorted((ROOT / "detector" / "weights").glob("*.safetensors"))

# Runs the tool with a detector that is slow and certain, so that it can be interrupted at will, and without torch.
SLOW = f"""
import dataclasses, importlib.util, sys, time, types
@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    score_thresh: float = 0.1
sys.modules["detector"] = types.SimpleNamespace(DetectorConfig=DetectorConfig)
spec = importlib.util.spec_from_file_location("track_tool", {str(TRACK)!r})
tool = importlib.util.module_from_spec(spec)
sys.modules["track_tool"] = tool
spec.loader.exec_module(tool)
from tests.tracker.clips import find_square
def slow(frames):
    time.sleep(0.02)
    return find_square(frames)
tool.load = lambda args, config: (slow, 2, 1)
sys.exit(tool.main(sys.argv[1:]))
"""


def test_writes_text_video_and_summary(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 30)
    status, out, err = track("--video", clip, "--json", tmp_path / "s.json")
    assert (status, err) == (0, "")
    rows = read_mot(tmp_path / "walk.txt")
    assert rows.frames.tolist() == list(range(1, 31))
    assert set(rows.track_ids.tolist()) == {1}
    expected = [square_left(scene(i)) for i in range(1, 31)]
    np.testing.assert_allclose(rows.tlwh[:, 0], expected, atol=2.5)
    np.testing.assert_allclose(rows.tlwh[:, 2:], SQUARE, atol=2.5)
    assert len(decoded(tmp_path / "walk.tracked.mp4")) == 30
    last = out.splitlines()[-1]
    assert last.startswith("30 frames, 1.0 people a frame, 1 id, ")
    for word in ("frames/s", "decode", "detect", "associate", "write"):
        assert word in last
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["frames"], report["ids"], report["boxes"], report["error"]) == (30, 1, 30, None)
    assert set(report["seconds"]) == {"total", "decode", "detect", "motion", "associate", "write"}
    assert report["fps"] == pytest.approx(30 / report["seconds"]["total"], rel=0.01)
    assert report["config"]["tracker"]["score_thresh"] == 0.6
    assert report["config"]["detector"]["score_thresh"] == 0.1


def test_boxes_are_drawn(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 10)
    assert track("--video", clip, "--out", tmp_path / "a" / "b")[0] == 0
    plain, drawn = decoded(clip), decoded(tmp_path / "a" / "b" / "walk.tracked.mp4")
    assert all(np.abs(a.astype(int) - b).max() > 100 for a, b in zip(plain, drawn, strict=True))


def test_text_only(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    out = tmp_path / "out"
    assert track("--video", clip, "--out", out, "--no-video")[0] == 0
    assert [p.name for p in out.iterdir()] == ["walk.txt"]


def test_range_keeps_the_numbers_of_the_source(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 30)
    assert track("--video", clip, "--start", 11, "--end", 15)[0] == 0
    assert read_mot(tmp_path / "walk.txt").frames.tolist() == [11, 12, 13, 14, 15]
    assert len(decoded(tmp_path / "walk.tracked.mp4")) == 5


def test_folder_and_glob(track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "SEQ-01" / "img1", 12)
    assert track("--video", images, "--no-video")[0] == 0
    expected = (tmp_path / "SEQ-01" / "SEQ-01.txt").read_text()
    assert expected.count("\n") == 12
    monkeypatch.chdir(tmp_path)
    assert track("--video", "SEQ-01/img1/*.png", "--no-video")[0] == 0
    assert (tmp_path / "SEQ-01.txt").read_text() == expected


def test_odd_size_is_told(track, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((63, 95, 3), np.uint8))
    status, out, _ = track("--video", tmp_path / "1.png")
    assert status == 0
    assert "even" in out
    assert decoded(tmp_path / "1.tracked.mp4")[0].shape == (64, 96, 3)


def test_settings_reach_the_tracker(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    report = tmp_path / "s.json"
    options = ("--no-video", "--json", report)
    assert track("--video", clip, "--score-thresh", 0.95, *options)[0] == 0
    got = json.loads(report.read_text())
    assert got["boxes"] == 0  # the detector gives 0.9
    assert got["config"]["tracker"]["score_thresh"] == got["config"]["tracker"]["birth_thresh"] == 0.95
    assert track("--video", clip, "--score-thresh", 0.05, *options)[0] == 0
    got = json.loads(report.read_text())
    assert got["boxes"] == 5
    assert got["config"]["tracker"]["score_thresh"] == got["config"]["tracker"]["birth_thresh"] == 0.05
    assert got["config"]["detector"]["score_thresh"] == 0.05
    config = tmp_path / "c.yaml"
    config.write_text("tracker:\n  track_buffer: 2.5\n  confirm_frames: 4\n")
    assert track("--video", clip, "--config", config, "--set", "tracker.confirm_frames=1", *options)[0] == 0
    got = json.loads(report.read_text())["config"]["tracker"]
    assert (got["track_buffer"], got["confirm_frames"]) == (2.5, 1)


def test_bad_settings(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    for options, word in [
        (("--input-size", "333"), "multiple of 32"),
        (("--set", "tracker.score_tresh=0.4"), "score_thresh"),
        (("--score-thresh", "1.5"), "score_thresh"),
        (("--threads", "0"), "--threads"),
        (("--config", tmp_path / "gone.yaml"), "gone.yaml"),
        (("--start", "4", "--end", "3"), "end"),
        (("--start", "6"), "start frame 6 lies behind the last, 5"),
    ]:
        assert word in failing(track("--video", clip, *options))
    assert [p.name for p in tmp_path.iterdir()] == ["walk.mp4"]


def test_input_that_is_no_video(track, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("to be or not to be\n" * 100)
    (tmp_path / "folder").mkdir()
    for video, message in [
        ("gone.mp4", "no such file"),
        ("empty.mp4", "empty"),
        ("text.mp4", "not a video"),
        ("folder", "no images in this folder"),
        ("*.jpg", "no image matches"),
    ]:
        line = failing(track("--video", tmp_path / video))
        assert str(tmp_path / video) in line
        assert message in line
    assert not list(tmp_path.glob("*.txt"))


def test_absent_camera(track) -> None:
    if any(Path("/dev").glob("video*")):
        pytest.skip("this machine has a camera")
    assert "camera 7: cannot be opened" in failing(track("--video", 7))


def check_stopped(outcome: tuple[int, str, str], folder: Path, name: str, frames: int) -> str:
    """Everything before the stop was written; returns the error line."""
    line = failing(outcome)
    assert outcome[1].splitlines()[-1].startswith(f"{frames} frames, ")
    assert read_mot(folder / f"{name}.txt").frames.tolist() == list(range(1, frames + 1))
    assert len(decoded(folder / f"{name}.tracked.mp4")) == frames
    return line


def test_video_cut_in_the_middle_of_a_frame(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "whole.mp4", 60, movflags="faststart", bf="0")
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.dts is not None]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: packets[40][0] + packets[40][1] // 2])
    line = check_stopped(track("--video", cut, "--json", tmp_path / "s.json"), tmp_path, "cut", 40)
    assert f"{cut}: stopped at frame 40 of 60: " in line
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["frames"] == 40
    assert "stopped at frame 40" in report["error"]


def test_video_cut_before_its_index(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "whole.mp4", 60)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-500])
    assert "cut.mp4: not a video, or cut before its index" in failing(track("--video", cut))


def test_images_of_different_sizes(track, tmp_path: Path) -> None:
    images = write_images(tmp_path / "walk", 6)
    cv2.imwrite(str(images / "5.png"), np.zeros((50, 40, 3), np.uint8))
    line = check_stopped(track("--video", images), tmp_path, "walk", 4)
    assert f"{images / '5.png'}: expected 96x64 pixels like 1.png, got 40x50" in line


def test_unreadable_image_in_a_folder(track, tmp_path: Path) -> None:
    images = write_images(tmp_path / "walk", 6)
    (images / "4.png").write_bytes((images / "4.png").read_bytes()[:-100])
    line = check_stopped(track("--video", images), tmp_path, "walk", 3)
    assert f"{images / '4.png'}: the image is cut short" in line


def test_output_that_cannot_be_written(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in failing(track("--video", clip, "--out", tmp_path / "file"))
    assert "below" in failing(track("--video", clip, "--out", tmp_path / "file" / "below"))
    assert "gone: no such folder" in failing(track("--video", clip, "--json", tmp_path / "gone" / "s.json"))
    (tmp_path / "walk.txt").mkdir()
    assert "walk.txt: cannot be written" in failing(track("--video", clip))


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_protected_folder(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "walk.txt: cannot be written" in failing(track("--video", clip, "--out", tmp_path / "locked"))


def test_input_is_not_overwritten(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    renamed = clip.rename(tmp_path / "walk.txt")
    before = renamed.read_bytes()
    assert "would overwrite an input" in failing(track("--video", renamed))
    assert renamed.read_bytes() == before


def test_results_do_not_overwrite_each_other(track, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 5), tmp_path / "out"
    assert "would overwrite another result" in failing(track("--video", clip, "--out", out, "--json", out / "walk.txt"))
    assert not (out / "walk.txt").exists()


def test_a_failure_before_the_first_result_leaves_earlier_results(
    track_tool: ModuleType, track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 5), tmp_path / "out"
    assert track("--video", clip, "--out", out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def broken(frames: list) -> list:
        raise ValueError("no network today")

    monkeypatch.setattr(track_tool, "load", lambda args, config: (broken, 2, 1))
    assert "no network today" in failing(track("--video", clip, "--out", out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_earlier_results_survive_a_bad_input(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    assert track("--video", clip)[0] == 0
    before = (tmp_path / "walk.txt").read_bytes()
    clip.write_bytes(b"")
    failing(track("--video", clip))
    assert (tmp_path / "walk.txt").read_bytes() == before


def test_wrong_checkpoint(track_tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    weights = tmp_path / "wrong.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for data in (b"to be or not to be", struct.pack("<Q", len(header)) + header + bytes(4), b""):
        weights.write_bytes(data)
        status = track_tool.main(["--video", str(clip), "--weights", str(weights)])
        line = failing((status, "", capfd.readouterr().err))
        assert "wrong.safetensors" in line
    status = track_tool.main(["--video", str(clip), "--weights", str(tmp_path / "gone.safetensors")])
    assert "gone.safetensors" in failing((status, "", capfd.readouterr().err))
    assert not (tmp_path / "walk.txt").exists()


def test_no_display(track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("a Linux matter")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    clip = write_clip(tmp_path / "walk.mp4", 5)
    assert "--show: no display" in failing(track("--video", clip, "--show"))


def test_detector_failure_is_one_line_unless_debugging(
    track, track_tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detector(frames: list[np.ndarray]) -> object:
        if square_left(frames[0]) == 4:
            raise RuntimeError("CUDA out\nof memory")
        return find_square(frames)

    monkeypatch.setattr(track_tool, "load", lambda args, config: (detector, 1, 1))
    clip = write_clip(tmp_path / "walk.mp4", 10)
    line = check_stopped(track("--video", clip), tmp_path, "walk", 3)
    assert line == "error: RuntimeError: CUDA out of memory (--debug shows where)"
    status, _, err = track("--video", clip, "--debug")
    assert status == 1
    assert "Traceback" in err


def test_help_shows_commands_without_loading_the_network() -> None:
    done = subprocess.run([sys.executable, TRACK, "--help"], capture_output=True, text=True, cwd="/", check=True)
    assert "python tools/track.py --video in.mp4" in done.stdout


def start_slow(clip: Path) -> subprocess.Popen[str]:
    """The tool in a process of its own on a long video; returns once it has written twenty rows."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "--video", str(clip)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    text = clip.with_suffix(".txt")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if text.exists() and text.read_text().count("\n") >= 20:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_half_way(tmp_path: Path, number: signal.Signals) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 1000, crf="40")
    process = start_slow(clip)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    rows = read_mot(tmp_path / "walk.txt")
    last = int(rows.frames[-1])
    assert 20 <= last < 1000
    assert rows.frames.tolist() == list(range(1, last + 1))
    assert err.count("\n") == 1
    assert err.startswith("interrupted after frame ")
    assert last - int(err.split()[3].rstrip(";")) in (0, 1)
    assert " frames, " in out.splitlines()[-1]
    assert last - len(decoded(tmp_path / "walk.tracked.mp4")) in (0, 1)


def test_killed_half_way(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 1000, crf="40")
    process = start_slow(clip)
    process.kill()
    process.communicate(timeout=60)
    assert (tmp_path / "walk.txt").read_text().endswith("\n")
    frames = read_mot(tmp_path / "walk.txt").frames.tolist()
    assert frames == list(range(1, len(frames) + 1))


def test_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    clip = write_clip(tmp_path / "walk.mp4", 300, crf="40")
    limited = SLOW.replace("time.sleep(0.02)", "pass").replace(
        "sys.exit(", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); sys.exit("
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "--video", str(clip), "--no-video"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    line = failing((done.returncode, done.stdout, done.stderr))
    assert f"{tmp_path / 'walk.txt'}: file too large" in line
    frames = read_mot(tmp_path / "walk.txt").frames.tolist()
    assert 50 < len(frames) < 300
    assert frames == list(range(1, len(frames) + 1))


@pytest.mark.shared
@pytest.mark.skipif(not BUNDLED, reason="no bundled model in detector/weights")
def test_people_in_a_real_video_with_the_bundled_model(shared: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TRACK, "--video", shared / "data/video/people.mp4", "--out", tmp_path, "--end", "20"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    rows = read_mot(tmp_path / "people.txt")
    assert set(rows.frames.tolist()) == set(range(1, 21))
    assert 8 <= len(rows) / 20 <= 45  # about thirty people stand in view
    assert (rows.tlwh[:, 3] > rows.tlwh[:, 2]).mean() > 0.8
    assert done.stdout.splitlines()[-1].startswith("20 frames, ")
    assert decoded(tmp_path / "people.tracked.mp4")[19].shape == (720, 1280, 3)
