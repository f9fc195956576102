"""Gaps are filled on straight lines; smoothing is what filterpy gives step by step, and takes noise out."""

from itertools import pairwise

import filterpy.kalman
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.boxes import cxcywh_to_xyxy, xyah_to_xyxy, xyxy_to_cxcywh, xyxy_to_xyah
from tracker.smoothing import fill_gaps, smooth
from tracker.trajectories import Trajectories


def trajectories(frames, track_ids, xyxy, scores=None, classes=None, predicted=None):
    count = len(frames)
    return Trajectories(
        np.asarray(frames),
        np.asarray(track_ids),
        np.asarray(xyxy, np.float64),
        np.full(count, 0.9) if scores is None else np.asarray(scores),
        np.zeros(count, np.int64) if classes is None else np.asarray(classes),
        np.zeros(count, bool) if predicted is None else np.asarray(predicted),
    )


def walker(frames, seed=0, noise=0.0, track_id=1):
    """One person of 40x100 pixels who walks on a straight line; noise in pixels on all four numbers of cxcywh."""
    rng = np.random.default_rng(seed)
    frames = np.asarray(frames)
    cxcywh = np.stack([200 + 3.0 * frames, 300 - 0.5 * frames, 0 * frames + 40, 0 * frames + 100], axis=1)
    cxcywh = cxcywh + noise * rng.normal(size=cxcywh.shape)
    return trajectories(frames, np.full(len(frames), track_id), cxcywh_to_xyxy(cxcywh))


