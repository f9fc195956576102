"""Layouts of re-identification data sets: which image is whom, seen by which camera, in which split.

A reader takes a store and gives, for each split that was asked for, rows of (name of the image, pid, camid). Identities
are positive: data sets that count from 0 are moved up by one, since pid 0 is a distractor and −1 is junk (Zheng et al.,
"Scalable Person Re-identification", ICCV 2015).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from reid.cuhk03 import read_cuhk03_names
from reid.storage import Store, images_below, images_in, inside, read_text

JUNK_PID = -1
"""Identity of crops that are neither right nor wrong; ranking leaves them out. Distractors carry 0 and stay in."""
DISTRACTOR_PID = 0
"""Identity of crops that show nobody of the others: never right, and not learned from."""
UNKNOWN_CAMID = 0
"""Camera of images of which nobody recorded it; others count from 1, but for data sets that have a camera 0."""

Split = Literal["train", "query", "gallery", "multi_query"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")
Row = tuple[str, int, int]
Rows = dict[Split, list[Row]]

MARKET_FOLDERS: dict[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
_VERI_FILES: dict[Split, tuple[str, str]] = {
    "train": ("image_train", "name_train.txt"),
    "query": ("image_query", "name_query.txt"),
    "gallery": ("image_test", "name_test.txt"),
}
_MSMT17_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}
# 0002_c1s1_000451_03: identity, camera, then sequence, frame and box, which nothing here needs.
_LABELLED_NAME = re.compile(r"(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?[_.]")
_CAMERA_IN_NAME = re.compile(r"(?:^|_)c(?P<camid>\d{1,9})(?:s\d+)?[_.]")
# That a 64-bit number surely holds.
_MOST_DIGITS = 18
_VIPER_NAME = re.compile(r"(?P<pid>\d+)_\d+\.")


def read_market(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """Market-1501 (Zheng et al., ICCV 2015), and all that took over its folders: DukeMTMC-reID, PersonX.

    Where there is a folder `gt_bbox`, a query brings the split "multi_query": the images of it that show a query's
    person in the query's camera.
    """
    rows = {split: _labelled_names(store, MARKET_FOLDERS[split], split) for split in splits}
    if "query" in rows and store.has("gt_bbox"):
        asked = {(pid, camid) for _, pid, camid in rows["query"]}
        truth = _labelled_names(store, "gt_bbox", "multi_query")
        rows["multi_query"] = [row for row in truth if row[1:] in asked]
    return rows


def read_msmt17(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """MSMT17 (Wei et al., CVPR 2018), V1 and V2; the validation images are part of the training split (32,621 images).

    People are counted from 0, in the training and in the test folder anew: the same pid is not the same person there.
    """
    v2 = store.has("mask_train_v2") or store.has("mask_test_v2")
    rows: Rows = {}
    for split in splits:
        part = "train" if split == "train" else "test"
        folder = f"mask_{part}_v2" if v2 else part
        _expect(store, folder, f"the folder of {split} images of MSMT17")
        found = rows.setdefault(split, [])
        for name in _MSMT17_LISTS[split]:
            for place, words in _lines(store, name, f"the list of {split} images of MSMT17"):
                fields = PurePosixPath(words[0]).stem.split("_")
                if len(words) < 2 or not words[1].isdecimal() or len(fields) < 3 or not fields[2].isdecimal():
                    raise ValueError(
                        f"{place}: expected an image named like 0000/0000_000_01_0303morning_0008_0.jpg and a pid, "
                        f"got {' '.join(words)!r}"
                    )
                found.append((_image(store, f"{folder}/{words[0]}", place), int(words[1]) + 1, int(fields[2])))
    return rows


def read_cuhk03(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """CUHK03 (Li et al., CVPR 2014) split by the new protocol of Zhong et al. (CVPR 2017), 767 and 700 people.

    The option says whose boxes: `labeled` (by hand, the default) or `detected`. Either these are folders in Market's
    layout, as the protocol's authors give them out, or see `reid/cuhk03.py`.
    """
    kind = option or "labeled"
    if kind not in ("labeled", "detected"):
        raise ValueError(f"cuhk03: expected the option labeled or detected, got {option!r}")
    if store.has(f"{kind}/bounding_box_train") or store.has(f"{kind}/query"):
        market = read_market(store.below(kind), splits, "", seed)
        return {split: [(f"{kind}/{name}", pid, camid) for name, pid, camid in rows] for split, rows in market.items()}
    return {split: read_cuhk03_names(store, kind, split) for split in splits}


def read_veri776(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """VeRi-776 (Liu et al., ECCV 2016); a list `name_*.txt`, where present, says what belongs to a split."""
    rows: Rows = {}
    for split in splits:
        folder, names = _VERI_FILES[split]
        if not store.has(names):
            rows[split] = _labelled_names(store, folder, split)
            continue
        _expect(store, folder, f"a folder of {split} images")
        rows[split] = [
            _labelled(store, _image(store, f"{folder}/{words[0]}", place)) for place, words in _lines(store, names, "")
        ]
    return rows


def read_vehicleid(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """PKU VehicleID (Liu et al., CVPR 2016): a gallery of one image a vehicle, drawn by the seed; the rest are queries.

    The option is the number of test vehicles: 800 (the default), 1600, 2400, or that of another `test_list_*.txt`.
    Cameras were not recorded.
    """
    size = option or "800"
    if not size.isdecimal():
        raise ValueError(f"vehicleid: expected a number of test vehicles (800, 1600, 2400), got {option!r}")
    rows: Rows = {}
    if "train" in splits:
        rows["train"] = _vehicles(store, "train_test_split/train_list.txt")
    if "query" in splits or "gallery" in splits:
        test = _vehicles(store, f"train_test_split/test_list_{size}.txt")
        order = np.random.default_rng(seed).permutation(len(test))
        _, first = np.unique([test[i][1] for i in order], return_index=True)
        drawn = set(order[first].tolist())
        rows["gallery"] = [row for i, row in enumerate(test) if i in drawn]
        rows["query"] = [row for i, row in enumerate(test) if i not in drawn]
    return {split: rows[split] for split in splits}


def _vehicles(store: Store, name: str) -> list[Row]:
    _expect(store, "image", "the folder of images of VehicleID")
    rows = []
    for place, words in _lines(store, name, "a list of VehicleID"):
        if len(words) != 2 or not words[1].isdecimal():
            raise ValueError(f"{place}: expected the name of an image and a vehicle, got {' '.join(words)!r}")
        rows.append((_image(store, f"image/{words[0]}.jpg", place), int(words[1]), UNKNOWN_CAMID))
    return rows


def read_viper(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """VIPeR (Gray et al., PETS 2007): two images a person; half of them train, of the others a asks b."""
    sides: list[dict[int, str]] = []
    for folder in ("cam_a", "cam_b"):
        _expect(store, folder, "a folder of images of VIPeR")
        sides.append({})
        for name in images_in(store, folder):
            match = _VIPER_NAME.match(PurePosixPath(name).name)
            if match is None:
                raise ValueError(f"{store.path(name)}: expected a name like 000_45.bmp (identity, angle)")
            if sides[-1].setdefault(int(match["pid"]) + 1, name) != name:
                raise ValueError(f"{store.path(name)}: expected one image of a person in {folder}, got two")
    one, other = sides
    for a, b, folder in ((one, other, "cam_b"), (other, one, "cam_a")):
        if alone := sorted(a.keys() - b.keys()):
            raise ValueError(f"{store.path(folder)}: expected the other image of {store.path(a[alone[0]])}, found none")
    if len(one) < 2:
        raise ValueError(f"{store.path('cam_a')}: expected images of two people or more, found {len(one)}")
    pids = np.random.default_rng(seed).permutation(sorted(one))
    train, test = (sorted(half.tolist()) for half in np.split(pids, [len(pids) // 2]))
    rows: Rows = {
        "train": [(side[pid], pid, camid) for pid in train for camid, side in enumerate(sides, 1)],
        "query": [(one[pid], pid, 1) for pid in test],
        "gallery": [(other[pid], pid, 2) for pid in test],
    }
    return {split: rows[split] for split in splits}


def read_folder(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """One's own images: a CSV with their labels, folders `train`, `query`, `gallery`, or one folder, which trains.

    Images are named `PID_cCAM_….jpg`, unless there is a CSV, with the columns `path` (below its folder) and `pid`, and
    perhaps `camid` and `split` (which may be `multi_query`, too). The option is its name; without one, the only CSV of
    the folder is taken.
    """
    tables = [option] if option else [name for name in store.files() if name.lower().endswith(".csv")]
    if len(tables) > 1:
        raise ValueError(f"{store.path()}: expected one CSV, found {', '.join(tables)}: name it, folder:PATH,NAME.csv")
    if tables:
        rows = _read_csv(store, tables[0])
    elif any(map(store.has, SPLITS)):
        return {split: _labelled_names(store, split, split) for split in splits if store.has(split)}
    else:
        rows = {"train": _labelled_names(store, "", "train")}
    asked = (*splits, "multi_query") if "query" in splits else splits
    return {split: found for split, found in rows.items() if split in asked}


def _read_csv(store: Store, name: str) -> Rows:
    path = store.path(name)
    reader = csv.DictReader(io.StringIO(read_text(store, name)), skipinitialspace=True)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num + 1}: expected comma-separated values ({error})") from error
    if missing := {"path", "pid"} - set(columns):
        other = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
        raise ValueError(
            f"{path}:1: expected the columns path and pid (camid and split may follow), "
            + (f"got no {' and no '.join(sorted(missing))}" if other is None else f"with commas between, got {other!r}")
        )
    rows: Rows = {}
    known: dict[str, tuple[int, int]] = {}  # image -> pid and line
    for number, line in lines:
        place = f"{path}:{number}"
        split = (line.get("split") or "train").strip().lower()
        if split not in (*SPLITS, "multi_query"):
            raise ValueError(f"{place}: expected the split {', '.join(SPLITS)} or multi_query, got {split!r}")
        pid = _number(line["pid"], "pid", JUNK_PID, place)
        camid = _number(line["camid"], "camid", 0, place) if "camid" in columns else UNKNOWN_CAMID
        image = _image(store, line["path"] or "", place)
        first, earlier = known.setdefault(image, (pid, number))
        if first != pid:
            raise ValueError(f"{place}: expected pid {first} for {image}, as in {path}:{earlier}, got {pid}")
        rows.setdefault(split, []).append((image, pid, camid))
    return rows


def _number(text: str | None, name: str, least: int, place: str) -> int:
    if len((text or "").strip()) > _MOST_DIGITS:
        raise ValueError(f"{place}: expected {name} of at most {_MOST_DIGITS} digits, got {text!r:.40}")
    if not re.fullmatch(r"-?\d+", (text or "").strip()) or int(text or 0) < least:
        raise ValueError(f"{place}: expected {name} as a whole number from {least} on, got {text!r}")
    return int(text or 0)


def _labelled_names(store: Store, folder: str, split: str) -> list[Row]:
    """Rows of the images in a folder, by their names; files that are no images (Market's `Thumbs.db`) are passed over.

    Raises:
        ValueError: a missing folder or one without images, or a name without identity and camera.
    """
    _expect(store, folder, f"a folder of {split} images")
    names = images_in(store, folder)
    if not names:
        raise ValueError(
            f"{store.path(folder)}: expected {split} images named like 0002_c1s1_000451_03.jpg, found none"
            + _images_deeper(store, folder)
        )
    return [_labelled(store, name) for name in names]


def _images_deeper(store: Store, folder: str) -> str:
    """Where the images are if each person has a folder, as baselines like to prepare them."""
    below = store.below(folder)
    inner = next((name for name in below.folders() if images_in(below, name)), None)
    return "" if inner is None else f"; they lie in folders below, such as {inner}: move them up"


def _labelled(store: Store, name: str) -> Row:
    match = _LABELLED_NAME.match(PurePosixPath(name).name)
    if match is None:
        raise ValueError(f"{store.path(name)}: expected a name like 0002_c1s1_000451_03.jpg (identity, camera)")
    return name, int(match["pid"]), int(match["camid"])


def _lines(store: Store, name: str, what: str) -> Iterator[tuple[str, list[str]]]:
    """`path:line` and words of the lines of a list."""
    _expect(store, name, what)
    path = store.path(name)
    for number, line in enumerate(read_text(store, name).splitlines(), 1):
        if words := line.split():
            yield f"{path}:{number}", words


def _image(store: Store, name: str, place: str) -> str:
    """The image that a list names, if it is there."""
    try:
        name = inside(store, name)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not store.has(name):
        raise ValueError(f"{place}: no such image: {store.path(name)}")
    return name


def _expect(store: Store, name: str, what: str) -> None:
    if not store.has(name):
        raise ValueError(f"{store.path(name)}: expected {what}, found none")


def read_images(store: Store, splits: tuple[Split, ...], option: str, seed: int) -> Rows:
    """Images of whatever name to learn from without labels, in folders of any depth; the identity of all is junk.

    Each folder directly below is a camera, counted in order of their names. Where there is one at most, names of images
    tell the camera if they are like `…_c3_….jpg`.
    """
    names = images_below(store)
    if not names:
        raise ValueError(f"{store.path()}: expected images, found none")
    folders = [PurePosixPath(name).parts[:-1][:1] for name in names]
    number = {folder: camid for camid, folder in enumerate(sorted(set(folders)), 1)}
    if len(number) > 1:
        camids = [number[folder] for folder in folders]
    else:
        found = [_CAMERA_IN_NAME.search(PurePosixPath(name).name) for name in names]
        camids = [int(match["camid"]) if match else UNKNOWN_CAMID for match in found]
    return {"train": [(name, JUNK_PID, camid) for name, camid in zip(names, camids, strict=True)]}


LAYOUTS: dict[str, Callable[[Store, tuple[Split, ...], str, int], Rows]] = {
    "market1501": read_market,
    "dukemtmc": read_market,
    "personx": read_market,
    "msmt17": read_msmt17,
    "cuhk03": read_cuhk03,
    "veri776": read_veri776,
    "vehicleid": read_vehicleid,
    "viper": read_viper,
    "folder": read_folder,
    "images": read_images,
}
