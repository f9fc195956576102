"""Yardsticks of re-ID evaluation, written from the descriptions, and features of Market-1501's numbers to run them on.

A yardstick takes the features and labels, and the file that distances are written to; it returns what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from reid.reranking import RerankConfig

QUERIES, GALLERY, PEOPLE, CAMERAS = 3368, 19732, 750, 6
DISTRACTORS, JUNK = 2798, 3819
"""Of the gallery's images."""
PERSON, COMMON, SHIFT, NOISE, FALL = 1.0, 0.5, 0.35, 1.25, 0.5
"""Sizes of what is a person's own, what all share, a camera's shift and what differs from image to image; the power of
its number with which a dimension's size falls off."""
Data = dict[str, NDArray[Any]]
"""`query_features`, `gallery_features` and, likewise, `_pids` and `_camids`."""


def synthetic(share: float, dimension: int, seed: int = 0) -> Data:
    """Features (unit length), identities and cameras of queries and gallery, `share` of Market-1501's numbers."""
    rng = np.random.default_rng(seed)
    n_query, n_gallery, people = (max(2, round(number * share)) for number in (QUERIES, GALLERY, PEOPLE))
    distractors, junk = round(DISTRACTORS * share), round(JUNK * share)
    size = (np.arange(1, dimension + 1) ** -FALL).astype(np.float32)
    size /= np.linalg.norm(size)

    def draw(count: int) -> NDArray[np.float32]:
        return rng.standard_normal((count, dimension), dtype=np.float32) * size

    common, looks, shifts = COMMON * draw(1), PERSON * draw(people + 1), SHIFT * draw(CAMERAS)
    strangers = np.repeat([-1, 0], [junk, distractors])
    pids = {
        "query": rng.integers(1, people + 1, n_query),
        "gallery": np.concatenate((strangers, rng.integers(1, people + 1, n_gallery - len(strangers)))),
    }
    data = {}
    for side, people_of in pids.items():
        people_of.sort()
        camids = rng.integers(1, CAMERAS + 1, len(people_of))
        rows = NOISE * draw(len(people_of)) + shifts[camids - 1] + common
        known = people_of > 0
        rows[known] += looks[people_of[known]]
        rows[~known] += PERSON * draw(int((~known).sum()))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        data |= {f"{side}_features": rows, f"{side}_pids": people_of, f"{side}_camids": camids}
    return data


def labels(data: Data) -> list[NDArray[Any]]:
    """Identities and cameras in the order that `evaluate_ranking` takes them."""
    return [data[f"{side}_{kind}"] for kind in ("pids", "camids") for side in ("query", "gallery")]


def status_bytes(key: str) -> int:
    """A figure of this process that Linux keeps, in bytes: `VmRSS:`, what it holds, or `VmHWM:`, the most so far."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise ValueError("memory is read from /proc, which this system has not")
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def best_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the fewest seconds, with the seconds and the memory of all beside."""
    best = min(runs, key=lambda run: run["seconds"])
    return {**best, **{f"{name}_of_runs": [run[name] for run in runs] for name in ("seconds", "memory_bytes")}}


def peak_bytes() -> int:
    """Most memory that this process has held, in bytes (Linux)."""
    return status_bytes("VmHWM:")


