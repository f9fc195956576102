from pathlib import Path

import numpy as np
import pytest

from tracker.detection_file import read_detection_file


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


ROWS = "3,-1,10,20,30,40,0.5\n1,-1,1,2,3,4,0.9\n\n3,-1,5,5,5,5,0.7\n"


def test_rows_in_any_order_come_by_frame(tmp_path: Path) -> None:
    file = read_detection_file(write(tmp_path / "walk.txt", ROWS))
    assert (file.name, file.frame_rate, file.length, file.last_frame) == ("walk", None, 3, 3)
    assert not file.has_classes and file.notes == ()
    np.testing.assert_array_equal(file.at(3).xyxy, [[10, 20, 40, 60], [5, 5, 10, 10]])
    np.testing.assert_allclose(file.at(3).scores, [0.5, 0.7])
    assert file.at(1).xyxy.tolist() == [[1, 2, 4, 6]]
    assert len(file.at(2)) == len(file.at(0)) == len(file.at(4)) == 0
    assert file.at(3).classes.tolist() == [0, 0]


def test_name_of_the_sequence_and_its_description(tmp_path: Path) -> None:
    path = write(tmp_path / "SEQ-01" / "det" / "det.txt", ROWS)
    file = read_detection_file(path)
    assert (file.name, file.frame_rate, file.length) == ("SEQ-01", None, 3)
    info = write(tmp_path / "SEQ-01" / "seqinfo.ini", "[Sequence]\nname=other\nframeRate=12.5\nseqLength=5\n")
    file = read_detection_file(path)
    assert (file.name, file.frame_rate, file.length, file.last_frame) == ("SEQ-01", 12.5, 5, 3)
    other = write(tmp_path / "SEQ-01" / "det" / "yolo.txt", ROWS)
    assert (read_detection_file(other).name, read_detection_file(other).length) == ("yolo", 5)
    assert read_detection_file(write(tmp_path / "SEQ-01" / "mine.txt", ROWS)).frame_rate == 12.5
    info.write_text("[Sequence]\nframeRate=12.5\nseqLength=2\n")
    file = read_detection_file(path)
    assert (file.length, file.last_frame, len(file.detections)) == (2, 1, 1)
    assert file.notes == ("2 detections lie behind frame 2, the sequence's last, and are left out",)
    info.write_text("[Sequence]\nframeRate=no\nseqLength=2\n")
    with pytest.raises(ValueError, match=r"seqinfo\.ini: frameRate"):
        read_detection_file(path)


def test_name_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "SEQ-01" / "det" / "det.txt", ROWS)
    monkeypatch.chdir(tmp_path / "SEQ-01" / "det")
    assert read_detection_file("det.txt").name == "SEQ-01"


def test_scores_that_are_no_probabilities(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f"{i},-1,0,0,5,9,{s}\n" for i, s in enumerate((-0.5, 0.25, 50), 1)))
    file = read_detection_file(path)
    assert file.detections.scores.tolist() == [0, 0.25, 1]
    assert "2 of 3 scores lie outside 0 to 1 (they go from -0.5 to 50) and count as 0 or 1" in file.notes[0]
    mapped = read_detection_file(path, score_range=(-0.5, 1))
    np.testing.assert_allclose(mapped.detections.scores, [0, 0.5, 1])
    assert mapped.notes == ()
    for wrong in ((1, 1), (1, 0), (float("nan"), 1), (0, float("inf"))):
        with pytest.raises(ValueError, match="score range: expected a lower and a higher score"):
            read_detection_file(path, score_range=wrong)


def test_scores_that_are_not_given(tmp_path: Path) -> None:
    for row in ("1,-1,0,0,5,9", "1,3,0,0,5,9,-1,-1,-1,-1"):
        file = read_detection_file(write(tmp_path / "a.txt", row + "\n"))
        assert file.detections.scores.tolist() == [1] and file.notes == ()


