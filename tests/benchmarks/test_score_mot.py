"""The scores agree with recorded ones, and with what can be counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.score_mot import FIELDS, format_table, score

ROOT = Path(__file__).resolve().parents[2]


def write_sequence(root: Path, name: str, gt: str, length: int = 2) -> None:
    (root / name / "gt").mkdir(parents=True)
    (root / name / "gt" / "gt.txt").write_text(gt)
    (root / name / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nseqLength={length}\n")


@pytest.fixture
def example(tmp_path: Path) -> tuple[Path, Path]:
    """Two frames, two people; the results lose the second person in the second frame and have a ghost there instead."""
    write_sequence(
        tmp_path / "gt",
        "walk",
        "1,1,0,0,10,20,1,1,1\n1,2,50,0,10,20,1,1,1\n2,1,0,0,10,20,1,1,1\n2,2,50,0,10,20,1,1,1\n",
    )
    results = tmp_path / "results"
    results.mkdir()
    (results / "walk.txt").write_text(
        "1,7,0,0,10,20,0.9,-1,-1,-1\n1,8,50,0,10,20,0.9,-1,-1,-1\n2,7,0,0,10,20,0.9,-1,-1,-1\n2,9,200,0,10,20,0.9,-1,-1,-1\n"
    )
    return tmp_path / "gt", results


def test_a_case_counted_by_hand(example):
    row = score(*example)["walk"]
    assert (row["TP"], row["FN"], row["FP"], row["IDSW"]) == (3, 1, 1, 0)
    assert (row["recall"], row["precision"], row["MOTA"], row["IDF1"]) == (0.75, 0.75, 0.5, 0.75)
    assert row["DetA"] == pytest.approx(3 / 5)
    assert row["AssA"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert row["HOTA"] == pytest.approx((row["DetA"] * row["AssA"]) ** 0.5)


def test_one_sequence_and_one_file_score_as_their_folders(example):
    gt, results = example
    assert score(gt / "walk", results / "walk.txt") == score(gt, results)


def test_the_combined_row_counts_every_sequence(example):
    gt, results = example
    write_sequence(gt, "stand", "1,1,0,0,10,20,1,1,1\n", length=1)
    (results / "stand.txt").write_text("")
    scores = score(gt, results)
    assert scores["stand"]["FN"] == 1
    assert (scores["COMBINED"]["TP"], scores["COMBINED"]["FN"]) == (3, 2)
    assert score(gt, results, ["walk"])["COMBINED"] == scores["walk"]
    assert [line.split()[0] for line in format_table(scores).splitlines()] == ["sequence", "stand", "walk", "COMBINED"]


def test_missing_and_malformed_files_are_named(example, tmp_path):
    gt, results = example
    with pytest.raises(ValueError, match=r"expected folders with gt/gt\.txt"):
        score(results, results)
    write_sequence(gt, "run", "1,1,0,0,1,1,1,1,1\n")
    with pytest.raises(ValueError, match=r"run\.txt: no such file"):
        score(gt, results, ["run"])
    (results / "run.txt").write_text("9,1,0,0,1,1,1,-1,-1,-1\n")  # beyond the last frame
    with pytest.raises(ValueError, match="run"):
        score(gt, results, ["run"])


def test_the_command_prints_a_table_and_writes_json(example, tmp_path):
    gt, results = example
    command = [sys.executable, str(ROOT / "benchmarks" / "score_mot.py")]
    done = subprocess.run(
        [*command, gt, results, "--json", tmp_path / "s.json"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].split() == ["sequence", *list(FIELDS)[:10]]
    assert json.loads((tmp_path / "s.json").read_text()) == score(gt, results)
    failed = subprocess.run([*command, tmp_path / "none", results], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.shared
def test_agrees_with_recorded_scores(shared: Path):
    recorded = json.loads((shared / "golden" / "trackeval_lift_mot17_train.json").read_text())["MOT17-05-DPM"]
    data = shared / "data" / "mot_results" / "LifT_MOT17_train"
    scores = score(data / "MOT17" / "train", data / "Lif_T", ["MOT17-05-DPM"])["MOT17-05-DPM"]
    compared = {ours: recorded[theirs] for ours, (_, theirs) in FIELDS.items() if theirs in recorded}
    assert len(compared) >= 15
    assert {ours: scores[ours] for ours in compared} == pytest.approx(compared, abs=1e-9)


@pytest.mark.shared
def test_ground_truth_of_nine_columns_scores_itself_perfectly(shared: Path, tmp_path: Path):
    sequence = shared / "data" / "mot" / "PETS09-S2L1-dev"
    (tmp_path / "PETS09-S2L1-dev.txt").write_text((sequence / "gt" / "gt.txt").read_text())
    row = score(sequence, tmp_path / "PETS09-S2L1-dev.txt")["PETS09-S2L1-dev"]
    assert (row["HOTA"], row["MOTA"], row["IDF1"]) == pytest.approx((1, 1, 1))
    assert (row["FP"], row["FN"], row["IDSW"]) == (0, 0, 0)
