"""Folders of ground truth and results: recorded official figures, what is refused, parts of a sequence."""

import json

import numpy as np
import pytest

from tracker.evaluation import COMBINED, _read, benchmark_of, crop, evaluate, evaluate_sequence
from tracker.metrics import summary
from tracker.mot import read_mot

TRUTH = ["1,1,0,0,10,20,1,1,1", "2,1,0,0,10,20,1,1,1", "3,1,5,0,10,20,1,1,1", "3,2,50,0,10,20,1,1,1"]
RESULT = ["1,4,0,0,10,20,0.9,-1,-1,-1", "", "2,4,1,0,10,20,0.9,-1,-1,-1", "3,4,5,0,10,20,0.9,-1,-1,-1"]
COUNTS = ("IDSW", "CLR_FP", "CLR_FN", "CLR_TP", "MT", "PT", "ML", "Frag", "IDTP", "IDFP", "IDFN")


@pytest.fixture
def folders(tmp_path):
    """A sequence `A` of three frames and its result."""
    add_sequence(tmp_path, "A")
    return tmp_path


def add_sequence(root, name, truth=TRUTH, result=RESULT, length=3):
    (root / "gt" / name / "gt").mkdir(parents=True)
    (root / "results").mkdir(exist_ok=True)
    (root / "gt" / name / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nframeRate=25\nseqLength={length}\n")
    (root / "gt" / name / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    (root / "results" / f"{name}.txt").write_text("\n".join(result) + "\n")


def run(root, **options):
    return evaluate(root / "gt", root / "results", **options)


@pytest.mark.shared
def test_lift_on_mot17_equals_the_official_figures(shared):
    data = shared / "data" / "mot_results" / "LifT_MOT17_train"
    golden = json.loads((shared / "golden" / "trackeval_lift_mot17_train.json").read_text())
    golden[COMBINED] = golden.pop("COMBINED_SEQ")
    figures = evaluate(data / "MOT17" / "train", data / "Lif_T")
    assert figures.keys() == golden.keys()
    for sequence, expected in golden.items():
        ours = summary(figures[sequence])
        for name, value in expected.items():
            if name in COUNTS:
                assert ours[name] == value, (sequence, name)
            else:
                assert ours[name] == pytest.approx(value, abs=1e-12), (sequence, name)
    total = figures[COMBINED]
    names = ("CLR_FP", "CLR_FN", "IDSW", "MT", "PT", "ML", "Frag")
    assert [total[name] for name in names] == [2655, 107803, 791, 679, 595, 364, 1153]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["MOT17-02-FRCNN", "PETS09-S2L1-dev", "TUD-Campus", "TUD-Stadtmitte"])
def test_the_fast_reader_reads_what_read_mot_reads(shared, name):
    for path in (shared / "data" / "mot" / name).rglob("*t.txt"):
        fast, slow = _read(path), read_mot(path)
        for field in vars(slow):
            np.testing.assert_array_equal(getattr(fast, field), getattr(slow, field))
            assert getattr(fast, field).dtype == getattr(slow, field).dtype


@pytest.mark.parametrize(
    "text",
    ["", "\n", "1,2,3,4,5,6\n", "1,2,3,4,5,6,0.5\n2,2,3,4,5,6,0.25", "\n1 2 3 4 5 6 7\n", "\ufeff1,2,3,4,5,6,1,2\n",
     "1,2,3,4,5,6,1,4.5,5.5,0\n", "1,2,3,4,5,6\n1,3,3,4,5,6,1,1,1\n", "1,2,3,4,5,6,1,7,0.5\r\n"],
)  # fmt: skip
def test_the_fast_reader_reads_unusual_files_as_read_mot_does(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    fast, slow = _read(path), read_mot(path)
    for field in vars(slow):
        np.testing.assert_array_equal(getattr(fast, field), getattr(slow, field))


def test_figures_of_a_small_sequence(folders):
    figures = run(folders)
    assert list(figures) == ["A", "COMBINED"]
    assert (figures["A"]["CLR_TP"], figures["A"]["CLR_FN"], figures["A"]["CLR_Frames"]) == (3, 1, 3)
    assert figures["A"]["MOTA"] == figures["COMBINED"]["MOTA"] == pytest.approx(0.75)
    json.dumps({name: summary(one) for name, one in figures.items()})


def test_several_processes_give_the_same(folders):
    add_sequence(folders, "B", result=RESULT[:1])
    for ours, alone in zip(run(folders, processes=2).values(), run(folders).values(), strict=True):
        for name, value in alone.items():
            np.testing.assert_array_equal(ours[name], value)


def test_a_choice_of_sequences(folders):
    add_sequence(folders, "B")
    (folders / "results" / "B.txt").unlink()
    assert list(run(folders, sequences=["A"])) == ["A", "COMBINED"]


def test_rules_follow_the_name_and_the_classes(folders):
    rows = read_mot(folders / "gt" / "A" / "gt" / "gt.txt")
    assert [benchmark_of(name, rows) for name in ("MOT20-01", "MOT16-02", "PETS")] == ["MOT20", "MOT16", "MOT17"]
    assert benchmark_of("TUD-Campus", read_mot(folders / "results" / "A.txt")) == "MOT15"


def test_a_part_of_a_sequence(folders):
    truth, result = _read(folders / "gt" / "A" / "gt" / "gt.txt"), _read(folders / "results" / "A.txt")
    assert evaluate_sequence(crop(truth, 1, 2), crop(result, 1, 2), 2)["MOTA"] == 1
    assert run(folders, parts={"A": (1, 2)})["COMBINED"]["MOTA"] == 1
    last = evaluate_sequence(crop(truth, 3, 3), crop(result, 3, 3), 1)
    assert (last["CLR_TP"], last["CLR_FN"], last["CLR_Frames"]) == (1, 1, 1)


def test_far_away_boxes_and_great_ids(tmp_path):
    far = "1,1000000000000,900000000000000,-900000000000000,1000,2000,1,1,1"
    add_sequence(tmp_path, "A", truth=[far, *TRUTH[1:]], result=[far, *RESULT[1:]])
    assert run(tmp_path)["A"]["CLR_TP"] == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4,4,0,0,10,20,1,-1,-1,-1", "A.txt:5: frame: expected 1 to 3, the sequence's length, got 4"),
        ("0,4,0,0,10,20,1,-1,-1,-1", "A.txt:5: frame: expected a number from 1, got 0"),
        ("2,4,9,0,10,20,1,-1,-1,-1", "A.txt:5: id 4 comes twice in frame 2"),
        ("2,-1,9,0,10,20,1,-1,-1,-1", "A.txt:5: id: expected a number from 0, got -1"),
        ("2,x,9,0,10,20,1,-1,-1,-1", "A.txt:5: id: expected a number, got 'x'"),
        ("2,5,nan,0,10,20,1,-1,-1,-1", "A.txt:5: left: expected a finite number, got 'nan'"),
        ("2,5,9,0,inf,20,1,-1,-1,-1", "A.txt:5: width: expected a finite number, got 'inf'"),
        ("2,5,9,0,-10,20,1,-1,-1,-1", "A.txt:5: width: expected a size of at least 0, got -10"),
        ("2,5.5,9,0,10,20,1,-1,-1,-1", "A.txt:5: id: expected a whole number, got 5.5"),
        ("2,5,9,0", "A.txt:5: expected 6 to 10 fields"),
        ("2,5,9,0,10,20,1,2,-1,-1", "A.txt:5: class: expected 1 or -1, got 2"),
    ],
)
def test_malformed_results(tmp_path, line, message):
    add_sequence(tmp_path, "A", result=[*RESULT, line])
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("4,1,0,0,10,20,1,1,1", "gt.txt:5: frame: expected 1 to 3, the sequence's length, got 4"),
        ("3,2,0,0,10,20,1,1,1", "gt.txt:5: id 2 comes twice in frame 3"),
        ("3,3,0,0,10,20,1,14,1", "gt.txt:5: class: expected 1 to 13 in ground truth of MOT17, got 14"),
        ("3,3,0,0,10,20", "gt.txt:5: class: expected 1 to 13 in ground truth of MOT17, got -1"),
    ],
)
def test_malformed_ground_truth(tmp_path, line, message):
    add_sequence(tmp_path, "A", truth=[*TRUTH, line])
    with pytest.raises(ValueError, match=message):
        run(tmp_path)