def rank_loop(data: Data, out: Path) -> dict[str, Any]:
    """One query after the other, as the supervised baseline's users run it on the CPU."""
    query_pids, gallery_pids, query_camids, gallery_camids = labels(data)
    gallery = torch.from_numpy(data["gallery_features"])
    clock = time.perf_counter()
    average_precisions, hits, penalties = [], np.zeros(len(gallery_pids)), []
    for query in tqdm(range(len(query_pids)), desc="ranking, loop", mininterval=5):
        scores = (gallery @ torch.from_numpy(data["query_features"][query])).numpy()
        order = np.argsort(scores)[::-1]
        same_person = np.flatnonzero(gallery_pids == query_pids[query])
        same_camera = np.flatnonzero(gallery_camids == query_camids[query])
        right = np.setdiff1d(same_person, same_camera)
        left_out = np.append(np.flatnonzero(gallery_pids == -1), np.intersect1d(same_person, same_camera))
        if not len(right):
            continue
        order = order[np.isin(order, left_out, invert=True)]
        ranks = np.flatnonzero(np.isin(order, right))
        hits[ranks[0] :] += 1
        area = 0.0
        for found, rank in enumerate(ranks):
            before = found / rank if rank else 1.0
            area += ((found + 1) / (rank + 1) + before) / 2
        average_precisions.append(area / len(ranks))
        penalties.append(len(ranks) / (ranks[-1] + 1))
    seconds = time.perf_counter() - clock
    valid = len(average_precisions)
    scores = {
        "mAP_trapezoid": float(np.mean(average_precisions)),
        **{f"rank-{rank}": float(hits[min(rank, len(hits)) - 1] / valid) for rank in (1, 5, 10, 20)},
        "mINP": float(np.mean(penalties)),
        "queries": len(query_pids),
        "valid_queries": valid,
    }
    return {"seconds": seconds, "scores": scores}


def rerank_dense(data: Data, out: Path, tidy: bool = False) -> dict[str, Any]:
    """Re-ranking with dense matrices over all N images, by loops over the images."""
    config = RerankConfig()
    clock = time.perf_counter()
    images = torch.from_numpy(np.concatenate((data["query_features"], data["gallery_features"])))
    images = torch.nn.functional.normalize(images, dim=1)  # what ours does too: the same features to the last bit
    n, n_query = len(images), len(data["query_features"])
    squared = (2 - 2 * (images @ images.T)).numpy()
    multiplied = time.perf_counter() - clock
    distance = squared**2
    del squared
    if tidy:
        distance /= distance.max(axis=1, keepdims=True)
        nearest = np.argpartition(distance, range(config.k1 + 1), axis=1)[:, : config.k1 + 1].copy()
    else:
        distance = (distance / distance.max(axis=0)).T
        nearest = np.argsort(distance, axis=1)

    def reciprocal(image: int, k: int) -> NDArray[np.intp]:
        forward = nearest[image, : k + 1]
        return forward[(nearest[forward, : k + 1] == image).any(axis=1)]

    encoding = np.zeros_like(distance)  # keeps the order in memory
    for image in tqdm(range(n), desc="encoding", mininterval=5):
        own = reciprocal(image, config.k1)
        members = [own]
        for candidate in own:
            theirs = reciprocal(candidate, round(config.k1 / 2))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members.append(theirs)
        chosen = np.unique(np.concatenate(members))
        weights = np.exp(-distance[image, chosen])
        encoding[image, chosen] = weights / weights.sum()
    distance = distance[:n_query]
    averaged = np.zeros_like(encoding)
    for image in tqdm(range(n), desc="expansion", mininterval=5):
        averaged[image] = encoding[nearest[image, : config.k2]].mean(axis=0)
    del encoding
    holders = [np.flatnonzero(averaged[:, place]) for place in range(n)]
    result = np.empty((n_query, n - n_query), np.float32)
    for query in tqdm(range(n_query), desc="overlap", mininterval=5):
        shared = np.zeros(n, np.float32)
        for place in np.flatnonzero(averaged[query]):
            shared[holders[place]] += np.minimum(averaged[query, place], averaged[holders[place], place])
        jaccard = 1 - shared / (2 - shared)
        final = (1 - config.original_weight) * jaccard + config.original_weight * distance[query]
        result[query] = final[n_query:]
    seconds, memory = time.perf_counter() - clock, peak_bytes()
    np.save(out, result)
    return {"seconds": seconds, "product_seconds": multiplied, "peak_bytes": memory}


def rerank_tidied(data: Data, out: Path) -> dict[str, Any]:
    """The dense algorithm at its best."""
    return rerank_dense(data, out, tidy=True)
