"""Constant-velocity Kalman filter over boxes, batched: every function takes all tracks at once.

The state of one track is `[cx, cy, a, h, vx, vy, va, vh]`: box centre, aspect ratio and height (`xyah`, pixels), then
their velocities per frame. The uncertainty of positions and velocities grows with the height of the box, since a person
close to the camera moves more pixels per frame than one far away.

A batch is a mean (M, 8) and a covariance (M, 8, 8), float64. The functions keep no state and change no input.

Source: Wojke et al., "Simple Online and Realtime Tracking with a Deep Association Metric", ICIP 2017, with the noise
model used by Wang et al., "Towards Real-Time Multi-Object Tracking", ECCV 2020.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

POSITION_STD = 1 / 20
"""Standard deviation of a position, relative to the height of the box."""
VELOCITY_STD = 1 / 160
"""Standard deviation of a velocity per frame, relative to the height of the box."""
ASPECT_STD = 1e-2
"""Standard deviation of the aspect ratio, absolute."""
ASPECT_VELOCITY_STD = 1e-5
"""Standard deviation of the aspect ratio's velocity per frame, absolute."""
MEASURED_ASPECT_STD = 1e-1
"""Standard deviation of a measured aspect ratio, absolute."""

# A standard deviation is `relative · height + absolute`, one row for each entry of the state.
_RELATIVE = np.array([1.0, 1, 0, 1])
_PROCESS = np.concatenate([POSITION_STD * _RELATIVE, VELOCITY_STD * _RELATIVE])
_INITIAL = np.concatenate([2 * POSITION_STD * _RELATIVE, 10 * VELOCITY_STD * _RELATIVE])
_MEASURED = POSITION_STD * _RELATIVE
_STATE_ABSOLUTE = np.array([0, 0, ASPECT_STD, 0, 0, 0, ASPECT_VELOCITY_STD, 0])
_MEASURED_ABSOLUTE = np.array([0, 0, MEASURED_ASPECT_STD, 0])
_DIAGONAL = np.arange(8)


def initiate(xyah: NDArray[np.floating]) -> tuple[Float64Array, Float64Array]:
    """Start tracks from unassociated boxes, at rest.

    Args:
        xyah: (M, 4) measured boxes.

    Returns:
        Mean (M, 8) and covariance (M, 8, 8).
    """
    mean = np.zeros((len(xyah), 8))
    mean[:, :4] = xyah
    covariance = np.zeros((len(xyah), 8, 8))
    covariance[:, _DIAGONAL, _DIAGONAL] = (mean[:, 3:4] * _INITIAL + _STATE_ABSOLUTE) ** 2
    return mean, covariance


def predict(mean: Float64Array, covariance: Float64Array, dt: float = 1.0) -> tuple[Float64Array, Float64Array]:
    """Move tracks `dt` frames ahead (more than one where frames were dropped).

    With `F = [[I, dt I], [0, I]]` these are `F mean` and `F covariance Fᵀ + dt Q`.
    """
    motion = np.eye(8) + dt * np.eye(8, k=4)
    predicted = motion @ covariance @ motion.T
    predicted[:, _DIAGONAL, _DIAGONAL] += dt * (mean[:, 3:4] * _PROCESS + _STATE_ABSOLUTE) ** 2
    return mean @ motion.T, predicted


def project(mean: Float64Array, covariance: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Distribution of the box that would be measured: mean (M, 4) xyah and covariance (M, 4, 4)."""
    innovation = covariance[:, :4, :4].copy()
    innovation[:, _DIAGONAL[:4], _DIAGONAL[:4]] += (mean[:, 3:4] * _MEASURED + _MEASURED_ABSOLUTE) ** 2
    return mean[:, :4].copy(), innovation


def update(
    mean: Float64Array, covariance: Float64Array, xyah: NDArray[np.floating]
) -> tuple[Float64Array, Float64Array]:
    """Correct predicted tracks by one measured box each.

    Args:
        mean: (M, 8).
        covariance: (M, 8, 8).
        xyah: (M, 4) measured boxes, row i for track i.

    Returns:
        Mean (M, 8) and covariance (M, 8, 8), exactly symmetric.
    """
    projected, innovation = project(mean, covariance)
    gain = np.linalg.solve(innovation, covariance[:, :4, :]).swapaxes(1, 2)  # (M, 8, 4)
    mean = mean + (gain @ (xyah - projected)[:, :, None])[:, :, 0]
    covariance = covariance - gain @ covariance[:, :4, :]
    return mean, (covariance + covariance.swapaxes(1, 2)) / 2


def gating_distance(mean: Float64Array, covariance: Float64Array, xyah: NDArray[np.floating]) -> Float64Array:
    """Squared Mahalanobis distance between every track's predicted measurement and every box.

    Args:
        mean: (M, 8).
        covariance: (M, 8, 8).
        xyah: (N, 4).

    Returns:
        (M, N), chi-square distributed with 4 degrees of freedom where track and box are the same person.
    """
    projected, innovation = project(mean, covariance)
    difference = xyah.T - projected[:, :, None]  # (M, 4, N)
    return np.asarray(np.einsum("min,min->mn", difference, np.linalg.inv(innovation) @ difference))
