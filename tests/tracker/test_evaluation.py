"""Folders of ground truth and results: recorded official figures, what is refused, parts of a sequence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trackeval
from trackeval.metrics import CLEAR, Identity

from tests.tracker.test_metrics import assert_equal_figures, official, write
from tracker.challenge import CLASS_AVERAGED, COMBINED, Task, find_tasks, half_of
from tracker.evaluation import combine_tasks, compare, compare_rows, evaluate, score
from tracker.metrics import clear, summary
from tracker.mot import MotSequence, read_mot
from tracker.preprocessing import benchmark_of

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
    task = find_tasks(folders / "gt", folders / "results")[0]
    assert score(replace(task, part=(1, 2)))["MOTA"] == 1
    last = score(replace(task, part=(3, 3)))
    assert (last["CLR_TP"], last["CLR_FN"], last["CLR_Frames"]) == (1, 1, 1)


@pytest.mark.parametrize("half", ["train", "val"])
def test_half_of_a_sequence_is_scored_like_a_sequence_of_its_own(tmp_path, half):
    rng = np.random.default_rng(3)
    truth, results = random_classes(rng, range(8)), random_classes(rng, range(8))
    results = [(*row[:7], 1, 1) for row in results]
    write(tmp_path, {"A": truth}, {"A": results})
    first, last = half_of(6, half)
    ours = score(replace(find_tasks(tmp_path / "gt", tmp_path / "results")[0], part=(first, last)))
    (tmp_path / "half").mkdir()
    cut = [[(row[0] - first + 1, *row[1:]) for row in rows if first <= row[0] <= last] for rows in (truth, results)]
    write(tmp_path / "half", {"A": cut[0]}, {"A": cut[1]}, frames=last - first + 1)
    assert_equal_figures({"A": ours}, {"A": official(tmp_path / "half", ["A"], "MOT17")["A"]})


def test_rows_and_frames_of_a_part_are_those_of_the_files(folders):
    task = replace(find_tasks(folders / "gt", folders / "results")[0], part=(2, 3))
    compared = compare(task)
    assert compared.first_frame == 2 and compared.comparison.frames == 2
    assert compared.truth.frames[compared.comparison.truth_rows].tolist() == [2, 3, 3]
    assert compared.truth.track_ids[compared.comparison.truth_rows].tolist() == [1, 1, 2]
    assert compared.results.tlwh[compared.comparison.result_rows, 0].tolist() == [1, 5]


def test_a_renumbered_result_counts_from_its_part(folders):
    task = find_tasks(folders / "gt", folders / "results")[0]
    (folders / "results" / "A.txt").write_text("2,4,3,0,10,20,0.9,-1,-1,-1\n")
    assert score(replace(task, part=(2, 3), renumbered=True))["CLR_TP"] == 1
    assert score(replace(task, part=(2, 3)))["CLR_TP"] == 1  # frame 2 covers the person of frame 2, too
    assert score(replace(task, part=(3, 3)))["CLR_TP"] == 0
    with pytest.raises(ValueError, match=r"A\.txt:1: frame: expected 1 to 1, the sequence's length, got 2"):
        score(replace(task, part=(3, 3), renumbered=True))


# --- several classes


def random_classes(rng, ids):
    """Rows of four classes on a coarse grid; an identity keeps its class."""
    rows = []
    for frame in range(1, 7):
        for identity in ids:
            if rng.random() < 0.7:
                box = *rng.choice([0, 5, 10, 20, 60], 2), 20, 40
                rows.append((frame, identity, *box, int(rng.random() < 0.9), 1 + identity % 4, 1))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_classes_are_scored_and_put_together_as_officially(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = ["A", "B"]
    truths = {name: random_classes(rng, range(8)) for name in names}
    results = {name: random_classes(rng, range(6)) for name in names}
    write(tmp_path, truths, results)
    tasks = [replace(t, class_id=k) for t in find_tasks(tmp_path / "gt", tmp_path / "results") for k in (1, 2, 3, 4, 9)]
    ours = combine_tasks(tasks, [score(task) for task in tasks])
    of_class = {}
    for number in (1, 2, 3, 4, 9):
        root = tmp_path / f"class{number}"
        root.mkdir()

        def only(rows, number=number):
            return [(*row[:7], 1, 1) for row in rows if row[7] == number]

        write(root, {n: only(rows) for n, rows in truths.items()}, {n: only(rows) for n, rows in results.items()})
        theirs = official(root, names, "MOT15")
        assert_equal_figures({name: ours[f"{name}/{number}"] for name in [*names, COMBINED]}, theirs)
        of_class[number] = theirs[COMBINED]
    for metric in (trackeval.metrics.HOTA(), *(m({"PRINT_CONFIG": False}) for m in (CLEAR, Identity))):
        part = {number: {name: figures[name] for name in metric.fields} for number, figures in of_class.items()}
        by_box, by_class = metric.combine_classes_det_averaged(part), metric.combine_classes_class_averaged(part, True)
        for name in metric.fields:
            np.testing.assert_allclose(ours[COMBINED][name], by_box[name], rtol=1e-12, err_msg=name)
            np.testing.assert_allclose(ours[CLASS_AVERAGED][name], by_class[name], rtol=1e-12, err_msg=name)


def test_an_identity_may_come_once_in_each_class(tmp_path):
    rows = ["1,1,0,0,10,20,1,1,1", "1,1,50,0,10,20,1,2,1"]
    add_sequence(tmp_path, "A", truth=rows, result=rows)
    task = find_tasks(tmp_path / "gt", tmp_path / "results")[0]
    assert [score(replace(task, class_id=number))["CLR_TP"] for number in (1, 2)] == [1, 1]
    with pytest.raises(ValueError, match=r"gt\.txt:2: id 1 comes twice in frame 1"):
        score(task)
    (tmp_path / "results" / "A.txt").write_text("1,1,0,0,10,20\n")
    with pytest.raises(ValueError, match=r"A\.txt:1: class: expected a number from 0, got -1"):
        score(replace(task, class_id=1))


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
        ("2,5,9,0,10,20,1,2,-1,-1", "A.txt:5: class: expected at most 1, got 2"),
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
    with pytest.raises(ValueError, match=r"sequences: expected one of A .* got 'B'"):
        run(folders, sequences=["B"])
    with pytest.raises(ValueError, match="sequences: expected different names, at least one"):
        run(folders, sequences=["A", "A"])
    with pytest.raises(ValueError, match=r"benchmark: expected one of MOT15, .* got 'MOT18'"):
        run(folders, benchmark="MOT18")
    with pytest.raises(ValueError, match="expected folders of sequences with"):
        evaluate(folders / "results", folders / "results")
    task = find_tasks(folders / "gt", folders / "results")[0]
    with pytest.raises(ValueError, match="A: expected first and last frame within 1 to 3, got 2 to 4"):
        score(replace(task, part=(2, 4)))
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
    rows = read_mot(folders / "gt" / "A" / "gt" / "gt.txt")
    task = Task("A", Path(), Path(), MotSequence("A", 25, 2, Path(), Path()))
    with pytest.raises(ValueError, match="truth: row 2: frame: expected 1 to 2"):
        compare_rows(task, rows, rows)
    compared = compare_rows(replace(task, sequence=None), rows, rows)
    assert compared.comparison.frames == 3 and clear(compared.comparison)["MOTA"] == 1
