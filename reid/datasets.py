"""Labelled crops for re-identification, from where they lie: a source is written `[LAYOUT:]PATH[,OPTION]`.

PATH is the folder or the zip archive in which a data set is given out, a folder inside of an archive (`a.zip/b`), or a
folder that holds just that one. Archives stay packed, and are not looked for inside of other archives. Without a
LAYOUT, it is recognised by its files:

- `market1501`, `dukemtmc`, `personx`: `bounding_box_train`, `query`, `bounding_box_test`, and `gt_bbox` where present;
- `msmt17`: `list_*.txt` with `train` and `test` (V1) or `mask_train_v2` and `mask_test_v2` (V2);
- `cuhk03`: new protocol; `labeled` and `detected` (the OPTION) in Market's layout, or see `reid/cuhk03.py`;
- `veri776`: `image_train`, `image_query`, `image_test`;
- `vehicleid`: `image` and `train_test_split`; the OPTION is the number of test vehicles;
- `viper`: `cam_a` and `cam_b`;
- `folder`: images `PID_cCAM_….jpg` in folders `train`, `query`, `gallery` or in one; or a CSV: path, pid, camid, split.
- `images`: all images of a folder, of unknown people, to learn from without labels; a folder below it is a camera.
  Never recognised: say `images:PATH`.

The readers of the layouts are in `reid/layouts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from reid.layouts import DISTRACTOR_PID, JUNK_PID, LAYOUTS, SPLITS, UNKNOWN_CAMID, Row, Split
from reid.storage import IMAGE_SUFFIXES, Folder, Store, images_below, images_in, open_store, read_image

__all__ = [
    "DISTRACTOR_PID",
    "JUNK_PID",
    "Crops",
    "ReidDataset",
    "Split",
    "load_dataset",
    "load_images",
    "parse_source",
]

# What a layout is recognised by: any of these. Folders named train, query and gallery are `folder`'s, if nothing else
# speaks for another layout.
_MARKS: dict[str, tuple[str, ...]] = {
    "market1501": ("bounding_box_train", "bounding_box_test"),
    "msmt17": ("list_train.txt", "list_query.txt", "list_gallery.txt", "mask_train_v2", "mask_test_v2", "test"),
    "cuhk03": (
        *("labeled", "detected", "images_labeled", "images_detected", "cuhk03_release", "cuhk-03.mat"),
        *("cuhk03_new_protocol_config_labeled.mat", "cuhk03_new_protocol_config_detected.mat"),
    ),
    "veri776": ("image_train", "image_query", "image_test"),
    "vehicleid": ("train_test_split",),
    "viper": ("cam_a", "cam_b"),
}
_SAME_FILES = {"dukemtmc": "market1501", "personx": "market1501"}


@dataclass(frozen=True)
class Crops:
    """Images of one person (or vehicle) each. The order is that of their names, or of the list that names them.

    Attributes:
        store: holds the images.
        names: N images, named relative to the store.
        pids: (N,) int64 identities from 1; −1 junk, 0 distractor.
        camids: (N,) int64 camera numbers as the data set has them.
    """

    store: Store
    names: tuple[str, ...]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """N image files; of an archive, its path followed by the member's name."""
        return tuple(map(self.store.path, self.names))

    def read(self, index: int) -> NDArray[np.uint8]:
        """An image as (H, W, 3) uint8 BGR, whatever its file's colours; safe from threads and worker processes.

        Raises:
            ValueError: the file is not a whole image; names the file, or archive and member.
        """
        return read_image(self.store, self.names[index])

    def stamps(self) -> NDArray[np.int64]:
        """(N, 2) size in bytes of each image, and its time of change in ns, or in an archive its checksum.

        Raises:
            ValueError: an image is not there; it is named.
        """
        return np.array([self.store.stamp(name) for name in self.names], np.int64).reshape(-1, 2)

    def find(self, name: str) -> int:
        """The place of an image by its name, with or without folder and suffix.

        Raises:
            ValueError: there is none of this name.
        """
        for place, known in enumerate(self.names):
            if name in (known, PurePosixPath(known).name, PurePosixPath(known).stem):
                return place
        raise ValueError(f"{self.store.path()}: expected the name of an image, such as {self.names[0]}, got {name!r}")

    def select(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> Crops:
        """The crops that a mask (N,) or an array of places picks."""
        places = np.arange(len(self))[rows]
        return Crops(self.store, tuple(self.names[i] for i in places), self.pids[places], self.camids[places])


@dataclass(frozen=True)
class ReidDataset:
    """A data set; splits that were not asked for are None.

    Attributes:
        name: the source's text.
        layout: of the names in `reid.layouts.LAYOUTS`.
        train: crops to learn from.
        query: crops that are looked for.
        gallery: crops among which they are looked for.
        multi_query: more crops of the query's people in the query's cameras; only Market-1501 has them.
        cameras_known: False where nobody recorded cameras; the camera of a gallery then differs from the query's, so
            that ranking leaves no crop out for having the query's camera.
    """

    name: str
    layout: str
    train: Crops | None = None
    query: Crops | None = None
    gallery: Crops | None = None
    multi_query: Crops | None = None
    cameras_known: bool = True

    @property
    def splits(self) -> dict[str, Crops]:
        """The splits that were read, by name."""
        named = ((split, getattr(self, split)) for split in (*SPLITS, "multi_query"))
        return {split: crops for split, crops in named if crops is not None}


def load_dataset(source: str | Path, splits: Sequence[Split] | None = None, seed: int = 0) -> ReidDataset:
    """Open `[LAYOUT:]PATH[,OPTION]` and list its images; none is opened.

    Args:
        source: see above.
        splits: those that are needed, and no others are read; None stands for train, query and gallery, of the layouts
            `folder` and `images` for those that are there.
        seed: of what a layout draws at random: VIPeR's halves, VehicleID's gallery.

    Raises:
        ValueError: no layout fits, a file or folder is missing or wrong (by path, and line where there is one), or a
            split that is needed is absent or empty.
    """
    layout, path, option = parse_source(str(source))
    store: Store
    if path.suffix.lower() == ".csv" and path.is_file():
        if layout not in ("", "folder"):
            raise ValueError(f"{path}: expected the folder or zip archive of {layout}, got a CSV")
        layout, option, store = "folder", path.name, Folder(path.parent)
    else:
        layout, store = _recognise(open_store(path), layout)
    if option and layout not in ("cuhk03", "vehicleid", "folder"):
        raise ValueError(f"{source}: expected no option for the layout {layout}, got {option!r}")
    wanted = SPLITS if splits is None else tuple(splits)
    if unknown := [split for split in wanted if split not in SPLITS]:
        raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, got {unknown[0]!r}")
    rows = LAYOUTS[layout](store, wanted, option, seed)
    for split in rows if layout in ("folder", "images") and splits is None and rows else wanted:
        if not rows.get(split):
            where = f" (in a folder {split}, or so called by a CSV in the column split)" if layout == "folder" else ""
            raise ValueError(f"{store.path()}: expected {split} images{where}, found none")
    known = any(camid != UNKNOWN_CAMID for found in rows.values() for _, _, camid in found)
    crops = {split: _crops(store, found) for split, found in rows.items()}
    if not known and "gallery" in crops:
        crops["gallery"].camids[:] = UNKNOWN_CAMID + 1
    return ReidDataset(str(source), layout, **crops, cameras_known=known)


def load_images(source: str | Path) -> Crops:
    """List images of whatever name, that say nothing about who is seen; none is opened.

    Args:
        source: a folder, a zip archive or a folder inside of one (`a.zip/b`); images in folders below count, too.

    Returns:
        The images, all as junk of no known camera.

    Raises:
        ValueError: there is no such folder or archive, or no image in it.
    """
    store = open_store(Path(source).expanduser())
    names = images_below(store)
    if not names:
        raise ValueError(f"{store.path()}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none{_packed(store)}")
    return _crops(store, [(name, JUNK_PID, UNKNOWN_CAMID) for name in names])


def _crops(store: Store, rows: list[Row]) -> Crops:
    try:
        labels = np.array([row[1:] for row in rows], np.int64).reshape(-1, 2)
    except OverflowError:
        name, pid, camid = next(row for row in rows if max(map(abs, row[1:])) >= 2**63)
        raise ValueError(
            f"{store.path(name)}: expected identity and camera below 2**63, got {pid} and {camid}"
        ) from None
    return Crops(store, tuple(name for name, _, _ in rows), labels[:, 0].copy(), labels[:, 1].copy())


def parse_source(text: str) -> tuple[str, Path, str]:
    """Layout ('' where none is named), path and option ('' where none is given) of `[LAYOUT:]PATH[,OPTION]`.

    Raises:
        ValueError: no path, or an unknown layout.
    """
    layout, _, rest = text.partition(":")
    if layout not in LAYOUTS:
        layout, rest = "", text
    before, _, option = rest.rpartition(",")
    if not before or Path(rest).exists():  # no option, or a folder with a comma in its name
        before, option = rest, ""
    if not before:
        raise ValueError(f"data: expected [LAYOUT:]PATH with a layout of {', '.join(LAYOUTS)}, got {text!r}")
    if not layout and ":" in text and not Path(before).exists():
        raise ValueError(f"{before}: no such file or folder, and no layout of {', '.join(LAYOUTS)}")
    return layout, Path(before).expanduser(), option.strip()


def _recognise(store: Store, layout: str) -> tuple[str, Store]:
    """The layout, and the store it begins in: this one, or the only folder directly below that shows a layout."""
    if layout:
        if not _shows(store, layout):
            fitting = [child for child in _below(store) if _shows(child, layout)]
            store = fitting[0] if len(fitting) == 1 else store
        return layout, store  # without any mark, the layout's reader says what it misses
    found = [(name, store) for name in _layouts(store)] or [
        (name, child) for child in _below(store) for name in _layouts(child)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{name}:{place.path()}" for name, place in found)
        raise ValueError(f"{store.path()}: expected one data set, found {listed}; give one of these")
    known = "; ".join(f"{name}: {', '.join(marks[:3])}" for name, marks in _MARKS.items())
    raise ValueError(
        f"{store.path()}: expected a re-ID data set in a known layout ({known}; folder: train, query, gallery, or "
        f"images named like 0002_c1_1.jpg, or a CSV), found none{_packed(store)}"
    )


def _packed(store: Store) -> str:
    """What to do about archives inside of a folder or archive, which are not looked into."""
    packed = (name for name in store.files() if name.lower().endswith((".zip", ".tar", ".gz", ".7z", ".rar")))
    return "".join(f"; unpack {name} first" for name in list(packed)[:1])


def _below(store: Store) -> list[Store]:
    return [store.below(folder) for folder in store.folders()]


def _layouts(store: Store) -> list[str]:
    """Layouts that a store shows marks of."""
    return [name for name in _MARKS if _shows(store, name)] or (["folder"] if _shows(store, "folder") else [])


def _shows(store: Store, layout: str) -> bool:
    if layout == "images":
        return True
    if layout == "folder":
        return (
            any(map(store.has, SPLITS))
            or any(name.lower().endswith(".csv") for name in store.files())
            or any("_c" in name for name in images_in(store))
        )
    return any(map(store.has, _MARKS[_SAME_FILES.get(layout, layout)]))
