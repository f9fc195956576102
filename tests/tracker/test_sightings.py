from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.tracker.clips import find_square, write_clip, write_images
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


@pytest.mark.parametrize(("start", "end", "every"), [(None, None, 3), (2, None, 4), (3, 9, 2), (1, 1, 5), (4, 200, 1)])
def test_every_nth_frame(tmp_path: Path, start: int | None, end: int | None, every: int) -> None:
    folder = write_images(tmp_path / "images", 20)
    numbers = list(range(start or 1, min(end or 20, 20) + 1))[::every]
    wanted = list(open_source(folder))
    source = EveryNth(open_source(folder, start, end), every, end)
    assert source.frame_count == len(numbers)
    assert source.frame_rate == 30 / every
    assert source.first_frame == 1
    assert source.size == wanted[0].shape[1::-1]
    frames = list(source)
    source.close()
    assert len(frames) == len(numbers)
    assert all(np.array_equal(frame, wanted[number - 1]) for frame, number in zip(frames, numbers, strict=True))


def test_times_of_every_nth_frame(tmp_path: Path) -> None:
    source = EveryNth(open_source(write_clip(tmp_path / "walk.mp4", 10, rate=20)), 4)
    assert source.frame_rate == 5
    assert [source.timestamp for _ in source] == pytest.approx([0, 0.2, 0.4])
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        EveryNth(open_source(tmp_path / "walk.mp4"), 0)


def test_a_camera_has_no_end_to_learn_from(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path / "images", 2))
    source.live = True
    with pytest.raises(ValueError, match="images: expected a recording, got a live source"):
        EveryNth(source, 2)
