import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tracker import boxes

coordinate = st.floats(-1e4, 1e4)
size = st.floats(0.5, 1e4)
tlwh_rows = st.lists(st.tuples(coordinate, coordinate, size, size), min_size=1, max_size=6).map(np.array)


def iou_of_two(a, b):
    """Written from the definition, one pair at a time."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a + area_b - width * height)


def test_known_conversions():
    xyxy = np.array([[10.0, 20.0, 40.0, 80.0]])
    assert boxes.xyxy_to_tlwh(xyxy).tolist() == [[10, 20, 30, 60]]
    assert boxes.xyxy_to_cxcywh(xyxy).tolist() == [[25, 50, 30, 60]]
    assert boxes.xyxy_to_xyah(xyxy).tolist() == [[25, 50, 0.5, 60]]


@pytest.mark.parametrize("name", ["tlwh", "cxcywh", "xyah"])
@given(tlwh=tlwh_rows)
def test_round_trips(name, tlwh):
    xyxy = boxes.tlwh_to_xyxy(tlwh)
    before = xyxy.copy()
    there = getattr(boxes, f"xyxy_to_{name}")(xyxy)
    back = getattr(boxes, f"{name}_to_xyxy")(there)
    np.testing.assert_allclose(back, xyxy, atol=1e-7)
    np.testing.assert_array_equal(xyxy, before)


@pytest.mark.parametrize("name", ["tlwh_to_xyxy", "xyxy_to_tlwh", "xyah_to_xyxy", "cxcywh_to_xyxy"])
def test_conversions_take_no_boxes_and_leave_their_input(name):
    convert = getattr(boxes, name)
    assert convert(np.zeros((0, 4))).shape == (0, 4)
    given_boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    convert(given_boxes)
    assert given_boxes.tolist() == [[1, 2, 3, 4]]


def test_iou_has_no_extra_pixel():
    a = np.array([[0.0, 0.0, 10.0, 10.0]])
    b = np.array([[5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    np.testing.assert_allclose(boxes.iou(a, b), [[1 / 3, 0, 1]])


def test_iou_of_boxes_without_area_is_zero():
    flat = np.array([[5.0, 5.0, 5.0, 5.0], [0.0, 5.0, 10.0, 5.0], [8.0, 8.0, 2.0, 2.0]])  # point, line, inverted
    whole = np.array([[0.0, 0.0, 10.0, 10.0]])
    with np.errstate(all="raise"):
        assert not boxes.iou(flat, flat).any()
        assert not boxes.iou(flat, whole).any()


def test_iou_of_nothing():
    some = np.ones((3, 4))
    assert boxes.iou(np.zeros((0, 4)), some).shape == (0, 3)
    assert boxes.iou(some, np.zeros((0, 4))).shape == (3, 0)


@given(tlwh_rows, tlwh_rows)
def test_iou_equals_its_definition(a, b):
    a, b = boxes.tlwh_to_xyxy(a), boxes.tlwh_to_xyxy(b)
    overlap = boxes.iou(a, b)
    expected = [[iou_of_two(one, other) for other in b] for one in a]
    np.testing.assert_allclose(overlap, expected, atol=1e-9)
    np.testing.assert_allclose(overlap, boxes.iou(b, a).T)


@pytest.fixture(scope="module")
def sweep_always():
    """Few pairs are looked for by the sweep, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "_FEW_PAIRS", -1)
        yield


# Corners of a coarse grid: equal edges, boxes that touch, lie within each other, have no area, or are inverted.
on_a_grid = st.lists(st.tuples(*[st.integers(0, 4)] * 4), max_size=12).map(
    lambda rows: np.array(rows, np.float64).reshape(-1, 4)
)


