"""Clusterings of sparse graphs against loops and dense matrices, and the figures that describe them."""

import itertools
import re
from math import log
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN

from reid.jaccard import JaccardConfig, jaccard_graph
from reid.pseudo_labels import (
    ClusterConfig,
    ClusterReport,
    advice,
    centre_cameras,
    cluster_graph,
    describe_labels,
)

pytestmark = pytest.mark.filterwarnings("error")

METHODS = ("dbscan", "hdbscan", "infomap")


def graph_of(distances: NDArray[np.floating], max_distance: float = 1.0) -> sp.csr_array:
    """The sparse graph of a dense matrix."""
    n = len(distances)
    rows, columns = np.nonzero((distances < 1) & (distances <= max_distance) | np.eye(n, dtype=bool))
    data = np.where(rows == columns, 0, distances[rows, columns]).astype(np.float32)
    return sp.csr_array((data, (rows, columns)), shape=(n, n))


def dbscan_by_loops(distances: NDArray[np.floating], eps: float, min_samples: int) -> list[int]:
    """Ester et al., KDD 1996: seeds are images in their order, an image in reach of two clusters is the first one's."""
    n = len(distances)
    near = [[b for b in range(n) if a == b or distances[a, b] <= eps] for a in range(n)]
    labels, cluster = [-1] * n, 0
    for seed in range(n):
        if labels[seed] >= 0 or len(near[seed]) < min_samples:
            continue
        front = [seed]
        while front:
            image = front.pop()
            if labels[image] < 0:
                labels[image] = cluster
                if len(near[image]) >= min_samples:
                    front += near[image]
        cluster += 1
    return labels


