"""Labels by a teacher detector, for tools/train_detector.py: of unlabelled footage, and where images lack some.

    python tools/pseudo_label.py --video cam1.mp4 cam2.mp4 --weights yolox_nano.onnx --out labels
    python tools/train_detector.py --data jde:labels/cam1/images --data jde:labels/cam2/images ...

Every video becomes a folder `OUT/<name>` with `images/` and `labels_with_ids/` (rows `class identity cx cy w h`,
normalised). The teacher looks at several scales, and at the mirrored frame; tracks that are long and sure give people
with identities, every other detection that may be a person becomes a region to be ignored (class −1).

Labels of still images often leave people out, and are drawn more or less tightly. --images reads a source of any layout
(see detector/layouts.py) and writes it in the same way, completed:

    python tools/pseudo_label.py --images yolo:people/images --out labels
    python tools/train_detector.py --data jde:labels/people/images ...

A labelled box takes the teacher's box of the same person; whom only the teacher sees becomes a person where it is sure,
a region to be ignored where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms
from tqdm import tqdm

from configs import load_config
from detector import JDE, Detector, DetectorConfig, ModelConfig, layouts, load_model, load_yolox_onnx
from detector.losses import IGNORE_LABEL, NO_IDENTITY
from detector.source import PERSON_CLASS, read_image
from detector.source import Source as LabelledImages
from tracker import Detections, FrameResult, Tracker, TrackerConfig
from tracker.boxes import iou
from tracker.sources import Source, open_source

GENERIC = {"images", "img1"}
"""Names of folders that say nothing about what is in them."""


class View(NamedTuple):
    """A look of the teacher at a frame."""

    size: int
    """Long side of the network's input."""
    flip: bool
    """Whether at the mirrored frame too."""
    low: float = 0.0
    """People are believed from this height on, in network pixels,"""
    high: float = inf
    """and up to this one."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """How to label footage."""

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

    @property
    def views(self) -> list[View]:
        """The teacher's looks at a frame."""
        return [View(size, self.flip and i == 0) for i, size in enumerate(self.input_sizes)]


@dataclass(frozen=True)
class CompletionConfig:
    """How to complete the labels of still images."""

    input_sizes: tuple[int, ...] = (416, 640, 960)
    """Long sides at which the teacher looks."""
    flips: tuple[bool, ...] = (True, True, False)
    """Whether it looks at the mirrored image too, at each size."""
    heights: tuple[tuple[float, float], ...] = ((48.0, inf), (0.0, inf), (0.0, 400.0))
    """Smallest and largest height in network pixels at which a person is believed, at each size."""
    same_iou: float = 0.55
    """A labelled box takes the place of the teacher's box that overlaps it at least so much."""
    repeat_iou: float = 0.5
    """Others of the teacher's boxes that overlap a labelled one so much show the same person: they are left out."""
    near_iou: float = 0.3
    """Those that overlap one so much may: they become regions to be ignored."""
    min_score: float = 0.55
    """The rest are people from this score on."""
    ignore_score: float = 0.3
    """From this score on they are regions to be ignored."""

    def __post_init__(self) -> None:
        if not self.input_sizes:
            raise ValueError("input_sizes: expected at least one size, got none")
        for name in ("flips", "heights"):
            if len(getattr(self, name)) != len(self.input_sizes):
                raise ValueError(f"{name}: expected one for each of input_sizes, got {list(getattr(self, name))}")

    @property
    def views(self) -> list[View]:
        """The teacher's looks at an image."""
        sizes = zip(self.input_sizes, self.flips, self.heights, strict=True)
        return [View(size, flip, *heights) for size, flip, heights in sizes]


