import cv2
import numpy as np
import pytest

from configs import dump_config, load_config
from detector.augment import Augmentation, Labelled, _warp, affine, canvas, finish, mosaic, paste_crops
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
    found = _warp(labelled(drawn(side, side, box), [box]), matrix, (0, 0, size, size), canvas(None, (size, size)), 114)
    assert found.boxes[0] == pytest.approx(np.array(box) * scale + np.tile(offset, 2), abs=1e-3)
    assert np.abs(extent(found.image[..., 0] > 127) - found.boxes[0]).max() <= 0.75 + (scale < 0.5)
    y, x = np.nonzero(found.image[..., 0] > 127)
    centre = np.array([x.mean() + 0.5, y.mean() + 0.5])
    assert np.abs(centre - (found.boxes[0, :2] + found.boxes[0, 2:]) / 2).max() <= 0.55


@pytest.mark.parametrize("seed", range(25))
def test_boxes_follow_pixels_through_the_affine(seed: int) -> None:
    """A turned rectangle reaches beyond its box, never far, on all sides alike."""
    box = (90, 60, 130, 160)
    found = affine(labelled(drawn(240, 200, box), [box]), (320, 256), np.random.default_rng(seed))
    assert found.image.shape == (256, 320, 3)
    assert found.tags.tolist() == [[0, 0]]
    pixels = extent(of_colour(found.image, (255, 255, 255)))
    width, height = found.boxes[0, 2:] - found.boxes[0, :2]
    tilt = np.sin(np.deg2rad(7.5))  # rotation and shear together
    assert np.abs(pixels - found.boxes[0])[[0, 2]].max() <= tilt * height / 2 + 1.5
    assert np.abs(pixels - found.boxes[0])[[1, 3]].max() <= tilt * width / 2 + 1.5
    assert np.abs((pixels[:2] + pixels[2:]) / 2 - (found.boxes[0, :2] + found.boxes[0, 2:]) / 2).max() <= 1.0


def drawn_boxes(ranges: Augmentation, size: tuple[int, int], box: tuple[int, ...] = (80, 80, 120, 120)) -> np.ndarray:
    """What becomes of one box of a 200x200 image, 200 times: cx, cy, w, h as shares of the canvas's shorter side."""
    rng = np.random.default_rng(0)
    sample = labelled(drawn(200, 200, box), [box])
    boxes = np.array([affine(sample, size, rng, ranges).boxes[0] for _ in range(200)])
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


@pytest.mark.parametrize("size", [(200, 200), (300, 200), (200, 280)])
def test_affine_draws_from_its_ranges(size: tuple[int, int]) -> None:
    """The image fits the shorter side; it shifts by a tenth of each."""
    shapes = drawn_boxes(Augmentation(), size)
    side = shapes[:, 2]
    assert 0.5 * 40 <= side.min() < 0.55 * 40
    assert 1.2 * 40 < side.max() <= 1.25 * 40 * 1.08
    shift = np.abs(shapes[:, :2] / size - 0.5).max(0)
    assert (shift > 0.09).all()
    assert (shift <= 0.1 + 1e-5).all()


def test_ranges_of_nothing_change_nothing() -> None:
    still = Augmentation(rotation=0, scale=(1, 1), shear=0, shift=0, hue=0, saturation=0, value=0, grey=0, flip=0)
    sample = labelled(noise(60, 80), [(10, 20, 30, 50)])
    rng = np.random.default_rng(0)
    found = finish(affine(sample, (160, 120), rng, still), rng, still, flip=True)
    assert found.boxes.tolist() == [[20, 40, 60, 100]]
    wanted = cv2.resize(sample.image, (160, 120)).astype(int)
    assert np.abs(found.image.astype(int) - wanted)[2:-2, 2:-2].max() <= 6  # colour goes there and back


@pytest.mark.parametrize(
    ("change", "moved"),
    [({"rotation": 20.0}, "w"), ({"shear": 10.0}, "w"), ({"scale": (0.8, 1.2)}, "w"), ({"shift": 0.2}, "c")],
)
def test_each_range_changes_its_own(change: dict, moved: str) -> None:
    still = {"rotation": 0.0, "scale": (1.0, 1.0), "shear": 0.0, "shift": 0.0}
    shapes = drawn_boxes(Augmentation(**(still | change)), (200, 200))
    centre, side = np.ptp(shapes[:, :2], axis=0), np.ptp(shapes[:, 2:], axis=0)
    assert ((centre > 40).all(), (side > 1).all()) == (moved == "c", moved == "w")
    assert (centre < 0.01).all() or moved == "c"


def test_flips_and_grey_come_as_often_as_asked() -> None:
    sample = labelled(np.full((10, 20, 3), (20, 90, 200), np.uint8), [(0, 0, 5, 10)])
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        ranges = Augmentation(flip=share, grey=share)
        made = [finish(sample, rng, ranges, flip=True) for _ in range(300)]
        assert np.mean([m.boxes[0, 0] == 15 for m in made]) == pytest.approx(share, abs=0.08)
        assert np.mean([np.ptp(m.image[0, 0]) == 0 for m in made]) == pytest.approx(share, abs=0.08)


