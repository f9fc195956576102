"""Patches: what the embedding head reads of a box, cut out of the feature maps, so that it can be embedded again later.

Backbone and pyramid cost a hundred times what the embedding head does. Whoever refines the head alone cuts the patches
of some boxes once, keeps them, and never looks at a picture again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detector.priors import Network, Picks

CHUNK = 512
"""Boxes embedded at once."""
BETWEEN_VIDEOS = 60.0
"""Seconds on the clock of a camera between two of its videos."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of N boxes, rows in any order.

    Attributes:
        picks: the boxes, in network pixels, and the cells that found them.
        coarse: per level, for its N_l boxes in the order of the rows, (N_l, C_l, h, w): of the compact family 8x4 cells
            under the box, of the published one the 3x3 cells around the cell that found it.
        fine: (N, C, 16, 8) cells of the compact family's shallow map under the boxes; None in the published one.
    """

    picks: Picks
    coarse: tuple[Tensor, ...]
    fine: Tensor | None

    def __len__(self) -> int:
        return len(self.picks.level)

    @cached_property
    def _place(self) -> Tensor:
        """(N,) where each row stands among those of its level."""
        place = torch.zeros_like(self.picks.level)
        for level in range(len(self.coarse)):
            own = self.picks.level == level
            place[own] = torch.arange(int(own.sum()), device=place.device)
        return place

    def __getitem__(self, rows: Tensor) -> Patches:
        """Some rows, (M,) int64, in their order."""
        picks = Picks(*(part[rows] for part in (self.picks.image, self.picks.level, self.picks.xy, self.picks.boxes)))
        place = self._place[rows]
        coarse = tuple(part[place[picks.level == level]] for level, part in enumerate(self.coarse))
        return Patches(picks, coarse, None if self.fine is None else self.fine[rows])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be saved."""
        picks = self.picks
        named = {"image": picks.image, "level": picks.level, "xy": picks.xy, "boxes": picks.boxes}
        named |= {f"coarse{level}": part for level, part in enumerate(self.coarse)}
        return named if self.fine is None else named | {"fine": self.fine}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Patches:
        """What `tensors` named."""
        picks = Picks(*(tensors[name] for name in ("image", "level", "xy", "boxes")))
        levels = sum(name.startswith("coarse") for name in tensors)
        return cls(picks, tuple(tensors[f"coarse{level}"] for level in range(levels)), tensors.get("fine"))

    @classmethod
    def cat(cls, parts: Sequence[Patches]) -> Patches:
        """The rows of all, at least one, one after the other."""
        tensors = [part.tensors for part in parts]
        return cls.of({name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Patches:
        """On another device, the features as another type of float; boxes stay float32."""
        picks = self.picks
        moved = Picks(*(part.to(device) for part in (picks.image, picks.level, picks.xy, picks.boxes)))
        coarse = tuple(part.to(device, dtype) for part in self.coarse)
        return Patches(moved, coarse, None if self.fine is None else self.fine.to(device, dtype))

    def mirrored(self, rows: Tensor) -> Patches:
        """Turned left to right in the rows of a mask (N,): what a mirrored person gives, nearly."""

        def turn(part: Tensor, own: Tensor) -> Tensor:
            return torch.where(own[:, None, None, None], part.flip(-1), part)

        coarse = tuple(turn(part, rows[self.picks.level == level]) for level, part in enumerate(self.coarse))
        return replace(self, coarse=coarse, fine=None if self.fine is None else turn(self.fine, rows))


def cut_patches(model: Network, features: Sequence[Tensor], picks: Picks) -> Patches:
    """Cut what the model's embedding head reads of some boxes, as float32.

    Args:
        model: of either family.
        features: the maps its `forward` returned.
        picks: the N boxes.
    """
    coarse, fine, order = model.patches(features, picks)
    return Patches(picks, tuple(coarse), None if fine is None else fine[order.argsort()])


def embed_patches(model: Network, patches: Patches) -> Tensor:
    """Embed the boxes that patches were cut from.

    Args:
        model: the one that cut them, or one whose embedding head alone has changed since.
        patches: of N boxes.

    Returns:
        (N, D) unit rows, float32: from float32 patches those of `model.embed`.
    """
    if not len(patches):
        return patches.picks.boxes.new_zeros((0, model.config.embedding_dim))
    order = patches.picks.level.argsort(stable=True)
    fine = None if patches.fine is None else patches.fine[order].float()
    return model.embed_patches([part.float() for part in patches.coarse], fine)[order.argsort()]


@torch.no_grad()
def embed_all(model: Network, patches: Patches, device: torch.device | str = "cpu") -> Tensor:
    """Embed many boxes, (N, D), a part of them at a time, by a model on `device`."""
    parts = torch.split(torch.arange(len(patches)), CHUNK)
    return torch.cat([embed_patches(model, patches[rows].to(device)) for rows in parts])


@dataclass(frozen=True, eq=False)
class TrackedBoxes:
    """N boxes of people who were followed through footage, sorted by track, then by time; all on the CPU.

    Attributes:
        patches: what the embedding head reads of them.
        tracks: (N,) int64 number of the track.
        videos: (N,) int64 which video.
        camids: (N,) int64 which camera.
        frames: (N,) int64 number of the frame in its video, from 1.
        seconds: (N,) float64 time on the clock of the camera.
        boxes: (N, 4) float32 xyxy in pixels of the frame.
        thumbs: (N, h, w, 3) uint8 BGR, small pictures of the boxes.
    """

    patches: Patches
    tracks: Tensor
    videos: Tensor
    camids: Tensor
    frames: Tensor
    seconds: Tensor
    boxes: Tensor
    thumbs: Tensor

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def _columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "patches"}

    def save(self, path: Path) -> None:
        """Write a file that is there whole or not at all.

        Raises:
            OSError: it cannot be written; an earlier file of that name is as it was.
        """
        tensors = self._columns | {f"patches.{name}": part for name, part in self.patches.tensors.items()}
        temporary = path.with_name(path.name + ".partial")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
            temporary.replace(path)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{path}: cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> TrackedBoxes:
        """What `save` wrote.

        Raises:
            ValueError: it is no such file.
        """
        try:
            tensors = load_file(path)
            patches = {name.removeprefix("patches."): tensors.pop(name) for name in list(tensors) if "." in name}
            return cls(Patches.of(patches), **tensors)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a readable file of boxes ({error})") from error

    @classmethod
    def join(cls, parts: Sequence[TrackedBoxes | None], cameras: Sequence[int]) -> TrackedBoxes | None:
        """The boxes of several videos; None where there are none at all.

        Args:
            parts: of each video, its tracklets numbered from 0.
            cameras: that of each. Videos of one camera follow each other: nobody in one is seen at once with anybody in
                another.
        """
        joined: list[TrackedBoxes] = []
        clock = dict.fromkeys(cameras, 0.0)
        for number, (part, camera) in enumerate(zip(parts, cameras, strict=True)):
            if part is None:
                continue
            seconds = part.seconds + clock[camera]
            clock[camera] = float(seconds.max()) + BETWEEN_VIDEOS
            tracks = part.tracks + (int(joined[-1].tracks.max()) + 1 if joined else 0)
            videos, camids = torch.full_like(tracks, number), torch.full_like(tracks, camera)
            joined.append(replace(part, tracks=tracks, videos=videos, camids=camids, seconds=seconds))
        if not joined:
            return None
        columns = {name: torch.cat([getattr(part, name) for part in joined]) for name in joined[0]._columns}
        return cls(Patches.cat([part.patches for part in joined]), **columns)

    def __getitem__(self, rows: Tensor) -> TrackedBoxes:
        """Some rows, (M,) int64, in their order."""
        return TrackedBoxes(self.patches[rows], **{name: column[rows] for name, column in self._columns.items()})


class Sighting(NamedTuple):
    """One box of a tracklet.

    Attributes:
        frame: number of the frame in its video, from 1.
        seconds: its time in the video.
        box: (4,) float32 xyxy in pixels of the frame.
        patches: what the embedding head reads of it, one row, on the CPU.
        thumb: (h, w, 3) uint8, a small picture of it.
    """

    frame: int
    seconds: float
    box: NDArray[np.float32]
    patches: Patches
    thumb: NDArray[np.uint8]


class Collector:
    """Keeps some of the boxes of each tracklet of a video, spread over its time, in bounded memory.

    Of a tracklet every n-th step is kept, by the steps' numbers, so that people who are seen together are kept
    together; n doubles when the tracklet has more than it may. Where all tracklets together have too many, each may
    have half, but two; where that does not help, no new ones are taken.

    Args:
        per_track: most boxes of a tracklet, at least 2.
        total: most boxes of all.

    Attributes:
        refused: boxes that there was no room for.
    """

    def __init__(self, per_track: int, total: int) -> None:
        self.per_track, self.total, self.refused = per_track, total, 0
        self._tracks: dict[int, list[tuple[int, Sighting]]] = {}
        self._every: dict[int, int] = {}
        self._count = 0

    def wants(self, track: int, step: int) -> bool:
        """Whether a box would be kept at first: where not, there is no need to make it ready."""
        if step % self._every.get(track, 1):
            return False
        room = self._count < self.total or self.per_track > 2 or len(self._tracks.get(track, ())) >= self.per_track
        self.refused += not room
        return room

    def add(self, track: int, step: int, sighting: Sighting) -> None:
        """Keep a box that is wanted; steps come in ascending order."""
        self._tracks.setdefault(track, []).append((step, sighting))
        self._count += 1
        self._thin(track)
        while self._count > self.total and self.per_track > 2:
            self.per_track = max(self.per_track // 2, 2)
            for each in self._tracks:
                self._thin(each)

    def boxes(self, min_seconds: float) -> TrackedBoxes | None:
        """The boxes of the tracklets seen for so long, numbered from 0, video and camera 0; None where there are none.

        One box alone is no tracklet.
        """
        tracks = [[sighting for _, sighting in own] for own in self._tracks.values() if len(own) > 1]
        tracks = [own for own in tracks if own[-1].seconds - own[0].seconds >= min_seconds]
        if not tracks:
            return None
        rows = [sighting for own in tracks for sighting in own]
        numbers = torch.repeat_interleave(torch.arange(len(tracks)), torch.tensor([len(own) for own in tracks]))
        return TrackedBoxes(
            Patches.cat([row.patches for row in rows]),
            tracks=numbers,
            videos=torch.zeros_like(numbers),
            camids=torch.zeros_like(numbers),
            frames=torch.tensor([row.frame for row in rows]),
            seconds=torch.tensor([row.seconds for row in rows], dtype=torch.float64),
            boxes=torch.from_numpy(np.stack([row.box for row in rows])),
            thumbs=torch.from_numpy(np.stack([row.thumb for row in rows])),
        )

    def _thin(self, track: int) -> None:
        while len(self._tracks[track]) > self.per_track:
            every = self._every[track] = 2 * self._every.get(track, 1)
            before = self._tracks[track]
            self._tracks[track] = [entry for entry in before if entry[0] % every == 0]
            self._count -= len(before) - len(self._tracks[track])
