import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracker.mot import NO_CLASS, MotWriter, line_of, read_mot, read_seqinfo
from tracker.types import FrameResult


def result(frame: int, ids: list[int], xyxy: list[list[float]]) -> FrameResult:
    n = len(ids)
    return FrameResult(
        frame,
        np.array(ids, np.int64),
        np.array(xyxy, np.float32).reshape(n, 4),
        np.linspace(0.5, 1.0, n, dtype=np.float32),
        np.zeros(n, np.int64),
    )


def test_row_is_what_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with MotWriter(path) as writer:
        writer.write(result(7, [3], [[-1.5, 2, 10.25, 30]]))
    assert path.read_text() == "7,3,-1.50,2.00,11.75,28.00,0.5000,-1,-1,-1\n"


def test_classes_are_written_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    given = result(1, [1, 2], [[0, 0, 5, 5], [1, 1, 4, 9]])
    with MotWriter(path, with_classes=True) as writer:
        writer.write(replace(given, classes=np.array([0, 7])))
    assert path.read_text() == "1,1,0.00,0.00,5.00,5.00,0.5000,0,-1,-1\n1,2,1.00,1.00,3.00,8.00,1.0000,7,-1,-1\n"
    assert read_mot(path).classes.tolist() == [0, 7]


def test_a_place_in_the_world_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1,1,88,99,61.08,218.56,1,4.4852,5.5016,0\n1,2,88,99,61,218,1,3,-1,-1\n1,2,88,99,61,218,1,3,0.5\n")
    rows = read_mot(path)
    assert rows.classes.tolist() == [-1, 3, 3]
    assert rows.visibility.tolist() == [-1, -1, 0.5]


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf1,-1,0,0,5,5,0.5\r\n2,-1,0,0,5,5,0.5\r\n")
    assert read_mot(path).frames.tolist() == [1, 2]


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.txt"
    expected = []
    with MotWriter(path) as writer:
        for frame in range(1, 20):
            n = int(rng.integers(0, 5))
            corner = rng.uniform(-50, 1000, (n, 2))
            xyxy = np.concatenate([corner, corner + rng.uniform(1, 300, (n, 2))], axis=1)
            writer.write(result(frame, list(range(1, n + 1)), xyxy.tolist()))
            expected += [(frame, i + 1, *b[:2], b[2] - b[0], b[3] - b[1]) for i, b in enumerate(xyxy.tolist())]
    rows = read_mot(path)
    assert len(rows) == len(expected) > 10
    got = np.column_stack([rows.frames, rows.track_ids, rows.tlwh])
    np.testing.assert_allclose(got, expected, atol=0.006)
    assert (rows.classes == -1).all() and (rows.visibility == -1).all()


def test_each_frame_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    writer = MotWriter(path)
    for frame in (1, 2, 3):
        writer.write(result(frame, [1, 2], [[0, 0, 5, 5], [9, 9, 20, 20]]))
        assert path.read_text().count("\n") == 2 * frame
    writer.close()


def test_empty_frame_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with MotWriter(path) as writer:
        writer.write(result(1, [], []))
    assert path.read_bytes() == b""
    assert len(read_mot(path)) == 0
    assert read_mot(path).tlwh.shape == (0, 4)


def test_full_disk_is_an_error_that_names_the_file() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a Linux device")
    with MotWriter("/dev/full") as writer, pytest.raises(OSError, match="/dev/full") as caught:
        writer.write(result(1, [1], [[0, 0, 5, 5]]))
    assert caught.value.errno == errno.ENOSPC


