"""Market-1501-size re-ID evaluation: time and memory of our ranking and re-ranking, beside what others' users run.

    python benchmarks/reid_ranking.py                  # 3,368 x 19,732 at 2048-d: needs 12 GB and some five minutes
    python benchmarks/reid_ranking.py --share 0.25 --threads 1 --json quick.json

Features are synthetic, of Market-1501's numbers: 750 people, 6 cameras that each shift the features, junk and
distractors, and a falling spectrum. Every contestant runs in a process of its own, in turns, on the same
files. Seconds count from features in memory to scores (ranking) or to the last row of the distances (re-ranking);
memory is the peak of the process above what it held with the features loaded.

Re-ranking begins with the product of all features with each other, which is the same arithmetic whoever does it (ours
needs one half of it, by symmetry); published programs are given its result and do not count it. The table has both:
seconds in all, and without it.

Yardsticks, written here from the descriptions:

    ranking, loop               for one query after the other: product with the gallery, full sort, removal of junk by
                                its list of numbers, average precision in a loop over the matches
    re-ranking, dense           Zhong et al. (CVPR 2017) with matrices over all pairs of images: complete ranking lists,
                                distances divided by the largest of their column and transposed (which leaves what
                                follows column by column in memory), then loops over the images
    re-ranking, dense, tidied   the same with only the nearest sorted and everything row by row in memory, as somebody
                                would write it who cares for speed

Ours must give the loop's scores, and the distances of both dense ones to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.reid_yardsticks import (  # noqa: E402
    Data,
    best_of,
    labels,
    peak_bytes,
    rank_loop,
    rerank_dense,
    rerank_tidied,
    status_bytes,
    synthetic,
)
from benchmarks.throughput import machine  # noqa: E402
from reid import neighbours  # noqa: E402
from reid.distances import FeatureDistances  # noqa: E402
from reid.ranking import evaluate_ranking  # noqa: E402
from reid.reranking import RerankedDistances  # noqa: E402

TOLERANCE = 1e-4
GIB = 2**30


def rank_ours(data: Data, out: Path) -> dict[str, Any]:
    """Blocks of queries against the gallery."""
    clock = time.perf_counter()
    result = evaluate_ranking(FeatureDistances(data["query_features"], data["gallery_features"]), *labels(data))
    return {"seconds": time.perf_counter() - clock, "scores": result.figures()}


def rerank_ours(data: Data, out: Path) -> dict[str, Any]:
    """Sparse re-ranking; its rows are made and let go, as scoring does it."""
    multiplied, multiply = 0.0, neighbours.squared_distances

    def timed(*args: Any) -> torch.Tensor:
        nonlocal multiplied
        began = time.perf_counter()
        block = multiply(*args)
        multiplied += time.perf_counter() - began
        return block

    neighbours.squared_distances = timed
    clock = time.perf_counter()
    distances = RerankedDistances(data["query_features"], data["gallery_features"])
    height = 256
    for start in range(0, distances.shape[0], height):
        distances[start : start + height]
    seconds, memory = time.perf_counter() - clock, peak_bytes()
    neighbours.squared_distances = multiply
    whole = np.lib.format.open_memmap(out, "w+", np.float32, distances.shape)
    for start in range(0, distances.shape[0], height):
        whole[start : start + height] = distances[start : start + height].numpy()
    whole.flush()
    return {"seconds": seconds, "product_seconds": multiplied, "peak_bytes": memory}


CONTESTANTS: dict[str, Callable[[Data, Path], dict[str, Any]]] = {
    "ranking, ours": rank_ours,
    "ranking, loop": rank_loop,
    "re-ranking, ours": rerank_ours,
    "re-ranking, dense": rerank_dense,
    "re-ranking, dense, tidied": rerank_tidied,
}


def run_contestant(name: str, folder: Path, threads: int) -> None:
    """In a process of its own: load, run, write what was measured."""
    torch.set_num_threads(threads)
    data = {path.stem: np.load(path) for path in folder.glob("*_*.npy")}
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries that load themselves at the first use
    held = status_bytes("VmRSS:")
    measured = {"peak_bytes": None, **CONTESTANTS[name](data, folder / f"{name}.npy")}
    peak = measured.pop("peak_bytes") or peak_bytes()
    (folder / "report.json").write_text(json.dumps({**measured, "memory_bytes": peak - held}))


def compare(first: Path, second: Path) -> dict[str, float]:
    """How far two files of distances lie apart."""
    ours, theirs = (np.load(path, mmap_mode="r") for path in (first, second))
    worst, beyond = 0.0, 0
    for start in range(0, len(ours), 256):
        apart = np.abs(ours[start : start + 256] - theirs[start : start + 256])
        worst, beyond = max(worst, float(apart.max())), beyond + int((apart > TOLERANCE).sum())
    return {"largest_difference": worst, "pairs_beyond_tolerance": beyond}


def measure(share: float, dimension: int, threads: int, repeats: int) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()
    apart = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic(share, dimension)
        size = {"queries": len(data["query_pids"]), "gallery": len(data["gallery_pids"]), "dimension": dimension}
        for key, values in data.items():
            np.save(folder / f"{key}.npy", values)
        del data
        runs: dict[str, list[dict[str, Any]]] = {contestant: [] for contestant in CONTESTANTS}
        for _ in range(repeats):
            for contestant, measured in runs.items():
                command = [sys.executable, __file__, "--contestant", contestant, "--folder", name]
                done = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.DEVNULL, check=False)
                if done.returncode:
                    raise ValueError(f"{contestant}: exit status {done.returncode}")
                measured.append(json.loads((folder / "report.json").read_text()))
        rows = {contestant: best_of(each) for contestant, each in runs.items()}
        for contestant in CONTESTANTS:
            if contestant.startswith("re-ranking, dense"):
                apart[contestant] = compare(folder / "re-ranking, ours.npy", folder / f"{contestant}.npy")
    ours, loop = rows["ranking, ours"]["scores"], rows["ranking, loop"]["scores"]
    apart["ranking, loop"] = {"largest_difference": max(abs(ours[key] - loop[key]) for key in loop)}
    return {
        **size,
        "threads": threads,
        "repeats": repeats,
        "rows": rows,
        "compared_with_ours": apart,
        "times_ours": times_ours(rows),
        "machine": facts,
    }


def times_ours(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times our seconds each contestant takes: in all, and for what is not a product of features."""
    result = {}
    for name, row in rows.items():
        ours = rows[f"{name.partition(',')[0]}, ours"]
        result[name] = {"all": row["seconds"] / ours["seconds"]}
        if "product_seconds" in row:
            rest, our_rest = (each["seconds"] - each["product_seconds"] for each in (row, ours))
            result[name]["without_product"] = rest / our_rest
    return result


