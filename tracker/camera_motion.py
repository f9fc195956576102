"""How the camera moved between two frames, seen in the picture.

The tracker carries its boxes over by what is found here, so that a pan or a tremor of the camera is not taken for
people running. Source of the use in tracking: Aharon et al., "BoT-SORT: Robust Associations Multi-Pedestrian
Tracking", 2022.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Method = Literal["sparse", "ecc"]
Affine = NDArray[np.float64]

_NOT_GIVEN: Any = None  # OpenCV takes it where its type hints do not

# Corners to follow, and how they are chosen and followed; pixels of the small picture.
_CORNERS = 300
_CORNER_QUALITY = 0.01
_CORNER_DISTANCE = 7
_FLOW_WINDOW = (21, 21)
_FLOW_LEVELS = 4
_RANSAC_PIXELS = 0.5
# Where this share of the corners stays within so many pixels the camera stands still, whoever walks before it.
_STILL_PIXELS = 0.15
_STILL_SHARE = 0.3
# A motion that fewer corners than this agree on, or a smaller share of them, is no camera's: a cut, or a crowd.
_LEAST_AGREEING = 12
_LEAST_SHARE = 0.4
# The enhanced correlation coefficient: steps, when a step is small enough, and the least correlation to believe.
_ECC_STEPS = 100
_ECC_CHANGE = 1e-5
_LEAST_CORRELATION = 0.7
_ECC_BLUR = 5
# What a camera can do between two frames; anything beyond is a mistake.
_LARGEST_SCALE = 1.5


class CameraMotion:
    """Follows the motion of one camera; `estimate` is called with every frame, in order.

    Args:
        method: "sparse" follows corners with pyramidal Lucas-Kanade optical flow and takes the similarity (rotation,
            scale, shift) most of them agree on; "ecc" shifts and turns the whole picture until it correlates best
            (Evangelidis and Psarakis, 2008), which is slower, and needs no corners.
        long_side: pixels; the picture is made this small first.

    Raises:
        ValueError: an unknown method, or a size below 32.
    """

    def __init__(self, method: Method = "sparse", long_side: int = 320) -> None:
        if method not in get_args(Method):
            raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
        if long_side < 32:
            raise ValueError(f"long_side: expected at least 32 pixels, got {long_side}")
        self._method = method
        self._long_side = long_side
        self.reset()

    def reset(self) -> None:
        """Forget the last frame."""
        self._grey: NDArray[np.uint8] | None = None
        self._corners, self._background = np.zeros((0, 1, 2), np.float32), np.zeros(0, bool)

    def estimate(self, frame: NDArray[np.uint8], xyxy: NDArray[Any] | None = None) -> Affine:
        """Where the points of the last frame lie in this one.

        Args:
            frame: (H, W, 3) uint8 BGR.
            xyxy: (N, 4) boxes of people in this frame, in its pixels; they move by themselves and are left out.

        Returns:
            (2, 3) float64, a similarity in pixels of the frame: identity for the first frame, after a change of size,
            and where no motion of the whole picture can be made out (a cut, darkness, a wall).
        """
        height, width = frame.shape[:2]
        scale = min(1.0, self._long_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8)
        if scale < 1:
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
        people = _people(grey, xyxy, size[0] / width, size[1] / height)
        before, self._grey = self._grey, grey
        found = None
        if before is not None and before.shape == grey.shape:
            found = self._flow(before, grey) if self._method == "sparse" else _correlate(before, grey, people)
        if self._method == "sparse":
            self._corners, self._background = _corners(grey, people)
        if found is None or not _plausible(found):
            return np.eye(2, 3)
        return _in_pixels_of(found, size[0] / width, size[1] / height)

    def _flow(self, before: NDArray[np.uint8], grey: NDArray[np.uint8]) -> Affine | None:
        """The similarity that most corners agree on."""
        if len(self._corners) < _LEAST_AGREEING:
            return None
        there, status, _ = cv2.calcOpticalFlowPyrLK(
            before, grey, self._corners, _NOT_GIVEN, winSize=_FLOW_WINDOW, maxLevel=_FLOW_LEVELS
        )
        good = status[:, 0] == 1
        here, there, background = self._corners[good], there[good], self._background[good]
        still = np.linalg.norm(there - here, axis=2)[:, 0] < _STILL_PIXELS
        if _share(still) > _STILL_SHARE or _share(still[background]) > _STILL_SHARE:
            return None
        here, there = here[background], there[background]
        if len(here) < _LEAST_AGREEING:
            return None
        found, agreeing = cv2.estimateAffinePartial2D(
            here, there, method=cv2.RANSAC, ransacReprojThreshold=_RANSAC_PIXELS
        )
        if found is None or agreeing.sum() < max(_LEAST_AGREEING, _LEAST_SHARE * len(here)):
            return None
        return np.asarray(found, np.float64)


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _corners(grey: NDArray[np.uint8], people: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Corners (N, 1, 2) of a picture, and which of them lie on no person (N,)."""
    corners = cv2.goodFeaturesToTrack(grey, _CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE)
    if corners is None:
        return np.zeros((0, 1, 2), np.float32), np.zeros(0, bool)
    columns, rows = np.asarray(corners, np.float32)[:, 0].astype(int).T
    return np.asarray(corners, np.float32), people[rows, columns] == 0


def _people(grey: NDArray[np.uint8], xyxy: NDArray[Any] | None, scale_x: float, scale_y: float) -> NDArray[np.uint8]:
    """255 where there are people, 0 elsewhere."""
    mask = np.zeros(grey.shape, np.uint8)
    if xyxy is not None and len(xyxy):
        inside = np.clip(xyxy, 0, 1e6) * [scale_x, scale_y, scale_x, scale_y]
        for left, top, right, bottom in np.column_stack([np.floor(inside[:, :2]), np.ceil(inside[:, 2:])]).astype(int):
            mask[top:bottom, left:right] = 255
    return mask


def _correlate(before: NDArray[np.uint8], grey: NDArray[np.uint8], people: NDArray[np.uint8]) -> Affine | None:
    """Rotation and shift under which both pictures correlate best."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ECC_STEPS, _ECC_CHANGE)
    # The search climbs from where it starts: first the shift alone, by the phase of the pictures' spectra.
    window = cv2.createHanningWindow((grey.shape[1], grey.shape[0]), cv2.CV_32F) if min(grey.shape) > 1 else _NOT_GIVEN
    shift, _ = cv2.phaseCorrelate(before.astype(np.float32), grey.astype(np.float32), window)
    start = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    try:
        correlation, found = cv2.findTransformECC(
            before, grey, start, cv2.MOTION_EUCLIDEAN, criteria, 255 - people, _ECC_BLUR
        )
    except cv2.error:  # pictures without contrast, or that have nothing in common
        return None
    return np.asarray(found, np.float64) if correlation >= _LEAST_CORRELATION else None


def _plausible(affine: Affine) -> bool:
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    return bool(np.isfinite(affine).all() and 1 / _LARGEST_SCALE < scale < _LARGEST_SCALE)


def _in_pixels_of(affine: Affine, scale_x: float, scale_y: float) -> Affine:
    """The same motion in pixels of the original picture."""
    scale = np.array([scale_x, scale_y])
    moved = affine.copy()
    moved[:, :2] = affine[:, :2] * scale / scale[:, None]
    moved[:, 2] = affine[:, 2] / scale
    return moved
