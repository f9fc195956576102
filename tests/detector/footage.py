"""Boxes of people followed through small frames, with the patches that a network cut of them."""

import copy
import functools

import torch

from detector.darknet import DarknetJDE
from detector.model import JDE
from detector.patches import Patches, TrackedBoxes, cut_patches
from detector.priors import Picks
from tests.detector.scenes import lively_darknet, lively_model, noise

FAMILIES = {"compact": lively_model, "darknet53": lively_darknet}
TRACKS, FRAMES = 6, 4


def model_of(family: str) -> JDE | DarknetJDE:
    return copy.deepcopy(_made(family))


@functools.cache
def _made(family: str) -> JDE | DarknetJDE:
    return FAMILIES[family](embedding_dim=16)


def frame(seed: int, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.from_numpy(noise(height, width, seed))


def pixels(*frames: torch.Tensor) -> torch.Tensor:
    return torch.stack(frames).permute(0, 3, 1, 2).float()


def some_picks(count: int, images: int = 1, seed: int = 0, height: int = 64, width: int = 96) -> Picks:
    """Boxes of all levels in any order, and the cells at their centres."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.arange(count)[torch.randperm(count, generator=generator)] % 3
    size = torch.tensor([14.0, 28.0]) * (1 + level[:, None] / 2)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    xy = (centre / (8 * 2**level)[:, None]).long()
    image = torch.arange(count) % images
    return Picks(image, level, xy, torch.cat((centre - size / 2, centre + size / 2), dim=1))


@torch.no_grad()
def some_patches(model: JDE | DarknetJDE, count: int = 12, images: int = 2) -> Patches:
    _, features = model(pixels(*(frame(i) for i in range(images))))
    return cut_patches(model, features, some_picks(count, images))


def tracked(patches: Patches, tracks: int = TRACKS, frames: int = FRAMES, seconds: float = 0.1) -> TrackedBoxes:
    """Patches of tracks that are in every frame, and numbers that tell the rows apart."""
    count = tracks * frames
    frame_number = torch.arange(frames).repeat(tracks) + 1
    return TrackedBoxes(
        patches,
        tracks=torch.arange(tracks).repeat_interleave(frames),
        videos=torch.zeros(count, dtype=torch.int64),
        camids=torch.zeros(count, dtype=torch.int64),
        frames=frame_number,
        seconds=(frame_number - 1).double() * seconds,
        boxes=torch.arange(4.0 * count).reshape(count, 4),
        thumbs=torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 6, 4, 3).clone(),
    )


def followed(model: JDE | DarknetJDE, dtype: torch.dtype | None = None) -> tuple[TrackedBoxes, list[torch.Tensor]]:
    """Six people in four frames, two of which are smaller; their boxes, the frames; `boxes.frames - 1` is the place."""
    frames = [frame(i) if i < 2 else frame(i, 64, 64) for i in range(FRAMES)]
    cut = []
    with torch.no_grad():
        for i, picture in enumerate(frames):
            picks = some_picks(TRACKS, seed=i, width=picture.shape[1])
            cut.append(cut_patches(model, model(pixels(picture))[1], picks))
    patches = Patches.cat(cut)[torch.arange(TRACKS * FRAMES).reshape(FRAMES, TRACKS).T.flatten()]
    return tracked(patches.to("cpu", dtype)), frames
