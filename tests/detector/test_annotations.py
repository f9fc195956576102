import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.layouts import open_source, read_source
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from detector.source import Source
from tests.detector.scenes import noise

WIDTH, HEIGHT = 80, 60


def pixels(source: Source, image: int = 0) -> list[list[float]]:
    """Class, identity, left, top, width, height in pixels."""
    rows = source.labels[image].copy()
    rows[:, 2:4] -= rows[:, 4:] / 2
    rows[:, 2:] *= [WIDTH, HEIGHT, WIDTH, HEIGHT]
    return rows.round(6).tolist()


def write_sequence(folder: Path, truth: str, frames: int = 2, seqinfo: bool = True, images: str = "img1") -> Path:
    (folder / images).mkdir(parents=True)
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text(truth)
    for frame in range(1, frames + 1):
        cv2.imwrite(str(folder / images / f"{frame:06d}.jpg"), noise(HEIGHT, WIDTH))
    if seqinfo:
        (folder / "seqinfo.ini").write_text(
            f"[Sequence]\nname={folder.name}\nimDir={images}\nframeRate=30\nseqLength={frames}\n"
            f"imWidth={WIDTH}\nimHeight={HEIGHT}\nimExt=.jpg\n"
        )
    return folder


MOT17 = """1,1,11,21,10,20,1,1,1
1,2,31,21,10,20,1,1,0.1
1,3,41,21,10,20,1,1,0.05
1,4,51,21,10,20,0,1,1
1,5,1,1,10,20,0,2,1
1,6,2,1,10,20,0,7,1
1,7,3,1,10,20,0,8,1
1,8,4,1,10,20,0,12,1
1,9,5,1,10,20,0,13,1

1,10,6,1,10,20,0,3,1
1,11,7,1,10,20,0,9,1
1,12,7,1,10,20,0,20,1
1,13,7,1,0,20,1,1,1
2,1,12,22,10,20,1,1,1
3,1,12,22,10,20,1,1,1
3,2,12,22,10,20,1,1,1
4,10,12,22,10,20,0,3,1
"""


@pytest.mark.parametrize("seqinfo", [True, False])
def test_mot_rows(tmp_path: Path, seqinfo: bool) -> None:
    """People who are to be tracked, regions that look like people, and the rest; pixels counted from 0."""
    source = open_source(f"mot:{write_sequence(tmp_path / 's', MOT17, seqinfo=seqinfo)}@2")
    assert pixels(source)[:2] == [[0, 1, 10, 20, 10, 20], [0, 2, 30, 20, 10, 20]]
    ignored = [[IGNORE_LABEL, NO_IDENTITY, x, y, 10, 20] for x, y in ((40, 20), (50, 20))]
    ignored += [[IGNORE_LABEL, NO_IDENTITY, x, 0, 10, 20] for x in range(5)]
    assert pixels(source)[2:] == ignored
    assert pixels(source, 1) == [[0, 1, 11, 21, 10, 20]]
    assert [path.name for path in source.missing_images] == ["000003.jpg", "000004.jpg"]
    assert source.dropped == {
        "class car": 2,
        "class occluder": 1,
        "class 20": 1,
        "boxes of zero or negative size": 1,
        "boxes on images that are absent": 2,
    }
    assert set(source.sizes.values()) == {(WIDTH, HEIGHT)}


@pytest.mark.parametrize(
    "row",
    [
        "1,7,11,21,10,20,1,-1,-1,-1",
        "1,7,11,21,10,20,1,4.4852,5.5016,0",  # a place in the world
        "1,7,11,21,10,20,1,1,-1",
        "1,7,11,21,10,20,1,1,1",
        "1,7,11,21,10,20,1,-1,-1",
        "1,7,11,21,10,20,1",
        "1, 7, 11.0, 21.0, 10.0, 20.0, 1, 1, 1.0",
    ],
)
def test_mot_rows_of_all_years(tmp_path: Path, row: str) -> None:
    assert pixels(open_source(f"mot:{write_sequence(tmp_path / 's', row)}")) == [[0, 7, 10, 20, 10, 20]]


