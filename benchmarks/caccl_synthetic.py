"""Contrast with cameras, without, and with single images, where the truth is known: a small world of several cameras.

    python benchmarks/caccl_synthetic.py
    python benchmarks/caccl_synthetic.py --seeds 100 101 --json elsewhere.json

CACCL and its ablations, with the pieces and settings of training without labels: in every epoch Jaccard distances,
DBSCAN and memories anew. An image is a vector: a person's look and what changes from picture to picture, mixed, then
seen by a camera, which turns, scales, shifts and saturates it and adds noise. The encoder has two layers and starts
from random weights. Images, encoder, rates and epochs are the same for all methods. Scored is how well people of whom
nothing was learned are found in the other cameras.

How hard the world is was settled on seeds from 100. Seeds 0 to 4, which are reported, had no part in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.throughput import machine  # noqa: E402
from reid.contrast import ContrastConfig, ContrastCriterion  # noqa: E402
from reid.distances import FeatureDistances  # noqa: E402
from reid.jaccard import jaccard_graph  # noqa: E402
from reid.pseudo_labels import ClusterConfig, cluster_graph, describe_labels  # noqa: E402
from reid.ranking import evaluate_ranking  # noqa: E402
from reid.samplers import IdentitySampler  # noqa: E402

IntArray = NDArray[np.int64]

METHODS = {
    "self-paced": ContrastConfig(method="self-paced"),
    "cluster": ContrastConfig(method="cluster"),
    "cluster + camera": ContrastConfig(method="caccl"),
}
LAMBDAS = (0.2, 0.4, 0.6, 1.0)
PEOPLE, IMAGES = 16, 4  # in a batch


@dataclass(frozen=True)
class World:
    """How hard it is to tell people apart; all spreads relative to that of the looks."""

    people: int = 100
    """To learn from."""
    strangers: int = 50
    """To be found, none of them learned from."""
    cameras: int = 6
    """Each person learned from is seen by two of them or more, by some of these more often than by others."""
    images: int = 20
    """Of a person to learn from, in all cameras; of a stranger four in each camera, the first of them the query."""
    look: int = 32
    """Numbers that make up a person's look."""
    nuisance: int = 16
    """Numbers that say nothing about the person."""
    size: int = 64
    """Numbers in an image."""
    view: float = 0.2
    """Spread of a person's look from camera to camera, who sees each person from another side."""
    pose: float = 0.3
    """Spread of a person's look from image to image."""
    clutter: float = 0.3
    """Spread of the nuisance."""
    turn: float = 0.4
    """How far a camera mixes the numbers of an image."""
    cast: float = 0.5
    """Spread of a camera's shift of each number, and of the logarithm of its scale."""
    noise: float = 0.2
    """Spread of what is added to each number in the end."""


@dataclass(frozen=True)
class Views:
    """Images (N, size) with who they show (N,), from 1, and which camera they are of (N,), from 1."""

    images: Tensor
    pids: IntArray
    camids: IntArray


@dataclass(frozen=True)
class Schedule:
    """Training, as published but for its length."""

    epochs: int = 20
    lr: float = 3.5e-4
    weight_decay: float = 5e-4
    drop: float = 2 / 3
    """Share of the epochs after which the rate is a tenth."""


def make_views(world: World, seed: int) -> tuple[Views, Views, Views]:
    """What is learned from, the queries, and the gallery."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(world.people + world.strangers, world.look))
    sides = world.view * rng.normal(size=(world.cameras, *looks.shape))
    mixing = rng.normal(size=(world.look + world.nuisance, world.size)) / np.sqrt(world.look)
    turns = rng.normal(size=(world.cameras, world.size, world.size)) / np.sqrt(world.size)
    turns = np.eye(world.size) + world.turn * turns
    shifts, scales = world.cast * rng.normal(size=(2, world.cameras, world.size))

    def view(pids: IntArray, camids: IntArray) -> Views:
        posed = looks[pids - 1] + sides[camids - 1, pids - 1] + world.pose * rng.normal(size=(len(pids), world.look))
        clutter = world.clutter * rng.normal(size=(len(pids), world.nuisance))
        clean = np.concatenate((posed, clutter), axis=1) @ mixing
        turned = np.einsum("nd,nde->ne", clean, turns[camids - 1])
        seen = np.tanh(np.exp(scales[camids - 1]) * turned + shifts[camids - 1])
        images = torch.from_numpy(seen + world.noise * rng.normal(size=seen.shape)).float()
        return Views(images, pids, camids)

    # Of each person two cameras or more have images, in uneven shares.
    order = rng.random((world.people, world.cameras)).argsort(axis=1)
    among = order < rng.integers(2, world.cameras + 1, (world.people, 1))
    shares = rng.gamma(1, size=among.shape) * among
    shares /= shares.sum(axis=1, keepdims=True)
    cameras = np.concatenate([rng.choice(world.cameras, world.images, p=share) + 1 for share in shares])
    train = view(np.repeat(np.arange(1, world.people + 1), world.images), cameras)
    strangers = np.arange(world.people + 1, world.people + world.strangers + 1)
    pids, camids = (part.reshape(-1) for part in np.meshgrid(strangers, np.arange(1, world.cameras + 1)))
    return train, view(pids, camids), view(np.repeat(pids, 3), np.repeat(camids, 3))


def make_encoder(world: World, seed: int) -> nn.Sequential:
    """Two layers; the batch norm behind them is the neck of the larger encoders."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(world.size, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128), nn.BatchNorm1d(128)
    )


