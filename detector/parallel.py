"""Training on several processes, as torchrun starts them; everything here does nothing in a process alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from torch import Tensor, distributed


def choose_device(device: str) -> str:
    """What "auto" stands for.

    Raises:
        ValueError: "cuda" where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' asked for, but no CUDA device is available")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def start(device: str) -> tuple[int, int, torch.device]:
    """Join the other processes, if torchrun started this one: gloo on a CPU, NCCL on GPUs.

    Args:
        device: "cpu" or "cuda".

    Returns:
        This process' rank, the number of processes, and its device.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not distributed.is_available():
        return 0, 1, torch.device(device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"device: process {local} of this machine has no GPU of its own; start fewer")
        torch.cuda.set_device(place)
    if not distributed.is_initialized():
        # The first process validates while the others wait for it.
        patience = timedelta(hours=6)
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=patience)
    return distributed.get_rank(), world, place


def stop() -> None:
    """Leave the other processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def wait() -> None:
    """Go on when every process has come this far."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def mean(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Named scalars averaged over the processes."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(stacked)
        stacked /= distributed.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
