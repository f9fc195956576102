import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tracker.clips import SQUARE, find_square, scene, square_left, write_clip, write_images
from tests.tracker.feeds import FakeSource, write_timed_clip
from tracker import camera_motion
from tracker.live import LiveConfig
from tracker.pipeline import Pipeline, track
from tracker.sources import open_source
from tracker.tracker import Tracker, TrackerConfig
from tracker.types import Detections, FrameResult
from tracker.video import SourceError

pytestmark = pytest.mark.usefixtures("no_threads_left")


def test_three_lines(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "in.mp4", 30)
    seen = []
    for frame, result in track(path, find_square):
        seen.append(result.frame)
        assert result.track_ids.tolist() == [1]
        assert abs(result.xyxy[0, 0] - square_left(frame)) < 3
        assert abs(result.xyxy[0, 2] - result.xyxy[0, 0] - SQUARE) < 3
    assert seen == list(range(1, 31))


def test_equals_the_plain_loop(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "in.mp4", 25)
    tracker = Tracker(TrackerConfig(), 25)
    expected = [tracker.update(find_square([frame])[0]) for frame in open_source(path)]
    for workers, batch_size in itertools.product((1, 3), (1, 4)):
        results = [r for _, r in track(path, find_square, workers=workers, batch_size=batch_size)]
        assert len(results) == 25
        for a, b in zip(results, expected, strict=True):
            assert a.frame == b.frame
            assert (a.track_ids == b.track_ids).all()
            assert (a.xyxy == b.xyxy).all()


def test_numbers_are_those_of_the_source(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "in.mp4", 30)
    results = list(track(path, find_square, start=11, end=15))
    assert [r.frame for _, r in results] == [11, 12, 13, 14, 15]
    assert [square_left(f) for f, _ in results] == [square_left(scene(i)) for i in range(11, 16)]


def test_torchvision_dictionaries_are_taken() -> None:
    def detector(frames: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        return [{"boxes": d.xyxy, "scores": d.scores} for d in find_square(frames)]

    assert [r.track_ids.tolist() for _, r in track(FakeSource(5), detector)] == [[1]] * 5


def test_results_stay_in_order_when_workers_differ_in_speed() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.02 if square_left(frames[0]) % 2 else 0)
        return find_square(frames)

    lefts = [square_left(f) for f, _ in track(FakeSource(30), detector, workers=4)]
    assert lefts == [square_left(scene(i)) for i in range(1, 31)]


def test_workers_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def detector(frames: list[np.ndarray]) -> list[Detections]:
        barrier.wait()  # breaks unless three calls are under way
        return find_square(frames)

    assert len(list(track(FakeSource(9), detector, workers=3))) == 9


def test_batches_are_full_but_the_last() -> None:
    sizes = []

    def detector(frames: list[np.ndarray]) -> list[Detections]:
        sizes.append(len(frames))
        return find_square(frames)

    assert len(list(track(FakeSource(10), detector, batch_size=4))) == 10
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_source_error_comes_after_the_frames_before_it(batch_size: int) -> None:
    source = FakeSource(10, error=SourceError("fake: stopped at frame 10"))
    numbers = []
    with pytest.raises(SourceError, match="stopped at frame 10"):
        for _, result in track(source, find_square, batch_size=batch_size):
            numbers.append(result.frame)
    assert numbers == list(range(1, 11))
    assert source.closed


def test_a_source_that_cannot_even_start_is_an_error() -> None:
    class Unstartable(FakeSource):
        def __iter__(self) -> Iterator[np.ndarray]:
            raise OSError("the disk is gone")

    source = Unstartable()
    with pytest.raises(OSError, match="the disk is gone"):
        next(track(source, find_square))
    assert source.closed


def test_detector_error_comes_after_the_frames_before_it() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        if square_left(frames[0]) == 7:
            raise RuntimeError("out of memory")
        return find_square(frames)

    source = FakeSource(1000)
    numbers = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for _, result in track(source, detector, workers=2):
            numbers.append(result.frame)
    assert numbers == list(range(1, 7))
    assert source.closed
    assert source.given < 20


def test_detector_that_loses_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="detector: expected 4 results for as many frames, got 3"):
        list(track(FakeSource(8), lambda frames: find_square(frames)[1:], batch_size=4))


def test_leaving_early_stops_at_once_and_closes() -> None:
    source = FakeSource(100_000)
    results = track(source, find_square, workers=2)
    for _, result in results:
        if result.frame == 5:
            break
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 1
    assert source.closed
    assert source.given < 30


def test_memory_is_bounded_when_the_consumer_is_slow() -> None:
    source = FakeSource(100)
    results = track(source, find_square, workers=2)
    next(results)
    time.sleep(0.2)
    assert source.given <= 10
    results.close()


def test_live_source_is_read_on_while_the_detector_is_busy() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.03)
        return find_square(frames)

    source = FakeSource(100, live=True, delay=0.003)
    pipeline = Pipeline(source, detector, Tracker(), live=LiveConfig(max_latency=0.05))
    seen = list(pipeline)
    assert pipeline.dropped > 50
    numbers = [result.frame for _, result in seen]  # of the source: what was dropped is missing
    assert len(numbers) == 100 - pipeline.dropped
    assert all((frame == scene(number)).all() for number, (frame, _) in zip(numbers, seen, strict=True))
    lefts = [square_left(frame) for frame, _ in seen]
    assert lefts[-1] != lefts[-2]
    assert (seen[-1][0] == scene(100)).all()  # the newest is always kept


