from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracker.clips import find_square, write_clip, write_images
from tests.tracker.people import plain, standing
from tracker import Tracker
from tracker.config import TrackerConfig
from tracker.sightings import ClearSightings, follow
from tracker.sources import EveryNth, SourceError, open_source
from tracker.types import FrameResult

ALONE = [0, 0, 10, 20]


def result(
    ids: Sequence[int], boxes: Sequence[Sequence[float]], scores: Sequence[float], predicted=None
) -> FrameResult:
    n = len(ids)
    xyxy = np.array(boxes, np.float32).reshape(n, 4)
    guessed = None if predicted is None else np.array(predicted, bool)
    numbers = np.array(ids, np.int64)
    return FrameResult(1, numbers, xyxy, np.array(scores, np.float32), np.zeros(n, np.int64), predicted=guessed)


def clear(sightings: ClearSightings, seconds: float, found, scores, ids, tracked=None, predicted=None):
    """Rows and tracklets of a frame in which the tracked are the detections at some places, or all."""
    xyxy, confidence = np.array(found, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    places = list(range(len(xyxy))) if tracked is None else tracked
    one = result(ids, xyxy[places], confidence[places], predicted)
    rows, tracklets = sightings.of(one, xyxy, confidence, seconds)
    assert rows.dtype == tracklets.dtype == np.int64
    return rows.tolist(), tracklets.tolist()


def test_a_tracklet_ends_where_nobody_was_clear_for_long() -> None:
    sightings = ClearSightings(0.6, 0.5, 0.5)
    assert clear(sightings, 0.0, [ALONE], [0.9], [7]) == ([0], [0])
    assert clear(sightings, 0.5, [ALONE], [0.9], [7]) == ([0], [0])  # exactly as long as it may be
    assert clear(sightings, 0.8, [ALONE], [0.5], [7]) == ([], [])  # doubtful
    assert clear(sightings, 1.1, [ALONE], [0.6], [7]) == ([0], [1])
    assert clear(sightings, 1.2, [], [], []) == ([], [])
    assert clear(sightings, 1.6, [ALONE, [50, 0, 60, 20]], [0.6, 0.9], [7, 9]) == ([0, 1], [1, 2])
    assert clear(sightings, 9.0, [ALONE], [0.9], [9]) == ([0], [3])


def test_times_that_are_sums_of_periods() -> None:
    sightings = ClearSightings(0.6, 0.5, 0.3)
    assert {clear(sightings, i * 0.1 * 3, [ALONE], [0.9], [1])[1][0] for i in range(50)} == {0}


@pytest.mark.parametrize(("width", "expected"), [(4.9, [0]), (5.1, [])])
def test_covered_people_are_not_clear(width: float, expected: list[int]) -> None:
    """By the largest of the others, if that one is anybody; a box does not cover itself, nor does its guess count."""
    over = [0, 0, width, 20]
    sightings = ClearSightings(0.6, 0.5, 0.5)
    assert clear(sightings, 0, [ALONE, over], [0.9, 0.3], [1], tracked=[0])[0] == expected
    assert clear(sightings, 0, [ALONE, over], [0.9, 0.29], [1], tracked=[0])[0] == [0]
    assert clear(sightings, 0, [ALONE, [0, 0, 3, 20], [7, 0, 10, 20]], [0.9] * 3, [1], tracked=[0])[0] == [0]
    assert clear(sightings, 0, [ALONE], [0.9], [1], predicted=[True])[0] == []


def test_rows_are_those_of_the_detections() -> None:
    boxes = [[100 * i, 0, 100 * i + 10, 20] for i in range(4)]
    sightings = ClearSightings(0.6, 0.5, 0.5)
    assert clear(sightings, 0, boxes, [0.9, 0.8, 0.7, 0.95], [5, 2], tracked=[3, 1]) == ([3, 1], [0, 1])
    assert clear(sightings, 0.1, boxes, [0.9, 0.8, 0.7, 0.95], [2, 5], tracked=[1, 3]) == ([1, 3], [1, 0])
    # A box that is no detection's, as of a tracker that smooths, is nobody's.
    assert sightings.of(result([5], [[1, 1, 2, 2]], [0.9]), np.array(boxes, np.float32), np.ones(4), 0.2)[0].size == 0


def squares(frames: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    found = find_square(frames)
    return [
        {"boxes": one.xyxy, "scores": one.scores, "sum": np.array(frame.sum())}
        for frame, one in zip(frames, found, strict=True)
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_everything_detected_comes_with_its_frame(tmp_path: Path, workers: int) -> None:
    numbers = []

    def collect(frame, found, one) -> None:
        numbers.append(one.frame)
        assert found["sum"] == frame.sum()
        if len(one):
            assert (one.xyxy[0] == found["boxes"][0]).all()

    source = open_source(write_clip(tmp_path / "walk.mp4", 30))
    seen = follow(source, squares, TrackerConfig(), collect, workers=workers)
    assert numbers == list(range(1, 31))
    assert (seen.frames, seen.frame_rate, seen.ids, seen.broken) == (30, 25, 1, None)
    again = follow(open_source(tmp_path / "walk.mp4"), squares, TrackerConfig())
    assert again.detections == seen.detections
    moved = follow(
        open_source(tmp_path / "walk.mp4"), lambda frames: squares([f[::-1] for f in frames]), TrackerConfig()
    )
    assert moved.detections != seen.detections


def test_footage_that_breaks_off_has_been_seen_up_to_there(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "cut.mp4", 60, movflags="faststart")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    seen = follow(EveryNth(open_source(clip), 2), squares, TrackerConfig())
    assert 5 < seen.frames < 30
    assert seen.ids == 1
    assert seen.broken is not None
    assert seen.broken.startswith(f"{clip}: stopped at frame ")

    class Nothing(EveryNth):
        def __iter__(self):
            raise SourceError("nothing at all")

    with pytest.raises(SourceError, match="nothing at all"):
        follow(Nothing(open_source(write_images(tmp_path / "images", 2)), 1), squares, TrackerConfig())


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, st.sampled_from([0.1, 0.3, 0.7, 0.9])),
        max_size=7,
        unique=True,
    ),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)
