import math
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as library
from torch import distributed, multiprocessing, nn
from torch.nn import functional

from configs import load_config
from reid.losses import TERMS, BatchHardTriplet, InstanceLoss, ReidCriterion, ReidLossConfig, uniform_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the library's, of NumPy 2

ALL = ReidLossConfig(**dict.fromkeys(TERMS, 1.0))
CLASSES, C, D = 5, 6, 4
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])


def only(name: str, **settings) -> ReidLossConfig:
    """One loss; LSRO needs a classifier besides."""
    weights = {name: 1.0} if name in ("cross_entropy", "lsro") else {"cross_entropy": 0.0, name: 1.0}
    return ReidLossConfig(**(weights | settings))


def features(count: int = len(LABELS), parts: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, parts, C, generator=generator, dtype=torch.float64)
    necked = torch.randn(count, parts, D, generator=generator, dtype=torch.float64)
    return raw.requires_grad_(), necked.requires_grad_()


def criterion(config: ReidLossConfig = ALL, parts: int = 1, classes: int = CLASSES) -> ReidCriterion:
    torch.manual_seed(0)
    made = ReidCriterion(config, classes, (C, D), parts).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


# What the papers say, one number at a time.


def unit(x: list[float]) -> list[float]:
    length = math.sqrt(sum(v * v for v in x))
    return [v / length for v in x]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def distance(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def log_sum_exp(values: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in values))


def softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def pairs(labels: list[int], i: int) -> tuple[list[int], list[int]]:
    others = [j for j in range(len(labels)) if j != i]
    return [j for j in others if labels[j] == labels[i]], [j for j in others if labels[j] != labels[i]]


def cross_entropy(logits: list[float], target: int, smoothing: float = 0.0) -> float:
    wanted = [smoothing / len(logits) + (1 - smoothing) * (k == target) for k in range(len(logits))]
    return sum(w * (log_sum_exp(logits) - v) for w, v in zip(wanted, logits, strict=True))


def by_cross_entropy(x, labels, weights, config) -> float:
    values = [
        cross_entropy([dot(f, w) for w in weights], label, config.label_smoothing)
        for f, label in zip(x, labels, strict=True)
    ]
    return mean(values)


def by_triplet(x, labels, weights, config) -> float:
    values = []
    for i in range(len(x)):
        positives, negatives = pairs(labels, i)
        if positives and negatives:
            gap = max(distance(x[i], x[j]) for j in positives) - min(distance(x[i], x[j]) for j in negatives)
            values.append(softplus(gap) if config.triplet_soft else max(gap + config.triplet_margin, 0))
    return mean(values)


def by_contrastive(x, labels, weights, config) -> float:
    x = [unit(f) for f in x]
    together, apart = [], []
    for i in range(len(x)):
        positives, negatives = pairs(labels, i)
        together += [distance(x[i], x[j]) for j in positives]
        apart += [config.contrastive_margin - distance(x[i], x[j]) for j in negatives]
    apart = [v for v in apart if v > 0]
    return mean(together) + (mean(apart) if apart else 0)


def by_circle(x, labels, weights, config) -> float:
    x, m, scale = [unit(f) for f in x], config.circle_margin, config.circle_scale
    values = []
    for i in range(len(x)):
        positives, negatives = pairs(labels, i)
        if positives and negatives:
            near = [dot(x[i], x[j]) for j in positives]
            far = [dot(x[i], x[j]) for j in negatives]
            pull = [-scale * max(1 + m - s, 0) * (s - (1 - m)) for s in near]
            push = [scale * max(s + m, 0) * (s - m) for s in far]
            values.append(softplus(log_sum_exp(push) + log_sum_exp(pull)))
    return mean(values)


def by_lifted(x, labels, weights, config) -> float:
    x = [unit(f) for f in x]
    values = []
    for i in range(len(x)):
        positives, negatives = pairs(labels, i)
        pull = log_sum_exp([distance(x[i], x[j]) for j in positives]) if positives else 0
        push = log_sum_exp([config.lifted_margin - distance(x[i], x[j]) for j in negatives]) if negatives else 0
        values.append(max(pull + push, 0))
    return mean(values)


def by_instance(x, labels, weights, config) -> float:
    x = [unit(f) for f in x]
    people = sorted(set(labels))
    centres = []
    for person in people:
        own = [f for f, label in zip(x, labels, strict=True) if label == person]
        centres.append(unit([mean([f[k] for f in own]) for k in range(len(own[0]))]))
    return mean([cross_entropy([config.instance_scale * dot(a, b) for b in centres], i) for i, a in enumerate(centres)])


