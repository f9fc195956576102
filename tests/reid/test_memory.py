import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reid.memory import ClusterMemory, InstanceMemory, camera_centres, cluster_centroids, unit_rows


def vectors(count: int, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def moved(memory: list[float], feature: list[float], momentum: float) -> list[float]:
    """Equation (4), one number at a time."""
    blend = [momentum * c + (1 - momentum) * f for c, f in zip(memory, feature, strict=True)]
    length = math.sqrt(sum(v * v for v in blend))
    return [v / length for v in blend]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def test_centroids_are_plain_means_by_hand() -> None:
    features = torch.tensor([[1.0, 0], [9, 9], [0, 1], [0, 1], [4, 8]])
    centroids = cluster_centroids(features, torch.tensor([1, -1, 0, 1, 1]))
    torch.testing.assert_close(centroids, torch.tensor([[0, 1], [5 / 3, 3]]))


def test_camera_centres_by_hand() -> None:
    """(5): two clusters and three cameras of which the second cluster is seen by one alone; an outlier."""
    features = torch.tensor([[1.0, 0], [3, 2], [0, 1], [9, 9], [5, 5], [7, 1]])
    made = camera_centres(features, torch.tensor([0, 0, 0, -1, 1, 1]), torch.tensor([4, 4, 2, 4, 7, 7]))
    assert made.labels.tolist() == [0, 0, 1]
    assert made.camids.tolist() == [2, 4, 7]
    assert made.centres.tolist() == [[0, 1], [2, 1], [6, 3]]


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=30), st.integers(0, 1000))
def test_centres_are_those_of_loops(images: list[tuple[int, int]], seed: int) -> None:
    names = sorted({label for label, _ in images} - {-1})
    images = [(names.index(label) if label >= 0 else -1, camera) for label, camera in images]
    if not names:
        return
    features = vectors(len(images), seed=seed)
    labels, camids = (torch.tensor(column) for column in zip(*images, strict=True))
    centroids = cluster_centroids(features, labels)
    for label in range(len(names)):
        own = [features[i] for i, image in enumerate(images) if image[0] == label]
        torch.testing.assert_close(centroids[label], sum(own[1:], own[0]) / len(own))
    made = camera_centres(features, labels, camids)
    pairs = list(zip(made.labels.tolist(), made.camids.tolist(), strict=True))
    assert pairs == sorted({image for image in images if image[0] >= 0})
    for pair, centre in zip(pairs, made.centres, strict=True):
        own = [features[i] for i, image in enumerate(images) if image == pair]
        torch.testing.assert_close(centre, sum(own[1:], own[0]) / len(own))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, -1, -1], "labels: expected at least one cluster, got only outliers"),
        ([0, 2, -1], "labels: expected an image in each cluster 0 to 2, got none in 1"),
        ([0, 0, -2], "labels: expected −1 or clusters from 0, got -2"),
    ],
)
def test_labels_that_are_no_clusters(labels: list[int], message: str) -> None:
    features, found = vectors(3), torch.tensor(labels)
    for make in (cluster_centroids, ClusterMemory.build, InstanceMemory.build):
        with pytest.raises(ValueError, match=message):
            make(features, found)
    with pytest.raises(ValueError, match=message):
        camera_centres(features, found, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_memories_are_unit_rows_of_full_precision(dtype: torch.dtype) -> None:
    features, labels = 5 * vectors(6, dtype=dtype), torch.tensor([0, 0, 1, -1, 1, -1])
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for rows in (ClusterMemory.build(features, labels).centroids, InstanceMemory.build(features, labels).features):
        assert rows.dtype == wanted
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=wanted))
    assert cluster_centroids(features, labels).dtype == wanted


def test_every_image_counts_alike_whatever_its_length() -> None:
    features = torch.tensor([[1.0, 0], [0, 100]])
    memory = ClusterMemory.build(features, torch.tensor([0, 0]))
    torch.testing.assert_close(memory.centroids, torch.tensor([[0.5, 0.5]]).sqrt())


def test_outliers_are_classes_of_their_own_behind_the_clusters() -> None:
    memory = InstanceMemory.build(vectors(6), torch.tensor([-1, 1, 0, -1, 1, -1]))
    assert memory.classes.tolist() == [2, 1, 0, 3, 1, 4]


def test_one_update_by_hand() -> None:
    """(4) with m = 0.1: 0.1 (1, 0) + 0.9 (0, 1) = (0.1, 0.9), of length √0.82."""
    memory = ClusterMemory(torch.tensor([[1.0, 0], [0, 1]]))
    memory.update(torch.tensor([[0.0, 1]]), torch.tensor([0]), 0.1)
    torch.testing.assert_close(memory.centroids, torch.tensor([[0.1 / 0.82**0.5, 0.9 / 0.82**0.5], [0, 1]]))


