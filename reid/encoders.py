"""Encoders: a backbone, pooling and a neck, which turn crops of people into embeddings.

`ENCODERS` names the backbones (`reid/backbones.py`). The part-based baseline PCB (Sun et al., ECCV 2018) is
`EncoderConfig(parts=6, neck="linear", embedding_size=256, compared="pooled", input_size=(384, 192))`.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from reid.backbones import OSNET_WIDTHS, STRIDED, TIMM_NAMES, TOKEN_PATCHES, build_backbone
from reid.files import replacing
from reid.published import load_whole, read_published

ENCODERS = (*STRIDED, *TIMM_NAMES, *OSNET_WIDTHS)
CROP_SIZE = (256, 128)
"""Height and width of an encoder's input, in pixels, where nothing else is said."""
FORMAT = "jdetrack-encoder"

Pooling = Literal["average", "gem"]
NeckKind = Literal["bn", "linear", "none"]
Compared = Literal["necked", "pooled"]


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is built of."""

    name: str = "resnet50"
    """The backbone, one of `ENCODERS`."""
    pooling: Pooling = "average"
    """Of the feature map: its mean, or the generalised mean. ViT gives its class token instead, and transformers, whose
    features are centred on zero, take no generalised mean."""
    neck: NeckKind = "bn"
    """Behind pooling: a batch norm without learned shift (Luo et al., "Bag of Tricks", CVPRW 2019); a linear layer and
    a batch norm, the bottleneck of layumi's baseline; or nothing."""
    embedding_size: int = 512
    """Output of the linear neck."""
    last_stride: Literal[1, 2] = 1
    """Of the last stage of ResNet-50, ResNet-50-IBN and DenseNet-121: 1 keeps a map of twice the height and width. The
    other backbones have one form, and do not take 2."""
    parts: int = 1
    """Horizontal stripes of the map, each pooled by itself and with a neck of its own (PCB has 6). Where the map's
    height is no multiple, neighbours share a row."""
    compared: Compared = "necked"
    """What images are compared by: the feature behind the neck, or the one before it."""
    dropout: float = 0.5
    """Share of the necked feature's numbers that is left out in training."""
    input_size: tuple[int, int] = CROP_SIZE
    """Height and width of images in pixels. Convolutional backbones take others, too; transformers do not, and their
    sides are multiples of 32 (Swin) or 16 (ViT)."""
    pretrained: bool = False
    """Start from ImageNet weights, fetched by torchvision, torch.hub or timm; else from random ones. (OSNet has none.)
    Loading an encoder from a file never fetches any."""

    def __post_init__(self) -> None:
        choices = {"name": ENCODERS, "pooling": get_args(Pooling), "neck": get_args(NeckKind)}
        choices |= {"compared": get_args(Compared), "last_stride": (1, 2)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")
        for name in ("embedding_size", "parts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        multiple = TOKEN_PATCHES.get(self.name, 1)
        if len(self.input_size) != 2 or any(side < 1 or side % multiple for side in self.input_size):
            raise ValueError(
                f"input_size: expected height and width as positive multiples of {multiple} for {self.name}, "
                f"got {self.input_size}"
            )
        if self.last_stride == 2 and self.name not in STRIDED:
            raise ValueError(f"last_stride: expected 1 for {self.name}, which has one form, got 2")
        if self.pooling == "gem" and self.name in TOKEN_PATCHES:
            raise ValueError(f"pooling: expected average for {self.name}, a transformer, got 'gem'")
        if self.parts > 1 and (self.name in OSNET_WIDTHS or self.name == "vit_small"):
            raise ValueError(f"parts: expected 1 for {self.name}, which describes the whole image, got {self.parts}")


class GeneralisedMean(nn.Module):
    """Generalised mean of a feature map (Radenović et al., TPAMI 2019, eq. 3): average at p = 1, maximum as p grows.

    What is below `floor` counts as `floor`; p is learned.
    """

    def __init__(self, p: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1)."""
        # Powers of half precision overflow.
        powers = x.float().clamp(min=self.floor).pow(self.p.float())
        return powers.mean(dim=(2, 3), keepdim=True).pow(1 / self.p.float()).to(x.dtype)


class Encoder(nn.Module):
    """Backbone, pooling, and a neck for each part.

    Attributes:
        config: what it was built of.
        raw_dim: C, length of a pooled feature.
        necked_dim: D, length of a necked feature.
        embedding_dim: length of what forward returns: the parts' features in a row.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.name, config.last_stride, config.input_size, config.pretrained)
        self.pool = GeneralisedMean() if config.pooling == "gem" else nn.AdaptiveAvgPool2d(1)
        self.raw_dim = self.backbone.channels
        self.necked_dim = config.embedding_size if config.neck == "linear" else self.raw_dim
        self.necks = nn.ModuleList(_neck(config.neck, self.raw_dim, self.necked_dim) for _ in range(config.parts))
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_dim = config.parts * (self.raw_dim if config.compared == "pooled" else self.necked_dim)

    def feature_map(self, images: Tensor) -> Tensor:
        """Images as in `forward` -> (B, C', h, w), what is pooled (ViT: its patches)."""
        return self.backbone.feature_map(images)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Describe images for training.

        Args:
            images: (B, 3, H, W) RGB, ImageNet-normalised.

        Returns:
            Pooled features (B, P, C), before the neck, and necked ones (B, P, D), with dropout when training.
        """
        raw = self.backbone.pooled(images, self.pool, self.config.parts)
        necked = torch.stack([neck(raw[:, i]) for i, neck in enumerate(self.necks)], dim=1)
        return raw, self.dropout(necked)

    def forward(self, images: Tensor) -> Tensor:
        """Describe images for comparing them.

        Args:
            images: (B, 3, H, W) RGB, ImageNet-normalised.

        Returns:
            (B, `embedding_dim`): of one part, the feature as it is; of several, each part's at unit length, in a row.
        """
        raw, necked = self.features(images)
        parts = raw if self.config.compared == "pooled" else necked
        return (F.normalize(parts, dim=2) if self.config.parts > 1 else parts).flatten(1)


def build_encoder(config: EncoderConfig, seed: int | None = None) -> Encoder:
    """Build an encoder with ImageNet or random weights, and random necks.

    Args:
        config: what to build it of.
        seed: of the random weights, which leaves torch's generator as it was; None draws from that generator.

    Raises:
        ValueError: ImageNet weights cannot be had, or a package is missing.
    """
    with torch.random.fork_rng(devices=[]) if seed is not None else contextlib.nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        return Encoder(config)


def load_backbone(encoder: Encoder, path: str | Path) -> int:
    """Start from the backbone of a file, whatever its neck.

    Args:
        encoder: what to load into; its pooling and necks stay as they are.
        path: as in `open_encoder`.

    Returns:
        The number of tensors taken over.

    Raises:
        ValueError: as in `open_encoder`, or another backbone.
    """
    theirs = load_encoder(path, input_size=encoder.config.input_size)
    if theirs.config.name != encoder.config.name:
        raise ValueError(f"{path}: expected the backbone {encoder.config.name}, got {theirs.config.name}")
    state = theirs.backbone.state_dict()
    encoder.backbone.load_state_dict(state)
    return len(state)


def save_encoder(path: str | Path, encoder: Encoder, notes: Mapping[str, Any] | None = None) -> None:
    """Write a model file: weights as safetensors, configuration and notes as its metadata.

    Args:
        path: target; see `replacing`.
        encoder: the encoder.
        notes: anything JSON can say, kept under "notes".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: modules may share a tensor, which the format does not know.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.state_dict().items()}
    config, said = json.dumps(asdict(encoder.config)), json.dumps(dict(notes or {}))
    with replacing(path) as part:
        part.write_bytes(save(tensors, metadata={"format": FORMAT, "encoder": config, "notes": said}))


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and what its file gave it.

    Attributes:
        encoder: on the CPU and in evaluation mode.
        loaded: keys of the file that the encoder took.
        left_out: those that it did not: a published file's classifiers, and what the network computes for itself.
    """

    encoder: Encoder
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]


def load_encoder(
    path: str | Path, *, last_stride: Literal[1, 2] | None = None, input_size: tuple[int, int] | None = None
) -> Encoder:
    """Rebuild an encoder from its file, as `open_encoder` does."""
    return open_encoder(path, last_stride=last_stride, input_size=input_size).encoder


def open_encoder(
    path: str | Path, *, last_stride: Literal[1, 2] | None = None, input_size: tuple[int, int] | None = None
) -> LoadedEncoder:
    """Rebuild an encoder from its file, and tell which keys of the file it took.

    Args:
        path: a `.safetensors` file of `save_encoder`, or a published checkpoint; see `reid/published.py`.
        last_stride: instead of what the file says, or what is usual for files that do not say it.
        input_size: the same.

    Raises:
        ValueError: no such file, an unreadable one, another kind of file, or weights that do not fit.
    """
    path = Path(path)
    published = None if path.suffix == ".safetensors" else read_published(path)
    settings, state = _read(path) if published is None else (published.settings, published.state)
    try:
        config = replace(EncoderConfig(**settings), pretrained=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: unreadable encoder configuration ({error})") from error
    if last_stride is not None:
        config = replace(config, last_stride=last_stride)
    if input_size is not None:
        config = replace(config, input_size=input_size)
    encoder = Encoder(config)
    load_whole(encoder, state, str(path), published.prefixes if published else None)
    return LoadedEncoder(encoder.eval(), tuple(state), published.left_out if published else ())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a {FORMAT} file, got format {metadata.get('format')!r}")
    try:
        settings = json.loads(metadata["encoder"])
        return settings | {"input_size": tuple(settings["input_size"])}, state
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: unreadable encoder configuration ({error})") from error


def _neck(kind: NeckKind, c_in: int, c_out: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    norm = nn.BatchNorm1d(c_out)
    if kind == "bn":
        norm.bias.requires_grad_(False)
        return nn.Sequential(OrderedDict(norm=norm))
    linear = nn.Linear(c_in, c_out)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(linear=linear, norm=norm))
