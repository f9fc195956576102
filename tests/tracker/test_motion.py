"""Where people are expected: while they are seen, while they are hidden, and while the camera moves."""

import numpy as np
import pytest

from tests.tracker.people import NOBODY, boxes, ids, plain, run, standing
from tracker import Tracker, kalman
from tracker import boxes as box_formats

# --- prediction


def test_unconfirmed_track_is_predicted():
    """The box grows uncertain by one prediction before its second match: its velocity follows the measured step."""
    tracker = Tracker(plain(confirm_first_frame=False, output="filtered"))
    tracker.update(standing(0))
    before = tracker._tracks.covariance[0].copy()
    tracker.update(standing(10))
    moved = tracker._tracks.mean[0]
    # After predict, the position's variance and its covariance with the velocity give the gain for the velocity.
    position, velocity, std, noise = before[0, 0], before[2, 0], 100 / 20, (100 / 20) ** 2
    gain = velocity / (position + velocity + std**2 + noise)
    assert moved[4] == pytest.approx(10 * gain, rel=1e-6)


def test_unconfirmed_track_is_predicted_over_several_frames():
    # 20 px a frame at width 40: without prediction the third box would overlap by a third only.
    frames = [standing(0)] + [standing(0, 300 + 20 * k) for k in range(6)]
    results = run(Tracker(plain(confirm_frames=6)), frames)
    assert ids(results[-1]) == [1, 2]


def test_a_lost_person_does_not_keep_growing():
    tracker = Tracker(plain())
    for k in range(10):
        tracker.update(standing(0, height=100.0 + 4 * k))
    heights = []
    for _ in range(10):
        tracker.update(NOBODY)
        heights.append(tracker._tracks.mean[0, 3])
    assert heights[0] > 136  # the first prediction still follows the growth seen
    assert heights[1:] == pytest.approx([heights[0]] * 9)


@pytest.mark.parametrize("state", ["xyah", "cxcywh"])
def test_the_filtered_box_is_the_kalman_filters(state):
    """Box by box what `tracker.kalman` gives, in the coordinates asked for."""
    rng = np.random.default_rng(0)
    walk = [np.array([[3.0 * k, 0, 40 + 3 * k + k % 5, 100 + k]]) + rng.normal(0, 1, 4) for k in range(20)]
    walk = [box.astype(np.float32) for box in walk]
    from_xyxy, to_xyxy = {
        "xyah": (box_formats.xyxy_to_xyah, box_formats.xyah_to_xyxy),
        "cxcywh": (box_formats.xyxy_to_cxcywh, box_formats.cxcywh_to_xyxy),
    }[state]
    tracker = Tracker(plain(box_state=state, output="filtered"))
    mean, covariance = kalman.initiate(from_xyxy(walk[0].astype(np.float64)), state)
    tracker.update(boxes(walk[0][0]))
    for box in walk[1:]:
        mean, covariance = kalman.predict(mean, covariance, 1.0, state)
        mean, covariance = kalman.update(mean, covariance, from_xyxy(box.astype(np.float64)), state)
        result = tracker.update(boxes(box[0]))
        assert ids(result) == [1]
        np.testing.assert_allclose(result.xyxy, to_xyxy(mean[:, :4]), rtol=1e-6)


@pytest.mark.parametrize("state", ["xyah", "cxcywh"])
def test_who_shrinks_at_the_edge_and_is_lost_does_not_shrink_on(state):
    tracker = Tracker(plain(box_state=state, coast_seconds=1.0))
    run(tracker, [boxes([0, 0, 200 - 4 * k, 400 - 4 * k]) for k in range(20)])
    lost = [result.xyxy[0, 2:] - result.xyxy[0, :2] for result in run(tracker, [NOBODY] * 15)]
    np.testing.assert_allclose(lost[1:], [lost[0]] * 14, rtol=1e-4)


# --- not seen for a moment


def test_who_is_hidden_for_a_moment_stays_in_the_result_at_the_expected_place():
    config = plain(coast_seconds=0.3)
    tracker = Tracker(config, frame_rate=10)
    run(tracker, [standing(4 * k, 900, looks=(0, 1), score=[0.8, 0.9], classes=[3, 5]) for k in range(40)])
    other = standing(900, looks=[1], classes=[5])
    for k in range(40, 43):
        result = tracker.update(other)
        assert ids(result) == [1, 2]
        assert result.predicted.tolist() == [True, False]
        np.testing.assert_allclose(result.xyxy[0], standing(4 * k).xyxy[0], atol=0.2)
        assert result.xyxy[1].tolist() == other.xyxy[0].tolist()
        assert result.scores.tolist() == pytest.approx([0.8, 0.9])  # of the last match
        assert result.classes.tolist() == [3, 5]
        np.testing.assert_allclose(result.embeddings, np.eye(8)[:2], atol=1e-6)
    assert ids(tracker.update(other)) == [2]
    found = tracker.update(standing(4 * 44, 900, looks=(0, 1), classes=[3, 5]))
    assert ids(found) == [1, 2] and not found.predicted.any()


def test_nobody_is_guessed_unless_asked_for():
    result = run(Tracker(plain()), [standing(0)] * 3 + [NOBODY])[-1]
    assert len(result) == 0
    result = run(Tracker(plain()), [standing(0)] * 3)[-1]
    assert not result.predicted.any()


