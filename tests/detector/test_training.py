"""Settings, rates and freezing; and that both networks learn what they are shown, in any precision."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detector.augment import Augmentation
from detector.build import build_step
from detector.darknet import DarknetConfig
from detector.data import Draw, TrainingSet, collate
from detector.layouts import open_source
from detector.losses import Targets
from detector.metrics import detection_scores
from detector.model import JDE, ModelConfig
from detector.postprocess import postprocess
from detector.priors import Picks, decode_boxes
from detector.source import number_identities
from detector.training import (
    NotFiniteError,
    TrainConfig,
    TrainingStep,
    check_finite,
    freeze_norms,
    is_embedding,
    is_head,
    make_optimizer,
    optimise,
    parameter_groups,
    rate_share,
    set_rates,
    update_average,
)
from tests.detector.scenes import write_people

FAMILIES = ("compact", "darknet53")
STILL = Augmentation(0, rotation=0, scale=(1, 1), shear=0, shift=0, hue=0, saturation=0, value=0, grey=0, flip=0)
Batch = tuple[torch.Tensor, list[dict[str, torch.Tensor]]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch_of(images: Path, count: int, side: int) -> tuple[Batch, int]:
    """The first images of a folder, as they are on a square canvas, and the number of identities."""
    source = open_source(f"jde:{images}")
    num_ids = number_identities([source])
    data = TrainingSet([source], 0, STILL)
    pixels, targets = collate([data[Draw(0, i, (side, side))] for i in range(count)])
    return (pixels.float(), targets), num_ids


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return batch_of(write_people(tmp_path_factory.mktemp("people"), 4), 4, 96)[0]


def small_step(config: TrainConfig, num_ids: int = 2, dim: int = 16, width: float = 1 / 8, side: int = 96):
    """A small network of the family with everything that is trained, the same every time."""
    torch.manual_seed(config.seed)
    darknet53 = DarknetConfig(width=width, embedding_dim=dim, input_size=(side, side))
    return build_step(config, ModelConfig(embedding_dim=dim), darknet53, num_ids, 0)[0]


def train(step: TrainingStep, config: TrainConfig, batch: Batch) -> list[dict[str, float]]:
    """The tool's loop on one batch, again and again; the log."""
    optimizer = make_optimizer(step, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    log = []
    for i in range(config.count_steps(1)):
        set_rates(optimizer, i, config.count_steps(1), config)
        step.train()
        freeze_norms(step.model, config)
        losses, norm = optimise(step, step, optimizer, scaler, *batch, config)
        row = {name: loss.item() for name, loss in losses.items()} | {"norm": norm.item()}
        log.append(row | {f"s_{task}": s.item() for task, s in step.weighting.s.items()})
    return log


# --- learning


def write_known(folder: Path, shared: Path, count: int = 8) -> Path:
    """Photographs with one to four people who are well visible, each an identity of their own.

    None overlaps another much: suppression would take one of them for a repetition.
    """
    data = shared / "data" / "det" / "coco256"
    (folder / "labels_with_ids").mkdir()
    (folder / "images").mkdir()
    pid = itertools.count()
    for image in sorted((data / "images" / "train2017").iterdir()):
        labels = data / "object_detection" / "labels" / "train2017" / f"{image.stem}.txt"
        rows = [line.split() for line in labels.read_text().splitlines()] if labels.is_file() else []
        people = torch.tensor([[float(word) for word in row[1:]] for row in rows if row[0] == "0"]).reshape(-1, 4)
        boxes = box_convert(people, "cxcywh", "xyxy")
        apart = (box_iou(boxes, boxes) - torch.eye(len(boxes)) < 0.2).all()
        if 1 <= len(people) <= 4 and apart and (people[:, 2:] > torch.tensor([0.1, 0.3])).all() and count:
            (folder / "images" / image.name).write_bytes(image.read_bytes())
            lines = [f"0 {next(pid)} {' '.join(map(str, box))}\n" for box in people.tolist()]
            (folder / "labels_with_ids" / f"{image.stem}.txt").write_text("".join(lines))
            count -= 1
    return folder / "images"


@torch.no_grad()
def figures(step: TrainingStep, images: torch.Tensor, targets: Targets) -> tuple[float, float]:
    """AP50, and the share of people whom the classifier knows by the surest cell that found them."""
    model = step.eval().model
    raw, features = model(images)
    found = postprocess(model, raw, features, 0.001, model.nms_thresh, 100, embed=False)
    scores = detection_scores(
        [{name: people[name].numpy() for name in ("boxes", "scores")} for people in found],
        [{name: target[name].numpy() for name in ("boxes", "labels")} for target in targets],
    )
    flat, priors = model.flatten(raw), model.priors(raw)
    boxes, sure = decode_boxes(flat[..., :4], priors), model.scores(flat)[0]
    image = torch.tensor([i for i, target in enumerate(targets) for _ in target["boxes"]])
    truth = torch.cat([target["boxes"] for target in targets])
    near = torch.stack([box_iou(box[None], boxes[i])[0] > 0.5 for i, box in zip(image.tolist(), truth, strict=True)])
    cell = (sure[image] * near).argmax(1)
    appearance = step.criterion.appearance
    embeddings = model.embed(features, Picks.of(priors, cell, image, boxes[image, cell]))
    known = appearance.identity(embeddings * appearance.scale).argmax(1) == torch.cat([t["ids"] for t in targets])
    return scores.ap50, known.double().mean().item()


RECIPES = {
    "compact": TrainConfig("compact", steps=250, detector_lr=4e-3, embedding_lr=4e-3, warmup=10),
    "darknet53": TrainConfig("darknet53", steps=100, detector_lr=2e-3, embedding_lr=2e-3, warmup=10),
}


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_learns_photographs_by_heart(family: str, shared: Path, tmp_path: Path) -> None:
    """From random weights to the boxes and identities of everybody in eight photographs."""
    batch, num_ids = batch_of(write_known(tmp_path, shared), 8, 128)
    assert num_ids == sum(len(target["boxes"]) for target in batch[1]) == 13
    config = RECIPES[family]
    step = small_step(config, num_ids, 64, 1 / 4, 128)
    start = {task: s.item() for task, s in step.weighting.s.items()}
    assert max(figures(step, *batch)) < 0.3
    log = train(step, config, batch)
    ap50, known = figures(step, *batch)
    assert ap50 >= 0.95
    assert known >= 0.95
    learned = {task for task in start if any(row[task] for row in log)}
    assert {task.partition("_")[0] for task in learned} == {"box", "conf", "id"}
    for task in learned:  # on a level without people some tasks have nothing to say
        assert abs(log[-1][f"s_{task}"] - start[task]) > 1e-2, task
    assert all(np.isfinite(list(row.values())).all() for row in log)


@pytest.mark.parametrize(
    ("family", "optimizer", "rate"),
    [("compact", "adamw", 2e-3), ("darknet53", "adamw", 1e-3), ("darknet53", "sgd", 1e-3)],
)
def test_trains_in_half_precision(family: str, optimizer: str, rate: float, batch: Batch) -> None:
    """bf16 convolutions, losses in full precision: near those of full precision at first, then falling."""
    config = TrainConfig(family, steps=8, detector_lr=rate, embedding_lr=rate, warmup=2, optimizer=optimizer)  # type: ignore[arg-type]
    two = batch[0][:2], batch[1][:2]
    full = train(small_step(config), replace(config, steps=1), two)
    log = train(small_step(replace(config, precision="bf16")), config, two)
    assert all(np.isfinite(list(row.values())).all() for row in log)
    assert log[-1]["total"] < log[0]["total"]
    assert log[0]["total"] != full[0]["total"]
    assert log[0]["total"] == pytest.approx(full[0]["total"], rel=0.1)


def test_losses_are_full_precision_under_autocast(batch: Batch) -> None:
    for family in FAMILIES:
        step = small_step(TrainConfig(family, precision="bf16"))  # type: ignore[arg-type]
        raw: list[torch.Tensor] = []
        step.model.register_forward_hook(lambda module, args, result, raw=raw: raw.extend(result[0]))
        total, losses = step(*batch)
        assert {level.dtype for level in raw} == {torch.bfloat16}
        assert {loss.dtype for loss in (total, *losses.values())} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_batch(family: str, batch: Batch) -> None:
    """With kept statistics every image is passed through the network on its own: cutting changes the losses' means.

    A loss is a mean over people or cells. Of the mean over a batch and the mean of its parts' means, the latter
    weighs people in parts with few of them more; equal where all parts have as many, as for the confidence of
    anchors without an ignored prior. The gradient of a part is exactly that of its images.
    """
    config = TrainConfig(family, steps=4, warmup=0, frozen_norm="all", detector_lr=1e-4, embedding_lr=1e-4)  # type: ignore[arg-type]
    halves = train(small_step(config), replace(config, accumulate=2), batch)
    whole = train(small_step(config), config, batch)
    assert halves[0]["total"] == pytest.approx(whole[0]["total"], rel=0.1)
    assert all(np.isfinite(list(row.values())).all() for row in halves)
    assert halves[-1]["total"] < halves[0]["total"]

    step = small_step(config)
    freeze_norms(step.train().model, config)
    by_hand = [step(batch[0][i : i + 2], batch[1][i : i + 2])[0].item() for i in (0, 2)]
    assert halves[0]["total"] == pytest.approx(np.mean(by_hand), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_with_the_same_images_are_the_whole(family: str, batch: Batch) -> None:
    """Then nothing is to be weighed: accumulating is the same step."""
    config = TrainConfig(family, steps=3, warmup=0, frozen_norm="all", detector_lr=1e-4, embedding_lr=1e-4)  # type: ignore[arg-type]
    images, targets = batch
    twice = torch.cat((images[:2], images[:2])), [*targets[:2], *targets[:2]]
    halves = train(small_step(config), replace(config, accumulate=2), twice)
    whole = train(small_step(config), config, twice)
    for a, b in zip(halves, whole, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_only_what_is_finite_reaches_the_weights(batch: Batch) -> None:
    """A loss, or the gradient alone: the step is not taken, and the culprit is named."""
    config = TrainConfig(warmup=0)
    step = small_step(config)
    optimizer = make_optimizer(step, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = copy.deepcopy(list(step.parameters()))
    bad = (batch[0].clone(), batch[1])
    bad[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"not finite: \{'prediction': nan\}"):
        optimise(step.eval(), step, optimizer, scaler, *bad, config)
    hook = step.model.heads[0].objectness.bias.register_hook(lambda slope: slope * torch.inf)
    with pytest.raises(NotFiniteError, match=r"not finite: \{'gradient': (inf|nan)\}"):
        optimise(step, step, optimizer, scaler, *batch, config)
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters(), strict=True))
    hook.remove()
    optimise(step, step, optimizer, scaler, *batch, config)
    check_finite({"a": torch.tensor(1e38), "b": torch.tensor(0.0)})


def test_clipping(batch: Batch) -> None:
    """The norm that is reported is the one before; 0 leaves gradients as they are."""
    norms = {}
    for clip in (0.0, 0.5, 1e6):
        config = TrainConfig("darknet53", steps=1, warmup=0, clip=clip, optimizer="sgd")
        step = small_step(config)
        row = train(step, config, batch)[0]
        gradient = torch.stack([p.grad.norm() for p in step.parameters() if p.grad is not None]).norm().item()
        norms[clip] = row["norm"], gradient
    assert norms[0.0] == norms[1e6]
    assert norms[0.0][1] == pytest.approx(norms[0.0][0], rel=1e-4)
    assert norms[0.5] == (norms[0.0][0], pytest.approx(0.5, rel=1e-3))


# --- rates


def test_a_cosine_after_a_warm_up() -> None:
    config = TrainConfig(warmup=10)
    shares = [rate_share(step, 110, config) for step in range(111)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert shares[10] == pytest.approx(1)
    assert shares[60] == pytest.approx(0.505)
    assert shares[110] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))
    assert rate_share(0, 2000, TrainConfig(warmup=0)) == pytest.approx(1)


def test_steps_after_the_published_warm_up() -> None:
    """As a loop: the fourth power of the step while warming up; then a tenth at each milestone, as it is passed."""
    config = TrainConfig(warmup=8, warmup_power=4, schedule="step", milestones=(0.5, 0.75))
    rate, expected = 1.0, []
    for step in range(40):
        if step in (20, 30):
            rate /= 10
        expected.append(rate if step >= 8 else ((step + 1) / 8) ** 4)
    assert [rate_share(step, 40, config) for step in range(40)] == pytest.approx(expected)
    assert rate_share(39, 40, replace(config, milestones=())) == 1


def test_a_warm_up_is_a_quarter_of_all_at_most() -> None:
    config = TrainConfig(warmup=100)
    assert [rate_share(step, 8, config) for step in range(3)] == pytest.approx([0.5, 1, 1])
    assert rate_share(0, 3, config) == pytest.approx(1)


def test_the_embedding_branch_starts_later() -> None:
    config = TrainConfig(warmup=4, detector_lr=1e-4, embedding_lr=2e-4, classifier_lr=3e-3, head_start=6)
    optimizer = make_optimizer(small_step(config), config)
    peaks = [1e-4, 1e-4, 2e-4, 2e-4, 3e-3, 3e-3]
    for step in range(20):
        set_rates(optimizer, step, 20, config)
        share = rate_share(step, 20, config)
        wanted = [0 if peak == 2e-4 and step < 6 else peak * share for peak in peaks]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(wanted)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_start_keeps_every_bit_of_the_embedding_branch(family: str, optimizer: str, batch: Batch) -> None:
    """Weight decay leaves it alone too; the classifier learns meanwhile, and the branch when its time comes."""
    rates = {"detector_lr": 0.0, "embedding_lr": 0.01, "weight_decay": 0.5}
    for steps, still in ((2, True), (3, False)):
        config = TrainConfig(family, steps=steps, warmup=0, head_start=2, optimizer=optimizer, **rates)  # type: ignore[arg-type]
        step = small_step(config)
        before = copy.deepcopy(dict(step.named_parameters()))
        train(step, config, batch)
        moved = {name for name, value in step.named_parameters() if not torch.equal(value, before[name])}
        assert {n for n in moved if n.startswith("criterion.")} == {n for n in before if n.startswith("criterion.")}
        assert (not any(name.startswith("model.") for name in moved)) == still


def test_how_many_steps() -> None:
    assert TrainConfig().count_steps(7) == 2000
    assert TrainConfig(steps=5).count_steps(7) == 5
    assert TrainConfig(epochs=1.5).count_steps(7) == 10
    assert TrainConfig(epochs=0.01).count_steps(7) == 1


def test_optimizers(batch: Batch) -> None:
    """Every trained tensor once, at the rate of its part; decay for weights alone."""
    for family in FAMILIES:
        config = TrainConfig(family, detector_lr=1e-4, embedding_lr=1e-3, weight_decay=0.1)  # type: ignore[arg-type]
        step = small_step(config)
        names = {id(p): name for name, p in step.named_parameters()}
        seen = []
        for group in parameter_groups(step, config):
            for p in group["params"]:
                name = names[id(p)]
                seen.append(name)
                new = not name.startswith("model.") or is_embedding(name.removeprefix("model."))
                assert group["peak"] == (1e-3 if new else 1e-4), name
                assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0), name
        assert sorted(seen) == sorted(names.values())
        new = {name for name in seen if name.startswith("model.") and is_embedding(name.removeprefix("model."))}
        assert len(new) == (6 if family == "darknet53" else len(list(step.model.embedding_head.parameters())))
        groups = parameter_groups(step, replace(config, classifier_lr=0.5))
        fast = {names[id(p)] for group in groups if group["peak"] == 0.5 for p in group["params"]}
        assert fast == {name for name in seen if not name.startswith("model.")}
    sgd = make_optimizer(step, replace(config, optimizer="sgd", momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.8}
    assert isinstance(make_optimizer(step, config), torch.optim.AdamW)


def test_the_moving_average() -> None:
    torch.manual_seed(0)
    average, model = JDE(ModelConfig(embedding_dim=0)), JDE(ModelConfig(embedding_dim=0))
    before = {k: v.clone() for k, v in average.state_dict().items()}
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).num_batches_tracked.fill_(5)
    update_average(average, model, 0.9)
    for name, value in average.state_dict().items():
        other = model.state_dict()[name]
        wanted = 0.9 * before[name] + 0.1 * other if value.is_floating_point() else other
        assert torch.allclose(value, wanted, atol=1e-6), name
    update_average(average, model, 0)
    for value, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(value, other)


