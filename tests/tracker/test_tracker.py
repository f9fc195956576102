"""What the tracker does with people who appear, meet, hide and leave."""

import ast
import gc
import inspect
import itertools

import motmetrics
import numpy as np
import psutil
import pytest

from configs import load_config
from tracker import Detections, Tracker, TrackerConfig
from tracker import config as config_module
from tracker.boxes import iou, tlwh_to_xyxy

# The published association, as it ships.
JDE = load_config("tracker_jde", (), {"tracker": TrackerConfig})["tracker"]


def standing(*lefts, score=0.9, looks=None, top=100.0, width=40.0, height=100.0):
    """Upright people at the given left edges, with one score or one each; `looks` names embeddings from 0 on."""
    lefts = np.array(lefts, np.float32).reshape(-1)
    xyxy = np.stack([lefts, np.full_like(lefts, top), lefts + width, np.full_like(lefts, top + height)], axis=1)
    embeddings = None if looks is None else np.eye(8, dtype=np.float32)[list(looks)]
    return Detections(xyxy, np.full(len(lefts), score, np.float32), embeddings)


def run(tracker, frames):
    return [tracker.update(frame) for frame in frames]


def ids(result):
    return result.track_ids.tolist()


NOBODY = Detections.empty()


# --- birth, confirmation, numbering


def test_first_frame_is_reported_at_once():
    assert ids(Tracker().update(standing(0, 200))) == [1, 2]
    late = run(Tracker(), [NOBODY, NOBODY, standing(0)])
    assert [ids(result) for result in late] == [[], [], [1]]


def test_first_frame_may_wait_for_confirmation():
    results = run(Tracker(TrackerConfig(confirm_first_frame=False)), [standing(0), standing(0)])
    assert [ids(result) for result in results] == [[], [1]]


@pytest.mark.parametrize("confirm_frames", [1, 2, 4])
def test_newcomer_is_confirmed_after_consecutive_matches(confirm_frames):
    tracker = Tracker(TrackerConfig(confirm_frames=confirm_frames))
    results = run(tracker, [standing(0)] + [standing(0, 300)] * 5)
    first_seen = next(result.frame for result in results if 2 in ids(result))
    assert first_seen == 1 + confirm_frames


def test_interrupted_newcomer_is_dropped_and_takes_no_id():
    tracker = Tracker()
    # Flashes of one frame at changing places, then a real newcomer.
    frames = [standing(0)] + [standing(0, 300 + 100 * k) if k % 2 else standing(0) for k in range(6)]
    assert all(ids(result) == [1] for result in run(tracker, frames))
    assert ids(run(tracker, [standing(0, 900)] * 2)[-1]) == [1, 2]


def test_unconfirmed_track_is_predicted():
    """The box grows uncertain by one prediction before its second match: its velocity follows the measured step."""
    tracker = Tracker(TrackerConfig(confirm_first_frame=False, output="filtered"))
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
    results = run(Tracker(TrackerConfig(confirm_frames=6)), frames)
    assert ids(results[-1]) == [1, 2]


def test_ids_count_from_one_without_gaps():
    rng = np.random.default_rng(0)
    tracker, seen = Tracker(TrackerConfig(track_buffer=1.0), frame_rate=5), []
    for _ in range(400):
        people = rng.choice(40, size=rng.integers(0, 12), replace=False)
        for track_id in ids(tracker.update(standing(*(people * 100.0), looks=people % 8))):
            if track_id not in seen:
                seen.append(track_id)
    assert len(seen) > 50
    assert seen == list(range(1, len(seen) + 1))


def test_trackers_are_independent_and_reset_restarts():
    config = TrackerConfig(output="filtered")  # shows what is left of the filter's state
    one, other = Tracker(config), Tracker(config)
    run(one, [standing(0, 200, 400)] * 3)
    assert ids(other.update(standing(0))) == [1]
    assert ids(one.update(standing(0, 200, 400))) == [1, 2, 3]
    frames = [standing(5 * k, 400 - 5 * k, looks=(0, 1)) for k in range(20)]
    one.reset()
    again, fresh = run(one, frames), run(Tracker(config), frames)
    for result, expected in zip(again, fresh, strict=True):
        assert result.frame == expected.frame and ids(result) == ids(expected)
        np.testing.assert_array_equal(result.xyxy, expected.xyxy)


