"""Sources that misbehave on request: out of memory, from a file of variable rate, over a real connection."""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.tracker.clips import SIZE, scene


class FakeSource:
    """Frames out of memory; can fail, be slow, stand still, be live, and have times.

    Args:
        count: frames it has.
        live: whether it is live.
        delay: seconds before each frame.
        error: raised behind the last frame.
        hold: frame before which it stands still until `release` is set.
        times: of the frames; None everywhere by default.
        size: (width, height).
    """

    frame_rate: float | None = 25.0
    first_frame = 1

    def __init__(
        self,
        count: int = 20,
        live: bool = False,
        delay: float = 0.0,
        error: BaseException | None = None,
        hold: int | None = None,
        times: Sequence[float | None] | None = None,
        size: tuple[int, int] = SIZE,
        name: str = "fake",
    ) -> None:
        self.location = self.name = name
        self.size = size
        self.frame_count = count
        self.live = live
        self.timestamp: float | None = None
        self.given = 0
        self.closed = 0
        self.release = threading.Event()
        self._delay, self._error, self._hold, self._times = delay, error, hold, times

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(1, self.frame_count + 1):
            if number == self._hold:
                self.release.wait()
            time.sleep(self._delay)
            self.given = number
            self.timestamp = self._times[number - 1] if self._times else None
            yield scene(number, self.size)
        if self._error:
            raise self._error

    def stop(self) -> None:
        self.release.set()

    def close(self) -> None:
        self.closed += 1


def write_timed_clip(path: Path, milliseconds: Sequence[int]) -> Path:
    """A video of `scene` whose frames are shown at the given times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for number, time_ in enumerate(milliseconds, start=1):
            picture = av.VideoFrame.from_ndarray(scene(number), format="bgr24")
            picture.pts, picture.time_base = time_, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def sends(data: bytes, then: Callable[[], object] = lambda: None) -> Answer:
    """An answer of so many bytes, after which the connection breaks off."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp2t")
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()
        then()

    return answer


def refuses(handler: http.server.BaseHTTPRequestHandler) -> None:
    """An answer as of a camera that is starting up."""
    handler.send_error(503)


@contextlib.contextmanager
def served(*answers: Answer) -> Iterator[str]:
    """The address of a stream that answers each connection in its own way, and refuses the ones after."""
    remaining = iter(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                next(remaining, refuses)(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/cam.ts"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