def test_a_guess_is_no_evidence():
    """Neither a tentative track is shown, nor does a guess keep a person longer."""
    config = plain(coast_seconds=5.0, track_buffer=1.0, confirm_first_frame=False)
    tracker = Tracker(config, frame_rate=10)
    assert all(len(result) == 0 for result in run(tracker, [standing(0), NOBODY, NOBODY]))
    run(tracker, [standing(0)] * 3)
    hidden = [ids(result) for result in run(tracker, [NOBODY] * 14)]
    assert hidden == [[1]] * 10 + [[]] * 4
    assert ids(tracker.update(standing(0))) == []


# --- found again


def after_a_gap(gap, camera=None, **settings):
    """Filtered boxes of the frame in which a person is found after a gap, and of the two guesses that follow.

    She has walked faster meanwhile, and come nearer in her own shape.

    Returns:
        (3, 4) of a tracker that saw the straight way from the last box to the one found, and (3, 4) of one that did
        not see it.
    """
    config = plain(
        output="filtered", coast_seconds=1.0, iou_thresh=0.95, track_buffer=20.0, direction_weight=0, **settings
    )
    before = [np.array([3.0 * k, 0, 3 * k + 400, 900]) for k in range(10)]
    end = before[-1] + gap * np.array([3.2, -0.3, 4.0, 1.5])
    between = [before[-1] + (end - before[-1]) * k / gap for k in range(1, gap)]
    results = []
    for hidden in (False, True):
        tracker = Tracker(config)
        for k, box in enumerate([*before, *between, end, None, None]):
            unseen = box is None or (hidden and len(before) <= k < len(before) + gap - 1)
            motion = None if camera is None else np.column_stack([np.eye(2), camera])
            place = NOBODY if unseen else boxes(box if camera is None else box + k * np.tile(camera, 2))
            result = tracker.update(place, camera_motion=motion)
            if k >= len(before) + gap - 1:
                assert ids(result) == [1]
                results.append(result.xyxy[0])
    return np.array(results[:3]), np.array(results[3:])


@pytest.mark.parametrize("camera", [None, (7.0, -2.0)])
@pytest.mark.parametrize("state", ["xyah", "cxcywh"])
def test_the_time_between_is_repeated_along_a_straight_line(state, camera):
    """As if the person had been seen all the while, velocity included."""
    expected, found = after_a_gap(12, camera, box_state=state, reupdate=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    expected, found = after_a_gap(12, camera, box_state=state, reupdate=False)
    assert np.abs(found - expected).max() > 0.1  # over such a gap the filter alone is nearly as good


def test_a_very_long_gap_is_repeated_in_longer_steps():
    expected, found = after_a_gap(150, reupdate=True)
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(expected, axis=0), atol=0.1)
    _, without = after_a_gap(150, reupdate=False)
    assert np.abs(np.diff(without, axis=0) - np.diff(expected, axis=0)).max() > 0.5


# --- a camera that moves


def panned(x, y):
    return np.array([[1.0, 0, x], [0, 1, y]])


@pytest.mark.parametrize("looks", [None, (0, 1)])
def test_people_keep_their_ids_while_the_camera_pans(looks):
    """Standing 400 apart while the picture moves by 100, 2.5 widths, a frame."""

    def last(motion):
        tracker = Tracker(plain())
        run(tracker, [standing(0, 400, looks=looks)] * 3)
        for k in range(1, 4):
            result = tracker.update(standing(100 * k, 400 + 100 * k, looks=looks), camera_motion=motion)
        return ids(result)

    assert last(panned(100, 0)) == [1, 2]
    assert last(None) != [1, 2]


def test_the_guess_follows_the_camera():
    """Turned by 90°, twice as large, shifted: the centre (20, 150) goes to (-300, 40) and then some."""
    tracker = Tracker(plain(coast_seconds=1.0))
    run(tracker, [standing(0)] * 5)
    result = tracker.update(NOBODY, camera_motion=np.array([[0.0, -2, 5], [2, 0, 10]]))
    np.testing.assert_allclose(result.xyxy, [[-295 - 40, 50 - 100, -295 + 40, 50 + 100]], atol=1e-3)


def test_a_camera_that_stands_still_is_as_good_as_none():
    one, other = Tracker(plain()), Tracker(plain())
    for k in range(20):
        a = one.update(standing(5 * k, 300 - k), camera_motion=np.eye(2, 3))
        b = other.update(standing(5 * k, 300 - k))
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


def test_the_camera_does_not_make_a_statue_alive():
    """It scores in the middle, and moves with the picture alone."""
    tracker = Tracker(plain(sure_thresh=0.75, min_motion=0.3))
    frames = range(60)
    results = [tracker.update(standing(8 * k, score=0.65), camera_motion=panned(8, 0)) for k in frames]
    assert not any(map(len, results))
    tracker.reset()
    results = [tracker.update(standing(8 * k, score=0.65)) for k in frames]
    assert ids(results[-1]) == [1]
    # Nor do errors of the estimate, which add up to half a width here.
    tracker.reset()
    results = [tracker.update(standing(8 * k, score=0.65), camera_motion=panned(7.85, 0)) for k in range(150)]
    assert not any(map(len, results))


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        (np.eye(3), r"camera_motion: expected \(2, 3\) finite numbers, got"),
        (np.full((2, 3), np.nan), r"camera_motion: expected \(2, 3\) finite numbers, got"),
        (np.zeros((2, 3)), "camera_motion: expected the motion of a camera, got"),
        (1e4 * np.eye(2, 3), "camera_motion: expected the motion of a camera, got"),
        (np.full((2, 3), 1e300), "camera_motion: expected the motion of a camera, got"),
    ],
)
def test_an_impossible_camera_is_refused(motion, message):
    tracker = Tracker(plain())
    with pytest.raises(ValueError, match=message):
        tracker.update(standing(0), camera_motion=motion)
    assert tracker.update(standing(0)).frame == 1
