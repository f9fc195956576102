import contextlib
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tracker.clips import scene, write_clip, write_images
from tracker import sources
from tracker.clock import DEFAULT_FRAME_RATE
from tracker.images import ImageSource
from tracker.live import LiveConfig, ReconnectingSource
from tracker.sources import CameraSource, EveryNth, SourceError, expand, open_source, recording_name
from tracker.video import VideoSource


def test_kinds(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    folder = write_images(tmp_path / "walk", 3)
    for given in (clip, str(clip)):
        assert isinstance(open_source(given), VideoSource)
    for given, name in ((folder, "walk"), (f"{folder}/*.png", "walk"), (folder / "2.png", "2")):
        source = open_source(given)
        assert isinstance(source, ImageSource)
        assert (source.name, source.frame_rate) == (name, None)


def test_folder_called_img1_takes_its_parents_name_and_rate(tmp_path: Path) -> None:
    sequence = tmp_path / "SEQ-01"
    images = write_images(sequence / "img1", 2)
    assert open_source(images).name == "SEQ-01"
    assert open_source(f"{images}/*.png").name == "SEQ-01"
    (sequence / "seqinfo.ini").write_text("[Sequence]\nname=x\nimDir=img1\nframeRate=14\nseqLength=2\n")
    for given in (images, sequence):
        source = open_source(given)
        assert (source.name, source.frame_rate, source.frame_count) == ("SEQ-01", 14.0, 2)


def test_img1_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "SEQ-01" / "img1", 2)
    monkeypatch.chdir(images.parent)
    assert open_source("img1").name == "SEQ-01"
    monkeypatch.chdir(images)
    assert open_source(".").name == "SEQ-01"