def test_cover_by_a_loop(boxes: list[tuple[float, ...]], most: float) -> None:
    wanted = []
    for i, (x, y, w, h, score) in enumerate(boxes):
        covers = [0.0]
        for j, (x2, y2, w2, h2, other) in enumerate(boxes):
            if i != j and np.float32(other) >= 0.3:
                common = max(min(x + w, x2 + w2) - max(x, x2), 0) * max(min(y + h, y2 + h2) - max(y, y2), 0)
                covers.append(common / (w * h))
        if score >= 0.5 and max(covers) <= most:
            wanted.append(i)
    found, scores = [[x, y, x + w, y + h] for x, y, w, h, _ in boxes], [box[4] for box in boxes]
    rows, tracklets = clear(ClearSightings(0.5, most, 0.5), 0, found, scores, list(range(1, len(boxes) + 1)))
    assert rows == wanted
    assert tracklets == list(range(len(rows)))


def test_cover_is_a_share_of_the_own_box() -> None:
    """A child before a grown-up is inside the other box, of which it covers little."""
    boxes = [[0, 0, 100, 200], [10, 150, 30, 200]]
    assert clear(ClearSightings(0.6, 0.5, 0.5), 0, boxes, [0.9, 0.9], [1, 2])[0] == [0]


def test_one_box_with_two_scores() -> None:
    """As of two classes: the row is that of the score."""
    sightings = ClearSightings(0.6, 1.0, 0.5)
    assert clear(sightings, 0, [ALONE] * 2, [0.7, 0.9], [4], tracked=[1])[0] == [1]


@pytest.mark.parametrize(
    ("boxes", "scores", "predicted"),
    [
        pytest.param([ALONE], [0.5], None, id="doubtful"),
        pytest.param([ALONE, [1, 0, 11, 20]], [0.9, 0.9], None, id="behind another"),
        pytest.param([ALONE], [0.9], [True], id="guessed"),
    ],
)
def test_somebody_else_may_take_a_track_over(boxes, scores, predicted) -> None:
    """While nobody is clear its number may go to another person; a third one keeps the tracklet meanwhile."""
    sightings, third = ClearSightings(0.6, 0.5, 0.5), [50, 0, 60, 20]
    assert clear(sightings, 0.0, [ALONE, third], [0.9, 0.9], [1, 3]) == ([0, 1], [0, 1])
    for i in range(1, 8):
        guessed = None if predicted is None else [*predicted, False]
        last = len(boxes)
        found = clear(sightings, i / 10, [*boxes, third], [*scores, 0.9], [1, 3], tracked=[0, last], predicted=guessed)
        assert found == ([last], [1])
    for seconds in (0.8, 0.9):
        assert clear(sightings, seconds, [ALONE, third], [0.9, 0.9], [1, 3]) == ([0, 1], [2, 1])


def test_two_people_cross() -> None:
    """The tracker's boxes are found again among the detections; each person has a tracklet before and one after."""
    tracker, sightings, rng = Tracker(plain(), 10), ClearSightings(0.6, 0.3, 0.2), np.random.default_rng(0)
    owners: dict[int, set[int]] = {}
    counts = []
    for i in range(30):
        order = rng.permutation(2)
        found = standing(*np.array([10 * i, 290 - 10 * i])[order], looks=order, score=np.array([0.9, 0.85])[order])
        rows, tracklets = sightings.of(tracker.update(found), found.xyxy, found.scores, i / 10)
        counts.append(len(rows))
        for row, tracklet in zip(rows.tolist(), tracklets.tolist(), strict=True):
            owners.setdefault(tracklet, set()).add(int(order[row]))
    assert sorted(owners) == [0, 1, 2, 3]
    assert all(len(people) == 1 for people in owners.values())
    assert counts[:13] == [2] * 13
    assert 0 in counts


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 4), (2, 3)])
def test_frames_detected_together(tmp_path: Path, workers: int, batch_size: int) -> None:
    """Blended boxes would not be those of the detections: whatever the configuration says, these are reported."""
    sizes, collected = [], []

    def detect(frames):
        sizes.append(len(frames))
        return squares(frames)

    def collect(frame, found, one) -> None:
        collected.append(one.frame)
        assert found["sum"] == frame.sum()
        assert (one.xyxy == found["boxes"]).all()

    source = EveryNth(open_source(write_clip(tmp_path / "walk.mp4", 20)), 3)
    config = plain(output="blended")
    seen = follow(source, detect, config, collect, workers=workers, batch_size=batch_size)
    assert collected == list(range(1, 8))
    assert (sum(sizes), seen.frames, seen.frame_rate) == (7, 7, pytest.approx(25 / 3))
    assert max(sizes) <= batch_size


def test_a_detector_that_forgets_a_frame(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        follow(open_source(write_images(tmp_path / "images", 3)), lambda frames: [], plain())
