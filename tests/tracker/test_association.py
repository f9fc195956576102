"""Which detection continues which track: every stage, and every setting of a stage, in a scene it decides."""

import numpy as np
import pytest

from tests.tracker.people import NOBODY, boxes, crowd, ids, look, plain, run, standing
from tracker import Detections, Tracker
from tracker.boxes import iou

# --- low scores


def test_low_scores_continue_a_tracked_person_but_start_none():
    config = plain(score_thresh=0.5, low_score_thresh=0.2)
    sure, unsure, hopeless = standing(0), standing(0, score=0.2), standing(0, score=0.19)
    results = run(Tracker(config), [sure, unsure, unsure, hopeless])
    assert [ids(result) for result in results] == [[1], [1], [1], []]
    assert results[1].scores.tolist() == pytest.approx([0.2])
    assert all(len(result) == 0 for result in run(Tracker(config), [unsure] * 5))
    without = Tracker(plain(score_thresh=0.5, low_score_thresh=None))
    assert [ids(result) for result in run(without, [sure, unsure])] == [[1], []]


def test_low_scores_find_only_recently_lost_people_again():
    config = plain(iou_rematch_seconds=0.5, track_buffer=2.0)

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
    tracker = Tracker(plain(score_thresh=0.5, low_score_thresh=0.7))
    results = run(tracker, [standing(0), standing(0, score=0.6), standing(0, score=0.49), standing(0, score=0.5)])
    assert [ids(result) for result in results] == [[1], [1], [], [1]]


def test_low_score_does_not_change_what_a_person_looks_like():
    tracker = Tracker(plain(low_score_thresh=0.1))
    tracker.update(standing(0, looks=[0]))
    tracker.update(standing(0, looks=[1], score=0.3))
    assert tracker._tracks.embedding[0].tolist() == np.eye(8)[0].tolist()


# --- what people look like


def test_two_people_crossing_keep_their_ids():
    tracker, seen = Tracker(plain()), []
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
    last = run(Tracker(plain(iou_thresh=0.5)), frames)[-1]
    assert ids(last) == [1, 2]


def test_the_gate_stops_what_no_person_can_do():
    results = run(Tracker(plain()), [standing(0, looks=[0])] * 3 + [standing(500, looks=[0])] * 2)
    assert [ids(result) for result in results[-2:]] == [[], [2]]


@pytest.mark.parametrize(("metric", "thresh"), [("cosine", 0.32), ("euclidean", 0.8)])
def test_the_metric_is_the_one_named(metric, thresh):
    """A cosine distance of 0.30 is a Euclidean distance of 0.77; both lie within their limit, 0.34 and 0.82 do not."""

    def survives(cosine_distance):
        look = np.array([[1.0, 0.0]])
        cosine = 1 - cosine_distance
        other = np.array([[cosine, np.sqrt(1 - cosine**2)]])
        config = plain(embedding_metric=metric, embedding_thresh=thresh, iou_rematch_seconds=0)
        tracker = Tracker(config)
        here = standing(0)
        run(tracker, [Detections(here.xyxy, here.scores, look)] * 10 + [NOBODY])  # lost: only looks find it again
        return ids(tracker.update(Detections(here.xyxy, here.scores, other))) == [1]

    assert survives(0.30)
    assert not survives(0.34)


def test_the_smoothed_embedding():
    tracker = Tracker(plain())
    tracker.update(standing(0, looks=[0]))
    assert tracker._tracks.embedding[0].tolist() == np.eye(8)[0].tolist()
    tracker.update(standing(0, looks=[1]))
    expected = np.array([0.9, 0.1]) / np.hypot(0.9, 0.1)
    np.testing.assert_allclose(tracker._tracks.embedding[0, :2], expected, rtol=1e-6)


def test_embeddings_may_come_late_and_may_miss():
    frames = [standing(0), standing(0, looks=[0]), standing(2), NOBODY, standing(3, looks=[0])]
    assert all(ids(result) == [1] for result in run(Tracker(plain()), frames) if len(result))
    assert len(run(Tracker(plain()), frames)[-1]) == 1


