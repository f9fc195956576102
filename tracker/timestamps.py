"""Times of frames that only ever rise."""

from __future__ import annotations

from tracker.clock import DEFAULT_FRAME_RATE

# Time that falls back further than this begins anew, and live time that leaps so far ahead is wrong; less is disorder.
_LEAP_SECONDS = 1.0
# A live stream that has fallen behind so far will not make up for it.
_LATE_SECONDS = 30.0


class RisingClock:
    """Turns the times that a file gives its frames into seconds that rise with every frame.

    Containers leave times out, repeat them, or give them in the order of decoding, and recordings joined end to end
    start again at zero in the middle. A frame whose time is missing, or not later than the frame before, counts as one
    frame period later. Where time falls back by more than a second, all that follow are moved behind the frame before.

    Args:
        frame_rate: frames per second of the file; None, where it does not say, counts as 30.
    """

    def __init__(self, frame_rate: float | None) -> None:
        self._period = 1 / (frame_rate or DEFAULT_FRAME_RATE)
        self._last: float | None = None
        self._offset = 0.0

    def __call__(self, seconds: float | None) -> float | None:
        """The time of the next frame in seconds, from its time in the file; None until the first that is known."""
        if self._last is None:
            self._last = seconds
            return seconds
        time = self._last + self._period
        if seconds is not None:
            seconds += self._offset
            if seconds > self._last:
                time = seconds
            elif seconds < self._last - _LEAP_SECONDS:
                self._offset += time - seconds
        self._last = time
        return time


class LiveClock:
    """Puts the times that a live stream gives its frames on the clock of their arrival.

    Times of arrival alone would show how the network stutters, and not when people were where. The first frame counts
    as punctual, and what arrives early or late after it keeps its distance in the stream's own time. A frame without a
    time, or whose time does not rise, leaps ahead or lags far behind, counts as punctual once more.

    Args:
        frame_rate: frames per second of the stream; None, where it does not say, counts as 30.
    """

    def __init__(self, frame_rate: float | None) -> None:
        self._period = 1 / (frame_rate or DEFAULT_FRAME_RATE)
        self._last: float | None = None
        self._offset: float | None = None

    def __call__(self, seconds: float | None, arrival: float) -> float:
        """The time of the next frame in seconds, rising, from its time in the stream and its arrival."""
        last, time = self._last, None
        if seconds is not None and self._offset is not None and last is not None:
            time = seconds + self._offset
            leaps = time > max(arrival, last) + _LEAP_SECONDS
            if time <= last or leaps or time < arrival - _LATE_SECONDS:
                time = None
        if time is None:
            time = arrival if last is None else max(arrival, last + self._period)
            if seconds is not None:
                self._offset = time - seconds
        self._last = time
        return time
