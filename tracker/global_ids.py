"""One identity space over cameras: which tracks, of one camera or of several, are one person's.

Tracks are clustered by their mean embeddings, under the one thing that is certain: nobody is twice in one picture, so
that two tracks of a camera that are seen in the same frame belong to two people. Nothing is known of where the cameras
stand: several may see a person at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tracker.matching import embedding_distance
from tracker.trajectories import Trajectories
from tracker.types import FloatArray, IntArray

_CAMERA_TRACKS = 10
"""With so many tracks in a camera, half of what their embeddings have in common is put down to the camera."""
_ROUNDING = 1e-5
"""By how much a product of matrices in float32 may miss symmetry."""


def join_cameras(cameras: Sequence[Trajectories], frame_rates: Sequence[float], thresh: float) -> list[Trajectories]:
    """Give the tracks of all cameras ids of one space, those of one person the same.

    The clusters are those of `link_tracklets`; tracks count alike, long or short. Two tracks of a camera that are seen
    in one frame (boxes that are `predicted` are not) are never joined, nor are two whose last classes differ, and one
    without an embedding stays by itself. A camera's light and colours show in all its embeddings, so their mean is
    taken off before they are compared: the less of it the fewer tracks there are, because then it is the people's own.

    Source of the latter: Zhuang et al., "Rethinking the Distribution Gap of Person Re-identification with Camera-based
    Batch Normalization", ECCV 2020, which normalises every camera by statistics of its own.

    Args:
        cameras: the result of each. Frames count from the same moment as far as the order of ids goes.
        frame_rates: frames per second of each, above 0.
        thresh: largest mean cosine distance of clusters that are joined.

    Returns:
        The results with ids from 1 in the order of first appearance: by time, then camera, then the id it was. Where
        joined tracks have two boxes in a frame, a predicted one gives way.

    Raises:
        ValueError: embeddings of different lengths, another number of frame rates than of cameras, or a `thresh` that
            is not finite.
    """
    lengths = sorted({len(vector) for camera in cameras for vector in camera.embeddings.values()})
    if len(lengths) > 1:
        raise ValueError(f"embeddings: expected one length in all cameras, got {lengths}")
    if not cameras:
        return []
    begin = [(camera.frames[camera.starts] - 1) / rate for camera, rate in zip(cameras, frame_rates, strict=True)]
    classes = np.concatenate([camera.classes[camera.ends] for camera in cameras])
    camera_of = np.repeat(np.arange(len(cameras)), [len(those) for those in begin])
    embeddings = np.zeros((len(camera_of), *(lengths or [0])), np.float32)
    apart = classes[:, None] != classes
    for index, camera in enumerate(cameras):
        mine = camera_of == index
        if camera.embeddings:
            embeddings[mine] = _without_camera(camera.embedding_rows())
        apart[np.ix_(mine, mine)] |= _seen_together(camera)
    described = np.linalg.norm(embeddings, axis=1) > 0
    apart |= ~(described[:, None] & described)
    labels = link_tracklets(embedding_distance(embeddings, embeddings), apart, thresh)
    order = np.lexsort((camera_of, np.concatenate(begin)))
    track_ids = np.empty_like(labels)
    track_ids[order] = _by_appearance(labels[order]) + 1
    return [camera.renamed(track_ids[camera_of == index]) for index, camera in enumerate(cameras)]


def link_tracklets(distance: NDArray[Any], forbidden: NDArray[np.bool_], thresh: float) -> IntArray:
    """Average-linkage clustering in which some pairs may never share a cluster.

    The two clusters of smallest mean distance between their members are merged, again and again, up to `thresh`. A
    forbidden pair is infinitely far apart, and with it are any clusters that hold its two ends.

    A merged cluster is never nearer to a third one than the nearer of its parts was. So two that are each other's
    nearest may be merged before others that are nearer still, with the same outcome, and following a chain of nearest
    neighbours finds them in O(T²) time and memory.

    Source: Murtagh, "A survey of recent advances in hierarchical clustering algorithms", The Computer Journal, 1983.

    Args:
        distance: (T, T), symmetric and finite. The diagonal counts for nothing, here and in `forbidden`.
        forbidden: (T, T), symmetric.
        thresh: largest mean distance of clusters that are merged.

    Returns:
        Labels (T,) from 0 in the order of first appearance. Another order of the rows gives the same clusters, unless
        distances are equal.

    Raises:
        ValueError: a wrong shape, a distance that is not finite, a matrix that is not symmetric, or a `thresh` that is
            not finite.
    """
    count = len(distance)
    for name, matrix in (("distance", distance), ("forbidden", forbidden)):
        if matrix.shape != (count, count):
            raise ValueError(f"{name}: expected shape ({count}, {count}), got {matrix.shape}")
    if not np.isfinite(distance).all():
        raise ValueError("distance: expected finite numbers")
    if not np.isfinite(thresh):
        raise ValueError(f"thresh: expected a finite number, got {thresh!r}")
    between = distance.astype(np.float64)
    between += distance.T
    between /= 2
    if np.abs(between - distance).max(initial=0) > _ROUNDING:
        raise ValueError("distance: expected a symmetric matrix")
    if not np.array_equal(forbidden, forbidden.T):
        raise ValueError("forbidden: expected a symmetric matrix")

    between[forbidden] = np.inf
    np.fill_diagonal(between, np.inf)
    size = np.ones(count)
    holder = np.arange(count)  # a cluster has the row of one of its members, and infinity in those of the others
    for start in range(count):
        chain = [start] if holder[start] == start else []
        while chain:
            tip = chain[-1]
            nearest = int(between[tip].argmin())
            if between[tip, nearest] > thresh:
                break  # nor will it ever be nearer; this is the first of the chain, distances fall along it
            if len(chain) == 1 or between[tip, nearest] < between[tip, chain[-2]]:
                chain.append(nearest)
                continue
            gone, kept = chain.pop(), chain.pop()
            merged = (size[kept] * between[kept] + size[gone] * between[gone]) / (size[kept] + size[gone])
            merged[kept] = np.inf
            between[kept] = between[:, kept] = merged
            between[gone] = between[:, gone] = np.inf
            size[kept] += size[gone]
            holder[holder == gone] = kept
            chain = chain or [kept]
    return _by_appearance(holder)


def _without_camera(embeddings: FloatArray) -> FloatArray:
    """Unit rows (T, D) of one camera without what they have in common; rows of zeros stay."""
    known = embeddings.any(axis=1, keepdims=True)
    common = embeddings.sum(axis=0) / (known.sum() + _CAMERA_TRACKS)  # shorter than 1, so that no row becomes zero
    rest = np.where(known, embeddings - common, 1)
    return np.asarray(np.where(known, rest / np.linalg.norm(rest, axis=1, keepdims=True), 0))


def _seen_together(camera: Trajectories) -> NDArray[np.bool_]:
    """Which tracks (T, T) are seen in one and the same frame."""
    track = camera.starts.cumsum() - 1
    seen = ~camera.predicted
    moments, moment = np.unique(camera.frames[seen], return_inverse=True)
    shape = int(camera.starts.sum()), len(moments)
    sightings = sparse.csr_array((np.ones(len(moment), np.int32), (track[seen], moment)), shape)
    return np.asarray((sightings @ sightings.T).toarray() > 0)


def _by_appearance(values: IntArray) -> IntArray:
    """Numbers (T,) from 0, equal where the values are, in the order in which these first appear."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first.argsort().argsort()[which])
