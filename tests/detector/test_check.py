from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.check import Report, check_source
from detector.source import cut_short
from tests.detector.scenes import noise, write_people
from tests.detector.test_layouts import write, write_crops


def encoded(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, noise(48, 64))[1].tobytes())


def test_a_good_source_is_counted(tmp_path: Path) -> None:
    images = write_people(tmp_path / "a", 4)
    cv2.imwrite(str(images / "plain.png"), noise(20, 20))
    with (tmp_path / "a" / "labels_with_ids" / "000.txt").open("a") as file:
        file.write("-1 -1 .5 .5 .1 .1\n0 -1 .5 .5 .1 .02\n3 1 .5 .5 .1 .1\n")
    report, source = check_source(f"jde:{images}@2")
    assert report == Report(
        f"jde:{images}@2",
        images=5,
        people=9,
        identities=2,
        unidentified=1,
        regions=1,
        empty=1,
        tiny=1,
        missing_labels=[tmp_path / "a" / "labels_with_ids" / "plain.txt"],
        dropped={"class 3": 1},
    )
    assert source is not None
    assert len(source.images) == 5
    text = str(report)
    for line in ("5  images", "1    without a label file", "9  people", "2  identities", "1  left out: class 3"):
        assert line in text
    assert "        0  faults" in text
    assert text.endswith("plain.txt: no label file")  # each is named


def test_boxes_that_are_odd(tmp_path: Path) -> None:
    """A 60x40 image: outside by 0.9 and 1.2 pixels; 3.9 and 4 pixels wide; a person and a box twice."""
    rows = [
        f"0 1 {(10 - 0.9) / 60} 0.5 {20 / 60} 0.5",
        f"0 2 0.5 {(40 - 10 + 1.2) / 40} 0.4 {20 / 40}",
        f"0 3 0.8 0.5 {3.9 / 60} 0.5",
        f"0 4 0.9 0.5 {4 / 60} 0.5",
        "0 2 0.8 0.2 0.1 0.2",
        "0 -1 0.3 0.8 0.2 0.2",
        "0 -1 0.302 0.8 0.2 0.2",
        "0 -1 0.35 0.8 0.2 0.2",
    ]
    report, _ = check_source(f"jde:{write(tmp_path, 'jde', chr(10).join(rows))}")
    assert (report.people, report.outside, report.tiny, report.duplicates) == (8, 1, 1, 2)
    assert report.faults == []


def test_every_fault_is_listed(tmp_path: Path) -> None:
    images = write(tmp_path, "jde", "0 1 0.5 0.5 0.2\n0 1 0.5 0.5 0.2 0.4\n0 1.5 0.5 0.5 0.2 0.4\n", "a")
    write(tmp_path, "jde", "0 nan 0.5 0.5 0.2 0.4\n", "b")
    write(tmp_path, "jde", "0 2 0.5 0.5 0.2 0.4\n", "c")
    (images / "b.png").write_text("no picture")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:-20])
    (images / "d.jpg").write_bytes(b"")
    report, source = check_source(f"jde:{images}")
    labels = tmp_path / "labels_with_ids"
    assert [fault.split(": ")[0] for fault in report.faults] == [
        f"{labels / 'a.txt'}:1",
        f"{labels / 'a.txt'}:3",
        f"{labels / 'b.txt'}:1",
        str(images / "b.png"),
        str(images / "c.png"),
        str(images / "d.jpg"),
    ]
    assert [fault.split(": ")[1] for fault in report.faults[3:]] == ["not a readable image", "cut short", "empty file"]
    assert (report.images, report.people) == (4, 2)
    assert source is not None
    assert [path.name for path in source.images] == ["a.png"]  # what a sheet can show
    assert all(fault in str(report) for fault in report.faults)


def test_labels_for_another_image(tmp_path: Path) -> None:
    """Half the size is the same picture; another shape is another picture."""
    for name, size in (("a", (30, 40)), ("b", (40, 30))):
        folder = tmp_path / name
        (folder / "img1").mkdir(parents=True)
        (folder / "gt").mkdir()
        cv2.imwrite(str(folder / "img1" / "000001.jpg"), noise(*size))
        (folder / "gt" / "gt.txt").write_text("1,1,11,21,10,20,1,1,1\n")
        (folder / "seqinfo.ini").write_text("[Sequence]\nimWidth=80\nimHeight=60\n")
    report, _ = check_source(f"mot:{tmp_path}")
    assert report.faults == [
        f"{tmp_path / 'b' / 'img1' / '000001.jpg'}: its labels are for an image of (80, 60), it has (30, 40)"
    ]


def test_a_source_that_is_none(tmp_path: Path) -> None:
    report, source = check_source(f"yolo:{tmp_path / 'absent'}")
    assert source is None
    assert report.faults == [f"{tmp_path / 'absent'}: no such file or folder (from data source {report.name!r})"]
    report, source = check_source("voc:x")
    assert report.faults[0].startswith("data: expected LAYOUT:PATH")


def test_an_image_listed_twice(tmp_path: Path) -> None:
    write_people(tmp_path, 2)
    (tmp_path / "some.txt").write_text("images/000.png\nimages/001.png\nimages/000.png\n")
    assert check_source(f"jde:{tmp_path / 'some.txt'}")[0].repeated == 1


def test_crops(tmp_path: Path) -> None:
    report, _ = check_source(f"crops:{write_crops(tmp_path / 'crops')}")
    assert (report.images, report.people, report.identities, report.dropped) == (
        3,
        3,
        2,
        {"junk crops": 1, "distractors": 1},
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_images_cut_short(suffix: str) -> None:
    """OpenCV reads most of these without a word."""
    data = encoded(suffix)
    assert cut_short(data) == ""
    for share in (0.5, 0.9, 0.99):
        assert cut_short(data[: int(len(data) * share)]).startswith("cut short: ")


def test_jpegs_with_something_behind_or_a_preview_before() -> None:
    data = encoded(".jpg")
    assert cut_short(data + bytes(100)) == ""
    preview = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    assert cut_short(data[:2] + preview + data[2:]) == ""
    assert cut_short((data[:2] + preview + data[2:])[:-50]) == "cut short: a JPEG without its end"


def test_progressive_jpegs() -> None:
    data = bytes(cv2.imencode(".jpg", noise(64, 64), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes())
    assert cut_short(data) == ""
    assert cut_short(data[: len(data) // 2]) == "cut short: a JPEG without its end"


def test_real_sources_have_no_fault(shared: Path) -> None:
    report, _ = check_source(f"mot:{shared / 'data' / 'mot' / 'MOT17-02-FRCNN'}")
    assert (report.images, len(report.missing_images), report.people, report.regions) == (4, 596, 72, 64)
    report, _ = check_source(f"yolo:{shared / 'data' / 'det' / 'capston2_unique' / 'val' / 'images'}")
    assert report.dropped == {}
    assert (report.images, report.people, report.faults) == (203, 721, [])


def test_real_images_cut_short_are_found(shared: Path) -> None:
    image = next((shared / "data" / "mot" / "PETS09-S2L1-dev" / "img1").iterdir())
    data = np.fromfile(image, np.uint8)
    assert cut_short(data[: len(data) // 2].tobytes()) == "cut short: a JPEG without its end"