def test_recorded_source_loses_nothing_to_a_slow_detector() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.005)
        return find_square(frames)

    pipeline = Pipeline(FakeSource(30), detector, Tracker())
    assert len(list(pipeline)) == 30
    assert pipeline.dropped == 0


def test_stages_overlap_and_are_timed() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.01)
        return find_square(frames)

    pipeline = Pipeline(FakeSource(30, delay=0.01), detector, Tracker())
    started = time.perf_counter()
    for _ in pipeline:
        time.sleep(0.01)
    total = time.perf_counter() - started
    assert pipeline.seconds["decode"] >= 0.3
    assert pipeline.seconds["detect"] >= 0.3
    assert pipeline.seconds["associate"] > 0
    assert total < 0.75  # 0.9 s and more in a row


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        track(FakeSource(1), find_square, workers=0)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        track(FakeSource(1), find_square, batch_size=0)
    with pytest.raises(ValueError, match="start, end: expected None for a source that is already open"):
        track(FakeSource(1), find_square, start=2)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        track("gone.mp4", find_square)


class StubTracker:
    """Keeps what the pipeline tells it, and finds nobody."""

    def __init__(self, camera_motion: str = "none") -> None:
        self.config = TrackerConfig(camera_motion=camera_motion)
        self.seconds: list[float | None] = []
        self.motions: list[np.ndarray | None] = []

    def update(self, detections: Detections, *, seconds: float | None, camera_motion: np.ndarray | None) -> FrameResult:
        self.seconds.append(seconds)
        self.motions.append(camera_motion)
        return Tracker().update(detections)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_frame_keeps_its_time(batch_size: int) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 2.0, None, 2.1, 7.5, 7.6, 7.7]
    tracker = StubTracker()
    list(Pipeline(FakeSource(10, times=times), find_square, tracker, workers=3, batch_size=batch_size))
    assert tracker.seconds == times


def test_times_of_dropped_frames_are_left_out() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(0.02)
        return find_square(frames)

    tracker = StubTracker()
    source = FakeSource(50, live=True, delay=0.004, times=[i / 10 for i in range(1, 51)])
    shown = [frame for frame, _ in Pipeline(source, detector, tracker, live=LiveConfig(max_latency=0))]
    assert len(shown) < 30
    of_left = {square_left(scene(i)): i / 10 for i in range(1, 51)}
    assert tracker.seconds == [of_left[square_left(frame)] for frame in shown]


def test_images_have_no_times(tmp_path: Path) -> None:
    tracker = StubTracker()
    list(Pipeline(open_source(write_images(tmp_path / "walk", 3)), find_square, tracker))
    assert tracker.seconds == [None] * 3


def test_a_gap_in_a_file_of_variable_rate_is_a_gap_for_the_tracker(tmp_path: Path) -> None:
    def ids(pause: int) -> set[int]:
        times = [40 * i + (pause if i >= 10 else 0) for i in range(20)]
        path = write_timed_clip(tmp_path / f"{pause}.mkv", times)
        results = list(track(path, find_square, TrackerConfig(track_buffer=1.0)))
        return {i for _, result in results for i in result.track_ids.tolist()}

    assert ids(0) == {1}
    # The person goes on a pixel a frame, but what happens in a pause of a minute nobody knows.
    assert ids(60_000) == {1, 2}


def test_camera_motion_is_estimated_where_the_tracker_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeMotion:
        def __init__(self, method: str) -> None:
            self.method = method
            self.count = 0

        def estimate(self, frame: np.ndarray, xyxy: np.ndarray) -> np.ndarray:
            self.count += 1
            assert (frame == scene(self.count)).all()
            assert abs(xyxy[0, 0] - square_left(frame)) < 3
            return np.array([[1, 0, self.count], [0, 1, len(self.method)]], float)

    monkeypatch.setattr(camera_motion, "CameraMotion", FakeMotion)
    tracker = StubTracker("sparse")
    pipeline = Pipeline(FakeSource(10), find_square, tracker, workers=3)
    assert list(pipeline.seconds) == ["decode", "detect", "motion", "associate"]
    assert len(list(pipeline)) == 10
    assert [motion[:, 2].tolist() for motion in tracker.motions] == [[i, 6] for i in range(1, 11)]
    assert pipeline.seconds["motion"] > 0
    still = StubTracker()
    pipeline = Pipeline(FakeSource(3), find_square, still)
    list(pipeline)
    assert still.motions == [None] * 3
    assert list(pipeline.seconds) == ["decode", "detect", "associate"]


def test_a_person_is_followed_while_the_camera_trembles() -> None:
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 120, (240, 900, 3), dtype=np.uint8), (5, 5), 0)

    class Trembling(FakeSource):
        def __iter__(self) -> Iterator[np.ndarray]:
            for number in range(20):
                left = 30 * (number % 2) * (number > 4)
                view = wall[:, left : left + 320].copy()
                view[60:76, 220 - left : 236 - left] = 255
                yield view

    def detector(frames: list[np.ndarray]) -> list[Detections]:
        found = []
        for frame in frames:
            x, y, w, h = cv2.boundingRect((frame.min(axis=2) > 200).astype(np.uint8))
            found.append(Detections(np.array([[x, y, x + w, y + h]]), np.array([0.9])))
        return found

    def ids(method: str) -> list[list[int]]:
        config = TrackerConfig(camera_motion=method)
        results = [result for _, result in track(Trembling(size=(320, 240)), detector, config)]
        return [result.track_ids.tolist() for result in results]

    assert ids("sparse") == [[1]] * 20
    assert ids("none").count([1]) < 15
