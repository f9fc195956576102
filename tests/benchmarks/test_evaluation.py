"""The benchmark of the evaluation runs, its crowd is what it says, and figures that differ are an error."""

import json

import numpy as np
import pytest

from benchmarks import evaluation
from benchmarks.evaluation import OURS, TRACKEVAL, TWO_PROCESSES, check_equal, write_crowd
from tracker.mot import read_mot


def test_all_evaluations_are_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "GRIDS", {"crowd on a grid": 8.0})
    data = tmp_path / "data"
    case = write_crowd(data, people=8, frames=6, grid=0.01)
    (data / "MOT17").mkdir()
    case.gt.rename(data / "MOT17" / "train")
    case.results.rename(data / "Lif_T")
    for path in (data / "MOT17" / "train" / "crowd", data / "Lif_T" / "crowd.txt"):
        path.with_stem("again").symlink_to(path)
    report = tmp_path / "out.json"
    options = ["--data", str(data), "--people", "9", "--frames", "5", "--repeats", "1", "--json", str(report)]
    assert evaluation.main(options) == 0
    result = json.loads(report.read_text())
    real, crowd = result["cases"].values()
    assert set(real["engines"]) == {OURS, TWO_PROCESSES, TRACKEVAL} and set(crowd["engines"]) == {OURS, TRACKEVAL}
    assert (real["sequences"], real["frames"], crowd["sequences"], crowd["frames"]) == (2, 12, 1, 5)
    for row in [*real["engines"].values(), *crowd["engines"].values()]:
        assert row["seconds"] > 0 and row["peak_mb"] >= row["imported_mb"] > 20
    assert crowd["times_faster_than_trackeval"][TRACKEVAL] == 1
    assert "crowd on a grid, 9 people: 1 sequences, 5 frames" in capsys.readouterr().out


def test_crowd_is_followed_with_errors(tmp_path):
    case = write_crowd(tmp_path, people=50, frames=40, grid=8)
    truth, results = read_mot(case.gt / "crowd" / "gt" / "gt.txt"), read_mot(case.results / "crowd.txt")
    assert len(truth) == 50 * 40 and set(truth.classes.tolist()) == {1, 8} and (truth.classes == 8).mean() == 0.1
    assert 0.9 < len(results) / len(truth) < 0.99  # a tenth is missed, a twentieth found twice
    assert (truth.tlwh % 8 == 0).all() and (results.tlwh % 8 == 0).all()
    pairs = np.stack([truth.frames, truth.track_ids], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(truth)
    figures = evaluation.run(OURS, case).figures["COMBINED"]
    assert 0.7 < figures["MOTA"] < 0.95 and 5 < figures["IDSW"] < 100


def test_figures_that_differ_are_an_error():
    check_equal({"A": {"HOTA": 0.5 + 1e-12}}, {"A": {"HOTA": 0.5}}, "ours")
    with pytest.raises(ValueError, match=r"ours: A: IDSW: expected 3\.0, got 4\.0"):
        check_equal({"A": {"IDSW": 4.0}}, {"A": {"IDSW": 3.0}}, "ours")


@pytest.mark.parametrize(
    "options", [["--people", "1"], ["--frames", "0"], ["--repeats", "0"], ["--sequences", "0"], ["--data", "/nowhere"]]
)
def test_impossible_options_are_one_line(options, tmp_path, capsys):
    assert evaluation.main([*options, "--json", str(tmp_path / "o.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("evaluation: ") and options[1] in lines[0]
