"""Label unlabelled footage with a teacher detector and the tracker, for tools/train_detector.py.

    python tools/pseudo_label.py --video cam1.mp4 cam2.mp4 --weights yolox_nano.onnx --out labels
    python tools/train_detector.py --data jde:labels/cam1/images --data jde:labels/cam2/images ...

Every video becomes a folder `OUT/<name>` with `images/` and `labels_with_ids/` (rows `class identity cx cy w h`,
normalised). The teacher looks at several scales, and at the mirrored frame; tracks that are long and sure give people
with identities, every other detection that may be a person becomes a region to be ignored (class −1).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms
from tqdm import tqdm

from configs import load_config
from detector import JDE, Detector, DetectorConfig, ModelConfig, load_model, load_yolox_onnx
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from tracker import Detections, FrameResult, Tracker, TrackerConfig
from tracker.boxes import iou
from tracker.sources import Source, open_source


@dataclass(frozen=True)
class PseudoLabelConfig:
    """How to label."""

    input_sizes: tuple[int, ...] = (640, 1120)
    """Long sides at which the teacher looks; small ones find the large people, large ones the small."""
    flip: bool = True
    """Look at the mirrored frame too, at the first size."""
    frame_rate: float = 10.0
    """Frames per second that are looked at and tracked."""
    save_every: int = 5
    """Of the frames looked at, every n-th is saved."""
    max_side: int = 960
    """Saved images are shrunk to this long side."""
    min_seconds: float = 1.0
    """A track must be seen this long to become a person with an identity."""
    min_score: float = 0.6
    """Its mean score must reach this."""
    ignore_score: float = 0.15
    """Other detections from this score on become regions to be ignored."""

    def __post_init__(self) -> None:
        if not self.input_sizes:
            raise ValueError("input_sizes: expected at least one size, got none")
        for name in ("frame_rate", "save_every", "max_side"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


class Teacher:
    """Detections of one model at several scales, merged."""

    def __init__(self, model: JDE, config: PseudoLabelConfig, device: str) -> None:
        self.views = [
            Detector(model, device, DetectorConfig(input_size=size, score_thresh=config.ignore_score))
            for size in config.input_sizes
        ]
        self.flip = config.flip

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """People in one frame (H, W, 3); of overlapping boxes from several views the surest stays."""
        found = [view([frame])[0] for view in self.views]
        boxes, scores = [f["boxes"] for f in found], [f["scores"] for f in found]
        if self.flip:
            mirrored = self.views[0]([np.ascontiguousarray(frame[:, ::-1])])[0]
            boxes.append(
                np.array([frame.shape[1], 0, frame.shape[1], 0]) + mirrored["boxes"][:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
            )
            scores.append(mirrored["scores"])
        all_boxes, all_scores = np.concatenate(boxes).astype(np.float32), np.concatenate(scores)
        keep = nms(torch.from_numpy(all_boxes), torch.from_numpy(all_scores), 0.6).numpy()
        return Detections(all_boxes[keep], all_scores[keep])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, label, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", nargs="+", required=True, help="videos or folders of images")
    parser.add_argument("--weights", help="teacher: YOLOX-nano .onnx or a model of ours (default: the bundled one)")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives a folder a video")
    parser.add_argument("--config", help="YAML with sections `pseudo_label` and `tracker`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. pseudo_label.flip=false")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        schema = {"pseudo_label": PseudoLabelConfig, "tracker": TrackerConfig}
        sections = load_config(args.config, args.set, schema)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: 'cuda' asked for, but no CUDA device is available")
        cv2.setNumThreads(1)
        check_names(args.video, args.out)
        teacher = Teacher(load_teacher(args.weights), sections["pseudo_label"], device)
        for video in args.video:
            label_video(video, teacher, args.out, sections["pseudo_label"], sections["tracker"])
    except KeyboardInterrupt:
        print("stopped; the videos named above are labelled", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def load_teacher(weights: str | None) -> JDE:
    """A model of ours, or a YOLOX-nano export."""
    if weights is None or not weights.endswith(".onnx"):
        return load_model(weights)
    model = JDE(ModelConfig(embedding_dim=0))
    load_yolox_onnx(weights, model)
    return model.eval()


def check_names(videos: Sequence[str], out: Path) -> None:
    """Open every input once, before hours of work: none may be unreadable, nor may two write the same folder."""
    owners: dict[str, str] = {}
    for video in videos:
        source = open_source(video)
        source.close()
        if source.name in owners:
            raise ValueError(f"{video}: would share the folder {source.name!r} with {owners[source.name]}: rename one")
        if (out / source.name).exists():
            raise ValueError(f"{out / source.name}: exists already; remove it, or give another --out")
        owners[source.name] = video


def label_video(
    video: str, teacher: Teacher, out: Path, config: PseudoLabelConfig, tracker_config: TrackerConfig
) -> None:
    """Two passes in one: saved frames are written at once, labels when all tracks are known.

    An image without labels would teach that nobody is there, so the folder gets its name when it is complete.
    """
    with contextlib.closing(open_source(video)) as source:
        _label(source, teacher, out, config, tracker_config)


def _label(
    source: Source, teacher: Teacher, out: Path, config: PseudoLabelConfig, tracker_config: TrackerConfig
) -> None:
    folder = out / f"{source.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    (folder / "labels_with_ids").mkdir()
    stride = max(round((source.frame_rate or config.frame_rate) / config.frame_rate), 1)
    rate = (source.frame_rate or config.frame_rate) / stride
    tracker = Tracker(tracker_config, rate)
    seen: list[tuple[Detections, FrameResult]] = []
    size = (1, 1)
    bar = tqdm(source, total=source.frame_count, desc=source.name, unit="frame", dynamic_ncols=True, mininterval=2)
    for number, frame in enumerate(bar):
        if number % stride:
            continue
        found = teacher(frame)
        seen.append((found, tracker.update(found)))
        size = (frame.shape[1], frame.shape[0])
        if (len(seen) - 1) % config.save_every == 0:
            save_image(folder / "images" / f"{len(seen):06d}.jpg", frame, config.max_side)
    sure = sure_tracks([result for _, result in seen], config, rate)
    people = 0
    for i in range(0, len(seen), config.save_every):
        rows = label_rows(*seen[i], sure, size)
        people += sum(row[0] == 0 for row in rows)
        lines = ["{:d} {:d} {:.6f} {:.6f} {:.6f} {:.6f}".format(int(r[0]), int(r[1]), *r[2:]) for r in rows]
        (folder / "labels_with_ids" / f"{i + 1:06d}.txt").write_text("\n".join(lines) + "\n")
    folder.rename(out / source.name)
    summary = {
        "video": source.location,
        "images": -(-len(seen) // config.save_every),
        "people": people,
        "identities": len(sure),
    }
    print(json.dumps(summary))


def sure_tracks(results: Sequence[FrameResult], config: PseudoLabelConfig, rate: float) -> set[int]:
    """Ids of the tracks long and sure enough to learn from."""
    ids = np.concatenate([result.track_ids for result in results])
    scores = np.concatenate([result.scores for result in results])
    unique, inverse, count = np.unique(ids, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse, scores, len(unique)) / np.maximum(count, 1)
    return set(unique[(count >= config.min_seconds * rate) & (mean >= config.min_score)].tolist())


def label_rows(
    found: Detections, result: FrameResult, sure: set[int], size: tuple[int, int]
) -> list[tuple[float, ...]]:
    """Label rows of one frame: people of sure tracks, then regions to be ignored."""
    keep = np.isin(result.track_ids, list(sure))
    boxes = [result.xyxy[keep]]
    tags = [(0, track_id) for track_id in result.track_ids[keep]]
    rest = np.ones(len(found), bool)
    if keep.any() and len(found):
        rest = iou(found.xyxy, result.xyxy[keep]).max(1) < 0.5
    boxes.append(found.xyxy[rest])
    tags += [(IGNORE_LABEL, NO_IDENTITY)] * int(rest.sum())
    scale = np.array(size * 2, np.float64)
    corners = np.clip(np.concatenate(boxes) / scale, 0, 1)
    rows = []
    for (label, identity), (x1, y1, x2, y2) in zip(tags, corners, strict=True):
        if x2 > x1 and y2 > y1:
            rows.append((label, identity, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
    return rows


def save_image(path: Path, frame: NDArray[np.uint8], max_side: int) -> None:
    """Write a frame, shrunk where it is larger than `max_side`."""
    scale = min(max_side / max(frame.shape[:2]), 1.0)
    if scale < 1:
        frame = np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    if not cv2.imwrite(str(path), frame, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f"{path}: cannot be written")


if __name__ == "__main__":
    sys.exit(main())
