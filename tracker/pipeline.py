"""From a source of frames to identities: decoding, detection and association at the same time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracker.sources import Source, open_source
from tracker.tracker import Tracker, TrackerConfig
from tracker.types import Detections, FrameResult
from tracker.video import Frame

# What a detector may return for a frame: `Detections`, or torchvision's dictionary of arrays.
Detector = Callable[[list[Frame]], Sequence[Detections | Mapping[str, Any]]]

_Batch = tuple[int, list[Frame], "Future[tuple[list[Detections], float]]"]

# How long to wait for the decoder to let go when iteration ends early; a network stream may be slow to answer.
_STOP_SECONDS = 5.0


def track(
    source: str | int | Path | Source,
    detector: Detector,
    config: TrackerConfig | None = None,
    *,
    start: int | None = None,
    end: int | None = None,
    workers: int = 1,
    batch_size: int = 1,
) -> Generator[tuple[Frame, FrameResult], None, None]:
    """Track the people in a video.

        for frame, result in track("in.mp4", load_detector()):
            print(result.frame, result.track_ids, result.xyxy)

    Args:
        source: what `open_source` takes, or an open source (closed at the end).
        detector: any callable from a list of frames (H, W, 3) uint8 BGR to one `Detections` each, or one
            dictionary of `boxes` (N, 4) xyxy, `scores` (N,) and, where it has them, `embeddings` (N, D).
        config: settings of the tracker.
        start: 1-based number of the first frame; only where `source` is still to be opened.
        end: number of the last frame, inclusive.
        workers: threads that call the detector at the same time, on different frames.
        batch_size: frames given to the detector in one call; more than 1 pays on a GPU.

    Yields:
        Each frame (H, W, 3) uint8 BGR, in order, with its identities; `result.frame` is the frame's number in
        the source. The array is the caller's to keep or to draw on.

    Raises:
        FileNotFoundError: no such source.
        SourceError: the source cannot be read, or broke off; every frame before has been yielded then.
        ValueError: impossible arguments, or a detector that returns something else.
    """
    if isinstance(source, (str, int, Path)):
        source = open_source(source, start, end)
    elif start is not None or end is not None:
        raise ValueError("start, end: expected None for a source that is already open")
    tracker = Tracker(config, source.frame_rate)
    return iter(Pipeline(source, detector, tracker, workers=workers, batch_size=batch_size))


class Pipeline:
    """One pass over a source: a thread decodes, others detect, and whoever iterates associates.

    Frames wait in a short queue between the stages, so memory stays bounded however long the source is. A live
    source is not held up: a frame that finds the queue full is dropped, and the numbers count the frames that were
    processed.

    Attributes:
        seconds: time spent so far in `decode`, `detect` (summed over the workers) and `associate`. The stages
            overlap, so their sum can exceed the time on the clock.
        dropped: frames of a live source that were dropped.

    Args:
        source: an open source; closed when iteration ends, however it ends.
        detector: see `track`.
        tracker: gets every frame once, in order.
        workers: threads that call the detector.
        batch_size: frames per call of the detector; 1 for a live source, which is not to wait.
    """

    def __init__(
        self, source: Source, detector: Detector, tracker: Tracker, *, workers: int = 1, batch_size: int = 1
    ) -> None:
        for name, value in (("workers", workers), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.source = source
        self.seconds = {"decode": 0.0, "detect": 0.0, "associate": 0.0}
        self.dropped = 0
        self._detector = detector
        self._tracker = tracker
        self._workers = workers
        self._batch_size = 1 if source.live else batch_size
        # Every worker has one batch in hand and one waiting; exceptions and the end travel in the same queue.
        self._queue: queue.Queue[_Batch | BaseException | None] = queue.Queue(2 * workers + 1)
        self._stop = threading.Event()

    def __iter__(self) -> Generator[tuple[Frame, FrameResult], None, None]:
        """Frames with their results, in order; see `track`."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="detect")
        decoder = threading.Thread(target=self._decode, args=(pool,), name="decode", daemon=True)
        decoder.start()
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                first, frames, future = item
                detected, seconds = future.result()
                self.seconds["detect"] += seconds
                for number, (frame, detections) in enumerate(zip(frames, detected, strict=True), start=first):
                    started = time.perf_counter()
                    result = replace(self._tracker.update(detections), frame=number)
                    self.seconds["associate"] += time.perf_counter() - started
                    yield frame, result
        finally:
            self._shut_down(decoder, pool)

    def _decode(self, pool: ThreadPoolExecutor) -> None:
        """Body of the decoding thread: whatever ends it, the consumer hears of it after the frames before."""
        try:
            self._hand_out(pool)
            last: BaseException | None = None
        except BaseException as error:  # raised again by whoever iterates
            last = error
        if not self._stop.is_set():
            self._queue.put(last)

    def _hand_out(self, pool: ThreadPoolExecutor) -> None:
        """Read frames and hand them to the detecting threads."""
        number = self.source.first_frame
        batch: list[Frame] = []

        def submit() -> None:
            nonlocal number, batch
            if batch:
                self._queue.put((number, batch, pool.submit(self._detect, batch)))
                number += len(batch)
                batch = []

        frames = iter(self.source)
        while not self._stop.is_set():
            started = time.perf_counter()
            try:
                frame = next(frames, None)
            except BaseException:
                submit()
                raise
            finally:
                self.seconds["decode"] += time.perf_counter() - started
            if frame is None:
                submit()
                return
            if self.source.live and self._queue.full():
                self.dropped += 1
                continue
            batch.append(frame)
            if len(batch) == self._batch_size:
                submit()

    def _detect(self, frames: list[Frame]) -> tuple[list[Detections], float]:
        started = time.perf_counter()
        outputs = self._detector(frames)
        if len(outputs) != len(frames):
            raise ValueError(f"detector: expected {len(frames)} results for as many frames, got {len(outputs)}")
        detections = [
            output if isinstance(output, Detections) else Detections.from_torchvision(output) for output in outputs
        ]
        return detections, time.perf_counter() - started

    def _shut_down(self, decoder: threading.Thread, pool: ThreadPoolExecutor) -> None:
        self._stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        # The decoder may be waiting for room in the queue; making room lets it see that it is to stop.
        while decoder.is_alive() and time.monotonic() < deadline:
            while not self._queue.empty():
                self._queue.get_nowait()
            decoder.join(0.02)
        pool.shutdown(wait=True, cancel_futures=True)
        if not decoder.is_alive():  # closing a source under a thread that is reading it would crash
            self.source.close()
