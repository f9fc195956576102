"""Tracklets of unlabelled video: what a tracker knows about identities before anything is clustered.

Boxes of one tracklet are one person (must-link), and two boxes in one frame are two people (cannot-link). This makes
better clusters (`constrain` in `reid/constraints.py`) and measures embeddings and clusters without a label
(`separation`, `agreement` in `reid/separation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tracklets:
    """To which of T tracklets each of N boxes belongs, when it was seen and by which camera.

    The rows stay as they are given, beside features and labels of the same boxes. Tracklets count from 0 in the order
    of their first rows, so that nothing hangs on their numbers.

    Attributes:
        tracks: (N,) int64 number of the tracklet, of one camera only.
        times: (N,) float64 seconds, or frame numbers. Boxes of one frame have exactly the same.
        camids: (N,) int64.

    Raises:
        ValueError: a wrong shape, a track or camera that is not a whole number, a time that is not finite, a tracklet
            of two cameras, or one with two boxes in a frame.
    """

    tracks: IntArray
    times: Float64Array
    camids: IntArray

    def __post_init__(self) -> None:
        shape = np.shape(self.tracks)[:1] or (0,)
        for name, kind in (("tracks", np.int64), ("times", np.float64), ("camids", np.int64)):
            given = np.asarray(getattr(self, name))
            if given.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {given.shape}")
            if kind is np.int64 and given.size and given.dtype.kind not in "iu":
                raise ValueError(f"{name}: expected whole numbers, got {given.dtype}")
            object.__setattr__(self, name, given.astype(kind))
        finite = np.isfinite(self.times)
        if not finite.all():
            raise ValueError(f"times: expected finite numbers, got {self.times[~finite][0]} in row {finite.argmin()}")
        strays = np.flatnonzero(self.camids != self.cameras[self.index])
        if len(strays):
            raise ValueError(f"tracks: expected one camera a tracklet, got two in {self.tracks[strays[0]]}")
        order = np.lexsort((self.frames, self.index))
        twice = np.flatnonzero((np.diff(self.index[order]) == 0) & (np.diff(self.frames[order]) == 0))
        if len(twice):
            row = order[twice[0]]
            raise ValueError(f"tracks: expected one box a frame, got two in {self.tracks[row]} at {self.times[row]:g}")

    def __len__(self) -> int:
        """How many boxes there are, N."""
        return len(self.tracks)

    @cached_property
    def firsts(self) -> IntArray:
        """(T,) first row of each tracklet, ascending."""
        return np.sort(np.unique(self.tracks, return_index=True)[1])

    @cached_property
    def index(self) -> IntArray:
        """(N,) the tracklet of each box, 0 to T - 1."""
        _, rows, inverse = np.unique(self.tracks, return_index=True, return_inverse=True)
        return np.searchsorted(self.firsts, rows)[inverse]

    @cached_property
    def sizes(self) -> IntArray:
        """(T,) how many boxes each tracklet has."""
        return np.bincount(self.index)

    @property
    def cameras(self) -> IntArray:
        """(T,) the camera of each tracklet."""
        return self.camids[self.firsts]

    @cached_property
    def spans(self) -> Float64Array:
        """(T, 2) times of the first and the last box of each tracklet."""
        spans = np.tile([np.inf, -np.inf], (len(self.firsts), 1))
        np.minimum.at(spans[:, 0], self.index, self.times)
        np.maximum.at(spans[:, 1], self.index, self.times)
        return spans

    @cached_property
    def frames(self) -> IntArray:
        """(N,) the frame of each box, a number for each time of each camera, rising with both."""
        return _moments(self.camids, self.times)

    @cached_property
    def progress(self) -> Float64Array:
        """(N,) share of its tracklet's time at which each box is, 0 to 1; 0 for the only box of one."""
        begin, end = self.spans[self.index].T
        return np.asarray((self.times - begin) / np.where(end > begin, end - begin, 1))

    def __getitem__(self, rows: IntArray | NDArray[np.bool_]) -> Tracklets:
        """The boxes of some rows, or of a mask."""
        return Tracklets(self.tracks[rows], self.times[rows], self.camids[rows])

    def boxes_together(self) -> IntArray:
        """(P, 2) rows of each two boxes of one frame."""
        order = np.argsort(self.frames, kind="stable")
        frames = self.frames[order]
        return order[_pairs_up_to(np.searchsorted(frames, frames, side="right"))]

    def cannot_link(self, overlapping: bool = True) -> IntArray:
        """(P, 2) each two tracklets that must be two people, the lower one first, ascending.

        Args:
            overlapping: True: tracklets of one camera whose times overlap. The tracker had both at once, even where no
                frame shows both, as when only some boxes were kept. False: only those seen together in a frame.
        """
        if overlapping:
            moments = _moments(self.cameras[:, None], self.spans)
            order = np.argsort(moments[:, 0], kind="stable")
            begins, ends = moments[order].T
            pairs = order[_pairs_up_to(np.searchsorted(begins, ends, side="right"))]
        else:
            pairs = self.index[self.boxes_together()]
        return np.unique(np.sort(pairs, axis=1), axis=0)


