"""Constant-velocity Kalman filter over boxes, batched: every function takes all tracks at once.

The state of one track is four coordinates and their velocities per frame: `[cx, cy, a, h, vx, vy, va, vh]`, the box's
centre, aspect ratio and height (`xyah`, pixels), or with the width in place of the aspect ratio (`cxcywh`). The
uncertainty grows with the size of the box, since a person close to the camera moves more pixels per frame than one far
away.

Motion, noise and measurement never mix two coordinates, so neither does the covariance: a covariance matrix (8, 8) of
one track has 12 entries that are not zero, the variance of each position, of each velocity, and the covariance of the
two. These 12 are all that is kept, as (M, 3, 4); products and inverses of matrices become products and quotients of
numbers, with the same result.

A batch is a mean (M, 8) and a covariance (M, 3, 4), float64. The functions keep no state and change no input.

Source: Wojke et al., "Simple Online and Realtime Tracking with a Deep Association Metric", ICIP 2017, with the noise
model used by Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020; for `cxcywh` Aharon et al., "BoT-SORT:
Robust Associations Multi-Pedestrian Tracking", 2022.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
BoxState = Literal["xyah", "cxcywh"]

POSITION_STD = 1 / 20
"""Standard deviation of a position, relative to the size of the box."""
VELOCITY_STD = 1 / 160
"""Standard deviation of a velocity per frame, relative to the size of the box."""
ASPECT_STD = 1e-2
"""Standard deviation of the aspect ratio, absolute."""
ASPECT_VELOCITY_STD = 1e-5
"""Standard deviation of the aspect ratio's velocity per frame, absolute."""
MEASURED_ASPECT_STD = 1e-1
"""Standard deviation of a measured aspect ratio, absolute."""

# A standard deviation is `relative · size + absolute`, one entry for each coordinate.
_SIZED = {"xyah": np.array([1.0, 1, 0, 1]), "cxcywh": np.ones(4)}
_FIXED = {"xyah": np.array([0.0, 0, 1, 0]), "cxcywh": np.zeros(4)}


def initiate(boxes: NDArray[np.floating], state: BoxState = "xyah") -> tuple[Float64Array, Float64Array]:
    """Start tracks from unassociated boxes, at rest.

    Args:
        boxes: (M, 4) measured boxes in the format `state`.
        state: what the coordinates are; the noise follows from it.

    Returns:
        Mean (M, 8) and covariance (M, 3, 4).
    """
    mean = np.zeros((len(boxes), 8))
    mean[:, :4] = boxes
    covariance = np.zeros((len(boxes), 3, 4))
    covariance[:, 0] = _variance(mean, state, 2 * POSITION_STD, ASPECT_STD)
    covariance[:, 2] = _variance(mean, state, 10 * VELOCITY_STD, ASPECT_VELOCITY_STD)
    return mean, covariance


def predict(
    mean: Float64Array, covariance: Float64Array, dt: float | Float64Array = 1.0, state: BoxState = "xyah"
) -> tuple[Float64Array, Float64Array]:
    """Move tracks `dt` frames ahead, all alike or (M, 1) each its own: more than one where frames were dropped.

    With `F = [[I, dt I], [0, I]]` these are `F mean` and `F covariance Fᵀ + Q(dt)`, where `Q(n)` is what n steps of one
    frame add: the noise of the velocity of each step moves the position in those that follow.
    """
    predicted = mean.copy()
    predicted[:, :4] += dt * mean[:, 4:]
    position, mixed, velocity = covariance[:, 0], covariance[:, 1], covariance[:, 2]
    jolt = _variance(mean, state, POSITION_STD, ASPECT_STD)
    drift = _variance(mean, state, VELOCITY_STD, ASPECT_VELOCITY_STD)
    before = np.maximum(dt - 1, 0)  # steps that follow the first
    result = np.empty_like(covariance)
    result[:, 0] = position + dt * (2 * mixed + dt * velocity + jolt) + before * dt * (2 * dt - 1) / 6 * drift
    result[:, 1] = mixed + dt * velocity + before * dt / 2 * drift
    result[:, 2] = velocity + dt * drift
    return predicted, result


