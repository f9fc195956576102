import resource
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.tracker.clips import SIZE, decoded, scene, square_left
from tracker.containers import cut_to_whole_parts
from tracker.writer import VideoWriter


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def test_every_frame_arrives_in_order_at_the_exact_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 30000 / 1001, SIZE) as writer:
        for number in range(1, 51):
            writer.write(scene(number))
    frames = decoded(path)
    assert [square_left(f) for f in frames] == [square_left(scene(i)) for i in range(1, 51)]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert stream.average_rate == Fraction(30000, 1001)
        assert stream.frames == 50
        assert [round(f.time * 30000 / 1001) for f in container.decode(stream)] == list(range(50))


def test_colours_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    frame[:, :48], frame[:, 48:] = (200, 40, 30), (20, 60, 220)
    with VideoWriter(path, 25, SIZE) as writer:
        writer.write(frame)
    got = decoded(path)[0]
    for x in (20, 70):
        assert np.abs(got[32, x].astype(int) - frame[32, x]).max() < 12


def test_odd_sides_grow_by_repeating_the_edge(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frame = np.full((63, 95, 3), 40, np.uint8)
    frame[:, -3:] = 220
    with VideoWriter(path, 25, (95, 63)) as writer:
        assert writer.size == (96, 64)
        writer.write(frame)
    got = decoded(path)[0]
    assert got.shape == (64, 96, 3)
    assert np.abs(got[60, 95].astype(int) - 220).max() < 12
    assert np.abs(got[63, 20].astype(int) - 40).max() < 12


def test_wrong_size_is_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 25, SIZE) as writer:
        with pytest.raises(ValueError, match=r"\(96, 64\).*\(50, 40\)"):
            writer.write(np.zeros((40, 50, 3), np.uint8))
        writer.write(scene(1))
    assert len(decoded(tmp_path / "a.mp4")) == 1


def test_playable_when_the_caller_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 25, SIZE) as writer:
        for number in range(1, 11):
            writer.write(scene(number))
        raise KeyboardInterrupt
    assert len(decoded(path)) == 10


def test_no_frames_leave_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 25, SIZE):
        pass
    assert not list(tmp_path.iterdir())


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        VideoWriter(tmp_path / "absent" / "a.mp4", 25, SIZE)


@pytest.fixture
def small_disk() -> object:
    """No file may grow beyond 200 kB, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_reaches_the_caller_and_leaves_a_playable_file(tmp_path: Path, small_disk: object) -> None:
    path = tmp_path / "a.mp4"
    written = 0
    with pytest.raises(OSError, match=r"a\.mp4"), VideoWriter(path, 5, SIZE) as writer:
        for number in range(1, 2000):
            writer.write(noise(number))
            written = number
    assert 10 < written < 1000
    frames = 0
    with av.open(str(path)) as container:
        try:
            for _ in container.decode(video=0):
                frames += 1
        except av.error.InvalidDataError:
            pass  # the last frame is a half one
    assert frames >= 10


def test_error_at_the_end_is_raised_once(tmp_path: Path, small_disk: object) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 5, SIZE)
    with pytest.raises(OSError, match=r"a\.mp4"):
        for number in range(1, 2000):
            writer.write(noise(number))
    writer.close()
    writer.close()


def test_a_place_left_out_shows_the_picture_before_for_longer(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 25, SIZE) as writer:
        for place in (0, 1, 5, 6):
            writer.write(scene(place + 1), place)
        writer.write(scene(8))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time * 25) for frame in frames] == [0, 1, 5, 6, 7]


def test_a_part_that_is_not_whole_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, 25, SIZE)
    for number in range(200):
        writer.write(noise(number))
    while writer._count < 200:
        pass
    data = path.read_bytes()  # fragments that are on disk while the film goes on
    writer.close()
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(data)
    cut_to_whole_parts(whole)
    expected = len(decoded(whole))
    assert expected > 50
    start = data.rindex(b"moof") - 4
    for end in (start + 4, start + 40, len(data) - 1, len(data)):
        path.write_bytes(data[:end])
        cut_to_whole_parts(path)
        assert 0 < len(decoded(path)) <= expected
        assert path.stat().st_size <= end
