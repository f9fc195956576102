"""Clusters of tracklets: against average linkage written with loops, by what must always hold, and by hand."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.constraints import ConstraintConfig, constrain
from reid.separation import agreement
from reid.tracklets import Tracklets, sample
from tests.reid.test_tracklets import tracklets


def graph_of(distances):
    """Distances (N, N) as a graph: stored where they are below 1, the diagonal as 0."""
    rows, columns = (distances < 1).nonzero()
    return sp.csr_array((distances[rows, columns].astype(np.float32), (rows, columns)), distances.shape)


def looped(labels, distances, t, config, rows):
    """Average linkage with constraints, everything compared anew for each step."""
    boxes = [[place for place, row in enumerate(rows) if t.index[row] == i] for i in range(len(t.sizes))]
    clusters = []
    for own in boxes:
        counts = {label: sum(labels[b] == label for b in own) for label in {labels[b] for b in own} - {-1}}
        clusters.append({label for label, count in counts.items() if count / len(own) >= config.share})
    strangers = {tuple(pair) for pair in t.cannot_link(config.overlapping).tolist()}
    groups = [[i] for i in range(len(t.sizes))]
    while True:
        found = []
        for a, b in itertools.combinations(groups, 2):
            pairs = [(min(i, j), max(i, j)) for i in a for j in b]
            total = sum(
                1 - distances[x, y] for i, j in pairs if clusters[i] & clusters[j] for x in boxes[i] for y in boxes[j]
            )
            if total > 0 and not strangers & set(pairs):
                found.append((-total / (sum(len(boxes[i]) for i in a) * sum(len(boxes[j]) for j in b)), a[0], b[0]))
        if not found:
            break
        _, a, b = min(found)
        first, second = (next(group for group in groups if group[0] == lowest) for lowest in (a, b))
        groups.remove(second)
        first.extend(second)
    result, number = np.full(len(t), -1), 0
    for group in groups:
        inside = np.isin(t.index, group)
        if inside.sum() >= config.min_boxes and (config.lone_tracklets or any(clusters[i] for i in group)):
            result[inside] = number
            number += 1
    return result


@st.composite
def clusterings(draw):
    """Labels and distances without rhyme or reason, in eighths, so that sums are exact and many are equal."""
    t = draw(tracklets())
    rows = sample(t, draw(st.integers(1, 6)))
    rows = rows if draw(st.booleans()) else np.array(draw(st.permutations(rows.tolist())), np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(-1, draw(st.integers(1, 4)), len(rows))
    distances = rng.integers(1, 9, (len(rows), len(rows))) / 8
    distances[rng.random(distances.shape) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = 1
    distances = np.triu(distances, 1) + np.triu(distances, 1).T
    config = ConstraintConfig(
        share=draw(st.sampled_from([0.1, 0.25, 0.5, 0.6, 1.0])),
        overlapping=draw(st.booleans()),
        min_boxes=draw(st.integers(1, 5)),
        lone_tracklets=draw(st.booleans()),
    )
    return labels, distances, t, config, rows


@settings(deadline=None, max_examples=150)
@given(clusterings())
def test_equals_loops(case):
    labels, distances, t, config, rows = case
    found = constrain(labels, graph_of(distances), t, config, rows)
    np.testing.assert_array_equal(found, looped(labels, distances, t, config, rows))


@pytest.mark.parametrize("seed", range(8))
def test_the_strongest_link_is_always_the_next(seed):
    """A large cluster with some people to keep apart, so that links are lost and weakened on the way."""
    rng = np.random.default_rng(seed)
    t = Tracklets(np.arange(16), rng.integers(0, 6, 16), np.arange(16) % 2)
    distances = np.triu(rng.integers(0, 65, (16, 16)) / 64, 1)
    distances += distances.T
    labels, config = np.zeros(16, np.int64), ConstraintConfig(min_boxes=1)
    found = constrain(labels, graph_of(distances), t, config)
    np.testing.assert_array_equal(found, looped(labels, distances, t, config, np.arange(16)))


@settings(deadline=None, max_examples=100)
@given(clusterings())
def test_what_always_holds(case):
    labels, distances, t, config, rows = case
    graph = graph_of(distances)
    found = constrain(labels, graph, t, config, rows)
    assert found.dtype == np.int64
    report = agreement(found, t, config.overlapping)
    assert report.violations == 0
    assert report.whole + report.outliers == report.tracklets
    names = list(dict.fromkeys(found[found >= 0].tolist()))
    assert names == list(range(len(names)))
    assert (np.bincount(found[found >= 0]) >= config.min_boxes).all()

    renumbered = Tracklets(7 - 3 * t.tracks, t.times, t.camids)
    np.testing.assert_array_equal(constrain(labels, graph, renumbered, config, rows), found)
    other_names = np.where(labels >= 0, 10 - 2 * labels, -1)
    np.testing.assert_array_equal(constrain(other_names, graph, t, config, rows), found)


@settings(deadline=None, max_examples=100)
@given(clusterings())
def test_once_is_enough(case):
    labels, distances, t, config, rows = case
    t = t[np.sort(rows)]
    graph = graph_of(distances)
    once = constrain(labels, graph, t, config)
    np.testing.assert_array_equal(constrain(once, graph, t, config), once)


def walk(*people):
    """A tracklet each, from (camera, times)."""
    tracks = np.repeat(np.arange(len(people)), [len(times) for _, times in people])
    camids = np.array([people[i][0] for i in tracks])
    return Tracklets(tracks, np.concatenate([times for _, times in people]), camids)


def alike(t, similarity):
    """Distances from similarities of tracklets (T, T)."""
    return 1 - np.asarray(similarity, float)[np.ix_(t.index, t.index)]


def test_a_cluster_that_swallows_two_people_of_a_frame_is_split():
    """Persons 0 and 1 are in one frame; 2 and 3, in another camera, are each more like one of them."""
    t = walk((0, range(5)), (0, range(4, 9)), (1, range(5)), (1, range(5)))
    similarity = [[1, 0.5, 0.6, 0.3], [0.5, 1, 0.4, 0.7], [0.6, 0.4, 1, 0.6], [0.3, 0.7, 0.6, 1]]
    labels = constrain(np.zeros(20, np.int64), graph_of(alike(t, similarity)), t)
    assert labels[t.firsts].tolist() == [0, 1, 0, 1]


def test_people_who_cross_stay_two():
    """Two fragments of each, before and after; the crossing made boxes of all four alike."""
    t = walk((0, range(5)), (0, range(5)), (0, range(7, 12)), (0, range(7, 12)))
    similarity = np.full((4, 4), 0.4)
    similarity[[0, 3], [3, 0]] = similarity[[1, 2], [2, 1]] = 0.6
    labels = constrain(np.zeros(20, np.int64), graph_of(alike(t, similarity)), t)
    assert labels[t.firsts].tolist() == [0, 1, 1, 0]


def test_tracklets_of_two_cameras_are_joined_by_a_common_cluster():
    t = walk((0, range(6)), (1, range(6)), (2, range(6)))
    labels = np.r_[[0] * 6, [0, 0, -1, -1, -1, 1], [1] * 6]
    graph = graph_of(alike(t, np.full((3, 3), 0.5)))
    assert constrain(labels, graph, t)[t.firsts].tolist() == [0, 0, 1]
    # A single box is enough where any share is; then the one in the middle holds all three together.
    assert constrain(labels, graph, t, ConstraintConfig(share=0.1))[t.firsts].tolist() == [0, 0, 0]
    assert constrain(labels, graph, t, ConstraintConfig(share=0.5))[t.firsts].tolist() == [0, 1, 2]


def test_the_mean_decides_not_the_best_pair_of_boxes():
    """One box of the second is just like one of the first, but the third is like all of it."""
    t = walk((0, range(4)), (1, range(4)), (1, range(4)))
    distances = alike(t, [[1, 0.1, 0.4], [0.1, 1, 0.2], [0.4, 0.2, 1]])
    distances[0, 4] = distances[4, 0] = 0
    assert constrain(np.zeros(12, np.int64), graph_of(distances), t)[t.firsts].tolist() == [0, 1, 0]


def test_a_distance_of_one_is_no_link_though_it_is_stored():
    t = walk((0, range(4)), (1, range(4)))
    labels = constrain(np.zeros(8, np.int64), sp.csr_array(alike(t, np.eye(2))), t)
    assert labels[t.firsts].tolist() == [0, 1]


def test_a_cluster_of_what_was_seen_once_in_no_frame_together():
    """Only some boxes were kept, never two of a frame, but the tracker had both at once."""
    t = walk((0, [0, 2, 4, 6]), (0, [1, 3, 5, 7]))
    labels, graph = np.zeros(8, np.int64), graph_of(alike(t, np.full((2, 2), 0.9)))
    assert constrain(labels, graph, t)[t.firsts].tolist() == [0, 1]
    assert constrain(labels, graph, t, ConstraintConfig(overlapping=False))[t.firsts].tolist() == [0, 0]


def test_tracklets_that_clustering_left_out():
    t = walk((0, range(4)), (0, range(4, 7)), (0, range(7, 12)), (1, range(4)))
    labels = np.r_[[-1] * 12, [0] * 4]
    graph = graph_of(alike(t, np.eye(4)))
    assert constrain(labels, graph, t)[t.firsts].tolist() == [0, -1, 1, 2]
    assert constrain(labels, graph, t, ConstraintConfig(min_boxes=5))[t.firsts].tolist() == [-1, -1, 0, -1]
    assert constrain(labels, graph, t, ConstraintConfig(lone_tracklets=False))[t.firsts].tolist() == [-1, -1, -1, 0]


def test_constraints_come_from_all_boxes_though_few_were_clustered():
    """The only common frame of the two is not among the sampled ones."""
    t = walk((0, range(9)), (0, [4, 10, 11, 12]))
    rows = np.array([0, 8, 10, 12])
    distances = alike(t, np.full((2, 2), 0.9))[np.ix_(rows, rows)]
    labels = constrain(np.zeros(4, np.int64), graph_of(distances), t, ConstraintConfig(overlapping=False), rows)
    assert labels.tolist() == [0] * 9 + [1] * 4


def test_nothing_and_one_box():
    empty = Tracklets([], [], [])
    assert constrain(np.zeros(0, np.int64), sp.csr_array((0, 0)), empty).tolist() == []
    one = Tracklets([5], [0.0], [0])
    graph = graph_of(np.zeros((1, 1)))
    assert constrain(np.array([-1]), graph, one).tolist() == [-1]
    assert constrain(np.array([3]), graph, one, ConstraintConfig(min_boxes=1)).tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "size", "rows", "message"),
    [
        (np.zeros(3, int), 4, None, r"labels: expected shape \(4,\), got \(3,\)"),
        (np.zeros(4, int), 3, None, r"graph: expected shape \(4, 4\), got \(3, 3\)"),
        (np.zeros(2, int), 2, [0, 4], "rows: expected each of 0 to 3 at most once"),
        (np.zeros(2, int), 2, [1, 1], "rows: expected each of 0 to 3 at most once"),
    ],
)
def test_what_does_not_fit_together(labels, size, rows, message):
    with pytest.raises(ValueError, match=message):
        constrain(labels, sp.csr_array((size, size)), walk((0, range(4))), rows=rows)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"share": 0.0}, r"share: expected a number in \(0, 1\], got 0.0"),
        ({"share": 1.5}, r"share: expected a number in \(0, 1\], got 1.5"),
        ({"min_boxes": 0}, "min_boxes: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        ConstraintConfig(**setting)
