"""What holds for every tracker, whatever it is given: settings, boxes, times, cameras and embeddings at random."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from configs import load_config
from tracker import Detections, Tracker, TrackerConfig

PRESETS = sorted(Path(configs.__file__).parent.glob("tracker_*.yaml"))
CONFIGS = {
    "default": TrackerConfig(),
    # Every stage that the default may leave out.
    "everything": TrackerConfig(
        shape_std=1.0,
        classes="vote",
        appearance="minimum",
        stand_out_margin=0.5,
        score_aware_momentum=True,
        fuse_score=True,
        iou_buffer=0.3,
        small_box=20.0,
        direction_weight=0.2,
        recover_by_last_box=True,
        box_state="cxcywh",
        reupdate=True,
        coast_seconds=0.3,
        output="filtered",
    ),
    **{file.stem: load_config(file, (), {"tracker": TrackerConfig})["tracker"] for file in PRESETS},
}
RATE = 10.0
DIMENSION = 8

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
examples = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def buffer_frames(config, rate=RATE):
    return max(1, round(config.track_buffer * rate))


# --- scenes


def crowd(rng, people=8, frames=20, dimension=DIMENSION, classes=1):
    """People who walk on a plane without exact ties; each is missed, or scores low, now and then."""
    centre = rng.uniform(0, 600, (people, 2))
    step = rng.normal(0, 3, (people, 2))
    size = rng.uniform(0.8, 1.2, (people, 1)) * (40, 100)
    looks = rng.normal(size=(people, dimension))
    label = rng.integers(0, classes, people)
    for _ in range(frames):
        centre = centre + step
        half = (size + rng.normal(0, 2, size.shape)) / 2
        noisy = centre + rng.normal(0, 1, centre.shape)
        found = rng.permutation(people)[: rng.integers(people // 2, people + 1)]
        embeddings = looks[found] + rng.normal(0, 0.3, (len(found), dimension))
        yield Detections(
            np.concatenate([noisy - half, noisy + half], axis=1)[found],
            rng.uniform(0.15, 1, len(found)),
            embeddings if dimension else None,
            label[found],
        )


def numbers(low, high):
    return st.floats(low, high, width=32)


PLACES = numbers(-200, 2000) | st.sampled_from([-1e12, -1e6, 1e6, 1e12])
SIZES = numbers(16, 256) | st.sampled_from([-32.0, 0.0, 1e-3, 1e6, 1e12])


@st.composite
def wild_frames(draw, most=15):
    """Frames of boxes of all kinds that mostly stay where they are, with and without embeddings, changing classes."""
    pool = np.array(draw(st.lists(st.tuples(PLACES, PLACES, SIZES, SIZES), min_size=1, max_size=5)), np.float32)
    row = st.tuples(st.integers(0, len(pool) - 1), numbers(-4, 4), numbers(0, 1), st.integers(0, 2), seeds)
    frames = draw(st.lists(st.tuples(st.booleans(), st.lists(row, max_size=6)), min_size=1, max_size=most))
    return [detections(pool, described, rows) for described, rows in frames]


def detections(pool, described, rows):
    if not rows:
        return Detections.empty()
    index, shift, scores, classes, looks = (np.array(column) for column in zip(*rows, strict=True))
    tlwh = pool[index] + shift[:, None].astype(np.float32) * (1, 1, 0, 0)
    embeddings = np.eye(DIMENSION, dtype=np.float32)[looks % DIMENSION] if described else None
    return Detections(np.concatenate([tlwh[:, :2], tlwh[:, :2] + tlwh[:, 2:]], axis=1), scores, embeddings, classes)


# --- what must hold


def check(results, found, config):
    """What is true of the results of every run, frame by frame."""
    newest = 0
    for number, (result, here) in enumerate(zip(results, found, strict=True), start=1):
        ids = result.track_ids
        assert result.frame == number
        assert len(result.xyxy) == len(result.scores) == len(result.classes) == len(ids)
        assert (np.diff(ids) > 0).all(), "sorted, and no id twice"
        assert np.isfinite(result.xyxy).all()
        assert (result.xyxy[:, 2:] >= result.xyxy[:, :2]).all()
        seen = np.ones(len(ids), bool) if result.predicted is None else ~result.predicted
        assert seen.all() or config.coast_seconds
        assert np.count_nonzero(seen) <= len(here)
        assert set(result.scores[seen].tolist()) <= set(here.scores.tolist())
        if config.output == "detection":
            assert {tuple(box) for box in result.xyxy[seen].tolist()} <= {tuple(box) for box in here.xyxy.tolist()}
        new = ids[ids > newest].tolist()
        assert new == list(range(newest + 1, newest + 1 + len(new))), "ids have no gaps"
        newest += len(new)
        if result.embeddings is not None:
            length = np.linalg.norm(result.embeddings, axis=1)
            assert (np.isclose(length, 1, atol=1e-5) | (length == 0)).all()


def check_gone_is_gone(results, times, config, rate=RATE):
    """No id comes back after more than the buffer, the frame in which it ends, and the rounding of both times."""
    last = {}
    for result, time in zip(results, times, strict=True):
        for track_id in result.track_ids.tolist():
            absent = (time - last.get(track_id, time)) * rate
            assert absent <= buffer_frames(config, rate) + 1 + 0.2
            last[track_id] = time


def same_state(one, other):
    """Trackers that have come to the same point go on alike."""
    probe = Detections([[0, 0, 40, 100], [300, 0, 340, 100]], [0.9, 0.8])
    for _ in range(3):
        a, b = one.update(probe), other.update(probe)
        assert a.frame == b.frame
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


# --- order


@every_config
@pytest.mark.parametrize("dimension", [0, DIMENSION])
@examples
@given(seed=seeds)
def test_order_of_detections_only_renames(config, dimension, seed):
    rng = np.random.default_rng(seed)
    frames = list(crowd(rng, dimension=dimension, classes=2))
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    name = {}
    for found in frames:
        order = rng.permutation(len(found))
        a, b = one.update(found), other.update(found[order])
        assert len(a) == len(b)
        if len(a):
            twin = np.abs(a.xyxy[:, None] - b.xyxy).max(axis=2).argmin(axis=1)
            np.testing.assert_allclose(b.xyxy[twin], a.xyxy, atol=1e-3)
            for track_id, its_name in zip(a.track_ids.tolist(), b.track_ids[twin].tolist(), strict=True):
                assert name.setdefault(track_id, its_name) == its_name
    assert len(set(name.values())) == len(name)


# --- anything at any time


@every_config
@examples
@given(found=wild_frames(), seed=seeds)
def test_whatever_comes(config, found, seed):
    rng = np.random.default_rng(seed)
    tracker, results, times, now = Tracker(config, RATE), [], [], 0.0
    for each in found:
        times.append(now)
        linear = np.eye(2) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.05, (2, 2))
        affine = np.column_stack([linear, rng.normal(0, 50, 2)])
        results.append(tracker.update(each, seconds=now, camera_motion=affine if rng.uniform() < 0.5 else None))
        now += rng.choice([0.0, 1 / RATE, 3 / RATE, rng.exponential(2 / RATE), rng.exponential(20.0)])
    check(results, found, config)
    check_gone_is_gone(results, times, config)


@every_config
@examples
@given(found=wild_frames())
def test_boxes_without_an_area_change_nothing(config, found):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for each in found:
        solid = (each.xyxy[:, 2:] > each.xyxy[:, :2]).all(axis=1)
        a, b = one.update(each), other.update(each[solid])
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


@every_config
@examples
@given(seed=seeds, shift=st.sampled_from([-4096.0, 8192.0]), scale=st.sampled_from([0.5, 1.0, 4.0]))
def test_people_outside_the_picture_and_of_any_size_are_tracked_alike(config, seed, shift, scale):
    config = dataclasses.replace(config, small_box=0.0)  # the one setting in pixels
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for found in crowd(np.random.default_rng(seed), dimension=0):
        xyxy = np.round(found.xyxy * 16) / 16  # so that shifting by a power of two is exact
        a = one.update(Detections(xyxy, found.scores))
        b = other.update(Detections(xyxy * scale + shift, found.scores))
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_allclose(b.xyxy, a.xyxy * scale + shift, atol=2e-3)


@every_config
@examples
@given(seed=seeds)
def test_a_camera_that_moves_and_says_so_changes_no_identity(config, seed):
    # Pixels are no pixels under another scale, and where the camera moves, the place of birth fades on purpose.
    config = dataclasses.replace(config, small_box=0.0, sure_thresh=0.0)
    rng = np.random.default_rng(seed)
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    scale, shift = 1.0, np.zeros(2)  # from the still picture to the moving one
    for found in crowd(rng, dimension=0):
        zoom, pan = rng.uniform(0.95, 1.05), rng.normal(0, 60, 2)
        scale, shift = zoom * scale, zoom * shift + pan
        moved = Detections(found.xyxy * scale + np.tile(shift, 2), found.scores)
        a = one.update(found)
        b = other.update(moved, camera_motion=np.column_stack([zoom * np.eye(2), pan]))
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_allclose(b.xyxy, a.xyxy * scale + np.tile(shift, 2), atol=0.05)


# --- time


@every_config
@examples
@given(seed=seeds, track_buffer=st.sampled_from([0.0, 0.2, 0.5]))
def test_ids_never_return(config, seed, track_buffer):
    config = dataclasses.replace(config, track_buffer=track_buffer)
    rng = np.random.default_rng(seed)
    tracker, results, times, now = Tracker(config, RATE), [], [], 0.0
    places = np.array([[150.0 * i, 0, 150.0 * i + 40, 100] for i in range(6)])
    for _ in range(60):
        here = rng.uniform(size=6) < 0.6
        results.append(tracker.update(Detections(places[here], np.full(here.sum(), 0.9)), seconds=now))
        times.append(now)
        now += rng.choice([1, 1, 1, 2.5, 9]) / RATE
    check_gone_is_gone(results, times, config)
    assert max(int(result.track_ids.max(initial=0)) for result in results) > 6  # somebody came anew


@every_config
@pytest.mark.parametrize("seconds", [2.9, -1.0, math.nan, math.inf, -math.inf])
def test_time_that_goes_back_is_refused_and_does_not_count(config, seconds):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for tracker in (one, other):
        for frame, found in enumerate(crowd(np.random.default_rng(0), frames=5)):
            tracker.update(found, seconds=2.6 + frame / RATE)
    with pytest.raises(ValueError, match="seconds"):
        one.update(Detections([[0, 0, 9, 9]], [0.9]), seconds=seconds)
    same_state(one, other)


@every_config
@pytest.mark.parametrize("pace", [0.05, 0.92, 1.0, 1.08, 1.5, 7.0])
def test_time_runs_at_the_pace_of_the_frames(config, pace):
    """However near a step is to a whole number of frame periods, the buffer's end comes when it should."""
    config = dataclasses.replace(config, track_buffer=2.0, coast_seconds=0.0)
    person = Detections([[0, 0, 40, 100]], [0.9])
    for hidden, expected in ((1.5, [1]), (3.5 + pace / RATE, [])):
        tracker = Tracker(config, RATE)
        time = 0.0
        while time < 3 * RATE:
            tracker.update(person if time < 5 else Detections.empty(), seconds=time / RATE)
            time += pace
            if time > 5 + hidden * RATE:
                break
        assert tracker.update(person, seconds=time / RATE).track_ids.tolist() == expected


