"""Heat maps against what they are defined as."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reid.datasets import load_dataset
from reid.extraction import EncoderDescriber, extract_features
from reid.heat_maps import activation_maps, blend, draw_heat_maps, similarity_maps
from reid.pictures import rank_list
from reid.ranking import evaluate_ranking
from tests.reid.crops import add_market, tiny_encoder


def images(count=3, size=(64, 32)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder(name="resnet50", neck="bn", input_size=(64, 32))


def test_activation_is_the_length_at_each_place(encoder):
    maps = activation_maps(encoder, images())
    with torch.no_grad():
        features = encoder.backbone.feature_map(images())
    assert maps.shape == (3, 4, 2)
    for b, y, x in np.ndindex(3, 4, 2):
        assert maps[b, y, x] == pytest.approx(float(features[b, :, y, x].square().sum().sqrt()), rel=1e-5)


def test_similarity_is_grad_cam(encoder):
    targets = torch.randn(3, 2048, generator=torch.Generator().manual_seed(1))
    maps = similarity_maps(encoder, images(), targets)
    for b in range(3):
        features = encoder.feature_map(images()[b : b + 1]).detach().requires_grad_()
        described = encoder.necks[0](features.mean(dim=(2, 3)))
        F.cosine_similarity(described, targets[b : b + 1]).backward()
        expected = torch.zeros(4, 2)
        for channel in range(2048):
            expected += features.grad[0, channel].mean() * features[0, channel].detach()
        torch.testing.assert_close(maps[b], expected.clamp(min=0), rtol=1e-3, atol=1e-6)
    assert maps.max() > 0


def test_an_encoder_is_left_as_it_was():
    encoder = tiny_encoder(input_size=(64, 32))
    before = encoder(images()[:1])
    with torch.no_grad():
        similarity_maps(encoder, images(), torch.ones(3, 512))
    assert "feature_map" not in vars(encoder.backbone)
    assert all(p.grad is None for p in encoder.parameters())
    torch.testing.assert_close(encoder(images()[:1]), before)
    with pytest.raises(RuntimeError):
        similarity_maps(encoder, images(), torch.ones(3, 7))
    assert "feature_map" not in vars(encoder.backbone)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"name": "densenet121"},
        {"parts": 6, "neck": "linear", "embedding_size": 8, "name": "resnet50", "compared": "pooled"},
        {"name": "resnet50_ibn", "pooling": "gem"},
    ],
)
def test_convolutional_encoders(settings):
    encoder = tiny_encoder(**{"input_size": (96, 48), **settings}).requires_grad_(False)
    given = images(2, (96, 48))
    targets = encoder(given.flip(0))
    for maps in (activation_maps(encoder, given), similarity_maps(encoder, given, targets)):
        assert maps.shape[0] == 2
        assert maps.min() >= 0
        assert maps.isfinite().all()


def test_a_transformer_has_activation_alone():
    pytest.importorskip("timm")
    encoder = tiny_encoder(name="vit_small", input_size=(32, 16))
    assert activation_maps(encoder, images(1, (32, 16))).shape == (1, 2, 1)
    with pytest.raises(ValueError, match="vit_small does not pool its feature map"):
        similarity_maps(encoder, images(1, (32, 16)), torch.ones(1, 384))


def test_blend_goes_from_blue_to_red():
    image = np.zeros((40, 20, 3), np.uint8)
    heat = np.zeros((4, 2))
    heat[3] = 5
    shown = blend(image, heat).astype(int)
    assert shown.shape == image.shape
    assert shown[2, 10, 0] > shown[2, 10, 2]  # blue above
    assert shown[37, 10, 2] > shown[37, 10, 0]  # red below
    assert np.ptp(blend(image, np.full((4, 2), 3.0)), axis=(0, 1)).max() == 0


def test_a_sheet(tmp_path):
    data = load_dataset(add_market(tmp_path / "m"), ("query", "gallery"))
    describer = EncoderDescriber(tiny_encoder())
    features = {name: extract_features(describer, crops) for name, crops in data.splits.items()}
    distances = 1 - features["query"] @ features["gallery"].T
    result = evaluate_ranking(distances, data.query.pids, data.gallery.pids, data.query.camids, data.gallery.camids)
    lists = [rank_list(distances, place, data.query, data.gallery) for place in range(3)]
    draw_heat_maps(tmp_path / "h.png", describer, lists, data.query, data.gallery, result)
    sheet = cv2.imread(str(tmp_path / "h.png"))
    assert sheet.shape[0] > 3 * 200
    assert sheet.shape[1] > 6 * 80
