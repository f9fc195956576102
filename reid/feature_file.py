"""Features of a data set's splits in a file, with what tells whether they are those that are wanted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.datasets import Crops
from reid.files import replacing

FORMAT = "jdetrack-reid-features-2"


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of a split.

    Attributes:
        features: (N, D) float32 unit rows.
        names: N images, named as in `Crops`.
        pids: (N,) int64 identities.
        camids: (N,) int64 cameras.
    """

    features: NDArray[np.float32]
    names: tuple[str, ...]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.dtype != np.float32:
            raise ValueError(f"features: expected float32 (N, D), got {self.features.dtype} {self.features.shape}")
        if len(self.names) != len(self.features):
            raise ValueError(f"names: expected {len(self.features)}, one for each feature, got {len(self.names)}")
        for name, labels in (("pids", self.pids), ("camids", self.camids)):
            if labels.shape != (len(self.features),) or labels.dtype != np.int64:
                raise ValueError(
                    f"{name}: expected int64 ({len(self.features)},), one for each feature, "
                    f"got {labels.dtype} {labels.shape}"
                )


@dataclass(frozen=True)
class SavedFeatures:
    """Features of some splits, and how they were made.

    Attributes:
        sets: by split.
        encoder: SHA-256 of the weights that the encoder has.
        settings: all else that they depend on, as JSON can say it.
        stamps: by split, (N, 2) what tells whether images have changed since, see `Crops.stamps`.
        source: the file that they were read from, as messages call it.
    """

    sets: dict[str, FeatureSet]
    encoder: str
    settings: dict[str, Any]
    stamps: dict[str, NDArray[np.int64]]
    source: str = ""

    def __post_init__(self) -> None:
        for split, one in self.sets.items():
            stamps = self.stamps[split]
            if stamps.shape != (len(one.names), 2) or stamps.dtype != np.int64:
                raise ValueError(
                    f"stamps: expected int64 ({len(one.names)}, 2) of {split}, got {stamps.dtype} {stamps.shape}"
                )

    def check_origin(self, encoder: str, settings: dict[str, Any]) -> None:
        """Raise `ValueError` where these features were made by another encoder or with other settings."""
        if self.encoder != encoder:
            raise ValueError(
                f"{self.source}: features of other weights (SHA-256 {self.encoder[:12]}, not {encoder[:12]}); "
                "name another file"
            )
        for name in settings | self.settings:
            ours, theirs = self.settings.get(name, "unknown"), settings.get(name, "unknown")
            if ours != theirs:
                raise ValueError(f"{self.source}: features made with {name} {ours}, not {theirs}; name another file")

    def of(self, splits: Mapping[str, Crops]) -> dict[str, FeatureSet]:
        """Features of the splits that are here.

        Raises:
            ValueError: they are not those of these crops, by names and labels, or an image has changed since.
        """
        known = [split for split in splits if split in self.sets]
        for split in known:
            self._check_images(split, splits[split])
        return {split: self.sets[split] for split in known}

    def _check_images(self, split: str, crops: Crops) -> None:
        one = self.sets[split]
        ours, theirs = (
            list(zip(images.names, images.pids.tolist(), images.camids.tolist(), strict=True))
            for images in (one, crops)
        )
        differing = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
        if len(ours) != len(theirs):
            fault = f"{len(ours):,} images, not {len(theirs):,}"
        elif differing:
            fault = ", not ".join(f"{name} (pid {pid}, camera {camid})" for name, pid, camid in differing)
        elif len(changed := np.flatnonzero((self.stamps[split] != crops.stamps()).any(axis=1))):
            fault = f"{one.names[changed[0]]} has changed since, by size and {crops.store.STAMP}"
        else:
            return
        raise ValueError(f"{self.source}: features of other data ({split}: {fault}); name another file")


def save_features(path: str | Path, saved: SavedFeatures) -> None:
    """Write an `.npz`: `<split>/features`, `/names`, `/pids`, `/camids`, `/stamps` for each split, and `about`, JSON.

    An older file stays until the new one is complete.
    """
    about = {"format": FORMAT, "splits": list(saved.sets), "encoder": saved.encoder, "settings": saved.settings}
    arrays: dict[str, NDArray[Any]] = {"about": np.array(json.dumps(about))}
    for split, one in saved.sets.items():
        arrays |= {f"{split}/features": one.features, f"{split}/names": np.array(one.names, np.str_)}
        arrays |= {f"{split}/pids": one.pids, f"{split}/camids": one.camids, f"{split}/stamps": saved.stamps[split]}
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_features(path: str | Path) -> SavedFeatures:
    """Read a file of `save_features`; nothing in it is ever unpickled.

    Raises:
        ValueError: no such file, another kind of file, arrays that do not fit together, or a feature that is zero or
            not finite (its image is named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    what = "expected features written by eval_reid.py"
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("this is no .npz")
        with np.load(path, allow_pickle=False) as arrays:
            if "about" not in arrays:
                raise ValueError("it has no description")
            about = json.loads(str(arrays["about"]))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise ValueError(f"expected the format {FORMAT}")
            sets = {}
            for split in about["splits"]:
                names = ("features", "names", "pids", "camids")
                features, images, pids, camids = (arrays[f"{split}/{name}"] for name in names)
                sets[split] = FeatureSet(features, tuple(map(str, images.tolist())), pids, camids)
            stamps = {split: arrays[f"{split}/stamps"] for split in sets}
            saved = SavedFeatures(sets, str(about["encoder"]), dict(about["settings"]), stamps, str(path))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {what} ({' '.join(str(error).split())})") from error
    lengths = {split: one.features.shape[1] for split, one in sets.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: {what}, of one length in all splits, got {lengths}")
    for split, one in sets.items():
        norms = np.linalg.norm(one.features, axis=1)
        useless = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(useless):
            place = int(useless[0])
            raise ValueError(
                f"{path}: {what}, finite and not zero, got length {norms[place]:g} of {split} {one.names[place]}"
            )
    return saved
