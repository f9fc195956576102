r"""Train a joint detector: boxes, confidence, identity and distilled appearance in one network.

From labelled images (see detector/layouts.py for the layouts), starting from YOLOX-nano's weights, with a re-ID
encoder as the teacher of people whose identity nobody labelled:

    python tools/train_detector.py --data yolo:people/images --init yolox_nano.onnx \
        --teacher osnet_x0_25_msmt17.pth --out runs/first

MOTChallenge, COCO and CrowdHuman together, CrowdHuman shown twice as often, validated on a sequence held out:

    python tools/train_detector.py --data mot:MOT17/train --data coco:train2017,instances.json \
        --data crowdhuman:Images,annotation_train.odgt@2 --val mot:MOT17/held-out/MOT17-09-FRCNN --out runs/mixed

The published network and recipe on Darknet-53, on four GPUs of one machine:

    torchrun --nproc-per-node 4 tools/train_detector.py --config train_jde --data jde:data/caltech.train,/datasets \
        --init darknet53.conv.74 --out runs/jde

Look at a data set before training on it, measure a model, or go on where a run was stopped, to the same weights:

    python tools/train_detector.py --data mot:MOT17/train --check-data --out runs/check
    python tools/train_detector.py --eval-only --init runs/first/model.safetensors --val yolo:people/val/images
    python tools/train_detector.py --out runs/first --resume

What comes out, in --out: `model.safetensors` (for tools/track.py --weights), `best.safetensors` (the best AP50 on
--val), `last.pt` (to resume), `log.jsonl` (each step), `validation.jsonl`, `precision_recall.png`, `tensorboard/`.
--eval-only writes `evaluation.json` and `evaluation.png`.
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
from detector import (
    JDE,
    DarknetConfig,
    DarknetJDE,
    Detector,
    DetectorConfig,
    ModelConfig,
    load_model,
    parallel,
    save_model,
)
from detector.augment import Augmentation
from detector.build import build_step
from detector.check import check_source
from detector.checkpoint import FAMILIES
from detector.data import BatchPlan, TrainingSet, collate, number_identities, open_source
from detector.evaluation import Validation, plot_precision_recall, validate
from detector.monitor import Monitor, draw_batch, summary
from detector.resume import fingerprint, read_checkpoint, restore, write_checkpoint
from detector.sheets import contact_sheet, training_sheet
from detector.source import Source, read_image
from detector.training import (
    NotFiniteError,
    TrainConfig,
    freeze_norms,
    make_optimizer,
    optimise,
    parameter_groups,
    set_rates,
    update_average,
)
from reid.encoders import load_encoder
from reid.ranking import evaluate_ranking
from reid.teacher import TEACHER_DIM, describe_boxes

SECTIONS = {"train": TrainConfig, "model": ModelConfig, "darknet53": DarknetConfig, "augmentation": Augmentation}
VALIDATION_SCORE = 0.001
"""Average precision wants the doubtful boxes too."""
MAX_QUERIES = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", metavar="SOURCE", help="add a source: LAYOUT:PATH[,LABELS][@WEIGHT]")
    parser.add_argument("--val", action="append", metavar="SOURCE", help="add a source to validate on")
    parser.add_argument("--init", help="weights to start from (.safetensors, .onnx of YOLOX, .pt of JDE, .conv.74)")
    parser.add_argument("--teacher", help="OSNet checkpoint to distil embeddings from")
    parser.add_argument("--out", type=Path, default=Path("runs/train"), help="folder of results (default %(default)s)")
    parser.add_argument("--config", help=f"YAML with sections {', '.join(SECTIONS)}")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="train.steps=500")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--check-data", action="store_true", help="validate and draw the data, then stop")
    parser.add_argument("--eval-only", action="store_true", help="validate the weights of --init, then stop")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        resumed = read_checkpoint(args.out / "last.pt") if args.resume else None
        sections = resolve(args, resumed)
        config: TrainConfig = sections["train"]
        if args.check_data:
            return check_data(config, sections, args.out)
        if args.eval_only and args.resume:
            raise ValueError("--eval-only: give the weights as --init, without --resume")
        if args.eval_only:
            evaluate(config, args.out, parallel.choose_device(args.device))
            return 0
        for name in ("last.pt", "model.safetensors", "best.safetensors"):
            if (args.out / name).is_file() and not args.resume:
                raise ValueError(f"{args.out / name}: is of an earlier run; give --resume to go on, or another --out")
        train(sections, args.out, parallel.choose_device(args.device), args.workers, resumed)
    except KeyboardInterrupt:
        saved = (args.out / "last.pt").is_file()
        print("stopped" + (f"; go on with: --out {args.out} --resume" if saved else ""), file=sys.stderr)
        return 130
    except (ConnectionError, EOFError):
        if args.debug:
            raise
        print(
            "error: a process that prepares batches died (out of memory?): fewer --workers; then --resume",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        # What a worker process raised arrives with its traceback: the last line says it.
        print(f"error: {str(error).strip().rpartition(chr(10))[2].removeprefix('ValueError: ')}", file=sys.stderr)
        return 1
    finally:
        parallel.stop()
    return 0


def resolve(args: argparse.Namespace, resumed: dict[str, Any] | None) -> dict[str, Any]:
    """All sections: the checkpoint's when resuming, else defaults, --config, and the options in their order."""
    if resumed:
        if args.data or args.val or args.init or args.teacher or args.config:
            raise ValueError("--resume: data, val, init, teacher and config are the checkpoint's; --set changes others")
        given = [
            f"{k}.{key}={json.dumps(v, ensure_ascii=False)}"
            for k, part in resumed["config"].items()
            for key, v in part.items()
        ]
        return load_config(None, given + args.set, SECTIONS)
    sections = load_config(args.config, args.set, SECTIONS)
    config: TrainConfig = sections["train"]
    changes: dict[str, Any] = {k: v for k in ("init", "teacher") if (v := getattr(args, k)) is not None}
    added = {k: getattr(config, k) + tuple(getattr(args, k) or ()) for k in ("data", "val")}
    return sections | {"train": replace(config, **added, **changes)}


