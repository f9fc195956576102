"""`tools/track.py` with `--relink`, `--fill-gaps` and `--smooth`."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tracker.runs
from tests.tools.conftest import failing
from tests.tracker.clips import decoded, find_square, square_left, write_clip, write_images
from tracker.mot import MotRows, read_mot
from tracker.types import Detections

HIDDEN = range(11, 16)


def find_at_times(frames: list) -> list[Detections]:
    """The square, but not in the frames `HIDDEN` (the square stands at its frame's number)."""
    found = find_square(frames)
    return [Detections.empty() if square_left(f) in HIDDEN else d for f, d in zip(frames, found, strict=True)]


@pytest.fixture
def blinking(track, track_tool: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """The tool with a detector that misses a few frames."""
    monkeypatch.setattr(track_tool, "load", lambda args, config: (find_at_times, 1, 1))
    return track


def rows_with(track, file: Path, *options: object) -> MotRows:
    out = file.parent / "out"
    raw = ("--set", "tracker.output=detection")
    assert track("--detections", file, "--out", out, "--fps", 10, *raw, *options)[0] == 0
    assert [path.name for path in out.iterdir()] == [file.name]
    return read_mot(out / file.name)


def test_gaps_are_filled_on_request(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    frames = [1, 2, 3, 4, 5, 9, 10, 11]
    file.write_text("".join(f"{frame},-1,{50 + 2 * frame},20,20,50,0.9\n" for frame in frames))
    assert rows_with(track, file).frames.tolist() == frames
    rows = rows_with(track, file, "--fill-gaps")
    assert rows.frames.tolist() == list(range(1, 12))
    assert rows.tlwh[:, 0].tolist() == [50 + 2 * frame for frame in range(1, 12)]
    assert [score == 0 for score in rows.scores] == [frame not in frames for frame in range(1, 12)]
    assert rows_with(track, file, "--fill-gaps", 0.2).frames.tolist() == frames
    assert rows_with(track, file, "--set", "offline.fill_gaps=0.3").frames.tolist() == list(range(1, 12))
    line = failing(track("--detections", file, "--out", tmp_path / "out", "--fill-gaps", -1))
    assert "fill_gaps: expected a number of at least 0, got -1" in line


def test_boxes_are_smoothed_on_request(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    noise = np.random.default_rng(0).normal(0, 2, 60)
    truth = 50 + 2 * np.arange(1, 61)
    file.write_text("".join(f"{i + 1},-1,{truth[i] + noise[i]:.2f},20,20,50,0.9\n" for i in range(60)))
    error = [np.abs(rows_with(track, file, *o).tlwh[:, 0] - truth).mean() for o in ((), ("--smooth",))]
    assert error[1] < 0.7 * error[0]


def test_pieces_are_joined_on_request(track, tmp_path: Path) -> None:
    file = tmp_path / "walk.txt"
    frames = [*range(1, 21), *range(51, 71)]  # away for three seconds, kept for one
    file.write_text("".join(f"{frame},-1,100,20,40,100,0.9\n" for frame in frames))
    np.save(tmp_path / "e.npy", np.ones((len(frames), 4)))
    options = ("--embeddings", tmp_path / "e.npy", "--set", "tracker.track_buffer=1", "--json", tmp_path / "s.json")
    for more, ids in [((), 2), (("--relink",), 1)]:
        rows = rows_with(track, file, *options, *more)
        assert rows.frames.tolist() == [f for f in frames if f != 51]  # a newcomer is confirmed in the second frame
        report = json.loads((tmp_path / "s.json").read_text())
        assert report["ids"] == len(set(rows.track_ids.tolist())) == ids
        assert report["config"]["offline"]["relink"] == bool(more)
        assert ("refine" in report["seconds"]) == bool(more)


def test_film_shows_the_refined_result(blinking, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 30), tmp_path / "out"
    for options, boxes in [((), 25), (("--fill-gaps",), 30)]:
        status, text, err = blinking("--video", clip, "--out", out, "--json", tmp_path / "s.json", *options)
        assert (status, err) == (0, "")
        assert len(read_mot(out / "walk.txt")) == boxes
        changed = [
            np.abs(a.astype(int) - b).max() > 100
            for a, b in zip(decoded(clip), decoded(out / "walk.tracked.mp4"), strict=True)
        ]
        assert changed[0] and changed[-1]
        assert all(changed) == bool(options)
        assert sorted(path.name for path in out.iterdir()) == ["walk.tracked.mp4", "walk.txt"]
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["boxes"] == 30
    assert report["outputs"] == [str(out / "walk.txt"), str(out / "walk.tracked.mp4")]
    assert text.splitlines()[-1].startswith("30 frames, 1.0 people a frame, 1 id, ")


def test_range_and_folder(blinking, tmp_path: Path) -> None:
    images = write_images(tmp_path / "walk", 30)
    assert blinking("--video", images, "--start", 6, "--end", 20, "--fill-gaps")[0] == 0
    assert read_mot(tmp_path / "walk.txt").frames.tolist() == list(range(6, 21))
    assert len(decoded(tmp_path / "walk.tracked.mp4")) == 15


def test_several_videos(blinking, tmp_path: Path) -> None:
    clips = [write_clip(tmp_path / name, count) for name, count in [("a.mp4", 30), ("b.mp4", 20)]]
    status, text, _ = blinking("--video", *clips, "--out", tmp_path / "out", "--fill-gaps")
    assert status == 0
    assert f"{clips[1]}: 20 frames, 1.0 people a frame, 1 id" in text
    for name, count in [("a", 30), ("b", 20)]:
        assert len(read_mot(tmp_path / "out" / f"{name}.txt")) == count
        assert len(decoded(tmp_path / "out" / f"{name}.tracked.mp4")) == count


def test_a_video_that_breaks_off_is_refined_up_to_there(blinking, tmp_path: Path) -> None:
    images = write_images(tmp_path / "walk", 30)
    (images / "21.png").write_bytes(b"to be or not to be")
    line = failing(blinking("--video", images, "--fill-gaps"))
    assert "21.png: not a readable image" in line
    assert read_mot(tmp_path / "walk.txt").frames.tolist() == list(range(1, 21))
    assert len(decoded(tmp_path / "walk.tracked.mp4")) == 20


def test_a_failure_leaves_the_result_as_tracked(blinking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 30), tmp_path / "out"

    def broken(*args: object) -> None:
        raise ValueError("no mending today")

    monkeypatch.setattr(tracker.runs, "refine", broken)
    outcome = blinking("--video", clip, "--out", out, "--smooth")
    assert failing(outcome) == "error: no mending today"
    assert len(read_mot(out / "walk.txt")) == 25
    assert [path.name for path in out.iterdir()] == ["walk.txt"]


@pytest.mark.parametrize("stage", ["follow", "refine"])
def test_interrupted(blinking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 30), tmp_path / "out"

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt(2)

    if stage == "refine":
        monkeypatch.setattr(tracker.runs, "refine", interrupt)
    else:
        add = tracker.runs.Output.add
        monkeypatch.setattr(
            tracker.runs.Output, "add", lambda self, f, r: interrupt() if r.frame == 20 else add(self, f, r)
        )
    status, _, err = blinking("--video", clip, "--out", out, "--fill-gaps")
    assert status == 130
    expected = {
        "follow": "interrupted after frame 19; the results are complete up to there, but not refined\n",
        "refine": "interrupted while refining; all results are complete, 0 of 1 are refined\n",
    }
    assert err == expected[stage]
    assert len(read_mot(out / "walk.txt")) == (14 if stage == "follow" else 25)


def test_live_pictures_do_not_come_again(blinking, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    options = ("--video", clip, "--realtime", "--smooth", "--out", tmp_path / "out")
    assert f"{clip}: is live, and cannot be drawn again with refined results; add --no-video" in failing(
        blinking(*options)
    )
    assert not (tmp_path / "out").exists()
    assert blinking(*options, "--no-video")[0] == 0
