"""How far two detectors agree on the same frames: people, boxes, scores and embeddings.

Made for one network that is run in two ways, as an exported or a quantised model beside the model it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from detector.evaluation import Detect

MATCH_IOU = 0.5
"""Two boxes are of one person if they overlap by this IoU at least."""


@dataclass(frozen=True)
class Agreement:
    """What `agreement` measured; None stands for what nobody was there to tell.

    Attributes:
        frames: how many frames were compared.
        people: boxes the reference reported.
        other_people: boxes the other detector reported.
        matched: people both reported.
        max_unmatched_score: highest score of a person that only one reported. One just above the detectors' score
            threshold differs by a hair; a high one was lost, or made up.
        max_box_error: largest difference of a coordinate of matched boxes, in pixels of the frame.
        mean_box_error: the mean over the four coordinates of all matched boxes.
        max_score_error: largest difference of the scores of a matched person.
        min_cosine: lowest cosine similarity of the embeddings of a matched person; None too where either has none.
        mean_cosine: its mean.
    """

    frames: int
    people: int
    other_people: int
    matched: int
    max_unmatched_score: float | None
    max_box_error: float | None
    mean_box_error: float | None
    max_score_error: float | None
    min_cosine: float | None
    mean_cosine: float | None

    @property
    def unmatched(self) -> int:
        """People that only one of the two reported."""
        return self.people + self.other_people - 2 * self.matched


def agreement(reference: Detect, other: Detect, frames: Iterable[NDArray[np.uint8]]) -> Agreement:
    """Show both detectors the same frames and compare what they report.

    People are matched frame by frame so that the sum of their IoU is largest, no pair below `MATCH_IOU`.

    Args:
        reference: frames (H, W, 3) uint8 BGR -> `boxes` (N, 4) xyxy in pixels, `scores` (N,) and, where the network
            has them, `embeddings` (N, D) unit rows of each; a `Detector`.
        other: the same.
        frames: images (H, W, 3) uint8 BGR, taken one at a time and dropped once seen.

    Raises:
        ValueError: no frames.
    """
    count = people = other_people = 0
    alone, box_errors, score_errors, cosines = [], [], [], []
    for count, frame in enumerate(frames, 1):  # noqa: B007 - the number of frames is wanted
        (ours,), (theirs,) = reference([frame]), other([frame])
        rows, columns = match_people(ours["boxes"], theirs["boxes"])
        people, other_people = people + len(ours["boxes"]), other_people + len(theirs["boxes"])
        alone += [np.delete(ours["scores"], rows), np.delete(theirs["scores"], columns)]
        box_errors.append(np.abs(ours["boxes"][rows] - theirs["boxes"][columns]))
        score_errors.append(np.abs(ours["scores"][rows] - theirs["scores"][columns]))
        if "embeddings" in ours and "embeddings" in theirs:
            cosines.append((ours["embeddings"][rows] * theirs["embeddings"][columns]).sum(1))
    if not count:
        raise ValueError("frames: expected at least one, got none")
    return Agreement(
        frames=count,
        people=people,
        other_people=other_people,
        matched=sum(map(len, score_errors)),
        max_unmatched_score=_over("max", alone),
        max_box_error=_over("max", box_errors),
        mean_box_error=_over("mean", box_errors),
        max_score_error=_over("max", score_errors),
        min_cosine=_over("min", cosines),
        mean_cosine=_over("mean", cosines),
    )


def match_people(boxes: NDArray[Any], other_boxes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which box of one is which of the other: rows (M,) and columns (M,) of the pairs.

    The sum of the IoU over all pairs is the largest that one-to-one pairs of `MATCH_IOU` or more can reach.

    Args:
        boxes: (N, 4) xyxy.
        other_boxes: (K, 4) xyxy.
    """
    overlap = box_iou(*(torch.from_numpy(np.asarray(some, np.float64)) for some in (boxes, other_boxes))).numpy()
    able = overlap >= MATCH_IOU
    rows, columns = linear_sum_assignment(np.where(able, overlap, 0), maximize=True)
    paired = able[rows, columns]
    return rows[paired], columns[paired]


def _over(name: str, parts: Sequence[NDArray[Any]]) -> float | None:
    values = np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)
    return float(getattr(values, name)()) if len(values) else None