def check_data(config: TrainConfig, sections: dict[str, Any], out: Path) -> int:
    """Print what every source holds and what is wrong with it, and draw it; 1 where there are faults."""
    if not config.data and not config.val:
        raise ValueError("no data: give --data LAYOUT:PATH")
    checked = [check_source(text, progress=True) for text in (*config.data, *config.val)]
    for report, _ in checked:
        print(report)
    good = [source for _, source in checked if source]
    if good:
        out.mkdir(parents=True, exist_ok=True)
        number_identities(good)
        contact_sheet(good, out / "data.png", np.random.default_rng(config.seed))
        data = TrainingSet(good, config.seed, sections["augmentation"], FAMILIES[config.family][0].pad_value)
        training_sheet(data, out / "samples.png", config.canvases(sections["darknet53"].input_size)[-1])
        print(f"{out / 'data.png'}: images as labelled; {out / 'samples.png'}: samples as the network sees them")
    return int(any(report.faults for report, _ in checked))


def train(sections: dict[str, Any], out: Path, device: str, workers: int, resumed: dict[str, Any] | None) -> None:
    """Everything before the first step, then the loop."""
    config: TrainConfig = sections["train"]
    if not config.data:
        raise ValueError("no data: give --data LAYOUT:PATH, or a --config that names some")
    rank, world, place = parallel.start(device)
    if config.batch_size % (world * config.accumulate):
        raise ValueError(
            f"batch_size: expected a multiple of {world} processes times {config.accumulate} parts, "
            f"got {config.batch_size}"
        )
    main_process, start = rank == 0, resumed["step"] if resumed else 0
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    sources, val = ([open_source(text) for text in texts] for texts in (config.data, config.val))
    if main_process:
        for image in (image for source in val for image in source.images):
            read_image(image)  # a fault is better found now than after the first thousand steps
    num_ids = number_identities(sources)
    listing = fingerprint([i for s in sources for i in s.images], [rows for s in sources for rows in s.labels])
    if main_process:
        describe_sources(sources, num_ids)
        if resumed and listing != resumed["data"]:
            print("note: the data changed since the checkpoint: the run goes on, but not to the same weights")
    teacher_dim = describe(sources, config.teacher, out, place, main_process) if config.teacher else 0

    networks = sections["model"], sections["darknet53"]
    step_module, taken = build_step(config, *networks, num_ids, teacher_dim, place.type, take_over=not resumed)
    step_module.to(place)
    if taken and main_process:
        print(taken)
    model = step_module.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parts = nn.ModuleDict({"step": step_module, "average": average})
    optimizer = make_optimizer(step_module, config)
    scaler = torch.amp.GradScaler(place.type, enabled=config.precision == "fp16")
    if resumed:
        restore(resumed, out / "last.pt", parts, optimizer, scaler, parameter_groups(step_module, config))
    if config.compile:
        model.compile(dynamic=True)
    runner: nn.Module = step_module
    if world > 1:
        # Whoever has nobody in its share leaves parts of the network unused.
        runner = DistributedDataParallel(step_module, broadcast_buffers=False, find_unused_parameters=True)

    data = TrainingSet(sources, config.seed, sections["augmentation"], model.pad_value)
    canvases = config.canvases(sections["darknet53"].input_size)
    plan = BatchPlan(len(data.plan(0)), config.batch_size, canvases, config.seed, start, rank, world)
    steps = config.count_steps(plan.steps_per_epoch)
    loader = DataLoader(
        data,
        batch_sampler=plan,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=yield_cores if workers else None,
        pin_memory=place.type == "cuda",
    )
    resolved = dump_config(sections)
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(Monitor(out, start)) if main_process else None
        if main_process:
            print(json.dumps(resolved, ensure_ascii=False))
            print(f"{plan.steps_per_epoch} steps an epoch, {steps / plan.steps_per_epoch:.1f} epochs")
        bar = stack.enter_context(
            tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=2, disable=not main_process)
        )
        batches = itertools.islice(loader, max(steps - start, 0))
        for done, (pixels, labelled) in enumerate(batches, start + 1):
            set_rates(optimizer, done - 1, steps, config)
            step_module.train()
            freeze_norms(model, config)
            images = pixels.to(place, memory_format=torch.channels_last, non_blocking=True).float()
            targets = [{name: value.to(place) for name, value in target.items()} for target in labelled]
            try:
                losses, norm = optimise(runner, step_module, optimizer, scaler, images, targets, config)
            except NotFiniteError as error:
                raise ValueError(f"step {done}: {error}{name_batch(data, labelled, out)}") from error
            update_average(average, model, min(config.ema, done / (done + 9)) if config.ema else 0.0)

            means = parallel.mean(losses)
            validated = bool(val) and (done % config.validate_every == 0 or done == steps)
            if monitor:
                weights = {f"s_{task}": s.item() for task, s in step_module.weighting.s.items()}
                rate = optimizer.param_groups[0]["lr"]
                monitor.step({"step": done, "lr": rate, "grad_norm": norm.item(), **means, **weights})
                bar.update()
                bar.set_postfix({task: f"{loss:.3f}" for task, loss in list(means.items())[:5]}, refresh=False)
                if done % config.picture_every == 0 or done == 1:
                    monitor.picture("batch", draw_batch(average, images, targets), done)
                if validated:
                    monitor.validation(record_validation(average, val, config, place, out, done), done)
                if done % config.save_every == 0 or done == steps:
                    # The checkpoint comes last: a run that dies before it does these steps again.
                    monitor.flush()
                    save_model(out / "model.safetensors", average, {"config": resolved, "step": done})
                    state = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                    state |= {"scaler": scaler.state_dict(), "config": resolved, "data": listing}
                    write_checkpoint(out / "last.pt", state)
            if validated:
                parallel.wait()
    if main_process:
        print(f"{out / 'model.safetensors'}: trained for {max(steps, start)} steps{peak_memory(place)}")