def test_frames_are_counted_from_one_even_when_empty():
    results = run(Tracker(), [NOBODY, standing(0), NOBODY])
    assert [result.frame for result in results] == [1, 2, 3]
    assert [ids(result) for result in results] == [[], [1], []]
    assert results[0].xyxy.shape == (0, 4)


# --- scores


def test_score_exactly_at_a_threshold_counts():
    for thresh in (0.3, 0.5, 0.6):
        config = TrackerConfig(score_thresh=thresh, low_score_thresh=None, birth_thresh=thresh, sure_thresh=0)
        at, below = standing(0, score=thresh), standing(0, score=np.nextafter(np.float32(thresh), np.float32(0)))
        assert ids(Tracker(config).update(at)) == [1]
        assert ids(Tracker(config).update(below)) == []
        assert ids(run(Tracker(config), [at, at])[-1]) == [1]


def test_low_scores_continue_a_tracked_person_but_start_none():
    config = TrackerConfig(score_thresh=0.5, low_score_thresh=0.2)
    sure, unsure, hopeless = standing(0), standing(0, score=0.2), standing(0, score=0.19)
    results = run(Tracker(config), [sure, unsure, unsure, hopeless])
    assert [ids(result) for result in results] == [[1], [1], [1], []]
    assert results[1].scores.tolist() == pytest.approx([0.2])
    assert all(len(result) == 0 for result in run(Tracker(config), [unsure] * 5))
    without = Tracker(TrackerConfig(score_thresh=0.5, low_score_thresh=None))
    assert [ids(result) for result in run(without, [sure, unsure])] == [[1], []]


def test_low_scores_find_only_recently_lost_people_again():
    config = TrackerConfig(iou_rematch_seconds=0.5, track_buffer=2.0)

    def after(hidden, looks):
        tracker = Tracker(config, frame_rate=10)
        frames = [standing(0, looks=looks)] * 3 + [NOBODY] * hidden
        return [ids(result) for result in run(tracker, [*frames, standing(0, score=0.3, looks=looks)])][-1]

    assert after(4, [0]) == [1]
    assert after(5, [0]) == []
    # Where position is all there is, the buffer is the limit.
    assert after(20, None) == [1]
    assert after(21, None) == []


def test_low_threshold_above_the_other_leaves_nothing_between():
    tracker = Tracker(TrackerConfig(score_thresh=0.5, low_score_thresh=0.7))
    results = run(tracker, [standing(0), standing(0, score=0.6), standing(0, score=0.49), standing(0, score=0.5)])
    assert [ids(result) for result in results] == [[1], [1], [], [1]]


def test_low_score_does_not_change_what_a_person_looks_like():
    tracker = Tracker(TrackerConfig(low_score_thresh=0.1))
    tracker.update(standing(0, looks=[0]))
    tracker.update(standing(0, looks=[1], score=0.3))
    assert tracker._tracks.embedding[0].tolist() == np.eye(8)[0].tolist()


def test_birth_threshold():
    config = TrackerConfig(score_thresh=0.4, low_score_thresh=None, birth_thresh=0.6, sure_thresh=0)
    assert all(len(result) == 0 for result in run(Tracker(config), [standing(0, score=0.5)] * 3))
    assert ids(Tracker(config).update(standing(0, score=0.6))) == [1]
    assert ids(run(Tracker(config), [standing(0), standing(0, score=0.5)])[-1]) == [1]


def test_birth_threshold_below_the_score_threshold_is_that_one():
    config = TrackerConfig(score_thresh=0.6, birth_thresh=0.3, sure_thresh=0)
    assert all(len(result) == 0 for result in run(Tracker(config), [standing(0, score=0.59)] * 3))
    assert ids(Tracker(config).update(standing(0, score=0.6))) == [1]


