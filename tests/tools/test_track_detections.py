"""`tools/track.py --detections`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.conftest import TRACK, failing
from tests.tracker.clips import SQUARE, decoded, scene, square_left, write_clip, write_images
from tracker.mot import read_mot


def square_rows(count: int, columns: str = "0.9") -> str:
    """The square of `clips.scene` as rows of detections, the last frame first."""
    rows = (f"{i},-1,{square_left(scene(i))},20,{SQUARE},{SQUARE},{columns}\n" for i in range(count, 0, -1))
    return "".join(rows)


def sequence(folder: Path, text: str, info: str | None = None) -> Path:
    """A MOTChallenge sequence of detections; returns the path of `det.txt`."""
    (folder / "det").mkdir(parents=True)
    if info:
        (folder / "seqinfo.ini").write_text(f"[Sequence]\n{info}\n")
    (folder / "det" / "det.txt").write_text(text)
    return folder / "det" / "det.txt"


def test_sequence_without_pictures(track, tmp_path: Path) -> None:
    det = sequence(tmp_path / "SEQ-01", square_rows(20), "frameRate=12.5\nseqLength=24")
    options = ("--set", "tracker.output=detection", "--json", tmp_path / "s.json")
    status, out, err = track("--detections", det, "--out", tmp_path / "out", *options)
    assert (status, err) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["SEQ-01.txt"]
    rows = read_mot(tmp_path / "out" / "SEQ-01.txt")
    assert rows.frames.tolist() == list(range(1, 21))
    assert set(rows.track_ids.tolist()) == {1}
    assert rows.tlwh[:, 0].tolist() == [square_left(scene(i)) for i in range(1, 21)]
    assert (rows.classes == -1).all()
    assert "12.5 frames/s" in out
    assert out.splitlines()[-1].startswith("24 frames, 0.8 people a frame, 1 id, ")
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["detections"] == str(det)
    assert (report["frames"], report["boxes"], report["ids"], report["error"]) == (24, 20, 1, None)
    assert set(report["seconds"]) == {"total", "associate", "write"}
    assert "detector" not in report["config"]


def test_name_and_frame_rate(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(5))
    for options, rate in [((), "30 frames/s"), (("--fps", "12"), "12 frames/s")]:
        status, out, _ = track("--detections", file, "--out", tmp_path / "out", *options)
        assert status == 0 and rate in out
        assert (tmp_path / "out" / "walk.txt").exists()
    det = sequence(tmp_path / "SEQ-01", square_rows(5), "frameRate=25\nseqLength=5")
    assert "12 frames/s" in track("--detections", det, "--out", tmp_path / "out", "--fps", 12)[1]
    assert "--fps: expected a number above 0, got 0" in failing(track("--detections", file, "--fps", 0))


def test_time_without_detections_passes(track, tmp_path: Path) -> None:
    """Somebody away for longer than the buffer comes back as somebody else, and not before."""
    file = tmp_path / "walk.txt"
    for gap, ids in [(10, 1), (40, 2)]:
        frames = [1, 2, 3, 4 + gap, 5 + gap, 6 + gap]
        file.write_text("".join(f"{frame},-1,50,20,20,50,0.9\n" for frame in frames))
        options = ("--fps", 10, "--set", "tracker.track_buffer=3", "--json", tmp_path / "s.json")
        assert track("--detections", file, "--out", tmp_path / "out", *options)[0] == 0
        report = json.loads((tmp_path / "s.json").read_text())
        assert (report["frames"], report["ids"]) == (6 + gap, ids)


def test_own_results_are_detections(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(20))
    raw = ("--set", "tracker.output=detection")
    assert track("--detections", file, "--out", tmp_path / "a", *raw)[0] == 0
    assert track("--detections", tmp_path / "a" / "walk.txt", "--out", tmp_path / "b", *raw)[0] == 0
    assert (tmp_path / "b" / "walk.txt").read_text() == (tmp_path / "a" / "walk.txt").read_text()


def test_range(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(20))
    assert track("--detections", file, "--out", tmp_path / "out", "--start", 6, "--end", 9)[0] == 0
    assert read_mot(tmp_path / "out" / "walk.txt").frames.tolist() == [6, 7, 8, 9]
    line = failing(track("--detections", file, "--out", tmp_path / "out", "--start", 21))
    assert "start frame 21 lies behind the last, 20" in line
    file.write_text(square_rows(3) + "9,-1,0,0,5,5,1\n")
    line = failing(track("--detections", file, "--out", tmp_path / "out", "--start", 5, "--end", 8))
    assert "walk.txt: no detections in frames 5 to 8" in line


def test_several_files(track, tmp_path: Path) -> None:
    first = sequence(tmp_path / "a" / "SEQ-01", square_rows(5))
    second = sequence(tmp_path / "b" / "SEQ-01", square_rows(8))
    third = sequence(tmp_path / "SEQ-02", square_rows(3))
    out = tmp_path / "out"
    status, text, _ = track("--detections", first, second, third, "--out", out, "--json", tmp_path / "s.json")
    assert status == 0
    for name, count in [("SEQ-01", 5), ("SEQ-01-2", 8), ("SEQ-02", 3)]:
        rows = read_mot(out / f"{name}.txt")
        assert rows.frames.tolist() == list(range(1, count + 1))
        assert set(rows.track_ids.tolist()) == {1}
    lines = text.splitlines()[-4:]
    assert lines[1] == f"{second}: 8 frames, 1.0 people a frame, 1 id"
    assert lines[3].startswith("16 frames, 1.0 people a frame, 3 ids, ")
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["detections"] == [str(first), str(second), str(third)]
    assert [run["frames"] for run in report["runs"]] == [5, 8, 3]


def test_malformed_rows_leave_everything_as_it_was(track, tmp_path: Path) -> None:
    good = sequence(tmp_path / "SEQ-01", square_rows(5))
    bad = sequence(tmp_path / "SEQ-02", square_rows(2) + "3,-1,0,0,x,5,1\n")
    out = tmp_path / "out"
    assert track("--detections", good, "--out", out)[0] == 0
    before = (out / "SEQ-01.txt").read_bytes()
    good.write_text(square_rows(3))
    line = failing(track("--detections", good, bad, "--out", out))
    assert line == f"error: {bad}:3: width: expected a number, got 'x'"
    assert (out / "SEQ-01.txt").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["SEQ-01.txt"]


def test_files_that_are_no_detections(track, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nframeRate=x\n")
    (tmp_path / "walk.txt").write_text(square_rows(3))
    (tmp_path / "bytes.txt").write_bytes(bytes(range(256)))
    for name, message in [
        ("empty.txt", "empty.txt: no detections in this file"),
        ("gone.txt", "gone.txt: no such file"),
        (".", ": is a directory"),
        ("walk.txt", "seqinfo.ini: frameRate"),
        ("bytes.txt", "bytes.txt:1: "),
    ]:
        assert message in failing(track("--detections", tmp_path / name, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_input_is_not_overwritten(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(5))
    assert "would overwrite an input" in failing(track("--detections", file))
    assert file.read_text() == square_rows(5)
    det = sequence(tmp_path / "SEQ-01", square_rows(5))
    assert track("--detections", det)[0] == 0
    assert (tmp_path / "SEQ-01" / "det" / "SEQ-01.txt").exists()


def test_classes_are_kept_and_chosen(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    other = "".join(f"{i},-1,5,30,20,20,0.9,7\n" for i in range(1, 6))
    file.write_text(square_rows(5, "0.9,2") + other)
    assert track("--detections", file, "--out", tmp_path / "out")[0] == 0
    rows = read_mot(tmp_path / "out" / "walk.txt")
    assert sorted(zip(rows.track_ids.tolist(), rows.classes.tolist(), strict=True)) == [(1, 2)] * 5 + [(2, 7)] * 5
    assert track("--detections", file, "--out", tmp_path / "out", "--classes", "7")[0] == 0
    assert set(read_mot(tmp_path / "out" / "walk.txt").classes.tolist()) == {7}
    before = (tmp_path / "out" / "walk.txt").read_bytes()
    line = failing(track("--detections", file, "--out", tmp_path / "out", "--classes", "2,3"))
    assert "no detection of class 3; there are 2, 7" in line
    status, _, err = track("--detections", file, "--out", tmp_path / "out", "--classes", "car")
    assert status == 2 and "--classes: expected numbers with commas between, got 'car'" in err
    assert (tmp_path / "out" / "walk.txt").read_bytes() == before


def test_scores_outside_the_range(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(5, "37.5"))
    status, out, _ = track("--detections", file, "--out", tmp_path / "out", "--json", tmp_path / "s.json")
    assert status == 0
    assert f"note: {file}: 5 of 5 scores lie outside 0 to 1 (they go from 37.5 to 37.5)" in out
    assert json.loads((tmp_path / "s.json").read_text())["boxes"] == 5
    options = ("--score-range", -50, 100, "--json", tmp_path / "s.json")
    status, out, err = track("--detections", file, "--out", tmp_path / "out", *options)
    assert status == 0 and "lie outside" not in out
    assert "note: nobody scored 0.6 or more" in err
    assert json.loads((tmp_path / "s.json").read_text())["boxes"] == 0  # a score of 0.58 starts no track
    line = failing(track("--detections", file, "--out", tmp_path / "out", "--score-range", 1, 0))
    assert "score range: expected a lower and a higher score, got 1 and 0" in line


def test_embeddings_tell_people_apart(track, tmp_path: Path) -> None:
    """Two people change places while nobody sees them: only embeddings can tell."""
    file = tmp_path / "walk.txt"
    frames = [1, 2, 3, 4, 5, 9, 10, 11]
    places = {frame: (100, 125) if frame < 6 else (125, 100) for frame in frames}
    rows = [(frame, person) for person in (0, 1) for frame in reversed(frames)]
    file.write_text("".join(f"{f},-1,{places[f][p]},50,40,100,0.9\n" for f, p in rows))
    np.save(tmp_path / "e.npy", np.eye(2)[[person for _, person in rows]])
    ids = {}
    for options in ((), ("--embeddings", tmp_path / "e.npy")):
        raw = ("--set", "tracker.output=detection")
        assert track("--detections", file, "--out", tmp_path / "out", *raw, *options)[0] == 0
        got = read_mot(tmp_path / "out" / "walk.txt")
        left = {
            f: int(i) for f, i, x in zip(got.frames.tolist(), got.track_ids, got.tlwh[:, 0], strict=True) if x == 100
        }
        ids[bool(options)] = left[1], left[11]
    assert ids[False][0] == ids[False][1]
    assert ids[True][0] != ids[True][1]


def test_wrong_embeddings(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(5))
    np.save(tmp_path / "few.npy", np.ones((4, 8)))
    np.save(tmp_path / "nan.npy", np.full((5, 8), np.nan))
    np.save(tmp_path / "objects.npy", np.array([None] * 5), allow_pickle=True)
    for name, message in [
        ("few.npy", f"few.npy: expected an array (5, D), a row for each of {file}, got (4, 8)"),
        ("nan.npy", "nan.npy: embeddings: row 0 is not finite"),
        ("objects.npy", "objects.npy: not a .npy or .npz file of numbers"),
        ("gone.npy", "gone.npy: no such file"),
    ]:
        line = failing(track("--detections", file, "--out", tmp_path / "out", "--embeddings", tmp_path / name))
        assert message in line
    line = failing(track("--detections", file, file, "--out", tmp_path / "out", "--embeddings", tmp_path / "few.npy"))
    assert "--embeddings: expected one for each of 2 --detections, got 1" in line
    assert not (tmp_path / "out").exists()


def test_film_of_given_detections(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 20)
    det = sequence(tmp_path / "SEQ-01", square_rows(20, "0.9,3"))
    out = tmp_path / "out"
    assert track("--detections", det, "--video", clip, "--out", out, "--set", "tracker.output=detection")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["SEQ-01.tracked.mp4", "SEQ-01.txt"]
    rows = read_mot(out / "SEQ-01.txt")
    assert rows.tlwh[:, 0].tolist() == [square_left(scene(i)) for i in range(1, 21)]
    assert set(rows.classes.tolist()) == {3}
    drawn = decoded(out / "SEQ-01.tracked.mp4")
    assert len(drawn) == 20
    assert all(np.abs(a.astype(int) - b).max() > 100 for a, b in zip(decoded(clip), drawn, strict=True))
    options = ("--out", out, "--start", 5, "--end", 9, "--set", "tracker.output=detection")
    assert track("--detections", det, "--video", clip, *options)[0] == 0
    rows = read_mot(out / "SEQ-01.txt")
    assert rows.frames.tolist() == [5, 6, 7, 8, 9]
    assert rows.tlwh[:, 0].tolist() == [square_left(scene(i)) for i in range(5, 10)]


def test_pictures_for_the_motion_of_the_camera(track, tmp_path: Path) -> None:
    images, det = write_images(tmp_path / "walk", 5), sequence(tmp_path / "SEQ-01", square_rows(5))
    options = ("--out", tmp_path / "out", "--set", "tracker.camera_motion=sparse", "--json", tmp_path / "s.json")
    assert track("--detections", det, "--video", images, "--no-video", *options)[0] == 0
    assert "motion" in json.loads((tmp_path / "s.json").read_text())["seconds"]
    assert track("--detections", det, *options)[0] == 0
    assert "motion" not in json.loads((tmp_path / "s.json").read_text())["seconds"]


def test_notes_on_what_may_not_be_meant(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text(square_rows(5) * 2)
    status, out, _ = track("--detections", file, "--out", tmp_path / "out")
    assert status == 0 and f"note: {file}: 5 of 10 rows repeat the box of another in the same frame" in out
    clip = write_clip(tmp_path / "long.mp4", 20)
    file.write_text(square_rows(5))
    status, _, err = track("--detections", file, "--video", clip, "--out", tmp_path / "out", "--no-video")
    assert status == 0 and err == "note: the detections end at frame 5 of 20\n"


def test_frames_without_anybody_pass_quickly(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    file.write_text("1,-1,50,20,20,50,0.9\n100000,-1,50,20,20,50,0.9\n")
    options = ("--out", tmp_path / "out", "--json", tmp_path / "s.json")
    assert track("--detections", file, *options)[0] == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["frames"], report["ids"]) == (100_000, 1)


def test_detections_of_another_video(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 10)
    out = tmp_path / "out"
    det = tmp_path / "d.txt"
    det.write_text(square_rows(100))
    line = failing(track("--detections", det, "--video", clip, "--out", out))
    assert f"{det}: 90 detections, up to frame 100, lie behind the last frame of {clip}, 10" in line
    assert not out.exists()
    det.write_text(square_rows(12))  # within the error of a container's own count: found at the end
    line = failing(track("--detections", det, "--video", clip, "--out", out))
    assert f"{det}: 2 detections, up to frame 12, lie behind the last frame of {clip}, 10" in line
    assert read_mot(out / "d.txt").frames.tolist() == list(range(1, 11))
    assert track("--detections", det, "--video", clip, "--out", out, "--end", 8)[0] == 0
    line = failing(track("--detections", det, "--video", clip, "--out", out, "--start", 5, "--fps", 10))
    assert f"--fps: {clip} has a frame rate of its own, 25" in line
    det.write_text("1,-1,0,0,5,5,1\n")
    line = failing(track("--detections", det, "--video", clip, "--out", out, "--start", 2, "--end", 9))
    assert "start frame 2 lies behind the last, 1" in line


def test_options_that_make_no_sense(track, tmp_path: Path) -> None:
    clip, det = write_clip(tmp_path / "walk.mp4", 3), tmp_path / "d.txt"
    det.write_text(square_rows(3))
    for argv, message in [
        (("--detections", det, "--weights", "w.safetensors"), "--weights: no detector is run with --detections"),
        (("--detections", det, "--device", "cpu"), "--device: no detector is run"),
        (("--detections", det, "--video", clip, "--input-size", 416), "--input-size: no detector is run"),
        (("--detections", det, "--set", "detector.score_thresh=0.1"), "--set: no detector is run"),
        (("--detections", det, "--show"), "--show: there are no pictures"),
        (("--detections", det, "--max-latency", 1), "--max-latency: is for live video"),
        (("--detections", det, "--video", clip, "--realtime"), "--realtime: with --detections every frame counts"),
        (("--detections", det, det, "--video", clip), "--detections: expected one file for one --video, got 2 for 1"),
        (("--video", clip, "--embeddings", "e.npy"), "--embeddings: is for --detections"),
        (("--video", clip, "--classes", "0"), "--classes: is for --detections"),
        (("--video", clip, "--score-range", 0, 1), "--score-range: is for --detections"),
    ]:
        assert message in failing(track(*argv, "--out", tmp_path / "out"))
    status, _, err = track("--out", tmp_path / "out")
    assert status == 2 and "one of the arguments --video --detections is required" in err
    assert not (tmp_path / "out").exists()


def test_a_config_may_speak_of_the_detector(track, tmp_path: Path) -> None:
    det, config = tmp_path / "d.txt", tmp_path / "c.yaml"
    det.write_text(square_rows(3))
    config.write_text("detector:\n  score_thresh: 0.3\ntracker:\n  track_buffer: 1.5\n")
    options = ("--config", config, "--out", tmp_path / "out", "--json", tmp_path / "s.json")
    assert track("--detections", det, *options)[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["config"]["tracker"]["track_buffer"] == 1.5


def test_the_network_is_not_loaded(tmp_path: Path) -> None:
    det = tmp_path / "d.txt"
    det.write_text(square_rows(3))
    code = f"""
import runpy, sys
sys.argv = ["track.py", "--detections", {str(det)!r}, "--out", {str(tmp_path / "out")!r}]
try:
    runpy.run_path({str(TRACK)!r}, run_name="__main__")
except SystemExit as stop:
    print("status", stop.code, "torch" in sys.modules, "onnxruntime" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "status 0 False False"


@pytest.mark.shared
def test_public_detections(track, shared: Path, tmp_path: Path) -> None:
    det = shared / "data/mot/MOT17-02-FRCNN/det/det.txt"
    status, out, _ = track("--detections", det, "--out", tmp_path)
    assert status == 0
    assert out.splitlines()[-1].startswith("600 frames, ")
    rows = read_mot(tmp_path / "MOT17-02-FRCNN.txt")
    assert set(rows.frames.tolist()) == set(range(1, 601))
    assert 20 <= len(set(rows.track_ids.tolist())) <= 200