def _moments(camids: IntArray, times: Float64Array) -> IntArray:
    """Whole numbers that order and tell apart (camera, time), of the shape of the times."""
    camera = np.unique(camids, return_inverse=True)[1].reshape(camids.shape)
    values, moment = np.unique(times, return_inverse=True)
    return np.asarray(camera * len(values) + moment.reshape(times.shape), np.int64)


def _pairs_up_to(ends: IntArray) -> IntArray:
    """(P, 2) pairs (i, j) of places with i < j < ends[i]."""
    places = np.arange(len(ends))
    counts = ends - places - 1
    first = np.repeat(places, counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack((first, first + 1 + within), axis=1)


def sample(tracklets: Tracklets, per_track: int = 8) -> IntArray:
    """Rows of at most `per_track` boxes of each tracklet, spread evenly over its time, ascending.

    Boxes of a tracklet are near duplicates. Where there are more than some k1 / 3 of them they fill each other's lists
    of k1 neighbours, and Jaccard distance no longer sees who else is alike. So neighbours are searched among these
    rows, and `constrain` hands what is found to all boxes.

    Args:
        tracklets: T of them.
        per_track: so many instants, from the first to the last; of each the nearest box (one: the middle).

    Raises:
        ValueError: `per_track` is below 1.
    """
    if per_track < 1:
        raise ValueError(f"per_track: expected at least 1, got {per_track}")
    order = np.lexsort((tracklets.times, tracklets.index))
    # All tracklets on one line, each 0 to 1 long and 2 from the next: what is nearest is always one's own.
    places = (3 * tracklets.index + tracklets.progress)[order]
    instants = np.linspace(0, 1, per_track) if per_track > 1 else np.array([0.5])
    wanted = (3 * np.arange(len(tracklets.sizes))[:, None] + instants).reshape(-1)
    after = np.searchsorted(places, wanted).clip(max=len(places) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(wanted - places[before] <= places[after] - wanted, before, after)
    return np.unique(order[nearest])


def hold_out(tracklets: Tracklets, share: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
    """(N,) True for the boxes of whole tracklets that are kept for measuring, from every camera.

    In each camera frames are drawn at random, those with two people or more first, and everybody in them is taken
    until there are enough: so there are people seen together among them.

    Args:
        tracklets: T of them.
        share: of each camera's tracklets, in (0, 1); but at least two where there are four, one where there are two.
        seed: of the drawing.

    Raises:
        ValueError: `share` is outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number in (0, 1), got {share}")
    rng = np.random.default_rng(seed)
    people = np.bincount(tracklets.frames)
    turn = rng.random(len(people))
    order = np.lexsort((rng.random(len(tracklets)), turn[tracklets.frames], people[tracklets.frames] < 2))
    place = np.unique(tracklets.index[order], return_index=True)[1]  # (T,) when a tracklet is first drawn
    held = np.zeros(len(place), bool)
    for camera in np.unique(tracklets.cameras):
        own = np.flatnonzero(tracklets.cameras == camera)
        count = max(round(share * len(own)), min(2, len(own) // 2))
        held[own[np.argsort(place[own])[:count]]] = True
    return held[tracklets.index]


def check_labels(labels: IntArray, count: int) -> IntArray:
    """The labels as int64, or a ValueError where they are not (count,) whole numbers from -1 on."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"labels: expected shape {(count,)}, got {labels.shape}")
    if count and (labels.dtype.kind not in "iu" or labels.min() < -1):
        raise ValueError(f"labels: expected whole numbers from -1 on, got {labels.min()} ({labels.dtype})")
    return labels.astype(np.int64)