# --- sure or moving


@pytest.mark.parametrize("settings", [{}, {"confirm_frames": 1}, {"confirm_first_frame": False}])
def test_what_scores_in_the_middle_and_stays_is_never_reported(settings):
    rng = np.random.default_rng(0)
    tracker = Tracker(TrackerConfig(**settings))
    for _ in range(60):  # its detection trembles, by less than 0.3 of its width of 40
        assert ids(tracker.update(standing(rng.uniform(0, 11), score=rng.uniform(0.6, 0.74)))) == []
    assert len(tracker._tracks) == 1
    # It took no id either.
    assert ids(run(tracker, [standing(0, 300, score=[0.7, 0.9])] * 2)[-1]) == [1]


def test_what_scores_in_the_middle_is_reported_once_it_has_moved_far_enough():
    def reported(*frames, **settings):
        return [ids(result) for result in run(Tracker(TrackerConfig(**{"min_motion": 0.5} | settings)), frames)]

    def at(left, top=100.0, width=40.0):
        return standing(left, top=top, width=width, score=0.6)

    assert reported(at(0), at(10), at(20), at(20)) == [[], [], [1], [1]]  # half of 40
    assert reported(at(0), at(10), at(19.99), at(19.99)) == [[], [], [], []]
    assert reported(at(0), at(10), at(20), at(0)) == [[], [], [1], [1]]  # once believed, always believed
    assert reported(at(0), at(-12, top=116)) == [[], [1]]  # any direction: 12, 16, 20
    assert reported(at(0), at(0, width=80)) == [[], []]  # the width is the present one
    assert reported(at(0), at(20), at(40), confirm_frames=3) == [[], [], [1]]
    assert reported(at(0), at(10), min_motion=0.25) == [[], [1]]
    assert reported(at(0), at(0), min_motion=0) == [[1], [1]]
    assert reported(at(0), at(0), sure_thresh=0) == [[1], [1]]
    # Interrupted, it starts from where it is seen next.
    assert reported(at(0), at(10), NOBODY, at(20), at(30), at(40)) == [[], [], [], [], [], [1]]


def test_one_sure_score_suffices():
    below = np.nextafter(np.float32(0.75), np.float32(0))

    def reported(*scores, before=()):
        tracker = Tracker()
        run(tracker, before)
        return [ids(tracker.update(standing(0, score=score))) for score in scores]

    assert reported(0.6, 0.6, 0.75, 0.6) == [[], [], [1], [1]]
    assert reported(0.6, 0.6, below, below) == [[], [], [], []]
    assert reported(0.75, 0.6) == [[1], [1]]
    # Not the first of the video: the sure score counts once the frames suffice.
    other = [standing(500), NOBODY]
    assert reported(0.75, 0.6, before=other) == [[], [2]]
    assert reported(0.6, 0.75, before=other) == [[], [2]]


def test_ids_follow_confirmation_and_order_the_result():
    """The elder of two is believed later: it gets the later id and stands behind, with its own box and score."""
    frames = [standing(0, score=0.6)] + [standing(0, 300, score=[0.6, 0.9])] * 3
    frames += [standing(0, 300, 600, score=[0.8, 0.9, 0.9])] * 2
    results = run(Tracker(), frames)
    assert [ids(result) for result in results] == [[], [], [1], [1], [1, 2], [1, 2, 3]]
    assert results[-1].xyxy[:, 0].tolist() == [300, 0, 600]
    assert results[-1].scores.tolist() == pytest.approx([0.9, 0.8, 0.9])


# --- occlusion and the buffer


@pytest.mark.parametrize("looks", [None, [3]])
def test_hidden_for_the_whole_buffer_keeps_the_id_one_frame_more_does_not(looks):
    def after(hidden):
        tracker = Tracker(TrackerConfig(track_buffer=1.0), frame_rate=10)
        frames = [standing(0, looks=looks)] * 5 + [NOBODY] * hidden + [standing(0, looks=looks)] * 3
        return run(tracker, frames)

    assert ids(after(10)[-3]) == [1]
    results = after(11)
    assert ids(results[-3]) == []
    assert ids(results[-2]) == [2]