def test_a_track_without_an_embedding_looks_like_nobody():
    config = plain(embedding_thresh=2.0, iou_rematch_seconds=0)  # any look would do
    results = run(Tracker(config), [standing(0)] * 3 + [NOBODY, standing(0, looks=[0])])
    assert ids(results[-1]) == []
    results = run(Tracker(config), [standing(0, looks=[1])] * 3 + [NOBODY, standing(0, looks=[0])])
    assert ids(results[-1]) == [1]


def test_embeddings_of_another_dimension_are_refused():
    tracker = Tracker(plain())
    tracker.update(standing(0, looks=[0]))
    with pytest.raises(ValueError, match="embeddings: expected dimension 8 as in earlier frames, got 4"):
        tracker.update(Detections([[0, 0, 10, 20]], [0.9], np.ones((1, 4))))


def test_position_alone_finds_a_lost_person_only_for_a_while():
    config = plain(iou_rematch_seconds=0.5, track_buffer=2.0)

    def reappears(hidden, looks):
        tracker = Tracker(config, frame_rate=10)
        frames = [standing(0, looks=[0])] * 3 + [NOBODY] * hidden + [standing(0, looks=[looks])] * 2
        return ids(run(tracker, frames)[-1])

    assert reappears(hidden=4, looks=1) == [1]
    assert reappears(hidden=5, looks=1) == [2]
    assert reappears(hidden=15, looks=0) == [1]


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
        # The score scales the overlap of all stages but that of the low scores: IoU 0.569 and 0.538 times 0.9.
        ({"iou_thresh": 0.5, "fuse_score": True}, 5, 0.9, 11, 12),
        ({"iou_thresh": 0.5, "fuse_score": True}, 5, 0.6, 3, 4),
        ({"confirm_first_frame": False, "tentative_iou_thresh": 0.5, "fuse_score": True}, 1, 0.9, 11, 12),
        ({"fuse_score": True}, 5, 0.3, 13, 14),
        # Boxes grown to a width of 64 by their share, or to 80 by their area: (64 - d) / (64 + d), (80 - d) / (80 + d).
        ({"iou_thresh": 0.5, "iou_buffer": 0.3}, 5, 0.9, 21, 22),
        ({"iou_buffer": 0.3}, 5, 0.3, 21, 22),
        ({"confirm_first_frame": False, "tentative_iou_thresh": 0.5, "iou_buffer": 0.3}, 1, 0.9, 21, 22),
        ({"iou_thresh": 0.5, "small_box": 2 * np.sqrt(40 * 100)}, 5, 0.9, 26, 27),
        ({"iou_thresh": 0.5, "small_box": 63}, 5, 0.9, 13, 14),  # the box is larger
        # A direction chooses among what is within reach, and nothing else.
        ({"iou_thresh": 0.5, "direction_weight": 2.0}, 5, 0.9, 13, 14),
    ],
)
def test_overlap_needed_by_each_stage(settings, before, score, matched, unmatched):
    for step, expected in ((matched, [1]), (unmatched, [])):
        tracker = Tracker(plain(**settings))
        assert ids(run(tracker, [standing(0)] * before + [standing(step, score=score)])[-1]) == expected


def test_a_wider_limit_for_low_scores_is_for_those_only():
    config = plain(iou_thresh=0.3, low_score_iou_thresh=0.5)
    results = run(Tracker(config), [standing(0, 300)] * 5 + [standing(8, 308, score=[0.9, 0.3])])  # IoU 0.667
    assert ids(results[-1]) == [2]


# --- direction


def chosen(way, candidates, frame_rate=30, **settings):
    """Which of the candidate boxes continues the track of a person 40 wide and 100 high seen at these centres."""
    tracker = Tracker(plain(output="detection", **settings), frame_rate)

    def at(places):
        return boxes(*([x - 20, y - 50, x + 20, y + 50] for x, y in places))

    run(tracker, [at([place]) for place in way])
    result = tracker.update(at(candidates))
    assert ids(result) == [1]
    return int(np.abs(result.xyxy[0, :2] - (np.array(candidates) - (20, 50))).sum(axis=1).argmin())


