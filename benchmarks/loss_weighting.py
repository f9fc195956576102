"""Ablation: are learned uncertainty weights better than fixed equal ones? The same run twice, scored the same way.

    python benchmarks/loss_weighting.py --init yolox_nano.onnx --data yolo:people/images --data crops:market/train \
        --val mot:PETS09-S2L1-dev --json benchmarks/loss_weighting.json

Trains the nano model by tools/train_detector.py once with `train.weighting=fixed` (one half each) and once with
`learned` (Kendall et al., CVPR 2018), everything else equal, seeds included, and validates both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks.throughput import machine  # noqa: E402

COLUMNS = ("AP50", "AP50:95", "AP50_small", "TPR@FAR=1e-03", "TPR@FAR=1e-01", "rank-1", "mAP")


def run(weighting: str, options: Sequence[str], out: Path) -> dict[str, Any]:
    """Train and validate once; the last figures, and where the weights went."""
    command = [sys.executable, str(ROOT / "tools" / "train_detector.py"), *options]
    done = subprocess.run(
        [*command, "--set", f"train.weighting={weighting}", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"{weighting}: {done.stderr.strip().splitlines()[-1]}")
    figures: dict[str, Any] = json.loads((out / "validation.jsonl").read_text().splitlines()[-1])
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    return figures | {"weighting": weighting, "s": {k: v for k, v in last.items() if k.startswith("s_")}}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [f"| weighting | {' | '.join(COLUMNS)} | s at the end |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS]
        weights = ", ".join(f"{name.removeprefix('s_')} {value:.2f}" for name, value in row["s"].items())
        lines.append(f"| {row['weighting']} | {' | '.join(cells)} | {weights} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status. Options it does not know go to the training tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "loss_weighting.json")
    args, options = parser.parse_known_args(argv)
    folder = Path(tempfile.mkdtemp())
    try:
        facts = machine()
        rows = [run(weighting, options, folder / weighting) for weighting in ("fixed", "learned")]
    except (ValueError, OSError) as error:
        print(f"loss_weighting: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(rows))
    command = "python benchmarks/loss_weighting.py " + " ".join(sys.argv[1:] if argv is None else argv)
    args.json.write_text(json.dumps({"command": command, "machine": facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
