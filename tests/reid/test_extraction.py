"""Extraction against one image at a time, and what it says to bad images."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from reid.datasets import load_dataset
from reid.extraction import EncoderDescriber, ExtractionConfig, extract_features
from reid.transforms import prepare
from tests.reid.crops import SIZE, add_images, add_market, tiny_encoder


@pytest.fixture(scope="module")
def describer():
    return EncoderDescriber(tiny_encoder())


@pytest.fixture
def gallery(tmp_path):
    return load_dataset(add_market(tmp_path / "m"), ("gallery",)).gallery


@torch.no_grad()
def by_hand(encoder, image, size=SIZE):
    """The raw feature of an image (H, W, 3) BGR."""
    return encoder(prepare(image[..., ::-1], size)[None])[0].numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_one_image_at_a_time(describer, gallery):
    rows = extract_features(describer, gallery)
    assert rows.shape == (18, 512)
    assert rows.dtype == np.float32
    expected = unit(np.stack([by_hand(describer.encoder, gallery.read(i)) for i in range(len(gallery))]))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_batches_and_threads_change_nothing(describer, gallery):
    expected = extract_features(describer, gallery)
    for batch_size, workers in ((1, 1), (5, 3), (18, 2), (100, 1)):
        rows = extract_features(describer, gallery, ExtractionConfig(batch_size=batch_size, workers=workers))
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_mirror_images_are_averaged_before_normalising(describer, gallery):
    rows = extract_features(describer, gallery, ExtractionConfig(flip=True, batch_size=7))
    image = gallery.read(3)
    both = by_hand(describer.encoder, image) + by_hand(describer.encoder, image[:, ::-1])
    np.testing.assert_allclose(rows[3], unit(both), atol=1e-5)
    assert not np.allclose(rows, extract_features(describer, gallery), atol=1e-4)


def test_each_scale_is_made_from_the_crop(describer, gallery):
    rows = extract_features(describer, gallery, ExtractionConfig(scales=(1, 1.5, 1.25)))
    image = gallery.read(5)
    views = [by_hand(describer.encoder, image, size) for size in ((32, 16), (48, 24), (40, 20))]
    np.testing.assert_allclose(rows[5], unit(np.sum(views, axis=0)), atol=1e-5)


def test_bfloat16_is_near(gallery):
    exact = extract_features(EncoderDescriber(tiny_encoder()), gallery)
    rows = extract_features(EncoderDescriber(tiny_encoder(), precision="bf16"), gallery)
    assert rows.dtype == np.float32
    assert (rows * exact).sum(1).min() > 0.99
    assert not np.array_equal(rows, exact)


def test_few_images_wait_in_memory(describer, gallery):
    class Counting(EncoderDescriber):
        lock, prepared, most, described = threading.Lock(), 0, 0, 0

        def prepare(self, image, scale):
            with self.lock:
                self.prepared += 1
                self.most = max(self.most, self.prepared - self.described)
            return super().prepare(image, scale)

        def describe(self, prepared):
            self.described += len(prepared)
            return super().describe(prepared)

    counting = Counting(describer.encoder)
    extract_features(counting, gallery, ExtractionConfig(batch_size=2, workers=4))
    assert counting.described == len(gallery)
    assert counting.most <= 3 * 2


def test_no_images(describer, gallery):
    assert extract_features(describer, gallery.select(np.zeros(18, bool))).shape == (0, 0)


def test_grey_deep_and_tiny_images(describer, tmp_path):
    add_images(tmp_path, ["0001_c1_1.png"])
    Image.fromarray(np.full((20, 10), 90, np.uint8)).save(tmp_path / "0002_c1_1.png")
    Image.fromarray(np.full((20, 10), 90 * 256, np.uint16)).save(tmp_path / "0003_c1_1.png")
    Image.fromarray(np.full((1, 1, 3), 90, np.uint8)).save(tmp_path / "0004_c1_1.png")
    crops = load_dataset(f"folder:{tmp_path}").train
    rows = extract_features(describer, crops, ExtractionConfig(flip=True, scales=(1, 1.1)))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # All three are the same even grey.
    np.testing.assert_allclose(rows[1:3], rows[[3, 3]], atol=1e-5)


def test_a_truncated_image_is_named(describer, tmp_path):
    add_images(tmp_path, [f"000{i}_c1_1.jpg" for i in range(1, 6)])
    path = tmp_path / "0003_c1_1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    crops = load_dataset(f"folder:{tmp_path}").train
    with pytest.raises(ValueError, match=rf"^{path}: not a whole image"):
        extract_features(describer, crops, ExtractionConfig(batch_size=2))


@pytest.mark.parametrize(("value", "length"), [(torch.nan, "nan"), (torch.inf, "inf"), (0.0, "0")])
def test_a_useless_feature_names_its_image(describer, gallery, value, length):
    class Broken(EncoderDescriber):
        calls = 0

        def describe(self, prepared):
            features = super().describe(prepared)
            self.calls += 1
            if self.calls == 2:
                features[1] *= 0
                features[1] += value
            return features

    path = gallery.paths[5]
    with pytest.raises(ValueError, match=f"^{path}: expected a finite, non-zero feature .* got length {length}$"):
        extract_features(Broken(describer.encoder), gallery, ExtractionConfig(batch_size=4))


def test_an_encoder_of_one_size_refuses_scales(gallery):
    encoder = tiny_encoder()
    original = encoder.forward

    def strict(images):
        assert images.shape[2:] == SIZE, "input height must be 32"
        return original(images)

    encoder.forward = strict
    extract_features(EncoderDescriber(encoder), gallery)
    with pytest.raises(ValueError, match="scales: the encoder takes no images of 35x18"):
        extract_features(EncoderDescriber(encoder), gallery, ExtractionConfig(scales=(1, 1.1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "scales: expected numbers above 0"),
        ({"scales": (1, 0)}, "scales: expected numbers above 0"),
        ({"scales": (1, float("nan"))}, "scales: expected numbers above 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ExtractionConfig(**settings)


def test_impossible_encoders():
    with pytest.raises(ValueError, match="encoder: expected evaluation mode"):
        EncoderDescriber(tiny_encoder().train())
    with pytest.raises(ValueError, match="precision: expected one of fp32, bf16, got 'fp8'"):
        EncoderDescriber(tiny_encoder(), precision="fp8")