@given(on_a_grid, on_a_grid)
def test_iou_by_the_sweep_equals_its_definition(sweep_always, a, b):
    overlap = boxes.iou(a, b)
    expected = np.array([[iou_of_two(one, other) for other in b] for one in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(overlap, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [5, 60, 600])
def test_iou_of_a_crowd_is_that_of_its_parts(dtype, size):
    """From hardly any pair that meets to nearly all; one row alone is few enough to be worked out whole."""
    rng = np.random.default_rng(size)
    a, b = (
        boxes.tlwh_to_xyxy(np.hstack([rng.uniform(0, 1000, (count, 2)), rng.gamma(2, size / 2, (count, 2))]))
        for count in (90, 150)
    )
    a[::17, 2] = a[::17, 0] - 5  # inverted
    b[::19, 3] = b[::19, 1]  # flat
    a[3], b[4] = (-1e6, -1e6, 1e6, 1e6), a[5]
    a, b = a.astype(dtype), b.astype(dtype)
    overlap = boxes.iou(a, b)
    assert overlap.dtype == dtype and overlap.shape == (90, 150)
    np.testing.assert_array_equal(overlap, np.concatenate([boxes.iou(row[None], b) for row in a]))
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for row, column in rng.integers(0, (90, 150), (300, 2)):
        pair = a[row].astype(np.float64), b[column].astype(np.float64)
        assert overlap[row, column] == pytest.approx(iou_of_two(*pair), abs=tolerance)


@given(arrays(np.float64, (4, 4), elements=coordinate))
def test_iou_stays_in_range_for_any_corners(any_corners):
    overlap = boxes.iou(any_corners, any_corners)
    assert (overlap >= 0).all() and (overlap <= 1 + 1e-9).all()


def test_grown_boxes_keep_their_centre_and_shape():
    box = np.array([[10.0, 20.0, 50.0, 120.0]])
    assert boxes.expand(box, 0.0).tolist() == box.tolist()
    assert boxes.expand(box, 0.25).tolist() == [[0, -5, 60, 145]]  # each side by a quarter of 40 or 100
    np.testing.assert_allclose(boxes.expand(box, 0.0, 126.4911064), [[-10, -30, 70, 170]])  # √(80 · 200)
    assert boxes.expand(box, 0.0, 63).tolist() == box.tolist()  # larger than that
    np.testing.assert_allclose(boxes.expand(box, 0.5, 126.4911064), [[-10, -30, 70, 170]])  # the larger of both


@given(tlwh_rows, st.floats(0, 3), st.sampled_from([0.0, 5.0, 100.0, 5e3]))
def test_grown_boxes_equal_their_definition(tlwh, share, least):
    xyxy = boxes.tlwh_to_xyxy(tlwh)
    before = xyxy.copy()
    grown = boxes.expand(xyxy, share, least)
    for (left, top, width, height), box in zip(tlwh, grown, strict=True):
        factor = max(1 + 2 * share, least / (width * height) ** 0.5)
        more_width, more_height = width * (factor - 1) / 2, height * (factor - 1) / 2
        expected = [left - more_width, top - more_height, left + width + more_width, top + height + more_height]
        np.testing.assert_allclose(box, expected, rtol=1e-7, atol=1e-6)
    np.testing.assert_array_equal(xyxy, before)


def test_growing_no_box_single_precision_and_boxes_without_area():
    assert boxes.expand(np.zeros((0, 4)), 0.3, 10.0).shape == (0, 4)
    single = boxes.expand(np.array([[0, 0, 3, 4]], np.float32), 0.5, 2.0)
    assert single.dtype == np.float32 and single.tolist() == [[-1.5, -2, 4.5, 6]]
    with np.errstate(all="raise"):
        flat = np.array([[5.0, 5.0, 5.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
        assert np.isfinite(boxes.expand(flat, 0.3)).all()


@pytest.mark.parametrize("count", [0, 1, 12, 120])  # the last one by the sweep
def test_overlaps_are_the_pairs_above_zero(count):
    rng = np.random.default_rng(count)
    a, b = (
        boxes.tlwh_to_xyxy(np.hstack([rng.integers(0, 300, (n, 2)), rng.integers(0, 40, (n, 2))])).astype(np.float64)
        for n in (count, 2 * count)
    )
    row, column, value = boxes.overlaps(a, b)
    dense = boxes.iou(a, b)
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == len(row) == np.count_nonzero(dense)
    assert (value > 0).all()
    np.testing.assert_array_equal(value, dense[row, column])
