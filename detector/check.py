"""What a data source holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from detector.layouts import read_source
from detector.source import Source, other_shape, read_image

TINY = 4.0
"""Boxes with a shorter side, in pixels, are called tiny."""
OUTSIDE = 1.0
"""Boxes that leave their image by more pixels than this are called partly outside."""
SAME = 0.9
"""People in one image whose boxes overlap by at least this intersection over union are called duplicates."""
SHOWN = 8
"""Most frequent reasons for leaving something out that are printed one by one."""


@dataclass
class Report:
    """A source, counted.

    Attributes:
        name: the source's text.
        images: images found, and the number of each thing below among them.
        people: boxes of people.
        identities: different identities.
        unidentified: people without an identity.
        regions: regions to be ignored.
        empty: images without people.
        outside: people partly outside of their image.
        tiny: people smaller than `TINY` pixels.
        duplicates: people whose box is another's in the same image, or whose identity is.
        repeated: images that are listed more than once.
        missing_labels: label files that do not exist; their images show nobody.
        missing_images: images that labels speak of and that do not exist; they are left out.
        dropped: what was left out, reason -> count.
        faults: what must be mended before training, each with its file (and line).
    """

    name: str
    images: int = 0
    people: int = 0
    identities: int = 0
    unidentified: int = 0
    regions: int = 0
    empty: int = 0
    outside: int = 0
    tiny: int = 0
    duplicates: int = 0
    repeated: int = 0
    missing_labels: list[Path] = field(default_factory=list)
    missing_images: list[Path] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            (self.images, "images"),
            (self.empty, "  without people"),
            (len(self.missing_labels), "  without a label file"),
            (self.repeated, "  listed more than once"),
            (len(self.missing_images), "images missing, left out" + _example(self.missing_images)),
            (self.people, "people"),
            (self.unidentified, "  without an identity"),
            (self.outside, "  partly outside of their image"),
            (self.tiny, f"  smaller than {TINY:g} pixels"),
            (self.duplicates, "  with the box or the identity of another in their image"),
            (self.identities, "identities"),
            (self.regions, "regions to be ignored"),
        ]
        dropped = sorted(((count, reason) for reason, count in self.dropped.items()), reverse=True)
        rows += [(count, f"left out: {reason}") for count, reason in dropped[:SHOWN]]
        if rest := dropped[SHOWN:]:
            rows += [(sum(count for count, _ in rest), f"left out for {len(rest)} more reasons")]
        lines = [f"{count:>9,}  {what}" for count, what in [*rows, (len(self.faults), "faults")]]
        named = [*(f"{path}: no label file" for path in self.missing_labels), *self.faults]
        return "\n".join([self.name, *lines, *(f"           {line}" for line in named)])


def _example(paths: Sequence[Path]) -> str:
    return f", e.g. {paths[0]}" if paths else ""


def check_source(text: str, workers: int = 2, progress: bool = False) -> tuple[Report, Source | None]:
    """Open every image and read every label of a source, past all faults.

    Args:
        text: `LAYOUT:PATH[,LABELS][@WEIGHT]`.
        workers: threads that open images.
        progress: show a bar.

    Returns:
        The report, and the source without its unreadable images; None where there is no source to speak of, or no
        image of it can be read.
    """
    try:
        source = read_source(text)
    except (ValueError, OSError) as error:
        return Report(text, faults=[str(error)]), None
    report = Report(
        text,
        images=len(source.images),
        missing_labels=source.missing_labels,
        repeated=len(source.images) - len(set(source.images)),
        missing_images=source.missing_images,
        dropped=source.dropped,
        faults=list(source.faults),
    )
    known: set[float] = set()
    good = []
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(_open, source.images)
        bar = tqdm(found, text, len(source.images), unit="image", dynamic_ncols=True, disable=not progress)
        for index, result in enumerate(bar):
            rows = source.labels[index]
            if isinstance(result, str):
                report.faults.append(result)
                _count(report, rows, None)
            else:
                good.append(index)
                _count(report, rows, result)
                path = source.images[index]
                stated = source.sizes.get(path, result)
                if fault := other_shape(path, stated, result):
                    report.faults.append(fault)
            people = rows[rows[:, 0] >= 0]
            known.update(people[people[:, 1] >= 0, 1].tolist())
    report.identities = len(known)
    source.images = [source.images[i] for i in good]
    source.labels = [source.labels[i] for i in good]
    return report, source if good else None


def _count(report: Report, rows: NDArray[np.float64], size: tuple[int, int] | None) -> None:
    """Add one image's labels; what is in pixels only where its (width, height) is known."""
    people = rows[rows[:, 0] >= 0]
    report.people += len(people)
    report.regions += len(rows) - len(people)
    report.unidentified += int((people[:, 1] < 0).sum())
    report.empty += not len(people)
    if size is None or not len(people):
        return
    side = people[:, 4:] * size
    low, high = people[:, 2:4] * size - side / 2, people[:, 2:4] * size + side / 2
    report.outside += int(((low < -OUTSIDE) | (high > np.array(size) + OUTSIDE)).any(1).sum())
    report.tiny += int((side.min(1) < TINY).sum())
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    overlap = shared.clip(min=0).prod(2)
    area = side.prod(1)
    same = overlap >= SAME * (area[:, None] + area - overlap)
    same |= (people[:, None, 1] == people[:, 1]) & (people[:, 1] >= 0)
    report.duplicates += int(np.tril(same, -1).any(1).sum())


def _open(path: Path) -> tuple[int, int] | str:
    """(width, height) of a whole image, else what is wrong with it."""
    try:
        height, width = read_image(path).shape[:2]
    except (ValueError, OSError, cv2.error) as error:
        return str(error)
    return width, height
