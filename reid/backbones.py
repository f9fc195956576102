"""Backbones: images in, a map of features out; with ImageNet weights where their makers publish them.

All take (B, 3, H, W) RGB, ImageNet-normalised. `feature_map` gives (B, C', h, w); `pooled`, given a pooling
(B, C', h, w) -> (B, C', 1, 1), gives (B, P, C), the features of P stripes of the map, from the top. `channels` is C.

| name | network | map |
| --- | --- | --- |
| `resnet50` | ResNet-50 (He et al., CVPR 2016), torchvision's | H/32, at stride 1 H/16 |
| `resnet50_ibn` | the same as IBN-Net-a (Pan et al., ECCV 2018) | the same |
| `densenet121` | DenseNet-121 (Huang et al., CVPR 2017), torchvision's | H/32, at stride 1 H/16 - 1 |
| `efficientnet_b4` | Tan and Le, ICML 2019, timm's, as are all below | H/32 |
| `hrnet18` | HRNet-W18 (Wang et al., TPAMI 2020) | H/32 |
| `convnext_tiny`, `convnext_base` | Liu et al., CVPR 2022 | H/32 |
| `swin_tiny`, `swin_base` | Liu et al., ICCV 2021, windows of 7 | H/32 |
| `swinv2_tiny`, `swinv2_base` | Liu et al., CVPR 2022, windows of 8 | H/32 |
| `vit_small` | ViT-S/16 (Dosovitskiy et al., ICLR 2021) | H/16 |
| `osnet_x0_25`, `osnet_x0_5`, `osnet_x0_75`, `osnet_x1_0` | OSNet, `reid/osnet.py` | H/16 |

At stride 1 DenseNet's last pooling, of two by two pixels, steps by one pixel, as in layumi's baseline.
Maps are what the last block leaves: no ReLU follows DenseNet's last norm and no norm ConvNeXt's last block, as in
that baseline, whose checkpoints then give its features.
"""

from __future__ import annotations

import importlib.util
from typing import Any, TypeAlias

import torch
import torchvision
from torch import Tensor, nn

from reid.osnet import OSNet

TIMM_NAMES = {
    "efficientnet_b4": "efficientnet_b4",
    "hrnet18": "hrnet_w18",
    "convnext_tiny": "convnext_tiny",
    "convnext_base": "convnext_base",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swinv2_tiny": "swinv2_tiny_window8_256",
    "swinv2_base": "swinv2_base_window8_256",
    "vit_small": "vit_small_patch16_224",
}
"""Our name -> timm's."""
OSNET_WIDTHS = {"osnet_x0_25": 0.25, "osnet_x0_5": 0.5, "osnet_x0_75": 0.75, "osnet_x1_0": 1.0}
STRIDED = ("resnet50", "resnet50_ibn", "densenet121")
"""Backbones whose last stage may keep the resolution of the one before."""
TOKEN_PATCHES = {"swin_tiny": 32, "swin_base": 32, "swinv2_tiny": 32, "swinv2_base": 32, "vit_small": 16}
"""Transformers, built for one input size, whose sides are multiples of this."""
DROP_PATH = 0.2
"""Share of residual branches skipped at the last block in training: ConvNeXt and Swin, as in layumi's baseline."""
IBN_WEIGHTS = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet50_ibn_a-d9d0bb7b.pth"
"""ResNet-50-IBN-a on ImageNet, published by its authors."""


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the others (Pan et al., fig. 3a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.cat([self.IN(x[:, : self.first]), self.BN(x[:, self.first :])], dim=1)


class ResNet50(nn.Module):
    """ResNet-50 without its classifier, plain or as IBN-Net-a; modules are called as in torchvision.

    IBN-Net-a keeps appearance out of early features: in each bottleneck of the first three stages, half of the
    first norm is an instance norm.

    Args:
        last_stride: of the fourth stage; 1 keeps a map of H/16.
        ibn: IBN-Net-a.
        pretrained: ImageNet weights: torchvision's IMAGENET1K_V1, or those of the authors of IBN-Net.
    """

    channels = 2048

    def __init__(self, last_stride: int = 1, ibn: bool = False, pretrained: bool = False) -> None:
        super().__init__()
        weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1 if pretrained and not ibn else None
        trunk: Any = torchvision.models.resnet50(weights=weights)
        if ibn:
            for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
                for block in stage:
                    block.bn1 = InstanceBatchNorm(block.bn1.num_features)
        if ibn and pretrained:
            trunk.load_state_dict(
                torch.hub.load_state_dict_from_url(IBN_WEIGHTS, map_location="cpu", check_hash=True, weights_only=True)
            )
        trunk.layer4[0].conv2.stride = trunk.layer4[0].downsample[0].stride = (last_stride, last_stride)
        self.conv1, self.bn1, self.relu, self.maxpool = trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2048, H/16, W/16), or H/32 at stride 2."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features

    def pooled(self, images: Tensor, pool: nn.Module, parts: int) -> Tensor:
        """(B, 3, H, W) -> (B, P, 2048)."""
        return pool_stripes(self.feature_map(images), pool, parts)