def test_mot_sequences_share_no_identity_and_no_frame(tmp_path: Path) -> None:
    for name in ("MOT17-02-DPM", "MOT17-02-FRCNN", "MOT17-04-SDP"):
        write_sequence(tmp_path / name, "1,3,11,21,10,20,1,1,1\n2,5,11,21,10,20,1,1,1\n", images=f"img-{name}")
    (tmp_path / "other").mkdir()
    source = open_source(f"mot:{tmp_path}")
    assert [path.parts[-3] for path in source.images] == ["MOT17-02-DPM"] * 2 + ["MOT17-04-SDP"] * 2
    assert [rows[0, 1] for rows in source.labels] == [3, 5, 9, 11]
    assert source.dropped == {"sequences whose frames were read already": 1}


def test_the_first_copy_of_a_mot17_sequence_that_has_frames_is_read(tmp_path: Path) -> None:
    write_sequence(tmp_path / "MOT17-02-DPM", "1,3,11,21,10,20,1,1,1\n", frames=0)
    write_sequence(tmp_path / "MOT17-02-SDP", "1,3,11,21,10,20,1,1,1\n")
    assert [path.parts[-3] for path in open_source(f"mot:{tmp_path}").images] == ["MOT17-02-SDP"] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,1,2,3,4", "expected 6 to 10 numbers, got 5"),
        ("1,x,2,3,4,5", "expected numbers, got '1,x,2,3,4,5'"),
        ("1,1,2,3,4,nan", "expected finite numbers"),
        ("0,1,2,3,4,5", "expected a whole frame, 1 or more, got 0.0"),
        ("1,1.5,2,3,4,5", "expected a whole identity, −1 or more, got 1.5"),
        ("1,1,2,3,4,5,1,1.5,1", "expected a whole class, 1 or more, got 1.5"),
    ],
)
def test_bad_mot_rows_are_named_by_line(tmp_path: Path, row: str, message: str) -> None:
    folder = write_sequence(tmp_path / "s", f"1,1,11,21,10,20,1,1,1\n{row}\n")
    with pytest.raises(ValueError, match=rf"gt\.txt:2: {message}"):
        open_source(f"mot:{folder}")


def test_mot_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no sequence"):
        open_source(f"mot:{tmp_path}")
    folder = write_sequence(tmp_path / "s", "1,1,11,21,10,20,1,1,1", frames=0)
    with pytest.raises(ValueError, match=r"s: holds no image: not found, e\.g\. .*000001\.jpg"):
        open_source(f"mot:{folder}")
    (folder / "seqinfo.ini").write_text("[Sequence]\nimDir=../../elsewhere\n")
    with pytest.raises(ValueError, match=r"seqinfo\.ini: not a description of a sequence: expected a path below"):
        open_source(f"mot:{folder}")
    (folder / "seqinfo.ini").write_text("nothing")
    with pytest.raises(ValueError, match=r"seqinfo\.ini: not a description"):
        open_source(f"mot:{folder}")
    (folder / "seqinfo.ini").unlink()
    (folder / "gt" / "gt.txt").unlink()
    with pytest.raises(ValueError, match=r"gt\.txt: no such file"):
        open_source(f"mot:{folder}")


def write_coco(folder: Path, content: Any, names: tuple[str, ...] = ("a.png", "sub/b.png")) -> str:
    """The source text of some images and a JSON file."""
    for name in names:
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "pictures" / name), noise(HEIGHT, WIDTH))
    (folder / "some.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return f"coco:{folder / 'pictures'},{folder / 'some.json'}"


def coco() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 3, "file_name": "sub/b.png"},
            {"id": 4, "file_name": "gone.png", "width": 10, "height": 10},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "Person"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 20, 10.5, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 20], "iscrowd": 1, "track_id": 4},
            {"id": 3, "image_id": 7, "category_id": 18, "bbox": [0, 0, 40, 20]},
            {"id": 4, "image_id": 4, "category_id": 2, "bbox": [0, 0, 4, 2]},
            {"id": 5, "image_id": 7, "category_id": 2, "bbox": [70, 50, 20, 20], "track_id": 12},
            {"id": 6, "image_id": 7, "category_id": 2, "bbox": [70, 50, 0, 20]},
        ],
    }


def test_coco_instances(tmp_path: Path) -> None:
    source = open_source(write_coco(tmp_path, coco()))
    assert [path.name for path in source.images] == ["a.png", "b.png"]
    assert pixels(source) == [
        [0, NO_IDENTITY, 10, 20, 10.5, 20],
        [IGNORE_LABEL, NO_IDENTITY, 0, 0, 40, 20],
        [0, 12, 70, 50, 20, 20],
    ]
    assert len(source.labels[1]) == 0
    assert source.missing_images == [tmp_path / "pictures" / "gone.png"]
    assert source.dropped == {"class dog": 1, "boxes on images that are absent": 1, "boxes of zero or negative size": 1}