def same_groups(labels: NDArray[np.int64], others: NDArray[np.int64] | list[int]) -> bool:
    """Equal up to renaming, the outliers the same."""
    labels, others = np.asarray(labels), np.asarray(others)
    pairs = set(zip(labels.tolist(), others.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(others.tolist())) and np.array_equal(
        labels < 0, others < 0
    )


def in_order(labels: NDArray[np.int64]) -> bool:
    seen = list(dict.fromkeys(labels[labels >= 0].tolist()))
    return seen == list(range(len(seen)))


def plane(seed: int, n: int, people: int, scale: float = 1.0) -> NDArray[np.float64]:
    """Distances in [0, 1] between points of groups in the plane, cut off at 1."""
    rng = np.random.default_rng(seed)
    points = 3 * rng.normal(size=(people, 2))[rng.integers(0, people, n)] + 0.4 * rng.normal(size=(n, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    return np.minimum(scale * distances / distances.max(), 1).astype(np.float32).astype(np.float64)


def people(sizes: list[int], inside: float = 0.3) -> NDArray[np.float64]:
    """Everybody's images are equally far from each other, and 1 from all others."""
    who = np.repeat(np.arange(len(sizes)), sizes)
    distances = np.where(who[:, None] == who, inside, 1.0)
    np.fill_diagonal(distances, 0)
    return distances


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float64]:
    """Symmetric distances with many ties, zeros and ones among them."""
    n = draw(st.integers(1, 12))
    values = draw(st.lists(st.sampled_from([0, 0.2, 0.5, 0.6, 0.7, 1, 1, 1]), min_size=n * n, max_size=n * n))
    upper = np.triu(np.array(values, float).reshape(n, n), 1)
    return upper + upper.T


@pytest.mark.shared
def test_golden_labels(shared: Path) -> None:
    golden = np.load(shared.parent / "shared/golden/jaccard.npz")
    config = ClusterConfig(eps=float(golden["dbscan_eps"]), min_samples=int(golden["dbscan_min_samples"]))
    for graph in (
        graph_of(golden["jaccard"]),
        graph_of(golden["jaccard"], config.max_distance),
        jaccard_graph(
            golden["features"], JaccardConfig(int(golden["k1"]), int(golden["k2"])), max_distance=config.max_distance
        ),
    ):
        labels = cluster_graph(graph, config)
        assert same_groups(labels, golden["labels"])
        assert in_order(labels)
        assert labels.dtype == np.int64


@settings(max_examples=150, deadline=None)
@given(matrices(), st.integers(1, 5), st.sampled_from([0.2, 0.5, 0.6, 0.65]))
def test_dbscan_is_that_of_the_loops(distances: NDArray[np.float64], min_samples: int, eps: float) -> None:
    distances = distances.astype(np.float32)
    labels = cluster_graph(graph_of(distances), ClusterConfig(eps=eps, min_samples=min_samples))
    assert same_groups(labels, dbscan_by_loops(distances, np.float32(eps), min_samples))
    assert in_order(labels)


@pytest.mark.parametrize("method", ["dbscan", "infomap"])
@pytest.mark.parametrize("seed", range(5))
def test_a_graph_that_stops_at_eps_gives_the_same_labels(method: str, seed: int) -> None:
    distances = plane(seed, 80, 7)
    config = ClusterConfig(method, eps=0.15)
    assert config.max_distance == 0.15
    whole, pruned = graph_of(distances), graph_of(distances, config.max_distance)
    assert pruned.nnz < whole.nnz
    labels = cluster_graph(whole, config)
    assert labels.max() > 0
    assert np.array_equal(labels, cluster_graph(pruned, config))


@pytest.mark.parametrize("seed", range(12))
def test_hdbscan_is_that_of_the_dense_matrix(seed: int) -> None:
    min_samples, min_cluster_size = 1 + seed % 4, 2 + seed % 5
    for scale in (0.99, 2.0):  # all are neighbours, or far groups are not
        distances = plane(seed, 60, 6, scale)
        dense = HDBSCAN(min_cluster_size, min_samples=min_samples, metric="precomputed", copy=True)
        config = ClusterConfig("hdbscan", min_samples=min_samples, min_cluster_size=min_cluster_size)
        labels = cluster_graph(graph_of(distances), config)
        assert labels.max() > 0
        assert same_groups(labels, dense.fit_predict(distances))
        assert in_order(labels)


def test_hdbscan_of_parts_that_do_not_meet() -> None:
    labels = cluster_graph(graph_of(people([5, 3, 1, 6, 2, 4, 1])), ClusterConfig("hdbscan"))
    assert labels.tolist() == [0] * 5 + [-1] * 4 + [1] * 6 + [-1] * 2 + [2] * 4 + [-1]
    # Those of three images have a fourth nearest that is 1 away, unless fewer need to be near.
    config = ClusterConfig("hdbscan", min_samples=2, min_cluster_size=2)
    labels = cluster_graph(graph_of(people([5, 3, 1, 6, 2, 4, 1])), config)
    assert labels.tolist() == [0] * 5 + [1] * 3 + [-1] + [2] * 6 + [3] * 2 + [4] * 4 + [-1]


def test_hdbscan_takes_clusters_of_different_density_where_dbscan_cannot() -> None:
    """Two close people whose images are alike, and one whose images are as far from each other as those two are."""
    distances = people([6, 6, 6], inside=0.1)
    distances[:6, 6:12] = distances[6:12, :6] = 0.4
    distances[12:, 12:][~np.eye(6, dtype=bool)] = 0.5
    graph = graph_of(distances)
    truth = np.repeat([0, 1, 2], 6)
    assert np.array_equal(cluster_graph(graph, ClusterConfig("hdbscan")), truth)
    for eps in (0.2, 0.45, 0.6):
        assert not np.array_equal(cluster_graph(graph, ClusterConfig(eps=eps)), truth)


def test_leaves_are_smaller_than_the_most_stable_clusters() -> None:
    distances = people([10, 10], inside=0.3)
    for first in (0, 5, 10, 15):
        distances[first : first + 5, first : first + 5] *= 0.9
    graph = graph_of(distances)
    assert cluster_graph(graph, ClusterConfig("hdbscan")).tolist() == [0] * 10 + [1] * 10
    assert cluster_graph(graph, ClusterConfig("hdbscan", selection="leaf")).tolist() == np.repeat(range(4), 5).tolist()


def test_infomap_cuts_what_one_pair_links_where_dbscan_cannot() -> None:
    distances = people([8, 8, 3])
    distances[0, 8] = distances[8, 0] = 0.3
    graph = graph_of(distances)
    assert cluster_graph(graph, ClusterConfig("infomap")).tolist() == [0] * 8 + [1] * 8 + [-1] * 3
    assert cluster_graph(graph, ClusterConfig("infomap", min_samples=3)).tolist() == [0] * 8 + [1] * 8 + [2] * 3
    assert cluster_graph(graph, ClusterConfig("dbscan")).tolist() == [0] * 16 + [-1] * 3


def test_infomap_takes_a_graph_that_is_not_quite_symmetric_at_eps() -> None:
    """Rounding may leave one of a pair's two distances above the limit."""
    graph = graph_of(people([4, 4], inside=0.6)).tolil()
    graph[0, 1] = np.nextafter(np.float32(0.6), np.float32(1))
    assert cluster_graph(sp.csr_array(graph), ClusterConfig("infomap")).tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_found_in_any_order_of_images(method: str) -> None:
    truth = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 6))
    distances = np.where(truth[:, None] == truth, 0.3, 1.0)
    np.fill_diagonal(distances, 0)
    labels = cluster_graph(graph_of(distances), ClusterConfig(method))
    assert same_groups(labels, truth)
    assert in_order(labels)
    assert np.array_equal(labels, cluster_graph(graph_of(distances), ClusterConfig(method)))