def test_what_is_missing_is_named(folders):
    with pytest.raises(ValueError, match=r"sequence: expected one of A .* got 'B'"):
        run(folders, sequences=["B"])
    with pytest.raises(ValueError, match="sequences: expected different names, at least one"):
        run(folders, sequences=["A", "A"])
    with pytest.raises(ValueError, match=r"benchmark: expected one of MOT15, .* got 'MOT18'"):
        run(folders, benchmark="MOT18")
    with pytest.raises(ValueError, match="expected folders of sequences with"):
        evaluate(folders / "results", folders / "results")
    with pytest.raises(ValueError, match="part: expected first and last frame within 1 to 3, got 2 to 4"):
        run(folders, parts={"A": (2, 4)})
    with pytest.raises(ValueError, match="parts: expected one of A, got 'B'"):
        run(folders, parts={"B": (1, 2)})
    (folders / "results" / "C.txt").touch()
    with pytest.raises(ValueError, match=r"C\.txt: unknown sequence, .* has A"):
        run(folders)
    (folders / "results" / "C.txt").unlink()
    (folders / "gt" / "A" / "gt" / "gt.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"gt\.txt"):
        run(folders)
    (folders / "results" / "A.txt").unlink()
    with pytest.raises(FileNotFoundError):
        run(folders)


def test_a_sequence_without_its_description_is_not_left_out(folders):
    add_sequence(folders, "B")
    (folders / "gt" / "B" / "seqinfo.ini").unlink()
    with pytest.raises(FileNotFoundError, match=r"seqinfo\.ini"):
        run(folders)


def test_rows_are_numbered_where_there_is_no_file(folders):
    rows = read_mot(folders / "results" / "A.txt")
    with pytest.raises(ValueError, match="truth: row 2: frame: expected 1 to 2"):
        evaluate_sequence(rows, rows, 2, "MOT15")
