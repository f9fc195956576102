"""Seconds: how long a track is kept, and frames that come late, at once, or not at all."""

import numpy as np
import pytest

from tests.tracker.people import NOBODY, ids, plain, run, standing
from tracker import Tracker
from tracker.clock import FrameClock

# --- the buffer


@pytest.mark.parametrize("looks", [None, [3]])
def test_hidden_for_the_whole_buffer_keeps_the_id_one_frame_more_does_not(looks):
    def after(hidden):
        tracker = Tracker(plain(track_buffer=1.0), frame_rate=10)
        frames = [standing(0, looks=looks)] * 5 + [NOBODY] * hidden + [standing(0, looks=looks)] * 3
        return run(tracker, frames)

    assert ids(after(10)[-3]) == [1]
    results = after(11)
    assert ids(results[-3]) == []
    assert ids(results[-2]) == [2]


def test_expired_track_never_returns_and_its_successor_is_not_renumbered():
    tracker = Tracker(plain(track_buffer=1.0), frame_rate=5)
    here = standing(0, looks=[0])
    run(tracker, [here] * 3 + [NOBODY] * 6)
    seen = [ids(result) for result in run(tracker, [here] * 4 + [NOBODY] + [here] * 4)]
    assert seen == [[], [2], [2], [2], [], [2], [2], [2], [2]]


def test_the_buffer_holds_seconds():
    def frames_kept(frame_rate, track_buffer=1.0):
        for hidden in range(1, 200):
            tracker = Tracker(plain(track_buffer=track_buffer), frame_rate=frame_rate)
            if ids(run(tracker, [standing(0)] * 2 + [NOBODY] * hidden + [standing(0)])[-1]) != [1]:
                return hidden - 1
        return None

    assert frames_kept(10) == 10
    assert frames_kept(60) == 60
    assert frames_kept(25, track_buffer=2) == 50
    assert frames_kept(0.4) == 1
    assert frames_kept(30, track_buffer=0) == 1
    for broken in (0, -1, float("nan"), float("inf"), None):
        assert frames_kept(broken) == 30, broken


@pytest.mark.parametrize("rate", [None, 0, -1, float("nan"), float("inf")])
def test_an_unknown_frame_rate_counts_as_thirty(rate):
    assert Tracker(plain(), rate).frame_rate == 30
    assert Tracker(plain(), 12.5).frame_rate == 12.5


# --- the clock


def timed(tracker, frames):
    """Results of (seconds, detections)."""
    return [tracker.update(found, seconds=seconds) for seconds, found in frames]