@pytest.mark.parametrize("method", METHODS)
def test_all_outliers(method: str) -> None:
    graph = graph_of(people([1] * 9))
    assert cluster_graph(graph, ClusterConfig(method)).tolist() == [-1] * 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("images", [1, 2])
def test_one_image_and_two(method: str, images: int) -> None:
    assert cluster_graph(graph_of(np.zeros((images, images))), ClusterConfig(method)).tolist() == [-1] * images


@pytest.mark.parametrize("method", METHODS)
def test_no_image(method: str) -> None:
    labels = cluster_graph(sp.csr_array((0, 0), dtype=np.float32), ClusterConfig(method))
    assert labels.shape == (0,)
    assert labels.dtype == np.int64


@pytest.mark.parametrize("method", METHODS)
def test_identical_images_are_neighbours(method: str) -> None:
    labels = cluster_graph(graph_of(people([6, 1, 5], inside=0)), ClusterConfig(method))
    assert labels.tolist() == [0] * 6 + [-1] + [1] * 5


@pytest.mark.parametrize(("method", "label"), [("dbscan", 0), ("hdbscan", -1), ("infomap", 0)])
def test_only_identical_images(method: str, label: int) -> None:
    """One cluster; none by HDBSCAN, which takes no cluster that is everything."""
    assert cluster_graph(graph_of(np.zeros((8, 8))), ClusterConfig(method)).tolist() == [label] * 8


def test_a_graph_is_left_as_it_was() -> None:
    graph = graph_of(plane(0, 40, 4))
    before = graph.copy()
    for method in METHODS:
        cluster_graph(graph, ClusterConfig(method))
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(graph, name), getattr(before, name))


def nmi_by_loops(labels: list[int], pids: list[int]) -> float:
    n = len(labels)

    def entropy(values: list[int]) -> float:
        return -sum(values.count(v) / n * log(values.count(v) / n) for v in set(values))

    shared = 0.0
    for c, p in itertools.product(set(labels), set(pids)):
        both = sum(a == c and b == p for a, b in zip(labels, pids, strict=True)) / n
        if both:
            shared += both * log(both / (labels.count(c) / n * pids.count(p) / n))
    mean = (entropy(labels) + entropy(pids)) / 2
    return shared / mean if mean else 1.0


def ari_by_loops(labels: list[int], pids: list[int]) -> float:
    pairs = list(itertools.combinations(range(len(labels)), 2))
    together = sum(labels[a] == labels[b] for a, b in pairs)
    truly = sum(pids[a] == pids[b] for a, b in pairs)
    both = sum(labels[a] == labels[b] and pids[a] == pids[b] for a, b in pairs)
    chance = together * truly / len(pairs) if pairs else 0
    most = (together + truly) / 2
    return (both - chance) / (most - chance) if most != chance else 1.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=30))
def test_figures_are_those_of_loops(images: list[tuple[int, int]]) -> None:
    labels, pids = [label for label, _ in images], [pid for _, pid in images]
    report = describe_labels(labels, pids)
    clusters = {label for label in labels if label >= 0}
    assert (report.images, report.clusters, report.outliers) == (len(images), len(clusters), labels.count(-1))
    assert report.largest == max((labels.count(c) for c in clusters), default=0)
    seen = [(label, pid) for label, pid in images if label >= 0 and pid > 0]
    if not seen:
        assert report.nmi is report.ari is report.purity is None
        assert set(report.figures()) == {"images", "clusters", "outliers", "largest"}
        return
    labels, pids = [label for label, _ in seen], [pid for _, pid in seen]
    most = sum(max(seen.count((c, p)) for p in set(pids)) for c in set(labels))
    assert report.nmi == pytest.approx(nmi_by_loops(labels, pids), abs=1e-9)
    assert report.ari == pytest.approx(ari_by_loops(labels, pids), abs=1e-9)
    assert report.purity == pytest.approx(most / len(seen))
    assert report.figures() == vars(report)


def test_a_report_without_identities() -> None:
    assert describe_labels([0, 0, -1, 1]) == ClusterReport(images=4, clusters=2, outliers=1, largest=2)
    with pytest.raises(ValueError, match=r"pids: expected one of each of 4 labels, got shape \(3,\)"):
        describe_labels([0, 0, -1, 1], [1, 1, 1])


