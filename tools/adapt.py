"""Adapt a model's embeddings to your own cameras, from footage that nobody labelled.

    python tools/adapt.py --video door.mp4 hall.mp4 --out runs/adapted
    python tools/track.py --video door.mp4 --weights runs/adapted/model.safetensors

    python tools/adapt.py --video mon.mp4 tue.mp4 yard.mp4 --cameras 1 1 2 --weights in.safetensors --out runs/adapted
    python tools/adapt.py --video hall.mp4 --out runs/adapted --set adapt.frame_rate=5 adapt.hold=0.3
    python tools/adapt.py --video hall.mp4 --train neck --out runs/neck      # the pyramid as well, end to end
    python tools/adapt.py --out runs/adapted --resume

The model tracks the footage; tracks give it people to learn from (CACCL on the embedding head): boxes of a tracklet are
one person, people seen at once are several, and tracklets that look alike are clustered. What the head reads of each
box is kept, so that an epoch takes seconds. Detections do not change, not by a bit, unless --train neck asks for it.
A part of the tracklets is not learned from; how well these are told apart decides which epoch is best and when to stop.

Each --video is a camera of its own, unless --cameras numbers them. --out holds model.safetensors (for tools/track.py),
report.json, log.jsonl (each epoch), clusters.png and separation.png (curves), people.png (whom it took for one person),
boxes/ (what was kept of the footage) and last.pt (to resume). Ctrl-C keeps the last epoch; --resume goes on exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # while the libraries load, Ctrl-C and termination have nothing to save
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av.logging
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from configs import dump_config, load_config
from detector import JDE, DarknetJDE, Detector, DetectorConfig, load_model, save_model
from detector.adaptation import (
    AdaptConfig,
    HeadTraining,
    NeckTraining,
    choose_frames,
    learned_state,
    make_optimizer,
)
from detector.checkpoint import BUNDLED
from detector.inference import letterbox
from detector.parallel import choose_device
from detector.patches import Collector, Sighting, TrackedBoxes
from detector.resume import read_checkpoint, write_checkpoint
from reid.cluster_curves import plot_clusters
from reid.constraints import ConstraintConfig
from reid.contrast import ContrastConfig, ContrastCriterion
from reid.tracklet_labels import (
    TooFewIdentitiesError,
    TrackletClusterConfig,
    TrackletJaccardConfig,
    TrackletLabels,
    better,
    identity_batches,
    leave_out,
    separations,
)
from reid.tracklet_pictures import draw_clusters, plot_separation
from reid.tracklets import Tracklets, hold_out
from tracker import FrameResult, TrackerConfig
from tracker.clock import DEFAULT_FRAME_RATE
from tracker.console import fail, one_line, say, stop_signals
from tracker.files import write_text
from tracker.sightings import ClearSightings, Collect, Seen, follow
from tracker.sources import EveryNth, open_source
from tracker.video import Frame, available_cores, check_range

THUMB = (48, 96)
"""Width and height of the small picture that is kept of a box."""
GPU_BATCH = 4
MAX_WORKERS = 4
MAX_CAMERAS = 1_000_000
LOWER_RATE = ": lower adapt.lr; the best epoch is kept"
RESUMABLE = {"epochs", "patience"}
"""Settings that may change when a run goes on."""
FIGURES = [
    ("held-out tracklets, told apart (AUC)", "held", "auc"),
    ("  recognised, 1 in 100 others let in", "held", "tpr100"),
    ("  distance within a tracklet", "held", "same_distance"),
    ("  distance of people seen at once", "held", "other_distance"),
    ("all tracklets, told apart (AUC)", "all", "auc"),
    ("  recognised, 1 in 100 others let in", "all", "tpr100"),
    ("  distance within a tracklet", "all", "same_distance"),
    ("  distance of people seen at once", "all", "other_distance"),
    ("boxes clustered alone: clusters", "boxes_alone", "clusters"),
    ("  tracklets whole in one", "boxes_alone", "whole"),
    ("  people seen at once in one", "boxes_alone", "violations"),
]
"""What is printed of the first and the best epoch: text, part of the log's row, name."""
SECTIONS = {
    "adapt": AdaptConfig,
    "contrast": ContrastConfig,
    "jaccard": TrackletJaccardConfig,
    "clusters": TrackletClusterConfig,
    "constraints": ConstraintConfig,
    "tracker": TrackerConfig,
    "detector": DetectorConfig,
}
Settings = dict[str, Any]
Model = JDE | DarknetJDE


