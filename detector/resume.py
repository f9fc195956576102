"""Training state on disk: written whole or not at all, read back without running anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

KEYS = {"parts", "optimizer", "scaler", "step", "config", "data"}
FRESH = ("peak", "start", "weight_decay", "momentum")
"""Of an optimiser's group, what the settings of a resumed run may change."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Whole or absent.

    Raises:
        OSError: it cannot be written; an earlier file of that name is as it was.
    """
    temporary = path.with_suffix(".partial")
    try:
        torch.save(state, temporary)
        temporary.replace(path)
    except (RuntimeError, OSError) as error:  # torch speaks of its archive where the disk is full
        raise OSError(f"{path}: cannot be written: is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        ValueError: no such file, unreadable, or not a checkpoint of training.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no checkpoint to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise ValueError(f"{path}: not a checkpoint of this tool")
    return state


def restore(
    state: dict[str, Any],
    path: Path,
    parts: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    groups: Sequence[Mapping[str, Any]],
) -> None:
    """Put everything back that a checkpoint holds.

    Args:
        state: what `read_checkpoint` returned.
        path: where it was read from, for messages.
        parts: everything that is trained, and the averaged weights.
        optimizer: made for the same settings.
        scaler: of gradients.
        groups: the optimiser's groups by the settings of now; rates and decay are taken from them.

    Raises:
        ValueError: the tensors do not fit: the data, the model or the optimiser changed since they were saved.
    """
    try:
        parts.load_state_dict(state["parts"])
    except RuntimeError as error:
        raise ValueError(
            f"{path}: does not fit: the model's configuration, or the identities in the data, changed since"
        ) from error
    saved, own = ("momentum" in some["param_groups"][0] for some in (state["optimizer"], optimizer.state_dict()))
    try:
        if saved != own:
            raise ValueError("SGD and AdamW remember different things")
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise ValueError(f"{path}: does not fit: the optimiser or what is frozen changed since") from error
    if state["scaler"]:  # empty unless it was fp16
        scaler.load_state_dict(state["scaler"])
    for group, fresh in zip(optimizer.param_groups, groups, strict=True):
        group |= {key: fresh[key] for key in FRESH if key in fresh}


def fingerprint(images: Sequence[Path], labels: Sequence[NDArray[np.float64]]) -> str:
    """Of the data: changes with any path or label."""
    digest = hashlib.sha256()
    for image, rows in zip(images, labels, strict=True):
        digest.update(str(image).encode() + rows.tobytes())
    return digest.hexdigest()