def test_direction_chooses_between_boxes_within_reach():
    """Expected at 60, a person is nearer to the box behind, which overlaps by 0.538, than to that ahead, by 0.481."""
    way = [(2.0 * k, 100.0) for k in range(30)]
    candidates = [(60 - 12.0, 100.0), (60 + 14.0, 100.0)]
    assert chosen(way, candidates, direction_weight=0) == 0
    assert chosen(way, candidates, direction_weight=0.02) == 0
    assert chosen(way, candidates, direction_weight=0.15) == 1
    # Nor does the way back become cheaper by walking the other way.
    assert chosen(way[::-1], [(-2 + 12.0, 100.0), (-2 - 14.0, 100.0)], direction_weight=0.15) == 1


def test_a_step_back_is_as_far_within_reach_as_one_ahead():
    """Walking on, a person is expected at 60; the limit of the overlap is 13.3 px to either side."""
    for left, expected in ((60 + 12.5, [1]), (60 - 12.5, [1]), (60 + 14.5, []), (60 - 14.5, [])):
        tracker = Tracker(plain(iou_thresh=0.5, direction_weight=2.0))
        run(tracker, [standing(2 * k) for k in range(30)])
        assert ids(tracker.update(standing(left))) == expected


def test_a_low_score_says_less_about_the_direction():
    way = [(2.0 * k, 100.0) for k in range(30)]
    # The step ahead is dearer by 0.057; 0.15 · score is more at 0.9, and less at 0.3.
    tracker = Tracker(plain(score_thresh=0.2, low_score_thresh=None))
    run(tracker, [standing(x - 20) for x, _ in way])
    result = tracker.update(standing(60 - 12 - 20, 60 + 14 - 20, score=0.3))
    assert result.xyxy[0, 0] == 28


def test_direction_is_taken_over_the_seconds_asked_for():
    """To the right for eight frames, then down for three: the last way is down, the whole one to the right."""
    way = [(4.0 * k, 100.0) for k in range(9)] + [(32.0, 104.0), (32.0, 108.0), (32.0, 112.0)]
    candidates = [(32.0, 134.0), (42.0, 116.0)]  # further down, or further to the right
    assert chosen(way, candidates, 10, direction_weight=1.0, direction_seconds=0.1) == 0
    assert chosen(way, candidates, 10, direction_weight=1.0, direction_seconds=1.1) == 1
    # The same number of frames at another rate.
    assert chosen(way, candidates, 30, direction_weight=1.0, direction_seconds=0.1) == 0
    assert chosen(way, candidates, 30, direction_weight=1.0, direction_seconds=11 / 30) == 1


def test_two_who_cross_without_looks_go_on_as_they_came():
    """Both are hidden while they pass each other, and seen again at places the other one might have come to."""
    tracker = Tracker(plain(direction_weight=0.15))
    for k in range(60):
        left, right = 4.0 * k, 236.0 - 4.0 * k
        result = tracker.update(NOBODY if abs(left - right) < 24 else standing(left, right))
    assert ids(result) == [1, 2]
    assert result.xyxy[:, 0].tolist() == [236, 0]


# --- the last box


def test_who_stopped_out_of_sight_is_found_by_the_last_box():
    """Walking 10 px a frame, a person hides, and stands; the prediction has walked on by more than a width."""
    hidden = [standing(10 * k) for k in range(12)] + [NOBODY] * 5

    def found(left, **settings):
        return ids(run(Tracker(plain(iou_thresh=0.5, **settings)), [*hidden, standing(left)])[-1])

    assert found(110) == []
    assert found(110, recover_by_last_box=True) == [1]
    assert found(110 - 13, recover_by_last_box=True) == [1]  # IoU 0.509
    assert found(110 - 14, recover_by_last_box=True) == []  # IoU 0.481
    assert found(110 - 14, recover_by_last_box=True, iou_buffer=0.3) == [1]
    assert found(170, recover_by_last_box=True) == [1]  # the prediction counts as before


