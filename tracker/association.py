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
from tracker.matching import (
    GATING_THRESH,
    assign_pairs,
    direction_similarity,
    embedding_distance,
    embedding_distance_of_pairs,
    fuse_motion,
    stand_out,
)
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
        lately: (M,) tracks seen so lately that position alone may find them although there are embeddings; frames
            that were dropped count.
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
    appearance = "none" if embeddings is None else config.appearance
    # Everything below works on lists of pairs: of all pairs of a crowd, hardly any are near each other.
    overlapping = _overlaps(boxes_of(tracks.mean, config), detections.xyxy, config)
    row, column, overlap = _of_one_class(tracks, detections, *overlapping, config)

    def left(track_mask: NDArray[np.bool_], detection_mask: NDArray[np.bool_]) -> IntArray:
        """The overlapping pairs of a stage whose track and detection are both still free."""
        wanted = (track_mask & (detection_of < 0))[row] & (detection_mask & free)[column]
        return np.asarray(wanted.nonzero()[0])

    def match(rows: IntArray, columns: IntArray, cost: NDArray[Any], limit: float) -> None:
        rows, columns = assign_pairs(rows, columns, cost, limit)
        detection_of[rows] = columns
        free[columns] = False

    if embeddings is not None and appearance == "gated":
        confirmed = (tracked | lost).nonzero()[0]
        pairs = _alike_within_gate(tracks, confirmed, embeddings, measured, high.nonzero()[0], config)
        match(*_of_one_class(tracks, detections, *pairs, config), config.embedding_thresh)

    by_position = (tracked | lost) & lately if appearance == "gated" else tracked | lost
    stage = left(by_position, high)
    cost, limit = 1 - _fused(overlap[stage], scores[column[stage]], config), config.iou_thresh
    if embeddings is not None and appearance == "minimum":
        near = 1 - overlap[stage] <= config.proximity_thresh
        alike = _look_distance(tracks.embedding, embeddings, row[stage], column[stage], config)
        cost = np.where(near & (alike <= config.embedding_thresh), np.minimum(cost, alike), cost)
    if config.direction_weight:
        # The direction chooses among the pairs within the limit; it neither forbids one nor lets one in.
        within = (cost <= limit).nonzero()[0]
        stage, cost = stage[within], cost[within]
        similarity = direction_similarity(tracks.path[row[stage]], boxes.centre(detections.xyxy[column[stage]]))
        cost = cost - config.direction_weight * similarity * scores[column[stage]]
        limit += config.direction_weight / 2
    match(row[stage], column[stage], cost, limit)

    if config.low_score_thresh is not None and not high.all():
        stage = left(by_position, (scores >= config.low_score_thresh) & ~high)
        match(row[stage], column[stage], 1 - overlap[stage], config.low_score_iou_thresh)

    if config.recover_by_last_box:
        rows, columns = (by_position & (detection_of < 0)).nonzero()[0], (high & free).nonzero()[0]
        r, c, again = _overlaps(tracks.box[rows], detections.xyxy[columns], config)
        pairs = _of_one_class(tracks, detections, rows[r], columns[c], 1 - again, config)
        match(*pairs, config.iou_thresh)

    stage = left(tracks.state == TENTATIVE, high)
    cost = 1 - _fused(overlap[stage], scores[column[stage]], config)
    match(row[stage], column[stage], cost, config.tentative_iou_thresh)
    return detection_of


def boxes_of(mean: Float64Array, config: TrackerConfig) -> Float64Array:
    """(M, 4) xyxy of Kalman states (M, 8)."""
    to_xyxy = boxes.xyah_to_xyxy if config.box_state == "xyah" else boxes.cxcywh_to_xyxy
    return np.asarray(to_xyxy(mean[:, :4]))


def measured_of(xyxy: FloatArray, config: TrackerConfig) -> Float64Array:
    """(N, 4) boxes in the format of the Kalman state; each must have an area."""
    from_xyxy = boxes.xyxy_to_xyah if config.box_state == "xyah" else boxes.xyxy_to_cxcywh
    return np.asarray(from_xyxy(xyxy.astype(np.float64)))


def _of_one_class(
    tracks: Tracks, detections: Detections, row: IntArray, column: IntArray, value: NDArray[Any], config: TrackerConfig
) -> tuple[IntArray, IntArray, NDArray[Any]]:
    """The pairs whose track and detection are of one class, or all where classes do not hinder."""
    if config.classes != "separate":
        return row, column, value
    assert detections.classes is not None  # the constructor fills them in
    same = tracks.classes[row] == detections.classes[column]
    return (row, column, value) if same.all() else (row[same], column[same], value[same])


def _overlaps(a: NDArray[Any], b: NDArray[Any], config: TrackerConfig) -> tuple[IntArray, IntArray, NDArray[Any]]:
    """Overlapping pairs of predicted boxes and detections, grown where the configuration says so."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if config.iou_buffer or config.small_box:
        a, b = (boxes.expand(each, config.iou_buffer, config.small_box) for each in (a, b))
    return boxes.overlaps(a, b)


def _fused(overlap: NDArray[Any], scores: FloatArray, config: TrackerConfig) -> NDArray[Any]:
    return overlap * scores if config.fuse_score else overlap


def _alike_within_gate(
    tracks: Tracks,
    rows: IntArray,
    embeddings: FloatArray,
    measured: Float64Array,
    columns: IntArray,
    config: TrackerConfig,
) -> tuple[IntArray, IntArray, NDArray[Any]]:
    """Pairs of some tracks and detections that the motion allows, and their cost by embedding fused with motion."""
    gating = kalman.gating_distance(
        tracks.mean[rows], tracks.covariance[rows], measured[columns], config.box_state, GATING_THRESH
    )
    near = np.flatnonzero(gating <= GATING_THRESH)
    r, c = np.divmod(near, max(len(columns), 1))
    distance = _look_distance(tracks.embedding[rows], embeddings[columns], r, c, config)
    return rows[r], columns[c], fuse_motion(distance, gating.ravel()[near])


def pair_distance(
    known: FloatArray, embeddings: FloatArray, row: IntArray, column: IntArray, config: TrackerConfig
) -> NDArray[Any]:
    """Distance (P,) of the embeddings of pairs as `embedding_thresh` limits it: half of it for "minimum" (BoT-SORT)."""
    distance = embedding_distance_of_pairs(known, embeddings, row, column, config.embedding_metric)
    return distance / 2 if config.appearance == "minimum" else distance


def _look_distance(
    known: FloatArray, embeddings: FloatArray, row: IntArray, column: IntArray, config: TrackerConfig
) -> NDArray[Any]:
    """`pair_distance`, less for pairs that stand out, and infinite where a track has no embedding."""
    if config.stand_out_margin:
        distance = stand_out(embedding_distance(known, embeddings), config.stand_out_margin)[row, column]
        distance = distance / 2 if config.appearance == "minimum" else distance
    else:
        distance = pair_distance(known, embeddings, row, column, config)
    described: NDArray[np.bool_] = np.any(known, axis=1)
    return np.where(described[row], distance, np.inf)
