"""Mistakes that home-made evaluations make, each with the right figures, which TrackEval gives too.

Beside each stands what the mistake would give on the same boxes, so that the trap is known to be one.
"""

import pytest

from tests.tracker.test_metrics import assert_equal_figures, official, person, write
from tracker.evaluation import evaluate

DISTRACTOR = 8


@pytest.fixture
def score(tmp_path):
    """Our figures of one sequence, which are TrackEval's."""

    def score(truth, results, frames, name="MOT17-99", benchmark="MOT17"):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        write(root, {name: truth}, {name: results}, frames)
        figures = evaluate(root / "gt", root / "results")  # the benchmark is ours to find out
        assert_equal_figures(figures, official(root, [name], benchmark))
        return figures[name]

    return score


def test_frames_without_a_result_are_missed(score):
    """FairMOT and ByteTrack look at frames that have results: 1.0 for a tenth of the work."""
    truth, results = person(1, range(1, 101)), person(5, range(1, 11))
    figures = score(truth, results, 100)
    assert (figures["MOTA"], figures["CLR_FN"], figures["IDF1"]) == (0.1, 90, 20 / 110)
    seen = {row[0] for row in results}
    assert score([row for row in truth if row[0] in seen], results, 100)["MOTA"] == 1


def test_a_result_that_ends_early_is_missed_to_the_end(score):
    """Frames up to the last one of the result, or of both sides' common ones, would be all."""
    truth = person(1, range(1, 11)) + person(2, range(1, 6), left=300)
    results = person(5, range(1, 7)) + person(6, range(1, 6), left=300)
    figures = score(truth, results, 12)
    assert (figures["CLR_FN"], figures["CLR_Frames"], figures["MOTA"]) == (4, 12, 11 / 15)
    assert score([row for row in truth if row[0] <= 6], results, 12)["MOTA"] == 1


def test_a_result_after_the_last_person_is_false(score):
    """The frames of the ground truth would leave it out."""
    truth, results = person(1, range(1, 5)), person(5, range(1, 9))
    figures = score(truth, results, 8)
    assert (figures["CLR_FP"], figures["MOTA"]) == (4, 0)
    assert score(truth, results[:4], 8)["MOTA"] == 1


def test_tracks_on_people_next_to_distractors_are_kept(score):
    """JDE compares tracks with distractors alone, and takes each out that overlaps one, the person's own too."""
    people = person(1, range(1, 11)) + person(2, range(1, 11), left=300)
    beside = [(frame, identity + 2, left + 20, *rest) for frame, identity, left, *rest in people]
    distractors = [(*row[:7], DISTRACTOR, 1) for row in beside]
    results = [(frame, identity + 10, *rest) for frame, identity, *rest in people]
    figures = score(people + distractors, results, 10)
    assert (figures["MOTA"], figures["CLR_FP"], figures["CLR_FN"]) == (1, 0, 0)
    kept = [row for row in results if all(row[0] != other[0] or overlap(row, other) < 0.5 for other in distractors)]
    assert kept == [] and score(people + distractors, kept, 10)["MOTA"] == 0


def overlap(a, b):
    """Intersection over union of two rows of equal height, side by side."""
    common = max(0, min(a[2] + a[4], b[2] + b[4]) - max(a[2], b[2]))
    return common / (a[4] + b[4] - common)


def test_a_result_on_distractors_alone_is_neither_right_nor_wrong(score):
    """Without the distractors every box is false."""
    people, beside = person(1, range(1, 11)), person(2, range(1, 11), left=300, class_id=DISTRACTOR)
    results = person(5, range(1, 11), left=300)
    figures = score(people + beside, results, 10)
    assert (figures["CLR_TP"], figures["CLR_FP"], figures["CLR_FN"], figures["MOTA"]) == (0, 0, 10, 0)
    assert score(people, results, 10)["MOTA"] == -1


@pytest.mark.parametrize(
    ("name", "benchmark"), [("MOT20-01", "MOT20"), ("MOT16-02", "MOT16"), ("MOT17-02-DPM", "MOT17"), ("hall", "MOT17")]
)
def test_ground_truth_that_does_not_count_is_left_out_whatever_the_path(score, name, benchmark):
    """JDE leaves it out where the path has `MOT16-` or `MOT17-` in it, and counts it elsewhere: 0.5."""
    counted = person(1, range(1, 11))
    ignored = person(2, range(1, 6), left=300, confidence=0) + person(3, range(6, 11), left=600, class_id=9)
    figures = score(counted + ignored, person(5, range(1, 11)), 10, name, benchmark)
    assert (figures["MOTA"], figures["CLR_FN"]) == (1, 0)
    everybody = [(*row[:6], 1, 1, 1) for row in counted + ignored]
    assert score(everybody, person(5, range(1, 11)), 10, name, benchmark)["MOTA"] == 0.5


def test_a_track_on_a_person_who_does_not_count_is_false(score):
    """Only distractors excuse a track; to excuse whatever does not count would give 1.0."""
    counted, ignored = person(1, range(1, 11)), person(2, range(1, 11), left=300, confidence=0)
    results = counted + person(6, range(1, 11), left=300)
    assert score(counted + ignored, results, 10)["CLR_FP"] == 10
    excused = [(*row[:7], DISTRACTOR, 1) for row in ignored]
    assert score(counted + excused, results, 10)["CLR_FP"] == 0
