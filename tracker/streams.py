"""Many sources, one detector: every stream has its own tracker, and all share the batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracker.live import LiveConfig
from tracker.sources import Source, SourceError
from tracker.tracker import Tracker
from tracker.types import Detections, FrameResult
from tracker.video import Frame

if TYPE_CHECKING:
    from tracker.camera_motion import CameraMotion

# What a detector may return for a frame: `Detections`, or torchvision's dictionary of arrays.
Detector = Callable[[list[Frame]], Sequence[Detections | Mapping[str, Any]]]

# How long to wait for the readers to let go when iteration ends early; a network stream may be slow to answer.
_STOP_SECONDS = 5.0
# Frames of a live source that wait at most, however short the time between them.
_LIVE_FRAMES = 16


@dataclass(eq=False)
class _Job:
    """A frame on its way from a source through the detector."""

    stream: _Stream
    frame: Frame
    number: int
    timestamp: float | None
    arrived: float
    detections: Detections | None = None
    error: BaseException | None = None


@dataclass(eq=False)
class _Stream:
    """A source and what belongs to it; `waiting` are frames that no detecting thread has taken yet."""

    index: int
    source: Source
    tracker: Tracker
    motion: CameraMotion | None
    number: int
    room: threading.Condition
    waiting: deque[_Job] = field(default_factory=deque)
    ended: bool = False
    error: BaseException | None = None


class Streams:
    """One pass over several sources: each has a thread that decodes, some detect, and whoever iterates associates.

    Few frames wait between the stages, so memory stays bounded however long the sources are. The detecting threads take
    frames from the sources in turn, so that each gets its share. Frames of recorded sources go to the detector in full
    batches; a frame of a live one waits for no other, and neither does the rest of a source that has ended. A source
    that is slow, stands still, ends or fails does not keep the others waiting.

    A live source is never held up. Of its waiting frames, those that have waited longer than `LiveConfig.max_latency`
    are dropped in favour of newer ones, the oldest first; the newest is always kept. Frame numbers count the
    frames that came, dropped ones too, and the tracker learns from the timestamps how much time has passed.

    Attributes:
        sources: the sources.
        seconds: time spent so far in `decode` and `detect` (summed over the threads; live sources decode while they
            wait), `motion` (of the camera, where a tracker asks for it) and `associate`. The stages overlap, so their
            sum can exceed the time on the clock.
        dropped: frames dropped of each source.
        errors: what ended the sources that failed so far, by index.

    Args:
        sources: open sources, at least one; each is closed when it is over, or when iteration ends.
        detector: any callable from a list of frames (H, W, 3) uint8 BGR, whose sizes may differ between streams, to one
            `Detections` each, or one dictionary of `boxes` (N, 4) xyxy, `scores` (N,) and, where it has them,
            `embeddings` (N, D).
        trackers: one for each source; gets every frame of it once, in order.
        workers: threads that call the detector at the same time, on different frames.
        batch_size: frames given to the detector in one call, at most.
        live: what is done when frames of live sources wait; None is the default.
        on_end: called with a source's index and, if it failed, the error, when its last frame has been yielded; from
            the thread that iterates.

    Raises:
        ValueError: impossible arguments.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        detector: Detector,
        trackers: Sequence[Tracker],
        *,
        workers: int = 1,
        batch_size: int = 1,
        live: LiveConfig | None = None,
        on_end: Callable[[int, BaseException | None], None] | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("batch_size", batch_size), ("sources", len(sources))):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if len(trackers) != len(sources) or len({id(tracker) for tracker in trackers}) != len(sources):
            given = len({id(tracker) for tracker in trackers})
            raise ValueError(f"trackers: expected one of its own for each of {len(sources)} sources, got {given}")
        self.sources = list(sources)
        self.dropped = [0] * len(sources)
        self.errors: dict[int, BaseException] = {}
        self._detector = detector
        self._batch_size = batch_size
        self._max_latency = (live or LiveConfig()).max_latency
        self._on_end = on_end
        self._lock = threading.Lock()  # for everything below; the conditions tell who waits for what
        self._frame_waits = threading.Condition(self._lock)
        self._frame_is_done = threading.Condition(self._lock)
        self._streams = [
            _Stream(i, source, tracker, _camera_motion(tracker), source.first_frame, threading.Condition(self._lock))
            for i, (source, tracker) in enumerate(zip(sources, trackers, strict=True))
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), name=f"decode-{stream.index}", daemon=True)
            for stream in self._streams
        ]
        self._detecting = [threading.Thread(target=self._work, name=f"detect-{i}", daemon=True) for i in range(workers)]
        self._turns = deque(self._streams)  # the first is next to give a frame to the detector
        # Frames that the detector has, or has had, and that are still to be yielded, in the order in which they were
        # taken: every worker has a batch in hand, and one more may wait for whoever iterates.
        self._taken: list[_Job] = []
        self._max_taken = 2 * workers * batch_size
        self._stopped = False
        moving = any(stream.motion for stream in self._streams)
        self.seconds = dict.fromkeys(("decode", "detect", *(["motion"] if moving else []), "associate"), 0.0)

    def __iter__(self) -> Generator[tuple[int, Frame, FrameResult], None, None]:
        """Index of the source, frame and result, in order within each source; iterate once.

        Raises:
            SourceError: at the end, when all other sources are over, if a source failed.
            Exception: at once, what the detector or a tracker raised.
        """
        open_streams = list(self._streams)
        try:
            for thread in (*self._readers, *self._detecting):
                thread.start()
            while open_streams:
                item = self._next(open_streams)
                if isinstance(item, _Stream):
                    self._finish(item)
                    open_streams.remove(item)
                else:
                    yield item.stream.index, item.frame, self._associate(item)
        finally:
            self._shut_down(open_streams)
        if len(self.errors) == 1:
            raise next(iter(self.errors.values()))
        if self.errors:
            reasons = "; ".join(str(self.errors[index]) for index in sorted(self.errors))
            raise SourceError(f"{len(self.errors)} of {len(self.sources)} sources failed: {reasons}")

    def _read(self, stream: _Stream) -> None:
        """Body of a source's thread: whatever ends it, the consumer hears of it after the frames before."""
        try:
            frames = iter(stream.source)
            while True:
                started = time.perf_counter()
                frame = next(frames, None)
                spent = time.perf_counter() - started
                if frame is None or not self._offer(stream, frame, spent):
                    break
        except BaseException as error:  # raised again by whoever iterates
            stream.error = error
        with self._lock:
            stream.ended = True
            self._frame_waits.notify_all()
            self._frame_is_done.notify()

    def _offer(self, stream: _Stream, frame: Frame, decoding: float) -> bool:
        """Let a frame wait for the detector, once there is room; False when iteration has ended."""
        job = _Job(stream, frame, stream.number, stream.source.timestamp, time.monotonic())
        stream.number += 1
        with self._lock:
            self.seconds["decode"] += decoding
            while not stream.source.live and len(stream.waiting) >= max(2, self._batch_size) and not self._stopped:
                stream.room.wait()
            stream.waiting.append(job)
            self._drop_stale(stream)
            self._frame_waits.notify()
            return not self._stopped

    def _drop_stale(self, stream: _Stream) -> None:
        """Drop what has waited too long in a live source, but for the newest frame."""
        waiting, oldest = stream.waiting, time.monotonic() - self._max_latency
        while stream.source.live and len(waiting) > 1:
            if waiting[0].arrived >= oldest and len(waiting) <= _LIVE_FRAMES:
                break
            waiting.popleft()
            self.dropped[stream.index] += 1

    def _work(self) -> None:
        """Body of a detecting thread."""
        while batch := self._take():
            started = time.perf_counter()
            detected: list[Detections] = []
            failure = None
            try:
                detected = self._detect([job.frame for job in batch])
            except BaseException as error:  # raised again by whoever iterates
                failure = error
            with self._lock:
                self.seconds["detect"] += time.perf_counter() - started
                for i, job in enumerate(batch):
                    job.detections, job.error = (None, failure) if failure else (detected[i], None)
                self._frame_is_done.notify()

    def _take(self) -> list[_Job]:
        """The next batch, as soon as there is one; empty when there will be none."""
        with self._lock:
            while not self._stopped:
                if self._may_start():
                    batch = self._next_batch()
                    self._taken += batch
                    return batch
                if all(stream.ended and not stream.waiting for stream in self._streams):
                    break
                self._frame_waits.wait()
            return []

    def _may_start(self) -> bool:
        """Whether there is room for a batch, and the frames that wait are enough or may not wait longer."""
        if len(self._taken) + self._batch_size > self._max_taken:
            return False
        urgent = any(stream.waiting and (stream.source.live or stream.ended) for stream in self._streams)
        return urgent or sum(len(stream.waiting) for stream in self._streams) >= self._batch_size

    def _next_batch(self) -> list[_Job]:
        """Waiting frames, one of each source in turn."""
        batch: list[_Job] = []
        passed_over = 0
        while len(batch) < self._batch_size and passed_over < len(self._turns):
            stream = self._turns[0]
            self._turns.rotate(-1)
            if not stream.waiting:
                passed_over += 1
                continue
            passed_over = 0
            self._drop_stale(stream)
            batch.append(stream.waiting.popleft())
            stream.room.notify()
        return batch

    def _detect(self, frames: list[Frame]) -> list[Detections]:
        outputs = self._detector(frames)
        if len(outputs) != len(frames):
            raise ValueError(f"detector: expected {len(frames)} results for as many frames, got {len(outputs)}")
        return [output if isinstance(output, Detections) else Detections.from_torchvision(output) for output in outputs]

    def _next(self, open_streams: list[_Stream]) -> _Job | _Stream:
        """The frame that was taken first among those whose turn it is in their stream, or a stream that is over."""
        with self._lock:
            while True:
                unfinished = set()
                for job in self._taken:
                    if job.stream.index not in unfinished and (job.detections is not None or job.error):
                        self._taken.remove(job)
                        self._frame_waits.notify()
                        return job
                    unfinished.add(job.stream.index)
                for stream in open_streams:
                    if stream.ended and not stream.waiting and stream.index not in unfinished:
                        return stream
                self._frame_is_done.wait()

    def _associate(self, job: _Job) -> FrameResult:
        if job.error is not None:
            raise job.error
        stream, detections = job.stream, job.detections
        assert detections is not None
        clock = time.perf_counter()
        motion = None
        if stream.motion is not None:
            motion = stream.motion.estimate(job.frame, detections.xyxy)
            self.seconds["motion"] += time.perf_counter() - clock
            clock = time.perf_counter()
        result = stream.tracker.update(detections, seconds=job.timestamp, camera_motion=motion)
        result = replace(result, frame=job.number)
        self.seconds["associate"] += time.perf_counter() - clock
        return result

    def _finish(self, stream: _Stream) -> None:
        """A stream is over: release its source, and tell."""
        self._readers[stream.index].join()
        stream.source.close()
        if stream.error is not None:
            self.errors[stream.index] = stream.error
        if self._on_end is not None:
            self._on_end(stream.index, stream.error)

    def _shut_down(self, open_streams: list[_Stream]) -> None:
        with self._lock:
            self._stopped = True
            for condition in (self._frame_waits, *(stream.room for stream in open_streams)):
                condition.notify_all()
        for stream in open_streams:
            stream.source.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for stream in open_streams:
            reader = self._readers[stream.index]
            if reader.is_alive():
                reader.join(max(0.0, deadline - time.monotonic()))
            if not reader.is_alive():  # closing a source under a thread that is reading it would crash
                stream.source.close()
        for thread in self._detecting:
            if thread.is_alive():
                thread.join()


def _camera_motion(tracker: Tracker) -> CameraMotion | None:
    method = tracker.config.camera_motion
    if method == "none":
        return None
    from tracker.camera_motion import CameraMotion  # only where it is asked for

    return CameraMotion(method)
