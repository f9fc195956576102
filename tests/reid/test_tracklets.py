"""Tracklets, who was seen together, and which boxes and tracklets are picked from them, against loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.tracklets import Tracklets, check_labels, hold_out, sample


@st.composite
def tracklets(draw, most=8):
    """Up to eight tracklets of up to three cameras, with gaps, in any order of rows and with any numbers."""
    numbers = draw(st.lists(st.integers(-50, 50), max_size=most, unique=True))
    rows = []
    for number in numbers:
        camera = draw(st.integers(0, 2))
        rows += [(number, time, camera) for time in draw(st.sets(st.integers(0, 12), min_size=1, max_size=6))]
    rows = draw(st.permutations(rows))
    return Tracklets(*np.array(rows, np.int64).reshape(-1, 3).T)


def two_people(frames=10):
    """Two people side by side in camera 0, frame by frame; the first alone in camera 1 later."""
    tracks = [0, 1] * frames + [2] * frames
    times = np.r_[np.repeat(np.arange(frames), 2), 100 + np.arange(frames)]
    return Tracklets(np.array(tracks), times, np.array([0] * 2 * frames + [1] * frames))


@settings(deadline=None, max_examples=60)
@given(tracklets())
def test_what_is_told_of_each_tracklet(t):
    order = list(dict.fromkeys(t.tracks.tolist()))
    assert t.index.tolist() == [order.index(number) for number in t.tracks.tolist()]
    assert t.firsts.tolist() == [t.tracks.tolist().index(number) for number in order]
    for i, number in enumerate(order):
        own = t.tracks == number
        begin, end = t.times[own].min(), t.times[own].max()
        assert t.sizes[i] == own.sum()
        assert t.spans[i].tolist() == [begin, end]
        assert set(t.camids[own]) == {t.cameras[i]}
        expected = (t.times[own] - begin) / (end - begin) if end > begin else np.zeros(own.sum())
        np.testing.assert_allclose(t.progress[own], expected)


@settings(deadline=None, max_examples=60)
@given(tracklets())
def test_who_was_seen_together(t):
    together = {
        frozenset((a, b))
        for a, b in itertools.combinations(range(len(t)), 2)
        if t.camids[a] == t.camids[b] and t.times[a] == t.times[b]
    }
    pairs = t.boxes_together()
    assert {frozenset(pair) for pair in pairs.tolist()} == together
    assert len(pairs) == len(together)

    in_frame = {tuple(sorted(t.index[list(pair)])) for pair in together}
    assert t.cannot_link(overlapping=False).tolist() == [list(pair) for pair in sorted(in_frame)]
    overlapping = [
        [a, b]
        for a, b in itertools.combinations(range(len(t.sizes)), 2)
        if t.cameras[a] == t.cameras[b] and t.spans[a, 0] <= t.spans[b, 1] and t.spans[b, 0] <= t.spans[a, 1]
    ]
    assert t.cannot_link().tolist() == overlapping


def test_a_person_seen_within_the_gap_of_another():
    t = Tracklets([0, 1, 0], [0.0, 0.5, 1.0], [0, 0, 0])
    assert t.cannot_link().tolist() == [[0, 1]]
    assert t.cannot_link(overlapping=False).tolist() == []


def test_frames_are_told_apart_by_camera():
    t = Tracklets([0, 1, 2], [1.0, 1.0, 1.0], [0, 1, 0])
    assert t.cannot_link().tolist() == [[0, 2]]
    assert t.frames[0] == t.frames[2] != t.frames[1]


def test_no_tracklets():
    t = Tracklets([], [], [])
    assert len(t) == len(t.sizes) == len(t.spans) == 0
    assert t.cannot_link().shape == t.cannot_link(False).shape == (0, 2)
    assert len(sample(t, 3)) == len(hold_out(t)) == 0


def test_rows_of_a_mask_and_of_numbers():
    t = two_people()
    assert t[t.camids == 1].tracks.tolist() == [2] * 10
    assert t[np.array([3, 0])].tracks.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("tracks", "times", "camids", "message"),
    [
        ([0, 1], [0.0], [0, 0], r"times: expected shape \(2,\), got \(1,\)"),
        ([[0, 1]], [0.0], [0], r"tracks: expected shape \(1,\), got \(1, 2\)"),
        (3, 0.0, 0, r"tracks: expected shape \(0,\), got \(\)"),
        ([0.5], [0.0], [0], "tracks: expected whole numbers, got float64"),
        ([0], [0.0], [1.5], "camids: expected whole numbers, got float64"),
        ([0, 0], [0.0, np.nan], [0, 0], "times: expected finite numbers, got nan in row 1"),
        ([7, 7], [0.0, 1.0], [0, 1], "tracks: expected one camera a tracklet, got two in 7"),
        ([7, 3, 7], [0.5, 0.5, 0.5], [0, 0, 0], "tracks: expected one box a frame, got two in 7 at 0.5"),
    ],
)
def test_what_is_no_tracklet(tracks, times, camids, message):
    with pytest.raises(ValueError, match=message):
        Tracklets(tracks, times, camids)


@settings(deadline=None, max_examples=60)
@given(tracklets(), st.integers(1, 9))
def test_sample_takes_what_is_nearest_to_even_instants(t, per_track):
    rows = sample(t, per_track)
    assert rows.tolist() == sorted(set(rows.tolist()))
    for i, (begin, end) in enumerate(t.spans):
        times, sampled = t.times[t.index == i], t.times[rows[t.index[rows] == i]]
        instants = np.linspace(begin, end, per_track) if per_track > 1 else np.array([(begin + end) / 2])
        least = np.abs(times - instants[:, None]).min(axis=1)
        near = np.isclose(np.abs(sampled - instants[:, None]), least[:, None], atol=1e-9)
        assert len(sampled) <= per_track
        assert near.any(axis=1).all()  # each instant has a box as near as can be
        assert near.any(axis=0).all()  # and no box is there for nothing


def test_sample_is_spread_over_time_not_over_boxes():
    """A burst of boxes, then one a second: the burst is one moment."""
    times = np.r_[np.linspace(0, 0.1, 50), np.arange(1, 11)]
    t = Tracklets(np.zeros(60, int), times, np.zeros(60, int))
    assert t.times[sample(t, 6)].tolist() == [0, 2, 4, 6, 8, 10]
    assert t.times[sample(t, 1)].tolist() == [5]


def test_sample_of_nothing():
    with pytest.raises(ValueError, match="per_track: expected at least 1, got 0"):
        sample(two_people(), 0)


def crowd(people, cameras, seed=0):
    """Everybody walks through every camera for six frames, some of them at the same time."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 200, people * cameras)
    tracks = np.repeat(np.arange(people * cameras), 6)
    return Tracklets(tracks, starts[tracks] + np.tile(np.arange(6), people * cameras), tracks % cameras)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_hold_out_takes_whole_tracklets_of_each_camera_and_people_seen_together(share, seed):
    t = crowd(40, 3, seed)
    held = hold_out(t, share, seed)
    of_tracklet = held[t.firsts]
    np.testing.assert_array_equal(held, of_tracklet[t.index])
    for camera in range(3):
        assert of_tracklet[t.cameras == camera].sum() == max(2, round(share * 40))
        kept = t[held & (t.camids == camera)]
        assert len(kept.cannot_link(overlapping=False)) > 0
    np.testing.assert_array_equal(held, hold_out(t, share, seed))


