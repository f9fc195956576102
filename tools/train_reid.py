"""Train an encoder of people (or vehicles) on labelled crops, and rank its gallery.

    python tools/train_reid.py --data market1501:Market-1501 --check-data --out runs/check
    python tools/train_reid.py --data Market-1501 --set encoder.pretrained=true --out runs/resnet50
    python tools/train_reid.py --out runs/resnet50 --resume
    python tools/train_reid.py --data Market-1501 --encoder osnet_x0_25 --init osnet_x0_25_msmt17.pth --out runs/osnet
    python tools/train_reid.py --data msmt17:MSMT17_V1.zip --set losses.triplet=1 losses.circle=0.05 --out runs/msmt
    python tools/train_reid.py --data Market-1501 --extra generated/ --set losses.lsro=0.2 --out runs/extra
    torchrun --nproc-per-node 4 tools/train_reid.py --data Market-1501 --set train.precision=fp16 --out runs/four

--data: LAYOUT:PATH of an unpacked folder or a zip; the layout is recognised where it is left out (market1501,
dukemtmc, msmt17, cuhk03, personx, veri776, vehicleid, viper, folder). Query and gallery are what is evaluated.

--out holds model.safetensors (for tools/eval_reid.py), best.safetensors by mAP, last.pt to go on from, log.jsonl,
validation.jsonl, curves.png and tensorboard/. Ctrl-C and --resume lose at most an epoch; on a CPU the weights at the
end are those of a run never stopped, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs import dump_config, load_config
from detector import parallel
from detector.monitor import Monitor, summary
from detector.resume import fingerprint, read_checkpoint, restore, write_checkpoint
from detector.training import update_average
from reid.check import contact_sheet, unreadable
from reid.check import summary as table
from reid.curves import plot_curves
from reid.datasets import ReidDataset, load_dataset, load_images
from reid.distances import FeatureDistances
from reid.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder, load_backbone, save_encoder
from reid.evaluation import check_queries
from reid.extraction import EncoderDescriber, extract_features
from reid.losses import ReidLossConfig
from reid.ranking import evaluate_ranking
from reid.training import (
    TrainConfig,
    TrainingCrops,
    average_statistics,
    build_step,
    check_weights,
    make_optimizer,
    optimise,
    parameter_groups,
    plan_batches,
    rate_share,
    set_rates,
)
from reid.transforms import AugmentConfig
from tracker.console import fail, stop_signals
from tracker.files import write_text
from tracker.video import available_cores

SECTIONS = {"train": TrainConfig, "encoder": EncoderConfig, "losses": ReidLossConfig, "augmentation": AugmentConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train_reid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="SOURCE", help="data set to learn from and to evaluate on: [LAYOUT:]PATH")
    add("--extra", metavar="PATH", help="images without labels, such as generated ones, to learn from with losses.lsro")
    add("--encoder", choices=ENCODERS, metavar="NAME", help=f"short for --set encoder.name: {', '.join(ENCODERS)}")
    add("--init", help="weights to start from: .safetensors of ours, .pth of torchreid, layumi, Cluster Contrast")
    add("--out", type=Path, default=Path("runs/reid"), help="folder of results (default %(default)s)")
    add("--config", help=f"YAML with sections {', '.join(SECTIONS)}, or the name of a shipped one (reid_*)")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="any setting: train.epochs=20")
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
    if resumed:
        if args.data or args.extra or args.encoder or args.init or args.config:
            raise ValueError(
                "--resume: data, extra, encoder, init and config are the checkpoint's; --set changes others"
            )
        given = [
            f"{k}.{key}={json.dumps(v, ensure_ascii=False)}"
            for k, part in resumed["config"].items()
            for key, v in part.items()
        ]
        return load_config(None, given + args.set, SECTIONS)
    named = [f"encoder.name={args.encoder}"] if args.encoder else []
    sections = load_config(args.config, named + args.set, SECTIONS)
    changes = {name: getattr(args, name) for name in ("data", "extra", "init") if getattr(args, name) is not None}
    return sections | {"train": replace(sections["train"], **changes)}


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


def train(
    sections: dict[str, Any], out: Path, device: str, workers: int | None, resumed: dict[str, Any] | None
) -> None:
    """Everything before the first step, then the loop."""
    config: TrainConfig = sections["train"]
    rank, world, place = parallel.start(device)
    main_process, start = rank == 0, resumed["step"] if resumed else 0
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    dataset = load_dataset(config.data, None if config.validate_every else ("train",))
    if dataset.train is None:
        raise ValueError(f"{config.data}: expected images to learn from, found query and gallery only")
    if config.validate_every and (dataset.query is None or dataset.gallery is None):
        raise ValueError(f"{config.data}: expected query and gallery; without: --set train.validate_every=0")
    if config.validate_every and dataset.query is not None:
        check_queries(dataset.query)
    extra = load_images(config.extra) if config.extra else None
    data = TrainingCrops(dataset.train, extra, sections["encoder"].input_size, sections["augmentation"], config.seed)
    per_epoch, batches = plan_batches(data, config, start, rank, world)
    steps = max(round(config.epochs * per_epoch), 1)
    everything = [data.crops, *([extra] if extra else [])]
    labels = [np.array(pair, np.float64) for crops in everything for pair in zip(crops.pids, crops.camids, strict=True)]
    listing = fingerprint([path for crops in everything for path in crops.paths], labels)
    if start > steps:
        done_epochs = start / per_epoch
        raise ValueError(f"train.epochs: expected at least the {done_epochs:g} that are done, got {config.epochs:g}")
    if main_process:
        print(table(dataset))
        if resumed and listing != resumed["data"]:
            print("note: the data changed since the checkpoint: the run goes on, but not to the same weights")

    torch.manual_seed(config.seed)
    encoder = build_encoder(sections["encoder"] if not resumed else replace(sections["encoder"], pretrained=False))
    if config.init and not resumed:
        taken = load_backbone(encoder, config.init)
        if main_process:
            print(f"{config.init}: {taken} tensors taken over")
    pretrained = bool(config.init) or sections["encoder"].pretrained
    step_module = build_step(encoder, sections["losses"], len(data.pids), config).to(place)
    if config.sync_norm and world > 1 and place.type == "cuda":
        step_module = nn.SyncBatchNorm.convert_sync_batchnorm(step_module)
    parts = nn.ModuleDict({"step": step_module})
    if config.ema:
        parts["average"] = copy.deepcopy(encoder).requires_grad_(False)
    saved: Encoder = parts["average"] if config.ema else encoder  # type: ignore[assignment]
    optimizer = make_optimizer(step_module, config, pretrained)
    scaler = torch.amp.GradScaler(place.type, enabled=config.precision == "fp16")
    if resumed:
        groups = parameter_groups(step_module, config, pretrained)
        restore(resumed, out / "last.pt", parts, optimizer, scaler, groups)
    runner: nn.Module = step_module
    if world > 1:
        unused = not sections["losses"].cross_entropy  # the neck, where all losses look at what is before it
        runner = DistributedDataParallel(step_module, broadcast_buffers=False, find_unused_parameters=unused)
    if workers is None:
        workers = max(1, available_cores() // world - 1) if place.type == "cuda" else 1
    loader = DataLoader(
        data,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=yield_cores if workers else None,
        pin_memory=place.type == "cuda",
    )
    resolved = dump_config(sections)
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(Monitor(out, start)) if main_process else None
        if main_process:
            print(json.dumps(resolved, ensure_ascii=False))
            print(f"{len(data)} images, {len(data.pids)} identities, {per_epoch} steps an epoch, {steps} steps")
            if not start and config.init and config.validate_every:
                record_validation(saved, dataset, place, out, 0)
        bar = stack.enter_context(
            tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=2, disable=not main_process)
        )
        for done, (pixels, labels) in enumerate(itertools.islice(loader, max(steps - start, 0)), start + 1):
            set_rates(optimizer, rate_share(done - 1, steps, round(config.warmup * per_epoch), config))
            torch.manual_seed(config.seed * 1_000_003 + done * world + rank)  # dropout, wherever a run goes on
            step_module.train()
            try:
                losses, norm = optimise(runner, optimizer, scaler, pixels.to(place), labels.to(place), config.clip)
            except ValueError as error:
                good = "; the last checkpoint is good" if (out / "last.pt").is_file() else ""
                advice = f"{good}; lower train.lr, or set train.clip" if "not finite" in str(error) else ""
                raise ValueError(f"step {done}: {error}{advice}") from error
            if config.ema:
                update_average(saved, encoder, min(config.ema, done / (done + 9)))
            means = parallel.mean(losses)
            at_end = done == steps
            epoch, within = divmod(done, per_epoch)
            validated = config.validate_every and (at_end or (within == 0 and epoch % config.validate_every == 0))
            saved_now = at_end or (within == 0 and epoch % config.save_every == 0)
            if validated or saved_now:
                average_statistics(parts)
                try:
                    check_weights(parts)
                except ValueError as error:
                    raise ValueError(f"step {done}: {error}; lower train.lr, or set train.clip") from error
            if monitor:
                rate = optimizer.param_groups[-1]["lr"]
                monitor.step({"step": done, "epoch": done / per_epoch, "lr": rate, "grad_norm": norm.item(), **means})
                bar.update()
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in list(means.items())[:4]}, refresh=False)
                if validated:
                    monitor.validation(record_validation(saved, dataset, place, out, done), done)
                if saved_now:
                    # The checkpoint comes last: a run that dies before it does these steps again.
                    monitor.flush()
                    save_encoder(out / "model.safetensors", saved, {"config": resolved, "step": done})
                    plot_curves(out / "log.jsonl", out / "validation.jsonl", out / "curves.png", per_epoch)
                    state = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                    state |= {"scaler": scaler.state_dict(), "config": resolved, "data": listing}
                    write_checkpoint(out / "last.pt", state)
            if validated:
                parallel.wait()
    if main_process:
        print(f"{out / 'model.safetensors'}: trained for {max(steps, start)} steps")


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
    path = out / "validation.jsonl"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    earlier = [row for row in earlier if row["step"] < step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in [*earlier, figures]))
    if step and figures["mAP"] > max((row["mAP"] for row in earlier if row["step"]), default=-1):
        save_encoder(out / "best.safetensors", encoder, {"step": step, "mAP": figures["mAP"]})
    return figures


def yield_cores(_: int) -> None:
    """Prepare batches in the pauses of the training threads: one thread held up holds up all that wait for it."""
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(10)


if __name__ == "__main__":
    sys.exit(main())
