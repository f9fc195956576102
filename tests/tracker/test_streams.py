import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tracker.clips import find_square, scene, square_left, write_clip
from tests.tracker.feeds import FakeSource, sends, served
from tracker.live import LiveConfig, RealTime
from tracker.pipeline import track, track_many
from tracker.sources import open_source
from tracker.streams import Streams
from tracker.tracker import Tracker
from tracker.types import Detections
from tracker.video import SourceError

pytestmark = pytest.mark.usefixtures("no_threads_left")


def streams(*sources: FakeSource, detector=find_square, **options: object) -> Streams:
    return Streams(sources, detector, [Tracker(None, source.frame_rate) for source in sources], **options)


def slow(seconds: float):
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        time.sleep(seconds)
        return find_square(frames)

    return detector


def test_each_stream_is_tracked_as_if_it_were_alone(tmp_path: Path) -> None:
    paths = [
        write_clip(tmp_path / f"{n}.mp4", n, size=size) for n, size in ((25, (96, 64)), (40, (128, 96)), (1, (96, 64)))
    ]
    alone = [[result for _, result in track(path, find_square)] for path in paths]
    for workers, batch_size in itertools.product((1, 3), (1, 4)):
        together: list[list] = [[], [], []]
        for index, frame, result in track_many(paths, find_square, workers=workers, batch_size=batch_size):
            assert frame.shape == ((64, 96, 3), (96, 128, 3), (64, 96, 3))[index]
            together[index].append(result)
        for a, b in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
            assert a.frame == b.frame
            assert (a.track_ids == b.track_ids).all()
            assert (a.xyxy == b.xyxy).all()


def test_streams_share_batches() -> None:
    batches = []

    def detector(frames: list[np.ndarray]) -> list[Detections]:
        batches.append([frame.shape[1] for frame in frames])
        return find_square(frames)

    sizes = [(96, 64), (98, 64), (100, 64), (102, 64)]
    everything = list(streams(*(FakeSource(10, size=size) for size in sizes), detector=detector, batch_size=4))
    assert len(everything) == 40
    assert Counter(itertools.chain(*batches)) == dict.fromkeys((96, 98, 100, 102), 10)
    assert sum(len(batch) == 4 for batch in batches) >= 8
    assert sum(len(set(batch)) == 4 for batch in batches) >= 5


def test_every_stream_gets_its_share() -> None:
    seen: list[int] = []
    with pytest.raises(StopIteration):
        results = iter(streams(*(FakeSource(n) for n in (60, 60, 60)), detector=slow(0.001)))
        while True:
            seen.append(next(results)[0])
    assert Counter(seen) == {0: 60, 1: 60, 2: 60}
    for at in range(10, 150, 10):
        counts = Counter(seen[:at])
        assert max(counts.values()) - min(counts.values()) <= 4


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stream_that_stands_still_holds_nobody_up(batch_size: int) -> None:
    still = FakeSource(8, hold=3)
    others = FakeSource(30), FakeSource(6)  # the second one's last batch is not full
    results = iter(streams(still, *others, batch_size=batch_size))
    first = [next(results)[0] for _ in range(36)]
    assert Counter(first)[1] + Counter(first)[2] >= 34
    started = time.monotonic()
    threading.Timer(0.2, still.release.set).start()
    rest = [next(results)[0] for _ in range(8)]
    assert 0.1 < time.monotonic() - started < 2
    assert Counter(first + rest) == {0: 8, 1: 30, 2: 6}
    assert list(results) == []


def test_a_failing_stream_is_reported_and_the_others_go_on() -> None:
    bad, good = FakeSource(5, error=SourceError("bad: stopped at frame 5")), FakeSource(40)
    over: list[tuple[int, str]] = []
    numbers: dict[int, list[int]] = {0: [], 1: []}
    both = streams(bad, good, detector=slow(0.002), on_end=lambda i, error: over.append((i, str(error))))
    with pytest.raises(SourceError, match=r"^bad: stopped at frame 5$"):
        for index, _, result in both:
            numbers[index].append(result.frame)
            assert index == 1 or not over
            if over:
                assert str(both.errors[0]) == "bad: stopped at frame 5"
                assert bad.closed
    assert numbers == {0: [1, 2, 3, 4, 5], 1: list(range(1, 41))}
    assert over == [(0, "bad: stopped at frame 5"), (1, "None")]
    assert (bad.closed, good.closed) == (1, 1)


def test_several_failures_are_told_together() -> None:
    sources = [FakeSource(n, error=SourceError(f"{n}.mp4: cut") if n % 2 else None) for n in (3, 4, 5)]
    with pytest.raises(SourceError, match=r"^2 of 3 sources failed: 3\.mp4: cut; 5\.mp4: cut$"):
        list(streams(*sources))


def test_a_broken_detector_ends_everything_at_once() -> None:
    def detector(frames: list[np.ndarray]) -> list[Detections]:
        if square_left(frames[0]) == 20:
            raise RuntimeError("out of memory")
        return find_square(frames)

    sources = [FakeSource(1000), FakeSource(1000)]
    with pytest.raises(RuntimeError, match="out of memory"):
        list(streams(*sources, detector=detector))
    assert all(source.closed == 1 and source.given < 40 for source in sources)


