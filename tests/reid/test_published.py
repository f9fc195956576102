"""Published checkpoints: files of the publishers' key names load whole and give the publishers' features."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from reid.backbones import InstanceBatchNorm
from reid.encoders import load_encoder, open_encoder
from reid.osnet import OSNet
from reid.published import read_published

IMAGES = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def worn(module: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that do something."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


def resnet(ibn: bool = False, stride: int = 2) -> nn.Module:
    """torchvision's, with its classifier."""
    network = torchvision.models.resnet50()
    if ibn:
        for block in (*network.layer1, *network.layer2, *network.layer3):
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (stride, stride)
    return network


def pooled(network: nn.Module, parts: int = 1) -> Tensor:
    """A torchvision ResNet's map, averaged over stripes: (B, C, parts)."""
    trunk = nn.Sequential(*list(network.children())[:-2])
    return F.adaptive_avg_pool2d(trunk(IMAGES), (parts, 1))[..., 0]


def bottleneck(c_in: int, size: int = 512, classes: int = 11, linear: bool = True) -> nn.Module:
    """The baseline's block: `add_block` and `classifier`."""
    block = nn.Module()
    layers = [nn.Linear(c_in, size)] if linear else []
    block.add_block = nn.Sequential(*layers, nn.BatchNorm1d(size if linear else c_in), nn.Dropout())
    block.classifier = nn.Sequential(nn.Linear(size if linear else c_in, classes))
    return block


def baseline(model: nn.Module, **blocks: nn.Module) -> nn.Module:
    network = nn.Module()
    network.model = model
    for name, block in blocks.items():
        setattr(network, name, block)
    return worn(network)


