"""CUHK03 as images in one folder, with the lists of the new protocol.

An image is named `PAIR_NUMBER_VIEW_IMAGE.png`: pair of cameras, number of the person there, camera of the pair, number
of the image. The lists name the images of each split. Their authors give them out as
`cuhk03_new_protocol_config_labeled.mat` (and `_detected`); torchreid turns these into `splits_new_labeled.json`. Both
are read, for the names alone: the paths in the latter are those of somebody's disk, and its pids are renumbered.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np

from reid.storage import Store, read_text

_NAME = re.compile(r"(?P<pair>\d)_(?P<number>\d{3})_(?P<view>[12])_\d{2}\.(png|jpg)")


def read_cuhk03_names(store: Store, kind: str, split: str) -> list[tuple[str, int, int]]:
    """Name, pid and camid (1 or 2 in its pair) of the images of a split.

    Args:
        store: holds `images_<kind>` and one of the lists.
        kind: "labeled" or "detected".
        split: "train", "query" or "gallery".

    Raises:
        ValueError: a folder, a list or an image is missing, or a list is not what it should be.
    """
    folder = f"images_{kind}"
    if not store.has(folder):
        packed = next((name for name in ("cuhk03_release/cuhk-03.mat", "cuhk-03.mat") if store.has(name)), "")
        raise ValueError(
            f"{store.path(folder)}: expected a folder of images named like 1_001_1_01.png, or the folders "
            f"bounding_box_train, query and bounding_box_test of CUHK03-NP in {store.path(kind)}, found none"
            + (f"; the images inside of {packed} are not read from there" if packed else "")
        )
    matrix, listing = f"cuhk03_new_protocol_config_{kind}.mat", f"splits_new_{kind}.json"
    if store.has(matrix):
        source, names = matrix, _names_of_mat(store, matrix, split)
    elif store.has(listing):
        source, names = listing, _names_of_json(store, listing, split)
    else:
        raise ValueError(f"{store.path(matrix)}: expected the lists of the new protocol, there or in {listing}")
    rows = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{store.path(source)}: expected names like 1_001_1_01.png, got {name!r}")
        if not store.has(f"{folder}/{name}"):
            raise ValueError(f"{store.path(source)}: no such image: {store.path(f'{folder}/{name}')}")
        rows.append((f"{folder}/{name}", int(match["pair"]) * 1000 + int(match["number"]), int(match["view"])))
    return rows


def _names_of_mat(store: Store, name: str, split: str) -> list[str]:
    from scipy.io import loadmat  # slow to load, and nothing else here needs it

    data = store.read(name)
    try:
        fields: dict[str, Any] = loadmat(io.BytesIO(data), variable_names=["filelist", f"{split}_idx"])
        files = [str(np.ravel(entry)[0]) for entry in np.ravel(fields["filelist"])]
        return [files[int(index) - 1] for index in np.ravel(fields[f"{split}_idx"])]
    except Exception as error:  # a damaged file raises whatever comes up
        raise ValueError(
            f"{store.path(name)}: expected filelist and {split}_idx of the new protocol ({error!r})"
        ) from error


def _names_of_json(store: Store, name: str, split: str) -> list[str]:
    try:
        return [re.split(r"[/\\]", path)[-1] for path, _, _ in json.loads(read_text(store, name))[0][split]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{store.path(name)}: expected {split} as a list of (path, pid, camera) ({error!r})"
        ) from error