def by_margin(x, labels, weights, logit, others) -> float:
    """Cross-entropy in which the right class has `logit(angle, length)`, the others `others(cosine, length)`."""
    values = []
    for f, label in zip(x, labels, strict=True):
        length = math.sqrt(dot(f, f))
        cosines = [dot(unit(f), unit(w)) for w in weights]
        logits = [others(c, length) for c in cosines]
        logits[label] = logit(math.acos(cosines[label]), length)
        values.append(cross_entropy(logits, label))
    return mean(values)


def by_sphereface(x, labels, weights, config) -> float:
    m = config.sphereface_margin

    def psi(angle: float, length: float) -> float:
        k = math.floor(angle * m / math.pi)
        return length * ((-1) ** k * math.cos(m * angle) - 2 * k)

    return by_margin(x, labels, weights, psi, lambda c, length: length * c)


def by_arcface(x, labels, weights, config) -> float:
    m, scale = config.arcface_margin, config.arcface_scale

    def further(angle: float, length: float) -> float:
        # Where angle and margin add up to more than half a turn, the cosine would rise again.
        return scale * (math.cos(angle + m) if angle + m <= math.pi else math.cos(angle) - m * math.sin(m))

    return by_margin(x, labels, weights, further, lambda c, length: scale * c)


def by_cosface(x, labels, weights, config) -> float:
    m, scale = config.cosface_margin, config.cosface_scale
    return by_margin(
        x, labels, weights, lambda angle, length: scale * (math.cos(angle) - m), lambda c, length: scale * c
    )


ORACLES = {
    "cross_entropy": (by_cross_entropy, {}),
    "not smoothed": (by_cross_entropy, {"label_smoothing": 0.0}),
    "triplet": (by_triplet, {}),
    "triplet, margin": (by_triplet, {"triplet_margin": 2.5}),
    "triplet, soft": (by_triplet, {"triplet_soft": True}),
    "contrastive": (by_contrastive, {}),
    "contrastive, margin": (by_contrastive, {"contrastive_margin": 0.4}),
    "circle": (by_circle, {}),
    "circle, paper": (by_circle, {"circle_scale": 128.0, "circle_margin": 0.3}),
    "lifted": (by_lifted, {}),
    "lifted, margin": (by_lifted, {"lifted_margin": 0.3}),
    "instance": (by_instance, {"instance_scale": 3.0}),
    "sphereface": (by_sphereface, {}),
    "sphereface, margin": (by_sphereface, {"sphereface_margin": 3}),
    "arcface": (by_arcface, {}),
    "arcface, margin": (by_arcface, {"arcface_margin": 1.4, "arcface_scale": 8.0}),
    "cosface": (by_cosface, {}),
    "cosface, margin": (by_cosface, {"cosface_margin": 0.1, "cosface_scale": 8.0}),
}


