"""OSNet: the paper's sizes, figures of the published implementation, scores on real crops."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from reid.crops import encode_crops
from reid.datasets import load_dataset
from reid.encoders import load_encoder
from reid.osnet import LiteConv, OSNet
from reid.ranking import evaluate_ranking


def weights(shared: Path, name: str) -> Path:
    return shared / "data" / "weights" / f"osnet_x0_25_{name}.pth"


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    """2.2 M and 0.2 M parameters, as the paper's table of model widths says."""
    assert n_parameters(OSNet(1.0)) == 2_169_508
    assert n_parameters(OSNet(0.25)) == 201_864


def test_the_map_is_what_is_embedded():
    encoder = OSNet(0.25, embedding_dim=16).eval()
    images = torch.rand(2, 3, 64, 32)
    feature_map = encoder.feature_map(images)
    assert feature_map.shape == (2, 128, 4, 2)
    embeddings = encoder.pooled(images, nn.AdaptiveAvgPool2d(1), 1)
    torch.testing.assert_close(encoder.fc(feature_map.mean(dim=(2, 3)))[:, None], embeddings)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_streams_see_omni_scales(count):
    """A stack of t lite convolutions sees 2t + 1 pixels (paper, eq. 2)."""
    torch.manual_seed(0)
    image = torch.zeros(1, 4, 15, 15, requires_grad=True)
    stack = nn.Sequential(*(LiteConv(4) for _ in range(count))).eval()
    for lite in stack:  # positive weights keep the ReLUs open, so that every pixel in reach has a gradient
        for parameter in lite.parameters():
            parameter.data.abs_().add_(0.1)
    stack(image)[0, :, 7, 7].sum().backward()
    assert (image.grad[0].abs().sum(dim=(0, 1)) > 0).sum() == 2 * count + 1


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_shape_and_gradient(width):
    encoder = OSNet(width, embedding_dim=16)
    output = encoder.pooled(torch.rand(2, 3, 64, 32), nn.AdaptiveAvgPool2d(1), 1)
    assert output.shape == (2, 1, encoder.channels) == (2, 1, 16)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("width", [0.0, 0.005, -1.0])
def test_width_without_channels_is_an_error(width):
    with pytest.raises(ValueError, match="width: expected at least"):
        OSNet(width)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "head", "total"),
    [
        ("market1501", [0, 0, 0.7707857, 0.2613827, 0, 0, 0.7250534, 0.4325445], 243.30426),
        ("msmt17", [1.5335245, 0.0000928, 0, 0.8348550, 0.8252437, 0, 0.4163741, 0.2157276], 439.22003),
    ],
)
def test_equals_published_implementation(shared: Path, name, head, total):
    """Figures recorded from torchreid 0.2.5 with the same weights and input."""
    encoder = load_encoder(weights(shared, name))
    assert not encoder.training
    image = torch.randn(1, 3, 256, 128, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        output = encoder(image)[0]
    np.testing.assert_allclose(output[:8], head, rtol=1e-4, atol=1e-5)
    assert float(output.sum()) == pytest.approx(total, rel=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "rank_1", "mean_ap"), [("market1501", 3 / 24, 0.2024), ("msmt17", 5 / 24, 0.3180)])
def test_scores_on_pku_reid(shared: Path, name, rank_1, mean_ap):
    """A regression on real crops of 12 people the weights have never seen; one query may change its place."""
    root = shared / "data" / "reid" / "pku_market_layout"
    data = load_dataset(root, ("query", "gallery"))
    query, gallery = data.query, data.gallery
    encoder = load_encoder(weights(shared, name))
    query_embeddings, gallery_embeddings = (
        encode_crops(encoder, [cv2.imread(str(path)) for path in images.paths]) for images in (query, gallery)
    )
    distances = 1 - query_embeddings @ gallery_embeddings.T
    result = evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids)
    assert result.valid_queries == 24
    assert result.cmc[0] == pytest.approx(rank_1, abs=1.01 / 24)
    assert result.mean_ap == pytest.approx(mean_ap, abs=0.01)