def test_the_last_box_is_no_way_around_the_time_limit():
    config = plain(recover_by_last_box=True, iou_rematch_seconds=0.1, duplicate_thresh=None)
    hidden = [standing(10 * k, looks=[0]) for k in range(12)] + [NOBODY] * 5
    assert ids(run(Tracker(config), [*hidden, standing(110, looks=[1])])[-1]) == []


# --- looks in the stage of position


def swapped(first=0.0, **settings):
    """Whether two people, at 0 and 30, who look like each other's next box, at 12 and 18, follow their looks."""
    people = standing(0, 30, looks=(0, 1))
    step = standing(12, 18, looks=(1, 0))
    if first:  # the box at 18 looks like the first person, but not quite
        step = Detections(step.xyxy, step.scores, np.concatenate([step.embeddings[:1], look(first)]))
    result = run(Tracker(plain(**settings)), [people] * 5 + [step])[-1]
    assert ids(result) == [1, 2]
    return result.xyxy[:, 0].tolist() == [18, 12]


def test_how_looks_take_part():
    """The near pairs overlap by 0.538, a cost of 0.462, the swapped ones by 0.379, a cost of 0.621."""
    assert swapped(appearance="gated")
    assert not swapped(appearance="none")
    assert not swapped(appearance="minimum", proximity_thresh=0.62)
    assert swapped(appearance="minimum", proximity_thresh=0.63)
    assert swapped(appearance="minimum", proximity_thresh=0.63, fuse_score=True)  # near is near at any score


def test_the_smaller_of_both_costs_decides():
    """The straight pairs cost 0.924 in sum, by overlap. The pair 1-18 costs half its cosine distance, 2-12 nothing."""
    settings = {"appearance": "minimum", "proximity_thresh": 0.7, "direction_weight": 0}
    assert swapped(first=0.9, embedding_thresh=0.5, **settings)  # 0.45 + 0
    assert swapped(first=0.48, embedding_thresh=0.25, **settings)
    # Above the limit the swapped pair costs its overlap's 0.621, less in sum than 0.924 all the same; not so if
    # the other costs its overlap's, too.
    assert swapped(first=0.52, embedding_thresh=0.25, **settings)
    neither = np.concatenate([np.roll(look(0.52), 1), look(0.52)])
    step = Detections(standing(12, 18).xyxy, [0.9, 0.9], neither)
    tracker = Tracker(plain(embedding_thresh=0.25, **settings))
    result = run(tracker, [standing(0, 30, looks=(0, 1))] * 5 + [step])[-1]
    assert result.xyxy[:, 0].tolist() == [12, 18]


@pytest.mark.parametrize(("distance", "expected"), [(0.48, [1]), (0.52, [])])
def test_for_minimum_the_limit_is_half_a_cosine_distance(distance, expected):
    """Overlap alone, 0.481, does not reach."""
    config = plain(appearance="minimum", embedding_thresh=0.25, iou_thresh=0.5, proximity_thresh=0.6)
    moved = Detections(standing(14).xyxy, [0.9], look(distance))
    assert ids(run(Tracker(config), [standing(0, looks=[0])] * 5 + [moved])[-1]) == expected


def test_looks_of_nobody_and_looks_that_tell_less_than_the_overlap_do_not_count():
    config = plain(appearance="minimum", embedding_thresh=1.0, proximity_thresh=0.9, iou_thresh=0.6)
    assert ids(run(Tracker(config), [standing(0)] * 5 + [standing(20, looks=[0])])[-1]) == []  # IoU 0.333
    assert ids(run(Tracker(config), [standing(0, looks=[1])] * 5 + [standing(20, looks=[0])])[-1]) == [1]  # 0.5
    config = plain(appearance="minimum", embedding_thresh=1.0, iou_thresh=0.1)
    other = Detections(standing(0).xyxy, [0.9], look(0.4))  # costs 0.2 by looks, and nothing by overlap
    assert ids(run(Tracker(config), [standing(0, looks=[0])] * 5 + [other])[-1]) == [1]


