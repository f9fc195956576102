"""Broken tracks joined again: which track's end and which other's beginning belong to one person.

A tracker decides with what it has seen so far, and gives a lost person up after a few seconds. With the whole video at
hand every piece is compared with all others that begin after it ends, and an assignment joins them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import xyxy_to_cxcywh
from tracker.matching import assign
from tracker.trajectories import Trajectories
from tracker.types import FloatArray, IntArray

Float64Array = NDArray[np.float64]

_MOTION_SECONDS = 0.5
"""How much of a piece's end or beginning tells its velocity."""
_RIDGE = 0.01
"""Square seconds: velocities told by a much smaller spread of time are jitter, and drawn to zero."""
_SLACK = 0.5
"""Box heights by which two boxes of a person may disagree with no time between them."""

# Seconds; far less than a frame.
_ROUNDING = 1e-6


def relink(
    trajectories: Trajectories,
    frame_rate: float,
    *,
    max_seconds: float,
    embedding_thresh: float,
    max_deviation: float,
    motion_seconds: float,
    motion_thresh: float,
) -> Trajectories:
    """Join tracks that are pieces of one person's.

    A piece may be followed by one that begins after it ends, with the class it ended with, where motion allows it. Of
    all such pairs the assignment of least total cost is joined, and joined pieces are compared anew until no pair is
    left. Pieces are never cut, so that one seen within another's gap is not joined with it.

    How well two pieces' motion fits is measured in box heights: centre and height of the first piece's end, carried
    on with constant velocity, against the second one's beginning, and that one carried back against the first one's
    end; the mean of both.

    Args:
        trajectories: what was found.
        frame_rate: frames per second.
        max_seconds: longest time between two pieces that are both described by embeddings. Their cost is the cosine
            distance of these.
        embedding_thresh: largest such distance, above 0.
        max_deviation: box heights per second by which a person may depart from a straight way.
        motion_seconds: longest time between other pieces. Their cost is the distance of their motion.
        motion_thresh: largest such distance, in box heights, above 0.

    Returns:
        The same boxes, identities counted from 1 in the order of their first appearance. Boxes that are `predicted`
        count for nothing, and those of joined pieces are left out: with both sides known there are better ones.
    """
    known = np.isin(trajectories.track_ids, trajectories.track_ids[~trajectories.predicted])
    guessed = trajectories.predicted & known
    joined = trajectories[~guessed]
    touched = [np.zeros(0, np.int64)]
    while True:
        pieces = _Pieces.of(joined, frame_rate)
        first, second = _candidates(pieces, max(max_seconds, motion_seconds))
        gap = pieces.begin[second] - pieces.end[first]
        motion = _motion_distance(pieces, first, second, gap)
        near = motion <= _SLACK + max_deviation * gap
        first, second, gap, motion = first[near], second[near], gap[near], motion[near]
        look = 1 - np.einsum("pd,pd->p", pieces.embedding[first], pieces.embedding[second])
        described = pieces.described[first] & pieces.described[second]
        # As shares of their limits, so that both kinds of cost compete in one assignment.
        cost = np.where(described, np.maximum(look, 0) / embedding_thresh, motion / motion_thresh)
        allowed = (cost <= 1) & (gap <= np.where(described, max_seconds, motion_seconds) + _ROUNDING)
        first, second = _assign_pairs(first[allowed], second[allowed], cost[allowed])
        if len(first) == 0:
            break
        touched += [pieces.track_ids[first], pieces.track_ids[second]]
        joined = _join(joined, pieces, first, second)
    guesses = trajectories[guessed & ~np.isin(trajectories.track_ids, np.concatenate(touched))]
    return _renumber(joined.overlay(guesses))


@dataclass(frozen=True)
class _Pieces:
    """T tracks, how they begin and how they end. A place is centre x, centre y and height in pixels.

    Attributes:
        track_ids: (T,) ascending.
        rows: (T,) number of boxes.
        begin: (T,) seconds of the first box.
        end: (T,) seconds of the last box.
        first_class: (T,) of the first box.
        last_class: (T,) of the last box.
        first: (T, 3) place of the first box, without its jitter.
        last: (T, 3) place of the last box, without its jitter.
        first_velocity: (T, 3) per second.
        last_velocity: (T, 3) per second.
        embedding: (T, D) unit rows, zeros where not described.
        described: (T,) whether there is one.
    """

    track_ids: IntArray
    rows: IntArray
    begin: Float64Array
    end: Float64Array
    first_class: IntArray
    last_class: IntArray
    first: Float64Array
    last: Float64Array
    first_velocity: Float64Array
    last_velocity: Float64Array
    embedding: FloatArray
    described: NDArray[np.bool_]

    @classmethod
    def of(cls, trajectories: Trajectories, frame_rate: float) -> _Pieces:
        """Summarise each identity."""
        starts = trajectories.starts.nonzero()[0]
        rows = np.diff(starts, append=len(trajectories))
        ends = starts + rows - 1
        track = np.repeat(np.arange(len(starts)), rows)
        seconds = trajectories.frames / frame_rate
        begin, end = seconds[starts], seconds[ends]
        place = xyxy_to_cxcywh(trajectories.xyxy)[:, [0, 1, 3]]
        first, first_velocity = _fit_lines(seconds - begin[track], place, track)
        last, last_velocity = _fit_lines(seconds - end[track], place, track)
        track_ids = trajectories.track_ids[starts]
        embedding = trajectories.embedding_rows()
        return cls(
            track_ids=track_ids,
            rows=rows,
            begin=begin,
            end=end,
            first_class=trajectories.classes[starts],
            last_class=trajectories.classes[ends],
            first=first,
            last=last,
            first_velocity=first_velocity,
            last_velocity=last_velocity,
            embedding=embedding,
            described=np.any(embedding, axis=1),
        )


