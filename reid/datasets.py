"""Labelled person crops on disk, in the folder layout of Market-1501 (Zheng et al., ICCV 2015)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

JUNK_PID = -1
"""Identity of crops that are neither right nor wrong; ranking leaves them out. Distractors carry 0 and stay in."""

Split = Literal["train", "query", "gallery"]
MARKET_FOLDERS: dict[Split, str] = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# 0002_c1s1_000451_03: identity, camera, then sequence, frame and box, which nothing here needs.
_FILE_NAME = re.compile(r"(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?_")


@dataclass(frozen=True)
class PersonImages:
    """The crops of one split, in the order of their file names.

    Attributes:
        paths: N image files.
        pids: (N,) int64 identities; -1 junk, 0 distractor.
        camids: (N,) int64 camera numbers as in the file names (from 1).
    """

    paths: tuple[Path, ...]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)


def read_market(root: str | Path, split: Split) -> PersonImages:
    """List one split of a Market-1501 style data set; images are not opened.

    Files that are not jpg or png (the original archive has a `Thumbs.db`) are passed over.

    Args:
        root: the folder that holds `bounding_box_train`, `query` and `bounding_box_test`.
        split: "train", "query" or "gallery".

    Raises:
        ValueError: an unknown split, a missing folder or one without images, or an image whose name carries no
            identity and camera.
    """
    if split not in MARKET_FOLDERS:
        raise ValueError(f"split: expected one of {', '.join(MARKET_FOLDERS)}, got {split!r}")
    folder = Path(root) / MARKET_FOLDERS[split]
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of {split} images, found none")
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES))
    if not paths:
        raise ValueError(f"{folder}: expected images ({', '.join(_IMAGE_SUFFIXES)}), found none")
    labels = np.array([_parse_name(path) for path in paths], dtype=np.int64)  # (N, 2)
    return PersonImages(paths, pids=labels[:, 0].copy(), camids=labels[:, 1].copy())


def _parse_name(path: Path) -> tuple[int, int]:
    match = _FILE_NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path}: expected a name like 0002_c1s1_000451_03.jpg (identity, camera)")
    return int(match["pid"]), int(match["camid"])
