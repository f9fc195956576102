"""The yardsticks give what ours gives, and the table says what was measured."""

import json
import subprocess

import numpy as np
import pytest
import torch

from benchmarks import reid_ranking
from benchmarks.reid_ranking import CONTESTANTS, times_ours
from benchmarks.reid_yardsticks import labels, rank_loop, rerank_dense, rerank_tidied, synthetic
from reid.distances import FeatureDistances
from reid.ranking import evaluate_ranking
from reid.reranking import RerankedDistances


@pytest.fixture(scope="module")
def data():
    return synthetic(0.02, 64)


def test_synthetic_features_are_those_of_a_data_set(data):
    assert len(data["query_pids"]) == 67 and len(data["gallery_pids"]) == 395
    assert (data["query_pids"] > 0).all() and {-1, 0} < set(data["gallery_pids"].tolist())
    assert set(data["query_camids"].tolist()) == set(range(1, 7))
    for side in ("query", "gallery"):
        np.testing.assert_allclose(np.linalg.norm(data[f"{side}_features"], axis=1), 1, atol=1e-6)
    again = synthetic(0.02, 64)
    assert all((again[key] == data[key]).all() for key in data)
    scores = evaluate_ranking(FeatureDistances(data["query_features"], data["gallery_features"]), *labels(data))
    assert 0.3 < scores.mean_ap < 0.95  # neither guessed nor solved


def test_loop_gives_our_scores(data, tmp_path):
    ours = evaluate_ranking(FeatureDistances(data["query_features"], data["gallery_features"]), *labels(data)).figures()
    loop = rank_loop(data, tmp_path / "none")["scores"]
    assert loop == pytest.approx({key: ours[key] for key in loop}, abs=1e-6)


@pytest.mark.parametrize("dense", [rerank_dense, rerank_tidied])
def test_dense_algorithms_give_our_distances(data, dense, tmp_path):
    measured = dense(data, tmp_path / "dense.npy")
    ours = RerankedDistances(data["query_features"], data["gallery_features"])[0:67]
    np.testing.assert_allclose(np.load(tmp_path / "dense.npy"), ours, atol=1e-5)
    assert 0 < measured["product_seconds"] < measured["seconds"]


@pytest.fixture
def facts(monkeypatch):
    """The machine need not be asked, by other processes, what it is."""
    monkeypatch.setattr(reid_ranking, "machine", lambda: {"cpu": "some", "cores": 1, "load_average": 0.0})


def test_everything_is_measured(facts, tmp_path, capsys, monkeypatch):
    """The whole program on little, its processes called as functions."""

    def run(command, **_):
        return subprocess.CompletedProcess(command, reid_ranking.main([str(part) for part in command[2:]]))

    monkeypatch.setattr(reid_ranking.subprocess, "run", run)
    report = tmp_path / "out.json"
    options = ["--share", "0.01", "--dimension", "16", "--threads", str(torch.get_num_threads())]
    assert reid_ranking.main([*options, "--repeats", "2", "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert list(result["rows"]) == list(CONTESTANTS)
    assert all(row["seconds"] > 0 for row in result["rows"].values())
    apart = result["compared_with_ours"]
    assert set(apart) == {name for name in CONTESTANTS if not name.endswith("ours")}
    assert all(each["largest_difference"] < 1e-5 for each in apart.values())
    table = capsys.readouterr().out
    assert all(name in table for name in CONTESTANTS) and "34 queries, 197 gallery images, 16-d" in table


def test_times():
    rows = {
        "ranking, ours": {"seconds": 2.0},
        "ranking, loop": {"seconds": 12.0},
        "re-ranking, ours": {"seconds": 10.0, "product_seconds": 8.0},
        "re-ranking, dense": {"seconds": 60.0, "product_seconds": 20.0},
    }
    times = times_ours(rows)
    assert times["ranking, loop"] == {"all": 6.0}
    assert times["re-ranking, dense"] == {"all": 6.0, "without_product": 20.0}


@pytest.mark.parametrize("option", ["--share", "--dimension", "--threads", "--repeats"])
def test_impossible_numbers_are_one_line(option, tmp_path, capsys):
    assert reid_ranking.main([option, "0", "--json", str(tmp_path / "o.json")]) == 2
    assert f"{option}: expected a number above 0, got 0" in capsys.readouterr().err


def test_a_contestant_that_fails_is_named(facts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reid_ranking.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    assert reid_ranking.main(["--share", "0.01", "--dimension", "4", "--json", str(tmp_path / "o.json")]) == 2
    assert "ranking, ours: exit status 1" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