def test_expired_track_never_returns_and_its_successor_is_not_renumbered():
    tracker = Tracker(TrackerConfig(track_buffer=1.0), frame_rate=5)
    here = standing(0, looks=[0])
    run(tracker, [here] * 3 + [NOBODY] * 6)
    seen = [ids(result) for result in run(tracker, [here] * 4 + [NOBODY] + [here] * 4)]
    assert seen == [[], [2], [2], [2], [], [2], [2], [2], [2]]


def test_the_buffer_holds_seconds():
    def frames_kept(frame_rate, track_buffer=1.0):
        for hidden in range(1, 200):
            tracker = Tracker(TrackerConfig(track_buffer=track_buffer), frame_rate=frame_rate)
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


def test_a_lost_person_does_not_keep_growing():
    tracker = Tracker()
    for k in range(10):
        tracker.update(standing(0, height=100.0 + 4 * k))
    heights = []
    for _ in range(10):
        tracker.update(NOBODY)
        heights.append(tracker._tracks.mean[0, 3])
    assert heights[0] > 136  # the first prediction still follows the growth seen
    assert heights[1:] == pytest.approx([heights[0]] * 9)


def test_position_alone_finds_a_lost_person_only_for_a_while():
    config = TrackerConfig(iou_rematch_seconds=0.5, track_buffer=2.0)

    def reappears(hidden, looks):
        tracker = Tracker(config, frame_rate=10)
        frames = [standing(0, looks=[0])] * 3 + [NOBODY] * hidden + [standing(0, looks=[looks])] * 2
        return ids(run(tracker, frames)[-1])

    assert reappears(hidden=4, looks=1) == [1]
    assert reappears(hidden=5, looks=1) == [2]
    assert reappears(hidden=15, looks=0) == [1]


# --- what people look like


def test_two_people_crossing_keep_their_ids():
    tracker, seen = Tracker(), []
    for k in range(60):
        left, right = 8.0 * k, 472.0 - 8.0 * k
        hidden = abs(left - right) < 40  # behind the other one
        frame = standing(left, looks=[0]) if hidden else standing(left, right, looks=[0, 1])
        seen.append(tracker.update(frame))
    assert ids(seen[-1]) == [1, 2]
    centre = seen[-1].xyxy[:, 0]
    assert centre[0] == pytest.approx(472, abs=10) and centre[1] == pytest.approx(0, abs=10)
    assert {track_id for result in seen for track_id in ids(result)} == {1, 2}


def test_a_jump_keeps_the_id_by_looks_alone():
    frames = [standing(0, 100, looks=(0, 1))] * 3 + [standing(25, 75, looks=(0, 1))]
    assert iou(frames[0].xyxy, frames[-1].xyxy).max() < 0.5  # out of reach for the match by position
    last = run(Tracker(TrackerConfig(iou_thresh=0.5)), frames)[-1]
    assert ids(last) == [1, 2]


def test_the_gate_stops_what_no_person_can_do():
    results = run(Tracker(), [standing(0, looks=[0])] * 3 + [standing(500, looks=[0])] * 2)
    assert [ids(result) for result in results[-2:]] == [[], [2]]


@pytest.mark.parametrize(("metric", "thresh"), [("cosine", 0.32), ("euclidean", 0.8)])
def test_the_metric_is_the_one_named(metric, thresh):
    """A cosine distance of 0.30 is a Euclidean distance of 0.77; both lie within their limit, 0.34 and 0.82 do not."""

    def survives(cosine_distance):
        look = np.array([[1.0, 0.0]])
        cosine = 1 - cosine_distance
        other = np.array([[cosine, np.sqrt(1 - cosine**2)]])
        config = TrackerConfig(embedding_metric=metric, embedding_thresh=thresh, iou_rematch_seconds=0)
        tracker = Tracker(config)
        here = standing(0)
        run(tracker, [Detections(here.xyxy, here.scores, look)] * 10 + [NOBODY])  # lost: only looks find it again
        return ids(tracker.update(Detections(here.xyxy, here.scores, other))) == [1]

    assert survives(0.30)
    assert not survives(0.34)