def test_coco_without_names_takes_category_one(tmp_path: Path) -> None:
    content = coco() | {"categories": []}
    content["annotations"][0]["category_id"] = 1
    source = open_source(write_coco(tmp_path, content))
    assert [len(rows) for rows in source.labels] == [1, 0]
    assert source.dropped == {"class 2": 4, "class 18": 1}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", {"file_name": "../a.png"}, "expected a path below .*pictures, got '../a.png'"),
        ("images", {"file_name": "/etc/passwd"}, "expected a file_name below"),
        ("images", {"file_name": 5}, "expected a file_name below"),
        ("images", {"id": "7"}, "expected id as a whole number, 0 or more, got '7'"),
        ("images", {"id": 7}, "expected an id of its own, got 7 again"),
        ("images", {"width": 0}, "expected width as a whole number, 1 or more, got 0"),
        ("annotations", {"bbox": [1, 2, 3]}, r"expected bbox as 4 finite numbers, got \[1, 2, 3\]"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "expected bbox as 4 finite numbers"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "expected bbox as 4 finite numbers"),
        ("annotations", {"bbox": [1, 2, 3, True]}, "expected bbox as 4 finite numbers"),
        ("annotations", {"image_id": 99}, "expected the id of an image, got image_id 99"),
        ("annotations", {"category_id": None}, "expected category_id as a whole number"),
        ("annotations", {"track_id": 1.5}, "expected a whole identity, −1 or more, got 1.5"),
        ("annotations", {"track_id": "x"}, "expected a whole identity, −1 or more, got 'x'"),
    ],
)
def test_bad_coco_entries_are_named_by_index(tmp_path: Path, part: str, change: dict, message: str) -> None:
    content = coco()
    content[part][1] |= {"iscrowd": 0} | change
    faults = read_source(write_coco(tmp_path, content)).faults
    with pytest.raises(ValueError, match=rf"some\.json: {part}\[1\]: {message}"):
        raise ValueError(faults[0])
    assert len(faults) == 1


def test_names_of_classes_are_fit_to_print(tmp_path: Path) -> None:
    content = coco()
    content["categories"][0]["name"] = "dog\x1b[2J\n" + "x" * 1000
    assert next(iter(open_source(write_coco(tmp_path, content)).dropped)) == "class dog?[2j?" + "x" * 32


def test_a_box_of_many_images_is_left_out(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["bbox"] = [-400, 0, WIDTH * 10 + 1, 20]
    content["annotations"][4]["bbox"] = [-400, 0, WIDTH * 10, 20]
    source = open_source(write_coco(tmp_path, content))
    assert source.dropped["boxes larger than 10 images"] == 1
    assert source.labels[0][:, 1].tolist() == [NO_IDENTITY, 12]


def test_a_frame_that_cannot_be_read_is_a_fault_of_its_own(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "s", "1,1,11,21,10,20,1,1,1\n2,1,11,21,10,20,1,1,1\n", seqinfo=False)
    (folder / "img1" / "000001.jpg").write_text("none")
    source = read_source(f"mot:{folder}")
    assert source.faults == [f"{folder / 'img1' / '000001.jpg'}: not a readable image"]
    assert [path.name for path in source.images] == ["000002.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "not JSON"),
        ("{", "not JSON"),
        ("[]", "expected an object with lists"),
        ('{"images": {}, "annotations": []}', "expected an object with lists"),
        ('{"images": [], "annotations": []}', "holds no image"),
        ('{"images": [1], "annotations": [null]}', r"images\[0\]: .* \(and 1 more\)"),
    ],
)
def test_json_that_is_no_coco(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write_coco(tmp_path, content))


def test_an_image_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    text = write_coco(tmp_path, coco())
    (tmp_path / "pictures" / "sub" / "b.png").write_text("none")
    source = read_source(text)
    assert [fault.split(": ", 1)[1] for fault in source.faults] == [
        f"images[1]: {tmp_path / 'pictures' / 'sub' / 'b.png'}: not a readable image"
    ]


