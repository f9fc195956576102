"""Jaccard distances of a whole training set: time, memory and growth of our sparse graph, beside the dense algorithm.

    python benchmarks/jaccard.py                  # 12,936 images of both, then 32,621 and 126,441 of ours alone
    python benchmarks/jaccard.py --images 2000 4000 --threads 1 --json quick.json

The numbers of images are those of Market-1501's and MSMT17's training sets and of all of MSMT17. Features are
synthetic: 17 images a person, 6 cameras that each shift the features, and a falling spectrum. Every run has a process
of its own, in turns. Seconds count from features in memory to what DBSCAN takes; memory is the peak of the
process above what it held with the features loaded. Both have k1 = 30, k2 = 6 and DBSCAN eps 0.6, min_samples 4; DBSCAN
itself is timed apart.

Yardstick, written here from the description of what Cluster Contrast publishes: matrices N x N of encodings, of their
expansion and of distances, filled in loops over the images; overlaps are summed image by image through an inverted
index. Its neighbours are searched in blocks of rows. At the first number of images ours must give its clusters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from sklearn.cluster import DBSCAN  # noqa: E402
from sklearn.metrics import adjusted_rand_score  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.reid_yardsticks import best_of, peak_bytes, status_bytes  # noqa: E402
from benchmarks.throughput import machine  # noqa: E402
from reid.jaccard import JaccardConfig, dense_distances, jaccard_graph  # noqa: E402

CONFIG, EPS, MIN_SAMPLES = JaccardConfig(), 0.6, 4
CONTESTANTS = ("ours", "dense")
IMAGES_A_PERSON, CAMERAS = 17.2, 6
PERSON, COMMON, SHIFT, NOISE, FALL = 1.0, 0.5, 0.35, 0.9, 0.5
"""Sizes of what is a person's own, what all share, a camera's shift and what differs from image to image; the power of
its number with which a dimension's size falls off."""
TOLERANCE = 1e-4
GIB = 2**30


