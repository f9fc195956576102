"""Readers of labelled images, where they lie: a source is written `LAYOUT:PATH[,LABELS][@WEIGHT]`.

The weight says how often an epoch shows each image. What is neither a person nor a region to be ignored is left out
and counted. A row that cannot be right is a fault, named by path and line.

- `jde`: PATH is a folder of images; labels in LABELS, or in the folder whose name has `labels_with_ids` in place of the
  last `images`. One text file an image, rows `class identity cx cy w h` normalised by the image's size; class 0 is a
  person, −1 a region to be ignored; identity −1 is unknown (Wang et al., ECCV 2020). An image without a label file
  shows nobody. Or PATH is a text file with the path of an image a line, below the list's folder, or below LABELS.
- `yolo`: the same with `labels` and rows `class cx cy w h`.
- `crops`: a folder of person crops named `PID_cCAM...` (Market-1501's names), pasted on canvases.
- `mot`, `coco`, `crowdhuman`: see `detector/annotations.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path

from detector.annotations import read_coco, read_crowdhuman, read_mot
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from detector.source import PERSON_CLASS, Source, as_identity, image_size, images_in, inside, other_shape, read_text

MAX_COORDINATE = 3.0
"""Normalised boxes may leave the image; beyond this they must be pixels."""


def open_source(text: str) -> Source:
    """Open `LAYOUT:PATH[,LABELS][@WEIGHT]` and read every label.

    Raises:
        ValueError: the text, a folder or a label is wrong; the first fault by path and line, and how many more.
    """
    source = read_source(text)
    for image in {image.parent: image for image in reversed(source.images) if image in source.sizes}.values():
        # One image of each folder: a size that is wrong is wrong for all of a sequence.
        if fault := other_shape(image, source.sizes[image], image_size(image)):
            source.faults.append(fault)
    if source.faults:
        more = len(source.faults) - 1
        raise ValueError(source.faults[0] + (f" (and {more} more)" if more else ""))
    return source


def read_source(text: str) -> Source:
    """Like `open_source`, but what is wrong in single rows is collected in `Source.faults`.

    Raises:
        ValueError: there is no source to speak of: the text is wrong, a folder is absent or holds no image.
    """
    layout, path, labels, weight = _parse(text)
    source = Source(text, weight)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder (from data source {text!r})")
    READERS[layout](source, path, labels)
    if not source.images and not source.faults:
        missing = f": not found, e.g. {source.missing_images[0]}" if source.missing_images else ""
        raise ValueError(f"{path}: holds no image{missing} (from data source {text!r})")
    return source


def _parse(text: str) -> tuple[str, Path, str, float]:
    """Layout, path, labels ('' where none are given) and weight."""
    layout, separator, rest = text.partition(":")
    if layout not in READERS or not separator:
        raise ValueError(f"data: expected LAYOUT:PATH with a layout of {', '.join(READERS)}, got {text!r}")
    location, at, weight_text = rest.rpartition("@")
    if not at or "/" in weight_text:  # no weight, or a folder with an @ in its name
        location, weight_text = rest, "1"
    path, _, labels = location.partition(",")
    try:
        weight = float(weight_text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < inf:
        raise ValueError(f"data: expected a positive number after @, got {text!r}")
    if not path:
        raise ValueError(f"data: expected a path after {layout}:, got {text!r}")
    return layout, Path(path), labels, weight


def read_jde(source: Source, path: Path, labels: str) -> None:
    """Text labels with identities, beside a folder or a list of images."""
    _read_texts(source, path, labels, "labels_with_ids", columns=6)


def read_yolo(source: Source, path: Path, labels: str) -> None:
    """Text labels without identities, beside a folder or a list of images."""
    _read_texts(source, path, labels, "labels", columns=5)


def _read_texts(source: Source, path: Path, labels: str, folder_name: str, columns: int) -> None:
    if path.is_dir():
        images = images_in(path)
        label_folder = Path(labels) if labels else _swap_images(path, folder_name)
        if images and not label_folder.is_dir():
            raise ValueError(f"{label_folder}: no such folder of labels (from data source {source.name!r})")
        files = [label_folder / f"{image.stem}.txt" for image in images]
    else:
        images = _read_list(source, path, Path(labels) if labels else path.parent)
        files = [_swap_images(image.parent, folder_name) / f"{image.stem}.txt" for image in images]
        if files and not any(file.is_file() for file in files):
            raise ValueError(f"{path}: no image has a label file; looked for {files[0]} (from source {source.name!r})")
    for image, file in zip(images, files, strict=True):
        if not file.is_file():
            source.missing_labels.append(file)
        source.add(image, _read_rows(source, file, columns) if file.is_file() else [])


def _swap_images(folder: Path, name: str) -> Path:
    """The folder with its last part called `images` replaced."""
    parts = list(folder.parts)
    if "images" not in parts:
        raise ValueError(f"{folder}: give the labels as PATH,LABELS: the path has no folder called 'images'")
    parts[len(parts) - 1 - parts[::-1].index("images")] = name
    return Path(*parts)


def _read_list(source: Source, path: Path, root: Path) -> list[Path]:
    """Image paths from a text file, one a line; a line that names none is a fault."""
    images = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            image = inside(root, line.strip())
            if not image.is_file():
                raise ValueError(f"{image}: no such image")
            if "images" not in image.parent.parts:
                raise ValueError(f"expected a folder called 'images' in {image}, to find its labels")
            images.append(image)
        except ValueError as error:
            source.faults.append(f"{path}:{number}: {error}")
    return images


def _read_rows(source: Source, path: Path, columns: int) -> list[list[float]]:
    """Rows of one label file; all of its faults are collected."""
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        source.faults.append(str(error))
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            row = _parse_row(words, columns)
        except ValueError as error:
            source.faults.append(f"{path}:{number}: {error}")
            continue
        if row[0] not in (PERSON_CLASS, IGNORE_LABEL):
            source.drop(f"class {row[0]:.0f}")
        elif source.usable(row):
            rows.append(row)
    return rows


def _parse_row(words: list[str], columns: int) -> list[float]:
    """Class, identity, cx, cy, w, h; raises what a line's fault is."""
    try:
        row = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"expected {columns} numbers, got {' '.join(words)!r}") from None
    if len(row) != columns:
        raise ValueError(f"expected {columns} numbers, got {len(row)}")
    if not all(map(isfinite, row)):
        raise ValueError(f"expected finite numbers, got {' '.join(words)!r}")
    if row[0] != row[0] // 1:
        raise ValueError(f"expected a whole class, got {row[0]}")
    if columns == 5:
        row.insert(1, NO_IDENTITY)
    as_identity(row[1])
    if max(map(abs, row[2:])) > MAX_COORDINATE:
        raise ValueError(f"expected coordinates divided by the image's size, got {' '.join(words)!r}")
    return row


def read_crops(source: Source, path: Path, labels: str) -> None:
    """Crops of one person each; junk (a negative person number) and distractors (number 0) are left out."""
    if labels:
        raise ValueError(f"data: expected crops:PATH without labels, got {source.name!r}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder (from data source {source.name!r})")
    source.crops = True
    for image in images_in(path):
        try:
            pid = int(image.name.split("_")[0])
        except ValueError:
            source.faults.append(f"{image}: expected a name that starts with a person number, like 0002_c1s1.jpg")
            continue
        if pid <= 0:
            source.drop("distractors" if pid == 0 else "junk crops")
        else:
            source.add(image, [[PERSON_CLASS, pid, 0.5, 0.5, 1, 1]])


READERS: dict[str, Callable[[Source, Path, str], None]] = {
    "jde": read_jde,
    "yolo": read_yolo,
    "crops": read_crops,
    "mot": read_mot,
    "coco": read_coco,
    "crowdhuman": read_crowdhuman,
}
