from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.layouts import open_source, read_source
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from tests.detector.scenes import noise, write_people


def write(folder: Path, layout: str, text: str | bytes | None, name: str = "a") -> Path:
    """One image with one label file; returns the image folder."""
    images = folder / "images"
    labels = folder / {"yolo": "labels", "jde": "labels_with_ids"}[layout]
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    cv2.imwrite(str(images / f"{name}.png"), noise(40, 60))
    if text is not None:
        (labels / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return images


def write_crops(folder: Path) -> Path:
    folder.mkdir()
    for k, name in enumerate(("0002_c1s1_1", "0002_c2s1_1", "0005_c1s1_1", "-1_c1s1_1", "0000_c3s1_1")):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((48, 24, 3), 40 * k + 40, np.uint8))
    return folder


def test_yolo_rows(tmp_path: Path) -> None:
    images = write(tmp_path, "yolo", "0 0.5 0.5 0.2 0.4\n\n17 0.1 0.1 0.1 0.1\n0 0.25 0.5 0 0.4\n0 0.3 0.4 0.1 0.2")
    source = open_source(f"yolo:{images}")
    assert source.images == [images / "a.png"]
    assert source.dropped == {"class 17": 1, "boxes of zero or negative size": 1}
    assert source.labels[0].tolist() == [[0, NO_IDENTITY, 0.5, 0.5, 0.2, 0.4], [0, NO_IDENTITY, 0.3, 0.4, 0.1, 0.2]]
    assert (source.weight, source.crops, source.length) == (1, False, 1)


def test_jde_rows(tmp_path: Path) -> None:
    images = write(
        tmp_path, "jde", "0 7 0.5 0.5 0.2 0.4\n0 -1 0.5 0.5 0.2 0.4\n-1 -1 0.2 0.2 0.2 0.2\n3 9 0.1 0.1 0.1 0.1\n"
    )
    rows = open_source(f"jde:{images}@2.5")
    assert rows.labels[0][:, :2].tolist() == [[0, 7], [0, NO_IDENTITY], [IGNORE_LABEL, NO_IDENTITY]]
    assert rows.weight == 2.5
    assert rows.dropped == {"class 3": 1}


def test_labels_of_a_folder_of_its_own(tmp_path: Path) -> None:
    images = write(tmp_path / "x", "yolo", "0 0.5 0.5 0.2 0.4\n")
    moved = tmp_path / "pictures"
    images.rename(moved)
    with pytest.raises(ValueError, match=r"pictures: give the labels as PATH,LABELS"):
        open_source(f"yolo:{moved}")
    assert len(open_source(f"yolo:{moved},{tmp_path / 'x' / 'labels'}@3").labels[0]) == 1


def test_the_last_images_in_a_path_is_replaced(tmp_path: Path) -> None:
    images = tmp_path / "images" / "a" / "images" / "train"
    images.mkdir(parents=True)
    labels = tmp_path / "images" / "a" / "labels" / "train"
    labels.mkdir(parents=True)
    cv2.imwrite(str(images / "1.jpg"), noise(20, 20))
    (labels / "1.txt").write_text("0 .5 .5 .5 .5")
    assert len(open_source(f"yolo:{images}").labels[0]) == 1


def test_an_image_without_labels_shows_nobody(tmp_path: Path) -> None:
    write(tmp_path, "jde", None, "b")
    images = write(tmp_path, "jde", "", "a")
    source = open_source(f"jde:{images}")
    assert [rows.shape for rows in source.labels] == [(0, 6), (0, 6)]
    assert source.missing_labels == [tmp_path / "labels_with_ids" / "b.txt"]


