"""Backbones: shapes, strides, the instance norms of IBN-Net, ImageNet weights with and without a network."""

import importlib.util
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from reid.backbones import InstanceBatchNorm, ResNet50, TimmBackbone, build_backbone, pool_stripes

SIZE = (64, 32)
IMAGES = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """An empty cache of torch.hub."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def offline(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)


@pytest.mark.parametrize(
    ("name", "stride", "shape"),
    [
        ("resnet50", 1, (2048, 4, 2)),
        ("resnet50", 2, (2048, 2, 1)),
        ("resnet50_ibn", 1, (2048, 4, 2)),
        ("densenet121", 1, (1024, 3, 1)),
        ("densenet121", 2, (1024, 2, 1)),
        ("efficientnet_b4", 1, (1792, 2, 1)),
        ("hrnet18", 1, (2048, 2, 1)),
        ("convnext_tiny", 1, (768, 2, 1)),
        ("swin_tiny", 1, (768, 2, 1)),
        ("swinv2_tiny", 1, (768, 2, 1)),
        ("vit_small", 1, (384, 4, 2)),
        ("osnet_x0_5", 1, (256, 4, 2)),
    ],
)
@torch.no_grad()
def test_map_of_each_backbone(name, stride, shape):
    backbone = build_backbone(name, stride, SIZE, pretrained=False).eval()
    assert backbone.feature_map(IMAGES).shape == (1, *shape)
    pooled = backbone.pooled(IMAGES, nn.AdaptiveAvgPool2d(1), 1)
    assert pooled.shape == (1, 1, backbone.channels)
    if name.startswith("osnet"):
        assert (backbone.channels, float(pooled.min()) >= 0) == (512, True)
        return
    assert backbone.channels == shape[0]
    if name != "vit_small":
        torch.testing.assert_close(pooled[:, 0], backbone.feature_map(IMAGES).mean(dim=(2, 3)))


@pytest.mark.parametrize(("height", "parts"), [(24, 6), (16, 6), (4, 6), (7, 3), (5, 1)])
def test_stripes_are_those_of_adaptive_pooling(height, parts):
    x = torch.rand(2, 3, height, 4)
    pooled = pool_stripes(x, nn.AdaptiveAvgPool2d(1), parts)
    torch.testing.assert_close(pooled.transpose(1, 2), nn.functional.adaptive_avg_pool2d(x, (parts, 1))[..., 0])


@pytest.mark.parametrize(("name", "channels"), [("convnext_base", 1024), ("swin_base", 1024), ("swinv2_base", 1024)])
def test_base_sizes_are_the_baselines(name, channels):
    with torch.device("meta"):  # shapes alone
        backbone = build_backbone(name, 1, (224, 224), pretrained=False)
    assert backbone.channels == channels


@torch.no_grad()
def test_resnet_is_torchvisions():
    theirs = torchvision.models.resnet50().eval()
    ours = ResNet50(last_stride=2).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = nn.Identity()
    torch.testing.assert_close(ours.feature_map(IMAGES).mean(dim=(2, 3)), theirs(IMAGES))


def test_instance_norms_are_in_the_first_three_stages_alone():
    backbone = ResNet50(ibn=True)
    found = [name for name, module in backbone.named_modules() if isinstance(module, InstanceBatchNorm)]
    stages = {f"layer{stage}": blocks for stage, blocks in ((1, 3), (2, 4), (3, 6))}
    assert found == [f"{stage}.{i}.bn1" for stage, blocks in stages.items() for i in range(blocks)]
    assert backbone.layer2[0].bn1.IN.num_features == backbone.layer2[0].bn1.BN.num_features == 64
    keys = {k.removeprefix("layer1.0.bn1.") for k in backbone.state_dict() if k.startswith("layer1.0.bn1.")}
    counted = {f"BN.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")}
    assert keys == {"IN.weight", "IN.bias", "BN.weight", "BN.bias"} | counted  # as the authors call them


def test_half_of_the_channels_forget_the_contrast_of_an_image():
    norm = InstanceBatchNorm(6).eval()
    x = torch.rand(2, 6, 8, 8)
    brighter = 3 * x + 1
    torch.testing.assert_close(norm(x)[:, :3], norm(brighter)[:, :3], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm(x)[:, 3:] * 3 + 1, norm(brighter)[:, 3:], atol=1e-3, rtol=1e-3)


def test_every_weight_is_used():
    """Parameters without gradient would stop training on several GPUs."""
    for name in ("convnext_tiny", "resnet50_ibn", "densenet121"):
        backbone = build_backbone(name, 1, SIZE, pretrained=False).eval()
        backbone.feature_map(IMAGES).sum().backward()
        assert [k for k, v in backbone.named_parameters() if v.grad is None] == []


def test_weights_in_the_cache_need_no_network(hub, offline):
    theirs = torchvision.models.resnet50().state_dict()
    torch.save(theirs, hub / torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    ours = build_backbone("resnet50", 1, SIZE, pretrained=True).state_dict()
    assert ours.keys() == {k for k in theirs if not k.startswith("fc.")}
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_ibn_weights_in_the_cache_need_no_network(hub, offline):
    head = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    theirs = ResNet50(ibn=True).state_dict()
    torch.save(theirs | head, hub / "resnet50_ibn_a-d9d0bb7b.pth")
    ours = build_backbone("resnet50_ibn", 1, SIZE, pretrained=True).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("name", ["resnet50", "resnet50_ibn", "densenet121"])
def test_without_network_one_line_says_what_to_do(offline, name):
    with pytest.raises(ValueError, match=f"pretrained: the ImageNet weights of {name} cannot be had") as error:
        build_backbone(name, 1, SIZE, pretrained=True)
    message = str(error.value)
    assert "Name or service not known" in message
    assert "TORCH_HOME" in message
    assert "\n" not in message


def test_without_network_timm_says_it_too(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained, **settings):
        if pretrained:
            raise FileNotFoundError("An error happened while trying to locate the file on the Hub\nand more lines")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"weights of vit_small cannot be had \(An error.*Hub\); .*HF_HOME") as error:
        build_backbone("vit_small", 1, SIZE, pretrained=True)
    assert "\n" not in str(error.value)
    assert isinstance(build_backbone("vit_small", 1, SIZE, pretrained=False), TimmBackbone)


def test_osnet_has_no_imagenet_weights():
    with pytest.raises(ValueError, match="pretrained: nobody serves ImageNet weights of osnet_x1_0"):
        build_backbone("osnet_x1_0", 1, SIZE, pretrained=True)


def test_without_timm_the_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"name: swin_tiny needs the package timm, .*pip install timm"):
        build_backbone("swin_tiny", 1, SIZE, pretrained=False)
