"""Readers of the layouts whose boxes are in pixels: MOTChallenge, COCO and CrowdHuman.

- `mot:PATH`: a sequence (`gt/gt.txt`, `seqinfo.ini`, images in `img1` or where seqinfo says), or a folder of sequences;
  MOT15, 16, 17 and 20. Identities are never shared between sequences. Of sequences that differ in the public detector
  alone (MOT17-02-DPM, -FRCNN, -SDP: the same frames) the first is read. Pedestrians at least `MIN_VISIBILITY` visible
  are people; other pedestrians, and classes that look like people, are regions to be ignored. Pixels are counted from
  1 there, from 0 here.
- `coco:IMAGES,JSON`: the category called `person`, or number 1 where no category has a name; crowds are regions to be
  ignored. An attribute `track_id` is an identity.
- `crowdhuman:IMAGES,ODGT`: the full boxes (`fbox`) of persons; masks and what is marked `ignore` are regions. An
  `extra.identity` is an identity.

Images that are absent are left out, counted and listed. Names of images may not leave their folder.
"""

from __future__ import annotations

import configparser
import json
import re
import reprlib
from math import isfinite
from pathlib import Path
from typing import Any

from detector.losses import IGNORE_LABEL, NO_IDENTITY
from detector.source import (
    IMAGE_SUFFIXES,
    PERSON_CLASS,
    Source,
    as_identity,
    image_size,
    images_in,
    inside,
    normalised,
    read_text,
)

MIN_VISIBILITY = 0.1
"""Pedestrians of MOTChallenge less visible than this are regions to be ignored."""
MOT_PEDESTRIAN = 1
MOT_REGIONS = {2: "person on vehicle", 7: "static person", 8: "distractor", 12: "reflection", 13: "crowd"}
"""Classes that look like people and are not to be tracked: neither a person nor background."""
MOT_OTHERS = {
    3: "car",
    4: "bicycle",
    5: "motorbike",
    6: "non-motorised vehicle",
    9: "occluder",
    10: "occluder on the ground",
    11: "full occluder",
}
_PUBLIC_DETECTOR = re.compile(r"-(DPM|FRCNN|SDP)$")

Row = tuple[float, ...]
"""Class, identity, cx, cy, w, h."""


def read_mot(source: Source, path: Path, labels: str) -> None:
    """One sequence, or all sequences of a folder."""
    if labels or not path.is_dir():
        raise ValueError(f"data: expected mot:PATH, a sequence or a folder of sequences, got {source.name!r}")
    folders = [path] if _is_sequence(path) else sorted(p for p in path.iterdir() if _is_sequence(p))
    if not folders:
        raise ValueError(f"{path}: holds no sequence with gt/gt.txt (from data source {source.name!r})")
    seen: set[str] = set()
    first_identity = 0
    for folder in folders:
        name = _PUBLIC_DETECTOR.sub("", folder.name)
        if name in seen:
            source.drop("sequences whose frames were read already")
            continue
        before = len(source.images)
        try:
            first_identity = _read_sequence(source, folder, first_identity)
            if len(source.images) > before:
                seen.add(name)
        except (ValueError, OSError) as error:
            source.faults.append(str(error))


def _is_sequence(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("gt/gt.txt", "seqinfo.ini", "img1"))


def _read_sequence(source: Source, folder: Path, first_identity: int) -> int:
    """Add the frames of a sequence, its identities counted from a number; returns the first number that is free."""
    image_folder, size = _read_seqinfo(folder)
    truth = folder / "gt" / "gt.txt"
    if not truth.is_file():
        raise ValueError(f"{truth}: no such file")
    found = images_in(image_folder) if image_folder.is_dir() else []
    images = {int(image.stem): image for image in found if image.stem.isdecimal()}
    source.drop("images not named by a frame number", len(found) - len(images))

    boxes: dict[int, list[Row]] = {}
    for number, line in enumerate(read_text(truth).splitlines(), 1):
        if not line.strip():
            continue
        try:
            frame, kind, row = _mot_row(line)
        except ValueError as error:
            source.faults.append(f"{truth}:{number}: {error}")
            continue
        frame_boxes = boxes.setdefault(frame, [])  # a frame of cars alone is a frame too
        if kind:
            source.drop(kind)
        else:
            frame_boxes.append(row)

    for frame in sorted(boxes.keys() - images.keys()):
        source.missing_images.append(image_folder / f"{frame:06d}.jpg")
        source.drop("boxes on images that are absent", len(boxes[frame]))
    last = first_identity
    for frame, image in sorted(images.items()):
        try:
            source.sizes[image] = size or image_size(image)
        except ValueError as error:
            source.faults.append(str(error))
            continue
        rows = []
        for label, identity, *tlwh in boxes.get(frame, ()):
            if identity >= 0:
                identity += first_identity
                last = max(last, int(identity) + 1)
            row = (label, identity, *normalised(tlwh, source.sizes[image]))
            if source.usable(row):
                rows.append(row)
        source.add(image, rows)
    return last


