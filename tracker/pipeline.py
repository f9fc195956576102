"""From sources of frames to identities: decoding, detection and association at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from tracker.live import LiveConfig
from tracker.sources import Source, open_source
from tracker.streams import Detector, Streams
from tracker.tracker import Tracker, TrackerConfig
from tracker.types import FrameResult
from tracker.video import Frame

__all__ = ["Detector", "Pipeline", "Streams", "track", "track_many"]


def track(
    source: str | int | Path | Source,
    detector: Detector,
    config: TrackerConfig | None = None,
    *,
    start: int | None = None,
    end: int | None = None,
    workers: int = 1,
    batch_size: int = 1,
    live: LiveConfig | None = None,
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
        live: what is done when a live source is too fast or breaks off; None is the default.

    Yields:
        Each frame (H, W, 3) uint8 BGR, in order, with its identities; `result.frame` is the frame's number in
        the source. The array is the caller's to keep or to draw on.

    Raises:
        FileNotFoundError: no such source.
        SourceError: the source cannot be read, or broke off; every frame before has been yielded then.
        ValueError: impossible arguments, or a detector that returns something else.
    """
    if isinstance(source, (str, int, Path)):
        source = open_source(source, start, end, live)
    elif start is not None or end is not None:
        raise ValueError("start, end: expected None for a source that is already open")
    tracker = Tracker(config, source.frame_rate)
    return iter(Pipeline(source, detector, tracker, workers=workers, batch_size=batch_size, live=live))


def track_many(
    sources: Sequence[str | int | Path | Source],
    detector: Detector,
    config: TrackerConfig | None = None,
    *,
    workers: int = 1,
    batch_size: int = 1,
    live: LiveConfig | None = None,
    on_end: Callable[[int, BaseException | None], None] | None = None,
) -> Generator[tuple[int, Frame, FrameResult], None, None]:
    """Track the people in several videos or cameras at once, each with identities of its own, by one detector.

        for index, frame, result in track_many(["door.mp4", "rtsp://10.0.0.5/hall"], load_detector()):
            print(index, result.frame, result.track_ids)

    Args:
        sources: for each, what `open_source` takes, or an open source (closed at the end).
        detector: see `track`; frames of several sources share a batch.
        config: settings of every tracker.
        workers: threads that call the detector at the same time, on different frames.
        batch_size: frames given to the detector in one call.
        live: what is done when a live source is too fast or breaks off; None is the default.
        on_end: told when a source is over, and why if it failed; see `Streams`.

    Yields:
        The position of a source in `sources`, and as from `track` its next frame with the identities; in order within
        each source, while the sources mix as they come.

    Raises:
        FileNotFoundError: no such source.
        SourceError: a source cannot be opened; or, when all others have come to their end, one broke off.
        ValueError: impossible arguments, or a detector that returns something else.
    """
    if isinstance(sources, (str, Path)):
        raise ValueError(f"sources: expected a list, got {str(sources)!r}")
    with contextlib.ExitStack() as opened:
        ready: list[Source] = []
        for source in sources:
            if isinstance(source, (str, int, Path)):
                source = open_source(source, live=live)
                opened.callback(source.close)
            ready.append(source)
        trackers = [Tracker(config, source.frame_rate) for source in ready]
        streams = Streams(ready, detector, trackers, workers=workers, batch_size=batch_size, live=live, on_end=on_end)
        opened.pop_all()  # whoever iterates closes them
    return iter(streams)


class Pipeline:
    """One pass over one source: `Streams` of one.

    Attributes:
        source: the source.
        seconds: time spent so far in each stage, as in `Streams`.

    Args:
        source: an open source; closed when iteration ends, however it ends.
        detector: see `track`.
        tracker: gets every frame once, in order.
        workers: threads that call the detector.
        batch_size: frames per call of the detector; frames of a live source do not wait for others.
        live: what is done when frames of a live source wait; None is the default.
    """

    def __init__(
        self,
        source: Source,
        detector: Detector,
        tracker: Tracker,
        *,
        workers: int = 1,
        batch_size: int = 1,
        live: LiveConfig | None = None,
    ) -> None:
        self.source = source
        self._streams = Streams([source], detector, [tracker], workers=workers, batch_size=batch_size, live=live)
        self.seconds = self._streams.seconds

    @property
    def dropped(self) -> int:
        """Frames of a live source that were dropped."""
        return self._streams.dropped[0]

    def __iter__(self) -> Generator[tuple[Frame, FrameResult], None, None]:
        """Frames with their results, in order; see `track`."""
        with contextlib.closing(iter(self._streams)) as results:
            for _, frame, result in results:
                yield frame, result
