import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tracker.clips import find_square, square_left, write_clip, write_images
from tests.tracker.feeds import FakeSource, refuses, sends, served
from tracker import video
from tracker.live import LiveConfig, RealTime, ReconnectingSource, open_live
from tracker.pipeline import Pipeline, track
from tracker.sources import Source, open_source
from tracker.tracker import Tracker
from tracker.video import SourceError

QUICK = LiveConfig(first_wait=0.02, longest_wait=0.08, give_up_after=2.0)


def opener(*sources: Source | str) -> Callable[[int | None, int | None], Source]:
    """Gives the sources one after another; a text is an error."""
    remaining = iter(sources)

    def open_next(start: int | None, end: int | None) -> Source:
        source = next(remaining)
        if isinstance(source, str):
            raise SourceError(f"fake: {source}")
        return source

    return open_next


def live(count: int, **options: object) -> FakeSource:
    return FakeSource(count, live=True, **options)


def reconnecting(said: list[str], config: LiveConfig, *sources: Source | str, end: int | None = None) -> Source:
    return open_live(opener(*sources), "fake", None, end, config, said.append)


def test_goes_on_after_a_break_and_says_so() -> None:
    said: list[str] = []
    first, second = live(3, error=SourceError("fake: stopped at frame 3: input/output error")), live(4)
    source = reconnecting(said, QUICK, first, "cannot be opened: refused", "cannot be opened: refused", second, end=7)
    assert isinstance(source, ReconnectingSource)
    assert [square_left(frame) for frame in source] == [1, 2, 3, 1, 2, 3, 4]
    assert said == [
        "fake: connection lost (stopped at frame 3: input/output error), trying again in 0.02 s",
        "fake: no connection (cannot be opened: refused), trying again in 0.04 s",
        "fake: no connection (cannot be opened: refused), trying again in 0.08 s",
        "fake: connected after 0 s",
    ]
    source.close()
    assert (first.closed, second.closed) == (1, 1)


def test_a_stream_that_ends_is_taken_for_broken() -> None:
    said: list[str] = []
    source = reconnecting(said, QUICK, live(2), live(2), end=4)
    assert len(list(source)) == 4
    assert said[0] == "fake: connection lost (the stream ended), trying again in 0.02 s"


def test_waits_double_up_to_the_longest_and_start_again_after_a_success() -> None:
    said: list[str] = []
    off = ["cannot be opened: refused"] * 4
    list(reconnecting(said, QUICK, live(1), *off, live(1), "cannot be opened: refused", live(1), end=3))
    waits = [line.split()[-2] for line in said if line.endswith("s") and "trying" in line]
    assert waits == ["0.02", "0.04", "0.08", "0.08", "0.08", "0.02", "0.04"]


def test_gives_up_after_the_given_time() -> None:
    config = LiveConfig(first_wait=0.02, give_up_after=0.2)
    frames = []
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"fake: given up after 0 s: no connection \(cannot be opened: refused\)"):
        for frame in reconnecting([], config, live(3), *["cannot be opened: refused"] * 100):
            frames.append(frame)
    assert len(frames) == 3
    assert 0.2 <= time.monotonic() - started < 1


def test_does_not_try_where_that_is_not_wanted() -> None:
    first = live(3)
    assert reconnecting([], LiveConfig(give_up_after=0), first) is first


def test_times_show_the_gap_and_the_first_frame_counts_on() -> None:
    first = live(2, times=[100.0, 100.1])
    second = live(2, times=[107.0, 107.1])
    first.first_frame = 50
    source = reconnecting([], QUICK, first, second, end=53)
    assert source.first_frame == 50
    assert [source.timestamp for _ in source] == [100.0, 100.1, 107.0, 107.1]


def test_another_size_is_an_error() -> None:
    second = live(5, size=(128, 72))
    source = reconnecting([], QUICK, live(2), second)
    frames = iter(source)
    assert len([next(frames), next(frames)]) == 2
    with pytest.raises(SourceError, match="fake: expected 96x64 pixels as before the connection was lost, got 128x72"):
        next(frames)
    source.close()
    assert second.closed == 1


def test_a_recording_in_place_of_the_broadcast_is_its_end() -> None:
    recording = FakeSource(100)
    assert len(list(reconnecting([], QUICK, live(2), recording))) == 2


def test_a_wrong_address_fails_at_once_unless_wanted_otherwise() -> None:
    said: list[str] = []
    with pytest.raises(SourceError, match="fake: cannot be opened: no such host"):
        reconnecting(said, QUICK, "cannot be opened: no such host")
    assert said == []
    config = LiveConfig(first_wait=0.02, retry_at_start=True)
    assert len(list(reconnecting(said, config, "cannot be opened: off", "cannot be opened: off", live(2), end=2))) == 2
    assert said == [
        "fake: no connection (cannot be opened: off), trying again in 0.02 s",
        "fake: no connection (cannot be opened: off), trying again in 0.04 s",
        "fake: connected after 0 s",
    ]
    with pytest.raises(SourceError, match="given up"):
        reconnecting(said, LiveConfig(first_wait=0.02, give_up_after=0.1, retry_at_start=True), *["off"] * 10)


