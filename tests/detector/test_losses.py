import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional

from detector import JDE, losses
from detector.losses import (
    IGNORE_LABEL,
    NO_IDENTITY,
    AnchorCriterion,
    JDECriterion,
    UncertaintyWeighting,
    joint_cross_entropy,
)
from detector.priors import STRIDES, Picks, decode_boxes
from tests.detector.scenes import lively_darknet, lively_model, target


class Maps:
    """The compact family's maps, without a network."""

    flatten, priors = JDE.flatten, JDE.priors


MAPS = Maps()


def predicting(boxes, objectness: float = -1.0, logit: float = 0.5, size: int = 64) -> list[torch.Tensor]:
    """Raw maps of one image in which a cell predicts `boxes(x, y)`, given its centre in pixels."""
    raw = []
    for stride in STRIDES:
        level = torch.zeros(1, 6, size // stride, size // stride)
        for y in range(size // stride):
            for x in range(size // stride):
                x1, y1, x2, y2 = boxes((x + 0.5) * stride, (y + 0.5) * stride)
                code = ((x1 + x2) / 2 / stride - x, (y1 + y2) / 2 / stride - y)
                code += (math.log((x2 - x1) / stride), math.log((y2 - y1) / stride))
                level[0, :, y, x] = torch.tensor([*code, objectness, logit])
        raw.append(level.requires_grad_())
    return raw


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


CELLS = 64 + 16 + 4
GROUND = [16.0, 16.0, 48.0, 48.0]
MATCHES = 5
"""Ten cells of IoU 0.55 sum up to five and a half."""


def half_seen(x: float, y: float) -> list[float]:
    return [16.0, 16.0, 16 + 0.55 * 32, 48.0]


def test_box_and_confidence_in_closed_form() -> None:
    raw = predicting(half_seen, -1.0, 0.5)
    losses = JDECriterion(0, 0, 0)(MAPS, raw, [], [target([GROUND])])
    assert sorted(losses) == ["box", "conf"]
    assert losses["box"].item() == pytest.approx(1 - 0.55**2, abs=1e-4)
    objectness = (CELLS - MATCHES) * softplus(-1.0) + MATCHES * softplus(1.0)
    classes = MATCHES * (softplus(0.5) - 0.55 * 0.5)  # binary cross-entropy towards 0.55
    assert losses["conf"].item() == pytest.approx((objectness + classes) / MATCHES, rel=1e-4)


def test_joint_confidence_in_closed_form() -> None:
    """The product of both probabilities is learned: towards the IoU in the cells of a person, towards 0 elsewhere."""
    score = 1 / (1 + math.exp(1.0)) / (1 + math.exp(-0.5))
    wanted = (
        -0.55 * math.log(score) - (1 - 0.55) * math.log(1 - score) - (CELLS - MATCHES) / MATCHES * math.log(1 - score)
    )
    losses = JDECriterion(0, 0, joint_confidence=True)(MAPS, predicting(half_seen, -1.0, 0.5), [], [target([GROUND])])
    assert losses["conf"].item() == pytest.approx(wanted, rel=1e-4)
    assert losses["box"].item() == pytest.approx(1 - 0.55**2, abs=1e-4)


def test_joint_confidence_says_nothing_in_ignored_regions() -> None:
    raw = predicting(half_seen, -1.0, 0.5)
    targets = [target([[16.0, 16.0, 34.0, 48.0], GROUND], [IGNORE_LABEL, 0])]
    losses = JDECriterion(0, 0, joint_confidence=True)(MAPS, raw, [], targets)
    score = 1 / (1 + math.exp(1.0)) / (1 + math.exp(-0.5))
    assert losses["conf"].item() == pytest.approx(-0.55 * math.log(score) - 0.45 * math.log(1 - score), rel=1e-4)
    losses["conf"].backward()
    assert sum(int((r.grad[:, 4] != 0).sum()) for r in raw) == MATCHES


def test_joint_cross_entropy_is_that_of_the_product() -> None:
    generator = torch.Generator().manual_seed(0)
    objectness = torch.randn(7, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.randn(7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    found = joint_cross_entropy(objectness, classes, wanted)
    product = objectness.sigmoid() * classes.sigmoid()
    assert torch.allclose(found, functional.binary_cross_entropy(product, wanted, reduction="none"))
    assert torch.autograd.gradcheck(lambda a, b: joint_cross_entropy(a, b, wanted), (objectness, classes))
    # A class that says no leaves objectness alone, and the other way round.
    objectness, classes = torch.tensor([[20.0]], requires_grad=True), torch.tensor([[-20.0]], requires_grad=True)
    joint_cross_entropy(objectness, classes, torch.zeros(1, 1)).sum().backward()
    assert abs(objectness.grad.item()) < 1e-8
    assert abs(classes.grad.item()) < 1e-8


def test_joint_cross_entropy_is_finite_in_extremes() -> None:
    ends = torch.tensor([-1e4, -90.0, -17.0, 0.0, 17.0, 90.0, 1e4])
    for wanted in (0.0, 0.5, 1.0):
        objectness = ends[:, None].clone().requires_grad_()
        classes = ends[None].repeat(7, 1).requires_grad_()
        losses = joint_cross_entropy(objectness, classes, torch.full((7, 7), wanted))
        losses.sum().backward()
        for values in (losses, objectness.grad, classes.grad):
            assert values.isfinite().all()
        assert (losses > -1e-6).all()
    assert joint_cross_entropy(ends[-1:, None], ends[-1:, None], torch.ones(1, 1)).item() == 0


def test_a_perfect_box_costs_nothing_and_a_missed_one_costs_one() -> None:
    criterion = JDECriterion(0, 0, 0)
    assert criterion(MAPS, predicting(lambda x, y: GROUND), [], [target([GROUND])])["box"].item() < 1e-4
    missed = criterion(MAPS, predicting(lambda x, y: [0, 0, 4, 4]), [], [target([GROUND])])
    assert missed["box"].item() == pytest.approx(1)


def test_ignored_regions_do_not_count() -> None:
    criterion = JDECriterion(0, 0, 0)
    region = [16.0, 16.0, 34.0, 48.0]  # what every cell predicts, nearly
    raw = predicting(half_seen, -1.0, 0.5)
    losses = criterion(MAPS, raw, [], [target([region, GROUND], [IGNORE_LABEL, 0])])
    wanted = softplus(1.0) + softplus(0.5) - 0.55 * 0.5
    assert losses["conf"].item() == pytest.approx(wanted, rel=1e-4)
    assert losses["box"].item() == pytest.approx(1 - 0.55**2, abs=1e-4)  # rows still point at the person
    losses["conf"].backward()
    assert sum(int((r.grad[:, 4] != 0).sum()) for r in raw) == MATCHES


@pytest.mark.parametrize(("overlap", "count"), [(0.52, MATCHES), (0.48, CELLS)])
def test_how_much_of_a_box_must_lie_in_a_region(overlap: float, count: int) -> None:
    raw = predicting(half_seen)
    region = [0.0, 0.0, 16 + 0.55 * 32 * overlap, 64.0]  # far larger than the box, and over a share of it
    JDECriterion(0, 0, 0)(MAPS, raw, [], [target([region, GROUND], [IGNORE_LABEL, 0])])["conf"].backward()
    assert sum(int((r.grad[:, 4] != 0).sum()) for r in raw) == count


def test_ignored_regions_elsewhere_change_nothing() -> None:
    criterion = JDECriterion(0, 0, 0)
    plain = criterion(MAPS, predicting(half_seen), [], [target([GROUND])])
    with_region = criterion(MAPS, predicting(half_seen), [], [target([GROUND, [50, 50, 64, 64]], [0, IGNORE_LABEL])])
    assert all(torch.equal(plain[k], with_region[k]) for k in plain)


def test_a_region_alone_is_nobody() -> None:
    raw = predicting(half_seen)
    losses = JDECriterion(0, 0, 0)(MAPS, raw, [], [target([[0, 0, 64, 64]], [IGNORE_LABEL])])
    assert losses["box"].item() == 0
    losses["box"].backward()


class Mirror(Maps):
    """In place of a network: embeds a box by the side of the picture its centre is on."""

    def __init__(self) -> None:
        self.left, self.right = functional.normalize(torch.tensor([[1.0, -2, 3, 1], [2, 1, -1, 2]]))
        self.seen: list[int] = []

    def embed(self, features, picks: Picks):
        self.seen.append(len(picks.boxes))
        right = picks.boxes[:, [0]] + picks.boxes[:, [2]] >= 64
        return torch.where(right, self.right, self.left) + 0 * features[0].sum()


LEFT, RIGHT = [4.0, 16.0, 28.0, 48.0], [36.0, 16.0, 60.0, 48.0]


def nearest(x: float, y: float) -> list[float]:
    return LEFT if x < 32 else RIGHT


def appearance(ids: list[int], teacher=None, num_ids: int = 5, samples: int = 100):
    torch.manual_seed(0)
    criterion = JDECriterion(num_ids, 4, 6 if teacher else 0, samples)
    mirror = Mirror()
    features = [torch.zeros(1, 2, 8, 8, requires_grad=True)]
    raw = predicting(nearest)
    losses = criterion(mirror, raw, features, [target([LEFT, RIGHT], ids=ids, teacher=teacher)])
    return losses, criterion, mirror


def test_identity_loss_is_scaled_cross_entropy() -> None:
    losses, criterion, mirror = appearance([3, NO_IDENTITY])
    scale = math.sqrt(2) * math.log(4)
    logits = criterion.appearance.identity(mirror.left * scale)
    assert losses["id"].item() == pytest.approx(functional.cross_entropy(logits, torch.tensor(3)).item(), rel=1e-5)


def test_people_without_identity_are_left_out() -> None:
    both, _, _ = appearance([3, 1])
    one, _, _ = appearance([3, NO_IDENTITY])
    other, _, _ = appearance([NO_IDENTITY, 1])
    assert min(one["id"], other["id"]) < both["id"] < max(one["id"], other["id"])
    nobody, _, _ = appearance([NO_IDENTITY, NO_IDENTITY])
    assert nobody["id"].item() == 0
    nobody["id"].backward()  # connected all the same


def test_distillation_is_cosine_distance_where_there_is_a_teacher() -> None:
    row = functional.normalize(torch.arange(6.0), dim=0).tolist()
    losses, criterion, mirror = appearance([-1, -1], [[0.0] * 6, row], num_ids=0)
    assert sorted(losses) == ["box", "conf", "distill"]
    student = criterion.appearance.to_teacher(mirror.right)
    wanted = 1 - functional.cosine_similarity(student, torch.tensor(row), dim=0)
    assert losses["distill"].item() == pytest.approx(wanted.item(), rel=1e-5)
    losses, _, _ = appearance([-1, -1], [[0.0] * 6, [0.0] * 6], num_ids=0)
    assert losses["distill"].item() == 0
    losses["distill"].backward()


def test_a_few_cells_of_each_person_are_embedded() -> None:
    assert appearance([0, 1], samples=2)[2].seen == [4]
    assert appearance([0, 1], samples=1)[2].seen == [2]
    assert appearance([0, 1], samples=100)[2].seen[0] > 10


def around(x: float, y: float) -> list[float]:
    """Each cell a box of its own, so that it matters which cells are drawn."""
    cx, cy = (x + 32) / 2, (y + 32) / 2
    return [cx - 14, cy - 16, cx + 14, cy + 16]


def test_which_cells_is_the_samples_own_choice() -> None:
    """The draw alone decides: not the state of torch, nor the images beside it, nor its place among them."""
    seen: list[Picks] = []

    class Recorder(Mirror):
        def embed(self, features, picks: Picks):
            seen.append(picks)
            return super().embed(features, picks)

    criterion, recorder = JDECriterion(5, 4, 0, 1), Recorder()

    def cells(draw, beside=()) -> list[tuple[int, int, int]]:
        """Which cells are embedded for the two people of the last image."""
        targets = [*beside, target([LEFT, RIGHT], ids=[1, 2], draw=draw)]
        raw = [torch.cat(parts) for parts in zip(*(predicting(around) for _ in targets), strict=True)]
        criterion(recorder, raw, [torch.zeros(len(targets), 2, 8, 8, requires_grad=True)], targets)
        own = seen[-1].image == len(targets) - 1
        chosen = torch.cat((seen[-1].level[own, None], seen[-1].xy[own]), dim=1)
        return [tuple(row) for row in chosen.tolist()]

    wanted = cells((3, 17))
    assert len(wanted) == 2
    torch.manual_seed(1)
    assert cells((3, 17)) == wanted
    for beside in ([target([GROUND], ids=[0], draw=(3, 18))], [target([])] * 2, [target([LEFT], draw=(3, 17))]):
        assert cells((3, 17), beside) == wanted
    assert len({tuple(cells((epoch, 17))) for epoch in range(8)}) > 2
    assert len({tuple(cells((3, position))) for position in range(8)}) > 2
    torch.manual_seed(0)
    assert len({tuple(cells(None)) for _ in range(8)}) > 1  # without a draw, chance


def test_rows_of_a_batch_meet_their_own_targets() -> None:
    """The second image's person has its identity, whatever stands in the first image."""
    torch.manual_seed(0)
    criterion = JDECriterion(5, 4, 0, 100)
    raw = [torch.cat((a, b)) for a, b in zip(predicting(nearest), predicting(nearest), strict=True)]
    features = [torch.zeros(2, 2, 8, 8, requires_grad=True)]
    mirror = Mirror()
    targets = [
        target([[0, 0, 64, 64], LEFT, RIGHT], [IGNORE_LABEL, 0, 0], [NO_IDENTITY] * 3),
        target([RIGHT, [0, 0, 64, 64], LEFT], [0, IGNORE_LABEL, 0], [NO_IDENTITY, NO_IDENTITY, 2]),
    ]
    losses = criterion(mirror, raw, features, targets)
    logits = criterion.appearance.identity(mirror.left * criterion.appearance.scale)
    assert losses["id"].item() == pytest.approx(functional.cross_entropy(logits, torch.tensor(2)).item(), rel=1e-5)
    assert losses["box"].item() < 1e-4


KINDS = {
    "compact": JDECriterion,
    "compact, joint": partial(JDECriterion, joint_confidence=True),
    "darknet53": AnchorCriterion,
}


def network_losses(targets, num_ids: int = 3, family: str = "compact", dtype: torch.dtype | None = None):
    """A forward pass and the losses, under autocast where a precision is given."""
    model = (lively_darknet(width=1 / 16) if family == "darknet53" else lively_model(embedding_dim=8)).train()
    criterion = KINDS[family](num_ids, model.config.embedding_dim, 6)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        raw, features = model(torch.rand(len(targets), 3, 64, 64) * 255)
        return model, criterion, criterion(model, raw, features, targets)


def test_nobody_in_the_batch_gives_connected_zeros() -> None:
    model, _, losses = network_losses([target([]), target([])])
    assert losses["box"].item() == losses["id"].item() == losses["distill"].item() == 0
    assert losses["conf"].item() > 0
    for name in ("box", "id", "distill"):
        gradients = torch.autograd.grad(losses[name], list(model.backbone.parameters()), retain_graph=True)
        assert all((g == 0).all() for g in gradients)
    gradients = torch.autograd.grad(losses["conf"], list(model.backbone.parameters()))
    assert any((g != 0).any() for g in gradients)


BATCHES = {
    "nobody": [target([]), target([])],
    "nobody known": [target([GROUND, LEFT])] * 2,
    "one identity": [target([GROUND, LEFT], ids=[0, NO_IDENTITY])] * 2,
    "one pixel": [target([[10, 10, 11, 11]], ids=[0])] * 2,
    "half a pixel in the corner": [target([[63.5, 63.5, 64, 64]], ids=[0])] * 2,
    "twice the same box": [target([GROUND, GROUND], ids=[0, 1])] * 2,
    "one of two": [target([GROUND], ids=[0]), target([])],
    "one image": [target([GROUND], ids=[0])],
    "region": [target([[0, 0, 64, 64]], [IGNORE_LABEL])] * 2,
    "outside": [target([[-40, -40, 8, 8], [60, 60, 200, 200]], ids=[0, 1])] * 2,
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", KINDS)
def test_losses_and_gradients_are_finite(family: str, batch: str, dtype: torch.dtype | None) -> None:
    for num_ids in (1, 2):
        targets = [dict(t, ids=t["ids"].clamp(max=num_ids - 1)) for t in BATCHES[batch]]
        model, criterion, terms = network_losses(targets, num_ids, family, dtype)
        total = UncertaintyWeighting(criterion.start)(terms)
        total.backward()
        assert terms.keys() == criterion.start.keys()
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in terms.values())
        for parameter in (*model.parameters(), *criterion.parameters()):
            assert parameter.grad is None or parameter.grad.isfinite().all()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("value", [1000.0, -1000.0])
@pytest.mark.parametrize("family", KINDS)
def test_wild_predictions_give_finite_losses(family: str, value: float) -> None:
    model = lively_darknet(embedding_dim=8) if family == "darknet53" else lively_model(embedding_dim=8)
    criterion = KINDS[family](3, 8, 6)
    with torch.no_grad():
        raw, features = model(torch.rand(1, 3, 64, 64) * 255)
    raw = [torch.full_like(r, value).requires_grad_() for r in raw]
    terms = criterion(model, raw, [f.requires_grad_() for f in features], [target([GROUND, LEFT], ids=[0, 1])])
    sum(terms.values()).backward()
    assert all(loss.isfinite() for loss in terms.values())
    assert all(r.grad.isfinite().all() for r in raw)


def test_a_process_share_of_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.tensor(0)
    assert losses._share(count).item() == 1
    assert losses._share(count + 5).item() == 5

    class Two:
        """Two processes; the other has so many."""

        def __init__(self, other: int) -> None:
            self.other = other

        def is_available(self) -> bool:
            return True

        is_initialized = is_available

        def get_world_size(self) -> int:
            return 2

        def all_reduce(self, tensor: torch.Tensor) -> None:
            tensor += self.other

    for own, other, share in ((5, 2, 3.5), (0, 7, 3.5), (0, 0, 0.5), (1, 0, 0.5)):
        monkeypatch.setattr(losses, "distributed", Two(other))
        assert losses._share(count + own).item() == share


JOINT = [
    target([GROUND, LEFT, RIGHT], ids=[0, 1, NO_IDENTITY], teacher=[[1.0, 0, 0, 0, 0, 0]] * 3, draw=(0, 0)),
    target([[20.0, 4, 30, 30]], ids=[2], draw=(0, 1)),
]


def part_of_the_batch(rank: int | None, folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """Losses, and the classifier's gradient, of both families: all images, or that of one process."""
    found = {}
    for name, model, kind in (
        ("compact", lively_model(embedding_dim=8), JDECriterion),
        ("darknet53", lively_darknet(embedding_dim=8), AnchorCriterion),
    ):
        torch.manual_seed(0)
        criterion = kind(3, 8, 6)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
        with torch.no_grad():
            raw, features = model(images)
        own = slice(None) if rank is None else slice(rank, rank + 1)
        terms = criterion(model, [r[own] for r in raw], [f[own] for f in features], JOINT[own])
        sum(terms.values()).backward()
        gradient = criterion.appearance.identity.weight.grad
        found[name] = {k: v.detach() for k, v in terms.items()} | {"gradient": gradient}
    if rank is not None:
        torch.save(found, f"{folder}/{rank}.pt")
    return found


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part_of_the_batch(rank, folder)
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_average_to_the_joint_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for family, joint in part_of_the_batch(None, "").items():
        assert joint["gradient"].abs().sum() > 0
        for name, wanted in joint.items():
            average = (parts[0][family][name] + parts[1][family][name]) / 2
            torch.testing.assert_close(average, wanted, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("num_ids", "scale"), [(1, 1), (2, 1), (3, 1), (1000, math.sqrt(2) * math.log(999))])
def test_few_identities_do_not_shrink_the_embedding_to_nothing(num_ids: int, scale: float) -> None:
    assert JDECriterion(num_ids, 4, 0).appearance.scale == pytest.approx(scale)


def test_uncertainty_weighting_and_its_gradient() -> None:
    weighting = UncertaintyWeighting({"box": -4.85, "conf": -4.15, "id": -2.3}).double()
    losses = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in {"box": 0.4, "id": 3.0}.items()}
    total = weighting(losses)
    wanted = 0.5 * (math.exp(4.85) * 0.4 - 4.85 + math.exp(2.3) * 3 - 2.3)
    assert total.item() == pytest.approx(wanted, rel=1e-6)
    total.backward()
    assert weighting.s["box"].grad.item() == pytest.approx(0.5 * (1 - math.exp(4.85) * 0.4), rel=1e-6)
    assert weighting.s["conf"].grad is None  # not among the losses
    assert losses["id"].grad.item() == pytest.approx(0.5 * math.exp(2.3), rel=1e-6)


def test_learned_weights_settle_at_the_logarithm_of_the_loss() -> None:
    weighting = UncertaintyWeighting({"box": 0.0, "id": 0.0})
    optimizer = torch.optim.SGD(weighting.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        weighting({"box": torch.tensor(0.2), "id": torch.tensor(5.0)}).backward()
        optimizer.step()
    assert weighting.s["box"].item() == pytest.approx(math.log(0.2), abs=1e-3)
    assert weighting.s["id"].item() == pytest.approx(math.log(5), abs=1e-3)


def test_the_box_gradient_leads_to_the_person() -> None:
    raw = predicting(half_seen)
    JDECriterion(0, 0, 0)(MAPS, raw, [], [target([GROUND])])["box"].backward()
    stepped = [(r - 5 * r.grad).detach() for r in raw]
    taken = torch.cat([r.grad[:, :4].flatten(2).abs().sum(1)[0] for r in raw]) > 0
    assert int(taken.sum()) == MATCHES
    width = [decode_boxes(MAPS.flatten(r)[0, :, :4], MAPS.priors(r))[taken] for r in (raw, stepped)]
    assert (width[1][:, 2] - width[1][:, 0] > width[0][:, 2] - width[0][:, 0]).all()


def test_three_images_can_be_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 96, 96, generator=generator) * 60
    targets = []
    for i in range(3):
        x, y = 8 + 16 * i, 40 - 12 * i
        images[i, :, y : y + 48, x : x + 24] = torch.tensor([40.0 * i, 250 - 60 * i, 200])[:, None, None]
        targets.append(target([[x, y, x + 24, y + 48]], ids=[i]))
    torch.manual_seed(0)
    model = lively_model(embedding_dim=8).train()
    criterion = JDECriterion(3, 8, 0)
    weighting = UncertaintyWeighting({"box": 0.0, "conf": 0.0, "id": 0.0})
    parameters = [*model.parameters(), *criterion.parameters(), *weighting.parameters()]
    optimizer = torch.optim.AdamW(parameters, 4e-3)
    history = []
    for _ in range(80):
        losses = criterion(model, *model(images), targets)
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    for task, share in (("box", 0.75), ("conf", 0.1), ("id", 0.85)):
        late = sum(h[task] for h in history[-5:]) / 5
        assert late < share * history[0][task], (task, history[0], history[-1])


def test_a_task_with_nothing_to_learn_keeps_its_weight() -> None:
    """Its s would fall by half the rate with every step, and the first person found would weigh thousands."""
    weighting = UncertaintyWeighting({"box": -4.85, "id": -2.3})
    total = weighting({"box": torch.tensor(0.0, requires_grad=True), "id": torch.tensor(2.0)})
    total.backward()
    assert total.item() == pytest.approx(0.5 * (math.exp(2.3) * 2 - 2.3), rel=1e-5)
    assert weighting.s["box"].grad.item() == 0
    assert weighting.s["id"].grad.item() != 0
