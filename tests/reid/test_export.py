"""Exported encoders give the encoder's features, or there is no file."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import reid.export
from reid.encoders import Encoder, EncoderConfig, build_encoder
from reid.export import export_onnx, export_torchscript, fuse

SIZE = (64, 32)
SMALL = EncoderConfig(name="osnet_x0_25", input_size=SIZE)
PARTS = EncoderConfig(name="resnet50_ibn", input_size=SIZE, parts=3, pooling="gem", neck="linear", embedding_size=16)


def worn(config: EncoderConfig) -> Encoder:
    """In evaluation mode, with norms that do something."""
    encoder = build_encoder(config, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for norm in encoder.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.1)
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return encoder.eval()


@pytest.fixture(scope="module")
def osnet() -> Encoder:
    return worn(SMALL)


def norms(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        (SMALL, 79, 0),
        (EncoderConfig(input_size=SIZE), 53, 0),
        (PARTS, 53, 13),  # behind instance norms' split of the channels
        (EncoderConfig(name="densenet121", input_size=SIZE), 121, 62),  # before convolutions
        (EncoderConfig(name="efficientnet_b4", input_size=SIZE), 96, 0),  # norms with an activation in them
    ],
    ids=lambda value: getattr(value, "name", None),
)
@torch.no_grad()
def test_fused_norms_change_nothing_but_the_time(config, before, after):
    encoder = worn(config)
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    fused, difference = fuse(encoder)
    assert (norms(encoder), norms(fused)) == (before, after)
    assert 0 < difference < 1e-5
    images = torch.randn(2, 3, *SIZE)
    expected = encoder(images)
    torch.testing.assert_close(fused(images), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in fused.modules())


def test_a_convolution_that_runs_twice_is_left_alone():
    encoder = worn(SMALL)
    shared = encoder.backbone.conv2[0].conv2b
    shared[1].conv2 = shared[0].conv2  # of two norms, one convolution
    fused, difference = fuse(encoder)
    assert norms(fused) == 2
    assert difference < 1e-5


@torch.no_grad()
def test_torchscript_runs_any_batch(tmp_path):
    encoder = worn(PARTS)
    path = tmp_path / "new" / "encoder.pt"
    assert export_torchscript(encoder, path) < 1e-6
    script = torch.jit.load(str(path))
    images = torch.randn(5, 3, *SIZE)
    torch.testing.assert_close(script(images), encoder(images))
    assert [p.name for p in path.parent.iterdir()] == ["encoder.pt"]


@pytest.mark.parametrize("config", [PARTS, EncoderConfig(name="swin_tiny", input_size=SIZE)])
@torch.no_grad()
def test_onnx_runs_any_batch(tmp_path, config):
    encoder = worn(config)
    path = tmp_path / "new" / "encoder.onnx"
    assert export_onnx(encoder, path) < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, *SIZE)
    (features,) = session.run(["features"], {"images": images.numpy()})
    np.testing.assert_allclose(features, encoder(images), rtol=1e-3, atol=1e-4)
    (stored,) = onnx.load(str(path)).metadata_props
    assert stored.key == "encoder"
    assert json.loads(stored.value)["name"] == config.name
    assert [p.name for p in path.parent.iterdir()] == ["encoder.onnx"]


def test_a_fused_encoder_can_be_exported(tmp_path, osnet):
    fused, _ = fuse(osnet)
    assert export_torchscript(fused, tmp_path / "fused.pt") < 1e-6
    assert export_onnx(fused, tmp_path / "fused.onnx") < 1e-5


@pytest.mark.parametrize("export", [export_torchscript, export_onnx])
def test_what_differs_is_not_written(tmp_path, osnet, export):
    path = tmp_path / "encoder.out"
    path.write_text("older")
    with pytest.raises(ValueError, match=r"encoder\.out: expected the encoder's features within -1, got .* away"):
        export(osnet, path, tolerance=-1)
    assert path.read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_fusion_that_differs_is_refused(osnet, monkeypatch):
    monkeypatch.setattr(reid.export, "fuse_conv_bn_eval", lambda conv, norm: conv)  # forgets the norm
    with pytest.raises(ValueError, match=r"the fused encoder: expected the encoder's features within 0\.0001"):
        fuse(osnet)


def test_features_that_are_not_numbers_are_refused():
    encoder = worn(replace(SMALL, neck="none"))
    encoder.backbone.fc[0].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="got nan away"):
        fuse(encoder)


@pytest.mark.parametrize("export", [fuse, export_torchscript, export_onnx])
def test_training_mode_is_refused(tmp_path, export):
    encoder = build_encoder(SMALL, seed=0)
    with pytest.raises(ValueError, match="encoder: expected evaluation mode"):
        export(encoder, *([] if export is fuse else [tmp_path / "encoder"]))
    assert not list(tmp_path.iterdir())
