"""How fast training is, in what memory, and whether the loader keeps up: a table of both families and precisions.

    python benchmarks/training.py --data yolo:people/images --json benchmarks/training.json
    python benchmarks/training.py --data yolo:people/images --networks nano --steps 3 --json quick.json

Every row is a process of its own, so that its peak memory is its own. A step is forward, losses, backward and update on
batches that lie ready; the loader is timed alone, with one process that prepares batches. The share of a step that
goes into each part is timed in the same process. "plain" is the yardstick: the same network and losses as one writes
them down first, fp32 with planes one behind the other in memory; "fp32" and "bf16" run as tools/train_detector.py does,
channels last.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks.throughput import machine  # noqa: E402
from detector import DarknetConfig, ModelConfig  # noqa: E402
from detector.build import build_step  # noqa: E402
from detector.data import BatchPlan, TrainingSet, collate, number_identities, open_source  # noqa: E402
from detector.training import TrainConfig, make_optimizer  # noqa: E402

DARKNET_INPUT = (576, 320)
ROWS: dict[str, dict[str, Any]] = {
    "nano": {"family": "compact", "sizes": (416,), "batch_size": 8},
    "darknet53": {"family": "darknet53", "batch_size": 2},
}
IDENTITIES = 500
"""Of the classifier, where the data have fewer."""
PLAIN = "plain"
ARITHMETIC = (PLAIN, "fp32", "bf16")
WARM = 1


def measure_row(network: str, arithmetic: str, data: str, steps: int, device: str) -> dict[str, Any]:
    """Images a second, peak memory and the parts of a step of one network."""
    precision, layout = arithmetic, torch.channels_last
    if arithmetic == PLAIN:
        precision, layout = "fp32", torch.contiguous_format
    config = TrainConfig(**ROWS[network], precision=precision)  # type: ignore[arg-type]
    source = open_source(data)
    number_identities([source])
    plan = BatchPlan(len(source.images), config.batch_size, config.canvases(DARKNET_INPUT), 0, 0)
    loader = DataLoader(TrainingSet([source], 0), batch_sampler=plan, collate_fn=collate, num_workers=1)  # type: ignore[arg-type]
    batches, clock = [], 0.0
    for i, batch in enumerate(loader):
        if i == WARM:
            clock = time.perf_counter()
        if i < WARM + steps:
            batches.append(batch)
        if i == WARM + 2 * steps:
            break
    loading = (time.perf_counter() - clock) / (2 * steps)
    del loader

    torch.manual_seed(0)
    step = build_step(config, ModelConfig(), DarknetConfig(input_size=DARKNET_INPUT), IDENTITIES, 0)[0].to(device)
    step.model.to(memory_format=layout)  # type: ignore[call-overload]
    step.train()
    optimizer = make_optimizer(step, config)
    parts: dict[str, float] = defaultdict(float)
    seconds_of_steps = []
    for i, (images, targets) in enumerate(batches):
        if i == WARM:
            parts.clear()
            seconds_of_steps.clear()
        images = images.to(device, memory_format=layout).float()
        targets = [{k: v.to(device) for k, v in t.items()} for t in targets]
        for target in targets:
            target["ids"] = torch.arange(len(target["ids"]), device=device) % IDENTITIES
        marks = [_now(device)]
        with torch.autocast(device, step.dtype, enabled=step.dtype is not None):
            raw, features = step.model(images)
        marks.append(_now(device))
        total = step.weighting(step.criterion(step.model, raw, features, targets))
        marks.append(_now(device))
        optimizer.zero_grad()
        total.backward()
        marks.append(_now(device))
        optimizer.step()
        marks.append(_now(device))
        for name, first, last in zip(("forward", "losses", "backward", "update"), marks, marks[1:], strict=False):
            parts[name] += last - first
        seconds_of_steps.append(marks[-1] - marks[0])
    seconds = sum(parts.values()) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else _peak_gib()
    width, height = config.canvases(DARKNET_INPUT)[0]
    return {
        "network": network,
        "precision": arithmetic,
        "input": f"{width}x{height}",
        "batch": config.batch_size,
        "images_per_s": config.batch_size / seconds,
        "seconds_of_steps": seconds_of_steps,
        "peak_gib": peak,
        "parts": {name: value / steps / seconds for name, value in parts.items()},
        "loader_images_per_s": config.batch_size / loading,
    }


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| network | precision | input | batch | images/s | RAM | forward, losses, backward, update | loader alone |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        parts = ", ".join(f"{share:.0%}" for share in row["parts"].values())
        lines.append(
            f"| {row['network']} | {row['precision']} | {row['input']} | {row['batch']} | {row['images_per_s']:.2f} | "
            f"{row['peak_gib']:.1f} GiB | {parts} | {row['loader_images_per_s']:.1f} images/s |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="source to train on, LAYOUT:PATH")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed (default: 6)")
    parser.add_argument("--networks", nargs="+", choices=tuple(ROWS), default=list(ROWS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "training.json")
    parser.add_argument("--row", nargs=2, metavar=("NETWORK", "PRECISION"), help="measure one row, print it as JSON")
    args = parser.parse_args(argv)
    try:
        if args.row:
            print(json.dumps(measure_row(*args.row, args.data, args.steps, args.device)))
            return 0
        facts, rows = machine(), []
        for network in args.networks:
            for precision in ARITHMETIC:
                command = [sys.executable, __file__, "--data", args.data, "--steps", str(args.steps)]
                command += ["--device", args.device, "--row", network, precision]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise ValueError(f"{network} {precision}: {done.stderr.strip().splitlines()[-1]}")
                rows.append(json.loads(done.stdout))
                print(table(rows).splitlines()[-1], flush=True)
    except (ValueError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    options = " ".join(sys.argv[1:] if argv is None else argv)
    result = {"command": f"python benchmarks/training.py {options}", "machine": facts, "rows": rows}
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
