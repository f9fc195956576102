"""The published network's matching and losses: as recorded, and against loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from detector.assign import BACKGROUND, IGNORED, anchor_match
from detector.darknet import PUBLISHED_ANCHORS, DarknetJDE
from detector.losses import IGNORE_LABEL, NO_IDENTITY, AnchorCriterion, UncertaintyWeighting
from detector.priors import STRIDES, Picks, encode_boxes
from tests.detector.scenes import target


class Gathered:
    """The published family's maps without a network: embeddings are read from a map at the cells picked."""

    flatten, priors = DarknetJDE.flatten, DarknetJDE.priors

    def __init__(self, anchors: list[list[tuple[float, float]]]) -> None:
        self.anchors = anchors
        self.seen: list[Picks] = []

    def embed(self, features, picks: Picks) -> torch.Tensor:
        self.seen.append(picks)
        cells = zip(picks.image, picks.level, picks.xy, strict=True)
        rows = [features[level][image, :, y, x] for image, level, (x, y) in cells]
        dim = features[0].shape[1]
        return functional.normalize(torch.stack(rows) if rows else features[0].new_zeros((0, dim)))


def anchor_levels(size: tuple[int, int]) -> list[list[tuple[float, float]]]:
    return np.array(PUBLISHED_ANCHORS[size], float).reshape(3, 4, 2).tolist()


# --- as recorded


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "jde_loss.npz"))