@pytest.mark.parametrize(
    ("layout", "line", "message"),
    [
        ("jde", "0 0.5 0.5 0.2 0.4", "expected 6 numbers, got 5"),
        ("yolo", "0 1 0.5 0.5 0.2 0.4", "expected 5 numbers, got 6"),
        ("yolo", "0 0.5 0.5 0.2 nan", "expected finite numbers, got '0 0.5 0.5 0.2 nan'"),
        ("yolo", "0 0.5 inf 0.2 0.4", "expected finite numbers, got '0 0.5 inf 0.2 0.4'"),
        ("yolo", "person 0.5 0.5 0.2 0.4", "expected 5 numbers, got 'person 0.5 0.5 0.2 0.4'"),
        ("yolo", "0.5 0.5 0.5 0.2 0.4", "expected a whole class, got 0.5"),
        ("jde", "0 1e300 0.5 0.5 0.2 0.4", "expected a whole identity, −1 or more, got 1e+300"),
        ("jde", "0 1.5 0.5 0.5 0.2 0.4", "expected a whole identity, −1 or more, got 1.5"),
        ("jde", "0 -2 0.5 0.5 0.2 0.4", "expected a whole identity, −1 or more, got -2.0"),
        ("yolo", "0 320 240 64 128", "expected coordinates divided by the image's size, got '0 320 240 64 128'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, layout: str, line: str, message: str) -> None:
    good = {"jde": "0 1 0.5 0.5 0.2 0.4", "yolo": "0 0.5 0.5 0.2 0.4"}[layout]
    images = write(tmp_path, layout, f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"a\.txt:3: ") as caught:
        open_source(f"{layout}:{images}")
    assert str(caught.value).endswith(message)


def test_a_label_file_that_is_no_text(tmp_path: Path) -> None:
    images = write(tmp_path, "yolo", b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"a\.txt: not a text file"):
        open_source(f"yolo:{images}")


def test_sources_that_are_none(tmp_path: Path) -> None:
    def refuse(text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_source(text)

    layouts = "expected LAYOUT:PATH with a layout of jde, yolo, crops, mot, coco, crowdhuman"
    refuse("voc:x", layouts + ", got 'voc:x'")
    refuse("yolo", layouts)
    refuse("yolo:", "expected a path after yolo:")
    refuse(f"yolo:{tmp_path / 'absent'}", "absent: no such file or folder")
    (tmp_path / "images").mkdir()
    refuse(f"yolo:{tmp_path / 'images'}", "images: holds no image")
    cv2.imwrite(str(tmp_path / "images" / "a.png"), noise(8, 8))
    refuse(f"yolo:{tmp_path / 'images'}", "labels: no such folder of labels")
    for weight in ("x", "0", "-1", "nan", "inf"):
        refuse(f"yolo:{tmp_path / 'images'}@{weight}", "expected a positive number after @")
    refuse(f"crops:{tmp_path / 'images'}", "a.png: expected a name that starts with a person number")


def test_crops_are_one_person_each_and_junk_is_left_out(tmp_path: Path) -> None:
    source = open_source(f"crops:{write_crops(tmp_path / 'crops')}")
    assert [p.name[:4] for p in source.images] == ["0002", "0002", "0005"]
    assert source.dropped == {"junk crops": 1, "distractors": 1}
    assert [rows.tolist() for rows in source.labels] == [[[0, p, 0.5, 0.5, 1, 1]] for p in (2, 2, 5)]
    assert source.crops
    assert source.length == 1  # ten to a canvas


def test_every_fault_is_collected_and_the_first_is_raised(tmp_path: Path) -> None:
    images = write(tmp_path, "jde", "0 1 0.5 0.5 0.2\nx\n0 1 0.5 0.5 0.2 0.4\n0 1.5 0.5 0.5 0.2 0.4\n", "a")
    write(tmp_path, "jde", "0 1 640 480 64 80\n", "b")
    source = read_source(f"jde:{images}")
    places = [fault.partition(": ")[0].rpartition("/")[2] for fault in source.faults]
    assert places == ["a.txt:1", "a.txt:2", "a.txt:4", "b.txt:1"]
    assert [len(rows) for rows in source.labels] == [1, 0]
    with pytest.raises(ValueError, match=r"a\.txt:1: expected 6 numbers, got 5 \(and 3 more\)"):
        open_source(f"jde:{images}")


def test_boxes_that_show_nothing_are_counted(tmp_path: Path) -> None:
    rows = ["0 1 1.2 0.5 0.4 0.4", "0 2 1.19 0.5 0.4 0.4", "0 3 0.5 -0.2 0.4 0.4", "0 4 0.5 0.5 -0.1 0.4"]
    source = open_source(f"jde:{write(tmp_path, 'jde', chr(10).join(rows))}")
    assert source.labels[0][:, 1].tolist() == [2]
    assert source.dropped == {"boxes outside the image": 2, "boxes of zero or negative size": 1}


def test_a_list_of_images_as_the_original_has_it(tmp_path: Path) -> None:
    """Paths below LABELS where given, else below the list's folder; `images` becomes `labels_with_ids`."""
    write_people(tmp_path / "sets" / "caltech" / "images" / "caltech", 2)
    write_people(tmp_path / "sets" / "prw", 3)
    lines = [f"caltech/images/caltech/images/{i:03d}.png" for i in (1, 0)] + ["", " prw/images/002.png "]
    lines += [str(tmp_path / "sets" / "prw" / "images" / "000.png")]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "all.train").write_text("\n".join(lines) + "\n")
    source = open_source(f"jde:{tmp_path / 'lists' / 'all.train'},{tmp_path / 'sets'}@2")
    assert [str(p.relative_to(tmp_path / "sets")) for p in source.images] == [
        *lines[:2],
        "prw/images/002.png",
        "prw/images/000.png",
    ]
    assert [rows[:, 1].tolist() for rows in source.labels] == [[1, 2]] * 4
    (tmp_path / "sets" / "here.txt").write_text(lines[0])
    assert len(open_source(f"jde:{tmp_path / 'sets' / 'here.txt'}").images) == 1
    (tmp_path / "sets" / "prw" / "labels_with_ids" / "002.txt").unlink()
    source = read_source(source.name)
    assert source.missing_labels == [tmp_path / "sets" / "prw" / "labels_with_ids" / "002.txt"]
    assert [len(rows) for rows in source.labels] == [2, 2, 0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../prw/images/a.png", r"expected a path below .*set, got '\.\./prw/images/a\.png'"),
        ("images/../../prw/a.png", "expected a path below"),
        ("/etc/images/passwd", "expected a path below .*set, got '/etc/images/passwd'"),
        ("images/absent.png", ".*/set/images/absent.png: no such image"),
        ("pictures/a.png", "expected a folder called 'images' in"),
    ],
)
def test_lines_that_name_no_image(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path / "set", "jde", "0 7 0.5 0.5 0.2 0.4")
    write(tmp_path / "prw", "jde", "0 7 0.5 0.5 0.2 0.4")
    (tmp_path / "set" / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "set" / "pictures" / "a.png"), noise(8, 8))
    (tmp_path / "set" / "some.txt").write_text(f"images/a.png\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"some\.txt:3: {message}"):
        open_source(f"jde:{tmp_path / 'set' / 'some.txt'}")


def test_lists_that_are_none(tmp_path: Path) -> None:
    images = write(tmp_path, "jde", None)
    empty, binary, bare = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "bare.txt"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    bare.write_text("images/a.png\n")
    for path, message in (
        (empty, "empty.txt: holds no image"),
        (binary, "binary.txt: not a text file"),
        (bare, "bare.txt: no image has a label file; looked for .*labels_with_ids/a.txt"),
        (images / "a.png", "a.png: not a text file"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(f"jde:{path}")


def test_a_byte_order_mark_is_no_number(tmp_path: Path) -> None:
    images = write(tmp_path, "yolo", b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\n")
    assert len(open_source(f"yolo:{images}").labels[0]) == 1
