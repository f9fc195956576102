"""The time of a video, counted in frame periods."""

from __future__ import annotations

import math

DEFAULT_FRAME_RATE = 30.0
"""Frames per second assumed where a video does not tell."""

# A time this close to a whole number of frame periods is that number: containers round.
_JITTER = 0.1
# More frame periods than any video has.
_FOREVER = 1e15


class FrameClock:
    """Counts frame periods, whether or not frames come with a time.

    Attributes:
        frame_rate: frames per second.
        now: time of the last frame in frame periods; frame k of a constant rate has time k.

    Args:
        frame_rate: None, zero, negative and non-finite values, which broken headers and streams report, count as 30.
    """

    def __init__(self, frame_rate: float | None) -> None:
        known = frame_rate is not None and math.isfinite(frame_rate) and frame_rate > 0
        self.frame_rate = float(frame_rate) if frame_rate is not None and known else DEFAULT_FRAME_RATE
        self.reset()

    def reset(self) -> None:
        """Start anew: the next frame has time 1."""
        self.now = 0.0
        self._origin: float | None = None  # seconds of time 0

    def periods(self, seconds: float) -> int:
        """The nearest whole number of frame periods."""
        return round(min(seconds * self.frame_rate, _FOREVER))

    def advance(self, seconds: float | None) -> float:
        """Go on to the next frame.

        The time as a whole is rounded, not the step, so that errors do not add up.

        Args:
            seconds: when it is, from any origin; None is one frame period after the frame before.

        Returns:
            Frame periods since the frame before, at least 0.

        Raises:
            ValueError: a time that is not finite, or before the last one; the clock stays where it was.
        """
        origin, now = self._origin, self.now + 1
        if seconds is not None:
            if not math.isfinite(seconds):
                raise ValueError(f"seconds: expected a finite time, got {seconds}")
            if origin is None:
                origin = seconds - now / self.frame_rate
            now = (seconds - origin) * self.frame_rate
            if abs(now) < _FOREVER and abs(now - round(now)) < _JITTER:
                now = float(round(now))
            if not self.now <= now <= _FOREVER:
                before = origin + self.now / self.frame_rate
                raise ValueError(f"seconds: expected {before:.3f} (the frame before) or later, got {seconds:.3f}")
        step = now - self.now
        self.now, self._origin = now, origin
        return step
