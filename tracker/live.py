"""Sources in real time: streams that are opened again when they break off, and files played at their own pace."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tracker.clock import DEFAULT_FRAME_RATE
from tracker.timestamps import RisingClock
from tracker.video import Frame, SourceError

if TYPE_CHECKING:
    from tracker.sources import Source

Opener = Callable[[int | None, int | None], "Source"]

log_message = logging.getLogger("tracker").warning


@dataclass(frozen=True)
class LiveConfig:
    """What is done about live sources that come too fast or break off; times are seconds.

    Raises:
        ValueError: a value out of its range; the message names the field, what is expected and what was given.
    """

    max_latency: float = 0.2
    """A frame that has waited this long for the detector is dropped if a newer one is there, at least 0; 0 always
    takes the newest."""
    first_wait: float = 1.0
    """Wait before a stream that broke off is opened again, above 0. It doubles with every vain attempt."""
    longest_wait: float = 30.0
    """It doubles up to here, at least `first_wait`."""
    give_up_after: float | None = 60.0
    """A stream that could not be opened again for this long has failed, at least 0; None tries forever, 0 not once."""
    retry_at_start: bool = False
    """Also wait for a stream that cannot be opened at the start, which may be off, but may as well be a wrong
    address."""

    def __post_init__(self) -> None:
        for name, low in (("max_latency", 0.0), ("longest_wait", self.first_wait), ("give_up_after", 0.0)):
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:  # also true of NaN
                raise ValueError(f"{name}: expected a number of seconds from {low:g}, got {value!r}")
        if not 0 < self.first_wait < math.inf:
            raise ValueError(f"first_wait: expected a number of seconds above 0, got {self.first_wait!r}")


def open_live(
    opener: Opener,
    location: str,
    start: int | None,
    end: int | None,
    config: LiveConfig | None,
    on_message: Callable[[str], None],
) -> Source:
    """Open a camera or an address; if it turns out to be live, it will be opened again when it breaks off.

    Args:
        opener: opens the source, given the first and the last frame wanted.
        location: what to call it in messages.
        start: 1-based number of the first frame to give.
        end: number of the last one.
        config: None is the default.
        on_message: told what happens, a line each time.

    Raises:
        SourceError: it cannot be opened.
        ValueError: an impossible `start` and `end`.
    """
    config = config or LiveConfig()
    try:
        source = _open_interruptibly(partial(opener, start, end)) if "://" in location else opener(start, end)
    except SourceError as error:
        if not config.retry_at_start:
            raise
        reason = f"no connection ({_without_location(error, location)})"
        never = threading.Event()
        found = _try_again(partial(opener, start, end), location, reason, config, on_message, never)
        assert found is not None
        source = found
    if not source.live or config.give_up_after == 0:
        return source
    return ReconnectingSource(source, opener, end, config, on_message)


def _open_interruptibly(open_it: Callable[[], Source]) -> Source:
    """Open a source in a thread of its own, so that Ctrl-C is heard while the network is silent."""
    outcome: list[Source | BaseException] = []

    def work() -> None:
        try:
            outcome.append(open_it())
        except BaseException as error:  # raised again below
            outcome.append(error)

    thread = threading.Thread(target=work, name="open", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


class ReconnectingSource:
    """A live source that is opened again when it breaks off or ends; the attributes are those of `VideoSource`.

    Frames are numbered on, and their times show the gap. The picture must keep its size, on which boxes, tracks and
    the video being written depend.

    Args:
        source: the source, open and live.
        opener: opens it again, given None and None.
        end: number of the last frame wanted.
        config: how often, and for how long.
        on_message: told what happens, a line each time.

    Raises:
        SourceError: while iterating: it stayed away for too long, or came back with another size.
    """

    live = True
    frame_count: int | None = None

    def __init__(
        self,
        source: Source,
        opener: Opener,
        end: int | None,
        config: LiveConfig,
        on_message: Callable[[str], None],
    ) -> None:
        self.location, self.name = source.location, source.name
        self.frame_rate, self.size, self.first_frame = source.frame_rate, source.size, source.first_frame
        self.timestamp: float | None = None
        self._source = source
        self._opener = opener
        self._last_frame = end
        self._config = config
        self._on_message = on_message
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR until the wanted end."""
        number, clock = self.first_frame - 1, RisingClock(self.frame_rate)
        while not self._stopped.is_set():
            reason = "connection lost (the stream ended)"
            try:
                for frame in self._source:
                    number += 1
                    self.timestamp = clock(self._source.timestamp)
                    yield frame
                    if number == self._last_frame:
                        return
            except SourceError as error:
                reason = f"connection lost ({_without_location(error, self.location)})"
            self._source.close()
            source = _try_again(
                partial(self._opener, None, None),
                self.location,
                reason,
                self._config,
                self._on_message,
                self._stopped,
            )
            if source is None:
                return
            self._source = source
            if not source.live:
                return  # the broadcast is over, and what is there now is its recording
            if source.size != self.size:
                raise SourceError(
                    f"{self.location}: expected {self.size[0]}x{self.size[1]} pixels as before the connection was "
                    f"lost, got {source.size[0]}x{source.size[1]}"
                )

    def stop(self) -> None:
        """Make an iteration in another thread end soon; waiting to connect ends at once."""
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        """Close the connection."""
        self._source.close()