def synthetic(images: int, dimension: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, D) of unit length, and who is seen in each (N,)."""
    rng = np.random.default_rng(seed)
    people = max(2, round(images / IMAGES_A_PERSON))
    size = (np.arange(1, dimension + 1) ** -FALL).astype(np.float32)
    size /= np.linalg.norm(size)

    def draw(count: int) -> NDArray[np.float32]:
        return rng.standard_normal((count, dimension), dtype=np.float32) * size

    looks, shifts, common = PERSON * draw(people), SHIFT * draw(CAMERAS), COMMON * draw(1)
    pids, camids = rng.integers(0, people, images), rng.integers(0, CAMERAS, images)
    features = NOISE * draw(images) + looks[pids] + shifts[camids] + common
    return features / np.linalg.norm(features, axis=1, keepdims=True), pids


def dense(features: Any, config: JaccardConfig = CONFIG) -> NDArray[np.float32]:
    """Distances (N, N) as published, one image after the other."""
    n, k1 = len(features), config.k1
    rows = torch.from_numpy(features)
    # The search is asked for k1 images, so slices of k1 + 1 below are one short, as they are in what is published.
    ranking = torch.cat([(part @ rows.T).topk(min(k1, n), dim=1).indices for part in rows.split(1024)]).numpy()

    def reciprocal(image: int, k: int) -> NDArray[np.int64]:
        forward = ranking[image, : k + 1]
        return forward[(ranking[forward, : k + 1] == image).any(axis=1)]

    full = [reciprocal(image, k1) for image in range(n)]
    half = [reciprocal(image, round(k1 / 2)) for image in range(n)]
    encoding = np.zeros((n, n), np.float32)
    for image in tqdm(range(n), desc="encoding", mininterval=5):
        brought = [
            half[other]
            for other in full[image]
            if len(np.intersect1d(half[other], full[image])) > 2 / 3 * len(half[other])
        ]
        members = np.unique(np.concatenate((full[image], *brought)))
        squared = 2 - 2 * (rows[image] @ rows[members].T)
        encoding[image, members] = torch.softmax(-squared, dim=0).numpy()
    del full, half
    if config.k2 > 1:
        expanded = np.zeros_like(encoding)
        for image in tqdm(range(n), desc="expansion", mininterval=5):
            expanded[image] = encoding[ranking[image, : config.k2]].mean(axis=0)
        encoding = expanded
        del expanded
    holders = [np.flatnonzero(encoding[:, place]) for place in range(n)]
    result = np.zeros((n, n), np.float32)
    for image in tqdm(range(n), desc="overlap", mininterval=5):
        shared = np.zeros(n, np.float32)
        for place in np.flatnonzero(encoding[image]):
            shared[holders[place]] += np.minimum(encoding[image, place], encoding[holders[place], place])
        result[image] = 1 - shared / (2 - shared)
    result[result < 0] = 0
    return result


def run_contestant(name: str, folder: Path, threads: int) -> None:
    """In a process of its own: load, run, write what was measured."""
    torch.set_num_threads(threads)
    features = np.load(folder / "features.npy")
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries that load themselves at the first use
    held = status_bytes("VmRSS:")
    clock = time.perf_counter()
    distances = jaccard_graph(features, CONFIG, max_distance=EPS) if name == "ours" else dense(features)
    seconds, memory = time.perf_counter() - clock, peak_bytes() - held
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a row of the graph is not sorted by distance: DBSCAN does it
        labels = DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit_predict(distances)
    clustering = time.perf_counter() - clock
    np.save(folder / f"{name}-labels.npy", labels)
    if sp.issparse(distances):
        sp.save_npz(folder / f"{name}.npz", distances)
    else:
        np.save(folder / f"{name}.npy", distances)
    pids = np.load(folder / "pids.npy")
    kept = labels >= 0
    report = {
        "seconds": seconds,
        "memory_bytes": memory,
        "clustering_seconds": clustering,
        "stored_a_row": int((distances <= EPS).sum() if name == "dense" else distances.nnz) / len(features),
        "people": len(np.unique(pids)),
        "clusters": int(labels.max()) + 1,
        "outliers": int((~kept).sum()),
        "ari": float(adjusted_rand_score(pids[kept], labels[kept])),
    }
    (folder / "report.json").write_text(json.dumps(report))


def measure(images: Sequence[int], dimension: int, threads: int, repeats: int) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()
    rows: list[dict[str, Any]] = []
    compared: dict[str, Any] = {}
    for number in images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind, values in zip(("features", "pids"), synthetic(number, dimension), strict=True):
                np.save(folder / f"{kind}.npy", values)
            runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for _ in range(repeats):
                for contestant in CONTESTANTS if number == images[0] else CONTESTANTS[:1]:
                    command = [sys.executable, __file__, "--contestant", contestant, "--folder", name]
                    done = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.DEVNULL, check=False)
                    if done.returncode:
                        raise ValueError(f"{contestant}, {number} images: exit status {done.returncode}")
                    runs[contestant].append(json.loads((folder / "report.json").read_text()))
            rows += [{"contestant": contestant, "images": number, **best_of(done)} for contestant, done in runs.items()]
            if number == images[0]:
                compared = compare(folder)
    ours, theirs = rows[0], rows[1]
    return {
        "dimension": dimension,
        "threads": threads,
        "repeats": repeats,
        "rows": rows,
        "speedup": theirs["seconds"] / ours["seconds"],
        "memory_ratio": theirs["memory_bytes"] / ours["memory_bytes"],
        "compared": compared,
        "growth_exponents": growth([row for row in rows if row["contestant"] == "ours"]),
        "machine": facts,
    }


def compare(folder: Path) -> dict[str, Any]:
    """How far the distances of both lie apart where one of them is up to EPS, and whether the clusters are the same."""
    ours = sp.load_npz(folder / "ours.npz").tocsr()
    theirs = np.load(folder / "dense.npy", mmap_mode="r")
    worst, beyond = 0.0, 0
    for start in range(0, len(theirs), 256):
        mine, other = dense_distances(ours[start : start + 256]), theirs[start : start + 256]
        apart = np.where((mine <= EPS) | (other <= EPS - TOLERANCE), np.abs(mine - other), 0)
        worst, beyond = max(worst, float(apart.max())), beyond + int((apart > TOLERANCE).sum())
    labels = [np.load(folder / f"{name}-labels.npy") for name in CONTESTANTS]
    return {"largest_difference": worst, "pairs_beyond_tolerance": beyond, "same_clusters": same_clusters(*labels)}


def same_clusters(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two clusterings are one up to the names of clusters, with the same outliers (-1)."""
    pairs = np.unique(np.stack((first, second)), axis=1)
    one_to_one = all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    return one_to_one and bool(((first < 0) == (second < 0)).all())


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Powers of the number of images with which seconds and memory grow from each row to the next."""
    result = []
    for before, after in itertools.pairwise(rows):
        size = np.log(after["images"] / before["images"])
        powers = {key: float(np.log(after[key] / before[key]) / size) for key in ("seconds", "memory_bytes")}
        result.append({"from": before["images"], "to": after["images"], **powers})
    return result


def format_table(result: dict[str, Any]) -> str:
    """One run a line."""
    lines = [
        f"{result['dimension']}-d, {result['threads']} threads, best of {result['repeats']}",
        f"{'':<8}{'images':>8}{'seconds':>9}{'GiB above features':>20}{'neighbours a row':>18}{'DBSCAN s':>10}"
        f"{'people':>8}{'clusters':>10}{'outliers':>10}{'ARI':>7}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['contestant']:<8}{row['images']:>8}{row['seconds']:>9.1f}{row['memory_bytes'] / GIB:>20.3f}"
            f"{row['stored_a_row']:>18.1f}{row['clustering_seconds']:>10.2f}{row['people']:>8}{row['clusters']:>10}"
            f"{row['outliers']:>10}{row['ari']:>7.3f}"
        )
    compared = result["compared"]
    lines.append(
        f"dense takes {result['speedup']:.1f} times our time and {result['memory_ratio']:.1f} times our memory; "
        f"{'the same' if compared['same_clusters'] else 'OTHER'} clusters; largest difference of distances up to {EPS} "
        f"{compared['largest_difference']:.1e}, {compared['pairs_beyond_tolerance']} over {TOLERANCE:g}"
    )
    for step in result["growth_exponents"]:
        lines.append(
            f"from {step['from']} to {step['to']} images: seconds grow with power {step['seconds']:.2f}, "
            f"memory with {step['memory_bytes']:.2f}"
        )
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[12936, 32621, 126441],
        help="numbers of images; the dense algorithm runs with the first (default: 12936 32621 126441)",
    )
    parser.add_argument("--dimension", type=int, default=256, help="length of the features (default: 256)")
    parser.add_argument("--threads", type=int, default=2, help="of each run (default: 2)")
    parser.add_argument("--repeats", type=int, default=1, help="of each run, the fastest counts (default: 1)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "jaccard.json")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        if args.contestant:
            run_contestant(args.contestant, args.folder, args.threads)
            return 0
        for name in ("images", "dimension", "threads", "repeats"):
            if np.min(getattr(args, name)) < 1:
                raise ValueError(f"--{name}: expected numbers above 0, got {getattr(args, name)}")
        result = measure(args.images, args.dimension, args.threads, args.repeats)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"jaccard: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