@dataclass(frozen=True)
class Job:
    """What is adapted to what; all that a run needs to go on, besides its settings."""

    videos: list[str]
    cameras: list[int]
    weights: str
    digest: str
    start: int | None
    end: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, watch, refine, report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="adapt.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--video", nargs="+", default=[], help="footage: video files, folders of images")
    add("--cameras", nargs="+", type=int, metavar="N", help="camera of each --video (default: each its own)")
    add("--weights", type=Path, help="model to adapt (default: the bundled one)")
    add("--out", type=Path, required=True, help="folder of results")
    add("--train", choices=["head", "neck"], help="short for --set adapt.part: the embedding head, or also the pyramid")
    add("--start", type=int, metavar="FRAME", help="first frame of each video, from 1")
    add("--end", type=int, metavar="FRAME", help="last frame, inclusive")
    add("--no-retrack", action="store_true", help="do not track the footage again at the end (as long as at the start)")
    add("--config", help=f"YAML with sections {', '.join(SECTIONS)}")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="any setting: adapt.epochs=40")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--threads", type=int, metavar="N", help="processor cores to use (default: all)")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    av.logging.set_level(av.logging.PANIC)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(1)
    with stop_signals():
        try:
            if args.threads is not None and args.threads < 1:
                raise ValueError(f"--threads: expected at least 1, got {args.threads}")
            device, cores = torch.device(choose_device(args.device)), args.threads or available_cores()
            job, settings = resume_job(args) if args.resume else new_job(args)
            adapt(job, settings, args.out, device, cores, retrack=not args.no_retrack)
            return 0
        except (Exception, KeyboardInterrupt) as error:
            begun = (args.out / "run.json").is_file()
            return fail(error, args.debug, f"; go on with: --out {args.out} --resume" if begun else "")


def new_job(args: argparse.Namespace) -> tuple[Job, Settings]:
    """What was asked for; everything that can be wrong with it is found before the footage is looked at."""
    if not args.video:
        raise ValueError("--video: expected footage to adapt to")
    if len({Path(video).resolve() for video in args.video}) < len(args.video):
        raise ValueError("--video: one is given twice: who is held out of the first is learned from in the second")
    cameras = args.cameras or list(range(1, len(args.video) + 1))
    if len(cameras) != len(args.video):
        raise ValueError(f"--cameras: expected one for each of {len(args.video)} videos, got {len(cameras)}")
    if not all(0 <= camera < MAX_CAMERAS for camera in cameras):
        raise ValueError(f"--cameras: expected numbers from 0 to {MAX_CAMERAS - 1}, got {' '.join(map(str, cameras))}")
    check_range(args.start, args.end)
    for name in ("run.json", "model.safetensors"):
        if (args.out / name).is_file():
            raise ValueError(f"{args.out / name}: is of an earlier run; give --resume to go on, or another --out")
    overrides = [*args.set, *([f"adapt.part={args.train}"] if args.train else [])]
    settings = load_config(args.config, overrides, SECTIONS)
    weights = args.weights or BUNDLED
    if not load_model(weights).config.embedding_dim:
        raise ValueError(f"{weights}: the model has no embedding head to adapt")
    job = Job(args.video, cameras, str(weights), _digest(weights), args.start, args.end)
    for video in args.video:
        open_footage(job, video, settings["adapt"]).close()
    (args.out / "boxes").mkdir(parents=True, exist_ok=True)
    write_text(args.out / "run.json", json.dumps({**asdict(job), "config": dump_config(settings)}, indent=1) + "\n")
    return job, settings