def _fit_lines(seconds: Float64Array, place: Float64Array, track: IntArray) -> tuple[Float64Array, Float64Array]:
    """Straight lines through the boxes of each track near time 0: places (T, 3) at 0, and velocities (T, 3)."""
    near = np.abs(seconds) <= _MOTION_SECONDS
    seconds, place, track = seconds[near], place[near], track[near]
    rows = np.bincount(track)
    middle = np.bincount(track, seconds) / rows
    offset = seconds - middle[track]
    spread = np.bincount(track, offset**2) + _RIDGE
    centre = np.stack([np.bincount(track, column) / rows for column in place.T], axis=1)
    velocity = np.stack([np.bincount(track, offset * column) / spread for column in place.T], axis=1)
    return centre - middle[:, None] * velocity, velocity


def _candidates(pieces: _Pieces, max_seconds: float) -> tuple[IntArray, IntArray]:
    """Pairs (P,), (P,) of the same class in which the second begins after the first ends, but not too late."""
    order = pieces.begin.argsort(kind="stable")
    low = np.searchsorted(pieces.begin[order], pieces.end, side="right")
    high = np.searchsorted(pieces.begin[order], pieces.end + max_seconds + _ROUNDING, side="right")
    count = np.maximum(high - low, 0)
    first = np.repeat(np.arange(len(count)), count)
    second = order[np.arange(len(first)) - np.repeat(count.cumsum() - count - low, count)]
    same = pieces.last_class[first] == pieces.first_class[second]
    return first[same], second[same]


def _motion_distance(pieces: _Pieces, first: IntArray, second: IntArray, gap: Float64Array) -> Float64Array:
    """How far (P,) the motions of pairs miss each other, in the mean height of the boxes; see `relink`."""
    end, begin = pieces.last[first], pieces.first[second]
    ahead = np.linalg.norm(end + gap[:, None] * pieces.last_velocity[first] - begin, axis=1)
    back = np.linalg.norm(begin - gap[:, None] * pieces.first_velocity[second] - end, axis=1)
    return np.asarray((ahead + back) / np.maximum(end[:, 2] + begin[:, 2], 1))


def _assign_pairs(first: IntArray, second: IntArray, cost: Float64Array) -> tuple[IntArray, IntArray]:
    """The pairs of least total cost that use a piece at most once on either side; one left out costs 1."""
    chosen = [np.zeros((0, 2), np.int64)]
    group = _groups(first, second)
    order = group.argsort(kind="stable")
    for members in np.split(order, np.diff(group[order]).nonzero()[0] + 1 if len(order) else []):
        rows, row = np.unique(first[members], return_inverse=True)
        columns, column = np.unique(second[members], return_inverse=True)
        matrix = np.full((len(rows), len(columns)), np.inf)
        matrix[row, column] = cost[members]
        pairs, _, _ = assign(matrix, 1.0)
        chosen.append(np.stack([rows[pairs[:, 0]], columns[pairs[:, 1]]], axis=1))
    return tuple(np.concatenate(chosen).T)


def _groups(first: IntArray, second: IntArray) -> IntArray:
    """A number (P,) for each pair, shared by those that compete: an assignment splits into one for each group."""
    if len(first) == 0:
        return first
    ends, begins = 2 * first, 2 * second + 1  # a piece's end and its beginning do not compete
    label = np.arange(int(max(ends.max(), begins.max())) + 1)
    while True:
        before = label
        label = label.copy()
        least = np.minimum(label[ends], label[begins])
        np.minimum.at(label, ends, least)
        np.minimum.at(label, begins, least)
        label = label[label]
        if np.array_equal(label, before):
            return np.asarray(label[ends])


def _join(trajectories: Trajectories, pieces: _Pieces, first: IntArray, second: IntArray) -> Trajectories:
    """Give the second piece of each pair the identity of the first, along chains."""
    leader = np.arange(len(pieces.track_ids))
    order = pieces.begin[second].argsort(kind="stable")  # so that a chain's leader is known when its next piece comes
    for one, next_one in zip(first[order].tolist(), second[order].tolist(), strict=True):
        leader[next_one] = leader[one]
    return trajectories.renamed(pieces.track_ids[leader])


def _renumber(trajectories: Trajectories) -> Trajectories:
    """Identities from 1 in the order of their first frames; those of one frame keep their order."""
    starts = trajectories.starts.nonzero()[0]
    numbers = np.empty(len(starts), np.int64)
    numbers[trajectories.frames[starts].argsort(kind="stable")] = np.arange(1, len(starts) + 1)
    return trajectories.renamed(numbers)