def name_batch(data: TrainingSet, targets: list[dict[str, torch.Tensor]], out: Path) -> str:
    """Write down which images a batch was made of; says where, and names the first."""
    draws = [target["draw"].tolist() for target in targets]
    images = [{"epoch": e, "position": p, "image": str(data.path(e, p))} for e, p in draws]
    file = out / "not_finite.json"
    file.write_text(json.dumps(images, indent=1, ensure_ascii=False))
    return (
        f" on {images[0]['image']} and {len(images) - 1} more (all in {file}); "
        "the last checkpoint is good: lower the learning rates"
    )


def measure(
    model: JDE | DarknetJDE, val: list[Source], config: TrainConfig, place: torch.device, curve: Path
) -> dict[str, Any]:
    """Run a model over labelled images: figures, and the precision-recall curve as a picture."""
    view = DetectorConfig(input_size=config.val_size, score_thresh=VALIDATION_SCORE, max_detections=100)
    detector = Detector(model, place, view)
    number_identities(val)
    images = [image for source in val for image in source.images]
    labels = [rows for source in val for rows in source.labels]
    result = validate(detector, images, labels, detector.embed if model.config.embedding_dim else None)
    plot_precision_recall(curve, {"all people": result.detection, "small people": result.small})
    return {**result.figures, **rank_embeddings(result)}


