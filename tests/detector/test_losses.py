import math

import pytest
import torch
from torch.nn import functional

from detector.losses import IGNORE_LABEL, NO_IDENTITY, JDECriterion, UncertaintyWeighting
from detector.postprocess import cells_of, decode_boxes, flatten
from tests.detector.scenes import lively_model

STRIDES = (8, 16, 32)


def target(boxes: list[list[float]], labels=None, ids=None, teacher=None) -> dict[str, torch.Tensor]:
    n = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * n, dtype=torch.int64),
        "ids": torch.tensor(ids or [NO_IDENTITY] * n, dtype=torch.int64),
        "teacher": torch.zeros(n, 6) if teacher is None else torch.tensor(teacher, dtype=torch.float32),
    }


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
    losses = JDECriterion(0, 0, 0)(None, raw, [], [target([GROUND])])
    assert sorted(losses) == ["box", "conf"]
    assert losses["box"].item() == pytest.approx(1 - 0.55**2, abs=1e-4)
    objectness = (CELLS - MATCHES) * softplus(-1.0) + MATCHES * softplus(1.0)
    classes = MATCHES * (softplus(0.5) - 0.55 * 0.5)  # binary cross-entropy towards 0.55
    assert losses["conf"].item() == pytest.approx((objectness + classes) / MATCHES, rel=1e-4)


def test_a_perfect_box_costs_nothing_and_a_missed_one_costs_one() -> None:
    criterion = JDECriterion(0, 0, 0)
    assert criterion(None, predicting(lambda x, y: GROUND), [], [target([GROUND])])["box"].item() < 1e-4
    missed = criterion(None, predicting(lambda x, y: [0, 0, 4, 4]), [], [target([GROUND])])
    assert missed["box"].item() == pytest.approx(1)


def test_ignored_regions_do_not_count() -> None:
    criterion = JDECriterion(0, 0, 0)
    region = [16.0, 16.0, 34.0, 48.0]  # what every cell predicts, nearly
    raw = predicting(half_seen, -1.0, 0.5)
    losses = criterion(None, raw, [], [target([region, GROUND], [IGNORE_LABEL, 0])])
    wanted = softplus(1.0) + softplus(0.5) - 0.55 * 0.5
    assert losses["conf"].item() == pytest.approx(wanted, rel=1e-4)
    assert losses["box"].item() == pytest.approx(1 - 0.55**2, abs=1e-4)  # rows still point at the person
    losses["conf"].backward()
    assert sum(int((r.grad[:, 4] != 0).sum()) for r in raw) == MATCHES


@pytest.mark.parametrize(("overlap", "count"), [(0.52, MATCHES), (0.48, CELLS)])
def test_how_much_of_a_box_must_lie_in_a_region(overlap: float, count: int) -> None:
    raw = predicting(half_seen)
    region = [0.0, 0.0, 16 + 0.55 * 32 * overlap, 64.0]  # far larger than the box, and over a share of it
    JDECriterion(0, 0, 0)(None, raw, [], [target([region, GROUND], [IGNORE_LABEL, 0])])["conf"].backward()
    assert sum(int((r.grad[:, 4] != 0).sum()) for r in raw) == count


def test_ignored_regions_elsewhere_change_nothing() -> None:
    criterion = JDECriterion(0, 0, 0)
    plain = criterion(None, predicting(half_seen), [], [target([GROUND])])
    with_region = criterion(None, predicting(half_seen), [], [target([GROUND, [50, 50, 64, 64]], [0, IGNORE_LABEL])])
    assert all(torch.equal(plain[k], with_region[k]) for k in plain)


def test_a_region_alone_is_nobody() -> None:
    raw = predicting(half_seen)
    losses = JDECriterion(0, 0, 0)(None, raw, [], [target([[0, 0, 64, 64]], [IGNORE_LABEL])])
    assert losses["box"].item() == 0
    losses["box"].backward()


class Mirror:
    """In place of a network: embeds a box by the side of the picture its centre is on."""

    def __init__(self) -> None:
        self.left, self.right = functional.normalize(torch.tensor([[1.0, -2, 3, 1], [2, 1, -1, 2]]))
        self.seen: list[int] = []

    def embed(self, features, levels, boxes, image_index):
        self.seen.append(len(boxes))
        return torch.where((boxes[:, [0]] + boxes[:, [2]] < 64), self.left, self.right) + 0 * features[0].sum()


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
    logits = criterion.identity(mirror.left * scale)
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
    student = criterion.to_teacher(mirror.right)
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


