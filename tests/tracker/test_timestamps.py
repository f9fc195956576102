import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.timestamps import LiveClock, RisingClock


def seconds(times: list[float | None], frame_rate: float | None = 10.0) -> list[float | None]:
    return list(map(RisingClock(frame_rate), times))


def test_good_times_pass_unchanged() -> None:
    times = [3.0, 3.04, 3.5, 3.51, 60.0]
    assert seconds(times) == times


def test_missing_times_are_filled_in_with_frame_periods() -> None:
    assert seconds([1.0, None, None, 1.35]) == pytest.approx([1.0, 1.1, 1.2, 1.35])
    assert seconds([1.0, None], frame_rate=None) == pytest.approx([1.0, 1 + 1 / 30])


def test_nothing_is_invented_before_the_first_known_time() -> None:
    assert seconds([None, None, 5.0, 5.1]) == [None, None, 5.0, 5.1]
    assert seconds([None] * 4) == [None] * 4


def test_times_in_the_order_of_decoding() -> None:
    assert seconds([0.1, 0.3, 0.4, 0.2, 0.6, 0.7, 0.5, 0.9]) == pytest.approx([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def test_repeated_times_do_not_add_up() -> None:
    times = [0.0, 0.0, 0.2, 0.2, 0.4, 0.4, 0.6]
    assert seconds(times) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_recordings_joined_end_to_end_keep_their_pace() -> None:
    joined = seconds([10.0, 10.5, 0.0, 0.7, 0.8, 0.0])
    assert joined == pytest.approx([10.0, 10.5, 10.6, 11.3, 11.4, 11.5])
    # Once more back by more than a second, for the second time.
    assert seconds([10.0, 0.0, 5.0, 0.0, 0.3]) == pytest.approx([10.0, 10.1, 15.1, 15.2, 15.5])


@given(st.lists(st.none() | st.floats(-1e6, 1e6, width=32)), st.sampled_from([None, 5.0, 59.94]))
def test_time_always_rises(times: list[float | None], frame_rate: float | None) -> None:
    known = [time for time in seconds(times, frame_rate) if time is not None]
    assert all(math.isfinite(time) for time in known)
    assert (np.diff(known) > 0).all()


def live(pairs: list[tuple[float | None, float]], frame_rate: float | None = 10.0) -> list[float]:
    clock = LiveClock(frame_rate)
    return [clock(seconds, arrival) for seconds, arrival in pairs]


def test_a_stutter_of_the_network_does_not_show() -> None:
    shown = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    arrivals = [50.0, 50.13, 50.18, 51.9, 51.91, 51.92, 51.93]
    times = live(list(zip(shown, arrivals, strict=True)))
    assert times == pytest.approx([50.0, 50.1, 50.2, 50.3, 50.4, 50.5, 50.6])


def test_a_pause_of_the_stream_is_a_pause() -> None:
    assert live([(7.0, 50.0), (7.1, 50.1), (19.1, 62.1)]) == pytest.approx([50.0, 50.1, 62.1])


def test_a_burst_runs_ahead_of_its_arrival() -> None:
    assert live([(i / 2, 50.0) for i in range(12)]) == pytest.approx([50 + i / 2 for i in range(12)])


def test_a_stream_that_sets_its_clock_counts_as_punctual_then() -> None:
    assert live([(7.0, 50.0), (3600.0, 50.2), (3600.1, 50.4)]) == pytest.approx([50.0, 50.2, 50.3])
    assert live([(7.0, 50.0), (1.0, 50.2), (1.1, 50.4)]) == pytest.approx([50.0, 50.2, 50.3])
    assert live([(7.0, 50.0), (7.1, 90.0), (7.2, 90.1)]) == pytest.approx([50.0, 90.0, 90.1])


def test_live_frames_without_times_arrive_when_they_arrive() -> None:
    assert live([(None, 50.0), (None, 50.3), (None, 50.31), (4.0, 50.6), (4.1, 50.65)]) == pytest.approx(
        [50.0, 50.3, 50.4, 50.6, 50.7]
    )


@given(st.lists(st.tuples(st.none() | st.floats(-1e6, 1e6, width=32), st.floats(0, 100, width=32))))
def test_live_time_always_rises(pairs: list[tuple[float | None, float]]) -> None:
    arrival = 1000.0
    steps = []
    for seconds, wait in pairs:
        arrival += wait
        steps.append((seconds, arrival))
    times = live(steps)
    assert all(math.isfinite(time) for time in times)
    assert (np.diff(times) > 0).all()