@pytest.mark.parametrize("case", ORACLES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_is_what_its_paper_says(case: str, seed: int) -> None:
    oracle, settings = ORACLES[case]
    name = "cross_entropy" if case == "not smoothed" else case.split(",")[0]
    config = only(name, **settings)
    made = criterion(config, parts=2)
    raw, necked = features(parts=2, seed=seed)
    found = made(raw, necked, LABELS)
    classified = name in ("cross_entropy", "sphereface", "arcface", "cosface")
    wanted = []
    for i, part in enumerate(made.parts):
        weights = []
        if classified:
            (weight,) = part.parameters()
            weights = (weight if name == "cross_entropy" else weight.T).tolist()
        seen = necked if classified else raw
        wanted.append(oracle(seen[:, i].tolist(), LABELS.tolist(), weights, config))
    assert found.keys() == {name}
    assert found[name].item() == pytest.approx(mean(wanted), rel=1e-9)


def test_outliers_are_pushed_towards_no_class() -> None:
    config = ReidLossConfig(cross_entropy=1.0, lsro=1.0)
    made = criterion(config)
    raw, necked = features(10)
    labels = torch.cat((LABELS, torch.tensor([-1, -1])))
    found = made(raw, necked, labels)
    weights = made.parts[0].classifier.weight.tolist()
    wanted = []
    for x in necked[8:, 0].tolist():
        logits = [dot(x, w) for w in weights]
        wanted.append(sum((log_sum_exp(logits) - v) / CLASSES for v in logits))
    assert found["lsro"].item() == pytest.approx(mean(wanted), rel=1e-9)
    assert uniform_cross_entropy(torch.zeros(3, 7)).item() == pytest.approx(math.log(7))  # its smallest value

    # The paper: one mean over the batch, of −(1 − Z) log p(y) − Z / K Σ log p(k).
    joint = (8 * found["cross_entropy"] + 2 * found["lsro"]) / 10
    of_all = [
        cross_entropy([dot(x, w) for w in weights], label, 0.1)
        for x, label in zip(necked[:8, 0].tolist(), LABELS.tolist(), strict=True)
    ]
    assert joint.item() == pytest.approx((sum(of_all) + sum(wanted)) / 10, rel=1e-9)


def test_outliers_count_in_no_other_loss() -> None:
    made = criterion()
    raw, necked = features(11)
    places = torch.tensor([0, 1, 2, 4, 5, 7, 8, 10])
    labels = torch.full((11,), -1)
    labels[places] = LABELS
    mixed, alone = made(raw, necked, labels), made(raw[places], necked[places], LABELS)
    for name in TERMS:
        if name == "lsro":
            assert mixed[name] > 0
            assert alone[name] == 0
        else:
            torch.testing.assert_close(mixed[name], alone[name])
    outside = [i for i in range(11) if i not in places.tolist()]
    slope = torch.autograd.grad(sum(loss for name, loss in mixed.items() if name != "lsro"), [raw, necked])
    assert all((s[outside] == 0).all() for s in slope)


def test_agreement_with_the_library() -> None:
    """The defaults, spelled out in the library's own units."""
    made = criterion()
    raw, necked = features()
    found = made(raw, necked, LABELS)
    x, behind = raw[:, 0], necked[:, 0]
    euclidean = distances.LpDistance(normalize_embeddings=False)
    anchors, positives, negatives = miners.BatchHardMiner(distance=euclidean)(x, LABELS)
    apart = euclidean(x)
    expected = {
        "contrastive": library.ContrastiveLoss(pos_margin=0, neg_margin=1)(x, LABELS),
        "circle": library.CircleLoss(m=0.25, gamma=64)(x, LABELS),
        "lifted": library.GeneralizedLiftedStructureLoss(neg_margin=1, pos_margin=0)(x, LABELS),
    }
    expected["triplet"] = functional.relu(apart[anchors, positives] - apart[anchors, negatives] + 0.3).mean()
    for name, kind in (
        ("sphereface", library.SphereFaceLoss(CLASSES, D, margin=4)),
        ("arcface", library.ArcFaceLoss(CLASSES, D, margin=math.degrees(0.5), scale=64)),
        ("cosface", library.CosFaceLoss(CLASSES, D, margin=0.35, scale=64)),
    ):
        kind.W.data = made.parts[0].margin_softmax[name].W.data
        expected[name] = kind(behind, LABELS)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, msg=lambda m, n=name: f"{n}: {m}")


def test_instances_are_crops_where_all_people_differ() -> None:
    """As in the baseline: the batch's similarities, each crop a class of its own."""
    x = torch.randn(6, C, generator=torch.Generator().manual_seed(0))
    directions = functional.normalize(x)
    wanted = functional.cross_entropy(32 * directions @ directions.T, torch.arange(6))
    labels = torch.tensor([5, 3, 9, 0, 1, 2])
    torch.testing.assert_close(InstanceLoss(32)(directions, labels), wanted)


def test_gradients() -> None:
    raw, necked = features(10)
    labels = torch.cat((LABELS, torch.tensor([-1, -1])))
    assert torch.autograd.gradcheck(uniform_cross_entropy, necked[:, 0])
    assert torch.autograd.gradcheck(lambda x: BatchHardTriplet(2.0, True)(x[:8], LABELS), raw[:, 0])
    assert torch.autograd.gradcheck(lambda x: InstanceLoss(3.0)(x[:8], LABELS), raw[:, 0])
    for name in TERMS:
        if name != "circle":  # whose weights are no part of its gradient
            made = criterion(only(name, triplet_margin=2.0))
            assert torch.autograd.gradcheck(lambda r, n, m=made: m.total(m(r, n, labels)), (raw, necked)), name


@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("lsro", "circle")])
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    made = criterion(only(name, instance_scale=3.0))
    raw, necked = features()
    before = made(raw, necked, LABELS)[name]
    slopes = torch.autograd.grad(before, [raw, necked], allow_unused=True)
    with torch.no_grad():
        moved = [x if s is None else x - 1e-3 * s for x, s in zip((raw, necked), slopes, strict=True)]
        assert made(*moved, LABELS)[name] < before