def test_which_cells_is_the_generators_choice() -> None:
    model = lively_model(embedding_dim=4)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    _, features = model(images)
    raw = [torch.cat((a, b)) for a, b in zip(predicting(around), predicting(around), strict=True)]
    torch.manual_seed(0)
    criterion = JDECriterion(5, 4, 0, 1)
    targets = [target([GROUND], ids=[0]), target([LEFT, RIGHT], ids=[1, 2])]

    def loss(seed: int) -> float:
        return criterion(model, raw, features, targets, torch.Generator().manual_seed(seed))["id"].item()

    assert loss(0) == loss(0)
    assert len({loss(seed) for seed in range(6)}) > 1


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
    logits = criterion.identity(mirror.left * criterion.scale)
    assert losses["id"].item() == pytest.approx(functional.cross_entropy(logits, torch.tensor(2)).item(), rel=1e-5)
    assert losses["box"].item() < 1e-4


def network_losses(targets, num_ids: int = 3):
    model = lively_model(embedding_dim=8).train()
    criterion = JDECriterion(num_ids, 8, 6)
    raw, features = model(torch.rand(len(targets), 3, 64, 64) * 255)
    return model, criterion, criterion(model, raw, features, targets, torch.Generator().manual_seed(0))


def test_nobody_in_the_batch_gives_connected_zeros() -> None:
    model, _, losses = network_losses([target([]), target([])])
    assert losses["box"].item() == losses["id"].item() == losses["distill"].item() == 0
    assert losses["conf"].item() > 0
    for name in ("box", "id", "distill"):
        gradients = torch.autograd.grad(losses[name], list(model.backbone.parameters()), retain_graph=True)
        assert all((g == 0).all() for g in gradients)
    gradients = torch.autograd.grad(losses["conf"], list(model.backbone.parameters()))
    assert any((g != 0).any() for g in gradients)


@pytest.mark.parametrize(
    "targets",
    [
        [target([])],
        [target([[10, 10, 11, 11]], ids=[0])],
        [target([[63.5, 63.5, 64, 64]], ids=[0])],
        [target([GROUND, GROUND], ids=[0, 1])],
        [target([GROUND], ids=[0]), target([])],
        [target([[0, 0, 64, 64]], [IGNORE_LABEL])],
    ],
    ids=["nobody", "one pixel", "half a pixel in the corner", "twice the same box", "one of two", "region"],
)
@pytest.mark.parametrize("num_ids", [1, 2, 3])
def test_losses_and_gradients_are_finite(targets, num_ids: int) -> None:
    targets = [dict(t, ids=t["ids"].clamp(max=num_ids - 1)) for t in targets]
    model, criterion, losses = network_losses(targets, num_ids)
    total = UncertaintyWeighting(dict.fromkeys(losses, 0.0))(losses)
    total.backward()
    assert sorted(losses) == ["box", "conf", "distill", "id"]
    assert all(loss.isfinite() for loss in losses.values())
    for parameter in (*model.parameters(), *criterion.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize(("num_ids", "scale"), [(1, 1), (2, 1), (3, 1), (1000, math.sqrt(2) * math.log(999))])
def test_few_identities_do_not_shrink_the_embedding_to_nothing(num_ids: int, scale: float) -> None:
    assert JDECriterion(num_ids, 4, 0).scale == pytest.approx(scale)


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
    JDECriterion(0, 0, 0)(None, raw, [], [target([GROUND])])["box"].backward()
    stepped = [(r - 5 * r.grad).detach() for r in raw]
    taken = torch.cat([r.grad[:, :4].flatten(2).abs().sum(1)[0] for r in raw]) > 0
    assert int(taken.sum()) == MATCHES
    width = [decode_boxes(flatten(r)[0, :, :4], cells_of(r))[taken] for r in (raw, stepped)]
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
        losses = criterion(model, *model(images), targets, generator)
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    for task, share in (("box", 0.75), ("conf", 0.1), ("id", 0.85)):
        late = sum(h[task] for h in history[-5:]) / 5
        assert late < share * history[0][task], (task, history[0], history[-1])