@every_config
def test_time_may_be_told_now_and_then(config):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for frame, found in enumerate(crowd(np.random.default_rng(1), frames=20)):
        a = one.update(found, seconds=frame / RATE)
        b = other.update(found, seconds=None if frame % 3 else frame / RATE)
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-3)
    with pytest.raises(ValueError, match="seconds"):
        other.update(found, seconds=1.5)


@every_config
def test_time_that_stands_still_moves_nobody(config):
    tracker = Tracker(config, RATE)
    found = Detections([[0, 0, 40, 100], [200, 0, 240, 100]], [0.9, 0.9])
    results = [tracker.update(found, seconds=5.0) for _ in range(5)]
    assert [result.track_ids.tolist() for result in results[2:]] == [[1, 2]] * 3
    np.testing.assert_allclose(results[-1].xyxy, found.xyxy, atol=1e-3)
    gone = tracker.update(Detections.empty(), seconds=5.0)
    assert len(gone) == (2 if config.coast_seconds else 0)


@every_config
@pytest.mark.parametrize("speed", [8, -8])
def test_people_walk_on_while_frames_are_dropped(config, speed):
    """The clock says how far; without it, somebody 40 wide would be 32 beside the prediction."""
    tracker = Tracker(config, RATE)

    def walk(frame):
        left = 500 + speed * frame
        return tracker.update(Detections([[left, 0, left + 40, 100]], [0.9]), seconds=frame / RATE)

    ids = [walk(frame).track_ids.tolist() for frame in [*range(12), 16, 17, 21, 22]]
    assert ids[3:] == [[1]] * (len(ids) - 3)