def format_table(result: dict[str, Any]) -> str:
    """One contestant a line."""
    lines = [
        f"{result['queries']} queries, {result['gallery']} gallery images, {result['dimension']}-d, "
        f"{result['threads']} threads, best of {result['repeats']}",
        f"{'':<27}{'seconds':>9}{'x ours':>8}{'without product':>17}{'x ours':>8}{'GiB above features':>20}"
        f"{'largest difference':>20}",
    ]
    for name, row in result["rows"].items():
        times, apart = result["times_ours"][name], result["compared_with_ours"].get(name)
        difference = "" if apart is None else f"{apart['largest_difference']:.1e}"
        rest = f"{row['seconds'] - row['product_seconds']:.1f}" if "product_seconds" in row else ""
        rest_times = f"{times['without_product']:.1f}" if rest else ""
        lines.append(
            f"{name:<27}{row['seconds']:>9.1f}{times['all']:>8.1f}{rest:>17}{rest_times:>8}"
            f"{row['memory_bytes'] / GIB:>20.2f}{difference:>20}"
        )
    for name, apart in result["compared_with_ours"].items():
        if "pairs_beyond_tolerance" in apart:
            lines.append(f"{name}: {apart['pairs_beyond_tolerance']} distances differ from ours by over {TOLERANCE:g}")
    lines.append("product: of the features of all images with each other, of which ours needs one half")
    scores = result["rows"]["ranking, ours"]["scores"]
    lines.append("ranking: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
    facts = result["machine"]
    lines.append(f"{facts['cpu']}, {facts['cores']} cores, load average {facts['load_average']:.1f} before the start")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of Market-1501's numbers of images (default: 1)")
    parser.add_argument("--dimension", type=int, default=2048, help="length of the features (default: 2048)")
    parser.add_argument("--threads", type=int, default=2, help="of each contestant (default: 2)")
    parser.add_argument("--repeats", type=int, default=1, help="of each contestant, the fastest counts (default: 1)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "reid_ranking.json")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        if args.contestant:
            run_contestant(args.contestant, args.folder, args.threads)
            return 0
        for name in ("share", "dimension", "threads", "repeats"):
            if not getattr(args, name) > 0:
                raise ValueError(f"--{name}: expected a number above 0, got {getattr(args, name)}")
        result = measure(args.share, args.dimension, args.threads, args.repeats)
        print(format_table(result))
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"reid_ranking: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
