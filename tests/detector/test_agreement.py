"""Two detectors with known differences: every figure is the one worked out by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detector.agreement import MATCH_IOU, agreement, match_people

FRAME = np.zeros((80, 120, 3), np.uint8)


def people(boxes, scores, embeddings=None):
    found = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "scores": np.array(scores, np.float32)}
    if embeddings is not None:
        found["embeddings"] = np.array(embeddings, np.float32).reshape(len(scores), -1)
    return found


def replay(*answers):
    """A detector that knows what it will be asked."""
    rest = iter(answers)
    return lambda frames: [next(rest) for _ in frames]


def test_figures_by_hand():
    reference = replay(
        people([[10, 10, 30, 60], [50, 10, 70, 60]], [0.9, 0.5], [[1, 0], [0, 1]]),
        people([[0, 0, 10, 20]], [0.7], [[1, 0]]),
    )
    # The first is a pixel to the right, and 60 degrees off; the second was lost, another was made up.
    other = replay(
        people([[80, 20, 95, 60], [11, 10, 31, 60]], [0.25, 0.8], [[1, 0], [0.5, 0.75**0.5]]),
        people([[0, 0, 10, 22]], [0.75], [[1, 0]]),
    )
    found = agreement(reference, other, [FRAME, FRAME])
    assert (found.frames, found.people, found.other_people, found.matched, found.unmatched) == (2, 3, 3, 2, 2)
    assert found.max_unmatched_score == pytest.approx(0.5)
    assert found.max_box_error == pytest.approx(2)
    assert found.mean_box_error == pytest.approx((1 + 1 + 2) / 8)
    assert found.max_score_error == pytest.approx(0.1, abs=1e-6)
    assert found.min_cosine == pytest.approx(0.5)
    assert found.mean_cosine == pytest.approx(0.75)


def test_one_with_itself_agrees():
    answers = [people([[1, 2, 30, 70], [5, 2, 40, 70]], [0.9, 0.8], [[1, 0], [0, 1]])] * 3
    found = agreement(replay(*answers), replay(*answers), itertools.repeat(FRAME, 3))
    assert (found.matched, found.unmatched, found.max_unmatched_score) == (6, 0, None)
    assert found.max_box_error == found.mean_box_error == found.max_score_error == 0
    assert found.min_cosine == found.mean_cosine == 1


def test_what_nobody_tells_is_none():
    nobody, alone = people([], []), people([[0, 0, 10, 10]], [0.6])
    found = agreement(replay(nobody), replay(alone), [FRAME])
    assert (found.people, found.other_people, found.matched, found.unmatched) == (0, 1, 0, 1)
    assert found.max_unmatched_score == pytest.approx(0.6)
    assert found.max_box_error is found.mean_box_error is found.max_score_error is found.min_cosine is None
    # One without an embedding head: boxes are compared all the same.
    found = agreement(replay(alone), replay(alone | {"embeddings": np.ones((1, 1), np.float32)}), [FRAME])
    assert found.matched == 1
    assert found.min_cosine is found.mean_cosine is None


def test_no_frames():
    with pytest.raises(ValueError, match="frames: expected at least one"):
        agreement(replay(), replay(), [])


@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 2), max_size=4), st.lists(st.tuples(*[st.integers(0, 6)] * 2), max_size=4)
)
def test_matching_is_the_best_of_all(left, right):
    boxes, others = (
        np.array([[x, y, x + 8, y + 8] for x, y in corners], np.float32).reshape(-1, 4) for corners in (left, right)
    )
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    rows, columns = match_people(boxes, others)
    assert len(set(rows.tolist())) == len(rows) and len(set(columns.tolist())) == len(columns)
    assert (overlap[rows, columns] >= MATCH_IOU).all()
    # Every way to lay the shorter list on the longer one; pairs below the threshold count nothing.
    worth = np.where(overlap >= MATCH_IOU, overlap, 0)
    worth = worth if len(left) <= len(right) else worth.T
    ways = itertools.permutations(range(worth.shape[1]), len(worth))
    best = max(sum(worth[i, j] for i, j in enumerate(way)) for way in ways)
    assert overlap[rows, columns].sum() == pytest.approx(best)
