"""Small data sets and encoders for tests that describe images."""

from pathlib import Path

import numpy as np
from PIL import Image

from reid.encoders import Encoder, EncoderConfig, build_encoder

SIZE = (32, 16)


def add_images(folder: Path, names: list[str], seed: int = 0) -> None:
    """Images of 24x12 pixels named PID_cCAM_...; those of a person have the person's colours, and some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in names:
        colours = np.random.default_rng(int(name.split("_")[0]) + 2).integers(0, 256, (4, 1, 3))
        pixels = np.repeat(np.repeat(colours, 6, axis=0), 12, axis=1) + rng.integers(-20, 21, (24, 12, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)


def add_market(root: Path, people: int = 4) -> Path:
    """A data set in Market-1501's layout: a query in each of two cameras, two gallery images in each, junk."""
    names = [
        f"{pid:04d}_c{camid}s1_00000{k}_00.png" for pid in range(1, people + 1) for camid in (1, 2) for k in (1, 2)
    ]
    add_images(root / "query", [name for name in names if "_000001_" in name], seed=1)
    add_images(root / "bounding_box_test", [*names, "-1_c1s1_000009_00.png", "0000_c2s1_000009_00.png"], seed=2)
    return root


def tiny_encoder(**settings: object) -> Encoder:
    """An encoder that takes a millisecond."""
    config = EncoderConfig(**{"name": "osnet_x0_25", "neck": "none", "input_size": SIZE, **settings})
    return build_encoder(config, seed=0).eval()
