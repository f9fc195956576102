"""H.264 video out, encoded in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import cv2
import numpy as np

from tracker.containers import cut_to_whole_parts
from tracker.video import Frame, codec_threads

# Frames waiting for the encoder; a few even out its key frames, more would only hold memory.
_QUEUE_SIZE = 6
# A key frame at least this often, in seconds: seeking is quick, and what is lost when the program is killed is short.
_KEY_FRAME_SECONDS = 2.0


class VideoWriter:
    """Writes frames as an MP4 file (H.264, yuv420p) at a constant frame rate.

    Encoding runs in a thread; `write` only waits when the encoder falls behind. The file is written in fragments
    and rearranged into an ordinary MP4 by `close`, so it plays up to its last fragment even when the disk fills
    up or the program is killed. Where no frame was written, no file remains. H.264 in yuv420p has even sides: an
    odd one grows by one pixel that repeats the edge.

    The default preset costs about 6 ms of one core for a frame of 1280x720, two thirds of the next slower one, at
    the same quality in files about twice as large.

    Attributes:
        path: the file.
        size: (width, height) of the video.
        seconds: time spent converting and encoding so far.

    Raises:
        OSError: the file cannot be created, or (from `write` and `close`) written; the error names it.
        ValueError: a frame of another size than announced.
    """

    def __init__(
        self,
        path: str | Path,
        frame_rate: float,
        size: tuple[int, int],
        crf: int = 23,
        preset: str = "ultrafast",
    ) -> None:
        self.path = Path(path)
        self._frame_size = size
        self.size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.seconds = 0.0
        # 29.97... is 30000/1001: broadcast rates are fractions of this denominator.
        self._rate = Fraction(frame_rate).limit_denominator(1001)
        self._count = 0
        self._next = 0
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[Frame, int] | None] = queue.Queue(_QUEUE_SIZE)
        with self.path.open("wb"):
            pass  # a clear error for a folder that cannot be written, before FFmpeg gives its own
        fragments = {"movflags": "hybrid_fragmented"} if av.library_versions["libavformat"] >= (61, 7, 0) else {}
        self._container = av.open(str(self.path), "w", format="mp4", options=fragments)
        # Ultrafast leaves the deblocking filter out; with it, flat regions show no blocks, at no measurable cost.
        options = {"crf": str(crf), "preset": preset, "x264-params": "no-deblock=0:log-level=none"}
        self._stream: Any = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(1, round(_KEY_FRAME_SECONDS * frame_rate))
        self._stream.codec_context.thread_count = codec_threads()
        self._thread: threading.Thread | None = threading.Thread(target=self._encode_all, name="encode", daemon=True)
        self._thread.start()

    def write(self, frame: Frame, place: int | None = None) -> None:
        """Queue a frame (H, W, 3) uint8 BGR; the array is not copied and must not be changed afterwards.

        Args:
            frame: the picture.
            place: when it is shown, in frame periods from 0, rising; None is the next one. A place left out shows the
                picture before for longer.
        """
        self._raise_error()
        got = (frame.shape[1], frame.shape[0])
        if got != self._frame_size:
            raise ValueError(f"frame: expected size {self._frame_size} for {self.path}, got {got}")
        self._next = self._next if place is None else place
        self._queue.put((frame, self._next))
        self._next += 1

    def _encode_all(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error, frames are taken off so that `write` never blocks
                self._guarded(self._encode, item)
        if self._error is None:
            self._guarded(self._mux, None)
        try:
            self._container.close()
        except BaseException as error:
            self._error = self._error or error

    def _guarded(self, step: Any, argument: Any) -> None:
        started = time.perf_counter()
        try:
            step(argument)
        except BaseException as error:  # raised again in the caller's thread
            self._error = error
        self.seconds += time.perf_counter() - started

    def _encode(self, item: tuple[Frame, int]) -> None:
        frame, place = item
        down, right = self.size[1] - frame.shape[0], self.size[0] - frame.shape[1]
        if down or right:
            frame = np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge")
        planes = np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420), np.uint8)
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.pts = place
        picture.time_base = 1 / self._rate
        self._count += 1
        self._mux(picture)

    def _mux(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def _raise_error(self) -> None:
        error = self._error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if error is not None:
            raise error

    def close(self) -> None:
        """Encode what is queued and finish the file; raises what went wrong unless `write` already did."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        failed_before = self._error is not None
        self._queue.put(None)
        thread.join()
        if self._count == 0:
            self.path.unlink(missing_ok=True)  # a video without pictures is a file that no player opens
        elif self._error is not None:
            cut_to_whole_parts(self.path)  # a full disk leaves half a part, which strict readers stumble over
        if not failed_before:
            self._raise_error()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
