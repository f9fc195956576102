"""The association loop: detections of one frame in, identities out.

A track is followed by a Kalman filter and described by a smoothed embedding. Every frame it is matched first by what
people look like, then by where they are.

Sources: Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020 (the stages); Zhang et al., "ByteTrack:
Multi-Object Tracking by Associating Every Detection Box", ECCV 2022 (the stage for low scores).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker import boxes, kalman
from tracker.config import DEFAULT_FRAME_RATE, TrackerConfig
from tracker.matching import assign, embedding_distance, fuse_motion
from tracker.tracks import LOST, NO_ID, TENTATIVE, TRACKED, Tracks
from tracker.types import Detections, FrameResult

__all__ = ["Tracker", "TrackerConfig"]


_TINY = float(np.finfo(np.float32).tiny)


class Tracker:
    """Gives the people of a video their identities, frame by frame.

    Trackers share nothing with each other: each counts its ids from 1.

    Args:
        config: settings; None means the defaults.
        frame_rate: frames per second of the video, which turns the config's seconds into frames. None, zero,
            negative and non-finite values, which broken headers and streams report, count as 30.
    """

    def __init__(self, config: TrackerConfig | None = None, frame_rate: float | None = DEFAULT_FRAME_RATE) -> None:
        self.config = TrackerConfig() if config is None else config
        known = frame_rate is not None and math.isfinite(frame_rate) and frame_rate > 0
        self.frame_rate = float(frame_rate) if frame_rate is not None and known else DEFAULT_FRAME_RATE
        self._buffer_frames = max(1, round(self.config.track_buffer * self.frame_rate))
        self._rematch_frames = round(self.config.iou_rematch_seconds * self.frame_rate)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is frame 1, and the next identity is 1."""
        self._frame = 0
        self._next_id = 1
        self._any_track_yet = False
        self._tracks = Tracks.start(Detections.empty(), np.zeros(0, np.int64), 0, 0)

    def update(self, detections: Detections) -> FrameResult:
        """Take the detections of the next frame; call it once for every frame, empty ones too.

        Boxes without width or height are passed over. A detection only continues a track of its own class.

        Args:
            detections: what was found; embeddings may be absent, then motion alone decides.

        Returns:
            The confirmed tracks matched in this frame, sorted by id.

        Raises:
            ValueError: embeddings of another dimension than in the frames before.
        """
        self._frame += 1
        self._adopt_dimension(detections)
        detections = _with_area(detections)
        xyah = boxes.xyxy_to_xyah(detections.xyxy.astype(np.float64))
        self._predict()
        detection_of = self._associate(detections, xyah)
        self._correct(detections, xyah, detection_of)
        self._change_states(detection_of)
        self._merge_duplicates()
        self._start_tracks(detections, detection_of)
        self._number()
        return self._result()

    def _adopt_dimension(self, detections: Detections) -> None:
        """Make the tracks' embeddings as wide as the first detections' that have any."""
        if detections.embeddings is None or len(detections) == 0:
            return
        known, given = self._tracks.embedding.shape[1], detections.embeddings.shape[1]
        if known == given:
            return
        if known:
            raise ValueError(f"embeddings: expected dimension {known} as in earlier frames, got {given}")
        self._tracks.embedding = np.zeros((len(self._tracks), given), np.float32)

    def _predict(self) -> None:
        tracks = self._tracks
        # A growth seen once or not seen lately is no evidence, and a wrong one spoils the box for long.
        tracks.mean[tracks.state != TRACKED, 7] = 0
        tracks.mean, tracks.covariance = kalman.predict(tracks.mean, tracks.covariance)

    def _associate(self, detections: Detections, xyah: NDArray[np.float64]) -> NDArray[np.int64]:
        """Match in stages, each among what the stages before it left over.

        Returns:
            (M,) row of the detection of each track, -1 where it has none.
        """
        config, tracks = self.config, self._tracks
        detection_of = np.full(len(tracks), -1, np.int64)
        if len(tracks) == 0 or len(detections) == 0:
            return detection_of
        free = np.ones(len(detections), bool)
        high = detections.scores >= config.score_thresh
        iou_cost = 1 - boxes.iou(boxes.xyah_to_xyxy(tracks.mean[:, :4]), detections.xyxy.astype(np.float64))
        other_class = tracks.classes[:, None] != _classes(detections)
        iou_cost[other_class] = np.inf

        def match(cost: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], limit: float) -> None:
            pairs, _, _ = assign(cost, limit)
            taken = columns[pairs[:, 1]]
            detection_of[rows[pairs[:, 0]]] = taken
            free[taken] = False

        def match_by_iou(track_mask: NDArray[Any], detection_mask: NDArray[Any], limit: float) -> None:
            rows = (track_mask & (detection_of < 0)).nonzero()[0]
            columns = (detection_mask & free).nonzero()[0] if len(rows) else rows
            if len(columns):
                match(iou_cost[rows[:, None], columns], rows, columns, limit)

        tracked = tracks.state == TRACKED
        lost = tracks.state == LOST
        by_position = lost
        if detections.embeddings is not None:
            rows, columns = (tracked | lost).nonzero()[0], high.nonzero()[0]
            if len(rows) and len(columns):
                cost = self._embedding_cost(detections.embeddings[columns], xyah[columns], rows)
                cost[other_class[rows[:, None], columns]] = np.inf
                match(cost, rows, columns, config.embedding_thresh)
            by_position = lost & (self._frame - tracks.last_frame <= self._rematch_frames)
        match_by_iou(tracked | by_position, high, config.iou_thresh)
        if config.low_score_thresh is not None and not high.all():
            low = (detections.scores >= config.low_score_thresh) & ~high
            match_by_iou(tracked | by_position, low, config.low_score_iou_thresh)
        match_by_iou(tracks.state == TENTATIVE, high, config.tentative_iou_thresh)
        return detection_of

    def _embedding_cost(
        self, embeddings: NDArray[np.float32], xyah: NDArray[np.float64], rows: NDArray[Any]
    ) -> NDArray[Any]:
        """Cost (len(rows), N) by appearance, within what the motion allows, of some tracks and N detections."""
        tracks = self._tracks
        known = tracks.embedding[rows]
        cost = embedding_distance(known, embeddings, self.config.embedding_metric)
        cost = fuse_motion(cost, kalman.gating_distance(tracks.mean[rows], tracks.covariance[rows], xyah))
        cost[~known.any(axis=1)] = np.inf  # tracks that have only been seen without an embedding
        return cost

    def _correct(self, detections: Detections, xyah: NDArray[np.float64], detection_of: NDArray[np.int64]) -> None:
        """Bring the matched tracks up to date with their detections."""
        tracks, config = self._tracks, self.config
        rows = (detection_of >= 0).nonzero()[0]
        if len(rows) == 0:
            return
        matched = detection_of[rows]
        xyxy, score = detections.xyxy[matched], detections.scores[matched]
        tracks.mean[rows], tracks.covariance[rows] = kalman.update(
            tracks.mean[rows], tracks.covariance[rows], xyah[matched]
        )
        tracks.box[rows], tracks.score[rows] = xyxy, score
        tracks.best_score[rows] = np.maximum(tracks.best_score[rows], score)
        tracks.last_frame[rows] = self._frame
        tracks.hits[rows] += 1
        if detections.embeddings is not None:
            clear = score >= config.score_thresh  # a low score often means a body half covered by another
            rows, matched = rows[clear], matched[clear]
            keep = config.embedding_momentum
            mixed = keep * tracks.embedding[rows] + (1 - keep) * detections.embeddings[matched]
            length = np.sqrt(np.einsum("nd,nd->n", mixed, mixed))[:, None]
            tracks.embedding[rows] = mixed / np.maximum(length, _TINY)

    def _change_states(self, detection_of: NDArray[np.int64]) -> None:
        """Confirm, lose and remove; a removed track leaves the arrays at once and cannot come back."""
        tracks = self._tracks
        matched = detection_of >= 0
        tentative = tracks.state == TENTATIVE
        believed = (tracks.hits >= self.config.confirm_frames) & self._is_alive(tracks)
        tracks.state[matched & (~tentative | believed)] = TRACKED
        tracks.state[~matched & ~tentative] = LOST
        removed = ~matched & (tentative | (self._frame - tracks.last_frame > self._buffer_frames))
        if removed.any():
            tracks.keep(~removed)

    def _is_alive(self, tracks: Tracks) -> NDArray[np.bool_]:
        """(M,) tracks whose score is sure, or that have moved as only the living do."""
        centre = (tracks.box[:, :2] + tracks.box[:, 2:]) / 2
        way = np.hypot(*(centre - tracks.birthplace).T)
        moved: NDArray[np.bool_] = way >= self.config.min_motion * (tracks.box[:, 2] - tracks.box[:, 0])
        return moved | (tracks.best_score >= self.config.sure_thresh)

    def _merge_duplicates(self) -> None:
        """Where a tracked and a lost track lie on each other, keep the one that has lived longer.

        If that is the lost one, it takes over the other's position, so that the person stays in the result. Two tracks
        that look different are two people, one in front of the other, and both stay.
        """
        tracks, config = self._tracks, self.config
        if config.duplicate_thresh is None:
            return
        lost = (tracks.state == LOST).nonzero()[0]
        if len(lost) == 0:
            return
        tracked = (tracks.state == TRACKED).nonzero()[0]
        xyxy = boxes.xyah_to_xyxy(tracks.mean[:, :4])
        same = 1 - boxes.iou(xyxy[tracked], xyxy[lost]) < config.duplicate_thresh
        if not same.any():
            return
        same &= tracks.classes[tracked][:, None] == tracks.classes[lost]
        distance = embedding_distance(tracks.embedding[tracked], tracks.embedding[lost], config.embedding_metric)
        described: NDArray[np.bool_] = np.any(tracks.embedding, axis=1)
        same &= ~(described[tracked][:, None] & described[lost]) | (distance <= config.embedding_thresh)
        keep = np.ones(len(tracks), bool)
        life = tracks.last_frame - tracks.start_frame
        for row, column in np.argwhere(same):  # rarely more than one pair
            seen, unseen = tracked[row], lost[column]
            if not keep[seen] or not keep[unseen] or tracks.state[unseen] != LOST:
                continue
            if life[unseen] > life[seen]:
                tracks.resume(unseen, by=seen)
                keep[seen] = False
            else:
                keep[unseen] = False
        if not keep.all():
            tracks.keep(keep)

    def _start_tracks(self, detections: Detections, detection_of: NDArray[np.int64]) -> None:
        """Start a track from every unmatched detection that is sure enough."""
        config = self.config
        born = detections.scores >= max(config.birth_thresh, config.score_thresh)
        born[detection_of[detection_of >= 0]] = False
        rows = born.nonzero()[0]
        if len(rows) == 0:
            return
        newcomers = Tracks.start(detections, rows, self._frame, self._tracks.embedding.shape[1])
        if config.confirm_frames == 1 or (config.confirm_first_frame and not self._any_track_yet):
            newcomers.state[self._is_alive(newcomers)] = TRACKED
        self._tracks.append(newcomers)
        self._any_track_yet = True

    def _number(self) -> None:
        """Give the tracks confirmed in this frame the next ids."""
        tracks = self._tracks
        rows = ((tracks.state == TRACKED) & (tracks.ids == NO_ID)).nonzero()[0]
        tracks.ids[rows] = np.arange(self._next_id, self._next_id + len(rows))
        self._next_id += len(rows)

    def _result(self) -> FrameResult:
        tracks = self._tracks
        rows = (tracks.state == TRACKED).nonzero()[0]
        rows = rows[tracks.ids[rows].argsort()]
        if self.config.output == "filtered":
            xyxy = boxes.xyah_to_xyxy(tracks.mean[rows, :4]).astype(np.float32)
        else:
            xyxy = tracks.box[rows]
        return FrameResult(self._frame, tracks.ids[rows], xyxy, tracks.score[rows], tracks.classes[rows])


def _with_area(detections: Detections) -> Detections:
    """The detections whose box has both width and height; the others have no aspect ratio."""
    solid = np.all(detections.xyxy[:, 2:] > detections.xyxy[:, :2], axis=1)
    return detections if solid.all() else detections[solid]


def _classes(detections: Detections) -> NDArray[np.int64]:
    assert detections.classes is not None  # the constructor fills them in
    return detections.classes