CROWD = [
    {
        "ID": "273271,c9db000d5146c15",
        "gtboxes": [
            {"fbox": [10, 20, 10, 30], "tag": "person", "hbox": [1, 2, 3, 4], "extra": {"box_id": 0, "occ": 0}},
            {"fbox": [-5, 20, 20, 30], "tag": "person", "extra": {"ignore": 0, "identity": 6}},
            {"fbox": [30, 20, 10, 30], "tag": "person", "extra": {"ignore": 1}},
            {"fbox": [40, 20, 10, 30], "tag": "mask", "extra": {"ignore": 1}},
            {"fbox": [40, 20, 10, 30], "tag": "dog"},
        ],
    },
    {"ID": "empty", "gtboxes": []},
    {"ID": "gone", "gtboxes": [{"fbox": [40, 20, 10, 30], "tag": "person"}]},
]


def write_crowd(folder: Path, lines: list[str]) -> str:
    (folder / "Images").mkdir()
    for name in ("273271,c9db000d5146c15.jpg", "empty.png"):
        cv2.imwrite(str(folder / "Images" / name), noise(HEIGHT, WIDTH))
    (folder / "some.odgt").write_text("\n".join(lines) + "\n")
    return f"crowdhuman:{folder / 'Images'},{folder / 'some.odgt'}"


def test_crowdhuman_full_boxes(tmp_path: Path) -> None:
    source = open_source(write_crowd(tmp_path, [json.dumps(line) for line in CROWD]))
    assert [path.name for path in source.images] == ["273271,c9db000d5146c15.jpg", "empty.png"]
    assert pixels(source) == [
        [0, NO_IDENTITY, 10, 20, 10, 30],
        [0, 6, -5, 20, 20, 30],
        [IGNORE_LABEL, NO_IDENTITY, 30, 20, 10, 30],
        [IGNORE_LABEL, NO_IDENTITY, 40, 20, 10, 30],
    ]
    assert source.missing_images == [tmp_path / "Images" / "gone.jpg"]
    assert source.dropped == {"class dog": 1, "boxes on images that are absent": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "expected an object with an ID"),
        ('{"ID": "../x", "gtboxes": []}', "expected a path below"),
        ('{"ID": "/etc/x", "gtboxes": []}', "expected an object with an ID"),
        ('{"ID": "empty", "gtboxes": [3]}', r"gtboxes\[0\]: expected an object, got 3"),
        ('{"ID": "empty", "gtboxes": [{"tag": "person"}]}', r"gtboxes\[0\]: expected fbox as 4 finite numbers"),
        ("[" * 100_000, ""),
    ],
)
def test_bad_odgt_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    source = read_source(write_crowd(tmp_path, [json.dumps(CROWD[0]), "", line]))
    assert len(source.faults) == 1
    with pytest.raises(ValueError, match=rf"some\.odgt:3: {message}"):
        raise ValueError(source.faults[0])
    assert len(source.images) >= 1


def test_boxes_follow_a_photograph_turned_by_its_header(tmp_path: Path) -> None:
    """Sizes are those of the image as it is read: on its side, where EXIF says so."""
    text = write_crowd(tmp_path, [json.dumps(CROWD[0])])
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8))  # its pixels stand upright in the file
    picture.save(tmp_path / "Images" / "273271,c9db000d5146c15.jpg", exif=exif)
    assert pixels(open_source(text))[0] == [0, NO_IDENTITY, 10, 20, 10, 30]


def test_real_sequences(shared: Path) -> None:
    source = open_source(f"mot:{shared / 'data' / 'mot'}")
    assert len(source.images) == 401
    assert len(source.missing_images) == 596 + 71 + 179
    people = np.concatenate(source.labels)
    people = people[people[:, 0] == 0]
    assert len(people) == 2387 + 72
    # PETS's ten identities come after those of MOT17-02.
    assert len(np.unique(people[:, 1])) == 28
    first, second = (np.concatenate(part)[:, 1] for part in (source.labels[:4], source.labels[4:]))
    assert first.max() < second[second >= 0].min()


def test_a_size_that_is_not_the_images_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "seq"
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    cv2.imwrite(str(folder / "img1" / "000001.jpg"), noise(96, 96))
    (folder / "gt" / "gt.txt").write_text("1,1,10,10,20,40,1,1,1\n")
    (folder / "seqinfo.ini").write_text("[Sequence]\nimWidth=1920\nimHeight=1080\n")
    with pytest.raises(
        ValueError, match=r"000001\.jpg: its labels are for an image of \(1920, 1080\), it has \(96, 96\)"
    ):
        open_source(f"mot:{folder}")


def test_a_coco_file_of_dogs_has_no_people(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), noise(40, 60))
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected a category called 'person', got dog"):
        open_source(f"coco:{tmp_path},{tmp_path / 'c.json'}")
