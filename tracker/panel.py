"""What the live page shows of one input: the newest picture, and counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any

import cv2

from tracker.types import FrameResult
from tracker.video import Frame

HISTORY_SECONDS = 120
"""How far back the counts of people reach."""

# Longer sides are scaled down to this many pixels: for watching it is enough, and encoding takes processor time.
_LONGEST_SIDE = 1280
_JPEG_QUALITY = 80
# Pictures encoded per second at most; a recording may be tracked at hundreds.
_PICTURE_RATE = 25.0
# The frame rate is that of the last seconds.
_RATE_SECONDS = 3.0


class Panel:
    """The newest picture of an input, and counts; `tracker.page.Page` shows them.

    The thread that tracks calls `add` and `end`, which wait for nothing and encode nothing; all else belongs to the
    loop of the server. A picture is encoded when somebody asks for it, once for all who do, in the loop's executor.

    Attributes:
        name: the input's name, the same as that of its results.
        last_frame: number of the last frame where it is known.

    Args:
        name: see the attributes.
        size: (width, height) of the frames in pixels.
        last_frame: see the attributes.
    """

    def __init__(self, name: str, size: tuple[int, int], last_frame: int | None = None) -> None:
        self.name, self.last_frame = name, last_frame
        scale = min(1.0, _LONGEST_SIDE / max(size))
        self._size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        self._lock = threading.Lock()
        self._state = "waiting"
        self._frame_number = self._people = self._dropped = 0
        self._ids: set[int] = set()
        self._times: deque[float] = deque()
        self._began = 0.0
        self._ended: float | None = None
        self._history: deque[int | None] = deque(maxlen=HISTORY_SECONDS)
        self._seconds = 0
        # Pictures are counted from 1; frame numbers could come again.
        self._newest: tuple[int, Frame | None] = (0, None)
        self._encoded: tuple[int, bytes] = (0, b"")
        self._encoding: asyncio.Task[None] | None = None
        self._next_encoding = 0.0
        self._waiting = 0
        self._fresh = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, frame: Frame, result: FrameResult, dropped: int = 0) -> None:
        """Take the next result.

        Args:
            frame: (H, W, 3) uint8 BGR, of the announced size, with everything drawn; not copied, and must not be
                changed afterwards.
            result: the identities in it.
            dropped: frames of this input dropped so far.
        """
        with self._lock:
            now = time.monotonic()  # in here, so that nobody has been further than this
            if self._state == "waiting":
                self._state, self._began = "running", now
            self._frame_number, self._people, self._dropped = result.frame, len(result), dropped
            self._ids.update(result.track_ids.tolist())
            self._times.append(now)
            self._pass_time(now)
            self._history[-1] = max(self._history[-1] or 0, len(result))
        self._newest = (self._newest[0] + 1, frame)
        self._wake()

    def end(self, state: str = "over") -> None:
        """No result will follow: the input is `over`, or has `failed`. The first call counts."""
        with self._lock:
            if self._ended is None:
                self._state, self._ended = state, time.monotonic()
        self._wake()

    def counts(self) -> dict[str, Any]:
        """What the page tells, fit for JSON.

        `state` is waiting, running, over or failed; `people` are in the last frame, `ids` in all so far; `rate` is in
        frames/s; `quiet` seconds have passed since the last frame; `history` holds the most people at once in each of
        the last seconds, the newest last, None where there was no frame.
        """
        with self._lock:
            now = time.monotonic() if self._ended is None else self._ended
            quiet = now - self._times[-1] if self._times else 0.0
            if self._times:
                self._pass_time(now)
            span = min(_RATE_SECONDS, max(now - self._began, 1e-3))
            return {
                "name": self.name,
                "size": self._size,
                "state": self._state,
                "frame": self._frame_number,
                "last_frame": self.last_frame,
                "people": self._people,
                "ids": len(self._ids),
                "dropped": self._dropped,
                "rate": round(sum(now - t <= _RATE_SECONDS for t in self._times) / span, 1),
                "quiet": round(quiet, 1),
                "history": list(self._history),
            }

    def _pass_time(self, now: float) -> None:
        """Begin a place in the history for each second that began, and forget the times that no rate needs."""
        seconds = int(now - self._began) + 1
        self._history.extend([None] * min(seconds - self._seconds, HISTORY_SECONDS))
        self._seconds = seconds
        while len(self._times) > 1 and self._times[0] < now - _RATE_SECONDS:
            self._times.popleft()

    async def picture(self, shown: int) -> tuple[int, bytes] | None:
        """The newest picture and its number, as soon as it is another than `shown` (0: any); None when none follows.

        The picture is a JPEG. Whoever asks seldom gets few pictures; none is kept for anybody.
        """
        self._loop = asyncio.get_running_loop()
        # `add` looks at `_waiting` after it has changed `_newest`: either it wakes us, or we see its picture here.
        self._waiting += 1
        try:
            while self._newest[0] == shown:
                if self._ended is not None:
                    return None
                await self._fresh.wait()
        finally:
            self._waiting -= 1
        if self._encoded[0] != self._newest[0]:
            if self._encoding is None or self._encoding.done():
                self._encoding = self._loop.create_task(self._encode(self._loop))
            await asyncio.shield(self._encoding)  # others wait for it, too
        return self._encoded

    def _wake(self) -> None:
        """Tell those who wait for a picture, if any; from any thread."""
        if self._waiting and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_here)

    def _wake_here(self) -> None:
        self._fresh.set()
        self._fresh.clear()

    async def _encode(self, loop: asyncio.AbstractEventLoop) -> None:
        await asyncio.sleep(self._next_encoding - loop.time())
        self._next_encoding = loop.time() + 1 / _PICTURE_RATE
        number, frame = self._newest
        assert frame is not None
        self._encoded = number, await loop.run_in_executor(None, self._jpeg, frame)

    def _jpeg(self, frame: Frame) -> bytes:
        small: Any = frame
        if (frame.shape[1], frame.shape[0]) != self._size:
            small = cv2.resize(frame, self._size)
        data: bytes = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
        return data
