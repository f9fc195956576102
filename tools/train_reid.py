"""Train an encoder of people (or vehicles) on crops, with labels or without, and rank its gallery.

    python tools/train_reid.py --data market1501:Market-1501 --check-data --out runs/check
    python tools/train_reid.py --data Market-1501 --set encoder.pretrained=true --out runs/resnet50
    python tools/train_reid.py --out runs/resnet50 --resume
    python tools/train_reid.py --data Market-1501 --encoder osnet_x0_25 --init osnet_x0_25_msmt17.pth --out runs/osnet
    python tools/train_reid.py --data msmt17:MSMT17_V1.zip --set losses.triplet=1 losses.circle=0.05 --out runs/msmt
    python tools/train_reid.py --data Market-1501 --extra generated/ --set losses.lsro=0.2 --out runs/extra
    torchrun --nproc-per-node 4 tools/train_reid.py --data Market-1501 --set train.precision=fp16 --out runs/four

    python tools/train_reid.py --method caccl --data market1501:Market-1501 --out runs/caccl
    python tools/train_reid.py --method cluster --data Market-1501 --set train.steps_per_epoch=200 --out runs/cluster
    python tools/train_reid.py --method caccl --data images:crops/ --encoder osnet_x0_25 --init osnet.pth --out runs/own
    python tools/train_reid.py --method cluster --config reid_cluster_contrast --data Market-1501 --out runs/cc

--data: LAYOUT:PATH of an unpacked folder or a zip; the layout is recognised where it is left out (market1501,
dukemtmc, msmt17, cuhk03, personx, veri776, vehicleid, viper, folder). Query and gallery are what is evaluated.

--method: `supervised`, or without labels `caccl` (contrast with clusters and cameras) and its ablations `cluster` and
`self-paced`, whose settings are those of the shipped reid_caccl.yaml unless there is a --config. Images without any
labels are images:FOLDER, where each folder below is a camera. Identities that are known are only reported on.

--out holds model.safetensors (for tools/eval_reid.py), best.safetensors by mAP, last.pt to go on from, log.jsonl,
validation.jsonl, curves.png, tensorboard/, and without labels clusters.jsonl and clusters.png. Ctrl-C and --resume lose
at most an epoch, or train.save_steps; on a CPU the weights at the end are those of a run never stopped, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs import dump_config, load_config
from detector import parallel
from detector.monitor import Monitor, summary
from detector.resume import fingerprint, read_checkpoint, restore, write_checkpoint
from detector.training import update_average
from reid.backbones import TOKEN_PATCHES
from reid.caccl import ContrastStep, NoClustersError, Relabelling, UnlabelledCrops, build_contrast_step
from reid.check import contact_sheet, unreadable
from reid.check import summary as table
from reid.cluster_curves import plot_clusters
from reid.contrast import ContrastConfig
from reid.curves import plot_curves
from reid.datasets import Crops, ReidDataset, load_dataset, load_images, parse_source
from reid.distances import FeatureDistances
from reid.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder, load_backbone, save_encoder
from reid.evaluation import check_queries
from reid.extraction import EncoderDescriber, extract_features
from reid.jaccard import JaccardConfig
from reid.losses import ReidLossConfig
from reid.optimisation import (
    average_statistics,
    check_weights,
    make_optimizer,
    optimise,
    parameter_groups,
    rate_share,
    set_rates,
)
from reid.pseudo_labels import ClusterConfig, ClusterReport
from reid.ranking import evaluate_ranking
from reid.samplers import Draw, Plan
from reid.training import TrainConfig, TrainingCrops, TrainingStep, build_step, plan_batches
from reid.transforms import AugmentConfig
from tracker.console import fail, stop_signals
from tracker.files import write_text
from tracker.video import available_cores

_ALWAYS = {"train": TrainConfig, "encoder": EncoderConfig, "augmentation": AugmentConfig}
LABELLED = {**_ALWAYS, "losses": ReidLossConfig}
UNLABELLED = {**_ALWAYS, "contrast": ContrastConfig, "jaccard": JaccardConfig, "clusters": ClusterConfig}
SECTIONS: dict[str, type] = LABELLED | UNLABELLED
METHODS = ("supervised", "caccl", "cluster", "self-paced")
RECIPE = "reid_caccl"
Say = Callable[[str], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train_reid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="data set to learn from and to evaluate on: [LAYOUT:]PATH")
    add("--method", choices=METHODS, help="how to learn: with labels (the default), or without any; see above")
    add("--extra", metavar="PATH", help="images without labels, such as generated ones, to learn from with losses.lsro")
    add("--encoder", choices=ENCODERS, metavar="NAME", help=f"short for --set encoder.name: {', '.join(ENCODERS)}")
    add("--init", help="weights to start from: .safetensors of ours, .pth of torchreid, layumi, Cluster Contrast")
    add("--out", type=Path, default=Path("runs/reid"), help="folder of results (default %(default)s)")
    add("--config", help=f"YAML with sections {', '.join(SECTIONS)}, or the name of a shipped one (reid_*)")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="any setting: train.epochs=20")
    add("--bn-chunk", type=int, metavar="N", help="batch statistics of N images, as several GPUs with N each have them")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--workers", type=int, help="processes that prepare batches (default: 1, beside a GPU one for each other core)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--check-data", action="store_true", help="table, remarks, unreadable images and a contact sheet; then stop")
    add("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    with stop_signals():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Train, or look at the data; the exit status."""
    try:
        resumed = read_checkpoint(args.out / "last.pt") if args.resume else None
        sections = resolve(args, resumed)
        config: TrainConfig = sections["train"]
        if not config.data:
            raise ValueError("no data: give --data [LAYOUT:]PATH, or a --config that names some")
        if args.check_data:
            return check_data(config, args.out)
        for name in ("last.pt", "model.safetensors", "best.safetensors"):
            if (args.out / name).is_file() and not args.resume:
                resume = "--resume to go on, or " if (args.out / "last.pt").is_file() else ""
                raise ValueError(f"{args.out / name}: is of an earlier run; give {resume}another --out")
        train(sections, args.out, parallel.choose_device(args.device), args.workers, resumed)
    except KeyboardInterrupt as error:
        saved = (args.out / "last.pt").is_file()
        return fail(error, args.debug, f"; go on with: --out {args.out} --resume" if saved else "")
    except Exception as error:
        # What a process that prepares batches raised arrives with its traceback: the last line says it.
        line = str(error).strip().rpartition("\n")[2] if "Original Traceback" in str(error) else ""
        return fail(ValueError(line.removeprefix("ValueError: ")) if line and not args.debug else error, args.debug)
    finally:
        parallel.stop()
    return 0


