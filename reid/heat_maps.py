"""Where an encoder looks: how strong its last feature map is, and which of it makes two images alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reid.backbones import VisionTransformer
from reid.datasets import Crops
from reid.encoders import Encoder
from reid.extraction import EncoderDescriber
from reid.pictures import RankList, found_tile, headline, query_tile
from reid.ranking import RankingResult
from reid.sheets import Tile, draw_sheet


@torch.no_grad()
def activation_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Length of the last feature map's vectors, at each place.

    Args:
        encoder: in evaluation mode.
        images: (B, 3, H, W) on its device, as it takes them.

    Returns:
        (B, h, w) from 0.
    """
    lengths: Tensor = torch.linalg.vector_norm(encoder.feature_map(images).float(), dim=1)
    return lengths


def similarity_maps(encoder: Encoder, images: Tensor, targets: Tensor) -> Tensor:
    """Which places of images make them similar to others: Grad-CAM (Selvaraju et al., ICCV 2017) of the cosine.

    Channels of the last feature map are added with weights: the mean derivative of the cosine by each (equations 1, 2).

    Args:
        encoder: in evaluation mode; its parameters get no gradients.
        images: (B, 3, H, W) on its device, as it takes them.
        targets: (B, D) features of the other images.

    Returns:
        (B, h, w) from 0.

    Raises:
        ValueError: the encoder's feature does not come from its map (ViT's is its class token).
    """
    with torch.enable_grad(), _recorded(encoder) as maps:
        # Without this nothing would need gradients where the parameters are frozen.
        features = encoder(images.detach().clone().requires_grad_())
        if not maps:
            raise ValueError(f"similarity maps: {encoder.config.name} does not pool its feature map")
        cosine = F.cosine_similarity(features, targets.to(features))
        (slope,) = torch.autograd.grad(cosine.sum(), maps[0])
    weights = slope.mean(dim=(2, 3), keepdim=True)
    return (weights * maps[0].detach()).sum(dim=1).relu()


@contextlib.contextmanager
def _recorded(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Keep the backbone's feature maps while the block runs."""
    maps: list[Tensor] = []
    original = encoder.backbone.feature_map

    def record(images: Tensor) -> Tensor:
        maps.append(original(images))
        return maps[-1]

    # An attribute of the instance hides the method of its class until it is deleted.
    vars(encoder.backbone)["feature_map"] = record
    try:
        yield maps
    finally:
        del vars(encoder.backbone)["feature_map"]


def draw_heat_maps(
    path: str | Path,
    describer: EncoderDescriber,
    lists: Sequence[RankList],
    query: Crops,
    gallery: Crops,
    result: RankingResult,
) -> None:
    """Write a PNG with a row for each query: the query, the nearest image and, if it is another, the first right one.

    Beside each stand its activation and what makes it similar: the query to the nearest image, the others to the query.
    ViT has no such map.

    Raises:
        ValueError: an image cannot be read; its file is named.
    """
    rows = []
    for one in lists:
        ranks = dict.fromkeys([0, max(int(result.first_ranks[one.query]) - 1, 0)])
        tiles = [query_tile(one, query), *(found_tile(one, rank, gallery) for rank in ranks if len(one.places))]
        images = torch.stack([describer.prepare(tile.image, 1.0) for tile in tiles]).to(describer.device)
        columns = [("activation", activation_maps(describer.encoder, images))]
        if len(tiles) > 1 and not isinstance(describer.encoder.backbone, VisionTransformer):
            with torch.no_grad():
                features = describer.encoder(images)
            targets = features[[1, *[0] * (len(tiles) - 1)]]
            columns.append(("similarity", similarity_maps(describer.encoder, images, targets)))
        groups = []
        for place, tile in enumerate(tiles):
            what = {"activation": "activation", "similarity": "similar to 1" if place == 0 else "similar to query"}
            heat = [(name, maps[place].cpu().numpy()) for name, maps in columns]
            groups.append([tile, *(Tile(blend(tile.image, values), (what[name],)) for name, values in heat)])
        rows.append((headline(one, query, result), groups))
    draw_sheet(path, rows)


def blend(image: NDArray[np.uint8], heat: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """An image (H, W, 3) BGR under heat (h, w), from blue for its least to red for its most."""
    low, high = float(heat.min()), float(heat.max())
    level = ((heat - low) / ((high - low) or 1) * 255).astype(np.float32)
    level = cv2.resize(level, image.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 255)
    colours = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_JET)
    return np.asarray(cv2.addWeighted(image, 0.5, colours, 0.5, 0), np.uint8)
