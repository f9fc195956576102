from pathlib import Path

import numpy as np
import pytest

from tests.tracker.clips import SIZE, decoded, scene
from tracker.mot import read_mot
from tracker.output import Output, choose_places, claim, rewritten
from tracker.types import FrameResult


def result(frame: int, ids: list[int], class_id: int = 0) -> FrameResult:
    n = len(ids)
    xyxy = np.tile(np.float32([10, 20, 40, 60]), (n, 1))
    return FrameResult(frame, np.array(ids, np.int64), xyxy, np.ones(n, np.float32), np.full(n, class_id))


def test_files_and_counts(tmp_path: Path) -> None:
    with Output(tmp_path / "a.txt", tmp_path / "a.mp4", SIZE, 25.0, with_classes=True) as output:
        for frame, ids in [(1, [1]), (2, [1, 2]), (3, [])]:
            output.add(scene(frame), result(frame, ids, class_id=5))
    assert (output.frames, output.boxes, output.ids, output.last_frame) == (3, 3, {1, 2}, 3)
    assert output.seconds > 0
    assert read_mot(tmp_path / "a.txt").classes.tolist() == [5, 5, 5]
    film = decoded(tmp_path / "a.mp4")
    assert len(film) == 3
    assert np.abs(film[0].astype(int) - scene(1)).max() > 100


def test_nothing_is_opened_before_the_first_result(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with Output(tmp_path / "a.txt", tmp_path / "a.mp4", SIZE):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"
    assert not (tmp_path / "a.mp4").exists()


def test_frames_are_drawn_on_without_a_film(tmp_path: Path) -> None:
    frame = scene(1)
    with Output(None, None, SIZE) as output:
        output.add(frame, result(1, [1]))
    assert (frame != scene(1)).any()
    assert not list(tmp_path.iterdir())


def test_a_whole_file_takes_the_place_of_the_old_one_only_when_complete(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("old")

    def broken():
        yield result(1, [1])
        assert text.read_text() == "old"
        raise ValueError("no more")

    old = Output(text, frame_rate=12.5, with_classes=True)
    with pytest.raises(ValueError, match="no more"), rewritten(old, broken()):
        pass
    assert text.read_text() == "old"
    with pytest.raises(ValueError, match="not now"), rewritten(old, [result(1, [1])]):
        raise ValueError("not now")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with rewritten(old, [result(1, [1], class_id=3), result(2, [1, 4])]) as made:
        assert text.read_text() == "old"
    assert (made.text, made.frames, made.boxes, made.ids) == (text, 2, 3, {1, 4})
    assert (made.frame_rate, made.with_classes) == (12.5, True)
    assert read_mot(text).classes.tolist() == [3, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_places(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    taken: dict[Path, str] = {}
    places = choose_places([a, a, b, a], ["cam", "cam", "cam", "cam-2"], True, taken)
    assert [text for text, _ in places] == [a / "cam.txt", a / "cam-2.txt", b / "cam.txt", a / "cam-2-2.txt"]
    assert places[1][1] == a / "cam-2.tracked.mp4"
    assert choose_places([b], ["film"], False, taken) == [(b / "film.txt", None)]
    with pytest.raises(ValueError, match=r"cam\.txt: the result would overwrite an input; choose another place"):
        choose_places([a], ["cam"], False, {(a / "cam.txt").resolve(): "an input"})
    with pytest.raises(ValueError, match=r"cam\.txt: the result would overwrite another result"):
        claim(a / "cam.txt", taken)
    with pytest.raises(ValueError, match="gone: no such folder"):
        claim(tmp_path / "gone" / "s.json", taken)
    with pytest.raises(ValueError, match="b: cannot be written"):
        claim(b, taken)