@pytest.mark.parametrize(
    ("method", "labels", "message"),
    [
        (
            "dbscan",
            [-1] * 9,
            r"no cluster, all 9 images are outliers: raise eps \(0.6\), lower min_samples \(4\), .*k1",
        ),
        ("hdbscan", [-1] * 9, r"no cluster, .*: lower min_cluster_size \(4\) or min_samples \(4\), try method dbscan"),
        ("infomap", [-1] * 9, r"no cluster, .*: raise eps \(0.6\), lower min_samples \(4\), give more images"),
        (
            "dbscan",
            [0] * 8 + [-1],
            r"a single cluster \(8 of 9 images\).*: lower eps \(0.6\) or raise min_samples \(4\)",
        ),
        ("hdbscan", [0] * 9, r"a single cluster .*: lower min_cluster_size \(4\) or take selection leaf"),
        ("infomap", [0] * 9, r"a single cluster .*: lower eps \(0.6\), lower k1"),
        ("dbscan", [-1] * 92 + [0] * 4 + [1] * 4, r"92 of 100 images are outliers: raise eps \(0.6\)"),
        ("dbscan", [-1], r"too few images to cluster \(1\)"),
        ("dbscan", [], r"too few images to cluster \(0\)"),
    ],
)
def test_advice(method: str, labels: list[int], message: str) -> None:
    said = advice(describe_labels(labels), ClusterConfig(method))
    assert said is not None
    assert "\n" not in said
    assert re.match(message, said)


def test_no_advice_where_all_is_well() -> None:
    assert advice(describe_labels([0] * 4 + [1] * 4 + [-1] * 20), ClusterConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "kmeans"}, "method: expected dbscan, hdbscan or infomap, got 'kmeans'"),
        ({"eps": 0.0}, "eps: expected a distance above 0 and below 1, got 0.0"),
        ({"eps": 1.0}, "eps: expected a distance above 0 and below 1, got 1.0"),
        ({"min_samples": 0}, "min_samples: expected at least 1, got 0"),
        ({"min_cluster_size": 1}, "min_cluster_size: expected at least 2, got 1"),
        ({"selection": "all"}, "selection: expected eom or leaf, got 'all'"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**settings)


def test_bad_graphs_are_named() -> None:
    good = graph_of(people([2, 2]))
    with pytest.raises(ValueError, match=r"graph: expected a square sparse matrix, got \(4, 3\)"):
        cluster_graph(good[:, :3])
    with pytest.raises(ValueError, match=r"graph: expected a square sparse matrix, got \(4, 4\)"):
        cluster_graph(good.toarray())
    with pytest.raises(ValueError, match=r"graph: expected distances in \[0, 1\], got -0.25 to"):
        cluster_graph(-graph_of(people([2, 2], inside=0.25)))
    with pytest.raises(ValueError, match=r"graph: expected distances in \[0, 1\], got nan"):
        cluster_graph(sp.csr_array(np.array([[np.nan]])))
    with pytest.raises(ValueError, match="graph: expected all of its diagonal stored, as 0"):
        cluster_graph(sp.csr_array(people([2, 2])))
    with pytest.raises(ValueError, match="graph: expected all of its diagonal stored, as 0"):
        cluster_graph(sp.csr_array(np.full((2, 2), 0.5)))


def test_cameras_are_centred_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = centre_cameras(features, torch.tensor([7, 7, 2]))
    torch.testing.assert_close(
        found, torch.tensor([[11 / 12, -1 / 12], [-1 / 12, 11 / 12], [0.6 * 10 / 11, 0.8 * 10 / 11]])
    )


def test_cameras_that_shift_everybody_are_no_longer_told_apart():
    rng = np.random.default_rng(0)
    looks, pids, camids = rng.normal(size=(8, 16)), np.tile(np.arange(8), 30), np.repeat(np.arange(3), 80)
    shifts = 0.7 * rng.normal(size=(3, 16))
    features = torch.from_numpy(looks[pids] + shifts[camids] + 0.4 * rng.normal(size=(240, 16))).float()
    features = torch.nn.functional.normalize(features, dim=1)

    def purity_and_clusters(rows):
        report = describe_labels(cluster_graph(jaccard_graph(rows, JaccardConfig(k1=15)), ClusterConfig()), pids + 1)
        return report.clusters, report.purity

    assert purity_and_clusters(features)[0] == 24  # everybody in each camera by itself
    assert purity_and_clusters(centre_cameras(features, torch.from_numpy(camids))) == (8, 1.0)
