"""OSNet and crop encoding: published weights, figures of the published implementation, errors."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from reid.datasets import read_market
from reid.encoders import IMAGENET_MEAN, IMAGENET_STD, LiteConv, OSNet, encode_crops, load_osnet
from reid.ranking import evaluate_ranking


def weights(shared: Path, name: str) -> Path:
    return shared / "data" / "weights" / f"osnet_x0_25_{name}.pth"


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def small() -> OSNet:
    torch.manual_seed(0)
    return OSNet(width=0.25, embedding_dim=32).eval()


@pytest.fixture
def crops() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((256, 128), (40, 20), (600, 90))]


class Mean(nn.Module):
    """An encoder whose embedding says what it was given: the mean colour of the normalised image."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape))
        return images.mean(dim=(2, 3)) * self.gain


def test_parameter_counts():
    """2.2 M and 0.2 M parameters, as the paper's table of model widths says."""
    assert n_parameters(OSNet(1.0)) == 2_169_508
    assert n_parameters(OSNet(0.25)) == 201_864


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
def test_forward_shape_and_gradient(width):
    encoder = OSNet(width, embedding_dim=16)
    output = encoder(torch.rand(2, 3, 64, 32))
    assert output.shape == (2, 16)
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
    encoder = load_osnet(weights(shared, name))
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
    query, gallery = read_market(root, "query"), read_market(root, "gallery")
    encoder = load_osnet(weights(shared, name))
    query_embeddings, gallery_embeddings = (
        encode_crops(encoder, [cv2.imread(str(path)) for path in images.paths]) for images in (query, gallery)
    )
    distances = 1 - query_embeddings @ gallery_embeddings.T
    result = evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids)
    assert result.valid_queries == 24
    assert result.cmc[0] == pytest.approx(rank_1, abs=1.01 / 24)
    assert result.mean_ap == pytest.approx(mean_ap, abs=0.01)


@pytest.mark.parametrize(("width", "dim"), [(0.25, 32), (0.5, 64)])
def test_load_reads_size_from_file_and_drops_classifier(tmp_path, width, dim):
    saved = OSNet(width, dim).eval()
    path = tmp_path / "osnet.pth"
    torch.save({**saved.state_dict(), "classifier.weight": torch.ones(3, dim), "classifier.bias": torch.ones(3)}, path)
    loaded = load_osnet(path)
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    image = torch.rand(2, 3, 64, 32)
    torch.testing.assert_close(loaded(image), saved(image))


def test_load_names_what_does_not_fit(small, tmp_path):
    state = dict(small.state_dict())
    del state["conv4.1.gate.fc2.bias"]
    state["conv9.weight"] = torch.zeros(1)
    state["conv5.bn.bias"] = torch.zeros(7)
    path = tmp_path / "wrong.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="not an OSNet state dict") as error:
        load_osnet(path)
    message = str(error.value)
    assert str(path) in message
    assert "missing: conv4.1.gate.fc2.bias" in message
    assert "unexpected: conv9.weight" in message
    assert "mis-shaped: conv5.bn.bias (7,) instead of (128,)" in message


@pytest.mark.parametrize("key", ["conv1.conv.weight", "fc.0.weight"])
@pytest.mark.parametrize("shape", [(), (4,), (0, 0), (0, 0, 0, 0)])
def test_load_survives_odd_shapes_where_it_reads_the_size(small, tmp_path, key, shape):
    path = tmp_path / "wrong.pth"
    torch.save({**small.state_dict(), key: torch.zeros(shape)}, path)
    with pytest.raises(ValueError, match=str(path)):
        load_osnet(path)


@pytest.mark.parametrize(
    ("content", "got"),
    [({"state_dict": {}, "epoch": 3}, "a dict of epoch, state_dict"), ([1, 2], "got list")],
)
def test_load_of_other_content_says_what_it_got(tmp_path, content, got):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=got):
        load_osnet(path)


@pytest.mark.parametrize("content", [b"", b"plain text, not weights", b"PK\x03\x04 cut short"])
def test_load_of_a_file_torch_cannot_read(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: expected an OSNet state dict"):
        load_osnet(path)


def test_load_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such weights file"):
        load_osnet(tmp_path / "none.pth")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_load_never_runs_code_of_the_file(tmp_path):
    torch.save({"conv1.conv.weight": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="expected an OSNet state dict"):
        load_osnet(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_encode_gives_unit_rows_in_order(small, crops):
    embeddings = encode_crops(small, crops)
    assert (embeddings.shape, embeddings.dtype) == ((3, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encode_crops(small, crops[::-1]), embeddings[::-1], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_encode_does_not_depend_on_batching(small, crops, batch_size):
    np.testing.assert_allclose(encode_crops(small, crops, batch_size), encode_crops(small, crops), atol=1e-5)


def test_encode_feeds_resized_normalised_rgb(crops):
    encoder = Mean().eval()
    plain = np.full((40, 20, 3), (10, 120, 250), np.uint8)  # blue, green, red
    expected = (np.array([250, 120, 10]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(encode_crops(encoder, [plain])[0], expected / np.linalg.norm(expected), atol=1e-5)
    encode_crops(encoder, crops, batch_size=2)
    assert encoder.seen == [(1, 3, 256, 128), (2, 3, 256, 128), (1, 3, 256, 128)]


def test_encode_takes_views(small, crops):
    view = crops[2][100:500:2, ::-1]
    np.testing.assert_allclose(encode_crops(small, [view]), encode_crops(small, [view.copy()]), atol=1e-6)


def test_encode_of_no_crops(small):
    assert encode_crops(small, []).shape == (0, 32)


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


def test_encode_rejects_training_mode_and_empty_batches(crops):
    with pytest.raises(ValueError, match="encoder: expected eval mode"):
        encode_crops(Mean(), crops)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        encode_crops(Mean().eval(), crops, batch_size=0)


@pytest.mark.parametrize("gain", [0.0, float("nan"), float("inf")])
def test_encode_names_the_crop_without_a_usable_embedding(crops, gain):
    encoder = Mean().eval()
    encoder.gain.data.fill_(gain)
    with pytest.raises(ValueError, match=r"crops\[0\]: expected a finite, non-zero embedding"):
        encode_crops(encoder, crops)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_encode_on_cuda_equals_cpu(small, crops):
    np.testing.assert_allclose(encode_crops(copy.deepcopy(small).cuda(), crops), encode_crops(small, crops), atol=1e-3)