def stored(folder: Path, state, name: str = "net_last.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize(("ibn", "linear"), [(False, True), (True, False)])
@torch.no_grad()
def test_the_baselines_resnet(tmp_path, ibn, linear):
    network = baseline(resnet(ibn), classifier=bottleneck(2048, linear=linear))
    checkpoint = read_published(stored(tmp_path, network.state_dict()))
    classifiers = ("model.fc.weight", "model.fc.bias", "classifier.classifier.0.weight", "classifier.classifier.0.bias")
    assert checkpoint.left_out == classifiers
    assert len(checkpoint.state) == len(network.state_dict()) - 4
    encoder = load_encoder(tmp_path / "net_last.pth")
    assert encoder.config.name == ("resnet50_ibn" if ibn else "resnet50")
    assert (encoder.config.last_stride, encoder.config.input_size) == (2, (256, 128))
    expected = network.classifier.add_block(pooled(network.model)[..., 0])
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_stride_that_the_file_cannot_say(tmp_path):
    network = baseline(resnet(stride=1), classifier=bottleneck(2048))
    encoder = load_encoder(stored(tmp_path, network.state_dict()), last_stride=1)
    expected = network.classifier.add_block(pooled(network.model)[..., 0])
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_densenet(tmp_path):
    network = baseline(torchvision.models.densenet121(), classifier=bottleneck(1024))
    encoder = load_encoder(stored(tmp_path, network.state_dict()))
    expected = network.classifier.add_block(network.model.features(IMAGES).mean(dim=(2, 3)))
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_hrnet_compiled(tmp_path):
    network = baseline(timm.create_model("hrnet_w18", num_classes=0), classifier=bottleneck(2048))
    state = {f"_orig_mod.module.{k}": v for k, v in network.state_dict().items()}
    encoder = load_encoder(stored(tmp_path, state))
    expected = network.classifier.add_block(network.model.forward_features(IMAGES).mean(dim=(2, 3)))
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_convnext(tmp_path):
    model = timm.create_model("convnext_tiny")
    model.head = nn.Sequential()
    network = baseline(model, classifier=bottleneck(768))
    encoder = load_encoder(stored(tmp_path, network.state_dict()))
    expected = network.classifier.add_block(model.forward_features(IMAGES).mean(dim=(2, 3)))
    torch.testing.assert_close(encoder(IMAGES), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_swin_of_timm_before_0_9(tmp_path):
    """There downsampling ends a stage, and what is computed is stored."""
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    network = baseline(model, classifier=bottleneck(768))
    earlier = re.compile(r"layers\.(\d)\.downsample")
    state = network.state_dict()
    state = {earlier.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", k): v for k, v in state.items()}
    computed = ["model.layers.0.blocks.1.attn_mask", "model.layers.0.blocks.0.attn.relative_position_index"]
    path = stored(tmp_path, state | {key: torch.zeros(3, dtype=torch.long) for key in computed})
    encoder = load_encoder(path)
    assert (encoder.config.name, encoder.config.input_size) == ("swin_tiny", (224, 224))
    assert set(computed) < set(read_published(path).left_out)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(encoder(images), network.classifier.add_block(model(images)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_swinv2(tmp_path):
    model = timm.create_model("swinv2_tiny_window8_256", num_classes=0, img_size=(64, 32))
    network = baseline(model, classifier=bottleneck(768))
    encoder = load_encoder(stored(tmp_path, network.state_dict()), input_size=(64, 32))
    assert encoder.config.name == "swinv2_tiny"
    torch.testing.assert_close(encoder(IMAGES), network.classifier.add_block(model(IMAGES)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_baselines_pcb_is_compared_by_its_parts(tmp_path):
    blocks = {f"classifier{i}": bottleneck(2048, 256) for i in range(6)}
    network = baseline(resnet(stride=1), **blocks)
    encoder = load_encoder(stored(tmp_path, network.state_dict()))
    config = encoder.config
    assert (config.parts, config.neck, config.embedding_size, config.last_stride) == (6, "linear", 256, 1)
    assert config.input_size == (384, 192)
    parts = pooled(network.model, 6)  # (B, 2048, 6)
    torch.testing.assert_close(encoder(IMAGES), F.normalize(parts, dim=1).transpose(1, 2).flatten(1))
    _, necked = encoder.features(IMAGES)
    torch.testing.assert_close(necked[:, 5], blocks["classifier5"].add_block(parts[..., 5]), rtol=1e-4, atol=1e-4)


def cluster_contrast(ibn: bool, gem: bool, size: int) -> nn.Module:
    """`base`, `gap`, `feat`, `feat_bn` as Cluster Contrast calls them."""
    trunk = resnet(ibn, stride=1)
    network = nn.Module()
    network.base = nn.Sequential(*list(trunk.children())[:-2])
    network.gap = nn.Module()
    if gem:
        network.gap.p = nn.Parameter(torch.tensor([2.5]))
    if size:
        network.feat = nn.Linear(2048, size)
    network.feat_bn = nn.BatchNorm1d(size or 2048)
    return worn(network)


@pytest.mark.parametrize(("ibn", "gem", "size"), [(True, True, 0), (False, False, 64)])
@torch.no_grad()
def test_cluster_contrast(tmp_path, ibn, gem, size):
    network = cluster_contrast(ibn, gem, size)
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    path = stored(tmp_path, {"state_dict": state, "epoch": 50, "best_mAP": np.float64(0.83)}, "model_best.pth.tar")
    assert len(read_published(path).state) == len(state)
    encoder = load_encoder(path)
    assert (encoder.config.last_stride, encoder.config.pooling) == (1, "gem" if gem else "average")
    x = network.base(IMAGES)
    x = x.clamp(min=1e-6).pow(2.5).mean(dim=(2, 3)).pow(1 / 2.5) if gem else x.mean(dim=(2, 3))
    x = network.feat_bn(network.feat(x) if size else x)
    torch.testing.assert_close(F.normalize(encoder(IMAGES)), F.normalize(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_torchreids_resnet(tmp_path):
    network = worn(resnet(ibn=True))
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    state |= {"classifier.weight": torch.zeros(751, 2048), "classifier.bias": torch.zeros(751)}
    encoder = load_encoder(stored(tmp_path, {"state_dict": state, "rank1": np.float64(0.9)}))
    config = encoder.config
    assert (config.name, config.neck, config.last_stride) == ("resnet50_ibn", "none", 2)
    torch.testing.assert_close(encoder(IMAGES), pooled(network)[..., 0])


def test_torchvisions_classifier_is_left_out(tmp_path):
    keys = ("layer1.0.conv1.weight", "fc.weight", "fc.bias", "fc.0.weight")
    checkpoint = read_published(stored(tmp_path, {key: torch.zeros(1) for key in keys}))
    assert checkpoint.left_out == ("fc.weight", "fc.bias")
    assert list(checkpoint.state) == ["layer1.0.conv1.weight", "fc.0.weight"]  # torchreid's fc512 is not dropped


@pytest.mark.shared
@pytest.mark.parametrize("name", ["market1501", "msmt17"])
def test_torchreids_osnet_whole_but_for_its_classifier(shared: Path, name):
    path = shared / "data" / "weights" / f"osnet_x0_25_{name}.pth"
    content = torch.load(path, weights_only=True)
    checkpoint = read_published(path)
    assert {k for k in content if "classifier" in k} == set(checkpoint.left_out)
    assert checkpoint.left_out == ("classifier.weight", "classifier.bias")
    assert len(checkpoint.state) == len(content) - 2
    opened = open_encoder(path)
    assert (opened.loaded, opened.left_out) == (tuple(checkpoint.state), checkpoint.left_out)
    loaded = opened.encoder.state_dict()
    assert len(loaded) == len(checkpoint.state)
    assert all(torch.equal(loaded[f"backbone.{k}"], v) for k, v in checkpoint.state.items())


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_osnets_width_follows_from_the_file(tmp_path, width):
    saved = worn(OSNet(width))
    encoder = load_encoder(stored(tmp_path, {**saved.state_dict(), "classifier.weight": torch.ones(3, 512)}))
    torch.testing.assert_close(encoder(IMAGES), saved.pooled(IMAGES, nn.AdaptiveAvgPool2d(1), 1)[:, 0])


def test_what_does_not_fit_is_named(tmp_path):
    state = dict(OSNet(0.25).state_dict())
    del state["conv4.1.gate.fc2.bias"]
    state["conv9.weight"] = torch.zeros(1)
    state["conv5.bn.bias"] = torch.zeros(7)
    path = stored(tmp_path, state)
    with pytest.raises(ValueError, match="the weights do not fit") as error:
        load_encoder(path)
    message = str(error.value)
    assert str(path) in message
    assert "1 missing (conv4.1.gate.fc2.bias)" in message
    assert "1 unexpected (conv9.weight)" in message
    assert "1 of another shape (conv5.bn.bias: expected (128,), got (7,))" in message


def test_messages_use_the_names_of_the_file(tmp_path):
    state = {f"module.{k}": v for k, v in cluster_contrast(False, True, 0).state_dict().items()}
    del state["module.base.7.2.conv3.weight"]
    state["module.feat_bn.weight"] = torch.zeros(512)
    with pytest.raises(ValueError, match=r"1 missing \(base\.7\.2\.conv3\.weight\)") as error:
        load_encoder(stored(tmp_path, {"state_dict": state}))
    assert "1 of another shape (feat_bn.weight: expected (2048,), got (512,))" in str(error.value)


def test_files_of_torch_0_3_count_no_batches(tmp_path):
    saved = worn(OSNet(0.25))
    state = {k: v for k, v in saved.state_dict().items() if not k.endswith("num_batches_tracked")}
    expected = saved.pooled(IMAGES, nn.AdaptiveAvgPool2d(1), 1)[:, 0]
    torch.testing.assert_close(load_encoder(stored(tmp_path, state))(IMAGES), expected)


@pytest.mark.parametrize("key", ["conv1.conv.weight", "fc.0.weight"])
@pytest.mark.parametrize("shape", [(), (4,), (0, 0), (0, 0, 0, 0), (20, 3, 7, 7)])
def test_odd_shapes_are_no_crash(tmp_path, key, shape):
    path = stored(tmp_path, {**OSNet(0.25).state_dict(), key: torch.zeros(shape)})
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{re.escape(key)}: expected "):
        load_encoder(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "expected a state dict, got an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "expected a state dict, got a dict of epoch, lr"),
        ([1, 2], "expected a state dict, got a list"),
        ({"weight": torch.zeros(2)}, "expected weights of torchreid .* got the keys weight"),
        (
            {"classifier.add_block.0.weight": torch.zeros(2, 2), "model.x": torch.zeros(1)},
            "expected a backbone of layumi's baseline, got the keys classifier.add_block.0.weight, model.x",
        ),
        (
            {"classifier.add_block.0.weight": torch.zeros(2, 2), "model._conv_stem.weight": torch.zeros(1)},
            "EfficientNet of the package efficientnet_pytorch",
        ),
    ],
)
def test_other_content_is_described(tmp_path, content, message):
    path = stored(tmp_path, content, "other.pth")
    with pytest.raises(ValueError, match=f"other.pth: {message}"):
        load_encoder(path)


@pytest.mark.parametrize("content", [b"", b"plain text, not weights", b"PK\x03\x04 cut short"])
def test_a_file_torch_cannot_read(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: expected a checkpoint of plain tensors"):
        load_encoder(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pth: no such weights file"):
        load_encoder(tmp_path / "none.pth")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_of_the_file_never_runs(tmp_path):
    path = stored(tmp_path, {"conv1.conv.weight": Malicious(tmp_path / "ran")}, "bad.pth")
    with pytest.raises(ValueError, match="which can be read without running code from the file"):
        load_encoder(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [np.float64(0.5), np.float32(0.5), np.int64(5)])
@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_both_versions_of_numpy_are_read(tmp_path, number, core):
    state = OSNet(0.25).state_dict()
    path = stored(tmp_path, {"state_dict": state, "best": number})
    renamed = tmp_path / "renamed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b".multiarray\nscalar" in data
                data = re.sub(rb"numpy\._?core\.multiarray", f"numpy.{core}.multiarray".encode(), data)
            new.writestr(name, data)
    assert len(read_published(renamed).state) == len(state)
