"""What the tracker does with people who appear and leave, and what it reports."""

import gc

import motmetrics
import numpy as np
import psutil
import pytest

from configs import load_config
from tests.tracker.people import NOBODY, boxes, crowd, ids, look, plain, run, standing
from tracker import Detections, Tracker, TrackerConfig
from tracker.boxes import iou, tlwh_to_xyxy

# The published association, as it ships.
JDE = load_config("tracker_jde", (), {"tracker": TrackerConfig})["tracker"]


# --- birth, confirmation, numbering


def test_first_frame_is_reported_at_once():
    assert ids(Tracker(plain()).update(standing(0, 200))) == [1, 2]
    late = run(Tracker(plain()), [NOBODY, NOBODY, standing(0)])
    assert [ids(result) for result in late] == [[], [], [1]]


def test_first_frame_may_wait_for_confirmation():
    results = run(Tracker(plain(confirm_first_frame=False)), [standing(0), standing(0)])
    assert [ids(result) for result in results] == [[], [1]]


@pytest.mark.parametrize("confirm_frames", [1, 2, 4])
def test_newcomer_is_confirmed_after_consecutive_matches(confirm_frames):
    tracker = Tracker(plain(confirm_frames=confirm_frames))
    results = run(tracker, [standing(0)] + [standing(0, 300)] * 5)
    first_seen = next(result.frame for result in results if 2 in ids(result))
    assert first_seen == 1 + confirm_frames


def test_interrupted_newcomer_is_dropped_and_takes_no_id():
    tracker = Tracker(plain())
    # Flashes of one frame at changing places, then a real newcomer.
    frames = [standing(0)] + [standing(0, 300 + 100 * k) if k % 2 else standing(0) for k in range(6)]
    assert all(ids(result) == [1] for result in run(tracker, frames))
    assert ids(run(tracker, [standing(0, 900)] * 2)[-1]) == [1, 2]


def test_ids_count_from_one_without_gaps():
    rng = np.random.default_rng(0)
    tracker, seen = Tracker(plain(track_buffer=1.0), frame_rate=5), []
    for _ in range(400):
        people = rng.choice(40, size=rng.integers(0, 12), replace=False)
        for track_id in ids(tracker.update(standing(*(people * 100.0), looks=people % 8))):
            if track_id not in seen:
                seen.append(track_id)
    assert len(seen) > 50
    assert seen == list(range(1, len(seen) + 1))


def test_trackers_are_independent_and_reset_restarts():
    config = plain(output="filtered")  # shows what is left of the filter's state
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
    results = run(Tracker(plain()), [NOBODY, standing(0), NOBODY])
    assert [result.frame for result in results] == [1, 2, 3]
    assert [ids(result) for result in results] == [[], [1], []]
    assert results[0].xyxy.shape == (0, 4)


def test_score_exactly_at_a_threshold_counts():
    for thresh in (0.3, 0.5, 0.6):
        config = plain(score_thresh=thresh, low_score_thresh=None, birth_thresh=thresh, sure_thresh=0)
        at, below = standing(0, score=thresh), standing(0, score=np.nextafter(np.float32(thresh), np.float32(0)))
        assert ids(Tracker(config).update(at)) == [1]
        assert ids(Tracker(config).update(below)) == []
        assert ids(run(Tracker(config), [at, at])[-1]) == [1]


def test_birth_threshold():
    config = plain(score_thresh=0.4, low_score_thresh=None, birth_thresh=0.6, sure_thresh=0)
    assert all(len(result) == 0 for result in run(Tracker(config), [standing(0, score=0.5)] * 3))
    assert ids(Tracker(config).update(standing(0, score=0.6))) == [1]
    assert ids(run(Tracker(config), [standing(0), standing(0, score=0.5)])[-1]) == [1]


def test_birth_threshold_below_the_score_threshold_is_that_one():
    config = plain(score_thresh=0.6, birth_thresh=0.3, sure_thresh=0)
    assert all(len(result) == 0 for result in run(Tracker(config), [standing(0, score=0.59)] * 3))
    assert ids(Tracker(config).update(standing(0, score=0.6))) == [1]


