"""Pictures of what was learned from tracklets: who was taken for one person, and how well people are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.files import replacing
from reid.sheets import Tile, draw_sheet
from reid.tracklets import IntArray, Tracklets


def draw_clusters(
    path: str | Path,
    pictures: NDArray[np.uint8],
    labels: IntArray,
    tracklets: Tracklets,
    rows: int = 12,
    tiles: int = 14,
) -> None:
    """Write a PNG with a row for each cluster, those of most tracklets first, the boxes of a tracklet together.

    Args:
        path: file to write; none is written where there is no cluster.
        pictures: (N, h, w, 3) uint8 BGR, of each box.
        labels: (N,) clusters from 0, −1 outliers.
        tracklets: of the same boxes.
        rows: most clusters.
        tiles: most boxes of each.
    """
    inside = labels >= 0
    pairs = np.unique(np.stack((labels, tracklets.index))[:, inside], axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    sheet = []
    for name in names[np.argsort(-counts, kind="stable")][:rows]:
        own = np.flatnonzero(labels == name)
        members = np.unique(tracklets.index[own])
        cameras = ", ".join(map(str, np.unique(tracklets.camids[own])))
        text = f"person {name}: {len(members)} tracklets, {len(own)} boxes, camera {cameras}"
        shown = members[np.linspace(0, len(members) - 1, min(len(members), tiles // 2)).round().astype(int)]
        groups = [_tiles(pictures, own[tracklets.index[own] == one], tiles // len(shown), tracklets) for one in shown]
        sheet.append((text, groups))
    if sheet:
        draw_sheet(path, sheet)


def _tiles(pictures: NDArray[np.uint8], rows: IntArray, count: int, tracklets: Tracklets) -> list[Tile]:
    """Boxes of one tracklet, spread over its time."""
    rows = rows[np.argsort(tracklets.times[rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    return [Tile(pictures[row], (f"{tracklets.times[row]:.1f} s",)) for row in rows]


def plot_separation(rows: Sequence[Mapping[str, Any]], path: Path, best: int) -> None:
    """Draw how well tracklets are told apart, and their distances, over the epochs, as PNG.

    Args:
        rows: one an epoch, in order, with `epoch`, and the `Separation.figures` of the tracklets that were held out
            under `held`, of all under `all`.
        path: file to write.
        best: the epoch that was kept.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    area, accepted, distance = figure.subplots(1, 3).flat
    for part, colour, label in (("held", "C0", "held out"), ("all", "0.6", "all")):

        def column(name: str, part: str = part) -> NDArray[np.float64]:
            return np.array([np.nan if row[part][name] is None else row[part][name] for row in rows], float)

        area.plot(epochs, 100 * column("auc"), color=colour, marker="o", markersize=4, label=label)
        accepted.plot(epochs, 100 * column("tpr100"), color=colour, marker="o", markersize=4, label=label)
        distance.plot(epochs, column("same_distance"), color=colour, label=f"one tracklet, {label}")
        distance.plot(epochs, column("other_distance"), color=colour, linestyle="--", label=f"two people, {label}")
    area.set(title="pairs in the right order, % (AUC)")
    accepted.set(title="of one tracklet, accepted at 1 in 100 wrong, %")
    distance.set(title="mean cosine distance", ylim=(0, None))
    for axes in (area, accepted, distance):
        axes.axvline(best, color="C2", linewidth=6, alpha=0.25, label="kept")
        axes.set(xlabel="epoch")
        axes.legend(frameon=False, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part_file:
        figure.savefig(part_file, dpi=110, format="png")
