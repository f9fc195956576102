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

# Up to so many pairs it is faster to work out all than to look for those that meet.
_FEW_PAIRS = 3000


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


def centre(xyxy: NDArray[Any]) -> NDArray[Any]:
    """Centres (..., 2) of corner boxes (..., 4)."""
    return np.asarray((xyxy[..., :2] + xyxy[..., 2:]) / 2)


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
    if len(a) * len(b) <= _FEW_PAIRS:
        return iou_of_edges(a.T[:, :, None], b.T)
    row, column, value = overlaps(a, b)
    result = np.zeros((len(a), len(b)), value.dtype)
    result[row, column] = value
    return result


def overlaps(
    a: NDArray[Any], b: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating[Any]]]:
    """The pairs of boxes that overlap, which in a crowd are very few.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy.

    Returns:
        Row of `a`, row of `b` and intersection over union, above 0, of P pairs: three arrays (P,).
    """
    if len(a) * len(b) <= _FEW_PAIRS:
        dense = iou_of_edges(a.T[:, :, None], b.T)
        row, column = dense.nonzero()
        return row, column, dense[row, column]
    row, column = sweep(a, b)
    low, high = np.maximum(a[row, 1], b[column, 1]), np.minimum(a[row, 3], b[column, 3])
    meet = (high > low).nonzero()[0]
    row, column = row[meet], column[meet]
    value = iou_of_edges(a[row].T, b[column].T)
    found = value.nonzero()[0]
    return row[found], column[found], value[found]


def sweep(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `a` and of `b` of all pairs whose horizontal ranges meet, and some more, by going from left to right."""
    order = b[:, 0].argsort()
    left, reach = b[order, 0], np.maximum.accumulate(b[order, 2])
    begin, end = reach.searchsorted(a[:, 0], "right"), left.searchsorted(a[:, 2], "left")
    count = np.maximum(end - begin, 0)
    # Row i meets the places begin[i], begin[i] + 1 ... of `order`; all these runs are laid one behind the other.
    row = np.arange(len(a)).repeat(count)
    column = np.arange(len(row)) + (begin - count.cumsum() + count).repeat(count)
    return row, order[column]


def iou_of_edges(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Intersection over union of boxes given as four arrays of edges (4, ...) that broadcast."""
    left_a, top_a, right_a, bottom_a = a
    left_b, top_b, right_b, bottom_b = b
    width = np.minimum(right_a, right_b) - np.maximum(left_a, left_b)
    height = np.minimum(bottom_a, bottom_b) - np.maximum(top_a, top_b)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = np.maximum(right_a - left_a, 0) * np.maximum(bottom_a - top_a, 0)
    area_b = np.maximum(right_b - left_b, 0) * np.maximum(bottom_b - top_b, 0)
    union = area_a + area_b - intersection
    # An intersection is never larger than the union, so where the union is empty this divides 0 by tiny.
    return np.asarray(intersection / np.maximum(union, np.finfo(intersection.dtype).tiny))