def test_half_written_rows_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    writer = MotWriter(path)
    writer.write(result(1, [1], [[0, 0, 5, 5]]))
    whole = path.read_bytes()

    class NearlyFull:
        def __init__(self, file: object) -> None:
            self.file = file
            self.room = 10

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= (count := self.file.write(data[: self.room]))
            return count

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    monkeypatch.setattr(writer, "_file", NearlyFull(writer._file))
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        writer.write(result(2, [1], [[0, 0, 5, 5]]))
    writer.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,1,0,0,x,5,1", r"a\.txt:3: width: expected a number, got 'x'"),
        ("1,1,0,0,5", r"a\.txt:3: expected 6 to 10 fields .*, got 5"),
        ("1,1,0,0,5,5,1,-1,-1,-1,-1", r"a\.txt:3: expected 6 to 10 fields .*, got 11"),
        ("1,1,0,0,-5,5,1", r"a\.txt:3: width: expected a size of at least 0, got -5"),
        ("1,1,0,0,5,-1,1", r"a\.txt:3: height: expected a size of at least 0, got -1"),
        ("0,1,0,0,5,5,1", r"a\.txt:3: frame: expected a number from 1, got 0"),
        ("1.5,1,0,0,5,5,1", r"a\.txt:3: frame: expected a whole number, got 1.5"),
        ("1,2.5,0,0,5,5,1", r"a\.txt:3: id: expected a whole number, got 2.5"),
        ("1,1,nan,0,5,5,1", r"a\.txt:3: left: expected a finite number, got 'nan'"),
        ("1,1,0,inf,5,5,1", r"a\.txt:3: top: expected a finite number, got 'inf'"),
        ("1,1,0,0,1e39,5,1", r"a\.txt:3: width: expected a number up to 1e\+15, got 1e39"),
        ("1e300,1,0,0,5,5,1", r"a\.txt:3: frame: expected a number up to 1e\+15, got 1e300"),
        ("1,1,0,0,5,5,1,2.5", r"a\.txt:3: class: expected a whole number, got 2.5"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"1,1,0,0,5,5,1\n\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_mot(path)


def test_spaces_between_fields_and_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 -1 10 20 30 40\n2,5,1,2,3,4,0,7,0.25\n")
    rows = read_mot(path)
    assert rows.scores.tolist() == [1, 0]
    assert rows.classes.tolist() == [-1, 7]
    assert rows.visibility.tolist() == [-1, 0.25]
    assert rows.track_ids.tolist() == [-1, 5]


@pytest.mark.shared
def test_ground_truth_and_detections_of_the_benchmarks(shared: Path) -> None:
    for path in sorted((shared / "data/mot").glob("*/*/*.txt")):
        table = np.loadtxt(path, delimiter=",", ndmin=2)
        rows = read_mot(path)
        np.testing.assert_array_equal(rows.frames, table[:, 0])
        np.testing.assert_array_equal(rows.tlwh, table[:, 2:6])
        np.testing.assert_array_equal(rows.scores, table[:, 6])


def write_info(folder: Path, text: str) -> Path:
    path = folder / "seqinfo.ini"
    path.write_text(text)
    return path


def test_sequence_description(tmp_path: Path) -> None:
    path = write_info(tmp_path, "[Sequence]\nname=A-01\nimDir=img1\nframeRate=10\nseqLength=397\n")
    sequence = read_seqinfo(path)
    assert (sequence.name, sequence.frame_rate, sequence.length) == ("A-01", 10.0, 397)
    assert sequence.image_dir == tmp_path / "img1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Sequence]\nname=A\nseqLength=3\n", r"seqinfo\.ini: frameRate: expected a number above 0, got ''"),
        ("[Sequence]\nframeRate=0\nseqLength=3\n", r"frameRate: expected a number above 0, got '0'"),
        ("[Sequence]\nframeRate=10\nseqLength=many\n", r"seqLength: expected a number above 0, got 'many'"),
        ("[Other]\n", r"seqinfo\.ini: not a sequence description: no section"),
        ("name=A\n", r"seqinfo\.ini: not a sequence description"),
    ],
)
def test_bad_sequence_descriptions_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_seqinfo(write_info(tmp_path, text))


# --- files are read at once where there is nothing unusual in them


def read_slowly(path, monkeypatch, world=True):
    with monkeypatch.context() as patch:
        patch.setattr("tracker.mot._plain_table", lambda text, world: None)
        return read_mot(path, world)


def assert_same_rows(ours, theirs):
    for field in vars(theirs):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
        assert getattr(ours, field).dtype == getattr(theirs, field).dtype


@pytest.mark.shared
@pytest.mark.parametrize("name", ["MOT17-02-FRCNN", "PETS09-S2L1-dev", "TUD-Campus", "TUD-Stadtmitte"])
def test_real_files_are_read_at_once_as_line_by_line(shared, name, monkeypatch):
    for path in (shared / "data" / "mot" / name).rglob("*t.txt"):
        assert_same_rows(read_mot(path), read_slowly(path, monkeypatch))


@pytest.mark.parametrize(
    "text",
    ["", "\n", "1,2,3,4,5,6\n", "1,2,3,4,5,6,0.5\n2,2,3,4,5,6,0.25", "\n1 2 3 4 5 6 7\n", "\ufeff1,2,3,4,5,6,1,2\n",
     "1,2,3,4,5,6,1,4.5,5.5,0\n", "1,2,3,4,5,6\n1,3,3,4,5,6,1,1,1\n", "1,2,3,4,5,6,1,7,0.5\r\n"],
)  # fmt: skip
def test_unusual_files_are_read_at_once_as_line_by_line(tmp_path, text, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    for world in (True, False):
        if world or "5.5" not in text:  # a class that is no whole number
            assert_same_rows(read_mot(path, world), read_slowly(path, monkeypatch, world))


def test_eighth_column_is_the_class_where_no_world_is_meant(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1,2,3,4,5,6,1,4,0,2\n1,3,3,4,5,6,1,9,1,-1\n")
    assert read_mot(path).classes.tolist() == [NO_CLASS, 9]
    assert read_mot(path, world=False).classes.tolist() == [4, 9]


def test_line_of_counts_empty_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n1,2,3,4,5,6\n\n\n1,3,3,4,5,6\n")
    assert [line_of(path, row) for row in (0, 1)] == [2, 5]
