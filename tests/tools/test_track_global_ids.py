"""`tools/track.py --global-ids`."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tracker.runs
from tests.tools.conftest import failing
from tests.tracker.clips import decoded, scene, square_left, write_clip, write_images
from tracker.draw import track_colour
from tracker.mot import MotRows, read_mot
from tracker.types import Detections

RAW = ("--set", "tracker.output=detection")
PLACE = {"Ann": 10, "Bob": 110, "Cid": 210}
LOOK = {name: row for name, row in zip(PLACE, np.eye(4), strict=False)}


def written(folder: Path, name: str, *people: tuple[str, range]) -> list[Path]:
    """Detections of people who stand in their places, and what these look like."""
    rows = [(frame, who) for who, frames in people for frame in frames]
    text, vectors = folder / f"{name}.txt", folder / f"{name}.npy"
    text.write_text("".join(f"{frame},-1,{PLACE[who]},20,20,50,0.9\n" for frame, who in rows))
    np.save(vectors, np.array([LOOK[who] for _, who in rows]))
    return [text, vectors]


def ids_of(rows: MotRows) -> dict[str, list[int]]:
    """The ids that each place has."""
    names = {left: name for name, left in PLACE.items()}
    found: dict[str, set[int]] = {}
    for left, track_id in zip(rows.tlwh[:, 0].tolist(), rows.track_ids.tolist(), strict=True):
        found.setdefault(names[left], set()).add(track_id)
    return {name: sorted(found[name]) for name in sorted(found)}


@pytest.fixture
def cameras(tmp_path: Path) -> list[object]:
    """Two files, and what belongs to them: Ann comes back in the first, and goes on to the second, as Bob does."""
    a = written(tmp_path, "a", ("Ann", range(1, 21)), ("Bob", range(5, 21)), ("Ann", range(80, 90)))
    b = written(tmp_path, "b", ("Cid", range(1, 31)), ("Bob", range(3, 31)), ("Ann", range(8, 31)))
    return ["--detections", a[0], b[0], "--embeddings", a[1], b[1], "--fps", 10, *RAW, "--out", tmp_path / "out"]


def test_one_person_one_id_in_all_files(track, cameras: list[object], tmp_path: Path) -> None:
    out, summary = tmp_path / "out", tmp_path / "s.json"
    assert track(*cameras, "--json", summary)[0] == 0
    alone = {name: read_mot(out / f"{name}.txt") for name in "ab"}
    assert ids_of(alone["a"]) == {"Ann": [1, 3], "Bob": [2]}
    assert ids_of(alone["b"]) == {"Ann": [3], "Bob": [2], "Cid": [1]}
    report = json.loads(summary.read_text())
    assert report["ids"] == 6
    assert "shared_ids" not in report
    assert report["config"]["offline"]["global_ids"] is False

    status, text, err = track(*cameras, "--global-ids", "--json", summary)
    assert (status, err) == (0, "")
    joined = {name: read_mot(out / f"{name}.txt") for name in "ab"}
    assert ids_of(joined["a"]) == {"Ann": [1], "Bob": [3]}  # frame 1, first file; frame 5, and 3 in the other
    assert ids_of(joined["b"]) == {"Ann": [1], "Bob": [3], "Cid": [2]}
    for name in "ab":
        order = [np.lexsort((table.tlwh[:, 0], table.frames)) for table in (alone[name], joined[name])]
        for column in ("frames", "tlwh", "scores"):
            both = [getattr(t, column)[o] for t, o in zip((alone[name], joined[name]), order, strict=True)]
            np.testing.assert_array_equal(*both)
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.txt"]
    report = json.loads(summary.read_text())
    assert (report["ids"], report["shared_ids"]) == (3, 2)
    assert [run["ids"] for run in report["runs"]] == [2, 3]
    assert "refine" in report["seconds"]
    assert ", 3 ids over all inputs, 2 of them in several, " in text.splitlines()[-1]


def test_threshold_is_a_setting(track, cameras: list[object], tmp_path: Path) -> None:
    settings = ("--set", "offline.global_ids=true", "offline.global_thresh=2")
    assert track(*cameras, *settings, "--json", tmp_path / "s.json")[0] == 0
    # All alike, but those whom a file shows at once: three in the second.
    assert json.loads((tmp_path / "s.json").read_text())["ids"] == 3
    line = failing(track(*cameras, "--set", "offline.global_thresh=0"))
    assert "global_thresh: expected a number above 0 up to 2, got 0" in line


def test_ids_follow_the_time_of_each_file(track, tmp_path: Path) -> None:
    options: list[list[object]] = [[], []]
    for name, who, first, rate in [("slow", "Ann", 10, 5), ("fast", "Bob", 30, 25)]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "seqinfo.ini").write_text(f"[Sequence]\nframeRate={rate}\nseqLength=40\n")
        for option, file in zip(options, written(tmp_path / name, name, (who, range(first, 40))), strict=True):
            option.append(file)
    out = tmp_path / "out"
    assert track("--detections", *options[0], "--embeddings", *options[1], "--out", out, "--global-ids")[0] == 0
    ids = [set(read_mot(out / f"{name}.txt").track_ids.tolist()) for name in ("slow", "fast")]
    assert ids == [{2}, {1}]  # 1.8 and 1.16 seconds


def test_tracks_of_one_file_over_time(track, tmp_path: Path) -> None:
    a = written(tmp_path, "a", ("Ann", range(1, 11)), ("Bob", range(1, 31)), ("Ann", range(60, 80)))
    options = ("--detections", a[0], "--embeddings", a[1], "--fps", 10, *RAW, "--out", tmp_path / "out")
    assert track(*options)[0] == 0
    assert ids_of(read_mot(tmp_path / "out" / "a.txt")) == {"Ann": [1, 3], "Bob": [2]}
    status, text, _ = track(*options, "--global-ids", "--json", tmp_path / "s.json")
    assert status == 0
    assert ids_of(read_mot(tmp_path / "out" / "a.txt")) == {"Ann": [1], "Bob": [2]}
    assert ", 2 ids, " in text.splitlines()[-1]
    assert json.loads((tmp_path / "s.json").read_text())["shared_ids"] == 0


def test_nothing_to_join_changes_no_byte(track, tmp_path: Path) -> None:
    a = written(tmp_path, "a", ("Ann", range(1, 11)), ("Bob", range(3, 31)))
    options = ("--detections", a[0], "--embeddings", a[1], "--fps", 10, "--out", tmp_path / "out")
    assert track(*options)[0] == 0
    before = (tmp_path / "out" / "a.txt").read_bytes()
    assert track(*options, "--global-ids")[0] == 0
    assert (tmp_path / "out" / "a.txt").read_bytes() == before


def test_with_the_other_refinements(track, tmp_path: Path) -> None:
    """The gap is filled first; what was filled hinders nobody, and gives way to what was seen."""
    a = written(tmp_path, "a", ("Ann", range(1, 11)), ("Ann", range(15, 21)), ("Bob", range(60, 71)))
    b = written(tmp_path, "b", ("Bob", range(1, 11)))
    options = ["--detections", a[0], b[0], "--embeddings", a[1], b[1], "--fps", 10, *RAW, "--out", tmp_path / "out"]
    assert track(*options, "--global-ids", "--relink", "--fill-gaps", "--smooth")[0] == 0
    rows = read_mot(tmp_path / "out" / "a.txt")
    assert rows.frames[rows.track_ids == 1].tolist() == list(range(1, 21))
    assert rows.frames[rows.track_ids == 2].tolist() == list(range(61, 71))  # a newcomer is confirmed in the second
    assert set(read_mot(tmp_path / "out" / "b.txt").track_ids.tolist()) == {2}


def test_embeddings_are_needed(track, tmp_path: Path) -> None:
    a, b = written(tmp_path, "a", ("Ann", range(1, 9))), written(tmp_path, "b", ("Ann", range(1, 9)))
    options = ["--detections", a[0], b[0], "--out", tmp_path / "out", "--global-ids"]
    assert failing(track(*options)).endswith("--global-ids: expected --embeddings that can be compared, got none")
    np.save(b[1], np.ones((8, 7)))
    line = failing(track(*options, "--embeddings", a[1], b[1]))
    assert line.endswith("--global-ids: expected --embeddings that can be compared, got those of 4 and 7 numbers")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_session_is_as_tracked(
    track, cameras: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert track(*cameras)[0] == 0
    alone = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt(2)

    with monkeypatch.context() as patch:
        patch.setattr(tracker.runs, "join_cameras", interrupt)
        status, text, err = track(*cameras, "--global-ids", "--json", tmp_path / "s.json")
    assert (status, err) == (130, "interrupted while refining; all results are complete, 0 of 2 are refined\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == alone
    assert ", 6 ids, " in text.splitlines()[-1]
    assert "shared_ids" not in json.loads((tmp_path / "s.json").read_text())


def test_files_change_together_or_not_at_all(
    track, cameras: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert track(*cameras)[0] == 0
    alone = {path.name: path.read_bytes() for path in out.iterdir()}
    rewritten = tracker.runs.rewritten

    def full(output, results):
        if output.text.name == "b.txt":
            raise OSError(28, "No space left on device", str(output.text))
        return rewritten(output, results)

    monkeypatch.setattr(tracker.runs, "rewritten", full)
    assert "b.txt: no space left on device" in failing(track(*cameras, "--global-ids"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == alone


def find_with_looks(frames: list) -> list[Detections]:
    """The square of `clips.scene`; below it, in wide pictures alone, somebody who stands still and comes first."""
    found = []
    for frame in frames:
        left = square_left(frame)
        boxes = [[left, 20, left + 16, 36]]
        looks = [[1.0, 0.0, 0.0]]
        if frame.shape[1] > 100:
            boxes, looks = [[10, 40, 26, 60], *boxes], [[0.0, 1.0, 0.0], *looks]
        found.append(Detections(np.array(boxes), np.full(len(boxes), 0.9), np.array(looks)))
    return found


@pytest.fixture
def looking(track, track_tool: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """The tool with a detector that says what the square looks like."""
    monkeypatch.setattr(track_tool, "load", lambda args, config: (find_with_looks, 1, 1))
    return track


def edge_colour(film: Path, frame: int) -> np.ndarray:
    """The colour along the upper edge of the square's box, in a film of a scene."""
    left = square_left(scene(frame, (128, 80)))
    return decoded(film)[frame - 1][20, left + 2 : left + 15].mean(axis=0)