def test_hold_out_draws_by_its_seed():
    t = crowd(40, 1)
    draws = [hold_out(t, 0.3, seed) for seed in range(4)]
    assert any((draws[0] != other).any() for other in draws[1:])


def test_hold_out_leaves_something_to_learn_from():
    lonely = Tracklets([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 1, 2])
    held = hold_out(lonely, 0.2)
    assert not held[0] and not held[3]
    assert held[1] + held[2] == 1


def test_hold_out_does_not_hang_on_numbers():
    t = crowd(20, 2)
    renumbered = Tracklets(1000 - 7 * t.tracks, t.times, t.camids)
    np.testing.assert_array_equal(hold_out(t, 0.3, 5), hold_out(renumbered, 0.3, 5))
    np.testing.assert_array_equal(sample(t, 3), sample(renumbered, 3))


@pytest.mark.parametrize("share", [0.0, 1.0, np.nan])
def test_hold_out_of_all_or_nothing(share):
    with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\)"):
        hold_out(two_people(), share)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, int), r"labels: expected shape \(2,\), got \(3,\)"),
        (np.array([0, -2]), r"labels: expected whole numbers from -1 on, got -2 \(int64\)"),
        (np.array([0.0, 1.0]), r"labels: expected whole numbers from -1 on, got 0.0 \(float64\)"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 2)
