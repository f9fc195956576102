"""Convert labelled images between layouts: jde, yolo, coco, crowdhuman and mot.

    python tools/convert.py --from mot:MOT17/train --to jde:converted/mot17
    python tools/train_detector.py --data jde:converted/mot17/images.txt ...

    python tools/convert.py --from crowdhuman:Images,annotation_train.odgt --to coco:converted/crowd
    python tools/convert.py --from jde:data/caltech.train,/datasets --to mot:converted/caltech --link

`--from` takes what tools/train_detector.py --data takes. `--to` names a new folder, which holds

- jde: `images`, `labels_with_ids`, and the list of images `images.txt`
- yolo: `images`, `labels` and `images.txt`
- coco: `images` and `annotations.json`; an identity is the attribute `track_id`
- crowdhuman: `images` and `annotations.odgt`; an identity is `extra.identity`
- mot: a sequence for every folder of images: `<name>/img1`, `<name>/gt/gt.txt`, `<name>/seqinfo.ini`

and `conversion.json`, which says what was converted, what was left out, and what the layout cannot say.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from detector.layouts import open_source
from detector.source import Source, image_size

RECORD = "conversion.json"
GENERIC = {"images", "img1"}
"""Names of folders that say nothing about what is in them."""


@dataclass(frozen=True)
class Item:
    """An image, where it goes, and its label rows (n, 6): class, identity, cx, cy, w, h normalised."""

    image: Path
    name: Path
    rows: NDArray[np.float64]

    def tlwh(self) -> tuple[NDArray[np.float64], tuple[int, int]]:
        """Boxes in pixels, and the image's (width, height)."""
        width, height = image_size(self.image)
        corner = self.rows[:, 2:4] - self.rows[:, 4:] / 2
        return np.concatenate((corner, self.rows[:, 4:]), axis=1) * [width, height, width, height], (width, height)


Place = Callable[[Path, Path], None]
"""Copies or links an image to its new path."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", required=True, dest="source", metavar="SOURCE", help="LAYOUT:PATH[,LABELS]")
    parser.add_argument("--to", required=True, dest="target", metavar="LAYOUT:DIR", help=f"{', '.join(WRITERS)}")
    parser.add_argument("--link", action="store_true", help="link to the images instead of copying them")
    parser.add_argument("--force", action="store_true", help="replace an earlier conversion")
    parser.add_argument("--frame-rate", type=float, default=30.0, help="of mot sequences (default %(default)g)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        convert(args.source, args.target, args.link, args.force, args.frame_rate)
    except KeyboardInterrupt:
        print("stopped; nothing is converted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source_text: str, target: str, link: bool, force: bool, frame_rate: float) -> None:
    """Read a source and write it in another layout; the folder gets its name when it is complete."""
    layout, _, folder = target.partition(":")
    if layout not in WRITERS or not folder:
        raise ValueError(f"--to: expected LAYOUT:DIR with a layout of {', '.join(WRITERS)}, got {target!r}")
    if not 0 < frame_rate < float("inf"):
        raise ValueError(f"--frame-rate: expected a positive number, got {frame_rate}")
    out = Path(folder)
    if out.exists() and not force:
        raise ValueError(f"{out}: exists already; give --force to replace it, or another --to")
    if out.exists() and not (out / RECORD).is_file():
        raise ValueError(f"{out}: was not written by this tool, so --force does not replace it; remove it yourself")
    source = open_source(source_text)
    if source.crops:
        raise ValueError(f"--from: crops are no labelled images, they cannot be converted; got {source_text!r}")
    read = [*source.images, *source_files(source_text)]
    if any(place.is_relative_to(out.resolve()) for path in read for place in (path.absolute(), path.resolve())):
        raise ValueError(f"{out}: holds images or labels of {source_text!r}; give another --to")

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    partial.chmod(0o755)
    try:
        items = list(name_items(source))
        lost = WRITERS[layout](items, partial, link_image if link else copy_image, frame_rate)
        record = summarise(source, target, lost)
        (partial / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(record, layout, out)


def source_files(source_text: str) -> list[Path]:
    """The paths a source names itself: folders, lists, annotation files."""
    location = source_text.partition(":")[2].rpartition("@")
    names = location[0] if location[1] and "/" not in location[2] else "".join(location)
    return [Path(name) for name in names.split(",") if name]


def name_items(source: Source) -> Iterator[Item]:
    """The images with their new names: their paths below the folder common to all, less parts called `images`."""
    root = os.path.commonpath([image.absolute().parent for image in source.images])
    taken: dict[Path, Path] = {}
    for image, rows in zip(source.images, source.labels, strict=True):
        relative = image.absolute().relative_to(root)
        name = Path(*(part for part in relative.parent.parts if part != "images"), image.name)
        other = taken.setdefault(name.with_suffix(""), image)
        if other is not image:
            raise ValueError(f"{image}: its labels would be those of {other}; rename one, or list it once")
        yield Item(image, name, rows)


def copy_image(image: Path, target: Path) -> None:
    """A copy of its bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, target)