def together(*parts):
    names = ("frames", "track_ids", "xyxy", "scores", "classes", "predicted")
    return Trajectories(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@st.composite
def scenes(draw):
    """Up to five identities with holes, at random places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    parts = []
    for track_id in draw(st.lists(st.integers(1, 99), max_size=5, unique=True)):
        frames = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=12)))
        corner = rng.uniform(0, 500, (len(frames), 2))
        parts.append(
            trajectories(
                frames, [track_id] * len(frames), np.hstack([corner, corner + rng.uniform(1, 200, (len(frames), 2))])
            )
        )
    return together(*parts) if parts else trajectories([], [], np.zeros((0, 4)))


def fill_gaps_by_loops(given, max_gap):
    """(frame, id) -> box, row after row."""
    boxes = {(f, i): box for f, i, box in zip(given.frames, given.track_ids, given.xyxy, strict=True)}
    for track_id in np.unique(given.track_ids):
        frames = sorted(f for f, i in boxes if i == track_id)
        for low, high in pairwise(frames):
            if high - low - 1 > max_gap:
                continue
            for frame in range(low + 1, high):
                share = (frame - low) / (high - low)
                boxes[frame, track_id] = (1 - share) * boxes[low, track_id] + share * boxes[high, track_id]
    return boxes


@settings(deadline=None)
@given(scenes(), st.integers(0, 12))
def test_gaps_are_filled_as_by_loops(scene, max_gap):
    made = fill_gaps(scene, frame_rate=10, max_seconds=max_gap / 10)
    expected = fill_gaps_by_loops(scene, max_gap)
    assert len(made) == len(expected)
    for frame, track_id, box in zip(made.frames, made.track_ids, made.xyxy, strict=True):
        np.testing.assert_allclose(box, expected[frame, track_id], atol=1e-9)
    seen = ~made.predicted
    np.testing.assert_array_equal(made.frames[seen], scene.frames)
    np.testing.assert_array_equal(made.xyxy[seen], scene.xyxy)
    again = fill_gaps(made, frame_rate=10, max_seconds=max_gap / 10)
    np.testing.assert_array_equal(again.xyxy, made.xyxy)


def test_filled_boxes_are_marked():
    scene = trajectories([1, 4], [6, 6], [[0, 0, 10, 20], [30, 3, 46, 29]], scores=[0.9, 0.7], classes=[2, 3])
    made = fill_gaps(scene, frame_rate=30, max_seconds=1)
    assert made.frames.tolist() == [1, 2, 3, 4]
    assert made.predicted.tolist() == [False, True, True, False]
    assert made.scores.tolist() == pytest.approx([0.9, 0, 0, 0.7])
    assert made.classes.tolist() == [2, 2, 2, 3]
    np.testing.assert_allclose(made.xyxy[1], [10, 1, 22, 23])


def test_a_gap_exactly_as_long_as_allowed_is_filled():
    scene = walker([1, 9])  # seven frames between
    assert len(fill_gaps(scene, frame_rate=10, max_seconds=0.7)) == 9
    assert len(fill_gaps(scene, frame_rate=10, max_seconds=0.69)) == 2


def test_what_both_sides_tell_replaces_what_the_tracker_guessed():
    places = [0, 99, 99, 30, 99, 99, 99, 70, 99]
    guessed = np.array(places) == 99
    boxes = [[x, 0, x + 10, 20] for x in places]
    scene = trajectories([1, 2, 3, 4, 5, 6, 7, 8, 9], [1] * 9, boxes, predicted=guessed)
    made = fill_gaps(scene, frame_rate=10, max_seconds=0.2)
    np.testing.assert_allclose(
        made.xyxy[:, 0], [0, 10, 20, 30, 99, 99, 99, 70, 99]
    )  # the longer gap, the end: as given
    assert made.scores.tolist() == pytest.approx([0.9, 0, 0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    np.testing.assert_array_equal(made.predicted, guessed)
    smoothed = smooth(scene)
    assert np.abs(smoothed.xyxy[1:8, 0] - 10 * np.arange(1, 8)).max() < 5
    assert smoothed.xyxy[8, 0] == 99


def noise(height):
    position, velocity = height / 20, height / 160
    process = np.diag([position, position, 1e-2, position, velocity, velocity, 1e-5, velocity]) ** 2
    return process, np.diag([position, position, 1e-1, position]) ** 2


def smooth_by_steps(frames, xyxy):
    """One identity, every frame of it visited, with filterpy's predict, update and the smoother's equations."""
    xyah = xyxy_to_xyah(xyxy)
    measured = dict(zip(frames, xyah, strict=True))
    height = xyah[0, 3]
    position, velocity = height / 20, height / 160
    estimator = filterpy.kalman.KalmanFilter(dim_x=8, dim_z=4)
    estimator.F, estimator.H = np.eye(8) + np.eye(8, k=4), np.eye(4, 8)
    estimator.x = np.concatenate([xyah[0], np.zeros(4)])
    initial = [2 * position, 2 * position, 1e-2, 2 * position, 10 * velocity, 10 * velocity, 1e-5, 10 * velocity]
    estimator.P = np.diag(initial) ** 2
    states, covariances, processes = [estimator.x], [estimator.P], []
    for frame in range(frames[0] + 1, frames[-1] + 1):
        process, _ = noise(measured[frame - 1][3] if frame - 1 in measured else height)
        processes.append(process)
        estimator.predict(Q=process)
        if frame in measured:
            estimator.update(measured[frame], R=noise(measured[frame][3])[1])
            height = measured[frame][3]
        states.append(estimator.x)
        covariances.append(estimator.P)
    for k in range(len(states) - 2, -1, -1):
        ahead = estimator.F @ covariances[k] @ estimator.F.T + processes[k]
        gain = covariances[k] @ estimator.F.T @ np.linalg.inv(ahead)
        states[k] = states[k] + gain @ (states[k + 1] - estimator.F @ states[k])
        covariances[k] = covariances[k] + gain @ (covariances[k + 1] - ahead) @ gain.T
    return np.array(states)


@pytest.mark.parametrize("frames", [range(1, 30), [1, 2, 3, 7, 8, 20, 21, 22], [5, 9]])
def test_parity_with_filterpy_step_by_step(frames):
    frames = list(frames)
    scene = walker(frames, noise=3.0)
    states = smooth_by_steps(frames, scene.xyxy)
    expected = xyah_to_xyxy(states[np.array(frames) - frames[0], :4])
    np.testing.assert_allclose(smooth(scene).xyxy, expected, rtol=1e-9, atol=1e-7)


def test_noise_is_taken_out():
    frames = np.arange(1, 120)
    truth = xyxy_to_cxcywh(walker(frames).xyxy)
    noisy = walker(frames, noise=3.0)
    before = np.abs(xyxy_to_cxcywh(noisy.xyxy) - truth).mean(axis=0)
    after = np.abs(xyxy_to_cxcywh(smooth(noisy).xyxy) - truth).mean(axis=0)
    assert (after < 0.6 * before).all()


def test_looking_both_ways_is_better_than_the_filter_alone():
    from tracker import kalman

    frames = np.arange(1, 120)
    truth = walker(frames).xyxy
    noisy = walker(frames, seed=1, noise=3.0)
    xyah = xyxy_to_xyah(noisy.xyxy)
    mean, covariance = kalman.initiate(xyah[:1])
    filtered = [mean[0, :4]]
    for box in xyah[1:]:
        mean, covariance = kalman.update(*kalman.predict(mean, covariance), box[None])
        filtered.append(mean[0, :4])
    errors = [np.abs(boxes - truth).mean() for boxes in (smooth(noisy).xyxy, xyah_to_xyxy(np.array(filtered)))]
    assert errors[0] < 0.8 * errors[1]


def test_boxes_that_stand_still_stay():
    frames = [1, 2, 3, 6, 7]
    scene = trajectories(frames, [1] * 5, np.tile([10.0, 20, 50, 120], (5, 1)))
    np.testing.assert_allclose(smooth(scene).xyxy, scene.xyxy, atol=1e-9)


def test_an_identity_seen_once_keeps_its_box():
    scene = together(walker([3]), walker([4], track_id=2), walker([1, 2, 3], noise=2, track_id=3))
    made = smooth(scene)
    np.testing.assert_array_equal(made.xyxy[:2], scene.xyxy[:2])
    assert (made.xyxy[2:] != scene.xyxy[2:]).any()


def test_filled_boxes_are_estimated_not_measured():
    whole = walker(range(1, 41), noise=2.0)
    size = xyxy_to_cxcywh(whole.xyxy)
    size[:, 2:] = [40, 100]  # with a noise that does not change within the gap
    seen = (whole.frames < 15) | (whole.frames > 25)
    scene = trajectories(whole.frames[seen], whole.track_ids[seen], cxcywh_to_xyxy(size[seen]))
    open_gap = smooth(scene)
    filled = smooth(fill_gaps(scene, frame_rate=30, max_seconds=1))
    np.testing.assert_allclose(filled.xyxy[~filled.predicted], open_gap.xyxy, atol=1e-8)
    truth = walker(range(15, 26)).xyxy
    assert np.abs(filled.xyxy[filled.predicted] - truth).max() < 3


def test_identities_do_not_touch_each_other():
    one, two = walker(range(1, 30), noise=2), walker(range(10, 50, 2), seed=5, noise=2, track_id=8)
    both = smooth(together(two, one))
    np.testing.assert_array_equal(both.xyxy[both.track_ids == 1], smooth(one).xyxy)
    np.testing.assert_array_equal(both.xyxy[both.track_ids == 8], smooth(two).xyxy)


def test_boxes_without_area_are_passed_over():
    scene = walker(range(1, 11), noise=1)
    xyxy = scene.xyxy.copy()
    xyxy[[0, 9], 2] = xyxy[[0, 9], 0]  # first and last: nothing to estimate them from on one side
    xyxy[4] = 7.0
    made = smooth(trajectories(scene.frames, scene.track_ids, xyxy))
    np.testing.assert_array_equal(made.xyxy[[0, 9]], xyxy[[0, 9]])
    assert np.abs(made.xyxy[4] - walker([5]).xyxy).max() < 5
    degenerate = trajectories([1, 2], [1, 1], np.zeros((2, 4)))
    np.testing.assert_array_equal(smooth(degenerate).xyxy, degenerate.xyxy)


@settings(deadline=None, max_examples=50)
@given(scenes())
def test_any_scene_stays_finite_and_upright(scene):
    seen = []
    made = smooth(scene, progress=lambda done, total: seen.append((done, total)))
    assert np.isfinite(made.xyxy).all()
    assert (made.xyxy[:, 2:] > made.xyxy[:, :2]).all()
    for name in ("frames", "track_ids", "scores", "classes", "predicted"):
        np.testing.assert_array_equal(getattr(made, name), getattr(scene, name))
    if len(scene):
        count = len(np.unique(scene.track_ids))
        assert seen == [(done, count) for done in range(1, count + 1)]