def test_sequence_description_of_another_folder_is_not_used(tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", 2)
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nimDir=img1\nframeRate=14\nseqLength=2\n")
    assert open_source(other).frame_rate is None


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4: no such file or folder"):
        open_source(tmp_path / "gone.mp4")
    with pytest.raises(SourceError, match=r"bare: no images in this folder \(looked for \.jpg"):
        open_source(tmp_path / "bare")
    with pytest.raises(SourceError, match=r"\*\.jpg: no image matches"):
        open_source(f"{tmp_path}/*.jpg")


def test_absent_camera() -> None:
    if any(Path("/dev").glob("video*")):
        pytest.skip("this machine has a camera")
    for given in (7, "7"):
        with pytest.raises(SourceError, match=r"camera 7: cannot be opened"):
            open_source(given)


class FakeCapture:
    """Stands in for a camera that gives ten frames and then stops."""

    def __init__(self, index: int) -> None:
        self.count = 0
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.count += 1
        return (True, scene(self.count)) if self.count <= 11 else (False, None)

    def get(self, key: int) -> float:
        return 15.0

    def release(self) -> None:
        self.released = True


def test_camera_gives_frames_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    camera = open_source("0", end=4, live=LiveConfig(give_up_after=0))
    assert isinstance(camera, CameraSource)
    assert (camera.name, camera.frame_rate, camera.size, camera.live) == ("camera0", 15.0, (96, 64), True)
    before = time.monotonic()
    times = [camera.timestamp for _ in camera]
    assert len(times) == 4
    assert before < times[0] < times[1] < times[2] < times[3] < time.monotonic()
    camera = open_source(0, live=LiveConfig(give_up_after=0))
    with pytest.raises(SourceError, match="camera 0: stopped at frame 10: no frame arrived"):
        list(camera)
    camera.close()
    assert camera._capture.released


def test_camera_that_stops_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    said: list[str] = []
    with contextlib.closing(open_source(0, end=25, live=LiveConfig(first_wait=0.01), on_message=said.append)) as camera:
        assert isinstance(camera, ReconnectingSource)
        assert (camera.name, camera.frame_rate, camera.size, camera.live) == ("camera0", 15.0, (96, 64), True)
        assert len(list(camera)) == 25  # ten, ten again, and five
    lost = "camera 0: connection lost (stopped at frame 10: no frame arrived), trying again in 0.01 s"
    assert said == [lost, "camera 0: connected after 0 s"] * 2


def test_what_is_recorded_is_not_opened_again(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 3)
    source = open_source(clip, live=LiveConfig(give_up_after=None))
    assert isinstance(source, VideoSource)
    assert len(list(source)) == 3


@pytest.mark.parametrize(("start", "end"), [(None, None), (3, None), (None, 8), (2, 9), (10, 10)])
@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_every_nth_frame(tmp_path: Path, every: int, start: int | None, end: int | None) -> None:
    frames = list(open_source(write_clip(tmp_path / "walk.mp4", 10)))
    with contextlib.closing(EveryNth(open_source(tmp_path / "walk.mp4", start, end), every, end)) as source:
        assert (source.name, source.size, source.live, source.first_frame) == ("walk", (96, 64), False, 1)
        assert source.location.endswith("walk.mp4")
        assert source.frame_rate == pytest.approx(25 / every)
        seen, times = [], []
        for frame in source:
            seen.append(frame)
            times.append(source.timestamp)
    numbers = range(start or 1, (end or 10) + 1, every)
    assert source.frame_count == len(seen) == len(numbers)
    assert all(np.array_equal(frame, frames[number - 1]) for frame, number in zip(seen, numbers, strict=True))
    assert times == pytest.approx([(number - 1) / 25 for number in numbers], abs=1e-3)


def test_every_nth_image_of_a_folder(tmp_path: Path) -> None:
    source = EveryNth(open_source(write_images(tmp_path / "walk", 7)), 3)
    assert (source.every, source.frame_count) == (3, 3)
    assert source.frame_rate == DEFAULT_FRAME_RATE / 3  # a folder does not say
    assert all(np.array_equal(frame, scene(number)) for frame, number in zip(source, (1, 4, 7), strict=True))
    again = EveryNth(open_source(tmp_path / "walk"), 3, 100)  # an end behind the last frame
    assert again.frame_count == 3


def test_every_nth_frame_ends_when_told(tmp_path: Path) -> None:
    source = EveryNth(open_source(write_clip(tmp_path / "a.mp4", 20)), 2)
    frames = iter(source)
    next(frames)
    source.stop()
    assert len(list(frames)) <= 1
    source.close()


def test_every_nth_closes_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = open_source(write_clip(tmp_path / "a.mp4", 3))
    closed = []
    monkeypatch.setattr(inner, "close", lambda: closed.append(True))
    EveryNth(inner, 2).close()
    assert closed == [True]


def test_every_nth_of_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = open_source(write_clip(tmp_path / "a.mp4", 3))
    for every in (0, -2):
        with pytest.raises(ValueError, match=f"every: expected at least 1, got {every}"):
            EveryNth(clip, every)
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    camera = open_source(0, live=LiveConfig(give_up_after=0))
    with pytest.raises(ValueError, match="camera 0: expected a recording, got a live source"):
        EveryNth(camera, 2)


def test_a_glob_of_images_is_one_input_and_one_of_videos_is_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "sequence", 2)
    Path("archive").mkdir()
    for name in ("10.MP4", "2.mkv", "notes.txt", "a.odd", "10.tracked.mp4", "10.txt"):
        (tmp_path / "archive" / name).touch()
    assert expand(["archive/*"]) == ["archive/2.mkv", "archive/10.MP4"]
    assert expand(["sequence/*.png"]) == ["sequence/*.png"]
    assert expand(["*"]) == ["sequence"]  # the other folder holds no images
    assert expand(["0", "rtsp://host/[a]*", "none.mp4", "", "archive/*.MP4", "sequence"]) == [
        *("0", "rtsp://host/[a]*", "none.mp4", "", "archive/10.MP4", "sequence")
    ]
    Path("archive/[1].odd").touch()
    assert expand(["archive/[1].odd"]) == ["archive/[1].odd"]  # there is such a file
    with pytest.raises(SourceError, match=r"archive/\*\.odd: no image matches, and no video"):
        expand(["archive/*.odd"])
    Path("archive/thumb.jpg").touch()
    with pytest.raises(SourceError, match=r"archive/\*: matches images and videos; expected one kind, such as \*\.mkv"):
        expand(["archive/*"])


@pytest.mark.parametrize("given", ["a.b.mp4", "seq", "seq/img1", "seq/img1/*.png", "seq/img1/1.png"])
def test_name_without_opening(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "a.b.mp4", 1)
    write_images(tmp_path / "seq" / "img1", 1)
    (tmp_path / "seq" / "seqinfo.ini").write_text("[Sequence]\nname=x\nimDir=img1\nframeRate=14\nseqLength=1\n")
    assert recording_name(given) == open_source(given).name
