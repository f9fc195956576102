"""Re-ranked distances against recorded ones and against the paper written with sets and loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import reranking
from reid.ranking import evaluate_ranking
from reid.reranking import RerankConfig, RerankedDistances
from tests.reid.reciprocals import encode_by_loops, encoded_distance


def rerank_by_loops(query, gallery, k1=20, k2=6, weight=0.3, power=4, unit=True):
    """Zhong et al., dense, in float64, one image after the other."""
    images = np.concatenate((query, gallery)).astype(np.float64)
    if unit:
        images /= np.linalg.norm(images, axis=1, keepdims=True)
    squared = np.array([[((a - b) ** 2).sum() for b in images] for a in images])
    distance = (squared / squared.max(axis=1, keepdims=True).clip(min=1e-30)) ** (power / 2)
    order = np.argsort(squared.round(12), axis=1, kind="stable")

    encodings = encode_by_loops(order, distance, k1, k2)
    result = np.zeros((len(query), len(gallery)))
    for p in range(len(query)):
        for g in range(len(gallery)):
            jaccard = encoded_distance(encodings[p], encodings[len(query) + g])
            result[p, g] = (1 - weight) * jaccard + weight * distance[p, len(query) + g]
    return result


def people(seed, n_query=12, n_gallery=50, dimension=8, spread=0.5):
    """Features of some people who are told apart with some trouble."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(8, dimension))
    return [
        (looks[rng.integers(0, 8, n)] + spread * rng.normal(size=(n, dimension))).astype(np.float32)
        for n in (n_query, n_gallery)
    ]


def whole(distances):
    return distances[0 : distances.shape[0]].numpy()


@pytest.mark.shared
def test_equals_recorded_distances(shared: Path):
    with np.load(shared / "golden" / "reid_eval.npz") as file:
        recorded = dict(file)
    config = RerankConfig(int(recorded["rerank_k1"]), 6, float(recorded["rerank_lambda"]))
    distances = RerankedDistances(recorded["query_features"], recorded["gallery_features"], config)
    np.testing.assert_allclose(whole(distances), recorded["rerank_distance"], atol=1e-6)
    labels = [recorded[f"{side}_{kind}"] for kind in ("pids", "camids") for side in ("query", "gallery")]
    result = evaluate_ranking(distances, *labels)
    assert result.mean_ap == pytest.approx(float(recorded["rerank_mAP"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc[:20], recorded["rerank_cmc"], atol=1e-6)


@pytest.mark.parametrize(
    ("k1", "k2", "weight", "power"),
    [(20, 6, 0.3, 4), (20, 6, 0.3, 2), (5, 3, 0, 4), (7, 1, 0.5, 4), (1, 2, 0.3, 4), (11, 6, 1, 2), (200, 90, 0.3, 4)],
)
def test_equals_loops(k1, k2, weight, power):
    for seed in range(3):
        query, gallery = people(seed)
        found = whole(RerankedDistances(query, gallery, RerankConfig(k1, k2, weight, power)))
        np.testing.assert_allclose(found, rerank_by_loops(query, gallery, k1, k2, weight, power), atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 18)),
    k1=st.integers(1, 12),
    k2=st.integers(1, 8),
    values=st.sampled_from([2, 3, 9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_loops_with_ties(sizes, k1, k2, values, seed):
    """Features of small whole numbers as they are: many images coincide, and every distance is exact."""
    rng = np.random.default_rng(seed)
    query, gallery = (rng.integers(0, values, (n, 3)).astype(np.float32) for n in sizes)
    found = whole(RerankedDistances(query, gallery, RerankConfig(k1, k2), "euclidean"))
    np.testing.assert_allclose(found, rerank_by_loops(query, gallery, k1, k2, unit=False), atol=2e-6)


def test_rows_do_not_depend_on_how_they_are_asked_for(monkeypatch):
    query, gallery = people(0)
    distances = RerankedDistances(query, gallery)
    assert distances.shape == (12, 50)
    expected = whole(distances)
    np.testing.assert_array_equal(np.concatenate([distances[i : i + 5] for i in (0, 5, 10)]), expected)
    np.testing.assert_array_equal(whole(distances), expected)  # nothing that is kept was changed
    monkeypatch.setattr(reranking, "_ACROSS_BYTES", 0)  # too large to keep: original distances computed once more
    np.testing.assert_allclose(whole(RerankedDistances(query, gallery)), expected, atol=1e-6)


def test_features_are_left_as_they_are():
    query, gallery = people(1)
    before = query.copy(), gallery.copy()
    whole(RerankedDistances(query, gallery))
    np.testing.assert_array_equal(query, before[0])
    np.testing.assert_array_equal(gallery, before[1])


def test_length_counts_by_euclidean_distance_alone():
    query, gallery = people(2)
    cosine = whole(RerankedDistances(query, gallery))
    np.testing.assert_allclose(whole(RerankedDistances(7 * query, gallery)), cosine, atol=1e-6)
    for scale in (1e-6, 1, 1e6):  # powers of large distances do not overflow
        found = whole(RerankedDistances(scale * query, scale * gallery, metric="euclidean"))
        np.testing.assert_allclose(found, rerank_by_loops(query, gallery, unit=False), atol=5e-6)


def test_re_ranking_helps_where_people_form_groups():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(1, 21), 20)
    rows = rng.normal(size=(21, 64))[pids] + 1.6 * rng.normal(size=(400, 64))
    query = np.arange(0, 400, 20)
    labels = pids[query], pids, np.zeros(20, int), np.where(np.isin(np.arange(400), query), 0, 1)
    plain = evaluate_ranking(((rows[query, None] - rows) ** 2).sum(2), *labels)
    again = evaluate_ranking(RerankedDistances(rows[query], rows), *labels)
    assert again.mean_ap > plain.mean_ap + 0.1


def test_identical_images():
    ones = np.ones((3, 4), np.float32), np.ones((60, 4), np.float32)
    found = whole(RerankedDistances(*ones))
    assert np.isfinite(found).all()
    assert found.min() >= 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_distances():
    query, gallery = people(0)
    found = RerankedDistances(query, gallery, device="cuda")[3:9]
    assert found.is_cuda
    np.testing.assert_allclose(found.cpu(), RerankedDistances(query, gallery)[3:9], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("k1", 0, "at least 1"), ("k2", 0, "at least 1"), ("original_weight", 1.1, "from 0 to 1"), ("power", 3, "2 or 4")],
)
def test_impossible_settings_are_named(field, value, expected):
    with pytest.raises(ValueError, match=f"{field}: expected .*{expected}, got {value}"):
        RerankConfig(**{field: value})


def test_what_cannot_be_ranked_is_refused():
    query, gallery = people(0)
    with pytest.raises(ValueError, match="gallery: expected at least one image, got none"):
        RerankedDistances(query, gallery[:0])
    with pytest.raises(ValueError, match="query: expected at least one image, got none"):
        RerankedDistances(query[:0], gallery)
    with pytest.raises(ValueError, match="metric: expected one of cosine, euclidean"):
        RerankedDistances(query, gallery, metric="jaccard")
    gallery[30, 2] = np.nan
    with pytest.raises(ValueError, match=r"gallery: expected finite features, .* row 30"):
        RerankedDistances(query, gallery)