@pytest.mark.parametrize("z", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("wider", [True, False])
def test_shapes_unlike_a_person_need_a_higher_score_to_start(z, wider):
    """The score is multiplied by exp(-z²/2), z = log(width / height / 0.41) / shape_std."""
    settings = {"score_thresh": 0.1, "birth_thresh": 0.12, "sure_thresh": 0}
    aspect = 0.41 * np.exp(0.5 * z if wider else -0.5 * z)
    needed = 0.12 / np.exp(-(z**2) / 2)
    for score, expected in ((needed * 1.001, [1]), (needed * 0.999, [])):
        box = boxes([0, 0, 100 * aspect, 100], score=score)
        assert ids(Tracker(plain(shape_std=0.5, **settings)).update(box)) == expected
    assert ids(Tracker(plain(shape_std=None, **settings)).update(box)) == ([1] if z else [])


def test_a_known_person_takes_any_shape():
    tracker = Tracker(plain(shape_std=0.2))
    frames = [boxes([0, 0, 41, 100])] * 2 + [boxes([0, 0, 41 + 10 * k, 100 - 6 * k], score=0.8) for k in range(10)]
    assert all(ids(result) == [1] for result in run(tracker, frames))
    assert ids(run(Tracker(plain(shape_std=0.2)), frames[-1:] * 3)[-1]) == []


# --- sure or moving


@pytest.mark.parametrize("settings", [{}, {"confirm_frames": 1}, {"confirm_first_frame": False}])
def test_what_scores_in_the_middle_and_stays_is_never_reported(settings):
    rng = np.random.default_rng(0)
    tracker = Tracker(plain(**settings))
    for _ in range(60):  # its detection trembles, by less than 0.3 of its width of 40
        assert ids(tracker.update(standing(rng.uniform(0, 11), score=rng.uniform(0.6, 0.74)))) == []
    assert len(tracker._tracks) == 1
    # It took no id either.
    assert ids(run(tracker, [standing(0, 300, score=[0.7, 0.9])] * 2)[-1]) == [1]


def test_what_scores_in_the_middle_is_reported_once_it_has_moved_far_enough():
    def reported(*frames, **settings):
        return [ids(result) for result in run(Tracker(plain(**{"min_motion": 0.5} | settings)), frames)]

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
        tracker = Tracker(plain())
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
    results = run(Tracker(plain()), frames)
    assert [ids(result) for result in results] == [[], [], [1], [1], [1, 2], [1, 2, 3]]
    assert results[-1].xyxy[:, 0].tolist() == [300, 0, 600]
    assert results[-1].scores.tolist() == pytest.approx([0.9, 0.8, 0.9])


# --- duplicates


def test_lost_track_takes_over_the_younger_one_found_in_its_place():
    """Known without an embedding and found again with one, a person matches nothing at first and starts a new track."""
    config = plain(iou_rematch_seconds=0)
    frames = [standing(0)] * 10 + [NOBODY] + [standing(0, looks=[0])] * 4
    assert [ids(result) for result in run(Tracker(config), frames)[10:]] == [[], [], [1], [1], [1]]
    # The younger track took no id: the next newcomer is number 2.
    tracker = Tracker(config)
    run(tracker, frames)
    assert ids(run(tracker, [standing(0, 300, looks=(0, 1))] * 2)[-1]) == [1, 2]
    apart = run(Tracker(plain(iou_rematch_seconds=0, duplicate_thresh=None)), frames)
    assert [ids(result) for result in apart[10:]] == [[], [], [2], [2], [2]]


def behind_a_passer_by(looks=None, labels=None, **settings):
    """Ids in the end, when person 2 stands at 300, hidden while person 1 passes in front; [1, 3] after a merge."""
    tracker = Tracker(plain(**settings))
    for k in range(110):
        passer = 5.0 * k
        found = standing(passer, 300, looks=looks, classes=labels)
        hidden = k < 3 or abs(passer - 300) < 20
        result = tracker.update(found[:1] if hidden else found)
    assert result.xyxy[0, 0] == pytest.approx(545, abs=5) and result.xyxy[1, 0] == pytest.approx(300, abs=5)
    return ids(result)


@pytest.mark.parametrize(
    ("looks", "settings", "merged"),
    [
        (None, {}, True),
        (None, {"duplicate_thresh": None}, False),
        ((0, 1), {}, False),
        ((0, 0), {}, True),
        ((0, 1), {"appearance": "minimum", "embedding_thresh": 0.4}, False),
        ((0, 1), {"appearance": "none"}, True),
    ],
)
def test_younger_lost_track_under_a_passer_by_is_a_duplicate_unless_it_looks_different(looks, settings, merged):
    assert behind_a_passer_by(looks, **settings) == ([1, 3] if merged else [1, 2])


@pytest.mark.parametrize("appearance", ["gated", "minimum"])
@pytest.mark.parametrize(("side", "merged"), [(0.9, True), (1.1, False)])
def test_looks_of_duplicates_are_compared_as_those_of_matches(appearance, side, merged):
    """The limit is a cosine distance of 0.3, or half of it, in both."""
    tracker = Tracker(plain(appearance=appearance, embedding_thresh=0.3 if appearance == "gated" else 0.15))
    other = look(0.3 * side)
    for k in range(110):
        found = Detections(standing(5.0 * k, 300).xyxy, [0.9, 0.9], np.concatenate([np.eye(1, 8), other]))
        result = tracker.update(found[:1] if k < 3 or abs(5.0 * k - 300) < 20 else found)
    assert ids(result) == ([1, 3] if merged else [1, 2])


def test_duplicates_of_other_classes_are_merged_where_classes_do_not_hinder():
    assert behind_a_passer_by(labels=(0, 1)) == [1, 2]
    assert behind_a_passer_by(labels=(0, 1), classes="vote") == [1, 3]


# --- what is reported


def test_boxes_beyond_the_image_and_wide_boxes_are_kept_as_they_are():
    xyxy = np.array(
        [[-70.0, -20.5, 30.25, 150.0], [500.0, 300.0, 1500.0, 400.0], [3000.0, 10, 9000, 20000]], np.float32
    )
    scores = np.full(3, 0.9, np.float32)
    for output in ("detection", "filtered"):
        results = run(Tracker(plain(output=output)), [Detections(xyxy, scores)] * 4)
        np.testing.assert_allclose(results[-1].xyxy, xyxy, rtol=1e-5, atol=1e-3)


def test_which_box_is_reported():
    frames = [standing(0), standing(10, top=104)]
    raw, filtered, blended = (
        run(Tracker(plain(output=output)), frames)[-1].xyxy for output in ("detection", "filtered", "blended")
    )
    np.testing.assert_array_equal(raw, frames[1].xyxy)
    assert 5 < filtered[0, 0] < 10 and 102 < filtered[0, 1] < 104
    np.testing.assert_allclose(blended, 0.6 * raw + 0.4 * filtered, rtol=1e-6)
    assert raw.dtype == filtered.dtype == blended.dtype == np.float32


def test_a_guess_is_the_filters_box_whatever_is_reported():
    results = [
        run(Tracker(plain(output=output, coast_seconds=1.0)), [*[standing(9 * k) for k in range(5)], NOBODY])[-1].xyxy
        for output in ("detection", "filtered", "blended")
    ]
    assert results[0][0, 0] > 36
    np.testing.assert_array_equal(results, [results[0]] * 3)


def test_embeddings_of_the_tracks_are_reported():
    tracker = Tracker(plain(embedding_momentum=0.5, confirm_first_frame=False))
    assert tracker.update(standing(0, 300)).embeddings is None
    assert tracker.update(standing(0, 300)).embeddings is None  # nobody has been described yet
    first, second = standing(0, looks=[3]), standing(300)
    result = tracker.update(first)
    assert ids(result) == [1]
    np.testing.assert_array_equal(result.embeddings, np.eye(8)[[3]])
    result = tracker.update(Detections(np.concatenate([first.xyxy, second.xyxy]), [0.9, 0.9]))
    assert ids(result) == [1, 2]
    np.testing.assert_array_equal(result.embeddings, [np.eye(8)[3], np.zeros(8)])
    result = tracker.update(standing(0, 300, looks=(4, 5)))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(result.embeddings, [[0, 0, 0, half, half, 0, 0, 0], np.eye(8)[5]], atol=1e-6)
    assert result.embeddings.dtype == np.float32
    assert tracker.update(NOBODY).embeddings.shape == (0, 8)


def test_boxes_without_area_are_passed_over():
    xyxy = np.array([[0, 0, 40, 100], [50, 50, 50, 90], [60, 50, 80, 50], [90, 90, 80, 80]], np.float32)
    tracker = Tracker(plain())
    with np.errstate(all="raise"):
        results = run(tracker, [Detections(xyxy, np.full(4, 0.9), np.eye(4))] * 4)
    assert all(ids(result) == [1] for result in results)
    assert np.isfinite(tracker._tracks.mean).all()


def test_the_callers_arrays_stay_as_they_are():
    rng = np.random.default_rng(0)
    xyxy = standing(0, 200).xyxy.copy()
    embeddings = rng.normal(size=(2, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = np.full(2, 0.8, np.float32)
    copies = xyxy.copy(), scores.copy(), embeddings.copy()
    tracker = Tracker(plain())
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


# --- the whole


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
    config = plain(output="filtered")
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
    tracker = Tracker(plain())
    for _ in range(2):
        noisy = corner + rng.normal(0, 1, corner.shape)
        result = tracker.update(
            Detections(tlwh_to_xyxy(np.insert(noisy, [2, 2], [50, 110], axis=1)), np.full(2000, 0.9), looks)
        )
        assert ids(result) == list(range(1, 2001))


def test_state_stays_bounded():
    """6,000 frames of births and deaths: memory stays where it was after the first 1,000, and so do the arrays."""
    tracker, process = Tracker(plain()), psutil.Process()
    scene = list(crowd(500, people=30, life=100))
    most = 0
    for frame in range(6_000):
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