def resolve(args: argparse.Namespace, resumed: dict[str, Any] | None) -> dict[str, Any]:
    """All sections: the checkpoint's when resuming, else defaults, --config, and the options in their order."""
    named = [f"train.bn_chunk={args.bn_chunk}"] if args.bn_chunk is not None else []
    if resumed:
        if args.data or args.extra or args.encoder or args.init or args.config or args.method:
            raise ValueError(
                "--resume: data, method, extra, encoder, init and config are the checkpoint's; --set changes others"
            )
        given = [
            f"{k}.{key}={json.dumps(v, ensure_ascii=False)}"
            for k, part in resumed["config"].items()
            for key, v in part.items()
        ]
        sections = read_sections(None, given + named + args.set, {name: SECTIONS[name] for name in resumed["config"]})
        for name, key in (("train", "optimizer"), ("contrast", "method")):
            if name in sections and getattr(sections[name], key) != (kept := resumed["config"][name][key]):
                raise ValueError(f"{name}.{key}: expected {kept}, the checkpoint's, with --resume")
        return sections
    named += [f"encoder.name={args.encoder}"] if args.encoder else []
    named += ["encoder.pooling=average"] if args.encoder in TOKEN_PATCHES else []  # they take no other
    named += ["encoder.pretrained=false"] if args.init else []
    unlabelled = args.method not in (None, "supervised")
    named += [f"contrast.method={args.method}"] if unlabelled else []
    source = args.config or (RECIPE if unlabelled else None)
    sections = read_sections(source, named + args.set, UNLABELLED if unlabelled else LABELLED)
    if unlabelled and sections["contrast"].method != args.method:
        raise ValueError(f"contrast.method: expected {args.method}, the --method, got {sections['contrast'].method}")
    changes = {name: getattr(args, name) for name in ("data", "extra", "init") if getattr(args, name) is not None}
    return sections | {"train": replace(sections["train"], **changes)}


def read_sections(source: str | None, overrides: list[str], schema: dict[str, type]) -> dict[str, Any]:
    """Settings of one method; those of the other are errors that say so."""
    try:
        return load_config(source, overrides, schema)
    except ValueError as error:
        if "unknown section" not in str(error):
            raise
        kind = "a --method without labels" if "contrast" in schema else "--method supervised"
        raise ValueError(f"{error}; the sections of {kind} are {', '.join(schema)}") from error


