"""Every loss for a short run: does an encoder learn by it to tell people apart whom it has never seen?

    python benchmarks/reid_losses.py --data pku_market_layout --osnet osnet_x0_25_market1501.pth

Trains by tools/train_reid.py, once for each loss beside cross-entropy: ResNet-50 from random weights, and OSNet x0.25
from the weights of another data set. Rows that the JSON file has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks.throughput import machine  # noqa: E402

# Margin losses at the weight of one crop in a batch of 16, as layumi's baseline has them.
LOSSES: dict[str, tuple[str, ...]] = {
    "cross-entropy": (),
    "triplet": ("losses.triplet=0.2",),
    "contrastive": ("losses.contrastive=0.2",),
    "circle": ("losses.circle=0.06", "losses.circle_scale=32"),
    "lifted": ("losses.lifted=0.2",),
    "instance": ("losses.instance=0.06",),
    "SphereFace": ("losses.sphereface=0.06",),
    "ArcFace": ("losses.arcface=0.06",),
    "CosFace": ("losses.cosface=0.06",),
}
ENCODERS: dict[str, tuple[str, ...]] = {
    "OSNet x0.25 fine-tuned": ("encoder.name=osnet_x0_25", "train.epochs=3"),
    "ResNet-50 from random weights": (
        *("encoder.name=resnet50", "encoder.input_size=[96,48]", "encoder.last_stride=2"),
        *("train.epochs=5", "augmentation.erasing=0"),
    ),
}
COMMON = (
    *("train.batch_size=32", "train.lr=0.001", "train.warmup=1", "train.schedule=cosine", "train.validate_every=9"),
)


def run(data: str, encoder: str, loss: str, init: str | None) -> dict[str, Any]:
    """Train once; the figures before (where it starts from weights) and after."""
    command = [sys.executable, str(ROOT / "tools" / "train_reid.py"), "--data", data]
    command += ["--init", init] if init else []
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        settings = [*COMMON, *ENCODERS[encoder], *LOSSES[loss]]
        done = subprocess.run([*command, "--out", out, "--set", *settings], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{encoder}, {loss}: {done.stderr.strip().splitlines()[-1]}")
        lines = (Path(out) / "validation.jsonl").read_text().splitlines()
        log = (Path(out) / "log.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    return {
        "encoder": encoder,
        "loss": loss,
        "settings": settings,
        "before": first if first["step"] == 0 else None,
        "after": last,
        "total": [json.loads(log[0])["total"], json.loads(log[-1])["total"]],
        "seconds": round(time.perf_counter() - began),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = ["| encoder | cross-entropy and | rank-1 | mAP | rank-1 before | mAP before |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = [row["after"][name] for name in ("rank-1", "mAP")]
        figures += [row["before"][name] if row["before"] else None for name in ("rank-1", "mAP")]
        cells = ["-" if value is None else f"{value:.3f}" for value in figures]
        lines.append(f"| {row['encoder']} | {row['loss']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="[LAYOUT:]PATH with train, query and gallery")
    parser.add_argument("--osnet", required=True, help="weights of OSNet x0.25 from another data set")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "reid_losses.json")
    args = parser.parse_args(argv)
    rows = json.loads(args.json.read_text())["rows"] if args.json.is_file() else []
    command = "python benchmarks/reid_losses.py " + " ".join(sys.argv[1:] if argv is None else argv)
    for encoder in ENCODERS:
        for loss in LOSSES:
            if any((row["encoder"], row["loss"]) == (encoder, loss) for row in rows):
                continue
            try:
                rows.append(run(args.data, encoder, loss, args.osnet if encoder.startswith("OSNet") else None))
            except ValueError as error:
                print(f"reid_losses: {error}", file=sys.stderr)
                return 2
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            args.json.write_text(json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