def test_published_ranges_can_be_set_from_a_file() -> None:
    """JDE's: saturation and value by half, 5 degrees, a tenth, 0.5 to 1.2, 2 degrees of shear, mirrored or not."""
    given = ["mosaic=0", "scale=[0.5, 1.2]", "hue=0", "saturation=0.5", "value=0.5", "grey=0"]
    schema = {"augmentation": Augmentation}
    config = load_config(None, [f"augmentation.{change}" for change in given], schema)
    jde = Augmentation(0.0, 5.0, (0.5, 1.2), 2.0, 0.1, 0.0, 0.5, 0.5, 0.0, 0.5)
    assert config["augmentation"] == jde
    assert dump_config(config)["augmentation"]["scale"] == [0.5, 1.2]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mosaic", 1.5, r"mosaic: expected a number in \[0, 1\], got 1.5"),
        ("flip", float("nan"), "flip: expected"),
        ("rotation", -1.0, r"rotation: expected a number in \[0, 180\], got -1"),
        ("shear", 46.0, "shear: expected"),
        ("scale", (1.2, 0.5), "scale: expected two positive numbers, the smaller first"),
        ("scale", (0.0, 0.5), "scale: expected"),
    ],
)
def test_ranges_that_cannot_be(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**{field: value})


@pytest.mark.parametrize("seed", range(15))
def test_people_in_a_mosaic_keep_their_box_and_identity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for k, colour in enumerate(COLOURS):
        width, height = rng.integers(80, 400, 2)
        box = (width // 3, height // 4, width // 3 * 2, height // 4 * 3)
        parts.append(labelled(drawn(width, height, box, colour=colour), [box], [10 + k]))
    found = mosaic(parts, (256, 256) if seed % 2 else (384, 224), rng)
    assert found.image.shape == ((256, 256, 3) if seed % 2 else (224, 384, 3))
    assert len(found.boxes) == len(found.tags) == len(found.teacher) >= 3
    for box, (_, identity), teacher in zip(found.boxes, found.tags, found.teacher, strict=True):
        assert (teacher == identity).all()
        pixels = extent(of_colour(found.image, COLOURS[identity - 10]))
        assert np.abs(pixels - box).max() <= 2.0, (identity, pixels, box)


@pytest.mark.parametrize("seed", range(5))
def test_each_image_of_a_mosaic_stays_in_its_window(seed: int) -> None:
    parts = [labelled(np.full((100, 150, 3), 50 * k + 50, np.uint8), []) for k in range(4)]
    image = mosaic(parts, (160, 128), np.random.default_rng(seed)).image
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
    found = _warp(labelled(drawn(100, 100, box), [box], [7]), matrix, (0, 0, 100, 100), canvas(None, (100, 100)), 114)
    assert found.tags.tolist() == [[label, 7]]
    assert found.boxes[0, 0] == max(10 + matrix[0, 2], 0)


def test_the_tiny_are_regions_to_be_ignored() -> None:
    boxes = [(0, 0, 80, 80), (0, 0, 15.9, 90)]  # 20 and 3.975 pixels wide after
    quarter = np.array([[0.25, 0, 0], [0, 0.25, 0]])
    found = _warp(labelled(noise(100, 100), boxes), quarter, (0, 0, 25, 25), canvas(None, (25, 25)), 114)
    assert found.tags[:, 0].tolist() == [0, IGNORE_LABEL]


def test_people_cut_off_whole_are_gone_with_their_rows() -> None:
    boxes = [(0, 0, 20, 40), (60, 60, 80, 100), (0, 10, 30, 40)]
    matrix = np.array([[1.0, 0, -50], [0, 1, 0]])
    found = _warp(labelled(noise(100, 100), boxes, [3, 4, 5]), matrix, (0, 0, 100, 100), canvas(None, (100, 100)), 114)
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
        finish(affine(sample, (32, 32), rng), rng, flip=True)
        finish(sample, rng, flip=True)
        mosaic([sample] * 4, (64, 64), rng)
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
        h, w = rng.integers(20, 130), rng.integers(10, 60)
        crops.append(labelled(np.full((h, w, 3), 255, np.uint8), [(0, 0, w, h)], [k]))
    width, height = ((192, 192), (320, 128), (128, 256))[seed % 3]
    found = paste_crops(np.zeros((height, width, 3), np.uint8), crops, rng)
    assert found.tags.tolist() == [[0, k] for k in range(10)]
    assert found.teacher[:, 0].tolist() == list(range(10))
    bright = found.image.max(axis=2) > 100  # colour changes leave white light
    painted = np.zeros((height, width), int)
    for x1, y1, x2, y2 in found.boxes.astype(int):
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        painted[y1:y2, x1:x2] += 1
    assert painted.max() == 1  # nobody covers anybody
    assert np.array_equal(bright, painted == 1)


def test_a_canvas_shows_nobody() -> None:
    assert (canvas(None, (40, 32)) == 114).all()
    ground = labelled(noise(120, 160), [])
    blurred = canvas(ground, (96, 64))
    assert blurred.shape == (64, 96, 3)
    assert np.abs(np.diff(blurred.astype(int), axis=0)).max() < 40


def test_the_grey_is_the_networks() -> None:
    """Darknet-53 was trained on 127.5, the compact family on 114."""
    rng = np.random.default_rng(0)
    sample = labelled(np.full((40, 40, 3), 255, np.uint8), [[5, 5, 20, 30]])
    small = Augmentation(scale=(0.5, 0.5), shift=0, rotation=0, shear=0)
    assert (affine(sample, (64, 64), rng, small, 128).image[0, 0] == 128).all()
    assert (affine(sample, (64, 64), rng, small).image[0, 0] == 114).all()
    assert (canvas(None, (8, 8), 128) == 128).all()
