"""Pages of pictures: how they are called, and who is on them."""

import cv2
import numpy as np
import pytest

import reid.pages
from reid.datasets import load_dataset
from reid.evaluation import Ranking
from reid.extraction import EncoderDescriber
from reid.pages import draw_heat_pages, draw_rank_pages
from reid.ranking import evaluate_ranking
from tests.reid.crops import add_market, tiny_encoder


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(add_market(tmp_path / "m"), ("query", "gallery"))


@pytest.fixture
def ranking(dataset):
    query, gallery = dataset.query, dataset.gallery
    distances = np.random.default_rng(0).random((len(query), len(gallery)))
    return Ranking(distances, evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids))


def test_worst_and_best_on_pages(dataset, ranking, tmp_path, monkeypatch):
    monkeypatch.setattr(reid.pages, "QUERIES_A_PAGE", 2)
    written = list(draw_rank_pages(tmp_path, ranking, dataset.query, dataset.gallery, 3))
    assert [path.name for path in written] == [
        f"ranks-{kind}-{page}.png" for kind in ("worst", "best") for page in (1, 2)
    ]
    full, rest = (len(cv2.imread(str(path))) for path in written[:2])
    assert full == 2 * rest


def test_chosen_queries_instead(dataset, ranking, tmp_path):
    describer = EncoderDescriber(tiny_encoder())
    rest = (ranking, dataset.query, dataset.gallery, 3, [5, 0])
    written = [*draw_rank_pages(tmp_path, *rest), *draw_heat_pages(tmp_path, describer, *rest)]
    assert [path.name for path in written] == ["ranks-chosen.png", "heat-chosen.png"]
    assert len({len(cv2.imread(str(path))) for path in written}) == 1
