"""A synthetic crowd: what a detector would report of people who walk, meet, hide, come and go.

People walk at about 1.4 m/s, change their direction slowly, leave at the edges of the picture or through doors, and
are replaced. Boxes tremble; some people are missed, some score low, and some boxes have nobody in them. Where two boxes
nearly coincide only the nearer person is found, as suppression leaves it. The further away the camera, the more people
there are, so that half of the picture at most is covered. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracker import Detections
from tracker.boxes import cxcywh_to_xyxy, iou

WIDTH, HEIGHT = 1920, 1080
PERSON = 1.7
"""Height of a person in metres, which turns walking speed into pixels."""
SPEED = 1.4
"""Metres a second."""
ASPECT = 0.4
"""Width of a box by its height."""
FRAME_RATE = 30.0
HIDDEN_IOU = 0.7
"""Overlap with a nearer person from which the suppression of a detector removes a box."""

COMMON, LOOK_NOISE = 0.65, 0.47
"""What all embeddings share and how two of one person differ, in lengths of what is a person's own: two looks at one
person have a cosine of about 0.87, looks at two people of about 0.26."""


@dataclass(frozen=True)
class CrowdConfig:
    """How many people, and what a detector makes of them."""

    people: int
    """In the picture in every frame."""
    dimension: int | None = None
    """Length of the embeddings; None for none."""
    seed: int = 0
    """Of everything that is drawn."""
    miss_rate: float = 0.07
    """Share of people that are not found, each frame anew, besides the hidden."""
    low_share: float = 0.12
    """Share of people found with a score below 0.5."""
    false_share: float = 0.03
    """Boxes without a person, by the number of people."""
    jitter: float = 0.02
    """Standard deviation of a centre and of a size, in heights of the box."""
    leave_rate: float = 1 / 900
    """Share of people that leave through doors, per frame."""


class Crowd:
    """Endless frames of detections; iterate.

    Attributes:
        born: how many people have been in the picture so far.
    """

    def __init__(self, config: CrowdConfig) -> None:
        self.config = config
        self._rng = np.random.default_rng(config.seed)
        self._tallest = 200.0 * min(1.0, (150 / config.people) ** 0.5)
        count = config.people
        self._common = COMMON * self._rng.normal(size=config.dimension or 1)
        self._centre = self._rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
        self._velocity = np.zeros((count, 2))
        self._looks = np.zeros((count, config.dimension or 1))
        self.born = 0
        self._replace(np.arange(count), at_edges=False)

    def _replace(self, rows: NDArray[np.int64], at_edges: bool = True) -> None:
        """New people for those who left, half of them through doors inside the picture."""
        rng, count = self._rng, len(rows)
        if count == 0:
            return
        centre = rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
        if at_edges:
            side = rng.uniform(size=count) < 0.5
            centre[side, 0] = rng.choice([0.0, WIDTH], side.sum())
        angle = rng.uniform(0, 2 * np.pi, count)
        self._centre[rows] = centre
        self._velocity[rows] = np.stack([np.cos(angle), 0.3 * np.sin(angle)], 1) * (SPEED / PERSON / FRAME_RATE)
        self._looks[rows] = rng.normal(size=(count, self._looks.shape[1])) + self._common
        self.born += count

    def _heights(self) -> NDArray[np.float64]:
        """People lower in the picture are nearer, by up to five times."""
        return np.asarray(self._tallest * (0.2 + 0.8 * np.clip(self._centre[:, 1] / HEIGHT, 0, 1)))

    def _walk(self) -> None:
        rng = self._rng
        self._centre += self._velocity * self._heights()[:, None]
        self._velocity *= 1 + rng.normal(0, 0.02, (len(self._velocity), 1))
        turn = rng.normal(0, 0.02, len(self._velocity))
        self._velocity += turn[:, None] * self._velocity[:, ::-1] * (-1, 1)
        gone = ((self._centre < 0) | (self._centre > (WIDTH, HEIGHT))).any(axis=1)
        gone |= rng.uniform(size=len(self._centre)) < self.config.leave_rate
        self._replace(gone.nonzero()[0])

    def __iter__(self) -> Iterator[Detections]:
        while True:
            yield self._look()
            self._walk()

    def _look(self) -> Detections:
        """What the detector finds, best score first."""
        config, rng = self.config, self._rng
        height = self._heights()
        size = np.stack([ASPECT * height, height], 1)
        nearness = height.argsort()[::-1]
        overlap = iou(*[cxcywh_to_xyxy(np.concatenate([self._centre, size], 1)[nearness])] * 2)
        hidden = np.zeros(len(height), bool)
        hidden[nearness] = (np.tril(overlap, -1) > HIDDEN_IOU).any(1)
        found = (~hidden & (rng.uniform(size=len(height)) >= config.miss_rate)).nonzero()[0]
        count, false = len(found), rng.poisson(config.false_share * config.people)
        noise = rng.normal(0, config.jitter, (count, 4)) * height[found, None]
        boxes = np.concatenate([self._centre[found], size[found]], 1) + noise
        low = rng.uniform(size=count) < config.low_share
        scores = np.where(low, rng.uniform(0.1, 0.5, count), rng.beta(8, 2, count).clip(0.5, 1))
        ghosts = rng.uniform(0, 1, (false, 2)) * (WIDTH, HEIGHT)
        ghost_height = rng.uniform(0.2, 1, (false, 1)) * self._tallest
        boxes = np.concatenate([boxes, np.concatenate([ghosts, ASPECT * ghost_height, ghost_height], 1)])
        scores = np.concatenate([scores, rng.uniform(0.1, 0.7, false)])
        embeddings = None
        if config.dimension:
            looks = np.concatenate([self._looks[found], rng.normal(size=(false, config.dimension)) + self._common])
            embeddings = (looks + rng.normal(0, LOOK_NOISE, looks.shape)).astype(np.float32)
        order = scores.argsort()[::-1]
        return Detections(cxcywh_to_xyxy(boxes), scores, embeddings)[order]
