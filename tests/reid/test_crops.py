"""Crops in memory: resizing, normalising, batches, errors."""

import copy

import numpy as np
import pytest
import torch

from reid.crops import encode_crops
from reid.encoders import Encoder
from reid.transforms import prepare
from tests.reid.crops import tiny_encoder


@pytest.fixture(scope="module")
def small() -> Encoder:
    return tiny_encoder(input_size=(64, 32))


@pytest.fixture
def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((256, 128), (40, 20), (600, 90))]


def test_encode_gives_unit_rows_in_order(small, crops):
    embeddings = encode_crops(small, crops)
    assert (embeddings.shape, embeddings.dtype) == ((3, 512), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encode_crops(small, crops[::-1]), embeddings[::-1], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_encode_does_not_depend_on_batching(small, crops, batch_size):
    np.testing.assert_allclose(encode_crops(small, crops, batch_size), encode_crops(small, crops), atol=1e-5)


def test_crops_are_prepared_as_data_sets_are(small, crops):
    seen = []
    hook = small.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encode_crops(small, crops, batch_size=2)
    hook.remove()
    assert [len(images) for images in seen] == [2, 1]
    assert torch.equal(torch.cat(seen), torch.stack([prepare(crop[..., ::-1], (64, 32)) for crop in crops]))


def test_encode_takes_views(small, crops):
    view = crops[2][100:500:2, ::-1]
    np.testing.assert_allclose(encode_crops(small, [view]), encode_crops(small, [view.copy()]), atol=1e-6)


def test_encode_of_no_crops(small):
    assert encode_crops(small, []).shape == (0, 512)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((40, 20), np.uint8),
        np.zeros((40, 20, 4), np.uint8),
        np.zeros((40, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
    ],
)
def test_encode_names_the_bad_crop(small, crops, bad):
    with pytest.raises(ValueError, match=r"crops\[1\]: expected uint8 \(h, w, 3\)"):
        encode_crops(small, [crops[0], bad])


def test_encode_rejects_training_mode_and_empty_batches(small, crops):
    with pytest.raises(ValueError, match="encoder: expected evaluation mode"):
        encode_crops(copy.deepcopy(small).train(), crops)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        encode_crops(small, crops, batch_size=0)


@pytest.mark.parametrize("gain", [0.0, float("nan"), float("inf")])
def test_encode_names_the_crop_without_a_usable_embedding(small, crops, gain):
    encoder = copy.deepcopy(small)
    encoder.register_forward_hook(lambda module, args, output: output * torch.tensor([[1.0], [gain], [1.0]]))
    with pytest.raises(ValueError, match=r"crops\[1\]: expected a finite, non-zero embedding"):
        encode_crops(encoder, crops)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_encode_on_cuda_equals_cpu(small, crops):
    np.testing.assert_allclose(encode_crops(copy.deepcopy(small).cuda(), crops), encode_crops(small, crops), atol=1e-3)
