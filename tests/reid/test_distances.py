"""Distances by rows against SciPy, pooling of queries against a loop, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from reid.distances import FeatureDistances, pool_queries


def features(seed, n=30, dimension=12):
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_equal_scipy(metric, dtype):
    query, gallery = 5 * features(0).astype(dtype), features(1, 50).astype(dtype)
    distances = FeatureDistances(query, gallery, metric)
    assert distances.shape == (30, 50)
    expected = cdist(query.astype(np.float64), gallery.astype(np.float64), metric)
    for rows in (slice(0, 30), slice(7, 12), slice(28, 40), slice(3, 3)):
        found = distances[rows]
        assert found.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
        np.testing.assert_allclose(found.numpy(), expected[rows], atol=1e-5)


def test_features_are_left_as_they_are():
    query, gallery = features(0), features(1)
    before = query.copy(), gallery.copy()
    for metric in ("cosine", "euclidean"):
        FeatureDistances(query, gallery, metric)[0:30]
    np.testing.assert_array_equal(query, before[0])
    np.testing.assert_array_equal(gallery, before[1])


def test_a_row_of_zeros_is_at_distance_one():
    query = features(0)
    query[3] = 0
    distances = FeatureDistances(query, query)[0:30]
    np.testing.assert_allclose(distances[3].numpy(), 1)
    np.testing.assert_allclose(distances[:, 3].numpy(), 1)


def test_a_feature_is_at_no_distance_from_itself():
    same = 10 + features(0)
    assert FeatureDistances(same, same, "euclidean")[0:30].diagonal().max() < 0.05  # cancellation, never NaN
    assert FeatureDistances(same, same)[0:30].diagonal().abs().max() < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_rows():
    query, gallery = features(0), features(1)
    for metric in ("cosine", "euclidean"):
        found = FeatureDistances(query, gallery, metric, "cuda")[4:9]
        assert found.is_cuda
        np.testing.assert_allclose(found.cpu(), FeatureDistances(query, gallery, metric)[4:9], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_the_row_that_is_not_finite_is_named(side, value):
    sides = {"query": features(0), "gallery": features(1)}
    sides[side][[17, 20], 5] = value
    with pytest.raises(ValueError, match=rf"{side}: expected finite features, .* in row 17 \(2 in all\)"):
        FeatureDistances(**sides)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"gallery: expected features of length 12.* got 11"):
        FeatureDistances(features(0), features(0)[:, 1:])
    with pytest.raises(ValueError, match=r"query: expected features of shape \(N, D\), got \(12,\)"):
        FeatureDistances(features(0)[0], features(0))
    with pytest.raises(ValueError, match="metric: expected one of cosine, euclidean, got 'l1'"):
        FeatureDistances(features(0), features(0), "l1")


def test_pooled_queries_equal_a_loop():
    rng = np.random.default_rng(2)
    rows, pids, camids = features(3, 60) * 3, rng.integers(1, 6, 60), rng.choice([1, 2, 12], 60)
    query = rng.integers(0, 60, 25)
    found = pool_queries(rows, pids, camids, pids[query], camids[query]).numpy()
    for i, q in enumerate(query):
        group = [rows[j] / np.linalg.norm(rows[j]) for j in range(60) if (pids[j], camids[j]) == (pids[q], camids[q])]
        np.testing.assert_allclose(found[i], np.mean(group, axis=0), atol=1e-6)


def test_a_single_image_pools_to_itself():
    rows = features(0)
    pids, camids = np.arange(1, 31), np.ones(30, int)
    pooled = pool_queries(rows, pids, camids, pids, camids)
    np.testing.assert_allclose(FeatureDistances(pooled, rows)[0:30], FeatureDistances(rows, rows)[0:30], atol=1e-6)


def test_pooling_refuses_what_is_missing():
    rows, ones = features(0, 4), np.ones(4, int)
    message = "features: expected an image of person 1 seen by camera 2, as in query 1, got none"
    with pytest.raises(ValueError, match=message):
        pool_queries(rows, ones, ones, np.array([1, 1]), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"camids: expected shape \(4,\), got \(3,\)"):
        pool_queries(rows, ones, ones[:3], ones, ones)