class Teacher:
    """Detections of one model in several views, merged."""

    def __init__(self, model: JDE, config: PseudoLabelConfig | CompletionConfig, device: str) -> None:
        self.views = [
            (view, Detector(model, device, DetectorConfig(input_size=view.size, score_thresh=config.ignore_score)))
            for view in config.views
        ]

    def __call__(self, frame: NDArray[np.uint8]) -> Detections:
        """People in one frame (H, W, 3); of overlapping boxes from several views the surest stays."""
        width = frame.shape[1]
        boxes, scores = [], []
        for view, detector in self.views:
            for mirrored in (False, True)[: 1 + view.flip]:
                found = detector([np.ascontiguousarray(frame[:, ::-1]) if mirrored else frame])[0]
                xyxy = found["boxes"]
                if mirrored:
                    xyxy = np.array([width, 0, width, 0]) + xyxy[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
                height = (xyxy[:, 3] - xyxy[:, 1]) * view.size / max(frame.shape[:2])
                believed = (height >= view.low) & (height <= view.high)
                boxes.append(xyxy[believed])
                scores.append(found["scores"][believed])
        all_boxes, all_scores = np.concatenate(boxes).astype(np.float32), np.concatenate(scores)
        keep = nms(torch.from_numpy(all_boxes), torch.from_numpy(all_scores), 0.6).numpy()
        return Detections(all_boxes[keep], all_scores[keep])


SECTIONS = {"pseudo_label": PseudoLabelConfig, "completion": CompletionConfig, "tracker": TrackerConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, label, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", nargs="+", default=[], help="videos or folders of images, to be labelled")
    parser.add_argument("--images", nargs="+", default=[], metavar="SOURCE", help="LAYOUT:PATH[,LABELS] to complete")
    parser.add_argument("--weights", help="teacher: YOLOX-nano .onnx or a model of ours (default: the bundled one)")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives a folder for each of them")
    parser.add_argument("--config", help=f"YAML with sections {', '.join(SECTIONS)}")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="pseudo_label.flip=false"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        sections = load_config(args.config, args.set, SECTIONS)
        if not args.video and not args.images:
            raise ValueError("nothing to label: give --video or --images")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: 'cuda' asked for, but no CUDA device is available")
        cv2.setNumThreads(1)
        sources = [open_images(text) for text in args.images]
        names = [(source.name, folder_name(source)) for source in sources]
        check_names(names + [(video, video_name(video)) for video in args.video], args.out)
        model = load_teacher(args.weights)
        for source in sources:
            label_images(source, Teacher(model, sections["completion"], device), args.out, sections["completion"])
        for video in args.video:
            teacher = Teacher(model, sections["pseudo_label"], device)
            label_video(video, teacher, args.out, sections["pseudo_label"], sections["tracker"])
    except KeyboardInterrupt:
        print("stopped; what is named above is labelled", file=sys.stderr)
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


def video_name(video: str) -> str:
    """Open a video once, before hours of work; the name of its folder."""
    source = open_source(video)
    source.close()
    return source.name


def open_images(text: str) -> LabelledImages:
    """Read a source of labelled images, in which somebody may be missing."""
    source = layouts.open_source(text)
    if source.crops:
        raise ValueError(f"--images: crops show one person each, there is nobody to add; got {text!r}")
    return source


def folder_name(source: LabelledImages) -> str:
    """Name of the innermost folder that holds all images and is not just called `images`."""
    folder = Path(os.path.commonpath([image.parent.absolute() for image in source.images]))
    return next((part for part in reversed(folder.parts[1:]) if part not in GENERIC), "images")


def check_names(names: Sequence[tuple[str, str]], out: Path) -> None:
    """No two inputs, given with the names of their folders, may write the same one, nor one that exists."""
    owners: dict[str, str] = {}
    for text, name in names:
        if name in owners:
            raise ValueError(f"{text}: would share the folder {name!r} with {owners[name]}: rename one")
        if (out / name).exists():
            raise ValueError(f"{out / name}: exists already; remove it, or give another --out")
        owners[name] = text


def begin(out: Path, name: str) -> Path:
    """A new folder for images and labels.

    An image without labels would teach that nobody is there, so the folder gets its name when it is complete.
    """
    folder = out / f"{name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    (folder / "labels_with_ids").mkdir()
    return folder


def label_images(source: LabelledImages, teacher: Teacher, out: Path, config: CompletionConfig) -> None:
    """Copy the images of a source, numbered, and write their labels completed."""
    name = folder_name(source)
    folder = begin(out, name)
    people = 0
    bar = tqdm(source.images, desc=name, unit="image", dynamic_ncols=True, mininterval=2)
    for number, (image, labels) in enumerate(zip(bar, source.labels, strict=True), 1):
        frame = read_image(image)
        rows = complete(labels, teacher(frame), (frame.shape[1], frame.shape[0]), config)
        people += sum(row[0] == PERSON_CLASS for row in rows)
        shutil.copyfile(image, folder / "images" / f"{number:06d}{image.suffix.lower()}")
        write_labels(folder / "labels_with_ids" / f"{number:06d}.txt", rows)
    folder.rename(out / name)
    labelled = sum(int((rows[:, 0] == PERSON_CLASS).sum()) for rows in source.labels)
    print(json.dumps({"source": source.name, "images": len(source.images), "labelled": labelled, "people": people}))


def complete(
    labels: NDArray[np.float64], found: Detections, size: tuple[int, int], config: CompletionConfig
) -> list[tuple[float, ...]]:
    """Label rows of one image, completed by what the teacher found.

    Args:
        labels: (n, 6) rows: class, identity, cx, cy, w, h normalised.
        found: the teacher's detections, in pixels.
        size: (width, height) of the image.
        config: how to complete.

    Returns:
        The n rows, then people and regions that are new.
    """
    boxes = np.concatenate((labels[:, 2:4] - labels[:, 4:] / 2, labels[:, 2:4] + labels[:, 4:] / 2), axis=1)
    boxes = boxes * (size * 2)
    person = labels[:, 0] == PERSON_CLASS
    overlap = iou(found.xyxy, boxes) * person  # (F, n)
    nearest = overlap.max(1, initial=0)
    new = np.ones(len(found), bool)
    if overlap.size:
        # Each of the teacher's boxes may replace the labelled one that it overlaps most, and only the best one does.
        overlap = overlap * (overlap.argmax(1)[:, None] == np.arange(len(labels)))
        best, same = overlap.argmax(0), overlap.max(0) >= config.same_iou
        boxes[same] = found.xyxy[best[same]]
        new[best[same]] = False
    sure = (found.scores >= config.min_score) & (nearest < config.near_iou)
    new &= nearest < config.repeat_iou
    tags = [(int(label), int(identity)) for label, identity in labels[:, :2]]
    tags += [(PERSON_CLASS if certain else IGNORE_LABEL, NO_IDENTITY) for certain in sure[new]]
    return as_rows(tags, np.concatenate((boxes, found.xyxy[new])), size)


def label_video(
    video: str, teacher: Teacher, out: Path, config: PseudoLabelConfig, tracker_config: TrackerConfig
) -> None:
    """Two passes in one: saved frames are written at once, labels when all tracks are known."""
    with contextlib.closing(open_source(video)) as source:
        _label(source, teacher, out, config, tracker_config)


def _label(
    source: Source, teacher: Teacher, out: Path, config: PseudoLabelConfig, tracker_config: TrackerConfig
) -> None:
    folder = begin(out, source.name)
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
        people += sum(row[0] == PERSON_CLASS for row in rows)
        write_labels(folder / "labels_with_ids" / f"{i + 1:06d}.txt", rows)
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
    tags = [(PERSON_CLASS, track_id) for track_id in result.track_ids[keep]]
    rest = np.ones(len(found), bool)
    if keep.any() and len(found):
        rest = iou(found.xyxy, result.xyxy[keep]).max(1) < 0.5
    boxes.append(found.xyxy[rest])
    tags += [(IGNORE_LABEL, NO_IDENTITY)] * int(rest.sum())
    return as_rows(tags, np.concatenate(boxes), size)


def as_rows(
    tags: Sequence[tuple[int, int]], xyxy: NDArray[np.floating], size: tuple[int, int]
) -> list[tuple[float, ...]]:
    """Label rows of boxes in pixels, with their class and identity, cut at the edge; none of those outside."""
    corners = np.clip(xyxy / np.array(size * 2, np.float64), 0, 1)
    rows = []
    for (label, identity), (x1, y1, x2, y2) in zip(tags, corners, strict=True):
        if x2 > x1 and y2 > y1:
            rows.append((label, identity, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
    return rows


def write_labels(path: Path, rows: Sequence[tuple[float, ...]]) -> None:
    """Write rows in the JDE layout."""
    lines = ["{:d} {:d} {:.6f} {:.6f} {:.6f} {:.6f}".format(int(r[0]), int(r[1]), *r[2:]) for r in rows]
    path.write_text("\n".join(lines) + "\n")


def save_image(path: Path, frame: NDArray[np.uint8], max_side: int) -> None:
    """Write a frame, shrunk where it is larger than `max_side`."""
    scale = min(max_side / max(frame.shape[:2]), 1.0)
    if scale < 1:
        frame = np.asarray(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    if not cv2.imwrite(str(path), frame, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f"{path}: cannot be written")


if __name__ == "__main__":
    sys.exit(main())