def link_image(image: Path, target: Path) -> None:
    """A symbolic link to the file itself."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(image.resolve())


def with_progress(items: Sequence[Item]) -> tqdm[Item]:
    """The items, with a bar."""
    return tqdm(items, "converting", unit="image", dynamic_ncols=True, mininterval=2)


def write_jde(items: Sequence[Item], out: Path, place: Place, frame_rate: float) -> dict[str, int]:
    """Text with identities; says everything."""
    write_texts(items, out, place, "labels_with_ids", with_identity=True)
    return {}


def write_yolo(items: Sequence[Item], out: Path, place: Place, frame_rate: float) -> dict[str, int]:
    """Text with neither identities nor regions."""
    write_texts(items, out, place, "labels", with_identity=False)
    rows = np.concatenate([item.rows for item in items])
    return {
        "identities of people": int((rows[rows[:, 0] >= 0, 1] >= 0).sum()),
        "regions to be ignored (they become background)": int((rows[:, 0] < 0).sum()),
    }


def write_texts(items: Sequence[Item], out: Path, place: Place, folder: str, with_identity: bool) -> None:
    """Images, a label file for each, and their list."""
    for item in with_progress(items):
        place(item.image, out / "images" / item.name)
        path = (out / folder / item.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for label, identity, *box in item.rows:
            if with_identity or label >= 0:
                words = [f"{label:.0f}", f"{identity:.0f}"][: 1 + with_identity]
                lines.append(" ".join(words + [f"{value:.10g}" for value in box]) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
    listing = "".join(f"images/{item.name.as_posix()}\n" for item in items)
    (out / "images.txt").write_text(listing, encoding="utf-8")


def write_coco(items: Sequence[Item], out: Path, place: Place, frame_rate: float) -> dict[str, int]:
    """COCO's instances; regions are crowds."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(with_progress(items), 1):
        place(item.image, out / "images" / item.name)
        boxes, (width, height) = item.tlwh()
        images.append({"id": number, "file_name": item.name.as_posix(), "width": width, "height": height})
        for (label, identity), box in zip(item.rows[:, :2], rounded(boxes), strict=True):
            entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box}
            entry |= {"area": round(box[2] * box[3], 6), "iscrowd": int(label < 0)}
            annotations.append(entry | ({"track_id": int(identity)} if identity >= 0 else {}))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (out / "annotations.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {}


def write_crowdhuman(items: Sequence[Item], out: Path, place: Place, frame_rate: float) -> dict[str, int]:
    """CrowdHuman's lines; regions are masks."""
    with (out / "annotations.odgt").open("w", encoding="utf-8") as file:
        for item in with_progress(items):
            place(item.image, out / "images" / item.name)
            boxes = []
            for (label, identity), box in zip(item.rows[:, :2], rounded(item.tlwh()[0]), strict=True):
                extra = {"ignore": 1} if label < 0 else {"identity": int(identity)} if identity >= 0 else {}
                boxes.append({"tag": "mask" if label < 0 else "person", "fbox": box, "extra": extra})
            line = {"ID": item.name.with_suffix("").as_posix(), "gtboxes": boxes}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {}


def write_mot(items: Sequence[Item], out: Path, place: Place, frame_rate: float) -> dict[str, int]:
    """MOTChallenge's sequences; regions are distractors, and people without an identity are to be ignored."""
    rows = np.concatenate([item.rows for item in items])
    unknown = int(((rows[:, 0] >= 0) & (rows[:, 1] < 0)).sum())
    if not (rows[rows[:, 0] >= 0, 1] >= 0).any():
        raise ValueError(f"--to: mot needs identities, and none of the {unknown} people has one")
    groups: dict[Path, list[Item]] = {}
    for item in items:
        groups.setdefault(item.name.parent, []).append(item)
    taken: dict[str, Path] = {}
    for folder, members in groups.items():
        parts = folder.parts or members[0].image.absolute().parent.parts
        parts = tuple(part for part in parts if part not in {*GENERIC, folder.anchor, os.sep})
        name = "-".join(parts if folder.parts else parts[-1:]) or "sequence"
        if taken.setdefault(name, folder) != folder:
            raise ValueError(f"{folder}: its sequence would be called {name!r}, like that of {taken[name]}: rename one")
        write_sequence(members, out / name, place, frame_rate)
    return {"people without an identity (they become regions to be ignored)": unknown}


def write_sequence(items: Sequence[Item], folder: Path, place: Place, frame_rate: float) -> None:
    """One folder's images as frames, by their numbers where all names are numbers, else in the order of names."""
    items = sorted(items, key=lambda item: item.name.name)
    frames = [int(item.name.stem) if item.name.stem.isdecimal() else 0 for item in items]
    if min(frames) < 1 or len(set(frames)) < len(frames):
        frames = list(range(1, len(items) + 1))
    (folder / "gt").mkdir(parents=True)
    free = 1 + int(max(item.rows[:, 1].max(initial=0) for item in items))
    lines, sizes = [], set()
    for frame, item in zip(frames, with_progress(items), strict=True):
        place(item.image, folder / "img1" / f"{frame:06d}{item.image.suffix.lower()}")
        boxes, size = item.tlwh()
        sizes.add(size)
        boxes[:, :2] += 1  # pixels are counted from 1
        for (label, identity), box in zip(item.rows[:, :2], rounded(boxes), strict=True):
            target = label >= 0 and identity >= 0
            number = int(identity) if target else free
            free += not target
            words = [frame, number, *(f"{value:.12g}" for value in box), int(target), 1 if label >= 0 else 8, 1]
            lines.append(",".join(map(str, words)) + "\n")
    if len(sizes) > 1:
        raise ValueError(f"{items[0].image.parent}: mot needs frames of one size, got {sorted(sizes)[:3]}")
    (folder / "gt" / "gt.txt").write_text("".join(lines), encoding="utf-8")
    width, height = sizes.pop()
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate={frame_rate:g}\nseqLength={max(frames)}\n"
        f"imWidth={width}\nimHeight={height}\nimExt={items[0].image.suffix.lower()}\n",
        encoding="utf-8",
    )


