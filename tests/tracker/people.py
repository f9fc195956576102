"""Detections of people, made up for tests, and what a tracker makes of them."""

import dataclasses

import numpy as np

from tracker import Detections, TrackerConfig

NOBODY = Detections.empty()

PLAIN = TrackerConfig(
    score_thresh=0.5,
    low_score_thresh=0.05,
    birth_thresh=0.6,
    shape_std=None,
    classes="separate",
    appearance="gated",
    embedding_metric="cosine",
    embedding_thresh=0.5,
    proximity_thresh=0.5,
    stand_out_margin=0.0,
    embedding_momentum=0.9,
    score_aware_momentum=False,
    iou_thresh=0.8,
    low_score_iou_thresh=0.5,
    tentative_iou_thresh=0.7,
    iou_rematch_seconds=0.5,
    fuse_score=False,
    iou_buffer=0.0,
    small_box=0.0,
    direction_weight=0.15,
    direction_seconds=0.1,
    recover_by_last_box=False,
    box_state="xyah",
    reupdate=False,
    track_buffer=3.0,
    duplicate_thresh=0.15,
    confirm_frames=2,
    sure_thresh=0.75,
    min_motion=0.3,
    confirm_first_frame=True,
    coast_seconds=0.0,
    output="detection",
)
"""What the numbers in the tests follow from, whatever the defaults are."""


def plain(**changes):
    """`PLAIN` with changes."""
    return dataclasses.replace(PLAIN, **changes)


def standing(*lefts, score=0.9, looks=None, classes=None, top=100.0, width=40.0, height=100.0):
    """Upright people at the given left edges, with one score or one each; `looks` names embeddings from 0 on."""
    lefts = np.array(lefts, np.float32).reshape(-1)
    xyxy = np.stack([lefts, np.full_like(lefts, top), lefts + width, np.full_like(lefts, top + height)], axis=1)
    embeddings = None if looks is None else np.eye(8, dtype=np.float32)[list(looks)]
    return Detections(xyxy, np.full(len(lefts), score, np.float32), embeddings, classes)


def boxes(*rows, score=0.9):
    """People in the given xyxy boxes."""
    return Detections(np.array(rows, np.float64), np.full(len(rows), score))


def look(distance):
    """(1, 8) unit embedding at this cosine distance from `looks` 0, and at right angles to all others but 7."""
    row = np.zeros((1, 8), np.float32)
    row[0, [0, 7]] = 1 - distance, np.sqrt(1 - (1 - distance) ** 2)
    return row


def run(tracker, frames):
    return [tracker.update(frame) for frame in frames]


def ids(result):
    return result.track_ids.tolist()


def crowd(frames, people=30, dimension=32, seed=0, life=None):
    """Detections of people walking to and fro, with misses, low scores and noisy embeddings; some die, others come."""
    rng = np.random.default_rng(seed)
    size = np.array([1800.0, 900.0])
    place = rng.uniform(0, size, (people, 2))
    speed = rng.normal(0, 3, (people, 2))
    height = rng.uniform(60, 200, people)
    looks = rng.normal(size=(people, dimension))
    for _ in range(frames):
        if life is not None:
            new = rng.random(people) < 1 / life
            place[new], looks[new] = rng.uniform(0, size, (new.sum(), 2)), rng.normal(size=(new.sum(), dimension))
        place = place + speed
        speed = np.where((place < 0) | (place > size), -speed, speed)
        seen = rng.random(people) > 0.05
        half = np.column_stack([0.2 * height, 0.5 * height])
        centre = place + rng.normal(0, 1, (people, 2))
        embeddings = looks + rng.normal(0, 0.3, looks.shape)
        scores = np.clip(rng.normal(0.75, 0.15, people), 0, 1)
        yield Detections(np.hstack([centre - half, centre + half])[seen], scores[seen], embeddings[seen])
