"""People, dogs and cars in one video."""

import numpy as np
import pytest

from tests.tracker.people import NOBODY, ids, plain, run, standing
from tracker import Detections, Tracker


def test_classes_are_kept_apart():
    box = standing(0)
    cat, dog = (Detections(box.xyxy, box.scores, None, [label]) for label in (3, 4))
    results = run(Tracker(plain()), [cat, cat, dog, dog])
    assert [ids(result) for result in results] == [[1], [1], [], [2]]
    assert results[0].classes.tolist() == [3] and results[-1].classes.tolist() == [4]
    cat, dog = (Detections(box.xyxy, box.scores, np.eye(1, 8), [label]) for label in (3, 4))
    assert [ids(result) for result in run(Tracker(plain()), [cat, cat, dog, dog])] == [[1], [1], [], [2]]


@pytest.mark.parametrize(
    "settings",
    [{"recover_by_last_box": True}, {"appearance": "minimum"}, {"appearance": "none"}, {"fuse_score": True}],
)
@pytest.mark.parametrize("score", [0.9, 0.3])
def test_no_stage_takes_another_class(settings, score):
    cat = standing(0, looks=[0], classes=[3])
    dog = standing(0, looks=[0], classes=[4], score=score)
    assert ids(run(Tracker(plain(**settings)), [cat, cat, dog])[-1]) == []
    tentative = plain(confirm_first_frame=False, **settings)
    assert ids(run(Tracker(tentative), [cat, dog])[-1]) == []


def labelled(*classes, score=0.9):
    """One detection after another in the same place."""
    return [standing(0, classes=[label], score=score) for label in classes]


def test_a_class_that_flips_costs_no_identity_and_the_majority_names_it():
    config = plain(classes="vote")
    results = run(Tracker(config), labelled(1, 2, 2, 1, 1, 3))
    assert all(ids(result) == [1] for result in results)
    # A tie goes to the lower class: 1, 2 after the first two frames, then 2 leads, ...
    assert [result.classes.tolist() for result in results] == [[1], [1], [2], [1], [1], [1]]


def test_votes_weigh_their_score():
    config = plain(classes="vote")
    frames = [*labelled(7, score=0.9), *labelled(3, 3, score=0.7)]
    assert [result.classes.tolist() for result in run(Tracker(config), frames)] == [[7], [7], [3]]
    # Low scores vote, too, by little.
    config = plain(classes="vote", low_score_thresh=0.1)
    frames = [*labelled(7, score=0.9), *labelled(3, 3, 3, 3, score=0.25)]
    assert [result.classes.tolist() for result in run(Tracker(config), frames)] == [[7]] * 4 + [[3]]


def test_votes_are_counted_class_by_class_whenever_a_class_appears():
    """Against a dictionary of sums; new classes come below, between and above those known."""
    rng = np.random.default_rng(0)
    tracker = Tracker(plain(classes="vote", score_thresh=0.5, low_score_thresh=None, sure_thresh=0))
    known = [5]
    votes = [{}, {}, {}]
    for frame in range(200):
        if frame % 25 == 24:
            known.append([-3, 9, 7, 2**40, 0, 6, 8, -(2**40)][frame // 25])
        labels = rng.choice(known, 3)
        scores = rng.uniform(0.6, 1, 3).astype(np.float32)
        result = tracker.update(standing(0, 100, 200, classes=labels, score=scores))
        for sums, label, score in zip(votes, labels, scores, strict=True):
            sums[label] = sums.get(label, 0) + score
        assert ids(result) == [1, 2, 3]
        assert result.classes.tolist() == [max(sums, key=sums.get) for sums in votes]


def test_newcomers_vote_for_themselves_alone():
    tracker = Tracker(plain(classes="vote"))
    run(tracker, [standing(0, classes=[4])] * 5)
    result = run(tracker, [standing(0, 300, classes=[4, 2])] * 2)[-1]
    assert ids(result) == [1, 2] and result.classes.tolist() == [4, 2]


def test_separate_classes_in_one_place_are_separate_people():
    both = Detections(np.repeat(standing(0).xyxy, 2, axis=0), [0.9, 0.9], None, [1, 2])
    results = run(Tracker(plain()), [both] * 5)
    assert all(ids(result) == [1, 2] for result in results)
    assert results[-1].classes.tolist() == [1, 2]
    swapped = [both, both[np.array([1, 0])]] * 4
    assert all(result.classes.tolist() == [1, 2] for result in run(Tracker(plain()), swapped))


def test_class_votes_survive_an_occlusion_and_a_reset_forgets_them():
    tracker = Tracker(plain(classes="vote"))
    results = run(tracker, [*labelled(1, 1, 1), NOBODY, *labelled(2, 2)])
    assert ids(results[-1]) == [1] and results[-1].classes.tolist() == [1]
    tracker.reset()
    assert tracker.update(standing(0, classes=[2])).classes.tolist() == [2]


def test_a_track_that_takes_over_another_takes_over_its_votes():
    """Unknown by looks and found again with them, a person starts anew, and is merged with who was lost there."""
    config = plain(classes="vote", iou_rematch_seconds=0, duplicate_thresh=0.15)
    frames = [standing(0, classes=[1], score=0.9)] * 3 + [NOBODY]
    frames += [standing(0, classes=[2], score=0.95, looks=[0])] * 3
    results = run(Tracker(config), frames)
    assert [ids(result) for result in results[3:]] == [[], [], [1], [1]]
    assert results[-1].classes.tolist() == [2]  # 3 · 0.95 are more than 3 · 0.9