def rounded(boxes: NDArray[np.float64]) -> list[list[float]]:
    """Pixels to the millionth: what is beyond is noise of dividing and multiplying."""
    values: list[list[float]] = boxes.round(6).tolist()
    return values


def summarise(source: Source, target: str, lost: dict[str, int]) -> dict[str, Any]:
    """What was converted, left out and lost."""
    rows = np.concatenate(source.labels)
    people = rows[rows[:, 0] >= 0]
    return {
        "from": source.name,
        "to": target,
        "images": len(source.images),
        "people": len(people),
        "identities": len(np.unique(people[people[:, 1] >= 0, 1])),
        "regions": len(rows) - len(people),
        "missing_images": len(source.missing_images),
        "missing_labels": len(source.missing_labels),
        "left_out": source.dropped,
        "lost": {what: count for what, count in lost.items() if count},
    }


def report(record: dict[str, Any], layout: str, out: Path) -> None:
    """Print the record, and how to open the result."""
    print(
        f"{out}: {record['images']} images, {record['people']} people, {record['identities']} identities, "
        f"{record['regions']} regions to be ignored"
    )
    for key, what in (
        ("missing_images", "images missing, left out"),
        ("missing_labels", "images without a label file"),
    ):
        if record[key]:
            print(f"  {what}: {record[key]}")
    for reason, count in record["left_out"].items():
        print(f"  left out: {reason}: {count}")
    for what, count in record["lost"].items():
        print(f"  {layout} cannot say: {what}: {count}")
    paths = {
        "coco": f"{out / 'images'},{out / 'annotations.json'}",
        "crowdhuman": f"{out / 'images'},{out / 'annotations.odgt'}",
        "mot": str(out),
    }
    print(f"open it as {layout}:{paths.get(layout, out / 'images.txt')}")


WRITERS: dict[str, Callable[[Sequence[Item], Path, Place, float], dict[str, int]]] = {
    "jde": write_jde,
    "yolo": write_yolo,
    "coco": write_coco,
    "crowdhuman": write_crowdhuman,
    "mot": write_mot,
}


if __name__ == "__main__":
    sys.exit(main())