@pytest.mark.shared
@pytest.mark.parametrize("level", range(3))
def test_losses_gradients_and_targets_are_those_recorded(recorded: dict[str, np.ndarray], level: int) -> None:
    stride = STRIDES[level]
    own = {k.partition("_")[2]: v for k, v in recorded.items() if k.startswith(f"s{stride}_")}
    anchors = [recorded[f"s{s}_anchors"].tolist() for s in STRIDES]
    model = Gathered(anchors)
    width, height = 18 * 32, 10 * 32
    pred = torch.from_numpy(own["pred"]).requires_grad_()
    raw = [torch.zeros(2, 24, height // s, width // s) for s in STRIDES]
    features = [torch.zeros(2, 32, height // s, width // s) for s in STRIDES]
    raw[level], features[level] = pred[:, :24], pred[:, 24:]
    targets = []
    for rows, count in zip(own["targets"], own["ntargets"], strict=True):
        known = torch.from_numpy(rows[:count])
        centre, size = known[:, 2:4], known[:, 4:]
        boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1) * torch.tensor([width, height] * 2)
        targets.append({"boxes": boxes, "labels": known[:, 0].long(), "ids": known[:, 1].long()})

    priors = model.priors(raw)
    rows = priors.level == level
    cells = own["tconf"].shape[2:]
    for image, goal in enumerate(targets):
        matched = anchor_match(priors, (height, width), goal["boxes"], parity=True)[0][rows]
        conf = matched.ge(0).long() - matched.eq(IGNORED).long()
        assert conf.view(4, *cells).tolist() == own["tconf"][image].tolist()
        taken = matched >= 0
        codes = encode_boxes(goal["boxes"][matched[taken]], priors[rows.nonzero()[:, 0][taken]])
        np.testing.assert_allclose(codes, own["tbox"][image].reshape(-1, 4)[taken.numpy()], atol=1e-4)
        ids = torch.where(taken, goal["ids"][matched.clamp(min=0)], NO_IDENTITY)
        assert ids.view(4, *cells).tolist() == own["tid"][image][..., 0].tolist()

    criterion = AnchorCriterion(len(own["clf_b"]), 32, parity=True)
    criterion.appearance.identity.weight.data = torch.from_numpy(own["clf_w"])
    criterion.appearance.identity.bias.data = torch.from_numpy(own["clf_b"])
    losses = criterion(model, raw, features, targets)
    names = [f"{task}_{stride}" for task in ("box", "conf", "id")]
    assert {f"{task}_{s}" for task in ("box", "conf", "id") for s in STRIDES} == set(losses)
    weighting = UncertaintyWeighting(criterion.start)
    total = weighting({name: losses[name] for name in names})
    total.backward()
    found = [total.item(), *(losses[name].item() for name in names)]
    np.testing.assert_allclose(found, own["losses"], atol=1e-4, rtol=1e-6)
    np.testing.assert_allclose(pred.grad, own["grad"], atol=1e-4)
    np.testing.assert_allclose([weighting.s[name].grad for name in names], own["grad_s"], atol=1e-4)


# --- matching against a loop

SIZES = [[(8.0, 24.0), (16.0, 16.0)], [(24.0, 60.0), (30.0, 30.0)], [(60.0, 90.0), (96.0, 64.0)]]
HEIGHT, WIDTH = 96, 128


def maps(seed: int | None = None, batch: int = 1, outputs: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed or 0)
    raw = [torch.randn(batch, outputs, HEIGHT // s, WIDTH // s, generator=generator) for s in STRIDES]
    return [(r if seed is not None else 0 * r).requires_grad_() for r in raw]


def loop_iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def pulled(box: list[float], stride: int) -> list[float]:
    """The box with its centre at the last cell, where it lies beyond."""
    moved = list(box)
    for axis, side in enumerate((WIDTH, HEIGHT)):
        centre, half = (box[axis] + box[axis + 2]) / 2, (box[axis + 2] - box[axis]) / 2
        centre = min(max(centre, 0), side - stride)
        moved[axis], moved[axis + 2] = centre - half, centre + half
    return moved


def loop_match(boxes: list[list[float]], parity: bool) -> tuple[list[int], list[float]]:
    """Each prior by itself; then each box that nobody took."""
    overlaps, matched, best_iou = [], [], []
    for level, stride in enumerate(STRIDES):
        seen = [pulled(box, stride) for box in boxes]
        for w, h in SIZES[level]:
            for y in range(0, HEIGHT, stride):
                for x in range(0, WIDTH, stride):
                    overlaps.append([loop_iou([x - w / 2, y - h / 2, x + w / 2, y + h / 2], box) for box in seen])
    for own in overlaps:
        best = max(range(len(boxes)), key=own.__getitem__)
        best_iou.append(own[best])
        matched.append(best if own[best] > 0.5 else BACKGROUND if own[best] < 0.4 else IGNORED)
    if not parity:
        free = [i for i, m in enumerate(matched) if m < 0]
        claims: dict[int, int] = {}
        for g in (g for g in range(len(boxes)) if g not in matched):
            nearest = max(free, key=lambda i: overlaps[i][g])
            if nearest not in claims or overlaps[nearest][g] > overlaps[nearest][claims[nearest]]:
                claims[nearest] = g
        for prior, g in claims.items():
            matched[prior], best_iou[prior] = g, overlaps[prior][g]
    return matched, best_iou


def random_boxes(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = 1 + seed % 6
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH + 40.0, HEIGHT + 40.0]) - 20
    half = (3 + 80 * torch.rand(count, 2, generator=generator) ** 2) / 2
    return torch.cat((centre - half, centre + half), dim=1)


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_a_loop(seed: int, parity: bool) -> None:
    boxes = random_boxes(seed)
    priors = Gathered(SIZES).priors(maps())
    matched, iou = anchor_match(priors, (HEIGHT, WIDTH), boxes, parity=parity)
    wanted, wanted_iou = loop_match(boxes.tolist(), parity)
    assert matched.tolist() == wanted
    assert iou.tolist() == pytest.approx(wanted_iou, abs=1e-5)


def match(boxes: list[list[float]], parity: bool = False) -> list[int]:
    priors = Gathered(SIZES).priors(maps())
    return anchor_match(priors, (HEIGHT, WIDTH), torch.tensor(boxes).reshape(-1, 4), parity=parity)[0].tolist()


def test_nobody_to_match() -> None:
    assert set(match([])) == {BACKGROUND}


def test_a_missed_box_takes_its_best_prior_and_as_published_teaches_nobody() -> None:
    tiny = [40.5, 40.5, 43.0, 44.0]
    assert match([tiny]).count(0) == 1
    assert match([tiny], parity=True).count(0) == 0
    reached = [36.0, 28.0, 44.0, 52.0]  # a prior itself
    assert match([reached]) == match([reached], parity=True)


def test_a_missed_box_takes_no_prior_from_another() -> None:
    """The small one lies in the middle of the prior that the other fits exactly."""
    fitting, tiny = [36.0, 28.0, 44.0, 52.0], [39.5, 39.0, 40.5, 41.0]
    alone = match([fitting])
    both = match([fitting, tiny])
    assert [m == 0 for m in both] == [m == 0 for m in alone]
    assert both.count(1) == 1


def test_of_two_missed_boxes_the_nearer_has_the_prior() -> None:
    small, larger = [39.0, 39.0, 41.0, 41.0], [38.0, 37.0, 42.0, 43.0]
    for boxes in ([small, larger], [larger, small]):
        matched = match(boxes)
        assert [m for m in matched if m >= 0] == [boxes.index(larger)]


# --- losses against a loop


def loop_losses(raw, features, criterion: AnchorCriterion, targets, parity: bool) -> dict[str, float]:
    """Levels, images, priors one at a time."""
    matches = [loop_match(t["boxes"].tolist(), parity) for t in targets]
    losses, first = {}, 0
    for level, stride in enumerate(STRIDES):
        height, width = HEIGHT // stride, WIDTH // stride
        box, conf, identity, deciding = [], [], [], {}
        for b, goal in enumerate(targets):
            row = first
            for k, (w, h) in enumerate(SIZES[level]):
                for y in range(height):
                    for x in range(width):
                        g, iou = matches[b][0][row], matches[b][1][row]
                        row += 1
                        *code, background, person = raw[level][b, 6 * k : 6 * k + 6, y, x].tolist()
                        if g != IGNORED:
                            margin = background - person if g >= 0 else person - background
                            conf.append(math.log1p(math.exp(margin)))
                        if g < 0:
                            continue
                        x1, y1, x2, y2 = goal["boxes"][g].tolist()
                        if parity:
                            x1, y1, x2, y2 = pulled([x1, y1, x2, y2], stride)
                        wanted = [((x1 + x2) / 2 - x * stride) / w, ((y1 + y2) / 2 - y * stride) / h]
                        wanted += [math.log((x2 - x1) / w), math.log((y2 - y1) / h)]
                        for p, q in zip(code, wanted, strict=True):
                            box.append(abs(p - q) - 0.5 if abs(p - q) > 1 else (p - q) ** 2 / 2)
                        claim = (int(goal["ids"][g]) if parity else iou, int(goal["ids"][g]))
                        if claim[0] > deciding.get((b, y, x), (-9, 0))[0]:
                            deciding[b, y, x] = claim
        first = row
        for (b, y, x), (_, pid) in deciding.items():
            if pid >= 0:
                e = functional.normalize(features[level][b, :, y, x], dim=0) * math.sqrt(2) * math.log(5 - 1)
                logits = criterion.appearance.identity(e)
                identity.append(functional.cross_entropy(logits, torch.tensor(pid)).item())
        for task, values in (("box", box), ("conf", conf), ("id", identity)):
            losses[f"{task}_{stride}"] = sum(values) / max(len(values), 1)
    return losses


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("seed", [1, 4, 5])
def test_losses_equal_a_loop(seed: int, parity: bool) -> None:
    near = torch.tensor([[37.0, 28, 45, 52], [33, 33, 63, 64], [36, -13, 94, 77]])  # a prior of each level
    boxes = [random_boxes(seed), torch.cat((near, random_boxes(seed + 6), random_boxes(seed) + 3))]
    targets = [target(b.tolist(), ids=[(i + 1) % 6 - 1 for i in range(len(b))]) for b in boxes]
    raw, features = maps(seed, 2), maps(seed + 1, 2, 8)
    torch.manual_seed(0)
    criterion = AnchorCriterion(5, 8, parity=parity)
    losses = criterion(Gathered(SIZES), raw, features, targets)
    wanted = loop_losses(raw, features, criterion, targets, parity)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert all(v > 0 for v in wanted.values())


def test_a_shared_cell_has_the_identity_of_the_box_it_overlaps_most() -> None:
    """Two people on one cell, each fitting a prior of it; as published the larger number decides."""
    upright, square = [36.0, 28.0, 44.0, 52.0], [33.0, 32.0, 48.0, 48.0]  # priors 8x24 exactly, 16x16 nearly
    features = maps(3, 1, 8)
    torch.manual_seed(0)
    for ids, published in (([1, 3], 3), ([3, 1], 3), ([NO_IDENTITY, 2], 2)):
        for parity, pid in ((False, ids[0]), (True, published)):
            criterion, model = AnchorCriterion(5, 8, parity=parity), Gathered(SIZES)
            loss = criterion(model, maps(), features, [target([upright, square], ids=ids)])["id_8"]
            picks = model.seen[0]
            assert (picks.xy == torch.tensor([5, 5])).all(dim=1).sum() == 1  # one cell, one embedding
            terms = []
            for (x, y), box in zip(picks.xy.tolist(), picks.boxes.tolist(), strict=True):
                decided = pid if (x, y) == (5, 5) else ids[[upright, square].index(box)]
                if decided != NO_IDENTITY:
                    e = functional.normalize(features[0][:, :, y, x]) * criterion.appearance.scale
                    logits = criterion.appearance.identity(e)
                    terms.append(functional.cross_entropy(logits, torch.tensor([decided])))
            assert loss.item() == pytest.approx(sum(t.item() for t in terms) / max(len(terms), 1), rel=1e-5)


def test_ignored_regions_teach_neither_person_nor_background() -> None:
    region, person = [0.0, 0.0, 60.0, 96.0], [36.0, 28.0, 44.0, 52.0]
    criterion = AnchorCriterion(0, 8)
    raw = maps(1)
    losses = criterion(Gathered(SIZES), raw, [], [target([region, person], [IGNORE_LABEL, 0])])
    sum(losses.values()).backward()
    plain = loop_match([person], parity=False)[0]
    flat = Gathered(SIZES).flatten([r.grad for r in raw])[0]
    priors = Gathered(SIZES).priors(raw)
    counted, checked = 0, {True: 0, False: 0}
    for i, (x1, y1, x2, y2) in enumerate(priors.xyxy.tolist()):
        inside = max(min(x2, 60) - max(x1, 0), 0) * max(min(y2, 96) - max(y1, 0), 0) / ((x2 - x1) * (y2 - y1))
        counts = plain[i] == 0 or (plain[i] == BACKGROUND and inside <= 0.5)
        assert bool(flat[i, 4:].abs().sum() > 0) == counts
        assert bool(flat[i, :4].abs().sum() > 0) == (plain[i] == 0)
        counted += counts
        checked[inside > 0.5] += 1
    assert min(checked.values()) > 50
    alone = criterion(Gathered(SIZES), maps(1), [], [target([[0, 0, WIDTH, HEIGHT]], [IGNORE_LABEL])])
    assert all(alone[f"box_{s}"].item() == 0 for s in STRIDES)


def test_a_box_with_its_centre_outside_is_learned_where_the_picture_ends() -> None:
    """Matched as if centred on the last cell; the code leads to the box itself, as published to the one moved."""
    box = [WIDTH - 6.0, 28.0, WIDTH + 6.0, 52.0]  # centre on the edge; the last cells lie at WIDTH − stride
    matched = match([box])
    assert 0 in matched
    priors = Gathered(SIZES).priors(maps())
    rows = torch.tensor([i for i, m in enumerate(matched) if m == 0])
    assert (priors.level[rows] == 0).any()
    codes = {}
    for parity in (True, False):
        raw = [torch.zeros_like(r).requires_grad_() for r in maps()]
        losses = AnchorCriterion(0, 8, parity=parity)(Gathered(SIZES), raw, [], [target([box])])
        first = rows[priors.level[rows] == 0]
        seen = torch.tensor([box if not parity else pulled(box, 8)]).expand(len(first), 4)
        codes[parity] = encode_boxes(seen, priors[first])
        wanted = functional.smooth_l1_loss(torch.zeros_like(codes[parity]), codes[parity])
        assert losses["box_8"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert not torch.allclose(codes[True], codes[False])


def test_nobody_gives_connected_zeros() -> None:
    raw, features = maps(1), maps(2, 1, 8)
    torch.manual_seed(0)
    losses = AnchorCriterion(5, 8, 6)(Gathered(SIZES), raw, features, [target([])])
    assert sorted(losses) == sorted(f"{t}_{s}" for t in ("box", "conf", "id", "distill") for s in STRIDES)
    for name, loss in losses.items():
        if name.startswith("conf"):
            assert loss.item() > 0
        else:
            assert loss.item() == 0
            gradients = torch.autograd.grad(loss, [*raw, *features], retain_graph=True, allow_unused=True)
            assert any(g is not None for g in gradients)
            assert all(g is None or (g == 0).all() for g in gradients)


def test_first_values_of_the_uncertainties() -> None:
    start = AnchorCriterion(5, 8, 6).start
    assert {k: v for k, v in start.items() if k.endswith("_16")} == {
        "box_16": -4.85,
        "conf_16": -4.15,
        "id_16": -2.3,
        "distill_16": 0.0,
    }
    assert len(start) == 12
    assert sorted(AnchorCriterion(0, 8).start) == sorted(f"{t}_{s}" for t in ("box", "conf") for s in STRIDES)
    with torch.no_grad():
        no_embedding = AnchorCriterion(0, 0)(Gathered(SIZES), maps(1), [], [target([[36, 28, 44, 52]])])
    assert len(no_embedding) == 6
