"""How well people are told apart on given detections: our presets, our default without each of its stages, and peers.

    pip install trackers boxmot      # the peers; without them only ours are compared
    python benchmarks/association.py
    python benchmarks/association.py --mot MOT --sequences TUD-Campus --json quick.json

MOT is a folder of MOTChallenge sequences. Those with `det/det.txt` are tracked on these public detections, by motion
alone; the others on the detections and embeddings of the bundled model, which are computed once and kept under --cache.
Every tracker has one setting for all sequences: peers their defaults, which take no embeddings; `trackers` is told the
frame rate. Scores are those of `tracker.evaluation`. Time is that of the updates alone, on one thread, without the
estimation of the camera's motion.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before NumPy is loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from tqdm import tqdm  # noqa: E402

from benchmarks import public_detections  # noqa: E402
from benchmarks.contestants import DEFAULT, Contestant, own, peer_versions, peers, presets  # noqa: E402
from benchmarks.throughput import machine  # noqa: E402
from configs import dump_config, load_config  # noqa: E402
from tracker import FrameResult, Tracker, TrackerConfig  # noqa: E402
from tracker.camera_motion import CameraMotion  # noqa: E402
from tracker.sources import open_source  # noqa: E402

SEQUENCES = ("MOT17-02-FRCNN", "TUD-Campus", "TUD-Stadtmitte", "PETS09-S2L1-dev")

ABLATION: dict[str, tuple[str, ...]] = {
    "without low scores": ("tracker.low_score_thresh=null",),
    "without embeddings": ("tracker.appearance=none",),
    "with embeddings in the stage of position": ("tracker.appearance=minimum", "tracker.embedding_thresh=0.25"),
    "without direction": ("tracker.direction_weight=0",),
    "without camera motion": ("tracker.camera_motion=none",),
    "with camera motion by ECC": ("tracker.camera_motion=ecc",),
    "with merging of duplicates": ("tracker.duplicate_thresh=0.15",),
    "without asking the unsure to move": ("tracker.sure_thresh=0",),
    "without confirming the first frame": ("tracker.confirm_first_frame=false",),
    "with widths in the filter": ("tracker.box_state=cxcywh",),
    "with boxes as detected": ("tracker.output=detection",),
    "with filtered boxes": ("tracker.output=filtered",),
    "with re-update": ("tracker.reupdate=true",),
    "with recovery by the last box": ("tracker.recover_by_last_box=true",),
    "with scores fused": ("tracker.fuse_score=true",),
    "with buffered IoU": ("tracker.iou_buffer=0.3",),
    "with grown small boxes": ("tracker.small_box=32",),
    "with weight for what stands out": ("tracker.stand_out_margin=0.5",),
    "with score-aware momentum": ("tracker.score_aware_momentum=true",),
    "with a prior on shape": ("tracker.shape_std=0.5",),
    "with coasting": ("tracker.coast_seconds=0.2",),
}
"""Name of a row -> what differs from the default. An override that changes nothing is an error."""

COLUMNS = ("HOTA", "IDF1", "MOTA", "IDSW", "DetA", "AssA")
FIGURES = {"HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW", "CLR_FP", "CLR_FN", "IDP", "IDR", "Frag"}


def load(folder: Path, kept: Path) -> public_detections.Sequence:
    """A sequence with its public detections, or the bundled model's."""
    if _has_public(folder):
        return public_detections.load(folder)
    return public_detections.detect(folder, kept)


def track(contestant: Contestant, sequence: public_detections.Sequence) -> tuple[list[FrameResult], float]:
    """Results of all frames, and the milliseconds of a frame's update, on average."""
    update = contestant.start(sequence.frame_rate)
    inputs = [contestant.convert(found) for found in sequence.detections]
    outputs = []
    clock = time.perf_counter()
    for found in inputs:
        outputs.append(update(found))
    elapsed = time.perf_counter() - clock
    results = [contestant.read(output, frame) for frame, output in enumerate(outputs, start=1)]
    return results, elapsed / len(sequence) * 1e3


