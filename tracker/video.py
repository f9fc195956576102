"""Frames of a video file or a network stream, decoded by FFmpeg."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from tracker.containers import declared_end
from tracker.timestamps import LiveClock, RisingClock

Frame = NDArray[np.uint8]

# Seconds to wait for a stream to open and for each read, so that a dead camera is an error and no hang.
_STREAM_TIMEOUT = 15.0
# Some streams come in bursts of seconds (HLS). What is earlier than this waits, so that it is not dropped in a jam.
_EARLY_SECONDS = 0.5
# A full-range picture needs another conversion than the fast one below.
_FULL_RANGE = 2
_QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


class SourceError(ValueError):
    """A source of frames cannot be opened, or it broke off; the message is one line and names the source."""


class _DamageError(Exception):
    """Decoding cannot go on; the message is the reason."""


def check_range(start: int | None, end: int | None) -> tuple[int, int | None]:
    """The first and last frame number wanted, 1-based and inclusive.

    Raises:
        ValueError: `start` below 1 or `end` before `start`.
    """
    first = 1 if start is None else start
    if first < 1:
        raise ValueError(f"start: expected a frame number from 1, got {start}")
    if end is not None and end < first:
        raise ValueError(f"end: expected a frame number from {first} (the start), got {end}")
    return first, end


def without_secrets(address: str) -> str:
    """An address with user, password and keys hidden, fit to be shown: `rtsp://***@host/x?token=***`."""
    address = re.sub(r"(?<=://)[^/\s]*@", "***@", address)
    return re.sub(r"(?i)([?&][^=&]*(?:user|pass|pwd|token|secret|key|auth)[^=&]*=)[^&#\s]*", r"\1***", address)


def available_cores() -> int:
    """Processor cores that this program may use; fewer than the machine has in many containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def codec_threads() -> int:
    """Threads for a decoder or encoder: a quarter of the cores, for the network needs the rest.

    One thread also costs least: on two cores, a second decoding thread takes a third more processor time.
    """
    return max(1, min(8, available_cores() // 4))


class VideoSource:
    """Frames of a video file or a network stream, upright, at their own size, in order.

    The first wanted frame is decoded when the source is opened, so that what cannot be read fails at once. A file that
    turns out to be cut or damaged yields every frame before the damage and then raises.

    Attributes:
        location: the path or address as given, without user and password.
        name: the file's stem, or the last part of the address.
        frame_rate: frames per second, None where the container does not say.
        size: (width, height) in pixels after rotation.
        frame_count: frames in the whole file as the container tells or as duration and rate suggest; it can be
            off by a few. None for a stream.
        first_frame: 1-based number of the first frame that iteration yields.
        live: True where frames arrive in real time.
        timestamp: time of the frame yielded last in seconds, rising: in the file; of a live stream, on the clock of
            `time.monotonic`. None where the file does not say.

    Raises:
        SourceError: not a video, no picture in it, or (while iterating) cut, damaged, or changing its size.
        FileNotFoundError: no such file.
        ValueError: an impossible `start` and `end`.
    """

    def __init__(self, location: str | Path, start: int | None = None, end: int | None = None) -> None:
        self._address = str(location)
        self._is_stream = "://" in self._address
        self.location = without_secrets(self._address) if self._is_stream else self._address
        self.first_frame, self._last_frame = check_range(start, end)
        self.timestamp: float | None = None
        self._stopped = False
        self._container = self._open()
        try:
            self._stream = self._video_stream(codec_threads())
            rate = self._stream.average_rate or self._stream.guessed_rate
            duration = self._container.duration
            seconds = None if duration is None else Fraction(duration, av.time_base)
            self.frame_rate: float | None = float(rate) if rate else None
            self.frame_count: int | None = self._stream.frames or round((seconds or 0) * (rate or 0)) or None
            self.live = self._is_stream and seconds is None
            self._frames = self._timed()
            self._head: tuple[Any, float | None] | None = self._first_wanted()
        except BaseException:
            self._container.close()
            raise
        picture = self._head[0]
        width, height = picture.width, picture.height
        self.size: tuple[int, int] = (height, width) if self._rotation(picture) in (90, 270) else (width, height)
        self.name = Path(self.location).stem
        if self._is_stream:
            tail = self.location.split("?")[0].rstrip("/").rsplit("/", 1)[-1].rsplit("@", 1)[-1]
            self.name = re.sub(r"[^\w.-]", "_", Path(tail).stem) or "stream"

    def _open(self) -> Any:
        if not self._is_stream:
            path = Path(self.location)
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file")
            if path.is_file() and path.stat().st_size == 0:
                raise SourceError(f"{path}: the file is empty")
        options = {"rtsp_transport": "tcp"} if self._address.startswith("rtsp") else {}
        timeout = (_STREAM_TIMEOUT, _STREAM_TIMEOUT) if self._is_stream else None
        try:
            return av.open(self._address, options=options, timeout=timeout)
        except (av.error.InvalidDataError, av.error.EOFError):
            raise SourceError(f"{self.location}: not a video, or cut before its index") from None
        except av.error.ExitError:  # PyAV's timeout
            raise SourceError(f"{self.location}: no answer within {_STREAM_TIMEOUT:g} s") from None
        except (av.error.FFmpegError, OSError) as error:
            reason = without_secrets(error.strerror or str(error))
            raise SourceError(f"{self.location}: cannot be opened: {reason}") from None

    def _video_stream(self, threads: int) -> Any:
        streams = self._container.streams.video
        # FFmpeg renders plain text as a video of a terminal; nobody means that.
        if not streams or self._container.format.name == "tty":
            raise SourceError(f"{self.location}: no video in it")
        stream = streams[0]
        if stream.codec_context is None:
            raise SourceError(f"{self.location}: its video codec is not supported")
        stream.thread_type = "FRAME"
        stream.codec_context.thread_count = threads
        return stream

    def _timed(self) -> Iterator[tuple[Any, float | None]]:
        """Decoded frames with their times."""
        live_clock, clock = LiveClock(self.frame_rate), RisingClock(self.frame_rate)
        for frame in self._decode():
            seconds = None if frame.pts is None else float(frame.pts * self._stream.time_base)
            if not self.live:
                yield frame, clock(seconds)
                continue
            arrival = time.monotonic()
            shown = live_clock(seconds, arrival)
            time.sleep(max(0.0, shown - arrival - _EARLY_SECONDS))
            yield frame, shown

    def _first_wanted(self) -> tuple[Any, float | None]:
        number = 0
        for number, timed in enumerate(self._frames, start=1):
            if number == self.first_frame:
                return timed
        if number == 0:
            raise SourceError(f"{self.location}: no frame could be decoded")
        raise SourceError(f"{self.location}: start frame {self.first_frame} lies behind the last, {number}")

    def __iter__(self) -> Iterator[Frame]:
        """Frames (H, W, 3) uint8 BGR from `first_frame` to the wanted end; a source is iterated once."""
        head, self._head = self._head, None
        number = self.first_frame
        while head is not None and not self._stopped:
            image = self._to_bgr(head[0], number)
            self.timestamp = head[1]
            yield image
            if number == self._last_frame:
                return
            number += 1
            head = next(self._frames, None)

    def _decode(self) -> Iterator[Any]:
        """Decoded frames; raises after the last good one when the file is damaged or cut."""
        given = 0
        reason = None
        for threads in sorted({1, codec_threads()}, reverse=True):
            reason = None
            try:
                for position, frame in enumerate(self._decode_to_damage()):
                    if position == given:
                        given += 1
                        yield frame
            except _DamageError as damage:
                reason = str(damage)
            if not self._is_stream and self._is_cut(given):
                reason = "the file is cut here"
            if reason is None or threads == 1 or self._is_stream:
                break
            # Threads that work ahead of the damage lose the last frames before it; one alone reaches them.
            self._container.close()
            self._container = self._open()
            self._stream = self._video_stream(1)
        if reason is not None:
            total = f" of {self.frame_count}" if self.frame_count else ""
            raise SourceError(f"{self.location}: stopped at frame {given}{total}: {reason}")

    def _decode_to_damage(self) -> Iterator[Any]:
        any_good = False
        damage = None
        packets = self._container.demux(self._stream)
        while damage is None and not self._stopped:
            packet = None
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if self._is_stream and packet is not None:
                    continue  # packets lost on the way: the next key frame mends it
                damage = str(error.strerror).lower() if packet is None else "the picture data is damaged here"
                frames = self._remaining()
            for frame in frames:
                # The decoder invents what is missing of a picture, and marks it. Pictures before the first key frame
                # of a recording are marked, too, but are all there is.
                if frame.is_corrupt and any_good and not self._is_stream:
                    damage = "the picture data is damaged here"
                    break
                any_good |= not frame.is_corrupt
                yield frame
        if damage is not None:
            raise _DamageError(damage)

    def _remaining(self) -> list[Any]:
        """Frames that the decoder still holds after an error."""
        try:
            return list(self._stream.codec_context.decode(None))
        except av.error.FFmpegError:
            return []  # the error that led here is the one to report

    def _is_cut(self, decoded: int) -> bool:
        if decoded >= self._stream.frames > 0:
            return False  # only sound or trailing data is missing
        path = Path(self.location)
        end = declared_end(path)
        return end is not None and path.stat().st_size < end

    @staticmethod
    def _rotation(frame: Any) -> int:
        """Degrees counter-clockwise by which the picture is to be turned, from the display matrix."""
        return int(round(frame.rotation / 90) * 90 % 360)

    def _to_bgr(self, frame: Any, number: int) -> Frame:
        even = frame.width % 2 == 0 and frame.height % 2 == 0
        if frame.format.name == "yuv420p" and even and int(frame.color_range) != _FULL_RANGE:
            # Equal to FFmpeg's own conversion within 2 grey levels, at a third of the time.
            image: Frame = np.asarray(cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2BGR_I420), np.uint8)
        else:
            image = frame.to_ndarray(format="bgr24")
        rotation = self._rotation(frame)
        if rotation:
            image = np.asarray(cv2.rotate(image, _QUARTER_TURNS[rotation]), np.uint8)
        got = (image.shape[1], image.shape[0])
        if got != self.size:
            raise SourceError(
                f"{self.location}: frame {number}: expected {self.size[0]}x{self.size[1]} pixels as before, "
                f"got {got[0]}x{got[1]}"
            )
        return image

    def stop(self) -> None:
        """Make an iteration in another thread end soon; a silent stream takes up to its timeout."""
        self._stopped = True

    def close(self) -> None:
        """Close the file or connection."""
        self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