@pytest.mark.parametrize("name", ["triplet", "contrastive", "circle", "lifted", "sphereface", "arcface", "cosface"])
def test_what_is_learned_tells_people_apart(name: str) -> None:
    """Free features end up with their own kind as nearest neighbour; at the start a third of them do."""
    labels = torch.arange(4).repeat_interleave(4)
    raw, necked = features(16)
    made = criterion(only(name))
    learned = (raw, necked, *made.parameters())
    optimizer = torch.optim.Adam(learned, 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        made.total(made(raw, necked, labels)).backward()
        optimizer.step()
    seen = necked if name.endswith("face") else raw
    found = functional.normalize(seen[:, 0].detach())
    similarity = (found @ found.T).fill_diagonal_(-2)
    assert (labels[similarity.argmax(1)] == labels).all()


BATCHES = {
    "one person": (torch.zeros(6, dtype=torch.int64), "random"),
    "all different": (torch.arange(5), "random"),
    "alike": (torch.tensor([0, 0, 1, 1, 2, 2]), "alike"),
    "one person, alike": (torch.zeros(6, dtype=torch.int64), "alike"),
    "zeros": (torch.tensor([0, 0, 1, 1, 2, 2]), "zeros"),
    "pairs alike": (torch.tensor([0, 0, 1, 1, 2, 2]), "pairs"),
    "huge": (torch.tensor([0, 0, 1, 1, -1, 2]), "huge"),
    "tiny": (torch.tensor([0, 0, 1, 1, -1, 2]), "tiny"),
    "opposite": (torch.tensor([0, 1, 0, 1]), "opposite"),
    "nobody known": (torch.full((4,), -1), "random"),
    "one crop": (torch.tensor([3]), "random"),
    "one outlier": (torch.tensor([-1]), "random"),
    "one of each": (torch.tensor([0, 1]), "random"),
    "nothing": (torch.zeros(0, dtype=torch.int64), "random"),
}


def batch_of(kind: str, count: int) -> list[torch.Tensor]:
    made = []
    for dim in (C, D):
        x = torch.randn(count, 2, dim, generator=torch.Generator().manual_seed(0))
        x = {
            "random": x,
            "alike": torch.ones_like(x),
            "zeros": torch.zeros_like(x),
            "pairs": x.repeat_interleave(2, 0)[:count],
            "huge": 2e4 * x.clamp(-3, 3),
            "tiny": 1e-7 * x,
            "opposite": torch.ones_like(x) * torch.tensor([1.0, -1.0]).repeat(count)[:count, None, None],
        }[kind]
        made.append(x)
    return made


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_gradients_are_finite(batch: str, dtype: torch.dtype | None) -> None:
    labels, kind = BATCHES[batch]
    raw, necked = (x.to(dtype or torch.float32).requires_grad_() for x in batch_of(kind, len(labels)))
    made = criterion(parts=2).float()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        terms = made(raw, necked, labels)
        made.total(terms).backward()
    assert terms.keys() == set(TERMS)
    for name, loss in terms.items():
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name
        assert loss >= 0, name
    for gradient in (raw.grad, necked.grad, *(p.grad for p in made.parameters())):
        assert gradient is not None  # every parameter takes part, as several processes need it
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e6 if gradient.numel() and kind != "tiny" else True


def test_half_precision_features_lose_nothing_more() -> None:
    """All arithmetic is float32: the losses are those of the rounded features."""
    made = criterion().float()
    raw, necked = (x.float().detach() for x in features())
    for dtype in (torch.bfloat16, torch.float16):
        rounded = raw.to(dtype), necked.to(dtype)
        with torch.autocast("cpu", dtype):
            found = made(*rounded, LABELS)
        wanted = made(rounded[0].float(), rounded[1].float(), LABELS)
        assert found == wanted


def test_a_feature_at_its_class_has_a_finite_slope() -> None:
    """The angle's slope is infinite at 0 and at half a turn."""
    made = criterion(only("arcface")).float()
    weights = made.parts[0].margin_softmax["arcface"].W  # (D, classes)
    weights.data = torch.eye(D, CLASSES)
    weights.data[0, -1] = 1
    for sign in (1, -1):
        necked = (sign * weights.detach().T[LABELS]).unsqueeze(1).requires_grad_()
        loss = made(torch.zeros(8, 1, C), necked, LABELS)["arcface"]
        loss.backward()
        assert loss.isfinite()
        assert necked.grad.isfinite().all()


def test_parts_are_averaged_and_have_classifiers_of_their_own() -> None:
    made = criterion(parts=3)
    raw, necked = features(parts=3)
    found = made(raw, necked, LABELS)
    for name in TERMS:
        each = []
        for i, part in enumerate(made.parts):
            one = ReidCriterion(ALL, CLASSES, (C, D)).double()
            one.parts[0] = part
            each.append(one(raw[:, i : i + 1], necked[:, i : i + 1], LABELS)[name])
        torch.testing.assert_close(found[name], torch.stack(each).mean())
    logits = torch.stack([part.classifier(necked[:, i]) for i, part in enumerate(made.parts)]).mean(0)
    torch.testing.assert_close(made.logits(necked), logits)


def test_total_weighs() -> None:
    config = ReidLossConfig(cross_entropy=0.5, triplet=2.0, circle=0.03125)
    made = criterion(config)
    raw, necked = features()
    terms = made(raw, necked, LABELS)
    assert config.terms == {"cross_entropy": 0.5, "triplet": 2.0, "circle": 0.03125}
    wanted = 0.5 * terms["cross_entropy"] + 2 * terms["triplet"] + terms["circle"] / 32
    torch.testing.assert_close(made.total(terms), wanted)


def test_untrained_classifiers_know_nothing() -> None:
    torch.manual_seed(0)
    made = ReidCriterion(ReidLossConfig(), 751, (C, D))
    _, necked = features()
    assert made(torch.zeros(8, 1, C), necked.float(), LABELS)["cross_entropy"].item() == pytest.approx(
        math.log(751), abs=0.01
    )


def test_state_is_the_classifiers_weights() -> None:
    names = set(criterion().state_dict())
    faces = {f"parts.0.margin_softmax.{name}.W" for name in ("sphereface", "arcface", "cosface")}
    assert names == {"parts.0.classifier.weight"} | faces
    assert not set(criterion(only("triplet")).state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"triplet": -1.0}, "triplet: expected a number of at least 0, got -1"),
        ({"triplet": math.nan}, "triplet: expected a number"),
        ({"cross_entropy": 0.0}, "weights: expected one above 0 at least, of cross_entropy, lsro, triplet"),
        ({"cross_entropy": 0.0, "lsro": 0.1, "triplet": 1.0}, "lsro: expected cross_entropy, too"),
        ({"label_smoothing": 1.0}, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"circle_scale": 0.0}, "circle_scale: expected a number above 0"),
        ({"arcface_margin": 28.6}, r"arcface_margin: expected radians in \[0, π\), got 28.6"),
        ({"cosface_margin": 1.0}, "cosface_margin: expected a number in"),
        ({"sphereface_margin": 0}, "sphereface_margin: expected a whole number from 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReidLossConfig(**settings)


def test_an_unknown_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown key in section 'loss': 'tripplet'; did you mean triplet"):
        load_config(None, ["loss.tripplet=1"], {"loss": ReidLossConfig})
    assert load_config(None, ["loss.triplet=1"], {"loss": ReidLossConfig})["loss"].terms["triplet"] == 1


def test_what_does_not_fit_is_refused() -> None:
    made = criterion(parts=2)
    raw, necked = features(parts=2)
    for wrong in (5, -2):
        with pytest.raises(ValueError, match=f"labels: expected −1 to 4, got {wrong}"):
            made(raw, necked, torch.tensor([*LABELS[:7], wrong]))
    with pytest.raises(ValueError, match=r"raw: expected shape \(7, 2, 6\), got \(8, 2, 6\)"):
        made(raw, necked, LABELS[:7])
    with pytest.raises(ValueError, match=r"necked: expected shape \(8, 2, 4\), got \(8, 1, 4\)"):
        made(raw, necked[:, :1], LABELS)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        ReidCriterion(ALL, 0, (C, D))
    with pytest.raises(ValueError, match="cross_entropy: expected a weight above 0"):
        criterion(only("triplet")).logits(necked[:, :1])


JOINT = torch.tensor([0, 1, 0, -1, 1, 2, 3, 2])


def share_of_the_batch(rank: int | None, folder: str) -> dict[str, torch.Tensor]:
    """Losses and gradients of a small encoder and of the classifiers: of all crops, or of those of one process."""
    torch.manual_seed(0)
    encoder = nn.Linear(3, C + D)
    made = ReidCriterion(ALL, CLASSES, (C, D))
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    raw, necked = encoder(images[own]).unsqueeze(1).split((C, D), dim=2)
    terms = made(raw, necked, JOINT[own])
    made.total(terms).backward()
    found = {name: loss.detach() for name, loss in terms.items()}
    for name, parameter in (*encoder.named_parameters(), *made.named_parameters()):
        found[f"slope of {name}"] = parameter.grad
    if rank is not None:
        made.eval()
        if rank == 0:  # validation is not waited for
            made(raw.detach(), necked.detach(), JOINT[own])
        torch.save(found, f"{folder}/{rank}.pt")
    return found


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share_of_the_batch(rank, folder)
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_average_to_the_joint_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, wanted in share_of_the_batch(None, "").items():
        average = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(average, wanted, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
