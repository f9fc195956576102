"""The association loop: detections of one frame in, identities out.

A track is followed by a Kalman filter and described by a smoothed embedding. `tracker.association` says which detection
continues which track; here tracks are predicted, corrected, confirmed, lost, removed and started.

Sources: Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020; Cao et al., "Observation-Centric SORT", CVPR
2023 (repeating the time between).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker import boxes, kalman
from tracker.association import associate, boxes_of, measured_of, pair_distance
from tracker.clock import DEFAULT_FRAME_RATE, FrameClock
from tracker.config import TrackerConfig
from tracker.tracks import LOST, NO_ID, TENTATIVE, TRACKED, Tracks
from tracker.types import LARGEST_COORDINATE, Detections, FrameResult, IntArray

__all__ = ["Tracker", "TrackerConfig"]


# The area of a picture does not shrink to less than this by a camera's motion, nor grow to the inverse.
_TINY_AREA = 1e-6
_TINY = float(np.finfo(np.float32).tiny)
# Times in frame periods are sums of rounded steps.
_ROUNDING = 1e-6
# Under a moving camera, motion since this long ago counts for `min_motion`.
_FORGET_SECONDS = 2.0
# A direction is taken over at most so many matched frames, whatever the frame rate.
_LONGEST_PATH = 60
# So much more than a whole number of frame periods is no further step.
_SLIP = 0.1
# A gap is repeated in at most so many steps.
_MOST_REPEATED = 100
# A prediction shrinks a box at most to this share.
_LEAST_GROWTH = 0.1
# How much of a reported box is the Kalman filter's, by `output`; a little takes off the tremor and adds no lag.
_FILTERED_SHARE = {"detection": 0.0, "blended": 0.4, "filtered": 1.0}
# Of an upright person, width / height; see `shape_std`.
_PERSON_ASPECT = 0.41


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
        self._clock = FrameClock(frame_rate)
        self._buffer = max(1, self._clock.periods(self.config.track_buffer))
        self._rematch = self._clock.periods(self.config.iou_rematch_seconds)
        self._forget = max(1.0, _FORGET_SECONDS * self.frame_rate)
        coast = self.config.coast_seconds
        self._coast = coast * self.frame_rate + _ROUNDING if coast else -1.0
        self._path_length = 1 + min(max(1, self._clock.periods(self.config.direction_seconds)), _LONGEST_PATH)
        self.reset()

    @property
    def frame_rate(self) -> float:
        """Frames per second that seconds are counted in."""
        return self._clock.frame_rate

    def reset(self) -> None:
        """Forget everything: the next frame is frame 1, and the next identity is 1."""
        self._frame = 0
        self._clock.reset()
        self._next_id = 1
        self._any_track_yet = False
        self._tracks = Tracks.none(self._path_length)
        self._class_names = np.zeros(0, np.int64)  # of the columns of the tracks' votes

    def update(
        self,
        detections: Detections,
        *,
        seconds: float | None = None,
        camera_motion: NDArray[np.floating[Any]] | None = None,
    ) -> FrameResult:
        """Take the detections of the next frame; call it once for every frame, empty ones too.

        Boxes without width or height are passed over.

        Args:
            detections: what was found; embeddings may be absent, then motion alone decides.
            seconds: time of the frame, from any origin, for videos of variable rate and streams that drop frames;
                None is one frame period after the frame before. Within a tenth of a frame period of a whole
                number of periods a time counts as that number, since containers round.
            camera_motion: (2, 3) affine map from points of the frame before to this one, such as
                `CameraMotion.estimate` gives; None where the camera stands still.

        Returns:
            The confirmed tracks matched in this frame, and those that coast, sorted by id.

        Raises:
            ValueError: embeddings of another dimension than in the frames before, time that goes back or is not
                finite, a camera motion that is no finite (2, 3) array or folds the picture to nothing. The frame does
                not count then.
        """
        affine = _checked(camera_motion)
        self._check_dimension(detections)
        step = self._clock.advance(seconds)
        self._frame += 1
        self._adopt_dimension(detections)
        if len(detections) == len(self._tracks) == 0:
            return self._result()
        detections = _with_area(detections)
        if self.config.classes == "vote":
            self._adopt_classes(detections)
        measured = measured_of(detections.xyxy, self.config)
        self._predict(step, affine)
        lately = self._clock.now - self._tracks.seen <= max(self._rematch, 1) + _ROUNDING
        detection_of = associate(self._tracks, detections, measured, lately, self.config)
        self._correct(detections, measured, detection_of)
        self._change_states(detection_of)
        self._merge_duplicates()
        self._start_tracks(detections, measured, detection_of)
        self._number()
        return self._result()

    def _check_dimension(self, detections: Detections) -> None:
        if detections.embeddings is None or len(detections) == 0:
            return
        known, given = self._tracks.embedding.shape[1], detections.embeddings.shape[1]
        if known and known != given:
            raise ValueError(f"embeddings: expected dimension {known} as in earlier frames, got {given}")

    def _adopt_dimension(self, detections: Detections) -> None:
        """Make the tracks' embeddings as wide as the first detections' that have any."""
        tracks = self._tracks
        if detections.embeddings is not None and len(detections) and tracks.embedding.shape[1] == 0:
            tracks.embedding = np.zeros((len(tracks), detections.embeddings.shape[1]), np.float32)

    def _adopt_classes(self, detections: Detections) -> None:
        """Give the votes a column for each class that has not been seen before."""
        names = np.union1d(self._class_names, _classes(detections))
        if len(names) == len(self._class_names):
            return
        votes = np.zeros((len(self._tracks), len(names)), np.float32)
        votes[:, np.searchsorted(names, self._class_names)] = self._tracks.votes
        self._tracks.votes, self._class_names = votes, names

    def _predict(self, step: float, affine: NDArray[np.float64] | None) -> None:
        tracks, state = self._tracks, self.config.box_state
        expired = self._clock.now - tracks.seen > self._buffer + 1 + _ROUNDING  # none but after a jump in time
        if expired.any():
            tracks.keep(~expired)
        # A growth seen once or not seen lately is no evidence, and a wrong one spoils the box for long.
        growing = slice(7, 8) if state == "xyah" else slice(6, 8)
        tracks.mean[tracks.state != TRACKED, growing] = 0
        if affine is not None:
            tracks.move(affine, state)
            inside: NDArray[np.bool_] = np.all(np.abs(tracks.mean) < LARGEST_COORDINATE, axis=1)
            if not inside.all():  # zooms multiply
                tracks.keep(inside)
            # Every estimate errs a little, and errors add up: what stands still would seem to have come a long way.
            centre = boxes.centre(tracks.box)
            tracks.birthplace += (centre - tracks.birthplace) * min(1.0, step / self._forget)
        least = _LEAST_GROWTH * tracks.mean[:, 2:4]
        tracks.mean, tracks.covariance = kalman.predict(tracks.mean, tracks.covariance, step, state)
        tracks.mean[:, 2:4] = np.maximum(tracks.mean[:, 2:4], least)  # no size goes through zero

    def _correct(self, detections: Detections, measured: NDArray[np.float64], detection_of: IntArray) -> None:
        """Bring the matched tracks up to date with their detections."""
        tracks, config = self._tracks, self.config
        rows = (detection_of >= 0).nonzero()[0]
        if len(rows) == 0:
            return
        matched = detection_of[rows]
        xyxy, score = detections.xyxy[matched], detections.scores[matched]
        mean, covariance = kalman.update(
            tracks.mean[rows], tracks.covariance[rows], measured[matched], config.box_state
        )
        if config.reupdate:
            found = (tracks.state[rows] == LOST).nonzero()[0]
            if len(found):
                mean[found], covariance[found] = self._repeat(rows[found], measured[matched[found]])
            tracks.seen_mean[rows], tracks.seen_covariance[rows] = mean, covariance
        tracks.mean[rows], tracks.covariance[rows] = mean, covariance
        tracks.box[rows], tracks.score[rows] = xyxy, score
        tracks.best_score[rows] = np.maximum(tracks.best_score[rows], score)
        if config.direction_weight:
            path = np.roll(tracks.path[rows], -1, axis=1)
            path[:, -1] = boxes.centre(xyxy)
            tracks.path[rows] = path
        tracks.seen[rows] = self._clock.now
        tracks.hits[rows] += 1
        if config.classes == "vote":
            tracks.votes[rows, np.searchsorted(self._class_names, _classes(detections)[matched])] += score
            tracks.classes[rows] = self._class_names[tracks.votes[rows].argmax(axis=1)]
        if detections.embeddings is not None:
            clear = score >= config.score_thresh  # a low score often means a body half covered by another
            self._mix_in(rows[clear], detections.embeddings[matched[clear]], score[clear])

    def _repeat(self, rows: IntArray, measured: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Kalman states of tracks found again, had they been seen all the while on a straight line of boxes."""
        tracks, state = self._tracks, self.config.box_state
        mean, covariance = tracks.seen_mean[rows], tracks.seen_covariance[rows]
        before = measured_of(tracks.box[rows], self.config)
        gap = self._clock.now - tracks.seen[rows]
        steps = np.clip(np.ceil(gap - _SLIP), 1, _MOST_REPEATED)
        dt = (gap / steps)[:, None]
        for k in range(1, int(steps.max()) + 1):
            on = (k <= steps).nonzero()[0]
            line = before[on] + (measured[on] - before[on]) * (k / steps[on])[:, None]
            predicted = kalman.predict(mean[on], covariance[on], dt[on], state)
            mean[on], covariance[on] = kalman.update(*predicted, line, state)
        return mean, covariance

    def _mix_in(self, rows: IntArray, embeddings: NDArray[np.float32], score: NDArray[np.float32]) -> None:
        """Smooth the tracks' embeddings: `ē ← m ē + (1 - m) e`, at unit length."""
        tracks, config = self._tracks, self.config
        share = np.full((len(rows), 1), 1 - config.embedding_momentum, np.float32)
        if config.score_aware_momentum:
            trust = (score - config.score_thresh) / max(1 - config.score_thresh, _TINY)
            share *= np.where(tracks.embedding[rows].any(axis=1), trust, 1)[:, None]
        mixed = (1 - share) * tracks.embedding[rows] + share * embeddings
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
        removed = ~matched & (tentative | (self._clock.now - tracks.seen > self._buffer + _ROUNDING))
        if removed.any():
            tracks.keep(~removed)

    def _is_alive(self, tracks: Tracks) -> NDArray[np.bool_]:
        """(M,) tracks whose score is sure, or that have moved as only the living do."""
        centre = boxes.centre(tracks.box)
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
        row, column, overlap = boxes.overlaps(
            boxes_of(tracks.mean[tracked], config), boxes_of(tracks.mean[lost], config)
        )
        same = 1 - overlap < config.duplicate_thresh
        if not same.any():
            return
        row, column = tracked[row[same]], lost[column[same]]
        if config.classes == "separate":
            same = tracks.classes[row] == tracks.classes[column]
            row, column = row[same], column[same]
        if config.appearance != "none":
            described: NDArray[np.bool_] = np.any(tracks.embedding, axis=1)
            distance = pair_distance(tracks.embedding, tracks.embedding, row, column, config)
            same = ~(described[row] & described[column]) | (distance <= config.embedding_thresh)
            row, column = row[same], column[same]
        keep = np.ones(len(tracks), bool)
        life = tracks.seen - tracks.born
        for seen, unseen in zip(row, column, strict=True):  # rarely more than one pair
            if not keep[seen] or not keep[unseen] or tracks.state[unseen] != LOST:
                continue
            if life[unseen] > life[seen]:
                tracks.resume(unseen, by=seen)
                if config.classes == "vote":
                    tracks.classes[unseen] = self._class_names[tracks.votes[unseen].argmax()]
                keep[seen] = False
            else:
                keep[unseen] = False
        if not keep.all():
            tracks.keep(keep)

    def _start_tracks(self, detections: Detections, measured: NDArray[np.float64], detection_of: IntArray) -> None:
        """Start a track from every unmatched detection that is sure enough."""
        config = self.config
        scores = detections.scores
        if config.shape_std is not None:
            width, height = (detections.xyxy[:, 2:] - detections.xyxy[:, :2]).astype(np.float64).T
            scores = scores * np.exp(-0.5 * np.square(np.log(width / height / _PERSON_ASPECT) / config.shape_std))
        born = scores >= max(config.birth_thresh, config.score_thresh)
        born[detection_of[detection_of >= 0]] = False
        rows = born.nonzero()[0]
        if len(rows) == 0:
            return
        old = self._tracks
        newcomers = Tracks.start(detections[rows], measured[rows], self._clock.now, config.box_state, self._path_length)
        if detections.embeddings is None:
            newcomers.embedding = np.zeros((len(rows), old.embedding.shape[1]), np.float32)
        newcomers.votes = np.zeros((len(rows), len(self._class_names)), np.float32)
        if config.classes == "vote":
            columns = np.searchsorted(self._class_names, newcomers.classes)
            newcomers.votes[np.arange(len(rows)), columns] = newcomers.score
        if config.confirm_frames == 1 or (config.confirm_first_frame and not self._any_track_yet):
            newcomers.state[self._is_alive(newcomers)] = TRACKED
        old.append(newcomers)
        self._any_track_yet = True

    def _number(self) -> None:
        """Give the tracks confirmed in this frame the next ids."""
        tracks = self._tracks
        rows = ((tracks.state == TRACKED) & (tracks.ids == NO_ID)).nonzero()[0]
        tracks.ids[rows] = np.arange(self._next_id, self._next_id + len(rows))
        self._next_id += len(rows)

    def _result(self) -> FrameResult:
        tracks, config = self._tracks, self.config
        coasting = (tracks.state == LOST) & (self._clock.now - tracks.seen <= self._coast)
        rows = ((tracks.state == TRACKED) | coasting).nonzero()[0]
        rows = rows[tracks.ids[rows].argsort()]
        predicted = coasting[rows]
        filtered = boxes_of(tracks.mean[rows], config).astype(np.float32)
        share = np.where(predicted, 1, _FILTERED_SHARE[config.output])[:, None]
        xyxy = (1 - share) * tracks.box[rows] + share * filtered
        return FrameResult(
            self._frame,
            tracks.ids[rows],
            xyxy.astype(np.float32),
            tracks.score[rows],
            tracks.classes[rows],
            tracks.embedding[rows] if tracks.embedding.shape[1] else None,
            predicted,
        )


def _with_area(detections: Detections) -> Detections:
    """The detections whose box has both width and height; the others have no aspect ratio."""
    solid = np.all(detections.xyxy[:, 2:] > detections.xyxy[:, :2], axis=1)
    return detections if solid.all() else detections[solid]


def _classes(detections: Detections) -> NDArray[np.int64]:
    assert detections.classes is not None  # the constructor fills them in
    return detections.classes


def _checked(camera_motion: NDArray[np.floating[Any]] | None) -> NDArray[np.float64] | None:
    """The camera motion as float64; None where it moves nothing."""
    if camera_motion is None:
        return None
    affine = np.asarray(camera_motion, np.float64)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise ValueError(f"camera_motion: expected (2, 3) finite numbers, got {affine.tolist()}")
    area = abs(np.linalg.det(affine[:, :2])) if np.abs(affine).max() < LARGEST_COORDINATE else np.inf
    if not _TINY_AREA < area < 1 / _TINY_AREA:
        raise ValueError(f"camera_motion: expected the motion of a camera, got {affine.tolist()}")
    return None if (affine == np.eye(2, 3)).all() else affine