def _read_seqinfo(folder: Path) -> tuple[Path, tuple[int, int] | None]:
    """The image folder, and the frames' (width, height) where they are stated."""
    path = folder / "seqinfo.ini"
    if not path.is_file():
        return folder / "img1", None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(path))
        info = parser["Sequence"]
        images = inside(folder, info.get("imDir", "img1"))
        width, height = info.getint("imWidth", 0), info.getint("imHeight", 0)
    except (configparser.Error, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a description of a sequence: {' '.join(str(error).split())}") from error
    return images, (width, height) if width > 0 and height > 0 else None


def _mot_row(line: str) -> tuple[int, str, Row]:
    """Frame, why the row is left out ('' where it is not), and class, identity, left, top, width, height.

    Rows are `frame,id,left,top,width,height,confidence,class,visibility`, pixels counted from 1: ours from 0. Ten
    columns are MOT15's, which end in a position in the world: there, confidence alone counts.
    """
    words = line.split(",")
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"expected numbers, got {line.strip()!r}") from None
    if not 6 <= len(values) <= 10:
        raise ValueError(f"expected 6 to 10 numbers, got {len(values)}")
    if not all(map(isfinite, values)):
        raise ValueError(f"expected finite numbers, got {line.strip()!r}")
    frame, left, top, width, height = values[0], *values[2:6]
    if frame != frame // 1 or frame < 1:
        raise ValueError(f"expected a whole frame, 1 or more, got {frame}")
    identity = as_identity(values[1])
    confidence = values[6] if len(values) > 6 else 1.0
    given = len(values) in (8, 9) and values[7] != -1
    kind = values[7] if given else MOT_PEDESTRIAN
    visibility = values[8] if len(values) == 9 and values[8] >= 0 else 1.0
    if kind != kind // 1 or kind < 1:
        raise ValueError(f"expected a whole class, 1 or more, got {kind}")
    row = (left - 1, top - 1, width, height)
    if kind == MOT_PEDESTRIAN and confidence > 0 and visibility >= MIN_VISIBILITY:
        return int(frame), "", (PERSON_CLASS, identity, *row)
    if kind == MOT_PEDESTRIAN or kind in MOT_REGIONS:
        return int(frame), "", (IGNORE_LABEL, NO_IDENTITY, *row)
    return int(frame), f"class {MOT_OTHERS.get(int(kind), int(kind))}", ()


def read_coco(source: Source, path: Path, labels: str) -> None:
    """Instances of people in COCO's JSON; images without people stay, as background."""
    if not labels or not path.is_dir():
        raise ValueError(f"data: expected coco:IMAGES,JSON with a folder of images, got {source.name!r}")
    file = Path(labels)
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    content = content if isinstance(content, dict) else {}
    listed, annotations, categories = (content.get(key) for key in ("images", "annotations", "categories"))
    if not isinstance(listed, list) or not isinstance(annotations, list):
        raise ValueError(f"{file}: expected an object with lists 'images' and 'annotations'")
    names = {
        category.get("id"): str(category.get("name")).lower()
        for category in (categories if isinstance(categories, list) else [])
        if isinstance(category, dict) and isinstance(category.get("id"), int)
    }
    people = {number for number, name in names.items() if name == "person"}
    if names and not people:
        found = ", ".join(sorted({_printable(name) for name in names.values()}))
        raise ValueError(f"{file}: expected a category called 'person', got {found}")
    people = people or {1}

    images: dict[int, Path] = {}
    rows: dict[int, list[Row]] = {}
    for index, item in enumerate(listed):
        try:
            number, image, size = _coco_image(path, item)
            if number in rows:
                raise ValueError(f"expected an id of its own, got {number} again")
            rows[number] = []
            if not image.is_file():
                source.missing_images.append(image)
                continue
            source.sizes[image] = size or image_size(image)
            images[number] = image
        except ValueError as error:
            source.faults.append(f"{file}: images[{index}]: {error}")
    for index, item in enumerate(annotations):
        try:
            number, kind = _whole(item, "image_id"), _whole(item, "category_id")
            if number not in rows:
                raise ValueError(f"expected the id of an image, got image_id {number}")
            if kind not in people:
                source.drop(f"class {_printable(names.get(kind, kind))}")
            elif number not in images:
                source.drop("boxes on images that are absent")
            else:
                region = bool(item.get("iscrowd") or item.get("ignore"))
                row = _pixel_row(item, "bbox", item.get("track_id"), region, source.sizes[images[number]])
                if source.usable(row):
                    rows[number].append(row)
        except ValueError as error:
            source.faults.append(f"{file}: annotations[{index}]: {error}")
    for number, image in images.items():
        source.add(image, rows[number])