def record_validation(
    model: JDE | DarknetJDE, val: list[Source], config: TrainConfig, place: torch.device, out: Path, step: int
) -> dict[str, Any]:
    """Validate during training: print, append to validation.jsonl, keep the weights of the best AP50."""
    figures = {"step": step, **measure(model, val, config, place, out / "precision_recall.png")}
    print(f"validation at step {step}:\n{summary(figures)}")
    path = out / "validation.jsonl"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    earlier = [row for row in earlier if row["step"] < step]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*earlier, figures]))
    if (figures["AP50"] or 0) > max((row["AP50"] or 0 for row in earlier), default=-1):
        save_model(out / "best.safetensors", model, {"step": step, "AP50": figures["AP50"]})
    return figures


def rank_embeddings(result: Validation) -> dict[str, float | None]:
    """Rank-1 and mAP among the validation boxes: each looks for its person in all other images."""
    pairs = np.unique(np.stack((result.pids, result.images)), axis=1)
    if len(np.unique(pairs[0])) < 2 or len(np.unique(pairs[0])) == pairs.shape[1]:
        return {"rank-1": None, "mAP": None}  # nobody to mistake a person for, or nobody is seen twice
    queries = np.linspace(0, len(result.pids) - 1, min(len(result.pids), MAX_QUERIES)).round().astype(int)
    pids = result.pids + 1  # to the ranking, 0 is a distractor
    distance = 1 - result.embeddings[queries] @ result.embeddings.T
    scores = evaluate_ranking(distance, pids[queries], pids, result.images[queries], result.images)
    return {"rank-1": float(scores.cmc[0]), "mAP": float(scores.mean_ap)}


def evaluate(config: TrainConfig, out: Path, device: str) -> None:
    """Validate the weights of `init`, or the bundled ones: print, write evaluation.json and evaluation.png."""
    if not config.val:
        raise ValueError("no data to validate on: give --val LAYOUT:PATH")
    out.mkdir(parents=True, exist_ok=True)
    model, val = load_model(config.init), [open_source(text) for text in config.val]
    figures = {"weights": config.init or "bundled"}
    figures |= measure(model, val, config, torch.device(device), out / "evaluation.png")
    print(summary(figures))
    (out / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")


def yield_cores(_: int) -> None:
    """Prepare batches in the pauses of the training threads: one thread held up holds up all that wait for it."""
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(10)


def peak_memory(place: torch.device) -> str:
    """What the run took at most, as far as the system tells."""
    if place.type == "cuda":
        return f"; peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    if sys.platform != "linux":
        return ""
    import resource

    return f"; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def describe(sources: list[Source], teacher: str, out: Path, place: torch.device, main_process: bool) -> int:
    """Teacher embeddings for every source; returns their length.

    Person crops have identities that somebody labelled and need no teacher: they keep zero rows.
    """
    if not main_process:
        parallel.wait()  # the first process computes what the others read
    encoder = load_encoder(teacher).to(place)
    if encoder.embedding_dim != TEACHER_DIM:
        raise ValueError(f"{teacher}: expected a teacher with embeddings of {TEACHER_DIM}, got {encoder.embedding_dim}")
    for source in sources:
        if source.crops:
            source.teacher = [np.zeros((len(rows), TEACHER_DIM), np.float16) for rows in source.labels]
        else:
            source.teacher = describe_boxes(encoder, Path(teacher), source.images, source.labels, out, source.name)
    if main_process:
        parallel.wait()
    return TEACHER_DIM


def describe_sources(sources: list[Source], num_ids: int) -> None:
    """Print what there is to learn from, and what was left out."""
    for source in sources:
        rows = np.concatenate(source.labels)
        people = rows[rows[:, 0] >= 0]
        print(
            f"{source.name}: {len(source.images)} images, {len(people)} people, {(people[:, 1] >= 0).sum()} with an "
            f"identity, {sum(not len(r) for r in source.labels)} images without labels"
        )
        for what, missing in (("label files", source.missing_labels), ("images", source.missing_images)):
            if missing:
                print(f"  {len(missing)} {what} missing, e.g. {missing[0]}")
        for reason, count in source.dropped.items():
            print(f"  left out: {count} {reason}")
    print(f"{num_ids} identities")


if __name__ == "__main__":
    sys.exit(main())