@every_config
def test_who_shrinks_quickly_does_not_turn_inside_out(config):
    tracker = Tracker(dataclasses.replace(config, coast_seconds=0.5, output="filtered"), RATE)
    for frame in range(7):
        tracker.update(Detections([[0, 0, 100 - 12 * frame, 200 - 24 * frame]], [0.9]), seconds=frame / RATE)
    result = tracker.update(Detections.empty(), seconds=1.1)
    assert len(result) == 1 and (result.xyxy[:, 2:] > result.xyxy[:, :2]).all()


@every_config
@pytest.mark.parametrize("origin", [0.0, -3.0, 1.7e9])
def test_time_has_any_origin(config, origin):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for frame, found in enumerate(crowd(np.random.default_rng(1), frames=20)):
        a, b = one.update(found), other.update(found, seconds=origin + frame / RATE)
        np.testing.assert_array_equal(a.track_ids, b.track_ids)
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-3)


@every_config
@pytest.mark.parametrize("rate", [None, 0, -5, math.nan, math.inf, 1e-3, 1e6])
def test_any_frame_rate(config, rate):
    tracker = Tracker(config, rate)
    assert math.isfinite(tracker.frame_rate) and tracker.frame_rate > 0
    found = list(crowd(np.random.default_rng(2), frames=12))
    check([tracker.update(each, seconds=0.4 * number) for number, each in enumerate(found)], found, config)
    found.append(Detections.empty())
    check([Tracker(config, rate).update(found[0])], found[:1], config)