def own_in_picture(name: str, config: TrackerConfig, sequence: public_detections.Sequence) -> Contestant:
    """Our tracker with some settings, told the camera's motion where they ask for it and there are pictures."""
    if config.camera_motion == "none" or _has_public(sequence.folder):
        return own(name, config)
    camera = CameraMotion(config.camera_motion)
    with contextlib.closing(open_source(str(sequence.folder / "img1"))) as source:
        motions = [camera.estimate(frame, found.xyxy) for frame, found in zip(source, sequence.detections, strict=True)]

    def start(rate: float) -> Callable[[Any], FrameResult]:
        tracker, motion = Tracker(config, rate), iter(motions)
        return lambda found: tracker.update(found, camera_motion=next(motion))

    return dataclasses.replace(own(name, config), start=start)


def _has_public(folder: Path) -> bool:
    return (folder / "det" / "det.txt").is_file()


def ablation(overrides: dict[str, tuple[str, ...]]) -> dict[str, TrackerConfig]:
    """The default with each row's overrides.

    Raises:
        ValueError: an override of no known field, or one that changes nothing.
    """
    found = {}
    for name, changes in overrides.items():
        found[name] = load_config(None, changes, {"tracker": TrackerConfig})["tracker"]
        for change in changes:
            if load_config(None, (change,), {"tracker": TrackerConfig})["tracker"] == TrackerConfig():
                raise ValueError(f"ablation {name!r}: {change} is the default already")
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is written to the JSON file, from the options of `main`."""
    facts = machine()
    configs, variations, others = presets(), ablation(ABLATION), peers()
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    progress = tqdm(
        total=len(args.sequences) * (len(configs) + len(variations) + len(others)), unit="run", mininterval=2
    )
    for name in args.sequences:
        sequence = load(args.mot / name, args.cache)
        groups = {
            "presets": [own_in_picture(each, config, sequence) for each, config in configs.items()],
            "ablation": [own_in_picture(each, config, sequence) for each, config in variations.items()],
            "peers": others,
        }
        scores[name] = {}
        for group, contestants in groups.items():
            scores[name][group] = {}
            for contestant in contestants:
                results, ms = track(contestant, sequence)
                figures = public_detections.score_results(sequence.folder, results)
                chosen = {key: value for key, value in figures.items() if key in FIGURES}
                scores[name][group][contestant.name] = {**chosen, "ms": ms}
                progress.update()
    progress.close()
    return {
        "scores": scores,
        "settings": {name: dump_config({"tracker": config})["tracker"] for name, config in configs.items()},
        "ablation": ABLATION,
        "peers": peer_versions(),
        "machine": facts,
    }


def format_tables(result: dict[str, Any]) -> str:
    """Markdown: for each sequence all trackers, then the ablation with all sequences side by side."""
    parts = []
    for name, groups in result["scores"].items():
        lines = [f"| {name} | {' | '.join(COLUMNS)} | ms |", "|---" * (len(COLUMNS) + 2) + "|"]
        for tracker, figures in {**groups["presets"], **groups["peers"]}.items():
            lines.append(
                f"| {tracker} | {' | '.join(_cell(key, figures[key]) for key in COLUMNS)} | {figures['ms']:.2f} |"
            )
        parts.append("\n".join(lines))
    names = list(result["scores"])
    lines = [
        f"| HOTA / IDF1 / MOTA / IDSW | {' | '.join(names)} | mean HOTA | mean IDF1 |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in [DEFAULT, *result["ablation"]]:
        all_figures = [
            groups["presets"][DEFAULT] if row == DEFAULT else groups["ablation"][row]
            for groups in result["scores"].values()
        ]
        cells = [" / ".join(_cell(key, figures[key]) for key in COLUMNS[:4]) for figures in all_figures]
        means = [f"{mean(figures[key] for figures in all_figures):.3f}" for key in ("HOTA", "IDF1")]
        lines.append(f"| {row} | {' | '.join(cells + means)} |")
    parts.append("\n".join(lines))
    parts.append("\n".join(f"{name}: {version or 'not installed'}" for name, version in result["peers"].items()))
    return "\n\n".join(parts)


def _cell(key: str, value: float) -> str:
    return f"{value:.0f}" if key == "IDSW" else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mot", type=Path, default=ROOT.parent / "shared" / "data" / "mot", help="folder of sequences")
    parser.add_argument("--sequences", nargs="+", default=SEQUENCES, help=f"default: {' '.join(SEQUENCES)}")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "detections", help="default: runs/detections")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "association.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        result = measure(args)
        tables = format_tables(result)
        print(tables)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(tables + "\n")
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"association: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
