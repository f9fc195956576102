"""The table, the remarks and the sheet of a data set."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from reid.check import PICTURES, contact_sheet, remarks, summary, unreadable
from reid.datasets import load_dataset
from reid.sheets import QUERY, WRONG

ROW, LINE = 243, 17
"""Height of a row of a sheet: a band, the gap, a picture in its frame, a line of text, a gap; and of another line."""


def write(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.full((32, 16, 3), 40 + 5 * (i % 40), np.uint8))
    return root


@pytest.fixture
def market(tmp_path):
    return write(
        tmp_path / "market",
        *("bounding_box_train/0002_c1s1_1.png", "bounding_box_train/0002_c14s1_1.png"),
        *("query/0001_c1s1_1.png", "query/0003_c2s1_1.png", "query/0004_c2s1_1.png"),
        *("bounding_box_test/-1_c1s1_1.png", "bounding_box_test/0000_c2s1_1.png", "bounding_box_test/0000_c3s1_1.png"),
        *("bounding_box_test/0001_c2s1_1.png", "bounding_box_test/0003_c2s1_2.png", "gt_bbox/0001_c1s1_7.png"),
    )


def test_table_counts_identities_images_and_cameras(market):
    lines = summary(load_dataset(market)).splitlines()
    assert lines[0] == f"{market} (market1501)"
    assert [line.split() for line in lines[1:6]] == [
        ["identities", "images", "cameras", "distractors", "junk"],
        ["train", "1", "2", "2", "-", "-"],
        ["query", "3", "3", "2", "-", "-"],
        ["gallery", "2", "5", "3", "2", "1"],
        ["multi_query", "1", "1", "1", "-", "-"],
    ]
    # 3 has only its own camera's images, 4 has none
    assert lines[6:] == ["query: no match in the gallery from another camera: 2 of 3; these do not count"]


def test_remarks(tmp_path):
    names = ("train/1_c1_1.png", "train/1_c1_2.png", "train/5_c1_1.png", "query/5_c1_3.png", "gallery/5_c2_1.png")
    assert remarks(load_dataset(write(tmp_path / "a", *names))) == [
        "train: identities with a single image: 1",
        "train: one camera only",
        "train: identities that are in query or gallery too: 1, e.g. 5",
    ]


def test_people_counted_from_0(tmp_path):
    names = [f"train/{pid}_c{camid}_{i}.png" for pid in (0, 1) for camid in (1, 2) for i in (1, 2)]
    dataset = load_dataset(write(tmp_path, *names))
    remark = "train: images of identity 0, a distractor, of which nothing is learned: 4; people are counted from 1"
    assert remarks(dataset) == [remark]
    assert summary(dataset).splitlines()[2:] == [
        "train                  1           8           2           4           -",
        remark,
    ]


def test_cameras_that_nobody_recorded(tmp_path):
    root = write(tmp_path, "a.png", "b.png")
    (root / "t.csv").write_text("path,pid,split\na.png,1,query\nb.png,1,gallery\n")
    dataset = load_dataset(root)
    assert remarks(dataset) == ["cameras: not recorded; no gallery image is left out for having the query's camera"]
    assert summary(dataset).splitlines()[2].split() == ["query", "1", "1", "-", "-", "-"]
    contact_sheet(dataset, tmp_path / "sheet.png")


def test_msmt17_counts_its_test_people_anew(tmp_path):
    for part, pid in (("train", 0), ("test", 0)):
        write(tmp_path / part, *(f"0000/0000_00{i}_0{i + 1}_x_{pid}.png" for i in range(2)))
    for name, i in (("train", 0), ("val", 1), ("query", 0), ("gallery", 1)):
        (tmp_path / f"list_{name}.txt").write_text(f"0000/0000_00{i}_0{i + 1}_x_0.png 0\n")
    assert remarks(load_dataset(tmp_path)) == []


def test_every_unreadable_image_is_named(market):
    (market / "query" / "0003_c2s1_1.png").write_bytes(b"x")
    path = market / "bounding_box_test" / "0000_c2s1_1.png"
    path.write_bytes(path.read_bytes()[:60])
    faults = unreadable(load_dataset(market))
    assert [fault.split(": ")[0] for fault in faults] == [str(market / "query" / "0003_c2s1_1.png"), str(path)]


def test_sheet_shows_people_distractors_and_junk(market, tmp_path):
    (market / "query" / "0003_c2s1_1.png").write_bytes(b"x")  # a dark tile, no failure
    path = tmp_path / "out" / "sheet.png"
    contact_sheet(load_dataset(market), path)
    sheet = cv2.imread(str(path))
    # one person to learn from, three to look for, distractors, junk: queries have a blue frame
    assert len(sheet) == 6 * ROW + LINE  # which says that a query is faulty
    rows = np.split(sheet, np.cumsum([ROW, ROW, ROW + LINE, ROW, ROW]))
    assert [bool((row == QUERY).all(axis=2).any()) for row in rows] == [False, True, False, True, False, False]
    assert [bool((row == WRONG).all(axis=2).any()) for row in rows] == [False, False, True, False, False, False]
    shown = set(np.unique(sheet[..., 0]).tolist())
    assert {40 + 5 * i for i in range(10) if i != 3} <= shown
    first = path.read_bytes()
    contact_sheet(load_dataset(market), path)
    assert path.read_bytes() == first


def test_sheet_of_one_split_and_of_many_cameras(tmp_path):
    names = [f"1_c{c}_{i}.png" for c in range(1, 20) for i in range(4)]
    contact_sheet(load_dataset(write(tmp_path / "own", *names)), tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert len(sheet) == ROW
    middle = (sheet[ROW // 2] != 32).any(axis=1)
    assert np.count_nonzero(middle[1:] & ~middle[:-1]) == PICTURES  # of the first cameras, one each


def test_sheet_that_cannot_be_written(tmp_path):
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OSError, match=r"Is a directory.*sheet\.png"):
        contact_sheet(load_dataset(write(tmp_path / "own", "1_c1.png")), tmp_path / "sheet.png")


def test_queries_that_show_nobody(tmp_path):
    names = ("query/0_c1_1.png", "query/-1_c1_1.png", "query/2_c1_1.png", "gallery/2_c2_1.png")
    remark = (
        "query: images of identity 0 (a distractor) or -1 (junk), which cannot be evaluated: 2, e.g. query/-1_c1_1.png"
    )
    assert remark in remarks(load_dataset(write(tmp_path, *names)))


def test_links_to_nothing_are_unreadable(market):
    link = market / "query" / "0005_c1s1_1.png"
    link.symlink_to("gone.png")
    faults = unreadable(load_dataset(market))
    assert faults == [f"{link}: cannot be read (No such file or directory)"]
