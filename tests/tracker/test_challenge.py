"""What is scored against what: folders, files, lists of sequences, halves; archives to hand in."""

import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tracker.test_evaluation import RESULT, add_sequence
from tracker.challenge import find_sequences, find_tasks, half_of, read_seqmap, same_pictures, write_submission
from tracker.mot import MotSequence


@pytest.fixture
def folders(tmp_path):
    """Sequences MOT17-02-FRCNN, MOT17-02-SDP and B of three frames with their results."""
    for name in ("MOT17-02-FRCNN", "MOT17-02-SDP", "B"):
        add_sequence(tmp_path, name)
    return tmp_path


def found(gt, results, sequences=None):
    return [task.name for task in find_tasks(gt, results, sequences)]


def test_all_sequences_of_a_folder(folders):
    tasks = find_tasks(folders / "gt", folders / "results")
    assert [task.name for task in tasks] == ["B", "MOT17-02-FRCNN", "MOT17-02-SDP"]
    assert (tasks[0].sequence.length, tasks[0].sequence.frame_rate) == (3, 25)
    assert tasks[0].truth == folders / "gt" / "B" / "gt" / "gt.txt"
    assert tasks[0].results == folders / "results" / "B.txt"
    assert tasks[0].sequence.image_dir == folders / "gt" / "B" / "img1"


def test_names_and_patterns(folders):
    assert found(folders / "gt", folders / "results", ["MOT17-*"]) == ["MOT17-02-FRCNN", "MOT17-02-SDP"]
    assert found(folders / "gt", folders / "results", ["B", "*-SDP"]) == ["B", "MOT17-02-SDP"]
    with pytest.raises(ValueError, match=r"sequences: expected one of B, .* got 'MOT20-\*'"):
        find_tasks(folders / "gt", folders / "results", ["MOT20-*"])
    with pytest.raises(ValueError, match="expected different names, at least one"):
        find_tasks(folders / "gt", folders / "results", [])


def test_folders_above_are_found(folders):
    (folders / "MOT17").mkdir()
    (folders / "gt").rename(folders / "MOT17" / "train")
    (folders / "mine").mkdir()
    (folders / "results").rename(folders / "mine" / "data")
    assert len(find_tasks(folders / "MOT17", folders / "mine")) == 3


def test_one_sequence(folders, monkeypatch):
    folder = folders / "gt" / "B"
    for results in (folders / "results", folders / "results" / "B.txt"):
        assert found(folder, results) == ["B"]
    other = folders / "mine.txt"
    other.write_text("")
    assert find_tasks(folder, other)[0].results == other
    monkeypatch.chdir(folder)
    assert found(".", folders / "results") == ["B"]


def test_one_pair_of_files(folders):
    gt, result = folders / "gt" / "B" / "gt" / "gt.txt", folders / "results" / "B.txt"
    task = find_tasks(gt, result)[0]
    assert (task.name, task.sequence.length, task.truth) == ("B", 3, gt)
    (folders / "gt" / "B" / "seqinfo.ini").unlink()
    assert (find_tasks(gt, result)[0].name, find_tasks(gt, result)[0].sequence) == ("B", None)
    gt.rename(folders / "any.txt")
    assert find_tasks(folders / "any.txt", result)[0].name == "B"  # the result's
    with pytest.raises(ValueError, match=r"results: expected a file of results, as .*any\.txt is one of ground truth"):
        find_tasks(folders / "any.txt", folders / "results")
    with pytest.raises(ValueError, match=r"sequences: expected B .* got 'C'"):
        find_tasks(folders / "any.txt", result, ["C"])


def test_one_file_is_not_the_result_of_several_sequences(folders):
    with pytest.raises(ValueError, match=r"B\.txt: expected a folder with a result for each of B, MOT17-02-FRCNN"):
        find_tasks(folders / "gt", folders / "results" / "B.txt")


def test_a_missing_result_is_named_and_counted(folders):
    (folders / "results" / "MOT17-02-SDP.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"SDP\.txt: no such file; expected a result for each of 3"):
        find_tasks(folders / "gt", folders / "results")


def test_more_pictures_than_frames(folders):
    pictures = folders / "gt" / "B" / "img1"
    pictures.mkdir()
    for number in range(1, 5):
        cv2.imwrite(str(pictures / f"{number:06d}.jpg"), np.zeros((8, 8, 3), np.uint8))
        if number <= 3:  # fewer are enough to look at
            find_tasks(folders / "gt" / "B", folders / "results")
    with pytest.raises(ValueError, match=r"seqinfo\.ini: seqLength: expected at least 4, the pictures in .*1, got 3"):
        find_tasks(folders / "gt" / "B", folders / "results")


def test_nothing_there(folders):
    for gt, results in ((folders / "no", folders / "results"), (folders / "gt", folders / "no")):
        with pytest.raises(FileNotFoundError, match="no: no such file or folder"):
            find_tasks(gt, results)
    with pytest.raises(FileNotFoundError, match="no: no such folder"):
        find_sequences(folders / "no")


def test_list_of_sequences(tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("name\nMOT17-02-FRCNN\n\nB\n")
    assert read_seqmap(path) == ["MOT17-02-FRCNN", "B"]
    path.write_text("B")
    assert read_seqmap(path) == ["B"]
    for text, message in [
        ("name\nB\nB\n", "map.txt:3: B comes twice"),
        ("../secret\n", "map.txt:1: expected the name of a sequence, got '../secret'"),
        ("B*\n", re.escape("map.txt:1: expected the name of a sequence, got 'B*'")),
        ("..\n", "map.txt:1: expected the name"),
        ("name\n", "map.txt: expected names of sequences, one a line, found none"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_seqmap(path)


@pytest.mark.parametrize("length", [1, 2, 3, 599, 600])
def test_halves_together_are_the_sequence(length):
    train, val = half_of(length, "train"), half_of(length, "val")
    assert train[0] == 1 and val == (train[1] + 1, length)


def test_halves_of_mot17():
    # Frames 0 ... n // 2 and n // 2 + 1 ... n - 1, counted from 0.
    assert half_of(600, "train") == (1, 301)
    assert half_of(525, "val") == (264, 525)


def test_copies_of_a_sequence():
    lengths = {"MOT17-02-DPM": 600, "MOT17-02-SDP": 600, "MOT17-04-DPM": 9, "MOT17-04-SDP": 8, "MOT20-01": 9}
    sequences = [MotSequence(name, 30, length, Path(), Path(name)) for name, length in lengths.items()]
    groups = [[sequence.name for sequence in group] for group in same_pictures(sequences)]
    assert groups == [["MOT17-02-DPM", "MOT17-02-SDP"], ["MOT17-04-DPM"], ["MOT17-04-SDP"], ["MOT20-01"]]


def test_a_sequence_with_the_name_of_a_figure(folders):
    add_sequence(folders, "COMBINED")
    with pytest.raises(ValueError, match="COMBINED: expected another name"):
        find_tasks(folders / "gt", folders / "results")


def test_archive_to_hand_in(folders):
    path = folders / "mine.zip"
    write_submission(path, {task.name: task.results for task in find_tasks(folders / "gt", folders / "results")})
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["B.txt", "MOT17-02-FRCNN.txt", "MOT17-02-SDP.txt"]
        assert archive.read("B.txt").decode() == "\n".join(RESULT) + "\n"
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        write_submission(path, {"A": Path("no")})
    assert path.read_bytes() == before and not list(folders.glob("*.part"))
