"""What a re-identification data set holds, as a table and as a sheet of pictures, and what is wrong with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from reid.datasets import DISTRACTOR_PID, JUNK_PID, Crops, ReidDataset
from reid.sheets import QUERY, WRONG, Tile, draw_sheet

PICTURES = 14
"""Pictures in a row of a sheet, which the cameras share."""
# What stands for an image that cannot be read, in pixels.
_FAULTY = (128, 64)


def summary(dataset: ReidDataset) -> str:
    """The data set as a table of identities, images and cameras, and what is remarkable about it, a line each."""
    rows: list[tuple[str, ...]] = [("", "identities", "images", "cameras", "distractors", "junk")]
    for name, crops in dataset.splits.items():
        counts = (
            len(_identities(crops)),
            len(crops),
            len(np.unique(crops.camids)) if dataset.cameras_known else 0,
            int((crops.pids == DISTRACTOR_PID).sum()),
            int((crops.pids == JUNK_PID).sum()),
        )
        rows.append((name, *(f"{count:,}" if count else "-" for count in counts)))
    table = [f"{row[0]:<12}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
    return "\n".join([f"{dataset.name} ({dataset.layout})", *table, *remarks(dataset)])


def remarks(dataset: ReidDataset) -> list[str]:
    """What may surprise whoever trains on a data set or is evaluated on it."""
    lines = []
    train, query, gallery = dataset.train, dataset.query, dataset.gallery
    if not dataset.cameras_known:
        lines.append("cameras: not recorded; no gallery image is left out for having the query's camera")
    if train is not None:
        _, counts = np.unique(train.pids[train.pids > DISTRACTOR_PID], return_counts=True)
        if single := int((counts == 1).sum()):
            lines.append(f"train: identities with a single image: {single:,}")
        if distractors := int((train.pids == DISTRACTOR_PID).sum()):
            lines.append(
                f"train: images of identity 0, a distractor, of which nothing is learned: {distractors:,}; "
                "people are counted from 1"
            )
        if dataset.cameras_known and len(np.unique(train.camids)) == 1:
            lines.append("train: one camera only")
    if query is not None and (nobody := int((query.pids <= DISTRACTOR_PID).sum())):
        example = query.names[int(np.argmax(query.pids <= DISTRACTOR_PID))]
        lines.append(
            f"query: images of identity 0 (a distractor) or -1 (junk), which cannot be evaluated: {nobody:,}, "
            f"e.g. {example}"
        )
    if query is not None and gallery is not None:
        seen = set(zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True))
        cameras = np.unique(gallery.camids).tolist()
        alone = sum(
            not any((pid, camid) in seen for camid in cameras if camid != own)
            for pid, own in zip(query.pids.tolist(), query.camids.tolist(), strict=True)
        )
        if alone:
            lines.append(
                f"query: no match in the gallery from another camera: {alone:,} of {len(query):,}; these do not count"
            )
        if train is not None and dataset.layout != "msmt17":  # which counts its test people anew
            both = np.intersect1d(_identities(train), np.union1d(_identities(query), _identities(gallery)))
            if len(both):
                lines.append(f"train: identities that are in query or gallery too: {len(both):,}, e.g. {both[0]}")
    return lines


def unreadable(dataset: ReidDataset, workers: int = 2, progress: bool = False) -> list[str]:
    """Open every image; what is wrong with those that cannot be read whole, each with its file."""
    jobs = [(crops, index) for crops in dataset.splits.values() for index in range(len(crops))]
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(_fault, jobs)
        bar = tqdm(faults, dataset.name, len(jobs), unit="image", dynamic_ncols=True, disable=not progress)
        return [fault for fault in bar if fault]


def contact_sheet(dataset: ReidDataset, path: Path, seed: int = 0, people: int = 4) -> None:
    """Write a PNG with some people of each split, one a row, their images grouped by camera.

    People who are looked for are shown with their gallery, the queries framed; then come distractors and junk. An image
    that cannot be read is a dark tile in a red frame that says so.

    Raises:
        OSError: the picture cannot be written.
    """
    rng = np.random.default_rng(seed)
    rows = []
    test = {name: crops for name, crops in dataset.splits.items() if name in ("query", "gallery")}
    for shown in filter(None, ({"train": dataset.train} if dataset.train else {}, test)):
        first, *_, last = (*shown, *shown)
        whom = [(f"id {pid}", pid, shown) for pid in _some(_identities(shown[first]), people, rng)]
        for name, pid in (("distractors", DISTRACTOR_PID), ("junk", JUNK_PID)):
            if (shown[last].pids == pid).any():
                whom.append((name, pid, {last: shown[last]}))
        rows += [_row(label, pid, those, dataset.cameras_known, rng) for label, pid, those in whom]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(path, rows)


def _row(
    label: str, pid: int, splits: dict[str, Crops], cameras_known: bool, rng: np.random.Generator
) -> tuple[str, list[list[Tile]]]:
    """One person: a headline, then tiles of each split by camera, as many as fit."""
    groups: list[list[Tile]] = []
    counts = []
    for number, (name, crops) in enumerate(splits.items()):
        places = np.flatnonzero(crops.pids == pid)
        counts.append(f"{name} {len(places):,}")
        cameras = np.unique(crops.camids[places])
        room = (PICTURES - sum(map(len, groups))) // (len(splits) - number)
        count = max(room // max(len(cameras), 1), 1)
        for camid in cameras[:room]:
            caption = " ".join(["query"] * (name == "query") + [f"c{camid}"] * cameras_known)
            chosen = _some(places[crops.camids[places] == camid], count, rng)
            groups.append([_tile(crops, index, caption, name == "query") for index in chosen])
    return f"{label}    images: {', '.join(counts)}", groups


def _tile(crops: Crops, index: int, caption: str, framed: bool) -> Tile:
    try:
        return Tile(crops.read(index), (caption,), QUERY if framed else None)
    except ValueError:
        return Tile(np.full((*_FAULTY, 3), 64, np.uint8), (caption, "faulty"), WRONG)


def _identities(crops: Crops) -> NDArray[np.int64]:
    """Whom the crops show, in order; neither distractors nor junk."""
    found = np.unique(crops.pids)
    return found[found > DISTRACTOR_PID]


def _some(values: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[int]:
    """Up to `count` of some values, in their order."""
    return sorted(rng.permutation(values)[:count].tolist())


def _fault(job: tuple[Crops, int]) -> str:
    crops, index = job
    try:
        crops.read(index)
    except ValueError as error:
        return str(error)
    return ""