def test_the_smoothed_embedding():
    tracker = Tracker()
    tracker.update(standing(0, looks=[0]))
    assert tracker._tracks.embedding[0].tolist() == np.eye(8)[0].tolist()
    tracker.update(standing(0, looks=[1]))
    expected = np.array([0.9, 0.1]) / np.hypot(0.9, 0.1)
    np.testing.assert_allclose(tracker._tracks.embedding[0, :2], expected, rtol=1e-6)


def test_the_callers_arrays_stay_as_they_are():
    rng = np.random.default_rng(0)
    xyxy = standing(0, 200).xyxy.copy()
    embeddings = rng.normal(size=(2, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = np.full(2, 0.8, np.float32)
    copies = xyxy.copy(), scores.copy(), embeddings.copy()
    tracker = Tracker()
    for _ in range(5):
        detections = Detections(xyxy, scores, embeddings)
        inside = [detections.xyxy.copy(), detections.scores.copy(), detections.embeddings.copy()]
        result = tracker.update(detections)
        for value, copy in zip((detections.xyxy, detections.scores, detections.embeddings), inside, strict=True):
            np.testing.assert_array_equal(value, copy)
        result.xyxy[:] = -1  # what the caller does with a result is his own affair
        result.track_ids[:] = 77
    for value, copy in zip((xyxy, scores, embeddings), copies, strict=True):
        np.testing.assert_array_equal(value, copy)
    assert ids(tracker.update(Detections(xyxy, scores, embeddings))) == [1, 2]


def test_embeddings_may_come_late_and_may_miss():
    frames = [standing(0), standing(0, looks=[0]), standing(2), NOBODY, standing(3, looks=[0])]
    assert all(ids(result) == [1] for result in run(Tracker(), frames) if len(result))
    assert len(run(Tracker(), frames)[-1]) == 1


def test_a_track_without_an_embedding_looks_like_nobody():
    config = TrackerConfig(embedding_thresh=2.0, iou_rematch_seconds=0)  # any look would do
    results = run(Tracker(config), [standing(0)] * 3 + [NOBODY, standing(0, looks=[0])])
    assert ids(results[-1]) == []
    results = run(Tracker(config), [standing(0, looks=[1])] * 3 + [NOBODY, standing(0, looks=[0])])
    assert ids(results[-1]) == [1]


def test_embeddings_of_another_dimension_are_refused():
    tracker = Tracker()
    tracker.update(standing(0, looks=[0]))
    with pytest.raises(ValueError, match="embeddings: expected dimension 8 as in earlier frames, got 4"):
        tracker.update(Detections([[0, 0, 10, 20]], [0.9], np.ones((1, 4))))


# --- duplicates


def test_lost_track_takes_over_the_younger_one_found_in_its_place():
    """Known without an embedding and found again with one, a person matches nothing at first and starts a new track."""
    config = TrackerConfig(iou_rematch_seconds=0)
    frames = [standing(0)] * 10 + [NOBODY] + [standing(0, looks=[0])] * 4
    assert [ids(result) for result in run(Tracker(config), frames)[10:]] == [[], [], [1], [1], [1]]
    # The younger track took no id: the next newcomer is number 2.
    tracker = Tracker(config)
    run(tracker, frames)
    assert ids(run(tracker, [standing(0, 300, looks=(0, 1))] * 2)[-1]) == [1, 2]
    apart = run(Tracker(TrackerConfig(iou_rematch_seconds=0, duplicate_thresh=None)), frames)
    assert [ids(result) for result in apart[10:]] == [[], [], [2], [2], [2]]


@pytest.mark.parametrize(
    ("looks", "duplicate_thresh", "expected"),
    [(None, 0.15, 3), (None, None, 2), ((0, 1), 0.15, 2), ((0, 0), 0.15, 3)],
)
def test_younger_lost_track_under_a_passer_by_is_a_duplicate_unless_it_looks_different(
    looks, duplicate_thresh, expected
):
    """Person 2 stands at 300 and is hidden while person 1 passes in front."""
    tracker = Tracker(TrackerConfig(duplicate_thresh=duplicate_thresh))
    for k in range(110):
        passer = 5.0 * k
        visible = (passer,) if k < 3 or abs(passer - 300) < 20 else (passer, 300)
        result = tracker.update(standing(*visible, looks=None if looks is None else looks[: len(visible)]))
    assert ids(result) == [1, expected]
    assert result.xyxy[0, 0] == pytest.approx(545, abs=5) and result.xyxy[1, 0] == pytest.approx(300, abs=5)


# --- overlap


@pytest.mark.parametrize(
    ("settings", "before", "score", "matched", "unmatched"),
    [
        # At width 40, moving d px leaves an IoU of (40 - d) / (40 + d).
        ({}, 5, 0.9, 26, 27),  # IoU 0.212 and 0.194
        ({"iou_thresh": 0.5}, 5, 0.9, 13, 14),  # IoU 0.509 and 0.481
        ({"iou_thresh": 0.7}, 5, 0.9, 21, 22),  # IoU 0.311 and 0.290
        ({}, 5, 0.3, 13, 14),
        ({"low_score_iou_thresh": 0.7}, 5, 0.3, 21, 22),
        ({"confirm_first_frame": False}, 1, 0.9, 21, 22),
        ({"confirm_first_frame": False, "tentative_iou_thresh": 0.5}, 1, 0.9, 13, 14),
    ],
)
def test_overlap_needed_by_each_stage(settings, before, score, matched, unmatched):
    for step, expected in ((matched, [1]), (unmatched, [])):
        tracker = Tracker(TrackerConfig(**settings))
        assert ids(run(tracker, [standing(0)] * before + [standing(step, score=score)])[-1]) == expected


def test_a_wider_limit_for_low_scores_is_for_those_only():
    config = TrackerConfig(iou_thresh=0.3, low_score_iou_thresh=0.5)
    results = run(Tracker(config), [standing(0, 300)] * 5 + [standing(8, 308, score=[0.9, 0.3])])  # IoU 0.667
    assert ids(results[-1]) == [2]


# --- boxes


def test_boxes_beyond_the_image_and_wide_boxes_are_kept_as_they_are():
    xyxy = np.array(
        [[-70.0, -20.5, 30.25, 150.0], [500.0, 300.0, 1500.0, 400.0], [3000.0, 10, 9000, 20000]], np.float32
    )
    scores = np.full(3, 0.9, np.float32)
    for output in ("detection", "filtered"):
        results = run(Tracker(TrackerConfig(output=output)), [Detections(xyxy, scores)] * 4)
        np.testing.assert_allclose(results[-1].xyxy, xyxy, rtol=1e-5, atol=1e-3)


def test_which_box_is_reported():
    frames = [standing(0), standing(10)]
    raw = run(Tracker(TrackerConfig(output="detection")), frames)[-1]
    filtered = run(Tracker(TrackerConfig(output="filtered")), frames)[-1]
    assert raw.xyxy[0, 0] == 10
    assert 5 < filtered.xyxy[0, 0] < 10


def test_boxes_without_area_are_passed_over():
    xyxy = np.array([[0, 0, 40, 100], [50, 50, 50, 90], [60, 50, 80, 50], [90, 90, 80, 80]], np.float32)
    tracker = Tracker()
    with np.errstate(all="raise"):
        results = run(tracker, [Detections(xyxy, np.full(4, 0.9), np.eye(4))] * 4)
    assert all(ids(result) == [1] for result in results)
    assert np.isfinite(tracker._tracks.mean).all()


def test_classes_are_kept_apart():
    box = standing(0)
    cat, dog = (Detections(box.xyxy, box.scores, None, [label]) for label in (3, 4))
    results = run(Tracker(), [cat, cat, dog, dog])
    assert [ids(result) for result in results] == [[1], [1], [], [2]]
    assert results[0].classes.tolist() == [3] and results[-1].classes.tolist() == [4]
    cat, dog = (Detections(box.xyxy, box.scores, np.eye(1, 8), [label]) for label in (3, 4))
    assert [ids(result) for result in run(Tracker(), [cat, cat, dog, dog])] == [[1], [1], [], [2]]


# --- the whole


def crowd(frames, people=30, dimension=32, seed=0, life=None):
    """Detections of people walking to and fro, with misses, low scores and noisy embeddings; some die, others come."""
    rng = np.random.default_rng(seed)
    size = np.array([1800.0, 900.0])
    place = rng.uniform(0, size, (people, 2))
    speed = rng.normal(0, 3, (people, 2))
    height = rng.uniform(60, 200, people)
    looks = rng.normal(size=(people, dimension))
    for _ in range(frames):
        if life is not None:
            new = rng.random(people) < 1 / life
            place[new], looks[new] = rng.uniform(0, size, (new.sum(), 2)), rng.normal(size=(new.sum(), dimension))
        place = place + speed
        speed = np.where((place < 0) | (place > size), -speed, speed)
        seen = rng.random(people) > 0.05
        half = np.column_stack([0.2 * height, 0.5 * height])
        centre = place + rng.normal(0, 1, (people, 2))
        embeddings = looks + rng.normal(0, 0.3, looks.shape)
        scores = np.clip(rng.normal(0.75, 0.15, people), 0, 1)
        yield Detections(np.hstack([centre - half, centre + half])[seen], scores[seen], embeddings[seen])


@pytest.mark.parametrize("config", [TrackerConfig(), JDE], ids=["default", "jde"])
def test_ids_are_unique_and_sorted_within_a_frame(config):
    tracker, highest = Tracker(config), 0
    for detections in crowd(100, life=50):
        result = tracker.update(detections)
        new = result.track_ids[result.track_ids > highest]
        assert new.tolist() == list(range(highest + 1, highest + 1 + len(new)))
        highest += len(new)
        assert (np.diff(result.track_ids) > 0).all()
        assert len(result.xyxy) == len(result.scores) == len(result.classes) == len(result)
        assert len(result) <= len(detections)


def test_order_of_detections_only_relabels():
    rng = np.random.default_rng(1)
    config = TrackerConfig(output="filtered")
    straight, shuffled, names = Tracker(config), Tracker(config), {}
    for detections in crowd(80, life=60):
        first = straight.update(detections)
        second = shuffled.update(detections[rng.permutation(len(detections))])
        assert len(first) == len(second)
        pair = iou(first.xyxy, second.xyxy).argmax(axis=1)
        np.testing.assert_allclose(second.xyxy[pair], first.xyxy, rtol=1e-4, atol=1e-2)
        for one, other in zip(ids(first), second.track_ids[pair].tolist(), strict=True):
            assert names.setdefault(one, other) == other


def test_thousands_of_detections_in_one_frame():
    rng = np.random.default_rng(0)
    lefts, tops = np.meshgrid(np.arange(50) * 60.0, np.arange(40) * 120.0)
    corner = np.column_stack([lefts.ravel(), tops.ravel()])
    looks = rng.normal(size=(2000, 64))
    tracker = Tracker()
    for _ in range(2):
        noisy = corner + rng.normal(0, 1, corner.shape)
        result = tracker.update(
            Detections(tlwh_to_xyxy(np.insert(noisy, [2, 2], [50, 110], axis=1)), np.full(2000, 0.9), looks)
        )
        assert ids(result) == list(range(1, 2001))


def test_state_stays_bounded():
    """20,000 frames of births and deaths: memory stays where it was after the first 1,000, and so do the arrays."""
    tracker, process = Tracker(), psutil.Process()
    scene = list(crowd(500, people=30, life=100))
    most = 0
    for frame in range(20_000):
        tracker.update(scene[frame % len(scene)])
        most = max(most, len(tracker._tracks))
        if frame == 1_000:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    assert tracker._next_id > 1_000
    assert most < 200
    assert process.memory_info().rss - before < 5e6


@pytest.mark.shared
@pytest.mark.parametrize("name", ["a", "b"])
def test_parity_with_the_published_tracker(shared, name):
    """Recorded runs of the published tracker: the same boxes in the same frames, and the same people.

    Not box by box: the published code starts a frame later and revives expired tracks.
    """
    recorded = np.load(shared / "golden" / f"jde_tracker_{name}.npz")
    detections, theirs = recorded["dets"], recorded["tracks"]
    tracker = Tracker(JDE, float(recorded["frame_rate"]))
    accumulator = motmetrics.MOTAccumulator()
    found = 0
    for frame in range(1, int(max(recorded["frame"].max(), theirs[:, 0].max())) + 1):
        rows = detections[recorded["frame"] == frame]
        result = tracker.update(Detections(rows[:, :4], rows[:, 4], rows[:, 5:]))
        expected = theirs[theirs[:, 0] == frame]
        overlap = iou(tlwh_to_xyxy(expected[:, 2:6]), result.xyxy)
        found += np.count_nonzero((overlap > 0.9).any(axis=1))
        distance = np.where(overlap < 0.5, np.nan, 1 - overlap)
        accumulator.update(expected[:, 1].astype(int), result.track_ids, distance, frameid=frame)
    idf1 = motmetrics.metrics.create().compute(accumulator, metrics=["idf1"])["idf1"].item()
    assert found / len(theirs) >= 0.98
    assert idf1 >= 0.98


# --- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"score_thresh": 1.1}, r"score_thresh: expected a number in \[0, 1\], got 1.1"),
        ({"score_thresh": float("nan")}, "score_thresh: .* got nan"),
        ({"low_score_thresh": -0.1}, r"low_score_thresh: expected a number in \[0, 1\], got -0.1"),
        ({"birth_thresh": 1.2}, r"birth_thresh: expected a number in \[0, 1\], got 1.2"),
        ({"sure_thresh": 1.01}, r"sure_thresh: expected a number in \[0, 1\], got 1.01"),
        ({"min_motion": -0.5}, r"min_motion: expected a number in \[0, inf\), got -0.5"),
        ({"min_motion": float("inf")}, r"min_motion: expected a number in \[0, inf\), got inf"),
        ({"embedding_metric": "manhattan"}, "embedding_metric: expected one of cosine, euclidean, got 'manhattan'"),
        ({"embedding_thresh": 0}, r"embedding_thresh: expected a number in \(0, 2\], got 0"),
        ({"embedding_momentum": 1}, r"embedding_momentum: expected a number in \[0, 1\), got 1"),
        ({"iou_thresh": 1}, r"iou_thresh: expected a number in \[0, 1\), got 1"),
        ({"low_score_iou_thresh": -0.1}, "low_score_iou_thresh"),
        ({"tentative_iou_thresh": 2}, "tentative_iou_thresh"),
        ({"iou_rematch_seconds": -1}, "iou_rematch_seconds"),
        ({"track_buffer": float("inf")}, r"track_buffer: expected a number in \[0, inf\), got inf"),
        ({"duplicate_thresh": 1.5}, "duplicate_thresh"),
        ({"confirm_frames": 0}, "confirm_frames: .* got 0"),
        ({"confirm_frames": 1.5}, "confirm_frames: expected a whole number, got 1.5"),
        ({"output": "predicted"}, "output: expected one of filtered, detection, got 'predicted'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        TrackerConfig(**setting)


def test_every_setting_is_explained():
    body = next(
        node
        for node in ast.parse(inspect.getsource(config_module)).body
        if isinstance(node, ast.ClassDef) and node.name == "TrackerConfig"
    ).body
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert explained, node.target.id