def _try_again(
    open_again: Callable[[], Source],
    location: str,
    reason: str,
    config: LiveConfig,
    on_message: Callable[[str], None],
    stopped: threading.Event,
) -> Source | None:
    """Open a stream again and again, less and less often; None when `stopped` is set."""
    started, wait = time.monotonic(), config.first_wait
    while not stopped.is_set():
        passed = time.monotonic() - started
        left = math.inf if config.give_up_after is None else config.give_up_after - passed
        if left <= 0:
            raise SourceError(f"{location}: given up after {passed:.0f} s: {reason}")
        pause = min(wait, left)
        on_message(f"{location}: {reason}, trying again in {round(pause, 2):g} s")
        if stopped.wait(pause):
            break
        try:
            source = open_again()
        except SourceError as error:
            reason = f"no connection ({_without_location(error, location)})"
        else:
            on_message(f"{location}: connected after {time.monotonic() - started:.0f} s")
            return source
        wait = min(2 * wait, config.longest_wait)
    return None


def _without_location(error: SourceError, location: str) -> str:
    return str(error).removeprefix(f"{location}: ")


class RealTime:
    """A recorded source played as if it were live: frames come when they are due, and nobody waits for the slow.

    For rehearsing what a camera will do, and for demonstrations. The attributes are those of `VideoSource`; `timestamp`
    is that of the recording, or counts frame periods where it has none.

    Args:
        source: an open source that is not live; closed with this one.

    Raises:
        ValueError: `source` is live already.
    """

    live = True

    def __init__(self, source: Source) -> None:
        if source.live:
            raise ValueError(f"source: expected a recording to play in real time, got {source.location}, which is live")
        self.location, self.name, self.size = source.location, source.name, source.size
        self.frame_rate, self.frame_count, self.first_frame = source.frame_rate, source.frame_count, source.first_frame
        self.timestamp: float | None = None
        self._source = source
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR, none before its time."""
        period = 1 / (self.frame_rate or DEFAULT_FRAME_RATE)
        before: float | None = None
        due: float | None = None
        for frame in self._source:
            recorded = self._source.timestamp
            if due is None:
                self.timestamp, due = recorded or 0.0, time.monotonic()
            else:
                step = period if before is None or recorded is None else recorded - before
                self.timestamp, due = (self.timestamp or 0.0) + step, due + step
            before = recorded
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            yield frame

    def stop(self) -> None:
        """Make an iteration in another thread end at once, though it waits for a frame's time."""
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        """Close the recording."""
        self._source.close()