def test_films_show_the_common_ids(looking, tmp_path: Path) -> None:
    narrow = write_clip(tmp_path / "narrow.mp4", 20)
    wide = write_clip(tmp_path / "wide.mp4", 15, size=(128, 80))
    out, films = tmp_path / "out", {}
    for options, of_square in [((), 2), (("--global-ids",), 1)]:
        assert looking("--video", narrow, wide, "--out", out, *RAW, *options)[0] == 0
        assert set(read_mot(out / "narrow.txt").track_ids.tolist()) == {1}
        rows = read_mot(out / "wide.txt")
        assert rows.frames.tolist() == sorted(2 * list(range(1, 16)))
        assert set(rows.track_ids[rows.tlwh[:, 1] == 20].tolist()) == {of_square}
        shown = edge_colour(out / "wide.tracked.mp4", 8)
        distances = {i: np.abs(shown - track_colour(i)).max() for i in (1, 2)}
        assert min(distances, key=distances.get) == of_square
        films[of_square] = [len(decoded(out / f"{name}.tracked.mp4")) for name in ("narrow", "wide")]
    assert films == {1: [20, 15], 2: [20, 15]}
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}{end}" for name in ("narrow", "wide") for end in (".tracked.mp4", ".txt")
    ]


def test_a_video_that_breaks_off_is_joined_up_to_there(looking, tmp_path: Path) -> None:
    images, clip = write_images(tmp_path / "walk", 20), write_clip(tmp_path / "wide.mp4", 15, size=(128, 80))
    (images / "11.png").write_bytes(b"to be or not to be")
    out = tmp_path / "out"
    status, text, _ = looking("--video", clip, images, "--out", out, "--global-ids", *RAW)
    assert status == 1
    assert ", 2 ids over all inputs, 1 of them in several, " in text.splitlines()[-1]
    assert set(read_mot(out / "walk.txt").track_ids.tolist()) == {2}
    assert len(decoded(out / "walk.tracked.mp4")) == 10


