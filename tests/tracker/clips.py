"""Small videos with a known content, and a detector that finds it."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tracker.types import Detections

SIZE = (96, 64)
SQUARE = 16


def scene(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Frame `number` (from 1): a white square on dark noise that walks a pixel a frame, to and fro."""
    rng = np.random.default_rng(number)
    frame = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    room = size[0] - SQUARE
    left = room - abs(number % (2 * room) - room)
    frame[20 : 20 + SQUARE, left : left + SQUARE] = 255
    return frame


def square_left(frame: NDArray[np.uint8]) -> int:
    """Left edge of the square in a frame, in pixels."""
    columns = (frame[..., 1] > 150).sum(axis=0) > SQUARE // 2
    return int(np.argmax(columns))


def find_square(frames: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    """A detector: one box around what is bright."""
    found = []
    for frame in frames:
        x, y, w, h = cv2.boundingRect((frame[..., 1] > 150).astype(np.uint8))
        box = np.array([[x, y, x + w, y + h]] if w else [], np.float32)
        found.append(Detections(box, np.full(len(box), 0.9, np.float32)))
    return found


def write_clip(
    path: Path,
    count: int = 30,
    rate: Fraction | int = 25,
    size: tuple[int, int] = SIZE,
    movflags: str = "",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """An H.264 video of `scene`, written by FFmpeg directly; the container follows the suffix."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast", **options})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.thread_count = 1
        for number in range(1, count + 1):
            picture = av.VideoFrame.from_ndarray(scene(number, size), format="bgr24")
            picture.pts = number - 1
            picture.time_base = 1 / Fraction(rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def repeat_clip(source: Path, path: Path, times: int) -> Path:
    """A video so many times after itself, its pictures copied as they are coded."""
    with av.open(str(source)) as film, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(film.streams.video[0])
        duration = film.streams.video[0].duration
        assert duration
        for start in range(0, times * duration, duration):
            film.seek(0)
            for packet in film.demux(video=0):
                if packet.dts is None or packet.pts is None:
                    continue  # the end
                packet.dts += start
                packet.pts += start
                packet.stream = stream
                container.mux(packet)
    return path


def write_images(folder: Path, count: int, suffix: str = ".png") -> Path:
    """Frames of `scene` as `1.png`, `2.png`, ..., whose order by text is another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        cv2.imwrite(str(folder / f"{number}{suffix}"), scene(number))
    return folder


def decoded(path: Path) -> list[NDArray[np.uint8]]:
    """All frames of a video, BGR, by FFmpeg directly."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
