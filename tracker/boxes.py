"""Box formats and overlap.

Each format has one name, coordinates in pixels, x to the right and y down:

- `xyxy`: left, top, right, bottom
- `tlwh`: left, top, width, height
- `cxcywh`: centre x, centre y, width, height
- `xyah`: centre x, centre y, aspect ratio width / height, height

Boxes are continuous areas: a width is `right - left`, with no extra pixel. Inputs are never changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def xyxy_to_tlwh(xyxy: NDArray[Any]) -> NDArray[Any]:
    """Corners (..., 4) to left, top, width, height (..., 4)."""
    tlwh = np.array(xyxy)
    tlwh[..., 2:] -= tlwh[..., :2]
    return tlwh


def tlwh_to_xyxy(tlwh: NDArray[Any]) -> NDArray[Any]:
    """Left, top, width, height (..., 4) to corners (..., 4)."""
    xyxy = np.array(tlwh)
    xyxy[..., 2:] += xyxy[..., :2]
    return xyxy


def xyxy_to_cxcywh(xyxy: NDArray[Any]) -> NDArray[Any]:
    """Corners (..., 4) to centre, width, height (..., 4)."""
    low, high = xyxy[..., :2], xyxy[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def cxcywh_to_xyxy(cxcywh: NDArray[Any]) -> NDArray[Any]:
    """Centre, width, height (..., 4) to corners (..., 4)."""
    centre, half = cxcywh[..., :2], cxcywh[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_xyah(xyxy: NDArray[Any]) -> NDArray[Any]:
    """Corners (..., 4) to centre, aspect ratio, height (..., 4); every height must differ from zero."""
    xyah = xyxy_to_cxcywh(xyxy)
    xyah[..., 2] /= xyah[..., 3]
    return xyah


def xyah_to_xyxy(xyah: NDArray[Any]) -> NDArray[Any]:
    """Centre, aspect ratio, height (..., 4) to corners (..., 4)."""
    cxcywh = np.array(xyah)
    cxcywh[..., 2] *= cxcywh[..., 3]
    return cxcywh_to_xyxy(cxcywh)


def expand(xyxy: NDArray[Any], share: float, least: float = 0.0) -> NDArray[Any]:
    """Boxes grown around their centres, so that small and fast ones still meet.

    Args:
        xyxy: (..., 4).
        share: how far each side moves out, in widths or heights of the box.
        least: pixels; boxes whose root of the area is smaller grow to it, in their own shape.

    Returns:
        (..., 4) xyxy. Source: Yang et al., "Hard to Track Objects with Irregular Motions and Similar Appearances? Make
        It Easier by Buffering the Matching Space", WACV 2023 (`share`).
    """
    cxcywh = xyxy_to_cxcywh(xyxy)
    size = cxcywh[..., 2:]
    factor = np.full_like(size[..., :1], 1 + 2 * share)
    if least:
        root = np.sqrt(np.maximum(size[..., :1] * size[..., 1:], np.finfo(size.dtype).tiny))
        factor = np.maximum(factor, least / root)
    cxcywh[..., 2:] = size * factor
    return cxcywh_to_xyxy(cxcywh)


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Intersection over union of every pair.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy.

    Returns:
        (N, M) in [0, 1], 0 where neither has an area; an inverted box has none.
    """
    left_a, top_a, right_a, bottom_a = a.T[:, :, None]  # (N, 1) each: whole rows at a time are faster than pairs
    left_b, top_b, right_b, bottom_b = b.T
    # Three arrays (N, M), used over and over: for a crowd, memory takes longer than arithmetic.
    width = np.minimum(right_a, right_b)
    other = np.maximum(left_a, left_b)
    width -= other
    np.maximum(width, 0, out=width)
    height = np.minimum(bottom_a, bottom_b)
    np.maximum(top_a, top_b, out=other)
    height -= other
    np.maximum(height, 0, out=height)
    intersection = np.multiply(width, height, out=width)
    area_a = np.maximum(right_a - left_a, 0) * np.maximum(bottom_a - top_a, 0)
    area_b = np.maximum(right_b - left_b, 0) * np.maximum(bottom_b - top_b, 0)
    union = np.add(area_a, area_b, out=height)
    union -= intersection
    # An intersection is never larger than the union, so where the union is empty this divides 0 by tiny.
    np.maximum(union, np.finfo(union.dtype).tiny, out=union)
    return np.asarray(np.divide(intersection, union, out=intersection))