@given(st.lists(st.integers(0, 3), max_size=12), st.floats(0, 1), st.integers(0, 1000))
def test_updates_follow_one_another_in_batch_order(labels: list[int], momentum: float, seed: int) -> None:
    features, start = unit_rows(vectors(len(labels), seed=seed)), unit_rows(vectors(4, seed=seed + 1))
    wanted = start.tolist()
    for feature, label in zip(features.tolist(), labels, strict=True):
        wanted[label] = moved(wanted[label], feature, momentum)
    index = torch.tensor(labels, dtype=torch.int64)
    clusters, instances = ClusterMemory(start.clone()), InstanceMemory(start.clone(), torch.arange(4))
    clusters.update(features, index, momentum)
    instances.update(features, index, momentum)
    torch.testing.assert_close(clusters.centroids, torch.tensor(wanted, dtype=torch.float64))
    assert torch.equal(instances.features, clusters.centroids)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 1000))
def test_hard_update_takes_the_least_similar_of_each_cluster_once(labels: list[int], seed: int) -> None:
    features, start = unit_rows(vectors(len(labels), seed=seed)), unit_rows(vectors(4, seed=seed + 1))
    wanted, before = start.tolist(), start.tolist()
    for label in set(labels):
        own = [feature for feature, other in zip(features.tolist(), labels, strict=True) if other == label]
        hardest = min(own, key=lambda feature, label=label: dot(feature, before[label]))
        wanted[label] = moved(before[label], hardest, 0.2)
    memory = ClusterMemory(start.clone())
    memory.update(features, torch.tensor(labels, dtype=torch.int64), 0.2, hard=True)
    torch.testing.assert_close(memory.centroids, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_enters(value: float, hard: bool) -> None:
    """The other rows of the batch do, the same cluster's included."""
    start, features = unit_rows(vectors(3)), unit_rows(vectors(4, seed=1))
    labels = torch.tensor([0, 0, 1, 2])
    spoilt = features.clone()
    spoilt[0, 1] = spoilt[2, 0] = value
    memory, without = ClusterMemory(start.clone()), ClusterMemory(start.clone())
    memory.update(spoilt, labels, 0.1, hard)
    without.update(features[[1, 3]], labels[[1, 3]], 0.1, hard)
    assert torch.equal(memory.centroids, without.centroids)
    assert torch.equal(memory.centroids[1], start[1])
    assert not torch.equal(memory.centroids[0], start[0])
    instances = InstanceMemory(start.clone(), torch.arange(3))
    instances.update(spoilt, labels, 0.1)
    assert torch.equal(instances.features[1], start[1])
    assert instances.features.isfinite().all()


def test_a_batch_of_nothing_but_nan_changes_nothing() -> None:
    start = unit_rows(vectors(3))
    for hard in (False, True):
        memory = ClusterMemory(start.clone())
        memory.update(torch.full((2, 4), math.nan), torch.tensor([0, 2]), 0.1, hard)
        assert torch.equal(memory.centroids, start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposites_leave_no_direction_and_the_centroid_stays(dtype: torch.dtype) -> None:
    start = unit_rows(vectors(2, dtype=dtype))
    memory = ClusterMemory(start.clone())
    memory.update(-start, torch.tensor([0, 1]), 0.5)
    assert torch.equal(memory.centroids, start)
    memory.update(torch.zeros_like(start), torch.tensor([0, 1]), 0.0)
    assert torch.equal(memory.centroids, start)


def test_a_row_without_length_is_no_direction_from_the_start() -> None:
    assert unit_rows(torch.tensor([[0.0, 0], [0, 3]])).tolist() == [[0, 0], [0, 1]]


def test_half_precision_moves_a_float32_memory() -> None:
    start, feature = unit_rows(vectors(2, dtype=torch.float32)), unit_rows(vectors(1, seed=3)).bfloat16()
    memory = ClusterMemory(start.clone())
    memory.update(feature, torch.tensor([1]), 0.1)
    wanted = moved(start[1].tolist(), feature[0].tolist(), 0.1)
    torch.testing.assert_close(memory.centroids[1], torch.tensor(wanted))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_centres_are_the_same_bits_on_a_gpu() -> None:
    features, labels = vectors(500, 64, dtype=torch.float32), torch.arange(500) % 7 - 1
    camids = torch.arange(500) % 3
    there = camera_centres(features.cuda(), labels.cuda(), camids.cuda())
    assert there.centres.is_cuda
    assert torch.equal(there.centres.cpu(), camera_centres(features, labels, camids).centres)
    assert torch.equal(cluster_centroids(features.cuda(), labels.cuda()).cpu(), cluster_centroids(features, labels))
    on_gpu = [ClusterMemory.build(features.cuda(), labels.cuda()) for _ in range(2)]
    for memory in on_gpu:
        memory.update(unit_rows(features[:60]).cuda(), (labels[:60].clamp(min=0)).cuda(), 0.1)
    assert torch.equal(on_gpu[0].centroids, on_gpu[1].centroids)
