"""People of two cameras, without labels: what CACCL and its ablations make of an encoder, on PKU-ReID.

    python benchmarks/caccl_pku.py --data pku_market_layout --osnet osnet_x0_25_market1501.pth
    python benchmarks/caccl_pku.py --data pku_market_layout --osnet osnet_x0_25_market1501.pth --part 2/2

Trains by tools/train_reid.py --method: OSNet x0.25 from the weights of another data set, and ResNet-50 from random
ones, for fewer epochs than published, in bfloat16, ResNet-50 at a smaller size, for what a CPU can do. Two recipes:

- published: labels and losses as published (Jaccard distances with k1 30 and k2 6, DBSCAN with 0.6 and 4, temperatures,
  momentum, Adam, batches of 16 x 4). k1 is more than the 16 images that there are of a person.
- small set: the same but for k1 10 and `clusters.centre_cameras`, both chosen on a split of the people to learn from
  (42 learned, 20 held out), with the identities of these.

Query and gallery had no part in either. Identities of the images that are learned from describe the clusters, and
nothing else.

Rows that the JSON file has already are not measured again. Processes with --part 1/2 and 2/2 share work and file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import numpy as np  # noqa: E402

from benchmarks.throughput import machine  # noqa: E402
from tracker.files import write_text  # noqa: E402

METHODS = ("self-paced", "cluster", "caccl")
OSNET, RESNET = "OSNet x0.25 fine-tuned", "ResNet-50 from random weights"
SETTINGS: dict[str, tuple[str, ...]] = {
    OSNET: ("encoder.name=osnet_x0_25", "encoder.pooling=average", "train.epochs=10"),
    RESNET: ("encoder.pretrained=false", "encoder.last_stride=2", "encoder.input_size=[96,48]", "train.epochs=6"),
}
COMMON = ("train.milestones=[0.667]", "train.validate_every=10", "train.save_every=10", "train.precision=bf16")
PUBLISHED: tuple[str, ...] = ()
SMALL_SET = ("jaccard.k1=10", "clusters.centre_cameras=true")


@dataclass(frozen=True)
class Run:
    """One row."""

    encoder: str
    method: str
    seed: int
    changed: tuple[str, ...] = ()
    """Settings other than the published ones."""


def plan() -> list[Run]:
    """All rows, the important ones first. λ = 0 is the method `cluster`, λ = 0.8 is `caccl`."""
    weights = [(*SMALL_SET, f"contrast.camera_weight={value}") for value in (0.2, 0.4, 0.6, 1.0)]
    recipes = (PUBLISHED, SMALL_SET)
    return [
        *(Run(OSNET, method, 0, recipe) for recipe in recipes for method in METHODS),
        *(Run(OSNET, method, 1, SMALL_SET) for method in METHODS),
        *(Run(RESNET, method, 0, SMALL_SET) for method in METHODS),
        *(Run(OSNET, method, 2, SMALL_SET) for method in METHODS),
        *(Run(OSNET, "caccl", 0, weight) for weight in weights),
        *(Run(RESNET, method, seed, SMALL_SET) for seed in (1, 2) for method in METHODS),
        *(Run(OSNET, method, seed, PUBLISHED) for seed in (1, 2) for method in METHODS),
        *(Run(RESNET, method, seed, PUBLISHED) for seed in range(3) for method in METHODS),
        *(Run(OSNET, "caccl", seed, weight) for seed in (1, 2) for weight in weights),
    ]


def measure(run: Run, data: str, osnet: str) -> dict[str, Any]:
    """Train once: the figures before and after, and the clusters of every epoch."""
    settings = [*COMMON, *SETTINGS[run.encoder], *run.changed, f"train.seed={run.seed}"]
    command = [sys.executable, str(ROOT / "tools" / "train_reid.py"), "--method", run.method, "--data", data]
    command += ["--init", osnet] if run.encoder == OSNET else []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([*command, "--out", out, "--set", *settings], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{run}: {done.stderr.strip().splitlines()[-1]}")
        logs = (Path(out) / f"{name}.jsonl" for name in ("validation", "clusters", "log"))
        validation, clusters, log = ([json.loads(line) for line in path.read_text().splitlines()] for path in logs)
    return {
        **asdict(run),
        "settings": settings,
        "before": validation[0],
        "after": validation[-1],
        "clusters": clusters,
        "total": [log[0]["total"], log[-1]["total"]],
        "seconds": round(time.perf_counter() - began),
    }


def key(row: dict[str, Any]) -> Run:
    """Which run a row of the file is."""
    return Run(row["encoder"], row["method"], row["seed"], tuple(row["changed"]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows measured so far."""
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def add_row(path: Path, row: dict[str, Any], facts: dict[str, Any]) -> None:
    """Into the file, which another process may be about to write, too: the folder is locked meanwhile."""
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        write_text(path, json.dumps({**facts, "rows": [*read_rows(path), row]}, indent=1) + "\n")
    finally:
        os.close(folder)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of means over the seeds, mAP with its standard deviation."""
    lines = [
        "| encoder | method | seeds | mAP before | mAP | rank-1 before | rank-1 | clusters | outliers | NMI |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["encoder"], row["method"], *row["changed"]), []).append(row)
    for (encoder, *method), own in groups.items():

        def mean(part: str, name: str, own: list[dict[str, Any]] = own) -> float:
            parts = (row[part][-1] if part == "clusters" else row[part] for row in own)
            return float(np.mean([figures.get(name, np.nan) for figures in parts]))

        spread = f" ± {np.std([row['after']['mAP'] for row in own], ddof=1):.3f}" if len(own) > 1 else ""
        cells = [encoder, ", ".join(method), str(len(own)), f"{mean('before', 'mAP'):.3f}"]
        cells += [f"{mean('after', 'mAP'):.3f}{spread}", f"{mean('before', 'rank-1'):.3f}"]
        cells += [f"{mean('after', 'rank-1'):.3f}", f"{mean('clusters', 'clusters'):.0f}"]
        cells += [f"{mean('clusters', 'outliers'):.0f}", f"{mean('clusters', 'nmi'):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def part(text: str) -> tuple[int, int]:
    """`1/2` -> (0, 2): which of how many shares of the rows."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got {text}")
    return int(number) - 1, int(count)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="[LAYOUT:]PATH with train, query and gallery")
    parser.add_argument("--osnet", required=True, help="weights of OSNet x0.25 from another data set")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="every Nth row from the Ith on")
    parser.add_argument("--rows", type=int, help="only the first so many rows of the plan")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "caccl_pku.json")
    args = parser.parse_args(argv)
    command = "python benchmarks/caccl_pku.py " + " ".join(sys.argv[1:] if argv is None else argv)
    facts = {"command": command, "machine": machine()}
    first, step = args.part
    failed = False
    for run in plan()[: args.rows][first::step]:
        if run in map(key, read_rows(args.json)):
            continue
        try:
            row = measure(run, args.data, args.osnet)
        except ValueError as error:
            print(f"caccl_pku: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        add_row(args.json, row, facts)
        print(table([row]).splitlines()[-1], f"{row['seconds']} s", flush=True)
    print(table(read_rows(args.json)))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