def resume_job(args: argparse.Namespace) -> tuple[Job, Settings]:
    """The job of the run in --out."""
    for name in ("video", "cameras", "weights", "train", "start", "end", "config"):
        if getattr(args, name):
            raise ValueError(f"--{name}: is the run's that goes on; leave it out with --resume")
    path = args.out / "run.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        given = [f"{part}.{key}={json.dumps(v)}" for part, own in known.pop("config").items() for key, v in own.items()]
        job = Job(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no run to go on with ({one_line(error)})") from error
    settings, before = load_config(None, given + args.set, SECTIONS), load_config(None, given, SECTIONS)
    same = {name: getattr(settings["adapt"], name) for name in RESUMABLE}
    if settings != before | {"adapt": replace(before["adapt"], **same)}:
        raise ValueError(f"--resume: only {' and '.join(sorted(f'adapt.{name}' for name in RESUMABLE))} may change")
    if _digest(job.weights) != job.digest:
        raise ValueError(f"{job.weights}: is another file than when the run began")
    return job, settings


def adapt(job: Job, settings: Settings, out: Path, device: torch.device, cores: int, *, retrack: bool = True) -> None:
    """From footage to a model."""
    config: AdaptConfig = settings["adapt"]
    cpu = time.process_time()
    model = load_model(job.weights)
    boxes, footage = watch_all(job, settings, model, out, device, cores)
    torch.set_num_threads(cores)
    refinement = Refinement(job, settings, model, boxes, out, device)
    refinement.run()
    if retrack and refinement.state["best"]:
        adapted = load_model(out / "model.safetensors")
        for video, seen in zip(job.videos, footage, strict=True):
            seen["after"] = asdict(look(open_footage(job, video, config), settings, adapted, device, cores))
    report(refinement, footage, (time.process_time() - cpu) / 60)


def watch_all(
    job: Job, settings: Settings, model: Model, out: Path, device: torch.device, cores: int
) -> tuple[TrackedBoxes, list[dict[str, Any]]]:
    """Boxes to learn from, of all videos, and figures of each."""
    config: AdaptConfig = settings["adapt"]
    watched = [
        watch(out / "boxes" / f"{number:03d}", job, video, settings, model, device, cores)
        for number, video in enumerate(job.videos)
    ]
    footage = [seen for _, seen in watched]
    boxes = TrackedBoxes.join([part for part, _ in watched], job.cameras)
    if boxes is None:
        raise ValueError(
            f"nobody was followed clearly for {config.min_seconds:g} s in {sum(seen['frames'] for seen in footage)} "
            "frames: give more footage, or lower adapt.min_score or adapt.min_seconds"
        )
    return boxes, footage


def watch(
    place: Path, job: Job, video: str, settings: Settings, model: Model, device: torch.device, cores: int
) -> tuple[TrackedBoxes | None, dict[str, Any]]:
    """Boxes to learn from and figures of one video, kept at `place` for a run that goes on."""
    listing, file = place.with_suffix(".json"), place.with_suffix(".safetensors")
    if listing.is_file():
        known = json.loads(listing.read_text(encoding="utf-8"))
        return TrackedBoxes.load(file) if known["boxes"] else None, known
    config: AdaptConfig = settings["adapt"]
    sightings = ClearSightings(config.min_score, config.max_cover, config.max_gap)
    collector = Collector(config.boxes_per_tracklet, config.max_boxes)
    source = open_footage(job, video, config)
    dtype = torch.float16 if config.half else torch.float32

    def collect(frame: Frame, found: Mapping[str, Any], result: FrameResult) -> None:
        step = result.frame - 1
        number, seconds = (job.start or 1) + step * source.every, step / source.frame_rate
        rows, tracklets = sightings.of(result, found["boxes"], found["scores"], seconds)
        for row, tracklet in zip(rows.tolist(), tracklets.tolist(), strict=True):
            if collector.wants(tracklet, step):
                box, patches = found["boxes"][row], found["patches"][torch.tensor([row], device=device)]
                sighting = Sighting(number, seconds, box, patches.to("cpu", dtype), thumb(frame, box))
                collector.add(tracklet, step, sighting)

    seen = asdict(look(source, settings, model, device, cores, collect))
    boxes = collector.boxes(config.min_seconds)
    seen |= {"boxes": len(boxes) if boxes else 0, "tracklets": int(boxes.tracks.max()) + 1 if boxes else 0}
    if seen["broken"]:
        say(f"note: {seen['broken']}; what came before is used")
    if collector.refused:
        say(f"note: {seen['location']}: no room for {collector.refused} more boxes: raise adapt.max_boxes")
    if boxes:
        boxes.save(file)
    write_text(listing, json.dumps(seen, indent=1) + "\n")
    return boxes, seen


def look(
    source: EveryNth, settings: Settings, model: Model, device: torch.device, cores: int, collect: Collect | None = None
) -> Seen:
    """Detect and track footage; `collect` is given detections with patches.

    They are cut where nobody collects them, too: without, a detector may compute in another order, and differ in bits.
    """
    workers, batch_size = (min(cores, MAX_WORKERS), 1) if device.type == "cpu" else (1, GPU_BATCH)
    torch.set_num_threads(max(1, cores // workers))
    detector = Detector(model, device, settings["detector"], patches=True)
    return follow(source, detector, settings["tracker"], collect, workers=workers, batch_size=batch_size)


def open_footage(job: Job, video: str, config: AdaptConfig) -> EveryNth:
    """A video at about the frame rate asked for."""
    source = open_source(video, job.start, job.end)
    every = max(round((source.frame_rate or DEFAULT_FRAME_RATE) / config.frame_rate), 1)
    return EveryNth(source, every, job.end)


def thumb(frame: Frame, box: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A small picture of a box."""
    high = np.array(frame.shape[1::-1]) - 1
    (x1, y1), (x2, y2) = (np.clip(corner, 0, high).astype(int) for corner in (box[:2], box[2:]))
    return np.asarray(cv2.resize(frame[y1 : y2 + 1, x1 : x2 + 1], THUMB, interpolation=cv2.INTER_AREA), np.uint8)


def read_frames(
    job: Job, settings: Settings, model: Model, boxes: TrackedBoxes
) -> tuple[TrackedBoxes, list[Tensor], Tensor]:
    """For --train neck: some frames as network inputs, the boxes in them, and which frame each box is in."""
    chosen = choose_frames(boxes, settings["adapt"].neck_frames)
    frames: list[Tensor] = []
    for number, video in enumerate(job.videos):
        wanted = set(chosen[chosen[:, 0] == number, 1].tolist())
        with contextlib.closing(open_source(video, job.start, job.end)) as source:
            numbered = enumerate(source, job.start or 1)
            for at, frame in tqdm(numbered, total=source.frame_count, desc=f"reading {source.name}", disable=None):
                if at in wanted:
                    canvas = model.canvas(*frame.shape[:2], settings["detector"].input_size)
                    frames.append(torch.from_numpy(letterbox(frame, canvas, model.pad_value)[0]))
                if at >= max(wanted, default=0):
                    break
    place = (torch.stack((boxes.videos, boxes.frames), dim=1)[:, None] == chosen).all(dim=2)  # (N, F)
    rows = place.any(dim=1).nonzero()[:, 0]
    return boxes[rows], frames, place[rows].long().argmax(dim=1)


class Refinement:
    """A model that learns from tracked boxes: epochs of new pseudo-identities, then steps of contrast.

    Attributes:
        state: all that a run goes on from: how many epochs are over (`step`), their `log`, weights of `now`, and number
            (`best`), weights and labels of the best one, whose model is in `out`.
    """

    def __init__(
        self, job: Job, settings: Settings, model: Model, boxes: TrackedBoxes, out: Path, device: torch.device
    ) -> None:
        self.job, self.settings, self.model, self.out, self.device = job, settings, model, out, device
        self.config: AdaptConfig = settings["adapt"]
        self.training: HeadTraining | NeckTraining
        if self.config.part == "neck":
            boxes, frames, place = read_frames(job, settings, model, boxes)
            self.training = NeckTraining(model, boxes, frames, place, self.config, device)
        else:
            self.training = HeadTraining(model, boxes, self.config, device)
        self.thumbs = boxes.thumbs.numpy()
        self.tracklets = Tracklets(boxes.tracks.numpy(), boxes.seconds.numpy(), boxes.camids.numpy())
        self.held = np.zeros(len(boxes), bool)
        if self.config.held_out and len(self.tracklets.boxes_together()):
            self.held = hold_out(self.tracklets, self.config.held_out, self.config.seed)
        clustering = settings["jaccard"], settings["clusters"], settings["constraints"]
        self.labelling = TrackletLabels(self.config.sampled, *clustering)
        for note in self.labelling.limits(self.tracklets, settings["contrast"]):
            say(f"note: {note}")
        self.criterion, self.optimizer = ContrastCriterion(settings["contrast"]), make_optimizer(model, self.config)
        self.state: dict[str, Any] = {"step": 0, "log": [], "best": 0, "parts": {}}
        self.state |= {"data": job.digest, "scaler": {}, "config": {}}
        if (out / "last.pt").is_file():
            self.state = read_checkpoint(out / "last.pt")
            model.load_state_dict(self.state["parts"]["now"], strict=False)
            self.optimizer.load_state_dict(self.state["optimizer"])

    def run(self) -> None:
        """The epochs that are left, until none gets better, then pictures of all."""
        state, epochs = self.state, self.config.epochs
        with tqdm(total=epochs, initial=state["step"], desc="refining", unit="epoch", disable=None) as bar:
            for epoch in range(state["step"], epochs + 1):
                started = time.perf_counter()
                try:
                    features, labels = self.measure(epoch)
                    if epoch == epochs or epoch - state["best"] >= self.config.patience:
                        break
                    losses = self.learn(epoch, features, leave_out(labels, self.held))
                except TooFewIdentitiesError as error:
                    if epoch == 0:
                        raise
                    say(f"note: epoch {epoch}: {error}; the best epoch before is kept")
                    break
                row = state["log"][-1]
                row |= {"losses": losses, "seconds": round(time.perf_counter() - started, 3)}
                bar.update()
                bar.set_postfix(auc=row["held"]["auc"], people=row["clusters"], refresh=False)
                state |= {"step": epoch + 1, "optimizer": self.optimizer.state_dict()}
                state["parts"]["now"] = learned_state(self.model, self.config)
                write_checkpoint(self.out / "last.pt", state)
        plot_clusters(state["log"], self.out / "clusters.png")
        plot_separation(state["log"], self.out / "separation.png", state["best"])
        draw_clusters(self.out / "people.png", self.thumbs, state["labels"].numpy(), self.tracklets)

    def measure(self, epoch: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Embed and cluster all boxes, (N, D) and (N,), and log how good both are; a best model is written."""
        features, state, log = self.training.describe(), self.state, self.state["log"]
        if not features.isfinite().all():
            raise ValueError(f"epoch {epoch}: an embedding is not finite" + LOWER_RATE * (epoch > 0))
        moved = float((1 - (features * self.training.before).sum(dim=1)).mean())
        labels, figures = self.labelling.find(features, self.tracklets)
        log.append({"epoch": epoch, "moved": moved, **separations(features, self.tracklets, self.held), **figures})
        write_text(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
        if epoch == 0 or better(log[-1], log[state["best"]]):
            state |= {"best": epoch, "labels": torch.from_numpy(labels)}
            state["parts"]["best"] = learned_state(self.model, self.config)
            notes = {"adapted": self.job.weights, "epoch": epoch, "videos": self.job.videos}
            notes["config"] = dump_config(self.settings)
            save_model(self.out / "model.safetensors", self.model, notes, half=False)
        return features, labels

    def learn(self, epoch: int, features: Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
        """The steps of an epoch on labels (N,), −1 outliers; the mean of each loss."""
        # What is held out is in no memory, not even as an outlier that others are to be told from.
        learned = torch.from_numpy(~self.held)
        camids = torch.from_numpy(self.tracklets.camids)
        self.criterion.rebuild(features[learned], torch.from_numpy(labels)[learned], camids[learned])
        place = learned.cumsum(0) - 1
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        losses: dict[str, list[Tensor]] = defaultdict(list)
        for rows in map(torch.from_numpy, self.batches(epoch, labels)):
            described, terms = self.training.forward(rows, generator)
            contrast = self.criterion(described, place[rows].to(self.device))
            total = self.criterion.total(contrast) + torch.stack(list(terms.values())).sum()
            if not total.isfinite():
                raise ValueError(f"epoch {epoch}: the loss is not finite" + LOWER_RATE)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()
            self.criterion.update(described.detach(), place[rows].to(self.device))
            for name, value in {"total": total, **contrast, **terms}.items():
                losses[name].append(value.detach())
        return {name: float(torch.stack(values).mean()) for name, values in losses.items()}

    def batches(self, epoch: int, labels: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Rows of the boxes of each step."""
        if isinstance(self.training, NeckTraining):
            return self.training.batches(labels, epoch)
        config = self.config
        size = config.people, config.images, config.steps
        return identity_batches(labels, self.tracklets.camids, *size, epoch, config.seed)

    def detection_change(self) -> dict[str, float] | None:
        """How far the best epoch has moved detection; None where it cannot have."""
        if not isinstance(self.training, NeckTraining):
            return None
        self.model.load_state_dict(self.state["parts"]["best"], strict=False)
        return self.training.detection_change(self.settings["detector"].score_thresh)


def report(refinement: Refinement, footage: list[dict[str, Any]], minutes: float) -> None:
    """Print what changed, and write it down."""
    log, best, out = refinement.state["log"], refinement.state["best"], refinement.out
    ends = before, after = log[0], log[best]
    change = refinement.detection_change()
    result = {"best_epoch": best, "before": before, "after": after, "detection": change}
    result |= {"footage": footage, "cpu_minutes": round(minutes, 3), **asdict(refinement.job)}
    result["config"] = dump_config(refinement.settings)
    write_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    lines = [(text, *(row[part][name] for row in ends)) for text, part, name in FIGURES]
    lines.append((f"pseudo-identities of {before['tracklets']} tracklets", *(row["clusters"] for row in ends)))
    again = [seen["after"] for seen in footage if "after" in seen]
    if again:
        lines.append(("ids when tracked", *(sum(seen["ids"] for seen in each) for each in (footage, again))))
    print(f"{'':<44}{'before':>9}{'after':>9}")
    for text, *values in lines:
        shown = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
        print(f"{text:<44}{shown[0]:>9}{shown[1]:>9}")
    if change:
        print(f"detection moved by up to {change['score']:.3f} in score and {change['box_pixels']:.1f} network pixels")
    elif again:
        same = sum(seen["detections"] == then["detections"] for seen, then in zip(footage, again, strict=True))
        print(f"detections are the same to the bit in {same} of {len(footage)} videos")
    if best == 0:
        print("no epoch told people apart better than before: the model is as it was")
    print(f"{out / 'model.safetensors'}: epoch {best} of {len(log) - 1}, {minutes:.1f} CPU minutes")


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
