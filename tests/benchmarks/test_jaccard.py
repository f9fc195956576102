"""The dense yardstick gives what is recorded and what ours gives, and the table says what was measured."""

import json
import subprocess

import numpy as np
import pytest
import torch

from benchmarks import jaccard
from benchmarks.jaccard import dense, growth, same_clusters, synthetic
from reid.jaccard import JaccardConfig, dense_distances, jaccard_graph


@pytest.mark.shared
def test_dense_algorithm_gives_recorded_distances(shared):
    with np.load(shared / "golden" / "jaccard.npz") as recorded:
        found = dense(recorded["features"], JaccardConfig(int(recorded["k1"]), int(recorded["k2"])))
        np.testing.assert_allclose(found, recorded["jaccard"], atol=2e-6)


@pytest.mark.parametrize("config", [JaccardConfig(), JaccardConfig(5, 1)])
def test_dense_algorithm_gives_our_distances(config):
    features, pids = synthetic(120, 32)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert set(pids.tolist()) == set(range(7))
    found = dense(features, config)
    ours = dense_distances(jaccard_graph(features, config))
    np.testing.assert_allclose(found, ours, atol=2e-6)


def test_everything_is_measured(tmp_path, capsys, monkeypatch):
    """The whole program on little, its processes called as functions."""

    def run(command, **_):
        return subprocess.CompletedProcess(command, jaccard.main([str(part) for part in command[2:]]))

    monkeypatch.setattr(jaccard.subprocess, "run", run)
    monkeypatch.setattr(jaccard, "machine", lambda: {"cpu": "some", "cores": 1, "load_average": 0.0})
    monkeypatch.setattr(jaccard, "status_bytes", lambda _: 0)  # this process has seen more memory before
    report = tmp_path / "out.json"
    options = ["--images", "300", "400", "--dimension", "128", "--threads", str(torch.get_num_threads())]
    assert jaccard.main([*options, "--repeats", "2", "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert [(row["contestant"], row["images"]) for row in result["rows"]] == [
        ("ours", 300),
        ("dense", 300),
        ("ours", 400),
    ]
    ours, theirs, _ = result["rows"]
    assert ours["clusters"] == theirs["clusters"] > 1 and ours["stored_a_row"] == pytest.approx(theirs["stored_a_row"])
    assert result["compared"]["same_clusters"] and result["compared"]["largest_difference"] < 1e-5
    table = capsys.readouterr().out
    assert "the same clusters" in table and "from 300 to 400 images" in table


def test_clusters_are_compared_without_their_names():
    first = np.array([0, 0, 1, 2, -1])
    assert same_clusters(first, np.array([2, 2, 0, 1, -1]))
    for other in ([0, 0, 1, 1, -1], [0, 1, 2, 3, -1], [2, 2, 0, -1, 1], [0, 0, 1, 2, 3]):
        assert not same_clusters(first, np.array(other))


def test_growth():
    rows = [{"images": n, "seconds": 3.0 * n**2, "memory_bytes": 5.0 * n} for n in (10, 20, 50)]
    found = growth(rows)
    assert [(step["from"], step["to"]) for step in found] == [(10, 20), (20, 50)]
    assert all(step["seconds"] == pytest.approx(2) and step["memory_bytes"] == pytest.approx(1) for step in found)


def test_impossible_numbers_are_one_line(capsys, tmp_path):
    assert jaccard.main(["--images", "20", "0", "--json", str(tmp_path / "none.json")]) == 2
    assert "jaccard: --images: expected numbers above 0, got [20, 0]" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()
