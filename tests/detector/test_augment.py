import cv2
import numpy as np
import pytest

from detector.augment import Labelled, _warp, affine, canvas, finish, mosaic, paste_crops
from detector.losses import IGNORE_LABEL
from tests.detector.scenes import drawn, extent, noise

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def labelled(image: np.ndarray, boxes: list[tuple[float, ...]], ids: list[int] | None = None) -> Labelled:
    n = len(boxes)
    tags = np.stack((np.zeros(n, np.int64), np.array(ids or range(n), np.int64)), axis=1)
    teacher = np.repeat(tags[:, 1:], 3, axis=1).astype(np.float16)  # says whose row it is
    return Labelled(image, np.array(boxes, np.float32).reshape(-1, 4), tags.reshape(-1, 2), teacher)


def of_colour(image: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """Pixels nearer to a colour than to black, grey, or another colour of `COLOURS`."""
    others = np.array([c for c in COLOURS if c != colour] + [(0, 0, 0), (114, 114, 114)])
    distance = np.abs(image[..., None, :].astype(int) - others).sum(-1).min(-1)
    return np.abs(image.astype(int) - colour).sum(-1) < distance


@pytest.mark.parametrize("scale", [0.2, 0.4, 0.75, 1.0, 1.5, 3.0, 6.0])
def test_boxes_follow_pixels_when_scaled_and_shifted(scale: float) -> None:
    """To half a pixel of the result, at every scale."""
    side = 320 if scale < 1 else 60
    box = (side // 4, side // 5, side // 2, side * 4 // 5)
    offset = np.array([3.0, 5.0])
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
    size = int(side * scale) + 10
    found = _warp(labelled(drawn(side, side, box), [box]), matrix, (0, 0, size, size), canvas(None, size))
    assert found.boxes[0] == pytest.approx(np.array(box) * scale + np.tile(offset, 2), abs=1e-3)
    assert np.abs(extent(found.image[..., 0] > 127) - found.boxes[0]).max() <= 0.75 + (scale < 0.5)
    y, x = np.nonzero(found.image[..., 0] > 127)
    centre = np.array([x.mean() + 0.5, y.mean() + 0.5])
    assert np.abs(centre - (found.boxes[0, :2] + found.boxes[0, 2:]) / 2).max() <= 0.55


@pytest.mark.parametrize("seed", range(25))
def test_boxes_follow_pixels_through_the_affine(seed: int) -> None:
    """A turned rectangle reaches beyond its box, never far, on all sides alike."""
    box = (90, 60, 130, 160)
    found = affine(labelled(drawn(240, 200, box), [box]), 256, np.random.default_rng(seed))
    assert found.image.shape == (256, 256, 3)
    assert found.tags.tolist() == [[0, 0]]
    pixels = extent(of_colour(found.image, (255, 255, 255)))
    width, height = found.boxes[0, 2:] - found.boxes[0, :2]
    tilt = np.sin(np.deg2rad(7))  # rotation and shear together
    assert np.abs(pixels - found.boxes[0])[[0, 2]].max() <= tilt * height / 2 + 1.5
    assert np.abs(pixels - found.boxes[0])[[1, 3]].max() <= tilt * width / 2 + 1.5
    assert np.abs((pixels[:2] + pixels[2:]) / 2 - (found.boxes[0, :2] + found.boxes[0, 2:]) / 2).max() <= 1.0


def test_affine_draws_from_its_ranges() -> None:
    rng = np.random.default_rng(0)
    box = (80, 80, 120, 120)
    shapes = np.array([affine(labelled(drawn(200, 200, box), [box]), 200, rng).boxes[0] for _ in range(200)])
    side = shapes[:, 2] - shapes[:, 0]
    shift = (shapes[:, :2] + shapes[:, 2:]) / 2 - 100
    assert 0.5 * 40 <= side.min() < 0.55 * 40
    assert 1.2 * 40 < side.max() <= 1.25 * 40 * 1.07
    assert 18 < np.abs(shift).max() <= 20 + 1e-3


@pytest.mark.parametrize("seed", range(15))
def test_people_in_a_mosaic_keep_their_box_and_identity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for k, colour in enumerate(COLOURS):
        width, height = rng.integers(80, 400, 2)
        box = (width // 3, height // 4, width // 3 * 2, height // 4 * 3)
        parts.append(labelled(drawn(width, height, box, colour=colour), [box], [10 + k]))
    found = mosaic(parts, 256, rng)
    assert found.image.shape == (256, 256, 3)
    assert len(found.boxes) == len(found.tags) == len(found.teacher) >= 3
    for box, (_, identity), teacher in zip(found.boxes, found.tags, found.teacher, strict=True):
        assert (teacher == identity).all()
        pixels = extent(of_colour(found.image, COLOURS[identity - 10]))
        assert np.abs(pixels - box).max() <= 2.0, (identity, pixels, box)


@pytest.mark.parametrize("seed", range(5))
def test_each_image_of_a_mosaic_stays_in_its_window(seed: int) -> None:
    parts = [labelled(np.full((100, 150, 3), 50 * k + 50, np.uint8), []) for k in range(4)]
    image = mosaic(parts, 128, np.random.default_rng(seed)).image
    top_left, top_right, bottom_left, bottom_right = (extent(image[..., 0] == 50 * k + 50) for k in range(4))
    assert max(top_left[2], bottom_left[2]) <= min(top_right[0], bottom_right[0])
    assert max(top_left[3], top_right[3]) <= min(bottom_left[1], bottom_right[1])


@pytest.mark.parametrize(
    ("shift", "label"),
    [(0, 0), (-21, 0), (-35, IGNORE_LABEL)],  # 100 %, 65 % and 30 - 5 % visible
)
def test_the_barely_visible_are_regions_to_be_ignored(shift: int, label: int) -> None:
    box = (10, 20, 50, 80)
    matrix = np.array([[1.0, 0, shift - (shift == -35) * 5], [0, 1, 0]])
    found = _warp(labelled(drawn(100, 100, box), [box], [7]), matrix, (0, 0, 100, 100), canvas(None, 100))
    assert found.tags.tolist() == [[label, 7]]
    assert found.boxes[0, 0] == max(10 + matrix[0, 2], 0)


def test_the_tiny_are_regions_to_be_ignored() -> None:
    boxes = [(0, 0, 80, 80), (0, 0, 15.9, 90)]  # 20 and 3.975 pixels wide after
    quarter = np.array([[0.25, 0, 0], [0, 0.25, 0]])
    found = _warp(labelled(noise(100, 100), boxes), quarter, (0, 0, 25, 25), canvas(None, 25))
    assert found.tags[:, 0].tolist() == [0, IGNORE_LABEL]


def test_people_cut_off_whole_are_gone_with_their_rows() -> None:
    boxes = [(0, 0, 20, 40), (60, 60, 80, 100), (0, 10, 30, 40)]
    matrix = np.array([[1.0, 0, -50], [0, 1, 0]])
    found = _warp(labelled(noise(100, 100), boxes, [3, 4, 5]), matrix, (0, 0, 100, 100), canvas(None, 100))
    assert found.tags.tolist() == [[0, 4]]
    assert found.teacher.tolist() == [[4, 4, 4]]
    assert found.boxes.tolist() == [[10, 60, 30, 100]]


def test_flipping_takes_the_boxes_along() -> None:
    box = (10, 20, 30, 90)
    sides = set()
    for seed in range(12):
        found = finish(labelled(drawn(100, 100, box), [box]), np.random.default_rng(seed), flip=True)
        assert extent(found.image.max(axis=2) > 80).tolist() == found.boxes[0].tolist()
        sides.add(int(found.boxes[0, 0]))
        still = finish(labelled(drawn(100, 100, box), [box]), np.random.default_rng(seed), flip=False)
        assert still.boxes[0].tolist() == list(box)
    assert sides == {10, 70}


def test_inputs_stay_as_they_are() -> None:
    box = (10, 20, 30, 90)
    sample = labelled(drawn(100, 100, box), [box])
    before = (sample.image.copy(), sample.boxes.copy(), sample.tags.copy())
    rng = np.random.default_rng(0)
    for _ in range(4):
        finish(affine(sample, 32, rng), rng, flip=True)
        finish(sample, rng, flip=True)
        mosaic([sample] * 4, 64, rng)
    assert all(np.array_equal(a, b) for a, b in zip(before, (sample.image, sample.boxes, sample.tags), strict=True))


def test_colour_changes_stay_in_their_ranges() -> None:
    image = np.full((4, 4, 3), (60, 120, 180), np.uint8)
    wanted = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[0, 0].astype(float)
    grey = 0
    for seed in range(200):
        found = finish(labelled(image, []), np.random.default_rng(seed), flip=False).image
        hue, saturation, value = cv2.cvtColor(found, cv2.COLOR_BGR2HSV)[0, 0].astype(float)
        assert 0.6 * wanted[2] - 2 <= value <= 1.4 * wanted[2] + 2
        if saturation == 0:
            grey += 1
            continue
        assert 0.6 * wanted[1] - 3 <= saturation <= 1.4 * wanted[1] + 3
        assert abs(hue - wanted[0]) <= 3
    assert 8 <= grey <= 35  # one in ten


@pytest.mark.parametrize("seed", range(8))
def test_pasted_crops_lie_where_their_boxes_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crops = []
    for k in range(10):
        height, width = rng.integers(20, 130), rng.integers(10, 60)
        crops.append(labelled(np.full((height, width, 3), 255, np.uint8), [(0, 0, width, height)], [k]))
    found = paste_crops(np.zeros((192, 192, 3), np.uint8), crops, rng)
    assert found.tags.tolist() == [[0, k] for k in range(10)]
    assert found.teacher[:, 0].tolist() == list(range(10))
    bright = found.image.max(axis=2) > 100  # colour changes leave white light
    painted = np.zeros((192, 192), int)
    for x1, y1, x2, y2 in found.boxes.astype(int):
        assert 0 <= x1 < x2 <= 192
        assert 0 <= y1 < y2 <= 192
        painted[y1:y2, x1:x2] += 1
    assert painted.max() == 1  # nobody covers anybody
    assert np.array_equal(bright, painted == 1)


def test_a_canvas_shows_nobody() -> None:
    assert (canvas(None, 32) == 114).all()
    ground = labelled(noise(120, 160), [])
    blurred = canvas(ground, 64)
    assert blurred.shape == (64, 64, 3)
    assert np.abs(np.diff(blurred.astype(int), axis=0)).max() < 40
