"""Tracks of several cameras get common ids as loops over all clusters would give them."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.global_ids import join_cameras, link_tracklets
from tracker.trajectories import Trajectories


def link_by_loops(distance, forbidden, thresh):
    """The definition: merge the nearest two clusters until none are near enough. A set of frozensets."""
    clusters = [(row,) for row in range(len(distance))]
    while True:
        best, merged = np.inf, None
        for a, b in itertools.combinations(clusters, 2):
            pairs = list(itertools.product(a, b))
            if any(forbidden[i][j] for i, j in pairs):
                continue
            mean = sum(distance[i][j] for i, j in pairs) / len(pairs)
            if mean <= thresh and mean < best:
                best, merged = mean, (a, b)
        if merged is None:
            return {frozenset(cluster) for cluster in clusters}
        clusters = [c for c in clusters if c not in merged] + [merged[0] + merged[1]]


def groups(labels):
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def problem(seed, count, density):
    rng = np.random.default_rng(seed)
    distance, forbidden = rng.random((count, count)), rng.random((count, count)) < density
    return np.triu(distance) + np.triu(distance, 1).T, np.triu(forbidden) | np.triu(forbidden).T


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 14), st.sampled_from([0.0, 0.1, 0.4, 1.0]), st.floats(0, 1))
def test_linked_as_by_loops(seed, count, density, thresh):
    distance, forbidden = problem(seed, count, density)
    labels = link_tracklets(distance, forbidden, thresh)
    assert groups(labels) == link_by_loops(distance, forbidden, thresh)
    for a, b in zip(*forbidden.nonzero(), strict=True):
        assert a == b or labels[a] != labels[b]
    first_seen = list(dict.fromkeys(labels.tolist()))
    assert first_seen == list(range(len(first_seen)))

    order = np.random.default_rng(seed).permutation(count)
    again = link_tracklets(distance[np.ix_(order, order)], forbidden[np.ix_(order, order)], thresh)
    assert {frozenset(order[sorted(group)].tolist()) for group in groups(again)} == groups(labels)


def test_cost_of_a_merge_is_the_mean_over_all_pairs():
    """Points on a line at 0, 1 and 2.5: {0, 1} is 2 away from the third, on average, and 1.5 at its nearest."""
    place = np.array([0.0, 1.0, 2.5])
    distance, free = np.abs(place[:, None] - place), np.zeros((3, 3), bool)
    assert link_tracklets(distance, free, 0.99).tolist() == [0, 1, 2]
    assert link_tracklets(distance, free, 1.0).tolist() == [0, 0, 1]
    assert link_tracklets(distance, free, 1.99).tolist() == [0, 0, 1]
    assert link_tracklets(distance, free, 2.0).tolist() == [0, 0, 0]


def test_what_a_member_is_forbidden_its_cluster_is_forbidden():
    place = np.array([0.0, 0.1, 0.3])
    forbidden = np.zeros((3, 3), bool)
    forbidden[0, 2] = forbidden[2, 0] = True
    assert link_tracklets(np.abs(place[:, None] - place), forbidden, 9.0).tolist() == [0, 0, 1]


def test_equal_distances_are_no_trouble():
    same = np.zeros((40, 40))
    assert link_tracklets(same, same > 0, 0.0).tolist() == [0] * 40
    pairs = np.kron(np.eye(20), np.ones((2, 2))) > 0  # two who are seen together, twenty times
    labels = link_tracklets(same, pairs, 0.0)
    assert all(not pairs[np.ix_(list(g), list(g))][~np.eye(len(g), dtype=bool)].any() for g in groups(labels))
    assert len(groups(labels)) == 2


def test_thousands_of_tracklets():
    rng = np.random.default_rng(0)
    person = rng.integers(0, 300, 2000)
    vectors = np.eye(300)[person] + rng.normal(0, 0.01, (2000, 300))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    labels = link_tracklets(1 - vectors @ vectors.T, np.zeros((2000, 2000), bool), 0.5)
    assert time.perf_counter() - started < 10  # a third of a second alone on a core; cubic time would be minutes
    assert groups(labels) == groups(person)


def test_impossible_problems_are_refused():
    zeros, free = np.zeros((2, 2)), np.zeros((2, 2), bool)
    uneven = np.array([[0, 1.0], [0, 0]])
    for distance, forbidden, thresh, message in [
        (np.zeros((2, 3)), free, 1, r"distance: expected shape \(2, 2\), got \(2, 3\)"),
        (zeros, np.zeros((3, 3), bool), 1, r"forbidden: expected shape \(2, 2\), got \(3, 3\)"),
        (np.full((2, 2), np.nan), free, 1, "distance: expected finite numbers"),
        (uneven, free, 1, "distance: expected a symmetric matrix"),
        (zeros, uneven > 0, 1, "forbidden: expected a symmetric matrix"),
        (zeros, free, np.nan, "thresh: expected a finite number, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            link_tracklets(distance, forbidden, thresh)


def look(person, dimension=8):
    """What a person looks like: at right angles to all others."""
    return np.eye(dimension, dtype=np.float32)[person]


def camera(*tracks, looks=None, predicted=()):
    """Each track is (track_id, frames) and, where it has one, a class; `predicted` names (track_id, frame)."""
    rows = [(track_id, frame, *rest) for track_id, frames, *rest in tracks for frame in frames]
    count = len(rows)
    track_ids = np.array([row[0] for row in rows], np.int64)
    frames = np.array([row[1] for row in rows], np.int64)
    left, top = 100.0 * track_ids, 1.0 * frames
    return Trajectories(
        frames,
        track_ids,
        np.stack([left, top, left + 20, top + 50], axis=1),
        np.full(count, 0.9, np.float32),
        np.array([row[2] if len(row) > 2 else 0 for row in rows], np.int64),
        np.array([row[:2] in predicted for row in rows], bool),
        {} if looks is None else {track_id: np.asarray(vector, np.float32) for track_id, vector in looks.items()},
    )


def join(*cameras, rates=None, thresh=0.35):
    return join_cameras(cameras, rates or [10.0] * len(cameras), thresh)


def new_ids(given, made):
    """Old id -> new one, by the boxes."""
    new = {tuple(box): i for box, i in zip(made.xyxy.tolist(), made.track_ids.tolist(), strict=True)}
    return {old: new[tuple(box)] for box, old in zip(given.xyxy.tolist(), given.track_ids.tolist(), strict=True)}


def test_people_keep_their_id_from_camera_to_camera():
    a = camera((4, range(3, 9)), (7, range(1, 5)), looks={4: look(0), 7: look(1)})
    b = camera((1, range(2, 6)), (2, range(6, 9)), (3, range(1, 9)), looks={1: look(2), 2: look(1), 3: look(0)})
    made = join(a, b)
    # 7 comes first, in frame 1 of the first camera; then 3, in frame 1 of the second.
    assert new_ids(a, made[0]) == {7: 1, 4: 2}
    assert new_ids(b, made[1]) == {2: 1, 3: 2, 1: 3}
    for given_table, table in zip((a, b), made, strict=True):
        assert sorted(table.xyxy.tolist()) == sorted(given_table.xyxy.tolist())
    np.testing.assert_allclose(made[1].embeddings[1], look(1))


def test_order_of_ids_is_that_of_time_not_of_frames():
    a, b = camera((1, [5]), looks={1: look(0)}), camera((1, [9]), looks={1: look(1)})
    assert [made.track_ids.tolist() for made in join(a, b, rates=[10.0, 10.0])] == [[1], [2]]
    assert [made.track_ids.tolist() for made in join(a, b, rates=[10.0, 30.0])] == [[2], [1]]
    assert [made.track_ids.tolist() for made in join(a, b, rates=[10.0, 20.0])] == [[1], [2]]  # at once: by camera


def test_two_who_are_seen_at_once_are_two_people():
    """Twins: only what is never seen together in one camera may be joined, in this camera or through another."""
    twins = camera((1, range(1, 9)), (2, range(8, 12)), looks={1: look(0), 2: look(0)})
    assert new_ids(twins, join(twins)[0]) == {1: 1, 2: 2}
    apart = camera((1, range(1, 8)), (2, range(8, 12)), looks={1: look(0), 2: look(0)})
    assert new_ids(apart, join(apart)[0]) == {1: 1, 2: 1}
    elsewhere = camera((5, range(1, 9)), looks={5: look(0)})
    made = join(twins, elsewhere)
    assert new_ids(twins, made[0]) == {1: 1, 2: 2}
    assert made[1].track_ids[0] in (1, 2)


def test_predicted_boxes_are_no_sightings():
    looks = {1: look(0), 2: look(0)}
    guessed = camera((1, range(1, 9)), (2, range(7, 12)), looks=looks, predicted={(1, 7), (1, 8)})
    made = join(guessed)[0]
    assert made.track_ids.tolist() == [1] * 11
    assert made.frames.tolist() == list(range(1, 12))
    assert made.xyxy[6:, 0].tolist() == [200.0] * 5  # where both have a box, the one that was seen
    assert not made.predicted.any()
    both = camera((1, range(1, 9)), (2, range(7, 12)), looks=looks, predicted={(1, 7), (2, 7), (2, 8)})
    made = join(both)[0]
    assert made.frames.tolist() == list(range(1, 12))
    assert made.xyxy[6:8, 0].tolist() == [100.0, 100.0]
    assert made.predicted.nonzero()[0].tolist() == [6]


def test_classes_are_kept_apart():
    mixed = camera((1, [1, 2], 0), (2, [5, 6], 3), (3, [8, 9], 3), looks=dict.fromkeys((1, 2, 3), look(0)))
    assert new_ids(mixed, join(mixed)[0]) == {1: 1, 2: 2, 3: 2}


def test_who_is_not_described_stays_alone():
    some = camera((1, [1]), (2, [2]), (3, [3]), looks={3: look(0)})
    nobody = camera((1, [1]), (9, [4]))
    made = join(some, nobody, some)
    assert [table.track_ids.tolist() for table in made] == [[1, 4, 6], [2, 7], [3, 5, 6]]
    assert [sorted(table.embeddings) for table in made] == [[6], [], [6]]
    assert [table.track_ids.tolist() for table in join(nobody, nobody, thresh=2.0)] == [[1, 3], [2, 4]]
    assert join(some, thresh=2.0)[0].track_ids.tolist() == [1, 2, 3]


def test_nothing_in_nothing_out():
    none = camera()
    assert join_cameras([], [], 0.35) == []
    assert [len(table) for table in join(none, none)] == [0, 0]
    made = join(none, camera((6, [2, 3]), looks={6: look(0)}))
    assert [table.track_ids.tolist() for table in made] == [[], [1, 1]]


def test_impossible_cameras_are_refused():
    a, b = camera((1, [1]), looks={1: look(0)}), camera((1, [1]), looks={1: look(0, dimension=4)})
    with pytest.raises(ValueError, match=r"embeddings: expected one length in all cameras, got \[4, 8\]"):
        join(a, b)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        join(a, a, rates=[10.0])


def test_light_of_a_camera_is_not_what_people_look_like():
    """One camera tints everybody alike, so strongly that few look the same in both."""
    rng = np.random.default_rng(0)
    people = rng.normal(size=(30, 32))
    tint = 8 * rng.normal(size=32) / np.sqrt(32)

    def seen(looks):
        vectors = looks / np.linalg.norm(looks, axis=1, keepdims=True)
        return camera(*((i + 1, [1]) for i in range(30)), looks=dict(enumerate(vectors, start=1)))

    plain, tinted = seen(people), seen(people + tint)
    across = 1 - np.array([*plain.embeddings.values()]) @ np.array([*tinted.embeddings.values()]).T
    assert np.diag(across).mean() > 0.35
    made = join(plain, tinted)
    assert np.mean(made[0].track_ids == made[1].track_ids) > 0.9
    assert np.array_equal(made[0].track_ids, np.arange(1, 31))


def test_a_camera_with_one_person_keeps_what_the_person_looks_like():
    a = camera((1, [1]), looks={1: look(0)})
    b = camera((1, [1]), (2, [1]), looks={1: look(1), 2: look(0)})
    made = join(a, b)
    assert (new_ids(a, made[0]), new_ids(b, made[1])) == ({1: 1}, {1: 2, 2: 1})


def test_embedding_of_joined_tracks_is_weighted_by_boxes():
    one, other = look(0), np.array([0.8, 0.6, 0, 0, 0, 0, 0, 0], np.float32)
    made = join(camera((1, [1, 2, 3]), (2, [7]), looks={1: one, 2: other}))[0]
    expected = 3 * one + other
    np.testing.assert_allclose(made.embeddings[1], expected / np.linalg.norm(expected), atol=1e-6)


@st.composite
def networks(draw):
    """Cameras of short tracks, ids at random, some without an embedding, some boxes predicted."""
    cameras = []
    for _ in range(draw(st.integers(1, 3))):
        ids = draw(st.lists(st.integers(1, 50), max_size=6, unique=True))
        tracks, looks, predicted = [], {}, set()
        for track_id in ids:
            begin = draw(st.integers(1, 12))
            frames = range(begin, begin + draw(st.integers(1, 8)))
            tracks.append((track_id, frames, draw(st.integers(0, 1))))
            if draw(st.integers(0, 4)):
                vector = look(draw(st.integers(0, 2))) + 0.3 * look(draw(st.integers(3, 7)))
                looks[track_id] = vector / np.linalg.norm(vector)
            predicted |= {(track_id, frame) for frame in frames[1:] if draw(st.integers(0, 3)) == 0}
        cameras.append(camera(*tracks, looks=looks, predicted=predicted))
    return cameras


@settings(deadline=None, max_examples=100)
@given(networks(), st.floats(0, 2), st.randoms(use_true_random=False))
def test_properties(cameras, thresh, random):
    rates = [random.choice([10.0, 25.0]) for _ in cameras]
    made = join_cameras(cameras, rates, thresh)  # whose constructor refuses two boxes of an identity in one frame

    def sightings(table):
        return sorted(table[~table.predicted].xyxy.tolist())

    assert [sightings(table) for table in made] == [sightings(table) for table in cameras]
    first = {}
    for index, (table, rate) in enumerate(zip(made, rates, strict=True)):
        for frame, track_id in zip(table.frames.tolist(), table.track_ids.tolist(), strict=True):
            moment = (frame - 1) / rate, index
            first[track_id] = min(first.get(track_id, moment), moment)
    assert sorted(first) == list(range(1, len(first) + 1))
    assert [first[i] for i in sorted(first)] == sorted(first.values())

    renamed = []
    for table in cameras:  # ids as such mean nothing
        old = np.unique(table.track_ids).tolist()
        new = dict(zip(old, sorted(random.sample(range(1, 1000), len(old))), strict=True))
        looks = {new[i]: vector for i, vector in table.embeddings.items()}
        renamed.append(
            replace(table, track_ids=np.array([new[i] for i in table.track_ids.tolist()], np.int64), embeddings=looks)
        )
    for table, again in zip(made, join_cameras(renamed, rates, thresh), strict=True):
        np.testing.assert_array_equal(table.track_ids, again.track_ids)