def test_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "1,-1,0,0,5,9,1,2\n1,-1,9,0,5,9,1,0\n2,-1,0,0,5,9,1,7\n")
    file = read_detection_file(path)
    assert file.has_classes and file.at(1).classes.tolist() == [2, 0]
    chosen = read_detection_file(path, classes=[0, 7])
    assert chosen.detections.classes.tolist() == [0, 7] and chosen.length == 2
    with pytest.raises(ValueError, match=r"a\.txt: no detection of class 1; there are 0, 2, 7"):
        read_detection_file(path, classes=[0, 1])
    with pytest.raises(ValueError, match="have no class to choose by"):
        read_detection_file(write(tmp_path / "b.txt", ROWS), classes=[0])
    with pytest.raises(ValueError, match="class: expected it in every row or in none, 1 of 2 lack it"):
        read_detection_file(write(tmp_path / "c.txt", "1,-1,0,0,5,9,1,2\n1,-1,9,0,5,9,1,-1\n"))
    with pytest.raises(ValueError, match="class: expected numbers from 0, or -1 for none, got -3"):
        read_detection_file(write(tmp_path / "d.txt", "1,-1,0,0,5,9,1,-3\n"))


def test_embeddings_belong_to_the_rows_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ROWS)
    array = np.array([[3.0, 4, 0], [1, 0, 0], [0, 0, 2]])
    np.save(tmp_path / "e.npy", array)
    np.savez(tmp_path / "e.npz", anything=array.astype(np.float16))
    for name in ("e.npy", "e.npz"):
        file = read_detection_file(path, tmp_path / name)
        np.testing.assert_allclose(file.at(1).embeddings, [[1, 0, 0]])
        np.testing.assert_allclose(file.at(3).embeddings, [[0.6, 0.8, 0], [0, 0, 1]], rtol=1e-6)


def test_wrong_embeddings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ROWS)
    good = np.ones((3, 4))
    hollow, absent = good.copy(), good.copy()
    hollow[1, 2], absent[2] = np.nan, 0
    for array, message in [
        (good[:2], r"expected an array \(3, D\), a row for each of .*a\.txt, got \(2, 4\)"),
        (good[0], r"expected an array \(3, D\).*, got \(4,\)"),
        (hollow, "embeddings: row 1 is not finite"),
        (absent, "embeddings: row 2 has length zero"),
        (np.array([None] * 3), "not a .npy or .npz file of numbers"),
        (good.astype(str), "embeddings: expected an array of numbers"),
    ]:
        np.save(tmp_path / "e.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=r"e\.npy: " + message):
            read_detection_file(path, tmp_path / "e.npy")
    np.savez(tmp_path / "two.npz", a=good, b=good)
    with pytest.raises(ValueError, match=r"two\.npz: .*expected one array, got 2: a, b"):
        read_detection_file(path, tmp_path / "two.npz")
    for data in (b"", b"to be or not to be", (tmp_path / "two.npz").read_bytes()[:100]):
        (tmp_path / "broken.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"broken\.npz: not a .npy or .npz file of numbers"):
            read_detection_file(path, tmp_path / "broken.npz")
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        read_detection_file(path, tmp_path / "gone.npy")


def test_files_that_are_no_detections(tmp_path: Path) -> None:
    for text, message in [
        ("", r"a\.txt: no detections in this file"),
        ("1,-1,0,0,5,9,1\n1,-1,0,0,x,9,1\n", r"a\.txt:2: width: expected a number, got 'x'"),
        ("1.7e9,-1,0,0,5,9,1\n", r"a\.txt:1: frame: expected a number up to 10,000,000, got 1700000000"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_detection_file(write(tmp_path / "a.txt", text))
    with pytest.raises(FileNotFoundError):
        read_detection_file(tmp_path / "gone.txt")


@pytest.mark.shared
def test_public_detections(shared: Path) -> None:
    path = shared / "data/mot/MOT17-02-FRCNN/det/det.txt"
    file = read_detection_file(path)
    assert (file.name, file.frame_rate, file.length, file.notes) == ("MOT17-02-FRCNN", 30, 600, ())
    table = np.loadtxt(path, delimiter=",")
    assert sum(len(file.at(frame)) for frame in range(1, 601)) == len(table)
    of_frame = table[table[:, 0] == 69]
    np.testing.assert_allclose(file.at(69).xyxy[:, :2], of_frame[:, 2:4])
    np.testing.assert_allclose(file.at(69).scores, of_frame[:, 6])
