r"""How well the detector's embedding branch tells people apart, beside an untrained one and a re-ID network.

    python benchmarks/embeddings.py --market ../shared/data/reid/pku_market_layout \
        --video ../shared/data/video/people.mp4 --osnet ../shared/data/weights/osnet_x0_25_msmt17.pth

Query against gallery: every crop is pasted on grey at its size and the detector describes the person it finds there
(or the crop's box, where it finds none). Video: people tracked for two seconds; how often an appearance is nearer to
another one of the same person than to one of somebody else seen in the same frame.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from detector import Detector, DetectorConfig, load_detector, load_model
from detector.crops import describe_crops
from detector.data import read_image
from reid.crops import encode_crops
from reid.datasets import load_dataset
from reid.encoders import load_encoder
from reid.ranking import evaluate_ranking
from tracker import Detections, Tracker, TrackerConfig
from tracker.boxes import iou
from tracker.sources import open_source


def untrained(weights: str | None, config: DetectorConfig) -> Detector:
    """The same detector with its embedding head drawn anew."""
    model = load_model(weights)
    torch.manual_seed(0)
    for module in model.embedding_head.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return Detector(model, "cpu", config)


def score_market(
    root: Path, detectors: dict[str, Detector], osnet: str | None, canvas: int
) -> dict[str, dict[str, float]]:
    """Rank-1 and mAP of query against gallery for every encoder."""
    data = load_dataset(f"market1501:{root}", ("query", "gallery"))
    query, gallery = data.splits["query"], data.splits["gallery"]
    crops = [read_image(path) for path in [*query.paths, *gallery.paths]]
    features: dict[str, tuple[NDArray[np.float32], float]] = {}
    for name, detector in detectors.items():
        rows, found = describe_crops(detector, crops, canvas)
        features[name] = rows, float(found.mean())
    if osnet:
        features["OSNet x0.25"] = (encode_crops(load_encoder(osnet), crops), 1.0)
    table = {}
    for name, (rows, share) in features.items():
        distance = 1 - rows[: len(query)] @ rows[len(query) :].T
        result = evaluate_ranking(distance, query.pids, gallery.pids, query.camids, gallery.camids)
        table[name] = {"rank1": float(result.cmc[0]), "mAP": float(result.mean_ap), "found": share}
    return table


def score_video(video: Path, detector: Detector, seconds: float = 2.0) -> dict[str, float]:
    """Of all (appearance, same person later, another person then): the share with the right one nearer."""
    source = open_source(video)
    rate = source.frame_rate or 25.0
    tracker = Tracker(TrackerConfig(output="detection"), rate)
    span = round(seconds * rate)
    seen: list[dict[int, NDArray[np.float32]]] = []
    for frame in tqdm(source, total=source.frame_count, desc=source.name, mininterval=2):
        found = Detections.from_torchvision(detector([frame])[0])
        result = tracker.update(found)
        rows = iou(result.xyxy, found.xyxy).argmax(1) if len(result) else np.zeros(0, int)
        assert found.embeddings is not None
        seen.append({int(i): found.embeddings[r] for i, r in zip(result.track_ids, rows, strict=True)})
    right = pairs = people = 0
    same, other = [], []
    for first in range(0, len(seen) - span, 5):
        now, later = seen[first], seen[first + span]
        both = [i for i in now if i in later]
        people += len(both)
        for i in both:
            d_same = 1 - float(now[i] @ later[i])
            same.append(d_same)
            for j in later:
                if j != i:
                    d_other = 1 - float(now[i] @ later[j])
                    other.append(d_other)
                    pairs += 1
                    right += d_same < d_other
    if not pairs:
        raise ValueError(f"{video}: nobody is tracked for {seconds} seconds beside somebody else")
    return {
        "right": right / pairs,
        "pairs": pairs,
        "people": people,
        "median_same": float(np.median(same)),
        "median_other": float(np.median(other)),
    }


def main() -> int:
    """Parse, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="model file (default: the bundled one)")
    parser.add_argument("--market", type=Path, help="folder in Market-1501's layout")
    parser.add_argument("--osnet", help="torchreid OSNet checkpoint to compare with")
    parser.add_argument("--canvas", type=int, default=416, help="side of the grey square in pixels (default 416)")
    parser.add_argument("--video", type=Path, help="video with many people")
    parser.add_argument("--input-size", type=int, default=DetectorConfig.input_size)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    config = DetectorConfig(input_size=args.input_size)
    detectors = {
        "trained": load_detector(args.weights, "cpu", config),
        "untrained": untrained(args.weights, config),
    }
    figures: dict[str, object] = {}
    if args.market:
        figures["market"] = score_market(args.market, detectors, args.osnet, args.canvas)
    if args.video:
        figures["video"] = {name: score_video(args.video, detector) for name, detector in detectors.items()}
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