def _coco_image(folder: Path, item: Any) -> tuple[int, Path, tuple[int, int] | None]:
    """Its id, its path, and (width, height) where they are given."""
    number, name = _whole(item, "id"), item.get("file_name")
    if not isinstance(name, str) or name.startswith(("/", "\\")):
        raise ValueError(f"expected a file_name below {folder}, got {reprlib.repr(name)}")
    size = (item.get("width"), item.get("height"))
    if size == (None, None):
        return number, inside(folder, name), None
    return number, inside(folder, name), (_whole(item, "width", 1), _whole(item, "height", 1))


def read_crowdhuman(source: Source, path: Path, labels: str) -> None:
    """People in CrowdHuman's `.odgt`, one JSON object an image and line."""
    if not labels or not path.is_dir():
        raise ValueError(f"data: expected crowdhuman:IMAGES,ODGT with a folder of images, got {source.name!r}")
    file = Path(labels)
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            name, boxes = (item.get("ID"), item.get("gtboxes")) if isinstance(item, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(boxes, list) or name.startswith(("/", "\\")):
                raise ValueError("expected an object with an ID, the name of an image, and gtboxes, a list")
            candidates = [inside(path, name + suffix) for suffix in (".jpg", *sorted(IMAGE_SUFFIXES))]
            image = next((candidate for candidate in candidates if candidate.is_file()), None)
            if image is None:
                source.missing_images.append(candidates[0])
                source.drop("boxes on images that are absent", len(boxes))
                continue
            size = image_size(image)
        except (ValueError, RecursionError) as error:  # of JSON too
            source.faults.append(f"{file}:{number}: {error}")
            continue
        rows = []
        for index, box in enumerate(boxes):
            try:
                row = _crowdhuman_row(source, box, size)
                if row and source.usable(row):
                    rows.append(row)
            except ValueError as error:
                source.faults.append(f"{file}:{number}: gtboxes[{index}]: {error}")
        source.add(image, rows)


def _crowdhuman_row(source: Source, box: Any, size: tuple[int, int]) -> Row | None:
    """A label row; None for a box that is no person, which is counted."""
    if not isinstance(box, dict):
        raise ValueError(f"expected an object, got {reprlib.repr(box)}")
    extra = box.get("extra")
    extra = extra if isinstance(extra, dict) else {}
    if box.get("tag") not in ("person", "mask"):
        source.drop(f"class {_printable(box.get('tag'))}")
        return None
    region = box["tag"] == "mask" or extra.get("ignore") == 1
    return _pixel_row(box, "fbox", extra.get("identity"), region, size)


def _pixel_row(box: dict[str, Any], key: str, identity: Any, region: bool, size: tuple[int, int]) -> Row:
    """A label row from left, top, width, height in pixels."""
    tlwh = box.get(key)
    if not isinstance(tlwh, list) or len(tlwh) != 4 or not all(map(_is_number, tlwh)):
        raise ValueError(f"expected {key} as 4 finite numbers, got {reprlib.repr(tlwh)}")
    if identity is None or region:
        identity = NO_IDENTITY
    if not _is_number(identity):
        raise ValueError(f"expected a whole identity, −1 or more, got {reprlib.repr(identity)}")
    return (IGNORE_LABEL if region else PERSON_CLASS, as_identity(identity), *normalised(tlwh, size))


def _printable(name: Any) -> str:
    """A name from a file, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:40])


def _is_number(value: Any) -> bool:
    """JSON knows true, NaN and whole numbers beyond every float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _whole(item: Any, key: str, least: int = 0) -> int:
    """A whole number of an object."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {key} as a whole number, {least} or more, got {reprlib.repr(value)}")
    return value
