"""The small world is what it is said to be, training learns in it, and the table says what came out."""

import json

import numpy as np
import pytest
import torch

from benchmarks import caccl_synthetic
from benchmarks.caccl_synthetic import (
    METHODS,
    Schedule,
    World,
    learn,
    make_encoder,
    make_views,
    mean_ap,
    summarise,
    table,
)

SMALL = World(people=24, strangers=12, cameras=3)


def test_views_are_of_few_cameras_and_of_strangers():
    train, query, gallery = make_views(SMALL, seed=0)
    assert train.images.shape == (24 * 20, 64) and query.images.shape == (36, 64) and gallery.images.shape == (108, 64)
    assert set(train.pids) == set(range(1, 25)) and set(query.pids) == set(gallery.pids) == set(range(25, 37))
    for pid in range(25, 37):
        assert sorted(query.camids[query.pids == pid]) == [1, 2, 3]
    cameras = [len(set(train.camids[train.pids == pid])) for pid in range(1, 25)]
    assert max(cameras) == 3 and min(cameras) < 3 and set(train.camids) == {1, 2, 3}
    again, other = make_views(SMALL, seed=0)[0], make_views(SMALL, seed=1)[0]
    assert torch.equal(train.images, again.images) and not torch.equal(train.images, other.images)


def test_cameras_make_it_hard():
    """Without shift, mixing and sides, a camera changes nothing and people are found by the picture as it is."""
    easy = World(people=24, strangers=12, cameras=3, turn=0, cast=0, view=0)
    hard, easy = (make_views(world, 0)[1:] for world in (SMALL, easy))
    as_it_is = torch.nn.Identity()
    assert mean_ap(as_it_is, *easy) > 0.95
    assert mean_ap(as_it_is, *hard) < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_repeats_itself(method):
    train, query, gallery = make_views(SMALL, seed=0)
    scores = []
    for _ in range(2):
        encoder = make_encoder(SMALL, seed=0)
        before = mean_ap(encoder, query, gallery)
        clusters = learn(encoder, train, METHODS[method], Schedule(epochs=2), seed=0)
        scores.append(mean_ap(encoder, query, gallery))
    assert scores[0] == scores[1] > before + 0.02
    assert [row["epoch"] for row in clusters] == [0, 1] and all(row["clusters"] > 1 for row in clusters)


def test_people_may_take_the_place_of_clusters():
    train, _, _ = make_views(SMALL, seed=0)
    (row,) = learn(make_encoder(SMALL, 0), train, METHODS["cluster"], Schedule(epochs=1), seed=0, supervised=True)
    assert (row["clusters"], row["outliers"], row["nmi"]) == (24, 0, pytest.approx(1))


def rows(*scores):
    """Of the three methods, one tuple a seed."""
    last = {"clusters": 30, "nmi": 0.9}
    return [
        {"seed": seed, "row": name, "mAP": score, "clusters": [{"clusters": 9, "nmi": 0.1}, last]}
        for seed, own in enumerate(scores)
        for name, score in zip(METHODS, own, strict=True)
    ]


def test_summary_counts_the_seeds_in_order():
    summary = summarise(rows((0.1, 0.2, 0.3), (0.3, 0.2, 0.4), (0.2, 0.5, 0.5)))
    assert summary["seeds_in_published_order"] == [0]
    assert summary["mAP"]["self-paced"] == {"mean": pytest.approx(0.2), "deviation": pytest.approx(0.1)}


def test_table_has_a_line_for_each_row_of_the_benchmark():
    lines = table(rows((0.1, 0.2, 0.3), (0.3, 0.4, 0.5))).splitlines()
    assert lines[2] == "| self-paced | 0.200 | 0.141 | 0.100 | 0.300 | 30 | 0.900 |"
    assert lines[-1] == "self-paced < cluster < cluster + camera: on 2 of 2 seeds"
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])
    assert "| - |" in table(rows((0.1, 0.2, 0.3)))  # no deviation of one seed


def test_program_writes_all_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(caccl_synthetic, "World", lambda: SMALL)
    monkeypatch.setattr(caccl_synthetic, "machine", lambda: {"cpu": "some"})
    path = tmp_path / "out.json"
    assert caccl_synthetic.main(["--seeds", "3", "--epochs", "1", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    names = [row["row"] for row in result["rows"]]
    assert names[:5] == ["before training", *METHODS, "cluster, people known"] and names[-1] == "λ = 1"
    assert {row["seed"] for row in result["rows"]} == {3} and result["world"]["people"] == 24
    assert np.isfinite([row["mAP"] for row in result["rows"]]).all()
    assert "| cluster + camera |" in capsys.readouterr().out
