"""Jaccard distances against recorded ones and against the published algorithm written with sets and loops."""

import importlib.util
import itertools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from reid import neighbours
from reid.jaccard import JaccardConfig, dense_distances, jaccard_graph
from tests.reid.reciprocals import encode_by_loops, encoded_distance

# Unit rows whose products are exact in any precision and any order, so that equal distances are equal.
EXACT = np.array(
    [sign * row for sign in (1, -1) for row in np.eye(4)] + list(itertools.product((0.5, -0.5), repeat=4)), np.float32
)


def jaccard_by_loops(features, k1, k2, reading="published"):
    """The description in float64, dense, one image after the other."""
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    squared = 2 - 2 * rows @ rows.T
    order = np.argsort(squared.round(12), axis=1, kind="stable")
    if reading == "published":
        order = order[:, :k1]  # all that the search is asked for

    weights = encode_by_loops(order, squared, k1, k2)
    distances = np.zeros((n, n))
    for p, q in itertools.permutations(range(n), 2):
        distances[p, q] = encoded_distance(weights[p], weights[q])
    return distances


def people(seed, images=60, dimension=8, spread=0.4):
    """Features of some people, of any length."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(8, dimension))
    return (looks[rng.integers(0, 8, images)] + spread * rng.normal(size=(images, dimension))).astype(np.float32)


def clusters(graph, eps=0.6, min_samples=4):
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(sort_by_distance(graph))


def sort_by_distance(graph):
    """What spares scikit-learn a copy and a warning."""
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    order = np.lexsort((graph.data, rows))
    return sp.csr_array((graph.data[order], graph.indices[order], graph.indptr), graph.shape)


def same_clusters(first, second):
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist())) and all(
        (a < 0) == (b < 0) for a, b in pairs
    )


@pytest.mark.shared
def test_equals_recorded_distances_and_clusters(shared: Path):
    with np.load(shared / "golden" / "jaccard.npz") as file:
        recorded = dict(file)
    config = JaccardConfig(int(recorded["k1"]), int(recorded["k2"]))
    graph = jaccard_graph(recorded["features"], config)
    np.testing.assert_allclose(dense_distances(graph), recorded["jaccard"], atol=2e-6)
    eps, least = float(recorded["dbscan_eps"]), int(recorded["dbscan_min_samples"])
    for max_distance in (1.0, eps):
        pruned = jaccard_graph(recorded["features"], config, max_distance=max_distance)
        assert same_clusters(clusters(pruned, eps, least), recorded["labels"])
    paper = jaccard_graph(recorded["features"], JaccardConfig(config.k1, config.k2, "paper"))
    assert np.abs(dense_distances(paper) - recorded["jaccard"]).max() > 0.01


@pytest.mark.parametrize("reading", ["published", "paper"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (30, 6), (5, 3), (7, 1), (1, 1), (2, 2), (1, 4), (3, 9), (200, 90)])
def test_equals_loops(k1, k2, reading):
    for seed in range(2):
        features = people(seed)
        found = dense_distances(jaccard_graph(features, JaccardConfig(k1, k2, reading)))
        np.testing.assert_allclose(found, jaccard_by_loops(features, k1, k2, reading), atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, len(EXACT) - 1), min_size=1, max_size=24),
    k1=st.integers(1, 30),
    k2=st.integers(1, 8),
    reading=st.sampled_from(["published", "paper"]),
    scale=st.sampled_from([1, 4, 0.125]),
    max_distance=st.sampled_from([1.0, 0.6, 0.0]),
)
def test_equals_loops_with_ties(rows, k1, k2, reading, scale, max_distance):
    """Many images coincide, and many pairs of images are equally far apart."""
    features = EXACT[rows]
    expected = jaccard_by_loops(features, k1, k2, reading)
    graph = jaccard_graph(scale * features, JaccardConfig(k1, k2, reading), max_distance=max_distance)
    clear = np.abs(expected - max_distance) > 1e-5  # others may be rounded to either side
    expected[expected > max_distance] = 1
    found = dense_distances(graph)
    np.testing.assert_allclose(found[clear], expected[clear], atol=2e-6)
    assert (found == found.T).all() and (found.diagonal() == 0).all()
    assert graph.data.min() >= 0 and (graph.data < 1).all() and graph.data.max() <= max_distance


def test_graph_is_symmetric_and_holds_its_diagonal():
    features = people(3, images=200)
    graph = jaccard_graph(features)
    assert isinstance(graph, sp.csr_array) and graph.shape == (200, 200) and graph.dtype == np.float32
    assert (graph != graph.T).nnz == 0 and graph.has_canonical_format
    rows = np.repeat(np.arange(200), np.diff(graph.indptr))
    diagonal = graph.data[rows == graph.indices]
    assert len(diagonal) == 200 and (diagonal == 0).all()
    assert graph.data.min() >= 0 and graph.data.max() < 1
    assert 200 < graph.nnz < 200 * 200  # sparse


@pytest.mark.parametrize("max_distance", [0.0, 0.3, 0.6, 0.99])
def test_larger_distances_are_left_out_and_nothing_else(max_distance):
    features = people(4, images=120)
    whole = dense_distances(jaccard_graph(features))
    pruned = jaccard_graph(features, max_distance=max_distance)
    np.testing.assert_array_equal(dense_distances(pruned), np.where(whole <= max_distance, whole, 1))
    assert pruned.nnz == (whole <= max_distance).sum()


def test_clusters_are_those_of_the_dense_matrix():
    features = people(5, images=150, dimension=16, spread=0.3)
    graph = jaccard_graph(features, max_distance=0.6)
    labels = clusters(graph)
    dense = jaccard_by_loops(features, 30, 6)
    assert same_clusters(labels, DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(dense))
    assert labels.max() > 1


def test_does_not_depend_on_the_size_of_tiles(monkeypatch):
    features = people(6, images=150)
    whole = dense_distances(jaccard_graph(features))
    monkeypatch.setattr(neighbours, "_CPU_SIDE", 13)
    monkeypatch.setattr("reid.reciprocal._BLOCK_PRODUCTS", 1)
    np.testing.assert_allclose(dense_distances(jaccard_graph(features)), whole, atol=1e-6)


def test_takes_tensors_of_any_length_and_precision():
    features = people(7)
    whole = dense_distances(jaccard_graph(features))
    lengths = np.random.default_rng(0).uniform(0.01, 100, (len(features), 1)).astype(np.float32)
    before = features.copy()
    for same in (torch.from_numpy(features), features.astype(np.float64), lengths * features):
        np.testing.assert_allclose(dense_distances(jaccard_graph(same)), whole, atol=2e-6)
    np.testing.assert_array_equal(features, before)
    half = features.astype(np.float16)
    expected = jaccard_graph(half.astype(np.float32))
    np.testing.assert_array_equal(dense_distances(jaccard_graph(half)), dense_distances(expected))


def test_one_image_and_two():
    one = jaccard_graph(np.ones((1, 4), np.float32))
    assert one.shape == (1, 1) and one.nnz == 1 and one.data[0] == 0
    two = dense_distances(jaccard_graph(np.array([[1, 0], [0, 1]], np.float32)))
    # Each is the other's neighbour: with local query expansion over both, their encodings are one.
    np.testing.assert_allclose(two, 0, atol=1e-6)
    apart = dense_distances(jaccard_graph(np.array([[1, 0], [0, 1]], np.float32), JaccardConfig(k2=1)))
    near, far = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))  # softmax of 0 and -2
    shared = 2 * far
    np.testing.assert_allclose(apart, (1 - shared / (2 - shared)) * (1 - np.eye(2)), atol=1e-6)
    assert near + far == pytest.approx(1)


@pytest.mark.parametrize("images", [3, 30, 31, 100])
def test_identical_images_are_one_cluster(images):
    row = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
    graph = jaccard_graph(np.repeat(row, images, axis=0), max_distance=0.6)
    assert np.isfinite(graph.data).all()
    assert (clusters(graph, min_samples=3) == 0).all()


def test_what_cannot_be_compared_is_refused():
    features = people(8)
    features[17] = 0
    features[30] = 1e-30
    with pytest.raises(ValueError, match=r"features: expected no row of zeros, got one in row 17 \(2 in all\)"):
        jaccard_graph(features)
    features[40, 2] = np.nan
    with pytest.raises(ValueError, match=r"features: expected finite features, .* row 40"):
        jaccard_graph(features)
    with pytest.raises(ValueError, match="features: expected at least one image, got none"):
        jaccard_graph(features[:0])
    with pytest.raises(ValueError, match=r"features: expected features of shape \(N, D\), got \(8,\)"):
        jaccard_graph(features[0])
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"max_distance: expected a number from 0 to 1, got {wrong}"):
            jaccard_graph(people(8), max_distance=wrong)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("k1", 0, "at least 1"), ("k2", 0, "at least 1"), ("reading", "mine", "published or paper")),
        ("search", "mine", "torch or faiss"),
    ],
)
def test_impossible_settings_are_named(field, value, expected):
    with pytest.raises(ValueError, match=f"{field}: expected {expected}, got '?{value}"):
        JaccardConfig(**{field: value})


class FlatIndex:
    """What is used of faiss' index of the same kind."""

    def __init__(self, dimension):
        self.rows = np.empty((0, dimension), np.float32)

    def add(self, rows):
        self.rows = rows

    def search(self, rows, count):
        squared = ((rows[:, None] - self.rows) ** 2).sum(2)
        nearest = squared.argsort(1)[:, :count]
        return np.take_along_axis(squared, nearest, 1), nearest


@pytest.mark.parametrize("images", [5, 60])
def test_faiss_searches_as_we_do(monkeypatch, images):
    if not importlib.util.find_spec("faiss"):
        monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatL2=FlatIndex))
    features = people(11, images)
    found = jaccard_graph(features, JaccardConfig(search="faiss"))
    np.testing.assert_allclose(dense_distances(found), dense_distances(jaccard_graph(features)), atol=1e-5)


def test_faiss_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="not installed"):
        jaccard_graph(people(12), JaccardConfig(search="faiss"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_distances():
    features = people(9)
    found = dense_distances(jaccard_graph(features, device="cuda"))
    np.testing.assert_allclose(found, dense_distances(jaccard_graph(features)), atol=1e-5)