def test_memory_is_bounded_when_the_consumer_is_slow() -> None:
    sources = [FakeSource(200) for _ in range(5)]
    results = iter(streams(*sources, workers=2, batch_size=4))
    next(results)
    time.sleep(0.3)
    # 2 x 2 x 4 frames are taken, 4 of each wait, and each reader has one in hand.
    assert sum(source.given for source in sources) <= 1 + 16 + 5 * (4 + 1)
    results.close()
    assert all(source.closed == 1 for source in sources)


def test_live_frames_do_not_wait_for_a_full_batch() -> None:
    source = FakeSource(5, live=True, delay=0.02)
    began = time.monotonic()
    first = next(iter(streams(source, FakeSource(5, hold=1), batch_size=8)))
    assert first[0] == 0
    assert time.monotonic() - began < 0.09


def test_a_live_source_is_read_on_beside_files_that_keep_the_detector_busy() -> None:
    camera = FakeSource(100, live=True, delay=0.002)
    both = streams(camera, FakeSource(150), detector=slow(0.004), live=LiveConfig(max_latency=0.02))
    counts: Counter[int] = Counter()
    ended_at = None
    for index, _, _ in both:
        counts[index] += 1
        if camera.given == 100 and ended_at is None:
            ended_at = counts[1]
    assert counts[1] == 150
    assert counts[0] + both.dropped[0] == 100
    assert both.dropped[0] > 20
    assert both.dropped[1] == 0
    assert ended_at is not None
    assert ended_at < 120


def test_no_frame_older_than_the_limit_is_taken_while_there_is_a_newer_one() -> None:
    arrival: dict[int, float] = {}

    class Camera(FakeSource):
        def __iter__(self) -> Iterator[np.ndarray]:
            for frame in super().__iter__():
                arrival[square_left(frame)] = time.monotonic()
                yield frame

    waits, taken = [], []

    def detector(frames: list[np.ndarray]) -> list[Detections]:
        now = time.monotonic()
        left = square_left(frames[0])
        newer = [a for other, a in arrival.items() if other > left and a < now - 0.005]
        taken.append(left)
        if newer:
            waits.append(now - arrival[left])
        time.sleep(0.012)
        return find_square(frames)

    camera = Camera(75, live=True, delay=0.005)
    only = streams(camera, detector=detector, live=LiveConfig(max_latency=0.05))
    lefts = [square_left(frame) for _, frame, _ in only]
    assert lefts == taken == sorted(taken)
    assert taken[-1] == square_left(scene(75))
    assert len(taken) + only.dropped[0] == 75
    assert only.dropped[0] > 10
    assert max(waits) < 0.05 + 0.02
    # What is dropped is spread evenly: no long gap.
    assert max(np.diff(taken)) <= 10


def test_a_camera_that_breaks_off_beside_a_file(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 60, g="10", bf="0").read_bytes()
    clip = write_clip(tmp_path / "b.mp4", 40)
    said: list[str] = []
    config = LiveConfig(first_wait=0.05, give_up_after=0.3, max_latency=5.0)
    over: list[int] = []
    with served(sends(data[: len(data) // 2]), sends(data)) as address:
        camera = open_source(address, live=config, on_message=said.append)
        sources = [camera, RealTime(open_source(clip))]
        both = Streams(
            sources,
            find_square,
            [Tracker(), Tracker()],
            live=config,
            on_end=lambda index, error: over.append(index),
        )
        counts: Counter[int] = Counter()
        with pytest.raises(SourceError, match="given up after"):
            for index, _, _ in both:
                counts[index] += 1
    assert counts[1] == 40
    assert counts[0] + both.dropped[0] > 70
    assert sorted(over) == [0, 1]
    assert any(line.endswith("connected after 0 s") for line in said)
    assert "secret" not in " ".join(said)


@pytest.mark.skipif(os.name != "posix", reason="signals to one thread")
def test_interrupt_while_every_stream_waits() -> None:
    sources = FakeSource(5, hold=3), RealTime(FakeSource(2, times=[0.0, 100.0]))
    main = threading.main_thread().ident
    assert main
    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(Streams(sources, find_square, [Tracker(), Tracker()]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 1.5


def test_a_source_that_does_not_let_go_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.streams._STOP_SECONDS", 0.1)

    class Stubborn(FakeSource):
        def stop(self) -> None:
            pass

    stubborn, other = Stubborn(5, hold=1), FakeSource(50)
    results = iter(streams(stubborn, other))
    next(results)
    results.close()
    assert (stubborn.closed, other.closed) == (0, 1)
    stubborn.release.set()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="sources: expected at least 1, got 0"):
        Streams([], find_square, [])
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        streams(FakeSource(1), batch_size=0)
    tracker = Tracker()
    for trackers in ([tracker], [tracker, tracker]):
        with pytest.raises(ValueError, match="trackers: expected one of its own for each of 2 sources"):
            Streams([FakeSource(1), FakeSource(1)], find_square, trackers)


def test_what_cannot_be_opened_closes_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    closed = []
    monkeypatch.setattr("tracker.video.VideoSource.close", lambda self: closed.append(self.location))
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        track_many([clip, "gone.mp4"], find_square)
    assert closed == [str(clip)]