@torch.no_grad()
def embed(encoder: nn.Module, views: Views) -> Tensor:
    """(N, 128) of unit length."""
    return nn.functional.normalize(encoder.eval()(views.images))


def mean_ap(encoder: nn.Module, query: Views, gallery: Views) -> float:
    """Across cameras."""
    distances = FeatureDistances(embed(encoder, query), embed(encoder, gallery))
    return evaluate_ranking(distances, query.pids, gallery.pids, query.camids, gallery.camids).mean_ap


def learn(
    encoder: nn.Module,
    views: Views,
    config: ContrastConfig,
    schedule: Schedule,
    seed: int,
    supervised: bool = False,
) -> list[dict[str, Any]]:
    """Train; returns what the clusters of each epoch were. With `supervised` the people take the clusters' place."""
    criterion = ContrastCriterion(config)
    optimizer = torch.optim.Adam(encoder.parameters(), schedule.lr, weight_decay=schedule.weight_decay)
    clusters, rows = ClusterConfig(), []
    for epoch in range(schedule.epochs):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * (0.1 if epoch >= schedule.drop * schedule.epochs else 1)
        features = embed(encoder, views)
        if supervised:
            labels = views.pids - 1
        else:
            labels = cluster_graph(jaccard_graph(features, max_distance=clusters.max_distance), clusters)
        rows.append({"epoch": epoch, **describe_labels(labels, views.pids).figures()})
        criterion.rebuild(features, torch.from_numpy(labels), torch.from_numpy(views.camids))
        people = min(PEOPLE, int(labels.max()) + 1)
        encoder.train()
        for batch in IdentitySampler(labels, views.camids, people, IMAGES, seed).epoch(epoch):
            chosen = torch.from_numpy(batch)
            embedded = nn.functional.normalize(encoder(views.images[chosen]))
            total = criterion.total(criterion(embedded, chosen))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            criterion.update(embedded.detach(), chosen)
    return rows


def rows_of(seed: int, world: World, schedule: Schedule) -> list[dict[str, Any]]:
    """Everything that is trained on one world; λ = 0 and 0.8 are the methods without and with cameras."""
    train, query, gallery = make_views(world, seed)
    untrained = mean_ap(make_encoder(world, seed), query, gallery)
    rows: list[dict[str, Any]] = [{"seed": seed, "row": "before training", "mAP": untrained}]
    runs = {name: (config, False) for name, config in METHODS.items()}
    runs["cluster, people known"] = METHODS["cluster"], True
    runs |= {f"λ = {value:g}": (ContrastConfig(camera_weight=value), False) for value in LAMBDAS}
    for name, (config, supervised) in runs.items():
        began = time.perf_counter()
        encoder = make_encoder(world, seed)
        clusters = learn(encoder, train, config, schedule, seed, supervised)
        figures = {"mAP": mean_ap(encoder, query, gallery), "seconds": round(time.perf_counter() - began, 1)}
        rows.append({"seed": seed, "row": name, **figures, "clusters": clusters})
        print(f"seed {seed}: {name} {figures['mAP']:.3f}", flush=True)
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each row's mAP, and on which seeds the methods rank as published."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["row"], {})[row["seed"]] = row["mAP"]
    methods = [scores[name] for name in METHODS]
    return {
        "mAP": {
            name: {
                "mean": float(np.mean(list(values.values()))),
                "deviation": float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None,
            }
            for name, values in scores.items()
        },
        "seeds_in_published_order": [
            seed for seed in methods[0] if all(a[seed] < b[seed] for a, b in itertools.pairwise(methods))
        ],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: one row of the benchmark a line, one seed a column."""
    summary, seeds = summarise(rows), sorted({row["seed"] for row in rows})
    lines = [
        f"| | mAP | ± | {' | '.join(f'seed {seed}' for seed in seeds)} | clusters at the end | their NMI |",
        "|---|" + "---|" * (len(seeds) + 4),
    ]
    for name, figures in summary["mAP"].items():
        own = sorted((row for row in rows if row["row"] == name), key=lambda row: row["seed"])
        cells = [f"{figures['mean']:.3f}", "-" if figures["deviation"] is None else f"{figures['deviation']:.3f}"]
        cells += [f"{row['mAP']:.3f}" for row in own]
        last = [row["clusters"][-1] for row in own if "clusters" in row]
        cells += [f"{np.mean([row['clusters'] for row in last]):.0f}" if last else "-"]
        cells += [f"{np.mean([row['nmi'] for row in last]):.3f}" if last else "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    kept = len(summary["seeds_in_published_order"])
    lines.append(f"\n{' < '.join(METHODS)}: on {kept} of {len(seeds)} seeds")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 to 4)")
    parser.add_argument("--epochs", type=int, default=Schedule.epochs, help="of each run (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "caccl_synthetic.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    world, schedule, facts = World(), Schedule(epochs=args.epochs), machine()
    began = time.perf_counter()
    rows = [row for seed in args.seeds for row in rows_of(seed, world, schedule)]
    print(table(rows))
    result = {
        "command": "python benchmarks/caccl_synthetic.py " + " ".join(sys.argv[1:] if argv is None else argv),
        "machine": facts,
        "world": asdict(world),
        "schedule": asdict(schedule),
        "contrast": asdict(ContrastConfig()),
        "seconds": round(time.perf_counter() - began),
        "summary": summarise(rows),
        "rows": rows,
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
