from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tracker.clips import scene, write_images
from tracker.images import ImageSource, list_images, read_image
from tracker.video import SourceError


def test_natural_order_and_pixels(tmp_path: Path) -> None:
    paths = list_images(write_images(tmp_path, 12))
    assert [p.name for p in paths] == [f"{i}.png" for i in range(1, 13)]
    with ImageSource(paths, "x") as source:
        assert all((f == scene(i)).all() for i, f in enumerate(source, start=1))
        assert (source.size, source.frame_count, source.live) == ((96, 64), 12, False)


def test_other_files_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".3.png").write_text("x")
    assert len(list_images(tmp_path)) == 2


def test_range(tmp_path: Path) -> None:
    paths = list_images(write_images(tmp_path, 12))
    source = ImageSource(paths, "x", start=3, end=5)
    assert source.first_frame == 3
    assert [(f == scene(i)).all() for i, f in enumerate(source, start=3)] == [True] * 3
    with pytest.raises(SourceError, match="start frame 13 lies behind the last, 12"):
        ImageSource(paths, "x", start=13)


def test_another_size_is_named_after_the_frames_before_it(tmp_path: Path) -> None:
    paths = list_images(write_images(tmp_path, 5))
    cv2.imwrite(str(paths[3]), np.zeros((50, 40, 3), np.uint8))
    seen = []
    with pytest.raises(SourceError, match=r"4\.png: expected 96x64 pixels like 1\.png, got 40x50"):
        for frame in ImageSource(paths, "x"):
            seen.append(frame)
    assert len(seen) == 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_cut_image_is_named(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = list_images(write_images(tmp_path, 1, suffix))[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"1\.\w+: the image is cut short"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"a\.jpg: the file is empty"):
        read_image(path)
    path.write_text("to be or not to be")
    with pytest.raises(SourceError, match=r"a\.jpg: not a readable image"):
        read_image(path)
    with pytest.raises(SourceError, match=r"b\.jpg: cannot be read"):
        read_image(tmp_path / "b.jpg")


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    for channels in (1, 4):
        path = tmp_path / "a.png"
        cv2.imwrite(str(path), np.full((10, 12, channels), 77, np.uint8))
        assert read_image(path).shape == (10, 12, 3)


def test_names_outside_ascii(tmp_path: Path) -> None:
    path = tmp_path / "ä日.png"
    path.write_bytes(cv2.imencode(".png", scene(1))[1].tobytes())
    assert (read_image(path) == scene(1)).all()