# --- refused


@pytest.mark.parametrize("name", ["xyxy", "scores", "embeddings"])
@examples
@given(data=st.data(), value=st.sampled_from([math.nan, math.inf, -math.inf]), count=st.integers(1, 9))
def test_a_value_that_is_no_number_is_refused_by_its_row(name, data, value, count):
    arrays = {
        "xyxy": np.tile(np.float64([0, 0, 40, 100]), (count, 1)),
        "scores": np.full(count, 0.9),
        "embeddings": np.ones((count, DIMENSION)),
    }
    row = data.draw(st.integers(0, count - 1))
    cell = (row,) if name == "scores" else (row, data.draw(st.integers(0, arrays[name].shape[1] - 1)))
    arrays[name][cell] = value
    with pytest.raises(ValueError, match=rf"{name}.*row {row}\b"):
        Detections(**arrays)


@every_config
def test_embeddings_of_another_dimension_are_refused_and_do_not_count(config):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for tracker in (one, other):
        for found in crowd(np.random.default_rng(0), frames=5):
            tracker.update(found)
    with pytest.raises(ValueError, match=f"embeddings: expected dimension {DIMENSION}"):
        one.update(Detections([[0, 0, 40, 100]], [0.9], np.ones((1, DIMENSION + 1))))
    same_state(one, other)


@every_config
@pytest.mark.parametrize(
    "motion", [np.eye(3), np.zeros((2, 3)), np.full((2, 3), np.nan), np.array([[np.inf, 0, 0], [0, 1, 0]])]
)
def test_an_impossible_camera_motion_is_refused_and_does_not_count(config, motion):
    one, other = Tracker(config, RATE), Tracker(config, RATE)
    for tracker in (one, other):
        for found in crowd(np.random.default_rng(0), frames=5):
            tracker.update(found)
    with pytest.raises(ValueError, match="camera_motion"):
        one.update(Detections.empty(), camera_motion=motion)
    same_state(one, other)


# --- how many


@every_config
@pytest.mark.parametrize("dimension", [0, DIMENSION])
def test_nobody_and_two_thousand(config, dimension):
    rng = np.random.default_rng(3)
    people = [Detections.empty(), *crowd(rng, 4000, 2, dimension), Detections.empty()]
    people = [each[np.arange(min(len(each), 2000))] for each in people]
    tracker = Tracker(config, RATE)
    results = [tracker.update(each) for each in people]
    check(results, people, config)
    assert len(results[0]) == 0 and sum(map(len, results[1:3])) > 0