class DenseNet121(nn.Module):
    """DenseNet-121 without its classifier; modules are called as in torchvision.

    Args:
        last_stride: of the pooling before the last block.
        pretrained: ImageNet weights: torchvision's IMAGENET1K_V1.
    """

    channels = 1024

    def __init__(self, last_stride: int = 1, pretrained: bool = False) -> None:
        super().__init__()
        weights = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1 if pretrained else None
        self.features: Any = torchvision.models.densenet121(weights=weights).features
        self.features.transition3.pool.stride = last_stride

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1024, H/16 - 1, W/16 - 1), or H/32 at stride 2."""
        features: Tensor = self.features(images)
        return features

    def pooled(self, images: Tensor, pool: nn.Module, parts: int) -> Tensor:
        """(B, 3, H, W) -> (B, P, 1024)."""
        return pool_stripes(self.feature_map(images), pool, parts)


class TimmBackbone(nn.Module):
    """A network of timm without its classifier, kept as `model` with timm's names.

    Args:
        name: one of `TIMM_NAMES`.
        input_size: height and width; transformers take no other.
        pretrained: ImageNet weights of timm's default tag.
    """

    def __init__(self, name: str, input_size: tuple[int, int], pretrained: bool = False) -> None:
        super().__init__()
        import timm  # takes seconds, and the other encoders do without

        settings: dict[str, Any] = {}
        if name in TOKEN_PATCHES:
            settings["img_size"] = input_size
        if name.startswith(("convnext", "swin")):
            settings["drop_path_rate"] = DROP_PATH
        model: Any = timm.create_model(TIMM_NAMES[name], pretrained=pretrained, num_classes=0, **settings)
        if name.startswith("convnext"):
            model.head = nn.Identity()  # holds a norm that nothing would use
        self.model: Any = model
        self.channels: int = model.num_features
        self.channels_last = name.startswith("swin")

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/32, W/32)."""
        features: Tensor = self.model.forward_features(images)
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def pooled(self, images: Tensor, pool: nn.Module, parts: int) -> Tensor:
        """(B, 3, H, W) -> (B, P, C)."""
        return pool_stripes(self.feature_map(images), pool, parts)


class VisionTransformer(TimmBackbone):
    """ViT: its feature is the class token; the map is made of the other tokens."""

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + h * w, C), the class token first."""
        features: Tensor = self.model.forward_features(images)
        return features

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/16, W/16)."""
        height, width = self.model.patch_embed.grid_size
        patches = self.tokens(images)[:, 1:].transpose(1, 2)  # (B, C, h * w)
        return patches.reshape(-1, self.channels, height, width)

    def pooled(self, images: Tensor, pool: nn.Module, parts: int) -> Tensor:
        """(B, 3, H, W) -> (B, 1, C), the class token, whatever the pooling."""
        return self.tokens(images)[:, :1]


def pool_stripes(feature_map: Tensor, pool: nn.Module, parts: int) -> Tensor:
    """(B, C, h, w) -> (B, P, C), of P stripes over the full width, from the top.

    Where h is no multiple of P, neighbours share a row.
    """
    height = feature_map.shape[2]
    # Rounded up without a negative number, whose division ONNX rounds another way.
    bounds = [(i * height // parts, ((i + 1) * height + parts - 1) // parts) for i in range(parts)]
    stripes = [feature_map[:, :, top:bottom] for top, bottom in bounds] if parts > 1 else [feature_map]
    return torch.stack([pool(stripe).flatten(1) for stripe in stripes], dim=1)


Backbone: TypeAlias = ResNet50 | DenseNet121 | TimmBackbone | OSNet


def build_backbone(name: str, last_stride: int, input_size: tuple[int, int], pretrained: bool) -> Backbone:
    """Build a backbone by name.

    Args:
        name: see the table above.
        last_stride: of the last stage; of `STRIDED` ones alone.
        input_size: height and width of images.
        pretrained: start from ImageNet weights, which torchvision, torch.hub or timm fetch and keep where they always
            do; else from random ones.

    Raises:
        ValueError: ImageNet weights cannot be had, or timm is missing.
    """
    if name in OSNET_WIDTHS:
        if pretrained:
            raise ValueError(f"pretrained: nobody serves ImageNet weights of {name} to torch; load a published file")
        return OSNet(OSNET_WIDTHS[name])
    if name in TIMM_NAMES and importlib.util.find_spec("timm") is None:
        raise ValueError(f"name: {name} needs the package timm, which is not installed (pip install timm)")
    try:
        if name in ("resnet50", "resnet50_ibn"):
            return ResNet50(last_stride, ibn=name == "resnet50_ibn", pretrained=pretrained)
        if name == "densenet121":
            return DenseNet121(last_stride, pretrained)
        return (VisionTransformer if name == "vit_small" else TimmBackbone)(name, input_size, pretrained)
    except Exception as error:  # each library has errors of its own for network, cache and checksum
        if not pretrained:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        cache = "HF_HOME" if name in TIMM_NAMES else "TORCH_HOME"
        raise ValueError(
            f"pretrained: the ImageNet weights of {name} cannot be had ({reason}); run once where there is a network, "
            f"or copy the cache that {cache} names from there, or set pretrained to false"
        ) from error