def test_errors_that_are_no_breaks_are_not_retried() -> None:
    source = reconnecting([], QUICK, live(2, error=MemoryError("no room")), live(2))
    with pytest.raises(MemoryError, match="no room"):
        list(source)


def test_leaving_while_it_waits_ends_at_once() -> None:
    waiting = threading.Event()
    config = LiveConfig(first_wait=30.0)
    source = open_live(opener(live(3)), "fake", None, None, config, lambda line: waiting.set())
    results = track(source, find_square)
    assert [next(results)[1].frame for _ in range(3)] == [1, 2, 3]
    assert waiting.wait(2)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 0.5
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_messages_are_logged_by_default(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 10, g="5").read_bytes()
    with served(sends(data), sends(data)) as address, caplog.at_level(logging.WARNING):
        assert len(list(open_source(address, end=15, live=QUICK))) == 15
    assert "connection lost" in caplog.text
    assert "secret" not in caplog.text


def test_a_real_connection_that_breaks_off_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 60, g="10", bf="0").read_bytes()
    said: list[str] = []
    tracker = Tracker(frame_rate=25)
    config = LiveConfig(first_wait=0.05, max_latency=5.0)
    with served(sends(data[: len(data) * 6 // 10]), refuses, sends(data)) as address:
        source = open_source(address, end=60, live=config, on_message=said.append)
        place = source.location
        results = list(Pipeline(source, find_square, tracker, live=config))
    assert place.startswith("http://***@127.0.0.1")
    numbers = [result.frame for _, result in results]
    assert numbers == list(range(1, len(results) + 1))
    lefts = [square_left(frame) for frame, _ in results]
    again = lefts.index(1, 5)  # the second connection starts with the square at the left
    assert 25 < again < 45
    assert [result.track_ids.tolist() for _, result in results[:again]] == [[1]] * again
    assert said[0].startswith(f"{place}: connection lost (stopped at frame ")
    assert said[0].endswith("), trying again in 0.05 s")
    assert said[1].startswith(f"{place}: no connection (cannot be opened: ")
    assert said[1].endswith("), trying again in 0.1 s")
    assert said[2] == f"{place}: connected after 0 s"
    assert len(said) == 3


def test_a_real_connection_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_STREAM_TIMEOUT", 0.4)
    data = write_clip(tmp_path / "a.ts", 20, g="10", bf="0").read_bytes()
    said: list[str] = []
    quiet = threading.Event()
    with served(sends(data, then=quiet.wait), sends(data)) as address:
        try:
            source = open_source(address, end=30, live=LiveConfig(first_wait=0.9), on_message=said.append)
            times = [source.timestamp for _ in source]
        finally:
            quiet.set()
    assert len(times) == 30
    steps = np.diff(times)
    assert steps.min() > 0.03
    assert np.argmax(steps) == 19
    assert 0.9 - 0.5 < steps.max() < 3
    assert len(said) == 2


def test_real_time_keeps_the_pace_of_the_recording() -> None:
    times = [5.0, 5.05, 5.2, 5.21, 5.4]
    inner = FakeSource(5, times=times)
    source = RealTime(inner)
    assert (source.live, source.frame_count, source.size) == (True, 5, (96, 64))
    arrived = []
    for _ in source:
        arrived.append(time.monotonic())
        assert source.timestamp == pytest.approx(times[len(arrived) - 1])
    since = np.array(arrived) - arrived[0]
    assert (since >= np.array(times) - 5.0 - 0.005).all()
    assert (since < np.array(times) - 5.0 + 0.1).all()
    source.close()
    assert inner.closed == 1


def test_real_time_of_images_goes_by_the_frame_rate(tmp_path: Path) -> None:
    source = RealTime(open_source(write_images(tmp_path / "walk", 4)))
    started = time.monotonic()
    assert [source.timestamp for _ in source] == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30])
    assert time.monotonic() - started >= 0.09


def test_real_time_drops_what_the_detector_cannot_take_and_keeps_the_person(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 50, rate=100)

    def detector(frames: list[np.ndarray]) -> list:
        time.sleep(0.03)
        return find_square(frames)

    pipeline = Pipeline(RealTime(open_source(path)), detector, Tracker(frame_rate=100), live=LiveConfig(max_latency=0))
    results = [result for _, result in pipeline]
    assert 8 <= len(results) <= 30
    assert len(results) + pipeline.dropped == 50
    assert {i for result in results for i in result.track_ids.tolist()} == {1}


def test_real_time_of_what_is_live_is_refused() -> None:
    with pytest.raises(ValueError, match="source: expected a recording to play in real time, got fake, which is live"):
        RealTime(live(3))


def test_real_time_can_be_left_during_a_long_pause() -> None:
    results = track(RealTime(FakeSource(2, times=[0.0, 100.0])), find_square)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_latency": -0.1}, "max_latency: .* from 0, got -0.1"),
        ({"max_latency": float("nan")}, "max_latency: .* got nan"),
        ({"first_wait": 0.0}, "first_wait: .* above 0, got 0.0"),
        ({"longest_wait": 0.5}, "longest_wait: .* from 1, got 0.5"),
        ({"give_up_after": -1.0}, "give_up_after: .* from 0, got -1.0"),
        ({"give_up_after": float("inf")}, "give_up_after: .* got inf"),
    ],
)
def test_impossible_settings(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiveConfig(**values)
