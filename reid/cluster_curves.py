"""A picture of how pseudo-labels changed while an encoder was trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.files import replacing

_QUALITIES = {"nmi": "NMI", "ari": "ARI", "purity": "purity"}


def plot_clusters(rows: Sequence[Mapping[str, Any]], path: Path, true_count: int | None = None) -> None:
    """Draw clusters, outliers and, where true identities are known, the quality of clusters over the epochs, as PNG.

    Args:
        rows: one an epoch, in order, with `epoch` and what `ClusterReport.figures` gives; where the quality is missing
            or None, its lines have a gap. Without rows there is no picture.
        path: file to write.
        true_count: the true number of identities, drawn as a dashed line; None: not known.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not rows:
        return
    epochs = [row["epoch"] for row in rows]
    known = [name for name in _QUALITIES if any(row.get(name) is not None for row in rows)]
    figure = Figure(figsize=(11 if known else 7.5, 3.6), layout="constrained")
    counts, shares, *qualities = figure.subplots(1, 3 if known else 2).flat
    style = {"marker": "o" if len(rows) <= 25 else "", "markersize": 4}

    clusters = [row["clusters"] for row in rows]
    counts.plot(epochs, clusters, color="C0", label=f"clusters {clusters[-1]}", **style)
    if true_count is not None:
        counts.axhline(true_count, color="0.3", linestyle="--", label=f"true identities {true_count}")
    counts.set(title="clusters", ylim=(0, None))
    counts.legend(frameon=False, fontsize=8)
    outliers = [100 * row["outliers"] / max(row["images"], 1) for row in rows]
    shares.plot(epochs, outliers, color="C1", **style)
    shares.set(title=f"images that are outliers, % (last {outliers[-1]:.1f})", ylim=(0, 102))
    for axes in qualities:
        for name in known:
            values = 100 * np.array([row.get(name) for row in rows], float)
            end = "" if np.isnan(values[-1]) else f" {values[-1]:.1f}"
            axes.plot(epochs, values, label=_QUALITIES[name] + end, **style)
        axes.set(title="clusters against true identities, %", ylim=(0, 102))
        axes.legend(frameon=False, fontsize=8)
    for axes in (counts, shares, *qualities):
        axes.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
