"""Encoders: pooling, necks, parts, what is compared; files and their errors."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from reid.encoders import (
    ENCODERS,
    FORMAT,
    EncoderConfig,
    GeneralisedMean,
    build_encoder,
    load_backbone,
    load_encoder,
    open_encoder,
    save_encoder,
)

SIZE = (64, 32)
SMALL = EncoderConfig(name="osnet_x0_25", input_size=SIZE)
IMAGES = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    return build_encoder(EncoderConfig(input_size=SIZE), seed=0).eval()


def test_names_are_the_issues():
    for name in ("resnet50", "resnet50_ibn", "densenet121", "efficientnet_b4", "hrnet18", "vit_small"):
        assert name in ENCODERS
    assert {"convnext_base", "swin_base", "swinv2_base", "osnet_x0_25", "osnet_x1_0"} < set(ENCODERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet51"}, "name: expected one of resnet50, .*, got 'resnet51'"),
        ({"pooling": "max"}, "pooling: expected one of average, gem, got 'max'"),
        ({"neck": "big"}, "neck: expected one of bn, linear, none, got 'big'"),
        ({"compared": "raw"}, "compared: expected one of necked, pooled, got 'raw'"),
        ({"last_stride": 3}, "last_stride: expected one of 1, 2, got 3"),
        ({"embedding_size": 0}, "embedding_size: expected at least 1, got 0"),
        ({"parts": 0}, "parts: expected at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"input_size": (0, 32)}, r"input_size: .* positive multiples of 1 for resnet50, got \(0, 32\)"),
        ({"name": "swin_base", "input_size": (250, 128)}, r"multiples of 32 for swin_base, got \(250, 128\)"),
        ({"name": "hrnet18", "last_stride": 2}, "last_stride: expected 1 for hrnet18"),
        ({"name": "swinv2_base", "pooling": "gem"}, "pooling: expected average for swinv2_base"),
        ({"name": "osnet_x1_0", "parts": 6}, "parts: expected 1 for osnet_x1_0"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**change)


def test_generalised_mean_lies_between_mean_and_maximum():
    x = torch.rand(2, 5, 4, 3)
    assert GeneralisedMean(1.0)(x).shape == (2, 5, 1, 1)
    torch.testing.assert_close(GeneralisedMean(1.0)(x)[..., 0, 0], x.mean(dim=(2, 3)))
    torch.testing.assert_close(GeneralisedMean(200.0)(x)[..., 0, 0], x.amax(dim=(2, 3)), rtol=0.02, atol=0)
    oracle = torch.tensor([[sum(float(v) ** 3 for v in c.flatten()) / 12 for c in image] for image in x]) ** (1 / 3)
    torch.testing.assert_close(GeneralisedMean(3.0)(x)[..., 0, 0], oracle)


def test_generalised_mean_of_what_is_not_positive_has_a_gradient():
    pool = GeneralisedMean()
    x = torch.tensor([[-1.0, 0.0], [0.0, -3.0]]).view(1, 1, 2, 2).requires_grad_()
    pool(x).sum().backward()
    assert torch.isfinite(pool.p.grad).all()
    assert torch.isfinite(x.grad).all()
    assert pool(x).item() == pytest.approx(1e-6, rel=1e-3)


def test_generalised_mean_in_half_precision_does_not_overflow():
    x = torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16)  # 100 ** 3 is beyond float16
    pooled = GeneralisedMean()(x)
    assert pooled.dtype == torch.float16
    assert pooled.item() == pytest.approx(100, rel=1e-2)


@torch.no_grad()
def test_average_is_of_the_map_and_the_neck_follows(resnet):
    raw, necked = resnet.features(IMAGES)
    assert raw.shape == necked.shape == (3, 1, 2048)
    torch.testing.assert_close(raw[:, 0], resnet.feature_map(IMAGES).mean(dim=(2, 3)))
    torch.testing.assert_close(necked[:, 0], resnet.necks[0](raw[:, 0]))
    torch.testing.assert_close(resnet(IMAGES), necked[:, 0])
    assert (resnet.raw_dim, resnet.necked_dim, resnet.embedding_dim) == (2048, 2048, 2048)


@torch.no_grad()
def test_parts_have_necks_of_their_own_and_unit_length():
    config = EncoderConfig(input_size=SIZE, parts=4, neck="linear", embedding_size=8, pooling="gem")
    encoder = build_encoder(config, seed=0).eval()
    raw, necked = encoder.features(IMAGES)
    assert (raw.shape, necked.shape, encoder.embedding_dim) == ((3, 4, 2048), (3, 4, 8), 32)
    for part in range(4):
        row = encoder.feature_map(IMAGES)[:, :, part].clamp(min=1e-6).pow(3).mean(dim=2).pow(1 / 3)
        torch.testing.assert_close(raw[:, part], row)
        torch.testing.assert_close(necked[:, part], encoder.necks[part](raw[:, part]))
    torch.testing.assert_close(encoder(IMAGES).view(3, 4, 8).norm(dim=2), torch.ones(3, 4))
    torch.testing.assert_close(encoder(IMAGES), torch.cat([F.normalize(necked[:, i]) for i in range(4)], dim=1))


@torch.no_grad()
def test_pooled_features_can_be_compared():
    encoder = build_encoder(replace(SMALL, compared="pooled", neck="linear", embedding_size=8), seed=0).eval()
    raw, necked = encoder.features(IMAGES)
    assert (encoder.embedding_dim, encoder.necked_dim) == (512, 8)
    torch.testing.assert_close(encoder(IMAGES), raw[:, 0])
    assert necked.shape == (3, 1, 8)


@torch.no_grad()
def test_osnet_ends_in_its_own_layer_whatever_pools():
    encoder = build_encoder(replace(SMALL, neck="none"), seed=0).eval()
    mean = encoder.feature_map(IMAGES).mean(dim=(2, 3))
    torch.testing.assert_close(encoder(IMAGES), encoder.backbone.fc(mean))
    gem = build_encoder(replace(SMALL, neck="none", pooling="gem"), seed=0).eval()
    pooled = gem.feature_map(IMAGES).clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
    torch.testing.assert_close(gem(IMAGES), gem.backbone.fc(pooled))


@torch.no_grad()
def test_vit_gives_its_class_token_and_a_map_of_the_others():
    config = EncoderConfig(name="vit_small", input_size=SIZE, neck="none")
    encoder = build_encoder(config, seed=0).eval()
    tokens = encoder.backbone.model.forward_features(IMAGES)
    torch.testing.assert_close(encoder(IMAGES), tokens[:, 0])
    feature_map = encoder.feature_map(IMAGES)
    assert feature_map.shape == (3, 384, 4, 2)
    torch.testing.assert_close(feature_map[:, :, 1, 0], tokens[:, 3])  # two patches a row, behind the class token


@torch.no_grad()
def test_swin_averages_its_tokens():
    encoder = build_encoder(EncoderConfig(name="swin_tiny", input_size=SIZE, neck="none"), seed=0).eval()
    torch.testing.assert_close(encoder(IMAGES), encoder.backbone.model(IMAGES))


def test_dropout_is_for_training_and_the_neck_shift_is_not_learned():
    encoder = build_encoder(replace(SMALL, dropout=0.5), seed=0)
    _, necked = encoder.features(IMAGES)
    assert (necked == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (encoder.eval().features(IMAGES)[1] == 0).float().mean() < 0.1
    necked.sum().backward()
    assert [k for k, v in encoder.named_parameters() if v.grad is None] == ["necks.0.norm.bias"]


def test_a_seed_gives_the_same_weights_and_leaves_the_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (build_encoder(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["backbone.conv1.conv.weight"], other["backbone.conv1.conv.weight"])


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, neck="linear", embedding_size=7, pooling="gem", dropout=0.1),
        EncoderConfig(input_size=SIZE, parts=2, last_stride=2, compared="pooled"),
    ],
)
def test_a_file_is_enough_to_rebuild(tmp_path, config):
    path = tmp_path / "new" / "encoder.safetensors"
    encoder = build_encoder(config, seed=0)
    encoder.train()(IMAGES)  # running statistics that are not the initial ones
    encoder.eval()
    save_encoder(path, encoder, {"why": "test"})
    opened = open_encoder(path)
    loaded = opened.encoder
    assert (set(opened.loaded), opened.left_out) == (set(loaded.state_dict()), ())
    assert loaded.config == config
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), encoder(IMAGES))
    assert [p.name for p in path.parent.iterdir()] == ["encoder.safetensors"]


def test_what_a_file_says_can_be_overruled(tmp_path, resnet):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, resnet)
    loaded = load_encoder(path, last_stride=2, input_size=(96, 48))
    assert (loaded.config.last_stride, loaded.config.input_size) == (2, (96, 48))
    assert loaded.feature_map(IMAGES).shape[2:] == (2, 1)


def test_loading_never_fetches_weights(tmp_path):
    path = tmp_path / "encoder.safetensors"
    encoder = build_encoder(SMALL, seed=0)
    encoder.config = replace(SMALL, pretrained=True)  # OSNet has none: building it so is an error
    save_encoder(path, encoder)
    assert load_encoder(path).config.pretrained is False


def test_a_backbone_is_taken_over_without_the_neck(tmp_path):
    path = tmp_path / "encoder.safetensors"
    source = build_encoder(replace(SMALL, neck="none"), seed=1)
    save_encoder(path, source)
    encoder = build_encoder(SMALL, seed=2)
    neck = encoder.necks[0].norm.weight.clone()
    assert load_backbone(encoder, path) == len(source.backbone.state_dict())
    assert all(torch.equal(v, source.backbone.state_dict()[k]) for k, v in encoder.backbone.state_dict().items())
    assert torch.equal(encoder.necks[0].norm.weight, neck)
    other = build_encoder(EncoderConfig(name="osnet_x0_5", input_size=SIZE))
    with pytest.raises(ValueError, match="expected the backbone osnet_x0_5, got osnet_x0_25"):
        load_backbone(other, path)


def test_files_that_are_no_encoders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors: no such weights file"):
        load_encoder(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=r"broken\.safetensors: not a readable safetensors file"):
        load_encoder(broken)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other, {"format": "pt"})
    with pytest.raises(ValueError, match=f"other.safetensors: expected a {FORMAT} file, got format 'pt'"):
        load_encoder(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet51"}, "unreadable encoder configuration .*resnet51"),
        ({"unheard": 1}, "unreadable encoder configuration .*unheard"),
        ({"input_size": 3}, "unreadable encoder configuration"),
        ({"name": "osnet_x0_5"}, "weights do not fit.*backbone.conv1.conv.weight: expected .*, got "),
        ({"neck": "none"}, r"5 unexpected \(necks.0.norm"),
        ({"neck": "linear"}, r"2 missing \(necks.0.linear.weight, necks.0.linear.bias\)"),
    ],
)
def test_files_that_do_not_fit_say_where(tmp_path, change, message):
    path = tmp_path / "wrong.safetensors"
    settings = asdict(SMALL) | change
    save_file(build_encoder(SMALL, seed=0).state_dict(), path, {"format": FORMAT, "encoder": json.dumps(settings)})
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        load_encoder(path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "encoder.safetensors"
    encoder = build_encoder(SMALL, seed=0)
    save_encoder(path, encoder)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_encoder(path, encoder, {"cannot": np.zeros(3)})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