def test_a_steady_walk_is_predicted_right_at_irregular_times():
    """60 px a second, seen in steps of half a frame period to four; without the clock the steps are all alike."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.5, 4, 80)) / 30
    walk = [(t, standing(60 * t)) for t in times]
    config = plain(coast_seconds=1.0, output="filtered")
    for ahead in (0.02, 0.1, 0.35):
        tracker = Tracker(config, 30)
        seen = timed(tracker, walk)
        assert all(ids(result) == [1] for result in seen)
        then = times[-1] + ahead
        np.testing.assert_allclose(seen[-1].xyxy[0], standing(60 * times[-1]).xyxy[0], atol=0.5)
        np.testing.assert_allclose(tracker.update(NOBODY, seconds=then).xyxy, standing(60 * then).xyxy, atol=0.5)
    unaware = Tracker(config, 30)
    run(unaware, [found for _, found in walk])
    assert abs(unaware.update(NOBODY).xyxy[0, 0] - 60 * (times[-1] + 1 / 30)) > 1


def test_the_frame_rate_is_the_unit_of_the_clock_only():
    """A stream of 20 pictures a second, whatever rate its header claims."""
    for rate in (10, 20, 60):
        tracker = Tracker(plain(coast_seconds=0.5), rate)
        timed(tracker, [(k / 20, standing(5 * k)) for k in range(60)])
        assert tracker.update(NOBODY, seconds=3.1).xyxy[0, 0] == pytest.approx(310, abs=1)


@pytest.mark.parametrize(
    ("frames_between", "found", "expected"),
    [
        ([], 1.6, [1]),  # 10 frame periods of the buffer are over in this frame, as where none is dropped
        ([], 1.65, []),
        ([0.9, 1.4], 1.6, [1]),
        ([0.9, 1.55], 1.6, []),
        ([0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57, 0.58, 0.59, 0.6, 0.61, 0.62], 1.0, [1]),
        ([100.0], 100.1, []),
    ],
)
def test_the_buffer_is_counted_in_time_not_in_frames(frames_between, found, expected):
    here = standing(0)
    tracker = Tracker(plain(track_buffer=1.0), 10)
    timed(tracker, [(0.1 * k, here) for k in range(6)])
    timed(tracker, [(seconds, NOBODY) for seconds in frames_between])
    assert ids(tracker.update(here, seconds=found)) == expected


@pytest.mark.parametrize(("hidden", "expected"), [(0.4, [1]), (0.6, [])])
def test_position_alone_is_trusted_by_the_clock(hidden, expected):
    """One frame without the person, however long it took, or none because they were dropped."""
    for between in ([(0.25, NOBODY)], []):
        tracker = Tracker(plain(iou_rematch_seconds=0.5, track_buffer=2.0, embedding_thresh=0.3), 10)
        timed(tracker, [(0.1 * k, standing(0, looks=[0])) for k in range(3)] + between)
        assert ids(tracker.update(standing(0, looks=[1]), seconds=0.2 + hidden)) == expected


@pytest.mark.parametrize(("last", "expected"), [(0.75, [1]), (0.85, [])])
def test_guesses_are_shown_by_the_clock(last, expected):
    tracker = Tracker(plain(coast_seconds=0.3), 10)
    timed(tracker, [(0.1 * k, standing(0)) for k in range(6)])
    assert ids(tracker.update(NOBODY, seconds=last)) == expected


# --- any clock


def same(results, expected):
    for one, other in zip(results, expected, strict=True):
        assert one.frame == other.frame and ids(one) == ids(other)
        np.testing.assert_array_equal(one.xyxy, other.xyxy)


SCENE = [standing(5 * k, 300 - 3 * k) if k % 7 else standing(5 * k) for k in range(40)]
FILTERED = plain(output="filtered", reupdate=True, coast_seconds=0.2)


@pytest.mark.parametrize("origin", [0.0, -7.3, 1.7e9])
@pytest.mark.parametrize("unit", [1 / 90_000, 1 / 1_000, 1e-9])
@pytest.mark.parametrize("rate", [10, 24_000 / 1_001, 30_000 / 1_001, 60])
def test_clocks_of_containers_round_and_nothing_changes(origin, unit, rate):
    """From whatever origin, in milliseconds or 90,000ths: to the digit what comes without a clock."""
    seconds = [origin + round(k / rate / unit) * unit for k in range(len(SCENE))]
    same(timed(Tracker(FILTERED, rate), zip(seconds, SCENE, strict=True)), run(Tracker(FILTERED, rate), SCENE))


def test_times_between_the_frame_periods_are_good_at_any_origin():
    """Seconds since 1970 are good to 0.2 µs; a gap of 3.000005 frame periods is repeated in three steps, not four."""
    frames = [NOBODY, *[NOBODY if k % 8 in (5, 6) else standing(12 * k) for k in range(40)]]
    seconds = np.array([0.0, *[(k + 0.3) / 30 for k in range(1, 41)]])
    near, far = (
        timed(Tracker(FILTERED, 30), zip(origin + seconds, frames, strict=True)) for origin in (0.0, 1.7e9 + 1 / 3)
    )
    for one, other in zip(near, far, strict=True):
        assert ids(one) == ids(other)
        np.testing.assert_allclose(other.xyxy, one.xyxy, atol=2e-3)


def test_a_rate_told_slightly_wrong_costs_nobody_an_identity():
    tracker = Tracker(plain(output="filtered"), 30)
    for k in range(2_000):
        result = tracker.update(standing(0.2 * k), seconds=k * 1001 / 30_000)
        assert ids(result) == [1]
        assert result.xyxy[0, 0] == pytest.approx(0.2 * k, abs=0.5)


def test_some_frames_may_come_without_a_time():
    without = run(Tracker(FILTERED, 10), SCENE)
    # Whatever the first time is, it is that of one frame period after the frames without.
    tracker = Tracker(FILTERED, 10)
    mixed = [tracker.update(found, seconds=None if k < 4 or k % 3 else 77 + k / 10) for k, found in enumerate(SCENE)]
    same(mixed, without)
    with pytest.raises(ValueError, match=r"seconds: expected 80.900 \(the frame before\) or later, got 80.500"):
        tracker.update(NOBODY, seconds=80.5)


def test_time_that_goes_back_is_refused_and_the_frame_does_not_count():
    one, other = Tracker(FILTERED, 10), Tracker(FILTERED, 10)
    for tracker in (one, other):
        timed(tracker, [(2 + k / 10, found) for k, found in enumerate(SCENE[:6])])
    with pytest.raises(ValueError, match=r"seconds: expected 2.500 \(the frame before\) or later, got 2.300"):
        one.update(standing(900), seconds=2.3)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"seconds: expected a finite time, got {value}"):
            one.update(standing(900), seconds=value)
    same([one.update(SCENE[6], seconds=2.6)], [other.update(SCENE[6], seconds=2.6)])


def test_a_refused_first_frame_does_not_set_the_clock():
    tracker = Tracker(plain())
    with pytest.raises(ValueError, match="camera_motion"):
        tracker.update(standing(0), seconds=100, camera_motion=np.zeros((2, 3)))
    result = tracker.update(standing(0), seconds=50)
    assert result.frame == 1 and ids(result) == [1]


def test_a_reset_forgets_the_clock():
    tracker = Tracker(FILTERED, 10)
    timed(tracker, [(50 + k / 10, found) for k, found in enumerate(SCENE)])
    tracker.reset()
    same(timed(tracker, [(k / 10, found) for k, found in enumerate(SCENE)]), run(Tracker(FILTERED, 10), SCENE))


def test_frames_of_the_same_time_are_frames():
    tracker = Tracker(plain(confirm_first_frame=False, confirm_frames=3), 10)
    results = timed(tracker, [(1.0, standing(0, 300))] * 4)
    assert [ids(result) for result in results] == [[], [], [1, 2], [1, 2]]
    np.testing.assert_array_equal(results[-1].xyxy, standing(0, 300).xyxy)
    assert [result.frame for result in results] == [1, 2, 3, 4]
    # Nobody moves meanwhile, and nobody grows old.
    tracker = Tracker(plain(track_buffer=0, coast_seconds=0.1), 10)
    timed(tracker, [(0.1 * k, standing(8 * k)) for k in range(20)])
    stills = timed(tracker, [(1.9, NOBODY)] * 5)
    for result in stills:
        assert result.xyxy[0, 0] == pytest.approx(152, abs=0.5)


def test_who_leaves_while_frames_are_dropped_does_not_come_back_as_somebody_else():
    tracker = Tracker(plain(track_buffer=1.0), 10)
    timed(tracker, [(0.1 * k, standing(0, looks=[0])) for k in range(5)])
    results = timed(tracker, [(9.0 + 0.1 * k, standing(0, looks=[0])) for k in range(3)])
    assert [ids(result) for result in results] == [[], [2], [2]]


# --- the clock by itself


def test_the_clock_counts_frame_periods():
    clock = FrameClock(25)
    assert [clock.advance(None), clock.advance(None)] == [1, 1] and clock.now == 2
    assert clock.advance(100.0) == 1  # the first time told is that of the next frame
    assert clock.advance(100.08) == 2 and clock.now == 5
    assert clock.advance(100.1) == pytest.approx(0.5) and clock.now == pytest.approx(5.5)
    assert clock.advance(100.123) == pytest.approx(0.5) and clock.now == 6  # 6.075 is 6
    assert clock.advance(100.121) == 0  # and so is 6.025
    assert clock.advance(None) == 1 and clock.now == 7
    clock.reset()
    assert clock.advance(3.0) == 1 and clock.now == 1


@pytest.mark.parametrize("seconds", [99.0, -1e308, 1e308, float("nan"), float("-inf")])
def test_a_time_that_is_refused_leaves_the_clock_as_it_was(seconds):
    clock = FrameClock(25)
    clock.advance(100.0)
    with pytest.raises(ValueError, match="seconds: expected"):
        clock.advance(seconds)
    assert clock.now == 1 and clock.advance(100.04) == 1


def test_seconds_as_frame_periods():
    clock = FrameClock(25)
    assert [clock.periods(seconds) for seconds in (0, 0.05, 0.07, 1, 10)] == [0, 1, 2, 25, 250]
    assert clock.periods(1e308) > 1e12
