r"""Train a joint detector: boxes, confidence, identity and distilled appearance in one network.

From labelled images (see detector/data.py for the layouts), starting from YOLOX-nano's weights, with a re-ID
encoder as the teacher of people whose identity nobody labelled:

    python tools/train_detector.py --data yolo:people/images --init yolox_nano.onnx \
        --teacher osnet_x0_25_msmt17.pth --out runs/first

The recipe of the bundled model, with data of your own added:

    python tools/train_detector.py --config train_nano --data jde:mine/images --data yolo:people/images@2

Stop it at any time (Ctrl-C, or worse) and go on where the last checkpoint was, to the same weights:

    python tools/train_detector.py --out runs/first --resume

What comes out, in --out: `model.safetensors` (for tools/track.py --weights), `last.pt` (to resume), `log.jsonl`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs import dump_config, load_config
from detector.checkpoint import load_model, load_state, load_yolox_onnx, save_model
from detector.csp import STRIDES
from detector.data import BatchPlan, Source, TrainingSet, collate, number_identities, open_source, read_image
from detector.losses import TASKS, JDECriterion, UncertaintyWeighting
from detector.model import JDE, ModelConfig
from reid.encoders import encode_crops, load_osnet

MIN_TEACHER_HEIGHT = 24
"""People lower than this, in pixels, are too small for the teacher to describe."""
TEACHER_DIM = 512
TEACHER_CHUNK = 32
"""Images whose people the teacher sees in one go."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    data: tuple[str, ...] = ()
    """Sources, each LAYOUT:PATH[,LABELS][@WEIGHT]; see detector/data.py."""
    init: str | None = None
    """Weights to start from: a YOLOX .onnx of the same size or a model of ours; None starts from random ones."""
    teacher: str | None = None
    """torchreid OSNet checkpoint whose embeddings are distilled; None trains on labelled identities alone."""
    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 16
    """Images a step."""
    sizes: tuple[int, ...] = (352, 416, 480)
    """Square input sizes, one drawn for every batch."""
    mosaic: float = 0.5
    """Share of samples made of four images."""
    detector_lr: float = 2e-4
    """Peak learning rate of backbone, pyramid and detection heads; 0 freezes them: only the embedding is learned,
    which is right for weights from more images than `data` has; they soon forget."""
    embedding_lr: float = 2e-3
    """Peak learning rate of embedding head, classifier, teacher projection and uncertainty weights."""
    weight_decay: float = 1e-2
    """AdamW's, on weights with more than one dimension."""
    warmup: int = 100
    """Steps of linear warm-up; a cosine to one hundredth follows."""
    clip: float = 10.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay of the moving average of weights that is saved."""
    frozen_norm: bool | None = None
    """Keep the detection part's batch-norm statistics, as is right for weights whose norms were folded (YOLOX's are);
    None keeps them where training starts from `init`, and learns them from a random start."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        if not self.sizes or any(size < STRIDES[-1] or size % STRIDES[-1] for size in self.sizes):
            raise ValueError(f"sizes: expected positive multiples of {STRIDES[-1]}, got {list(self.sizes)}")
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("detector_lr", "embedding_lr", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not self.clip > 0:
            raise ValueError(f"clip: expected a number above 0, got {self.clip}")
        for name in ("mosaic", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", metavar="SOURCE", help="add a source: LAYOUT:PATH[,LABELS][@WEIGHT]")
    parser.add_argument("--init", help="weights to start from (.onnx of YOLOX, or .safetensors)")
    parser.add_argument("--teacher", help="OSNet checkpoint to distil embeddings from")
    parser.add_argument("--out", type=Path, default=Path("runs/train"), help="folder of results (default %(default)s)")
    parser.add_argument("--config", help="YAML with sections `train` and `model`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.steps=500")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        checkpoint = args.out / "last.pt"
        if args.resume and not checkpoint.is_file():
            raise ValueError(f"{checkpoint}: no checkpoint to resume from")
        if checkpoint.is_file() and not args.resume:
            raise ValueError(f"{checkpoint}: holds an earlier run; give --resume to go on, or another --out")
        resumed = read_checkpoint(checkpoint) if args.resume else None
        if resumed:
            if args.data or args.init or args.teacher or args.config:
                raise ValueError("--resume: data, init, teacher and config are the checkpoint's; --set changes others")
            given = [f"{k}.{key}={json.dumps(v)}" for k, part in resumed["config"].items() for key, v in part.items()]
            sections = load_config(None, given + args.set, {"train": TrainConfig, "model": ModelConfig})
        else:
            sections = load_config(args.config, args.set, {"train": TrainConfig, "model": ModelConfig})
        config: TrainConfig = sections["train"]
        if not resumed:
            changes = {k: v for k in ("init", "teacher") if (v := getattr(args, k)) is not None}
            config = replace(config, data=config.data + tuple(args.data or ()), **changes)
        train(config, sections["model"], args.out, args.device, args.workers, resumed)
    except KeyboardInterrupt:
        saved = (args.out / "last.pt").is_file()
        print("stopped" + (f"; go on with: --out {args.out} --resume" if saved else ""), file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        # What a worker process raised arrives with its traceback: the last line says it.
        print(f"error: {str(error).strip().rpartition(chr(10))[2].removeprefix('ValueError: ')}", file=sys.stderr)
        return 1
    return 0


def train(
    config: TrainConfig, model_config: ModelConfig, out: Path, device: str, workers: int, resumed: dict[str, Any] | None
) -> None:
    """The loop."""
    if not config.data:
        raise ValueError("no data: give --data LAYOUT:PATH, or a --config that names some")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' asked for, but no CUDA device is available")
    out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    sources = [open_source(text) for text in config.data]
    num_ids = number_identities(sources)
    teacher_dim = describe(sources, config.teacher, out, device) if config.teacher else 0
    describe_sources(sources, num_ids)

    model = JDE(model_config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.init and not resumed:
        initialise(model, config.init)
    tasks = [t for t in TASKS if (t != "id" or num_ids) and (t != "distill" or teacher_dim)]
    if not model_config.embedding_dim:
        tasks = ["box", "conf"]
    if not config.detector_lr:
        tasks = [t for t in tasks if t not in ("box", "conf")]
        freeze_detector(model)
    if not tasks:
        raise ValueError("nothing to learn: detector_lr is 0, and there are no embeddings to train on this data")
    criterion = JDECriterion(
        num_ids if "id" in tasks else 0, model_config.embedding_dim, teacher_dim if "distill" in tasks else 0
    ).to(device)
    weighting = UncertaintyWeighting(dict.fromkeys(tasks, 0.0)).to(device)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parts = nn.ModuleDict({"model": model, "average": average, "criterion": criterion, "weighting": weighting})
    optimizer = torch.optim.AdamW(parameter_groups(model, criterion, weighting, config))
    generator = torch.Generator().manual_seed(config.seed)
    start = 0
    if resumed:
        load_parts(parts, resumed["parts"], out / "last.pt")
        optimizer.load_state_dict(resumed["optimizer"])
        wanted = parameter_groups(model, criterion, weighting, config)  # --set may have changed rates
        for group, fresh in zip(optimizer.param_groups, wanted, strict=True):
            group |= {key: fresh[key] for key in ("peak", "weight_decay")}
        generator.set_state(resumed["generator"])
        start = resumed["step"]

    frozen_norm = bool(config.init) if config.frozen_norm is None else config.frozen_norm
    data = TrainingSet(sources, config.seed, config.mosaic)
    plan = BatchPlan(len(data.plan(0)), config.batch_size, config.sizes, config.seed, start)
    loader = DataLoader(
        data,
        batch_sampler=plan,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=yield_cores if workers else None,
    )
    resolved = dump_config({"train": config, "model": model_config})
    print(json.dumps(resolved))
    print(f"{plan.steps_per_epoch} steps an epoch, {config.steps / plan.steps_per_epoch:.1f} epochs")
    steps = itertools.islice(loader, max(config.steps - start, 0))
    with (
        open_log(out / "log.jsonl", start) as log,
        tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=2) as bar,
    ):
        for step, (images, targets) in enumerate(steps, start):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, config)
            model.train()
            if frozen_norm or not config.detector_lr:
                freeze_norms(model)
            images = images.to(device, memory_format=torch.channels_last).float()
            targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
            raw, features = model(images)
            losses = criterion(model, raw, features, targets, generator)
            total = weighting({task: losses[task] for task in tasks})
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            norm = nn.utils.clip_grad_norm_(itertools.chain(model.parameters(), criterion.parameters()), config.clip)
            check_finite(losses | {"gradient": norm}, step)
            optimizer.step()
            update_average(average, model, min(config.ema, (step + 1) / (step + 10)))

            row = {"step": step + 1, "total": total.item(), "grad_norm": norm.item()}
            row |= {task: loss.item() for task, loss in losses.items()}
            row |= {f"s_{task}": s.item() for task, s in weighting.s.items()}
            log.write(json.dumps(row) + "\n")
            bar.update()
            bar.set_postfix({task: f"{loss.item():.3f}" for task, loss in losses.items()}, refresh=False)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                log.flush()
                state = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                write_checkpoint(out / "last.pt", state | {"generator": generator.get_state(), "config": resolved})
                save_model(out / "model.safetensors", average, {"config": resolved, "step": step + 1})
    print(f"{out / 'model.safetensors'}: trained for {max(config.steps, start)} steps")


def yield_cores(_: int) -> None:
    """Prepare batches in the pauses of the training threads: one thread held up holds up all that wait for it."""
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(10)


def initialise(model: JDE, path: str) -> None:
    """Take over YOLOX weights, or a model of ours with the same configuration."""
    if path.endswith(".onnx"):
        print(f"{path}: {load_yolox_onnx(path, model)} tensors taken over")
    else:
        state = load_model(path).state_dict()
        load_state(model, {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)


def parameter_groups(
    model: JDE, criterion: nn.Module, weighting: nn.Module, config: TrainConfig
) -> list[dict[str, Any]]:
    """Detection and embedding parts at their own rates; no decay on vectors and scalars."""
    new = [p for name, p in model.named_parameters() if name.startswith("embedding_head")]
    new += [*criterion.parameters(), *weighting.parameters()]
    old = [p for name, p in model.named_parameters() if not name.startswith("embedding_head")]
    return [
        {"params": [p for p in part if p.requires_grad and (p.ndim > 1) == heavy], "peak": rate, "weight_decay": decay}
        for part, rate in ((old, config.detector_lr), (new, config.embedding_lr))
        for heavy, decay in ((True, config.weight_decay), (False, 0.0))
    ]


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def freeze_detector(model: JDE) -> None:
    """Leave only the embedding head to be trained: what is detected stays as it is, to the bit."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("embedding_head"))


def freeze_norms(model: JDE) -> None:
    """Batch norms outside the embedding head use their stored statistics."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("embedding_head"):
            module.eval()


@torch.no_grad()
def update_average(average: JDE, model: JDE, decay: float) -> None:
    """Move the averaged weights (and batch-norm statistics) towards the model's."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def check_finite(losses: dict[str, torch.Tensor], step: int) -> None:
    """Stop before a NaN reaches the weights."""
    bad = {task: loss.item() for task, loss in losses.items() if not torch.isfinite(loss)}
    if bad:
        raise ValueError(f"step {step}: not finite: {bad}; the last checkpoint is good: lower the learning rates")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"parts", "optimizer", "step", "generator", "config"} <= state.keys():
        raise ValueError(f"{path}: not a checkpoint of this tool")
    return state


def load_parts(parts: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Everything that is trained; the data or the model may have changed since it was saved."""
    try:
        parts.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: does not fit: the model's configuration, or the identities in the data, changed since"
        ) from error


def open_log(path: Path, start: int) -> TextIO:
    """The log cut back to its first `start` steps: those after the checkpoint are run again."""
    lines = path.read_text().splitlines(keepends=True)[:start] if start and path.is_file() else []
    path.write_text("".join(lines))
    return path.open("a")


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Whole or absent."""
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.replace(path)


def describe(sources: list[Source], teacher: str, out: Path, device: str) -> int:
    """Teacher embeddings, computed once and kept in --out; returns their length.

    Person crops have identities that somebody labelled and need no teacher: they keep zero rows.
    """
    encoder = load_osnet(teacher).to(device)
    for source in sources:
        if source.crops:
            source.teacher = [np.zeros((len(rows), TEACHER_DIM), np.float16) for rows in source.labels]
            continue
        pairs = list(zip(source.images, source.labels, strict=True))
        listing = "\n".join([str(teacher), *(f"{image} {rows[:, 2:].round(6).tolist()}" for image, rows in pairs)])
        cache = out / f"teacher-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.npy"
        if not cache.is_file():
            chunks = [pairs[i : i + TEACHER_CHUNK] for i in range(0, len(pairs), TEACHER_CHUNK)]
            bar = tqdm(chunks, desc=f"teacher: {source.name}", unit="chunk", dynamic_ncols=True, mininterval=2)
            with cache.with_suffix(".partial").open("wb") as file:
                np.save(file, np.concatenate([teach(encoder, chunk) for chunk in bar]))
            cache.with_suffix(".partial").replace(cache)
        flat = np.load(cache, allow_pickle=False)
        source.teacher = np.split(flat, np.cumsum([len(rows) for rows in source.labels])[:-1])
    return TEACHER_DIM


def teach(encoder: nn.Module, pairs: list[tuple[Path, np.ndarray]]) -> np.ndarray:
    """Embeddings (n, T) float16 of the people in some images; zero rows for regions and for people too small."""
    result = np.zeros((sum(len(rows) for _, rows in pairs), TEACHER_DIM), np.float16)
    crops, places, first = [], [], 0
    for path, rows in pairs:
        image = read_image(path)
        side = np.array(image.shape[1::-1])
        half = rows[:, 4:6] / 2
        low = np.clip((rows[:, 2:4] - half) * side, 0, side).round().astype(int)
        high = np.clip((rows[:, 2:4] + half) * side, 0, side).round().astype(int)
        width, height = (high - low).T
        large = (height >= MIN_TEACHER_HEIGHT) & (width >= MIN_TEACHER_HEIGHT // 4)
        for i in np.flatnonzero(large & (rows[:, 0] >= 0)):
            crops.append(image[low[i, 1] : high[i, 1], low[i, 0] : high[i, 0]])
            places.append(first + i)
        first += len(rows)
    if crops:
        result[places] = encode_crops(encoder, crops)
    return result


def describe_sources(sources: list[Source], num_ids: int) -> None:
    """Print what there is to learn from."""
    for source in sources:
        rows = np.concatenate(source.labels)
        people = rows[rows[:, 0] >= 0]
        print(
            f"{source.name}: {len(source.images)} images, {len(people)} people, {(people[:, 1] >= 0).sum()} with an "
            f"identity, {sum(not len(r) for r in source.labels)} images without labels"
        )
    print(f"{num_ids} identities")


if __name__ == "__main__":
    sys.exit(main())
