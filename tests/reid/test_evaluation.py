"""Ways to rank side by side, and their table."""

import numpy as np
import pytest

from reid.distances import pool_queries
from reid.evaluation import evaluate_features, format_table
from reid.feature_file import FeatureSet
from reid.ranking import evaluate_ranking
from reid.reranking import RerankConfig, RerankedDistances


def some(count, people, seed, cameras=2):
    rng = np.random.default_rng(seed)
    pids, camids = np.arange(count) % people + 1, rng.integers(1, cameras + 1, count)
    rows = np.random.default_rng(9).normal(size=(people, 8))[pids - 1] + rng.normal(size=(count, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return FeatureSet(rows, tuple(map(str, range(count))), pids.astype(np.int64), camids.astype(np.int64))


def test_each_row_is_what_its_parts_say():
    query, gallery = some(20, 5, 0), some(80, 5, 1)
    config = RerankConfig(k1=8, k2=3)
    rankings = evaluate_features(query, gallery, multi_query=query, rerank=config)
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    pooled = pool_queries(query.features, query.pids, query.camids, query.pids, query.camids)
    expected = {
        "single query": 1 - query.features @ gallery.features.T,
        "single query, re-ranked": RerankedDistances(query.features, gallery.features, config),
        "multi-query": 1 - (pooled / pooled.norm(dim=1, keepdim=True)).numpy() @ gallery.features.T,
        "multi-query, re-ranked": RerankedDistances(pooled, gallery.features, config),
    }
    assert list(rankings) == list(expected)
    for name, distances in expected.items():
        figures = evaluate_ranking(distances, *labels).figures()
        assert rankings[name].result.figures() == pytest.approx(figures, abs=1e-6), name


def test_only_what_is_asked_for():
    query, gallery = some(20, 5, 0), some(80, 5, 1)
    assert list(evaluate_features(query, gallery)) == ["single query"]
    cosine, euclidean = (
        evaluate_features(query, gallery, metric)["single query"] for metric in ("cosine", "euclidean")
    )
    # Of unit rows both say the same.
    assert cosine.result.figures() == pytest.approx(euclidean.result.figures(), abs=1e-6)
    assert not np.allclose(cosine.distances[0:2], euclidean.distances[0:2])


def test_the_table():
    query, gallery = some(20, 5, 0), some(80, 5, 1)
    query.pids[7] = 99
    rankings = evaluate_features(query, gallery, rerank=RerankConfig(k1=8))
    text = format_table(rankings, ranks=(1, 50))
    lines = text.splitlines()
    assert lines[0].split("  ")[-1].strip() == "mINP"
    assert lines[0].split() == ["mAP", "mAP", "trapezoid", "rank-1", "rank-50", "mINP"]
    for line, (name, one) in zip(lines[1:3], rankings.items(), strict=True):
        result = one.result
        shares = (result.mean_ap, result.mean_ap_trapezoid, result.cmc[0], result.cmc[49], result.mean_inp)
        assert line.split() == [*name.split(), *(f"{100 * share:.2f}" for share in shares)]
    assert len({len(line) for line in lines[:3]}) == 1
    assert "queries: 20, 1 without a match in the gallery do not count" in text
    assert "all with a match" in format_table(evaluate_features(some(20, 5, 0), gallery))
    assert "rectangle rule" in text and "Market-1501's own code" in text


@pytest.mark.parametrize("pid", [0, -1])
def test_a_query_that_shows_nobody_is_named(pid):
    query, gallery = some(20, 5, 0), some(80, 5, 1)
    query.pids[7] = pid
    with pytest.raises(ValueError, match=rf"^7: expected queries of identities from 1 .*, got {pid}$"):
        evaluate_features(query, gallery)
