from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as torchvision

from reid.transforms import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, augment, prepare, resize

SIZE = (64, 32)
PLAIN = AugmentConfig(flip=0.0, pad=0, colour=0.0, erasing=0.0)
MEAN, STD = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))


def picture(height: int = 64, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, size=(height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return (127 + 120 * np.stack((np.sin(5 * x), np.cos(4 * y), np.sin(3 * x + 2 * y)), axis=2)).astype(np.uint8)


def pixels(planes: torch.Tensor) -> np.ndarray:
    """Back to (H, W, 3) uint8."""
    return ((planes * STD + MEAN) * 255).round().byte().permute(1, 2, 0).numpy()


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_test_crops_are_scaled_and_normalised() -> None:
    image = picture()
    found = prepare(image, SIZE)
    assert found.shape == (3, *SIZE)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    for channel in range(3):
        for y, x in ((0, 0), (63, 31), (17, 5)):
            wanted = (image[y, x, channel] / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
            assert found[channel, y, x].item() == pytest.approx(wanted, abs=1e-5)
    assert (pixels(found) == image).all()


@pytest.mark.parametrize("size", [(64, 32), (128, 64), (20, 300), (300, 10), (1, 1), (47, 33)])
def test_scaling(size: tuple[int, int]) -> None:
    """As torchvision does it with anti-aliasing, but for how shrinking weighs the neighbours."""
    image = smooth(*size)
    wanted = torchvision.resize(torch.from_numpy(image).permute(2, 0, 1), list(SIZE), antialias=True)
    gap = np.abs(resize(image, SIZE).astype(int) - wanted.permute(1, 2, 0).numpy())
    assert gap.mean() < 2
    assert prepare(image, SIZE).shape == (3, *SIZE)
    assert (pixels(augment(image, SIZE, seeded(), PLAIN)) == resize(image, SIZE)).all()


def test_shrinking_averages() -> None:
    """Fine stripes become grey; without averaging, they would be black or white."""
    stripes = np.zeros((256, 128, 3), np.uint8)
    stripes[::2] = 254
    assert (resize(stripes, SIZE) == 127).all()
    assert (resize(stripes, (64, 256)) == 127).all()  # wider, and yet lower


def test_views_are_taken_as_they_are() -> None:
    image = picture(50, 20)
    assert torch.equal(prepare(image[:, :, ::-1], SIZE), prepare(image[:, :, ::-1].copy(), SIZE))
    assert torch.equal(prepare(image[::-1, ::2], SIZE), prepare(image[::-1, ::2].copy(), SIZE))


def test_training_crops_are_a_function_of_the_generator() -> None:
    image = picture(100, 40)
    before = image.copy()
    config = AugmentConfig(colour=0.2, erasing_fill="pixels")
    found = [augment(image, SIZE, seeded(i), config) for i in range(20)]
    assert all(torch.equal(f, augment(image, SIZE, seeded(i), config)) for i, f in enumerate(found))
    assert len({f.numpy().tobytes() for f in found}) == 20
    assert (image == before).all()
    assert all(f.shape == (3, *SIZE) and f.dtype == torch.float32 and f.is_contiguous() for f in found)


def test_flips() -> None:
    image = picture()
    for share in (0.0, 0.3, 1.0):
        config = AugmentConfig(flip=share, pad=0, erasing=0.0)
        flipped = []
        for seed in range(200):
            found = pixels(augment(image, SIZE, seeded(seed), config))
            flipped.append((found == image[:, ::-1]).all())
            assert flipped[-1] or (found == image).all()
        assert np.mean(flipped) == pytest.approx(share, abs=0.1)


def test_shifted_windows() -> None:
    """Every crop is a window of the padded picture, all places alike likely."""
    image, pad = picture(), 3
    padded = np.zeros((64 + 6, 32 + 6, 3), np.uint8)
    padded[pad:-pad, pad:-pad] = image
    seen = np.zeros((7, 7))
    for seed in range(400):
        found = pixels(augment(image, SIZE, seeded(seed), AugmentConfig(flip=0.0, pad=pad, erasing=0.0)))
        places = [(y, x) for y in range(7) for x in range(7) if (found == padded[y : y + 64, x : x + 32]).all()]
        assert len(places) == 1
        seen[places[0]] += 1
    assert seen.min() > 0
    assert seen.max() < 22  # 8 on average


def rectangle(found: torch.Tensor, plain: torch.Tensor) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of where two crops differ; every pixel of it must."""
    different = (found != plain).any(0).numpy()
    if not different.any():
        return None
    ys, xs = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
    assert different[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].all()
    return int(ys[0]), int(xs[0]), len(ys), len(xs)


def test_random_erasing() -> None:
    image, size = picture(128, 64), (128, 64)
    plain = prepare(image, size)
    config = AugmentConfig(flip=0.0, pad=0)
    found = [rectangle(augment(image, size, seeded(seed), config), plain) for seed in range(800)]
    erased = np.array([f for f in found if f])
    assert len(erased) / 800 == pytest.approx(0.5, abs=0.05)
    top, left, height, width = erased.T
    area, aspect = height * width / (128 * 64), height / width
    slack = 1.1  # sides are whole pixels
    assert 0.02 / slack < area.min() < 0.03
    assert 0.35 < area.max() < 0.4 * slack
    assert 0.3 / slack < aspect.min()
    assert 2.8 < aspect.max() < 3.33 * slack
    assert top.min() == left.min() == 0
    assert (top + height).max() == 128
    assert (left + width).max() == 64


@pytest.mark.parametrize("fill", ["mean", "pixels"])
def test_what_fills_the_erased(fill: str) -> None:
    image, size = picture(128, 64), (128, 64)
    config = AugmentConfig(flip=0.0, pad=0, erasing=1.0, erasing_area=(0.3, 0.3), erasing_fill=fill)
    found = augment(image, size, seeded(4), config)
    top, left, height, width = rectangle(found, prepare(image, size))
    inside = found[:, top : top + height, left : left + width]
    if fill == "mean":
        assert (inside == 0).all()
    else:
        values = pixels(inside).astype(float)
        assert values.mean() == pytest.approx(127.5, abs=4)
        assert values.std() == pytest.approx(256 / np.sqrt(12), abs=4)
        assert values.min() < 5
        assert values.max() > 250


def test_a_rectangle_that_never_fits_is_left_out() -> None:
    image = picture(4, 100)
    config = AugmentConfig(flip=0.0, pad=0, erasing=1.0, erasing_area=(0.4, 0.4), erasing_aspect=(1.0, 1.0))
    assert torch.equal(augment(image, (4, 100), seeded(), config), prepare(image, (4, 100)))
    assert augment(image, (1, 1), seeded(), AugmentConfig(erasing=1.0)).isfinite().all()


def test_colours() -> None:
    """Brightness scales the mean; every value is within what the three shares allow."""
    image = smooth(*SIZE) // 2 + 60
    config = AugmentConfig(flip=0.0, pad=0, colour=0.1, erasing=0.0)
    found = [pixels(augment(image, SIZE, seeded(seed), config)).astype(float) for seed in range(100)]
    ratios = np.array([f.mean() / image.mean() for f in found])
    assert 0.89 < ratios.min() < 0.93
    assert 1.07 < ratios.max() < 1.11
    assert ratios.mean() == pytest.approx(1, abs=0.02)
    spreads = np.array([f.std() / image.std() for f in found])
    assert 0.7 < spreads.min() < 0.95
    assert 1.05 < spreads.max() < 1.4
    grey = np.full((*SIZE, 3), 100, np.uint8)
    for seed in range(20):  # without colour or contrast, brightness is all that changes
        value = pixels(augment(grey, SIZE, seeded(seed), config))
        assert np.ptp(value) == 0
        assert 90 <= value.min() <= 110
    wild = AugmentConfig(flip=0.0, pad=0, colour=1.0, erasing=0.0)
    assert all(augment(picture(), SIZE, seeded(seed), wild).isfinite().all() for seed in range(20))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=str,
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    for call in (lambda: prepare(image, SIZE), lambda: augment(image, SIZE, seeded())):
        with pytest.raises(ValueError, match=r"image: expected uint8 \(h, w, 3\), got"):
            call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"flip: expected a number in \[0, 1\], got 1.5"),
        ({"erasing": -0.1}, "erasing: expected a number in"),
        ({"colour": float("nan")}, "colour: expected a number in"),
        ({"pad": -1}, "pad: expected at least 0, got -1"),
        ({"erasing_area": (0.4, 0.02)}, "erasing_area: expected two numbers above 0 and up to 1.0, the smaller first"),
        ({"erasing_area": (0.0, 0.4)}, "erasing_area: expected"),
        ({"erasing_area": (0.1, 1.4)}, "erasing_area: expected"),
        ({"erasing_aspect": (0.3, float("inf"))}, "erasing_aspect: expected"),
        ({"erasing_fill": "black"}, "erasing_fill: expected mean or pixels, got 'black'"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**settings)


def test_real_crops(shared: Path) -> None:
    files = sorted((shared / "data/reid/pku_market_layout/bounding_box_train").iterdir())[:8]
    for seed, file in enumerate(files):
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        plain, varied = prepare(image, (256, 128)), augment(image, (256, 128), seeded(seed))
        assert plain.shape == varied.shape == (3, 256, 128)
        for planes in (plain, varied):
            assert planes.min() > -2.2
            assert planes.max() < 2.7
        assert not torch.equal(plain, varied)
