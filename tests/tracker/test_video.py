import itertools
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.tracker.clips import SIZE, scene, square_left, write_clip
from tests.tracker.feeds import sends, served, write_timed_clip
from tracker import video
from tracker.containers import declared_end
from tracker.video import SourceError, VideoSource, without_secrets


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Decoding threads, as on a small and on a large machine."""
    monkeypatch.setattr(video, "codec_threads", lambda: request.param)
    return request.param


def read(path: Path, **span: int) -> list[np.ndarray]:
    with VideoSource(path, **span) as source:
        return list(source)


def read_until_error(path: Path) -> tuple[list[np.ndarray], str]:
    frames = []
    with VideoSource(path) as source, pytest.raises(SourceError) as caught:
        for frame in source:
            frames.append(frame)
    assert "\n" not in str(caught.value)
    return frames, str(caught.value)


def cut(path: Path, to: Path, size: int) -> Path:
    to.write_bytes(path.read_bytes()[:size])
    return to


def test_all_frames_in_order_with_rate_and_size(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "walk.v2.mp4", 40, Fraction(30000, 1001))
    with VideoSource(path) as source:
        frames = list(source)
        assert source.name == "walk.v2"
        assert source.frame_rate == pytest.approx(30000 / 1001, abs=1e-9)
        assert (source.size, source.frame_count, source.live) == (SIZE, 40, False)
    assert [square_left(f) for f in frames] == [square_left(scene(i)) for i in range(1, 41)]
    assert frames[0].dtype == np.uint8
    assert frames[0].shape == (SIZE[1], SIZE[0], 3)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p"])
def test_pixels_agree_with_opencv(tmp_path: Path, pix_fmt: str) -> None:
    path = write_clip(tmp_path / "a.mp4", 5, pix_fmt=pix_fmt)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for frame in read(path):
        arrived, expected = capture.read()
        assert arrived
        assert np.abs(frame.astype(int) - expected).max() <= (4 if pix_fmt == "yuv420p" else 12)
    assert not capture.read()[0]


def test_full_range_pictures_keep_their_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"cpu-used": "8", "deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.color_range = 2
        planes = np.full((SIZE[1] * 3 // 2, SIZE[0]), 128, np.uint8)
        planes[: SIZE[1]] = 30
        picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        picture.color_range, picture.pts, picture.time_base = 2, 0, Fraction(1, 25)
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert np.abs(read(path)[0].astype(int) - 30).max() <= 2


def test_start_and_end_are_inclusive_numbers_from_one(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 30)
    whole = read(path)
    with VideoSource(path, start=11, end=20) as source:
        assert source.first_frame == 11
        part = list(source)
    assert len(part) == 10
    assert all((a == b).all() for a, b in zip(part, whole[10:20], strict=True))
    assert len(read(path, start=30)) == 1
    assert len(read(path, end=1)) == 1
    assert len(read(path, start=25, end=99)) == 6
    with pytest.raises(SourceError, match=r"a\.mp4: start frame 31 lies behind the last, 30"):
        read(path, start=31)


@pytest.mark.parametrize(("start", "end", "message"), [(0, None, "start: .*got 0"), (5, 4, "end: .*from 5.*got 4")])
def test_impossible_ranges(tmp_path: Path, start: int, end: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoSource(write_clip(tmp_path / "a.mp4", 3), start, end)


def times(path: Path, **span: int) -> list[float | None]:
    with VideoSource(path, **span) as source:
        assert source.timestamp is None
        return [source.timestamp for _ in source]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_times_of_a_file_of_variable_rate(tmp_path: Path, suffix: str) -> None:
    shown = [0, 40, 80, 500, 510, 2000, 2033, 2066, 60_000, 60_040]
    path = write_timed_clip(tmp_path / f"a{suffix}", shown)
    assert times(path) == pytest.approx([t / 1000 for t in shown], abs=1e-3)
    assert times(path, start=6, end=8) == pytest.approx([2.0, 2.033, 2.066], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_times_rise_in_every_container(tmp_path: Path, suffix: str, threads: int) -> None:
    steps = np.diff(times(write_clip(tmp_path / f"a{suffix}", 30, bf="2")))
    if suffix == ".avi":  # keeps the times of decoding alone, one period more in the whole
        assert (steps > 0.039).all()
        assert sum(steps) == pytest.approx(29 / 25, abs=0.081)
    else:
        np.testing.assert_allclose(steps, 1 / 25, atol=1e-6)


def test_a_bare_stream_of_pictures_has_no_times(tmp_path: Path) -> None:
    assert times(write_clip(tmp_path / "a.h264", 5)) == [None] * 5


def test_times_after_the_threads_were_changed_at_a_damage(tmp_path: Path, threads: int) -> None:
    path = write_clip(tmp_path / "whole.mp4", 60, movflags="faststart", bf="0")
    short = cut(path, tmp_path / "cut.mp4", path.stat().st_size * 6 // 10)
    seen = []
    with VideoSource(short) as source, pytest.raises(SourceError):
        for _ in source:
            seen.append(source.timestamp)
    np.testing.assert_allclose(seen, np.arange(len(seen)) / 25, atol=1e-6)


def test_live_frames_keep_the_pace_of_the_stream_though_they_come_in_a_burst(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 25, g="5").read_bytes()
    before = time.monotonic()
    with served(sends(data)) as address, VideoSource(address, end=25) as source:
        assert (source.live, source.frame_count, source.name) == (True, None, "cam")
        seen = [(source.timestamp, time.monotonic()) for _ in source]
    assert len(seen) == 25
    shown, came = np.transpose(seen)
    assert before < shown[0] < came[0]
    np.testing.assert_allclose(np.diff(shown), 1 / 25, atol=1e-6)
    assert (shown - came < 0.5 + 0.001).all()
    assert came[11] - came[0] < 0.2


def test_silent_stream_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_STREAM_TIMEOUT", 0.5)
    data = write_clip(tmp_path / "a.ts", 50, g="5").read_bytes()
    quiet = threading.Event()
    with served(sends(data, then=quiet.wait)) as address:
        started = time.monotonic()
        try:
            with VideoSource(address) as source, pytest.raises(SourceError, match=r"stopped at frame \d+"):
                list(source)
        finally:
            quiet.set()
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://host/x", "rtsp://host/x"),
        ("rtsp://me:pass@host:554/x", "rtsp://***@host:554/x"),
        ("rtsp://me:p@ss?#@host/x", "rtsp://***@host/x"),
        ("http://host/a@b", "http://host/a@b"),
        ("http://h/x.ts?user=me&channel=2&PassWord=p%20q", "http://h/x.ts?user=***&channel=2&PassWord=***"),
        ("http://h/x?access_token=abc#t", "http://h/x?access_token=***#t"),
    ],
)
def test_secrets_in_addresses_are_not_shown(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_secrets_are_kept_out_of_attributes_and_errors(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", 10, g="5").read_bytes()
    with served(sends(data[: len(data) * 6 // 10])) as address, VideoSource(address) as source:
        with pytest.raises(SourceError) as caught:
            list(source)
        shown = [source.location, source.name, str(caught.value)]
        with pytest.raises(SourceError, match=r"http://\*\*\*@127\.0\.0\.1:\d+/cam\.ts: cannot be opened") as caught:
            VideoSource(address)
        with pytest.raises(SourceError) as dead:
            VideoSource("rtsp://user:secret@127.0.0.1:9")
    assert "secret" not in " ".join([*shown, str(caught.value), str(dead.value)])


def test_stopped_from_another_thread_ends(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "a.mp4", 30)) as source:
        for number, _ in enumerate(source, start=1):
            if number == 5:
                source.stop()
    assert number == 5


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a rotation into the track header of an MP4 file, as phones do (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), cv2.ROTATE_90_CLOCKWISE),
        ((-1, 0, 0, -1), cv2.ROTATE_180),
        ((0, -1, 1, 0), cv2.ROTATE_90_COUNTERCLOCKWISE),
    ],
)
def test_rotation_in_the_header_is_applied(tmp_path: Path, matrix: tuple[int, ...], turn: int) -> None:
    path = write_clip(tmp_path / "phone.mp4", 3)
    lying = read(path)
    set_display_matrix(path, *matrix)
    with VideoSource(path) as source:
        upright = list(source)
        assert source.size == (upright[0].shape[1], upright[0].shape[0])
    for a, b in zip(lying, upright, strict=True):
        assert (cv2.rotate(a, turn) == b).all()


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
def test_mp4_cut_in_the_middle_of_a_frame(tmp_path: Path, movflags: str) -> None:
    path = write_clip(tmp_path / "whole.mp4", 60, movflags=movflags, bf="0", g="10")
    whole = read(path)
    assert len(whole) == 60
    frames, message = read_until_error(cut(path, tmp_path / "cut.mp4", path.stat().st_size * 6 // 10))
    assert 20 < len(frames) < 50
    assert all((a == b).all() for a, b in zip(frames, whole, strict=False))
    assert f"cut.mp4: stopped at frame {len(frames)} of " in message


def test_mp4_cut_anywhere_is_noticed_and_every_frame_before_is_read(tmp_path: Path, threads: int) -> None:
    path = write_clip(tmp_path / "whole.mp4", 30, size=(320, 240), movflags="faststart", slices="4")
    whole = read(path)
    with av.open(str(path)) as container:
        packets = [(p.pts // p.duration, p.pos, p.size) for p in container.demux(video=0) if p.dts is not None]
    for at in (5, 17, 29):
        _, position, size = packets[at]
        shown = sorted(number for number, _, _ in packets[:at])  # frames are stored in another order than shown
        for length in (position, position + 1, position + size // 2, position + size - 1):
            frames, message = read_until_error(cut(path, tmp_path / "cut.mp4", length))
            assert f"stopped at frame {at} of 30" in message
            assert all((f == whole[n]).all() for f, n in zip(frames, shown, strict=True))


def test_mkv_and_avi_cut_short_are_noticed(tmp_path: Path) -> None:
    for suffix in (".mkv", ".avi"):
        path = write_clip(tmp_path / f"whole{suffix}", 60, bf="0")
        assert len(read(path)) == 60
        frames, message = read_until_error(cut(path, tmp_path / f"cut{suffix}", path.stat().st_size * 6 // 10))
        assert 15 < len(frames) < 55
        assert f"stopped at frame {len(frames)}" in message


def test_transport_stream_cut_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.ts", 60, size=(320, 240), bf="0", slices="4")
    whole = read(path)
    assert len(whole) == 60
    frames, message = read_until_error(cut(path, tmp_path / "cut.ts", path.stat().st_size * 6 // 10))
    assert 25 < len(frames) < 45
    assert all((a == b).all() for a, b in zip(frames, whole, strict=False))
    assert f"cut.ts: stopped at frame {len(frames)} of" in message


def test_mp4_cut_before_its_index_fails_at_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.mp4", 30)
    with pytest.raises(SourceError, match=r"cut\.mp4: not a video, or cut before its index"):
        VideoSource(cut(path, tmp_path / "cut.mp4", path.stat().st_size // 2))


def test_sound_missing_behind_the_last_frame_is_no_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 10, movflags="faststart")
    trailing = struct.pack(">I4s", 1000, b"free") + bytes(20)
    path.write_bytes(path.read_bytes() + trailing)
    end = declared_end(path)
    assert end is not None
    assert end > path.stat().st_size
    assert len(read(path)) == 10


def test_garbage_in_the_middle_ends_the_video_there(tmp_path: Path, threads: int) -> None:
    path = write_clip(tmp_path / "whole.mp4", 60, movflags="faststart", g="60")
    whole = read(path)
    with av.open(str(path)) as container:
        packets = [(p.pts // p.duration, p.pos) for p in container.demux(video=0) if p.dts is not None]
    start, end = packets[30][1], packets[40][1]
    data = bytearray(path.read_bytes())
    data[start:end] = np.random.default_rng(0).bytes(end - start)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    frames, message = read_until_error(damaged)
    shown = sorted(number for number, _ in packets[:30])
    assert all((f == whole[n]).all() for f, n in zip(frames, shown, strict=True))
    assert "damaged.mp4: stopped at frame 30 of 60: the picture data is damaged" in message


def test_pictures_with_parts_missing_are_not_given(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.ts", 60, size=(320, 240), bf="0", g="60")
    whole = read(path)
    assert len(whole) == 60
    data = path.read_bytes()
    middle = len(data) // 2 // 188 * 188  # a transport stream is a row of 188-byte packets; five of them get lost
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(data[:middle] + data[middle + 5 * 188 :])
    frames, message = read_until_error(damaged)
    assert 20 < len(frames) < 40
    assert all((a == b).all() for a, b in zip(frames, whole, strict=False))
    assert f"stopped at frame {len(frames)}" in message


def test_end_before_the_damage_is_no_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "whole.mp4", 60, movflags="faststart")
    short = cut(path, tmp_path / "cut.mp4", path.stat().st_size * 6 // 10)
    assert len(read(short, end=20)) == 20


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    for name, data, message in [
        ("empty.mp4", b"", r"empty\.mp4: the file is empty"),
        ("text.mp4", b"to be or not to be\n" * 100, r"text\.mp4: not a video"),
        ("text.txt", b"to be or not to be\n" * 100, r"text\.txt: no video in it"),
        ("zeros.mp4", bytes(10_000), r"zeros\.mp4: not a video"),
        ("noise.avi", np.random.default_rng(0).bytes(10_000), r"noise\.avi: "),
    ]:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(SourceError, match=message):
            VideoSource(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4: no such file"):
        VideoSource(tmp_path / "absent.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        for at in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, at * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match=r"song\.m4a: no video in it"):
        VideoSource(path)


def test_dead_stream_is_an_error() -> None:
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:9/x: cannot be opened"):
        VideoSource("rtsp://127.0.0.1:9/x")


def test_declared_end_is_the_size_of_whole_files(tmp_path: Path) -> None:
    for suffix, movflags in itertools.product((".mp4", ".mkv", ".avi"), ("", "faststart")):
        if movflags and suffix != ".mp4":
            continue
        path = write_clip(tmp_path / f"a{suffix}", 20, movflags=movflags)
        assert declared_end(path) == path.stat().st_size
    text = tmp_path / "a.txt"
    text.write_text("to be or not to be")
    assert declared_end(text) is None


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count"),
    [("cctv", 641), ("dense_crowd_portrait", 621), ("night_street", 597), ("one-by-one", 1394), ("people", 341)],
)
def test_real_videos_are_read_to_their_last_frame(shared: Path, name: str, count: int) -> None:
    with VideoSource(shared / f"data/video/{name}.mp4", start=count) as source:
        assert source.frame_count == count
        assert len(list(source)) == 1
