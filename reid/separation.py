"""How well embeddings and clusters agree with tracklets: quality without any label.

Measures hold within cameras: a tracklet is of one camera, and so are two people in one frame.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import rankdata

from reid.tracklets import Float64Array, IntArray, Tracklets, check_labels

_BLOCK_PAIRS = 8192


@dataclass(frozen=True)
class Separation:
    """How far boxes of one tracklet are from boxes of two people, by cosine distance.

    A figure is None where there are no pairs to tell it from.

    Attributes:
        same_pairs: pairs of boxes of one tracklet.
        other_pairs: pairs of boxes of one frame.
        same_distance: mean cosine distance of the first, in [0, 2].
        other_distance: mean cosine distance of the second.
        auc: probability that a pair of the first is nearer than one of the second; equal distances count half.
        tpr10: share of the first accepted where at most one in 10 of the second is.
        tpr100: share of the first accepted where at most one in 100 of the second is.
    """

    same_pairs: int
    other_pairs: int
    same_distance: float | None
    other_distance: float | None
    auc: float | None
    tpr10: float | None
    tpr100: float | None

    def figures(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)


def separation(
    features: NDArray[np.floating[Any]],
    tracklets: Tracklets,
    *,
    measured: NDArray[np.bool_] | None = None,
    min_time: float = 0.0,
    per_track: int = 32,
    seed: int = 0,
) -> Separation:
    """Measure how well embeddings tell people apart, with the tracker as the only teacher.

    Pairs that should be near: a box of the first third of a tracklet's time and one of its last third. Pairs that
    should be far: two boxes of one frame. Both are drawn at random, so many of each tracklet at most.

    Args:
        features: (N, D) embeddings of all boxes, of any length.
        tracklets: of the same boxes.
        measured: (N,) boxes of tracklets that are to be measured, as from `hold_out`: all pairs hold one of them, those
            that should be far perhaps one alone; None: all.
        min_time: tracklets shorter than this give no pair of the first kind; in the unit of their times.
        per_track: most pairs of each kind that a tracklet is in.
        seed: of the drawing.

    Raises:
        ValueError: a wrong shape, a number that is not finite, `per_track` below 1.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(tracklets):
        raise ValueError(f"features: expected shape ({len(tracklets)}, D), got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"features: row {np.isfinite(features).all(axis=1).argmin()} is not finite")
    if per_track < 1:
        raise ValueError(f"per_track: expected at least 1, got {per_track}")
    if measured is None:
        measured = np.ones(len(tracklets), bool)
    if measured.shape != (len(tracklets),):
        raise ValueError(f"measured: expected shape ({len(tracklets)},), got {measured.shape}")
    rng = np.random.default_rng(seed)
    same = _cosine_distances(features, _pairs_within(tracklets, measured, min_time, per_track, rng))
    other = _cosine_distances(features, _pairs_together(tracklets, measured, per_track, rng))
    both = len(same) > 0 and len(other) > 0
    return Separation(
        same_pairs=len(same),
        other_pairs=len(other),
        same_distance=float(same.mean()) if len(same) else None,
        other_distance=float(other.mean()) if len(other) else None,
        auc=_auc(same, other) if both else None,
        tpr10=_accepted(same, other, 10) if both else None,
        tpr100=_accepted(same, other, 100) if both else None,
    )


@dataclass(frozen=True)
class Agreement:
    """How well clusters of boxes go with tracklets.

    Attributes:
        tracklets: T.
        whole: those all of whose boxes are in one cluster.
        outliers: those none of whose boxes are in a cluster.
        cannot_links: pairs of tracklets that must be two people.
        violations: those of them that share a cluster.
        clusters: how many there are.
        tracklets_per_cluster: mean number of tracklets with a box in a cluster; None without clusters.
        across_cameras: clusters with boxes of several cameras.
    """

    tracklets: int
    whole: int
    outliers: int
    cannot_links: int
    violations: int
    clusters: int
    tracklets_per_cluster: float | None
    across_cameras: int

    def figures(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)


def agreement(labels: IntArray, tracklets: Tracklets, overlapping: bool = True) -> Agreement:
    """Compare clusters (N,), -1 outliers, with the tracklets of the same boxes.

    Args:
        labels: from 0, in any order; -1 outliers.
        tracklets: of the same boxes.
        overlapping: which tracklets must be two people, see `Tracklets.cannot_link`.

    Raises:
        ValueError: a wrong shape or a label below -1.
    """
    labels = check_labels(labels, len(tracklets))
    inside = labels >= 0
    names, cluster = np.unique(labels[inside], return_inverse=True)
    track, camera = tracklets.index[inside], tracklets.camids[inside]
    lowest, highest = np.full((2, len(tracklets.sizes)), -1)
    np.maximum.at(highest, tracklets.index, labels)
    lowest[:] = highest
    np.minimum.at(lowest, tracklets.index, labels)

    shape = (len(tracklets.sizes), len(names))
    in_cluster = sp.csr_array((np.ones(len(track), bool), (track, cluster)), shape)
    apart = tracklets.cannot_link(overlapping)
    common = (in_cluster[apart[:, 0]] * in_cluster[apart[:, 1]]).sum(axis=1)
    cameras = np.unique(np.stack((cluster, camera)), axis=1)[0]
    return Agreement(
        tracklets=len(tracklets.sizes),
        whole=int(((lowest == highest) & (lowest >= 0)).sum()),
        outliers=int((highest < 0).sum()),
        cannot_links=len(apart),
        violations=int((common > 0).sum()),
        clusters=len(names),
        tracklets_per_cluster=in_cluster.nnz / len(names) if len(names) else None,
        across_cameras=int((np.bincount(cameras) > 1).sum()),
    )


def _pairs_within(
    tracklets: Tracklets, measured: NDArray[np.bool_], min_time: float, most: int, rng: np.random.Generator
) -> IntArray:
    """(P, 2) rows of a box of the first and one of the last third of a tracklet, different pairs."""
    begin, end = tracklets.spans.T
    long = ((end > begin) & (end - begin >= min_time))[tracklets.index] & measured
    early = _rows_by_track(tracklets, long & (tracklets.progress <= 1 / 3))
    late = _rows_by_track(tracklets, long & (tracklets.progress >= 2 / 3))
    pairs = [np.empty((0, 2), np.int64)]
    for first, last in zip(early, late, strict=True):
        total = len(first) * len(last)
        drawn = rng.choice(total, min(most, total), replace=False)
        pairs.append(np.stack((first[drawn // len(last)], last[drawn % len(last)]), axis=1))
    return np.concatenate(pairs)


def _rows_by_track(tracklets: Tracklets, chosen: NDArray[np.bool_]) -> list[IntArray]:
    """The chosen rows of each tracklet that has any."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(tracklets.index[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(tracklets.index[rows])) + 1
    return np.split(rows, starts) if len(rows) else []


def _pairs_together(tracklets: Tracklets, measured: NDArray[np.bool_], most: int, rng: np.random.Generator) -> IntArray:
    """(P, 2) rows of two boxes of a frame; as many different pairs of tracklets as there are come first."""
    pairs = tracklets.boxes_together()
    pairs = rng.permutation(pairs[measured[pairs].any(axis=1)])
    tracks = np.sort(tracklets.index[pairs], axis=1)
    order = np.argsort(_times_before(tracks[:, 0] * len(tracklets.sizes) + tracks[:, 1]), kind="stable")
    before = _times_before(tracks[order].reshape(-1)).reshape(-1, 2).max(axis=1)
    return np.asarray(pairs[order[before < most]], np.int64)


def _times_before(keys: IntArray) -> IntArray:
    """(P,) how often each key has been there before."""
    order = np.argsort(keys, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return ranks


def _cosine_distances(features: NDArray[np.floating[Any]], pairs: IntArray) -> Float64Array:
    """(P,) distances of pairs of rows; a row of zeros is 1 from all."""
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), _BLOCK_PAIRS):
        first, second = (features[rows].astype(np.float64) for rows in pairs[start : start + _BLOCK_PAIRS].T)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        products = np.einsum("pd,pd->p", first, second)
        distances[start : start + _BLOCK_PAIRS] = 1 - products / np.where(lengths > 0, lengths, 1)
    return distances


def _auc(same: Float64Array, other: Float64Array) -> float:
    """Area under the ROC curve of telling the first from the second by being nearer (Mann and Whitney, 1947)."""
    ranks = rankdata(np.concatenate((same, other)))[: len(same)]
    above = ranks.sum() - len(same) * (len(same) + 1) / 2
    return float(1 - above / (len(same) * len(other)))


def _accepted(same: Float64Array, other: Float64Array, one_in: int) -> float:
    """Share of the first below the largest threshold that lets at most one in so many of the second pass."""
    return float((same < np.sort(other)[len(other) // one_in]).mean())