def test_a_model_that_describes_nobody(track, tmp_path: Path) -> None:
    clips = [write_clip(tmp_path / name, 6) for name in ("a.mp4", "b.mp4")]
    status, text, err = track("--video", *clips, "--no-video", "--global-ids")
    assert status == 0
    assert err == "note: no embedding describes anybody, so that every track has a global id of its own\n"
    assert [set(read_mot(tmp_path / f"{name}.txt").track_ids.tolist()) for name in "ab"] == [{1}, {2}]
    assert ", 2 ids over all inputs, 0 of them in several, " in text.splitlines()[-1]


def test_nobody_at_all(track, track_tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track_tool, "load", lambda args, config: (lambda fs: [Detections.empty() for _ in fs], 1, 1))
    clips = [write_clip(tmp_path / name, 4) for name in ("a.mp4", "b.mp4")]
    status, text, err = track("--video", *clips, "--global-ids")
    assert status == 0
    assert err.count("\n") == 1 and "nobody scored" in err
    assert ", 0 ids over all inputs, 0 of them in several, " in text.splitlines()[-1]
    for name in "ab":
        assert (tmp_path / f"{name}.txt").read_text() == ""
        assert len(decoded(tmp_path / f"{name}.tracked.mp4")) == 4


def test_live_pictures_do_not_come_again(looking, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 5)
    options = ("--video", clip, "--realtime", "--global-ids", "--out", tmp_path / "out")
    assert "is live, and cannot be drawn again with refined results; add --no-video" in failing(looking(*options))
    assert not (tmp_path / "out").exists()
    assert looking(*options, "--no-video")[0] == 0