def project(
    mean: Float64Array, covariance: Float64Array, state: BoxState = "xyah"
) -> tuple[Float64Array, Float64Array]:
    """Distribution of the box that would be measured: mean (M, 4), and variance (M, 4) of each coordinate."""
    return mean[:, :4], covariance[:, 0] + _variance(mean, state, POSITION_STD, MEASURED_ASPECT_STD)


def update(
    mean: Float64Array, covariance: Float64Array, boxes: NDArray[np.floating], state: BoxState = "xyah"
) -> tuple[Float64Array, Float64Array]:
    """Correct predicted tracks by one measured box each.

    Args:
        mean: (M, 8).
        covariance: (M, 3, 4).
        boxes: (M, 4) measured boxes in the format `state`, row i for track i.
        state: what the coordinates are.

    Returns:
        Mean (M, 8) and covariance (M, 3, 4).
    """
    projected, innovation = project(mean, covariance, state)
    gain = covariance[:, :2] / innovation[:, None]  # (M, 2, 4): of the positions, of the velocities
    corrected = mean + (gain * (boxes - projected)[:, None]).reshape(-1, 8)
    result = np.empty_like(covariance)
    result[:, :2] = covariance[:, :2] - gain * covariance[:, :1]
    result[:, 2] = covariance[:, 2] - gain[:, 1] * covariance[:, 1]
    return corrected, result


def gating_distance(
    mean: Float64Array,
    covariance: Float64Array,
    boxes: NDArray[np.floating],
    state: BoxState = "xyah",
    limit: float = np.inf,
) -> Float64Array:
    """Squared Mahalanobis distance between every track's predicted measurement and every box.

    Args:
        mean: (M, 8).
        covariance: (M, 3, 4).
        boxes: (N, 4) in the format `state`.
        state: what the coordinates are.
        limit: pairs that are farther apart get an infinite distance, which saves most of the work in a crowd.

    Returns:
        (M, N), chi-square distributed with 4 degrees of freedom where track and box are the same person.
    """
    projected, innovation = project(mean, covariance, state)
    distance = boxes[:, 0] - projected[:, :1]
    np.square(distance, out=distance)
    distance /= innovation[:, :1]
    near = np.flatnonzero(distance <= limit)  # the first coordinate alone excludes nearly all pairs of a crowd
    rows, columns = np.divmod(near, max(len(boxes), 1))
    rest = np.square(boxes[columns, 1:] - projected[rows, 1:]) / innovation[rows, 1:]
    total = distance.ravel()[near] + rest.sum(axis=1)
    distance.fill(np.inf)
    distance.ravel()[near] = np.where(total <= limit, total, np.inf)
    return distance


def move(
    mean: Float64Array, covariance: Float64Array, affine: Float64Array, state: BoxState = "xyah"
) -> tuple[Float64Array, Float64Array]:
    """Carry tracks over to a picture that the camera's motion has moved.

    Args:
        mean: (M, 8).
        covariance: (M, 3, 4).
        affine: (2, 3) where a point of the old picture lies in the new one.
        state: what the coordinates are.

    Returns:
        Mean (M, 8) and covariance (M, 3, 4). Boxes stay upright and grow by the root of the area's factor. Exact for
        `xyah` under rotation, scale and shift; a shear would mix the coordinates, and that part is left out.
    """
    linear, shift = affine[:, :2], affine[:, 2]
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    size = np.array([1.0 if state == "xyah" else scale, scale])
    moved = mean.copy()
    moved[:, :2] = mean[:, :2] @ linear.T + shift
    moved[:, 4:6] = mean[:, 4:6] @ linear.T
    moved[:, 2:4] *= size
    moved[:, 6:8] *= size
    spread = covariance.copy()
    spread[:, :, :2] = covariance[:, :, :2] @ np.square(linear).T
    spread[:, :, 2:] *= np.square(size)
    return moved, spread


def _variance(mean: Float64Array, state: BoxState, relative: float, absolute: float) -> Float64Array:
    """(M, 4) variance of each coordinate, from the size of the box, or absolute for the aspect ratio."""
    size = mean[:, 3:4] if state == "xyah" else mean[:, [2, 3, 2, 3]]
    return np.asarray(np.square(size * (relative * _SIZED[state]) + absolute * _FIXED[state]))
