"""A detector run over labelled images: average precision, verification rate, the precision-recall picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from detector.losses import IGNORE_LABEL, NO_IDENTITY
from detector.metrics import Arrays, DetectionScores, detection_scores, tpr_at_far
from detector.source import read_image

Detect = Callable[[Sequence[NDArray[np.uint8]]], Sequence[Arrays]]
Embed = Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Validation:
    """What `validate` measured.

    Attributes:
        figures: name -> number, ready for JSON: None stands for what could not be measured.
        detection: the curve of all people.
        small: the curve of small people.
        embeddings: (M, D) float32 at the labelled boxes of known identity; (0, 0) where none was asked for.
        pids: (M,) their identities.
        images: (M,) index of the image each was seen in.
    """

    figures: dict[str, float | int | None]
    detection: DetectionScores
    small: DetectionScores
    embeddings: NDArray[np.float32]
    pids: NDArray[np.int64]
    images: NDArray[np.int64]


def validate(
    detect: Detect,
    images: Sequence[Path],
    labels: Sequence[NDArray[np.float64]],
    embed: Embed | None = None,
    *,
    batch_size: int = 8,
    small_height: float = 64,
    max_embeddings: int = 10_000,
    progress: str | None = "validate",
) -> Validation:
    """Run a detector over labelled images and score it.

    Average precision counts only what is reported: give the detector a low `score_thresh`, 0.001 for instance.
    Images are dropped once seen.

    Args:
        detect: frames (H, W, 3) uint8 BGR -> `boxes` and `scores` of each; a `Detector`.
        images: paths of the images.
        labels: per image (n, 6) class, identity, cx, cy, w, h normalised; class -1 is a region to be ignored.
        embed: frame, boxes (N, 4) -> embeddings (N, D); the `embed` of a `Detector`. None: boxes alone are scored.
        batch_size: images read and given to `detect` at once.
        small_height: people lower than this, in pixels of the image, are the small ones.
        max_embeddings: of more people with an identity, so many are described, evenly spaced over the images.
        progress: caption of the progress bar on stderr; None for no bar.

    Raises:
        ValueError: an image cannot be read (it is named), or a length or setting is wrong.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels: expected one array for each of {len(images)} images, got {len(labels)}")
    for name, value in (("batch_size", batch_size), ("max_embeddings", max_embeddings)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    chosen = _identified(labels, max_embeddings) if embed else np.zeros((0, 2), np.int64)
    predictions: list[Arrays] = []
    targets: list[Arrays] = []
    embeddings: list[NDArray[np.float32]] = []
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None) as bar:
        for start in range(0, len(images), batch_size):
            frames = [read_image(path) for path in images[start : start + batch_size]]
            predictions += [{name: found[name] for name in ("boxes", "scores")} for found in detect(frames)]
            for i in range(start, start + len(frames)):
                targets.append(pixel_targets(labels[i], *frames[i - start].shape[:2]))
                rows = chosen[chosen[:, 0] == i, 1]
                if embed and len(rows):
                    embeddings.append(np.asarray(embed(frames[i - start], targets[i]["boxes"][rows]), np.float32))
            bar.update(len(frames))
    detection = detection_scores(predictions, targets)
    small = detection_scores(predictions, targets, height_range=(0, small_height))
    described = np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32)
    pids = np.array([labels[image][row, 1] for image, row in chosen.tolist()], np.int64)
    figures: dict[str, float] = {
        "images": detection.images,
        "people": detection.people,
        "people_small": small.people,
        "AP50": detection.ap50,
        "AP50:95": detection.ap,
        "AP50_small": small.ap50,
        "AP50:95_small": small.ap,
        "F1": detection.best_f1,
        "F1_score": detection.best_score,
        "precision": detection.best_precision,
        "recall": detection.best_recall,
        "embeddings": len(pids),
        "identities": len(np.unique(pids)),
        **{f"TPR@FAR={far:.0e}": rate for far, rate in tpr_at_far(described, pids).items()},
    }
    ready = {name: None if np.isnan(value) else value for name, value in figures.items()}
    return Validation(ready, detection, small, described, pids, chosen[:, 0])


def pixel_targets(rows: NDArray[np.float64], height: int, width: int) -> dict[str, NDArray[Any]]:
    """Normalised label rows (n, 6) -> `boxes` (n, 4) xyxy in pixels and `labels` (n,) of an image of this size."""
    centre, half = rows[:, 2:4], rows[:, 4:6] / 2
    boxes = np.concatenate((centre - half, centre + half), axis=1) * [width, height, width, height]
    return {"boxes": boxes, "labels": rows[:, 0].astype(np.int64)}


def _identified(labels: Sequence[NDArray[np.float64]], limit: int) -> NDArray[np.int64]:
    """(image, row) pairs (M, 2) of people with an identity, at most `limit`, evenly spaced."""
    rows = [np.flatnonzero((r[:, 0] != IGNORE_LABEL) & (r[:, 1] != NO_IDENTITY)) for r in labels]
    pairs = np.array([(i, row) for i, some in enumerate(rows) for row in some], np.int64).reshape(-1, 2)
    return pairs if len(pairs) <= limit else pairs[np.linspace(0, len(pairs) - 1, limit).round().astype(np.int64)]


def plot_precision_recall(path: str | Path, scores_by_name: Mapping[str, DetectionScores]) -> None:
    """Draw precision over recall at IoU 0.5 as a PNG file.

    Each curve is drawn as AP counts it, precision made monotone, with a dot at its best F1; grey lines join places
    of equal F1.

    Args:
        path: file to write.
        scores_by_name: what to draw, under the names of the legend.

    Raises:
        ValueError: nothing to draw, or matplotlib is not installed.
    """
    if not scores_by_name:
        raise ValueError("scores_by_name: expected at least one, got none")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plot_precision_recall: matplotlib is not installed (pip install matplotlib)") from None
    figure = Figure(figsize=(7, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for f1 in (0.2, 0.4, 0.6, 0.8):
        least = f1 / (2 - f1)  # the recall that reaches this F1 at precision 1, and the other way round
        reach = np.geomspace(least, 1, 200)
        axes.plot(reach, f1 * reach / (2 * reach - f1), color="0.88", linewidth=1, zorder=1)
        axes.annotate(f"F1 {f1}", (1, least), (3, 0), textcoords="offset points", va="center", color="0.6")
    for i, (name, scores) in enumerate(scores_by_name.items()):
        best = np.maximum.accumulate(scores.precision[::-1])[::-1]
        recall, precision = np.append(np.zeros(len(best[:1])), scores.recall), np.append(best[:1], best)
        label = f"AP50 {scores.ap50:.3f}  AP {scores.ap:.3f}  {name}"
        axes.step(recall, precision, where="pre", color=f"C{i}", linewidth=1.8, label=label, zorder=3)
        axes.plot(scores.best_recall, scores.best_precision, "o", color=f"C{i}", markeredgecolor="white", zorder=4)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="People at IoU 0.5")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, format="png")