# --- what keeps still


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["backbone", "features", "detector", "rate 0"])
def test_a_frozen_part_keeps_every_bit(family: str, part: str, batch: Batch) -> None:
    """Weights, statistics and counters, though the rates are high; the rest moves."""
    choice = {"detector_lr": 0.0} if part == "rate 0" else {"freeze": part, "detector_lr": 0.1}
    config = TrainConfig(family, steps=2, warmup=0, embedding_lr=0.1, **choice)  # type: ignore[arg-type]
    step = small_step(config)
    before = copy.deepcopy(step.model.state_dict())
    train(step, config, batch)
    moved = {name for name, value in step.model.state_dict().items() if not torch.equal(value, before[name])}
    free = {
        name
        for name in before
        if is_embedding(name)
        or (part == "features" and is_head(name))
        or (part == "backbone" and not name.startswith("backbone."))
    }
    assert moved <= free
    weights = {name for name in free if name.endswith("weight")}
    if family == "compact" or part in ("backbone", "features"):
        assert len(moved & weights) > 0.8 * len(weights)  # a level without people has nothing to learn from
    assert moved


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("choice", "detector", "embedding"),
    [
        ({"frozen_norm": "nothing"}, True, True),
        ({"frozen_norm": "auto"}, True, True),
        ({"frozen_norm": "auto", "init": "some.onnx"}, False, True),
        ({"frozen_norm": "nothing", "init": "some.onnx"}, True, True),
        ({"frozen_norm": "detector"}, False, True),
        ({"frozen_norm": "all"}, False, False),
        ({"frozen_norm": "nothing", "detector_lr": 0.0}, False, True),
    ],
)
def test_frozen_norms(family: str, choice: dict[str, object], detector: bool, embedding: bool) -> None:
    config = TrainConfig(family, **choice)  # type: ignore[arg-type]
    if family == "darknet53" and "init" in choice:
        detector = True  # published weights come with statistics that may go on
    step = small_step(replace(config, init=None)).train()
    freeze_norms(step.model, config)
    modes = {
        (is_embedding(name), module.training)
        for name, module in step.model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    assert modes == {(False, detector)} | ({(True, embedding)} if family == "compact" else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_norms_of_a_frozen_part(family: str) -> None:
    for part in ("backbone", "features"):
        config = TrainConfig(family, freeze=part, frozen_norm="nothing")  # type: ignore[arg-type]
        step = small_step(config).train()
        freeze_norms(step.model, config)
        for name, module in step.model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                behind = is_head(name) or is_embedding(name)
                assert module.training == (behind if part == "features" else not name.startswith("backbone.")), name


def test_joint_confidence_reaches_the_loss(batch: Batch) -> None:
    """The same start under two losses: only confidence differs. The product is nearer to 0 than its factors."""
    config = TrainConfig(steps=1, warmup=0)
    apart, joint = (train(small_step(c), c, batch) for c in (config, replace(config, joint_confidence=True)))
    assert joint[0]["box"] == apart[0]["box"]
    assert joint[0]["id"] == apart[0]["id"]
    assert joint[0]["conf"] < apart[0]["conf"]


def test_features_are_all_that_heads_read(batch: Batch) -> None:
    """What is not frozen changes no feature: boxes and embeddings are computed from the same maps."""
    for family in FAMILIES:
        config = TrainConfig(family, steps=2, warmup=0, detector_lr=0.1, embedding_lr=0.1, freeze="features")  # type: ignore[arg-type]
        step = small_step(config)
        with torch.no_grad():
            raw, features = step.eval().model(batch[0])
        train(step, config, batch)
        with torch.no_grad():
            later, same = step.eval().model(batch[0])
        assert all(torch.equal(a, b) for a, b in zip(features, same, strict=True))
        assert all(not torch.equal(a, b) for a, b in zip(raw, later, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_weights_do_not_move(family: str, batch: Batch) -> None:
    config = TrainConfig(family, steps=2, warmup=0, embedding_lr=0.1, weighting="fixed")  # type: ignore[arg-type]
    log = train(small_step(config), config, batch)
    for row in log:
        terms = [value for name, value in row.items() if f"s_{name}" in row]
        assert {value for name, value in row.items() if name.startswith("s_")} == {0}
        assert row["total"] == pytest.approx(0.5 * sum(terms), rel=1e-5)


# --- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sizes": (333,)}, r"sizes: expected positive multiples of 32, got \[333\]"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": 5, "epochs": 2.0}, "epochs: expected null beside steps=5, got 2.0: one says it all"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"sizes": ((320, 100),)}, r"sizes: expected positive multiples of 32, got \[\(320, 100\)\]"),
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        ({"validate_every": 0}, "validate_every: expected at least 1, got 0"),
        ({"picture_every": -1}, "picture_every: expected at least 1, got -1"),
        ({"epochs": 0.0}, "epochs: expected a number above 0, got 0.0"),
        ({"epochs": float("nan")}, "epochs: expected a number above 0, got nan"),
        ({"detector_lr": -1e-3}, "detector_lr: expected 0 or more, got -0.001"),
        ({"warmup_power": float("inf")}, "warmup_power: expected 0 or more, got inf"),
        ({"clip": -1.0}, "clip: expected 0 or more, got -1.0"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum: expected a number in \[0, 1\), got -0.1"),
        ({"milestones": (0.5, 1.0)}, r"milestones: expected shares of the steps in \(0, 1\), got \[0.5, 1.0\]"),
        ({"family": "resnet"}, "family: expected one of compact, darknet53, got 'resnet'"),
        ({"classifier_lr": -1.0}, "classifier_lr: expected 0 or more, got -1.0"),
        ({"head_start": -1}, "head_start: expected 0 or more, got -1"),
        ({"family": "darknet53", "joint_confidence": True}, "joint_confidence: expected family compact, got darknet53"),
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting)  # type: ignore[arg-type]


def test_sizes_are_sides_or_pairs_or_the_network_s_own() -> None:
    own = (576, 320)
    assert TrainConfig(sizes=(320, (1088, 608))).canvases(own) == ((320, 320), (1088, 608))
    assert TrainConfig("darknet53").canvases(own) == (own,)
    assert TrainConfig().canvases(own) == ((352, 352), (416, 416), (480, 480))