def check_data(config: TrainConfig, out: Path) -> int:
    """Print what the data set holds and what is wrong with it, and draw it; 1 where images cannot be read."""
    data = load_dataset(config.data)
    print(table(data))
    faults = unreadable(data, progress=True)
    for fault in faults:
        print(f"unreadable: {fault}")
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(data, out / "data.png")
    print(f"{out / 'data.png'}: people of each part, by camera")
    return int(bool(faults))


@dataclass(frozen=True)
class Course:
    """What is trained, and from what."""

    data: TrainingCrops | UnlabelledCrops
    step: TrainingStep | ContrastStep
    batches: Callable[[int, int], tuple[int, Iterator[list[Draw]]]]
    """(epoch, step within) -> steps of the epoch, and the batches of this process from that step on."""
    crops: tuple[Crops, ...]
    """All images that are learned from."""
    neck_unused: bool
    """Whether the losses look at what is before the neck alone."""
    relabelling: Relabelling | None = None
    """What labels the images anew every epoch, where they have no labels."""


def train(
    sections: dict[str, Any], out: Path, device: str, workers: int | None, resumed: dict[str, Any] | None
) -> None:
    """Everything before the first step, then the loop."""
    config: TrainConfig = sections["train"]
    rank, world, place = parallel.start(device)
    main_process, done = rank == 0, resumed["step"] if resumed else 0
    say: Say = print if main_process else lambda _: None
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    if workers is None:
        workers = max(1, available_cores() // world - 1) if place.type == "cuda" else 1
    dataset = open_data(config, "contrast" in sections, say)
    if config.validate_every and (dataset.query is None or dataset.gallery is None):
        say("note: not both query and gallery: nothing is evaluated")
        config = replace(config, validate_every=0)

    torch.manual_seed(config.seed)
    encoder = build_encoder(sections["encoder"] if not resumed else replace(sections["encoder"], pretrained=False))
    if config.init and not resumed:
        say(f"{config.init}: {load_backbone(encoder, config.init)} tensors taken over")
    course = choose_course(sections, dataset, encoder, place, workers, rank, world, say)
    step_module: nn.Module = course.step.to(place)
    pretrained = bool(config.init) or sections["encoder"].pretrained
    if config.sync_norm and world > 1 and place.type == "cuda":
        step_module = nn.SyncBatchNorm.convert_sync_batchnorm(step_module)
    parts = nn.ModuleDict({"step": step_module})
    if config.ema:
        parts["average"] = copy.deepcopy(encoder).requires_grad_(False)
    saved: Encoder = parts["average"] if config.ema else encoder  # type: ignore[assignment]
    optimizer = make_optimizer(step_module, config, pretrained)
    scaler = torch.amp.GradScaler(place.type, enabled=config.precision == "fp16")
    first, within = divmod(done, course.batches(0, 0)[0]) if not course.relabelling else (0, 0)
    resolved, listed = dump_config(sections), listing(course.crops)
    if resumed:
        groups = parameter_groups(step_module, config, pretrained)
        restore(resumed, out / "last.pt", parts, optimizer, scaler, groups)
        if course.relabelling:
            first, within = resumed["place"]
            if listed == resumed["data"]:
                course.relabelling.load(resumed["memory"])
            else:
                within = 0  # labels are of other images: the epoch begins again, with its own
    if first + bool(within) > math.ceil(config.epochs):
        raise ValueError(f"train.epochs: expected at least the {first} that are done, got {config.epochs:g}")
    runner: nn.Module = step_module
    if world > 1:
        runner = DistributedDataParallel(
            step_module, broadcast_buffers=False, find_unused_parameters=course.neck_unused
        )
    plan = Plan()
    loader = DataLoader(
        course.data,
        batch_sampler=plan,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=yield_cores if workers else None,
        pin_memory=place.type == "cuda",
        persistent_workers=workers > 0,
    )
    say(table(dataset))
    if resumed and listed != resumed["data"]:
        say("note: the data changed since the checkpoint: the run goes on, but not to the same weights")
    say(json.dumps(resolved, ensure_ascii=False))

    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(Monitor(out, done)) if main_process else None
        if monitor and not done and config.validate_every and (config.init or course.relabelling):
            record_validation(saved, dataset, place, out, 0)
        bar = stack.enter_context(
            tqdm(initial=done, unit="step", dynamic_ncols=True, mininterval=2, disable=not main_process)
        )

        def save(epoch: int, within: int) -> None:
            if monitor is None:
                return
            monitor.flush()
            save_encoder(out / "model.safetensors", saved, {"config": resolved, "step": done})
            plot_curves(out / "log.jsonl", out / "validation.jsonl", out / "curves.png")
            state = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            state |= {"scaler": scaler.state_dict(), "config": resolved, "data": listed, "place": (epoch, within)}
            state |= {"memory": course.relabelling.state() if course.relabelling else {}}
            # The checkpoint comes last: a run that dies before it does these steps again.
            write_checkpoint(out / "last.pt", state)

        for epoch in range(first, math.ceil(config.epochs)):
            if course.relabelling and not within:  # in the middle of an epoch, its labels are the checkpoint's
                try:
                    report = course.relabelling.renew(encoder)
                except NoClustersError as error:
                    if done:
                        save(epoch, 0)
                    parallel.wait()  # the first process to fail ends all
                    advice = "; what was learned is saved, --resume goes on" if done else ""
                    raise ValueError(f"epoch {epoch + 1}: {error}{advice}") from error
                if monitor:
                    record_clusters(report, dataset.train.pids, monitor, out, epoch + 1, done)
            per_epoch, batches = course.batches(epoch, within)
            before = epoch * per_epoch
            steps = max(round(config.epochs * per_epoch), before + 1)  # a part of an epoch is a step at least
            plan.batches = itertools.islice(batches, max(min(per_epoch, steps - before) - within, 0))
            bar.total = done + steps - before - within
            for pixels, targets in loader:
                set_rates(optimizer, rate_share(before + within, steps, round(config.warmup * per_epoch), config))
                done, within = done + 1, within + 1
                torch.manual_seed(config.seed * 1_000_003 + done * world + rank)  # dropout, wherever a run goes on
                step_module.train()
                batch, targets = pixels.to(place, memory_format=torch.channels_last), targets.to(place)
                try:
                    losses, norm, features = optimise(runner, optimizer, scaler, batch, targets, config.clip)
                except ValueError as error:
                    good = "; the last checkpoint is good" if (out / "last.pt").is_file() else ""
                    advice = f"{good}; lower train.lr, or set train.clip" if "not finite" in str(error) else ""
                    raise ValueError(f"step {done}: {error}{advice}") from error
                if course.relabelling:
                    course.step.criterion.update(features, targets)
                if config.ema:
                    update_average(saved, encoder, min(config.ema, done / (done + 9)))
                means = parallel.mean(losses)
                whole, at_end = within == per_epoch, before + within == steps
                validated = config.validate_every and (at_end or (whole and (epoch + 1) % config.validate_every == 0))
                saved_now = at_end or (whole and (epoch + 1) % config.save_every == 0)
                saved_now |= bool(config.save_steps) and done % config.save_steps == 0
                if validated or saved_now:
                    average_statistics(parts)
                    try:
                        check_weights(parts)
                    except ValueError as error:
                        raise ValueError(f"step {done}: {error}; lower train.lr, or set train.clip") from error
                if monitor:
                    rate, reached = optimizer.param_groups[-1]["lr"], epoch + within / per_epoch
                    monitor.step({"step": done, "epoch": reached, "lr": rate, "grad_norm": norm.item(), **means})
                    bar.update()
                    bar.set_postfix({name: f"{loss:.3f}" for name, loss in list(means.items())[:4]}, refresh=False)
                    if validated:
                        monitor.validation(record_validation(saved, dataset, place, out, done), done)
                    if saved_now:
                        save(*((epoch + 1, 0) if whole else (epoch, within)))
                if validated:
                    parallel.wait()
            within = 0
    say(f"{out / 'model.safetensors'}: trained for {done} steps")


def open_data(config: TrainConfig, unlabelled: bool, say: Say) -> ReidDataset:
    """The data set, with all parts that training needs; without labels, query and gallery may be absent."""
    source = parse_source(config.data)[0] == "images"
    if source and not unlabelled:
        raise ValueError(f"{config.data}: images without labels: expected --method caccl, cluster or self-paced")
    try:
        dataset = load_dataset(config.data, None if config.validate_every and not source else ("train",))
    except ValueError as error:
        if not unlabelled:
            raise
        dataset = load_dataset(config.data, ("train",))  # or this is what is wrong
        say(f"note: {error}")
    if dataset.train is None:
        raise ValueError(f"{config.data}: expected images to learn from, found query and gallery only")
    ranked = dataset.query is not None and dataset.gallery is not None
    if config.validate_every and not ranked and not unlabelled:
        raise ValueError(f"{config.data}: expected query and gallery; without: --set train.validate_every=0")
    if config.validate_every and dataset.query is not None and dataset.gallery is not None:
        check_queries(dataset.query)
    return dataset


def choose_course(
    sections: dict[str, Any],
    dataset: ReidDataset,
    encoder: Encoder,
    place: torch.device,
    workers: int,
    rank: int,
    world: int,
    say: Say,
) -> Course:
    """By the method, which the sections tell."""
    config = sections["train"]
    given = (sections["encoder"].input_size, sections["augmentation"], config.seed)
    if "contrast" not in sections:
        extra = load_images(config.extra) if config.extra else None
        data = TrainingCrops(dataset.train, extra, *given)
        step = build_step(encoder, sections["losses"], len(data.pids), config)
        batches = functools.partial(plan_batches, data, config, rank=rank, world=world)
        say(f"{len(data)} images, {len(data.pids)} identities, {batches(0, 0)[0]} steps an epoch")
        return Course(
            data, step, batches, (data.crops, *([extra] if extra else [])), not sections["losses"].cross_entropy
        )
    crops = dataset.train
    contrast = build_contrast_step(encoder, sections["contrast"], config)
    how = (contrast.criterion, sections["jaccard"], sections["clusters"], config)
    relabelling = Relabelling(crops, *how, place, workers, rank, world, say)
    say(f"{len(crops)} images, {len(np.unique(crops.camids))} cameras; identities are not used")
    neck_unused = sections["encoder"].compared == "pooled"
    return Course(UnlabelledCrops(crops, *given), contrast, relabelling.batches, (crops,), neck_unused, relabelling)


def listing(parts: Sequence[Crops]) -> str:
    """Changes with any image or label."""
    labels = [np.array(pair, np.float64) for crops in parts for pair in zip(crops.pids, crops.camids, strict=True)]
    return fingerprint([path for crops in parts for path in crops.paths], labels)


def record_clusters(
    report: ClusterReport, pids: NDArray[np.int64], monitor: Monitor, out: Path, epoch: int, step: int
) -> None:
    """Print, append to clusters.jsonl, draw clusters.png."""
    figures = report.figures()
    said = [f"{name} {figures[name]:.3f}" for name in ("nmi", "ari", "purity") if name in figures]
    print(", ".join([f"epoch {epoch}: {report.clusters} clusters", f"{report.outliers} outliers", *said]))
    rows = append_row(out / "clusters.jsonl", {"epoch": epoch, "step": step, **figures}, "epoch")
    plot_clusters(rows, out / "clusters.png", len(np.unique(pids[pids > 0])) or None)
    monitor.validation(figures, step, "clusters")


def record_validation(encoder: Encoder, data: ReidDataset, place: torch.device, out: Path, step: int) -> dict[str, Any]:
    """Rank the gallery: print, append to validation.jsonl, keep the weights of the best mAP."""
    training = encoder.training
    describer = EncoderDescriber(encoder.eval(), place)
    query, gallery = (extract_features(describer, crops, progress="evaluating") for crops in (data.query, data.gallery))
    encoder.train(training)
    ranked = evaluate_ranking(
        FeatureDistances(query, gallery, device=place),
        data.query.pids,
        data.gallery.pids,
        data.query.camids,
        data.gallery.camids,
    )
    figures = {"step": step, **ranked.figures()}
    print(f"evaluation at step {step}:\n{summary(figures)}")
    *earlier, _ = append_row(out / "validation.jsonl", figures, "step")
    if step and figures["mAP"] > max((row["mAP"] for row in earlier if row["step"]), default=-1):
        save_encoder(out / "best.safetensors", encoder, {"step": step, "mAP": figures["mAP"]})
    return figures


def append_row(path: Path, row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The rows of a log up to this one, by its number: a run that goes on writes later ones again."""
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [*(old for old in earlier if old[key] < row[key]), row]
    write_text(path, "".join(json.dumps(each) + "\n" for each in rows))
    return rows


def yield_cores(_: int) -> None:
    """Prepare batches in the pauses of the training threads: one thread held up holds up all that wait for it."""
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(10)


if __name__ == "__main__":
    sys.exit(main())
