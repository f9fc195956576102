"""Which detection continues which track: stages, each among what the stages before it left over.

Sources: Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020 (embeddings within the gate, then overlap,
then the tentative); Zhang et al., "ByteTrack", ECCV 2022 (low scores); Aharon et al., "BoT-SORT", 2022 (the smaller of
two costs); Cao et al., "Observation-Centric SORT", CVPR 2023 (direction, last box); Yang et al., WACV 2023 (buffers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker import boxes, kalman
from tracker.config import TrackerConfig
from tracker.matching import GATING_THRESH, assign, direction_similarity, embedding_distance, fuse_motion, stand_out
from tracker.tracks import LOST, TENTATIVE, TRACKED, Tracks
from tracker.types import Detections, FloatArray, IntArray

Float64Array = NDArray[np.float64]


def associate(
    tracks: Tracks,
    detections: Detections,
    measured: Float64Array,
    lately: NDArray[np.bool_],
    config: TrackerConfig,
) -> IntArray:
    """Match predicted tracks with the detections of a frame.

    Args:
        tracks: M tracks, predicted to this frame.
        detections: N detections with an area.
        measured: (N, 4) their boxes in the format of the Kalman state.
        lately: (M,) tracks seen so lately that position alone may find them although there are embeddings.
        config: which stages, and their limits.

    Returns:
        (M,) row of the detection of each track, -1 where it has none.
    """
    detection_of = np.full(len(tracks), -1, np.int64)
    if len(tracks) == 0 or len(detections) == 0:
        return detection_of
    free = np.ones(len(detections), bool)
    scores, embeddings = detections.scores, detections.embeddings
    high = scores >= config.score_thresh
    tracked, lost = tracks.state == TRACKED, tracks.state == LOST
    apart = _other_class(tracks, detections) if config.classes == "separate" else None
    appearance = "none" if embeddings is None else config.appearance
    overlap = _overlap(boxes_of(tracks.mean, config), detections.xyxy, config)

    def left(track_mask: NDArray[np.bool_], detection_mask: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
        """Rows of the tracks and detections of a stage that are still free; both empty where either is."""
        rows = (track_mask & (detection_of < 0)).nonzero()[0]
        columns = (detection_mask & free).nonzero()[0] if len(rows) else rows
        return (rows, columns) if len(columns) else (columns, columns)

    def match(cost: NDArray[Any], rows: IntArray, columns: IntArray, limit: float) -> None:
        if apart is not None:
            cost = np.where(apart[rows[:, None], columns], np.inf, cost)
        pairs, _, _ = assign(cost, limit)
        taken = columns[pairs[:, 1]]
        detection_of[rows[pairs[:, 0]]] = taken
        free[taken] = False

    if embeddings is not None and appearance == "gated":
        rows, columns = left(tracked | lost, high)
        if len(rows):
            cost = _appearance_cost(tracks, rows, embeddings[columns], measured[columns], config)
            match(cost, rows, columns, config.embedding_thresh)

    by_position = tracked | (lost & lately if appearance == "gated" else lost)
    rows, columns = left(by_position, high)
    if len(rows):
        cost = 1 - _fused(overlap[rows[:, None], columns], scores[columns], config)
        limit = config.iou_thresh
        if embeddings is not None and appearance == "minimum":
            near = 1 - overlap[rows[:, None], columns] <= config.proximity_thresh
            cost = _smaller_cost(cost, near, tracks.embedding[rows], embeddings[columns], config)
        if config.direction_weight:
            # The direction chooses among the pairs within the limit; it neither forbids one nor lets one in.
            within = np.flatnonzero(cost <= limit)
            row, column = np.divmod(within, len(columns))
            similarity = direction_similarity(tracks.path[rows[row]], _centres(detections.xyxy[columns[column]]))
            costs = cost.ravel()[within] - config.direction_weight * similarity * scores[columns[column]]
            cost = np.full_like(cost, np.inf)
            cost.ravel()[within] = costs
            limit += config.direction_weight / 2
        match(cost, rows, columns, limit)

    if config.low_score_thresh is not None and not high.all():
        rows, columns = left(by_position, (scores >= config.low_score_thresh) & ~high)
        if len(rows):
            match(1 - overlap[rows[:, None], columns], rows, columns, config.low_score_iou_thresh)

    if config.recover_by_last_box:
        rows, columns = left(by_position, high)
        if len(rows):
            cost = 1 - _overlap(tracks.box[rows], detections.xyxy[columns], config)
            match(cost, rows, columns, config.iou_thresh)

    rows, columns = left(tracks.state == TENTATIVE, high)
    if len(rows):
        cost = 1 - _fused(overlap[rows[:, None], columns], scores[columns], config)
        match(cost, rows, columns, config.tentative_iou_thresh)
    return detection_of


def boxes_of(mean: Float64Array, config: TrackerConfig) -> Float64Array:
    """(M, 4) xyxy of Kalman states (M, 8)."""
    to_xyxy = boxes.xyah_to_xyxy if config.box_state == "xyah" else boxes.cxcywh_to_xyxy
    return np.asarray(to_xyxy(mean[:, :4]))


def measured_of(xyxy: FloatArray, config: TrackerConfig) -> Float64Array:
    """(N, 4) boxes in the format of the Kalman state; each must have an area."""
    from_xyxy = boxes.xyxy_to_xyah if config.box_state == "xyah" else boxes.xyxy_to_cxcywh
    return np.asarray(from_xyxy(xyxy.astype(np.float64)))


def _other_class(tracks: Tracks, detections: Detections) -> NDArray[np.bool_] | None:
    """(M, N) pairs that must not be matched; None where there is only one class."""
    assert detections.classes is not None  # the constructor fills them in
    one = tracks.classes[0]
    if (tracks.classes == one).all() and (detections.classes == one).all():
        return None
    return np.asarray(tracks.classes[:, None] != detections.classes)


def _overlap(a: NDArray[Any], b: NDArray[Any], config: TrackerConfig) -> NDArray[Any]:
    """IoU (M, N) of predicted boxes and detections, grown where the configuration says so."""
    if config.iou_buffer or config.small_box:
        a, b = (boxes.expand(each, config.iou_buffer, config.small_box) for each in (a, b))
    return boxes.iou(a.astype(np.float64), b.astype(np.float64))


def look_distance(a: FloatArray, b: FloatArray, config: TrackerConfig) -> NDArray[Any]:
    """Distance (M, N) of embeddings as `embedding_thresh` limits it; half of it for "minimum", as in BoT-SORT."""
    distance = embedding_distance(a, b, config.embedding_metric)
    if config.stand_out_margin:
        distance = stand_out(distance, config.stand_out_margin)
    return distance / 2 if config.appearance == "minimum" else distance


def _fused(overlap: NDArray[Any], scores: FloatArray, config: TrackerConfig) -> NDArray[Any]:
    return overlap * scores if config.fuse_score else overlap


def _appearance_cost(
    tracks: Tracks, rows: IntArray, embeddings: FloatArray, measured: Float64Array, config: TrackerConfig
) -> NDArray[Any]:
    """Cost (len(rows), N) by embedding, within what the motion allows."""
    known = tracks.embedding[rows]
    cost = look_distance(known, embeddings, config)
    gating = kalman.gating_distance(
        tracks.mean[rows], tracks.covariance[rows], measured, config.box_state, GATING_THRESH
    )
    cost = fuse_motion(cost, gating)
    cost[~known.any(axis=1)] = np.inf  # tracks that have only been seen without an embedding
    return cost


def _smaller_cost(
    cost: NDArray[Any], near: NDArray[np.bool_], known: FloatArray, embeddings: FloatArray, config: TrackerConfig
) -> NDArray[Any]:
    """The smaller of both costs, where the embedding counts for boxes that are near and look alike alone (BoT-SORT)."""
    distance = look_distance(known, embeddings, config)
    counts = near & (distance <= config.embedding_thresh) & np.any(known, axis=1)[:, None]
    return np.asarray(np.where(counts, np.minimum(cost, distance), cost))


def _centres(xyxy: FloatArray) -> FloatArray:
    return np.asarray((xyxy[:, :2] + xyxy[:, 2:]) / 2)
