"""A picture of how training went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.files import replacing

# Columns of a log that are no losses.
_OTHERS = ("step", "epoch", "lr", "grad_norm", "accuracy")
_POINTS = 300


def plot_curves(log: Path, validation: Path, path: Path) -> None:
    """Draw losses, accuracy of the classifier, learning rate, and how the gallery is ranked, over the epochs, as PNG.

    Args:
        log: JSON lines of each step, with `step`, `epoch`, `lr`, losses, and `accuracy` where there is a classifier.
        validation: JSON lines of each evaluation, with `step`, `mAP` and `rank-1`; it need not exist.
        path: file to write.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    rows, evaluations = _read(log), _read(validation)
    if not rows:
        return
    steps, epochs = (np.array([row[name] for row in rows], float) for name in ("step", "epoch"))
    figure = Figure(figsize=(11, 7), layout="constrained")
    places = figure.subplot_mosaic("LA;VR" if "accuracy" in rows[-1] else "LL;VR")
    losses, ranks, rate = (places[name] for name in "LVR")
    for name in (name for name in rows[-1] if name not in _OTHERS):
        losses.plot(*_smooth(epochs, rows, name), label=name, linewidth=2.5 if name == "total" else 1.2)
    losses.set(title="losses", ylim=(0, None))
    losses.legend(frameon=False, fontsize=8)
    if "A" in places:
        x, y = _smooth(epochs, rows, "accuracy")
        places["A"].plot(x, 100 * y, color="C2")
        places["A"].set(title="training images classified right, %", ylim=(0, 102))
    at = np.interp([row["step"] for row in evaluations], np.append(0, steps), np.append(0, epochs))
    for name in ("rank-1", "mAP"):
        values = [100 * row[name] for row in evaluations]
        ranks.plot(at, values, marker="o", label=f"{name} {values[-1]:.1f}" if values else name)
    ranks.set(title="query and gallery, %", ylim=(0, 102))
    ranks.legend(frameon=False, loc="lower right")
    rate.plot(epochs, [row["lr"] for row in rows], color="0.3")
    rate.set(title="learning rate of the new layers")
    for axes in places.values():
        axes.set(xlabel="epoch", xlim=(0, max(epochs[-1], 1e-9)))
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _smooth(
    epochs: NDArray[np.float64], rows: list[dict[str, Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A column, of long logs the means of as many pieces as there are points to show."""
    values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)
    pieces = np.array_split(np.arange(len(rows)), min(len(rows), _POINTS))
    return np.array([epochs[piece[-1]] for piece in pieces]), np.array([values[piece].mean() for piece in pieces])