def test_looks_do_not_let_in_what_is_far():
    config = plain(appearance="minimum", iou_thresh=0.5, proximity_thresh=0.5)
    assert ids(run(Tracker(config), [standing(0, looks=[0])] * 5 + [standing(14, looks=[0])])[-1]) == []


@pytest.mark.parametrize("appearance", ["none", "minimum"])
def test_without_a_stage_of_looks_position_finds_people_as_long_as_they_are_kept(appearance):
    config = plain(appearance=appearance, iou_rematch_seconds=0.1, track_buffer=2.0)
    frames = [standing(0, looks=[0])] * 3 + [NOBODY] * 20 + [standing(0, looks=[1])]
    assert ids(run(Tracker(config, 10), frames)[-1]) == [1]


def test_appearance_none_is_as_if_there_were_no_embeddings():
    config = plain(appearance="none", direction_weight=0)
    one, other = Tracker(config), Tracker(config)
    for found in crowd(100, life=50):
        a, b = one.update(found), other.update(Detections(found.xyxy, found.scores))
        assert ids(a) == ids(b)
        np.testing.assert_array_equal(a.xyxy, b.xyxy)


# --- looks that stand out


@pytest.mark.parametrize("appearance", ["gated", "minimum"])
def test_looks_that_stand_out_reach_farther(appearance):
    """A similarity of 0.6 to one box and 0 to the other: its lead, up to the margin, adds half of itself to it.

    Costs are 0.4 without, 0.34 with a margin of 0.2 and 0.25 with 0.5.
    """

    def found(margin, alone=False):
        limit = 0.3 if appearance == "gated" else 0.15  # half a cosine distance
        config = plain(
            appearance=appearance,
            embedding_thresh=limit,
            stand_out_margin=margin,
            iou_rematch_seconds=0,
            iou_thresh=0.2,  # the box at 5 overlaps by 0.778
            proximity_thresh=0.9,
        )
        tracker = Tracker(config)
        run(tracker, [standing(0, looks=[0])] * 5 + [NOBODY])
        found = Detections(standing(5, 300).xyxy, [0.9, 0.9], np.concatenate([look(0.4), np.eye(8)[2:3]]))
        return ids(tracker.update(found[:1] if alone else found)) == [1]

    assert [found(margin) for margin in (0.0, 0.2, 0.5)] == [False, False, True]
    assert not found(0.5, alone=True)  # nobody to stand out from


# --- the smoothed embedding


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_is_the_share_kept(momentum):
    tracker = Tracker(plain(embedding_momentum=momentum))
    result = run(tracker, [standing(0, looks=[0]), standing(0, looks=[1])])[-1]
    expected = np.array([momentum, 1 - momentum]) / np.hypot(momentum, 1 - momentum)
    np.testing.assert_allclose(result.embeddings[0, :2], expected, atol=1e-6)


@pytest.mark.parametrize(("score", "share"), [(0.5, 0.0), (0.6, 0.02), (0.75, 0.05), (1.0, 0.1)])
def test_a_low_score_changes_the_embedding_less(score, share):
    """0.1 · (score - 0.5) / (1 - 0.5) of the new one."""
    for aware, expected in ((True, share), (False, 0.1)):
        tracker = Tracker(plain(score_thresh=0.5, score_aware_momentum=aware))
        result = run(tracker, [standing(0, looks=[0]), standing(0, looks=[1], score=score)])[-1]
        mixed = np.array([1 - expected, expected])
        np.testing.assert_allclose(result.embeddings[0, :2], mixed / np.linalg.norm(mixed), atol=1e-6)


def test_the_first_embedding_is_taken_whole_whatever_its_score():
    tracker = Tracker(plain(score_thresh=0.5, score_aware_momentum=True))
    result = run(tracker, [standing(0), standing(0, looks=[1], score=0.5)])[-1]
    np.testing.assert_allclose(result.embeddings, np.eye(8)[1:2], atol=1e-6)
