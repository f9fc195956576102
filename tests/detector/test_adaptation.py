import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from detector import Detector, DetectorConfig
from detector import adaptation as module
from detector.adaptation import (
    AdaptConfig,
    HeadTraining,
    NeckTraining,
    choose_frames,
    learned_state,
    make_optimizer,
    squared_distance,
    vary,
)
from detector.patches import TrackedBoxes, cut_patches
from detector.priors import Picks
from detector.training import is_embedding, is_head
from tests.detector.scenes import lively_darknet, lively_model, noise
from tests.detector.test_patches import HEIGHT, WIDTH, cut, pictures, some_picks


@pytest.fixture(params=[lively_model, lively_darknet])
def model(request: pytest.FixtureRequest):
    return request.param(embedding_dim=16)


@torch.no_grad()
def found_in(model, images: torch.Tensor, count: int = 9) -> tuple[TrackedBoxes, torch.Tensor]:
    """Boxes of the model in these images, and its embeddings of them."""
    _, maps = model(images)
    picks = some_picks(count, len(images))
    zeros = torch.zeros(count, dtype=torch.int64)
    thumbs = torch.zeros(count, 2, 1, 3, dtype=torch.uint8)
    boxes = TrackedBoxes(
        cut_patches(model, maps, picks), zeros, zeros, zeros, picks.image + 1, zeros.double(), picks.boxes, thumbs
    )
    return boxes, model.embed(maps, picks)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def learn(training, model, config: AdaptConfig, rows: torch.Tensor, steps: int = 3) -> None:
    """Draw all boxes together: something that changes all that may change."""
    optimizer = make_optimizer(model, config)
    for _ in range(steps):
        features, terms = training.forward(rows, generator())
        optimizer.zero_grad()
        (-(features @ features.T).sum() + sum(terms.values())).backward()
        optimizer.step()


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_the_head_alone_learns(model, norm: str) -> None:
    config = AdaptConfig(norm=norm, lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    boxes, wanted = found_in(model, pictures())
    training = HeadTraining(model, boxes, config)
    assert torch.allclose(training.before, wanted, atol=1e-6)
    learn(training, model, config, torch.arange(len(boxes)))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("embedding_head.") or ".embedding." in name for name in changed)
    assert set(learned_state(model, config)) >= changed
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed >= learning
    statistics = {name for name in changed if name.endswith(("running_mean", "running_var"))}
    assert bool(statistics) == (norm == "train" and hasattr(model, "embedding_head"))
    assert (training.describe() * training.before).sum(dim=1).min() < 0.999
    assert torch.allclose(training.before, wanted, atol=1e-6)


def test_nothing_holds_a_box_that_has_not_moved(model) -> None:
    boxes, _ = found_in(model, pictures())
    training = HeadTraining(model, boxes, AdaptConfig(mirror=0, hold=3.0))
    rows = torch.tensor([5, 2, 2])
    features, terms = training.forward(rows, generator())
    assert torch.allclose(features, training.before[rows], atol=1e-6)
    assert terms["hold"].item() == pytest.approx(0, abs=1e-10)
    training.before = -training.before
    assert training.forward(rows, generator())[1]["hold"].item() == pytest.approx(12)  # |2f|² times 3


def test_squared_distance_is_twice_the_cosine_distance() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 7, generator=generator()), dim=2)
    assert squared_distance(a, b).item() == pytest.approx(2 * (1 - (a * b).sum(dim=1)).mean().item())


def test_patches_are_varied_by_the_generator_alone() -> None:
    patches, _ = cut(lively_model(embedding_dim=16))
    half = patches.to("cpu", torch.float16)
    first, second = (vary(half, AdaptConfig(mirror=0.5, noise=0.1), generator()) for _ in range(2))
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    assert first.fine.dtype == torch.float32
    assert torch.equal(vary(patches, AdaptConfig(mirror=0), generator()).fine, patches.fine)
    assert torch.equal(vary(patches, AdaptConfig(mirror=1), generator()).fine, patches.fine.flip(-1))


def neck_training(model, config: AdaptConfig) -> tuple[NeckTraining, torch.Tensor]:
    images = pictures(3)
    boxes, wanted = found_in(model, images)
    frames = [image.permute(1, 2, 0).byte() for image in images]
    return NeckTraining(model, boxes, frames, boxes.frames - 1, config), wanted


def test_the_neck_learns_and_detection_is_held(model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = {}
    for weight in (0.0, 1000.0):
        model.load_state_dict(before)
        config = AdaptConfig(part="neck", neck_lr=1e-3, detection=weight)
        training, wanted = neck_training(model, config)
        assert torch.allclose(training.before, wanted, atol=1e-5)
        assert training.detection_change(0.1) == {"score": 0, "box_pixels": 0}
        features, terms = training.forward(torch.tensor([1, 4, 6]), generator())
        assert torch.allclose(features, wanted[[1, 4, 6]], atol=1e-5)
        assert terms["detection"].item() == pytest.approx(0, abs=1e-6)
        assert terms["hold"].item() == pytest.approx(0, abs=1e-6)
        learn(training, model, config, torch.arange(len(wanted)))
        moved[weight] = training.detection_change(0.1)
    assert 0 < moved[1000.0]["score"] < moved[0.0]["score"]
    assert 0 < moved[1000.0]["box_pixels"] < moved[0.0]["box_pixels"]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith(("pyramid.", "level8.body")) for name in changed)
    assert not any(name.startswith(("backbone.", "heads.")) for name in changed)
    assert not any(".spread." in name or ".detect." in name or "running" in name for name in changed)
    assert set(learned_state(model, config)) >= changed


def test_frames_of_two_sizes_learn_together() -> None:
    model = lively_model(embedding_dim=16)
    config = AdaptConfig(part="neck")
    images = pictures(2)
    boxes, _ = found_in(model, images)
    frames = [images[0].permute(1, 2, 0).byte(), torch.full((HEIGHT + 32, WIDTH, 3), 114, dtype=torch.uint8)]
    frames[1][:HEIGHT] = images[1].permute(1, 2, 0).byte()
    training = NeckTraining(model, boxes, frames, boxes.frames - 1, config)
    everybody = training.describe()
    features, _ = training.forward(torch.arange(len(boxes)), generator())
    assert torch.allclose(features, everybody, atol=1e-6)
    first = (boxes.frames == 1).nonzero()[:, 0]
    alone, _ = training.forward(first, generator())
    assert torch.allclose(alone, everybody[first], atol=1e-5)


def test_batches_are_whole_frames_without_outliers() -> None:
    training, _ = neck_training(lively_model(embedding_dim=16), AdaptConfig(part="neck", steps=5, frames_per_step=2))
    labels = np.array([0, 1, -1, 0, 1, 0, -1, 0, 1])
    place = training.place.numpy()
    batches = list(training.batches(labels, 3))
    assert len(batches) == 5
    for rows in batches:
        frames = np.unique(place[rows])
        assert len(frames) <= 2
        assert rows.tolist() == [i for i in range(9) if place[i] in frames and labels[i] >= 0]
    again = list(training.batches(labels, 3))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    others = [tuple(rows) for rows in training.batches(labels, 4)]
    assert others != [tuple(rows) for rows in batches]


def test_the_frames_with_most_boxes_are_chosen() -> None:
    boxes, _ = found_in(lively_model(embedding_dim=16), pictures())
    boxes.videos[:] = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    boxes.frames[:] = torch.tensor([5, 9, 5, 5, 5, 5, 2, 7, 7])
    assert choose_frames(boxes, 3).tolist() == [[0, 5], [1, 5], [1, 7]]
    assert choose_frames(boxes, 1).tolist() == [[1, 5]]
    assert choose_frames(boxes, 9).tolist() == [[0, 5], [0, 9], [1, 2], [1, 5], [1, 7]]


# ---- the head alone -------------------------------------------------------------------------------------------------

CALM = AdaptConfig(mirror=0.0, lr=3e-3)
LOOK = DetectorConfig(input_size=WIDTH, score_thresh=0.3, engine="torch")


def head_training(model, config: AdaptConfig = CALM, dtype: torch.dtype | None = None) -> HeadTraining:
    boxes, _ = found_in(model, pictures())
    return HeadTraining(model, replace(boxes, patches=boxes.patches.to("cpu", dtype)), config)


def swap(training, model, config: AdaptConfig, steps: int = 8) -> list[float]:
    """Draw each box to another's embedding; the losses."""
    optimizer, losses = make_optimizer(model, config), []
    rows = torch.arange(9)
    for _ in range(steps):
        features, terms = training.forward(rows, generator())
        loss = squared_distance(features, training.before.flip(0)) + sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def norms(model) -> dict[str, torch.Tensor]:
    """Statistics of all batch norms."""
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_no_bit_of_a_detection_changes_when_the_head_learns(model, norm: str) -> None:
    config = replace(CALM, norm=norm, mirror=0.5, noise=0.1)
    frames = [noise(60, 90, 1), noise(90, 60, 2)]
    before = Detector(model, "cpu", LOOK)(frames)
    tensors = {name: value.clone() for name, value in model.state_dict().items() if not is_embedding(name)}
    swap(head_training(model, config), model, config, steps=2)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in tensors.items())
    for old, new in zip(before, Detector(model, "cpu", LOOK)(frames), strict=True):
        assert len(old["scores"]) > 5
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(old[name], new[name])
        assert not np.allclose(old["embeddings"], new["embeddings"], atol=1e-2)


def test_only_the_embedding_has_gradients(model) -> None:
    features, _ = head_training(model).forward(torch.arange(9), generator())
    features[:, 0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == is_embedding(name)


def test_hold_by_hand(model) -> None:
    training = head_training(model, replace(CALM, hold=0.7))
    swap(training, model, CALM, steps=2)
    rows = torch.tensor([3, 8, 5])
    features, terms = training.forward(rows, generator())
    total = 0.0
    for i, row in enumerate(rows.tolist()):
        for now, was in zip(features[i].tolist(), training.before[row].tolist(), strict=True):
            total += (now - was) ** 2
    assert total > 0.01
    assert terms["hold"].item() == pytest.approx(0.7 * total / 3, rel=1e-4)


def test_it_learns_and_the_stronger_it_is_held_the_less_it_moves() -> None:
    moved = []
    for hold in (0.0, 1.0, 10.0):
        model, config = lively_model(embedding_dim=16), replace(CALM, hold=hold, lr=1e-3)
        training = head_training(model, config)
        losses = swap(training, model, config)
        assert hold or losses[-1] < 0.8 * losses[0]
        moved.append(squared_distance(training.describe(), training.before).item())
    assert moved[0] > 1.2 * moved[1] > 1.44 * moved[2]


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_statistics_of_the_norms(norm: str) -> None:
    model = lively_model(embedding_dim=16)
    training = head_training(model, replace(CALM, norm=norm))
    before = norms(model)
    features, _ = training.forward(torch.arange(9), generator())
    moved = {name for name, value in norms(model).items() if not torch.equal(value, before[name])}
    assert moved == (set() if norm == "frozen" else {name for name in before if is_embedding(name)})
    assert torch.allclose(features, training.before, atol=1e-5) == (norm == "frozen")
    others = [m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not is_embedding(name)]
    assert not any(module.training for module in others)
    after = norms(model)
    described = training.describe()  # looks, and leaves no trace
    assert torch.equal(described, training.describe())
    assert all(torch.equal(value, after[name]) for name, value in norms(model).items())


def test_what_is_random_hangs_on_the_generator_alone(model) -> None:
    training, rows = head_training(model, replace(CALM, mirror=0.5, noise=0.2)), torch.arange(9)
    state = torch.get_rng_state()
    drawn = [training.forward(rows, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_runs_are_one() -> None:
    states = []
    for _ in range(2):
        model, config = lively_model(embedding_dim=16), replace(CALM, mirror=0.5, noise=0.1, norm="train")
        swap(head_training(model, config), model, config, steps=3)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_patches_kept_as_half_train_nearly_the_same(model) -> None:
    features = [
        head_training(model, dtype=dtype).forward(torch.arange(9), generator())[0] for dtype in (None, torch.half)
    ]
    assert features[1].dtype == torch.float32
    assert 0 < squared_distance(*features).item() / 2 < 1e-6


def test_patches_come_right_from_a_detector(model) -> None:
    """They were made in inference mode; learning from them needs gradients all the same."""
    boxes, _ = found_in(model, pictures())
    found = Detector(model, "cpu", LOOK, patches=True)([noise(60, 90)])[0]
    training = HeadTraining(model, replace(boxes, patches=found["patches"][torch.arange(9)]), CALM)
    np.testing.assert_allclose(training.before, found["embeddings"][:9], atol=1e-5)
    assert math.isfinite(swap(training, model, CALM, steps=2)[-1])
    assert not torch.allclose(training.describe(), training.before, atol=1e-3)


def test_about_a_share_is_mirrored(model) -> None:
    patches, _ = cut(model)
    count = 0
    for seed in range(40):
        drawn = vary(patches, AdaptConfig(mirror=0.3), torch.Generator().manual_seed(seed))
        for new, old in zip(drawn.coarse, patches.coarse, strict=True):
            turned = (new == old.flip(3)).flatten(1).all(dim=1)
            assert (turned | (new == old).flatten(1).all(dim=1)).all()
            count += int(turned.sum())
    assert 0.2 < count / (40 * len(patches)) < 0.4


def test_noise_is_a_factor(model) -> None:
    patches, _ = cut(model)
    noisy = vary(patches, AdaptConfig(mirror=0, noise=0.1), generator())
    for new, old in zip(noisy.coarse, patches.coarse, strict=True):
        ratio = (new / old)[old.abs() > 1e-3]
        assert ratio.mean().item() == pytest.approx(1, abs=0.01)
        assert ratio.std().item() == pytest.approx(0.1, rel=0.1)
        assert torch.equal(new == 0, old == 0)
    assert torch.equal(noisy.picks.boxes, patches.picks.boxes)


# ---- the neck as well -----------------------------------------------------------------------------------------------

NECK = AdaptConfig(part="neck", neck_lr=1e-2, lr=1e-2)


def two_sizes(model, config: AdaptConfig = NECK) -> tuple[NeckTraining, list[torch.Tensor]]:
    """Four frames with boxes in each, the third of another shape; and the frames."""
    boxes, _ = found_in(model, pictures(4), 16)
    frames = [torch.from_numpy(noise(HEIGHT, WIDTH - 32 * (i == 2), i)) for i in range(4)]
    picks = boxes.patches.picks
    inside = replace(picks, xy=picks.xy.clamp(max=1))  # cells that are in all frames
    boxes = replace(boxes, patches=replace(boxes.patches, picks=inside))
    return NeckTraining(model, boxes, frames, boxes.frames - 1, config), frames


def raw_of(model, frame: torch.Tensor) -> torch.Tensor:
    """(A, 4 + K) what is detected in a frame, before it is decoded."""
    return model.flatten(model(frame.permute(2, 0, 1)[None].float())[0])[0]


@torch.no_grad()
def test_the_neck_describes_each_box_in_its_frame(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever frames are looked at together."""
    training, frames = two_sizes(model)
    picks = training._picks
    for row, place in enumerate(training.place.tolist()):
        _, maps = model(frames[place].permute(2, 0, 1)[None].float())
        alone = Picks(torch.tensor([0]), *(part[row : row + 1] for part in (picks.level, picks.xy, picks.boxes)))
        assert torch.allclose(training.before[row], model.embed(maps, alone)[0], atol=1e-5)
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 1)
    assert torch.allclose(training.describe(), training.before, atol=1e-5)


def drift_of(model, frames: list[torch.Tensor], was: list[torch.Tensor]) -> float:
    """Weighted mean of squared changes over all priors of some frames, one number at a time."""
    top = bottom = 0.0
    for frame, old in zip(frames, was, strict=True):
        for a, b in zip(raw_of(model, frame).tolist(), old.tolist(), strict=True):
            if hasattr(model, "heads"):
                score = 1 / (1 + math.exp(-b[4])) / (1 + math.exp(-max(b[5:])))
            else:
                score = 1 / (1 + math.exp(b[4] - b[5]))
            weight = score + module.BACKGROUND_WEIGHT
            top += weight * sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
            bottom += weight * len(b)
    return top / bottom


@torch.no_grad()
def test_drift_of_frames_of_two_sizes(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frames looked at together all priors count alike; groups count by how many frames they have."""
    training, frames = two_sizes(model, replace(NECK, detection=3.0))
    rows = torch.arange(len(training.place))
    was = [raw_of(model, frame) for frame in frames]
    assert training.forward(rows, generator())[1]["detection"].item() < 1e-7
    for name, parameter in model.named_parameters():
        if NECK.learns(name):
            parameter *= 1.05
    same, other = [0, 1, 3], [2]
    wanted = sum(len(g) * drift_of(model, [frames[i] for i in g], [was[i] for i in g]) for g in (same, other)) / 4
    assert wanted > 1e-4
    assert training.forward(rows, generator())[1]["detection"].item() == pytest.approx(3 * wanted, rel=1e-3)
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 1)
    some = rows[torch.isin(training.place, torch.tensor([1, 2]))]
    wanted = sum(drift_of(model, [frames[i]], [was[i]]) for i in (1, 2)) / 2
    assert training.forward(some, generator())[1]["detection"].item() == pytest.approx(3 * wanted, rel=1e-3)


def test_all_of_the_neck_learns_and_none_of_the_heads(model) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training, _ = neck_training(model, NECK)
    swap(training, model, NECK, steps=2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    names = {name for name, _ in model.named_parameters()}
    assert changed == {name for name in names if not is_head(name) and not name.startswith("backbone.")}
    rows = torch.tensor([2, 3, 7])
    features, terms = training.forward(rows, generator())
    wanted = sum((features[i] - training.before[row]).square().sum().item() for i, row in enumerate(rows.tolist()))
    assert terms["hold"].item() == pytest.approx(wanted / 3, rel=1e-4)


@torch.no_grad()
def test_detection_change_by_a_known_shift() -> None:
    """Boxes of stride 32 go by a quarter of a cell; scores of a level by what is added to their logits."""
    model = lively_model(embedding_dim=16)
    training, frames = two_sizes(model)
    old = [model.scores(raw_of(model, frame))[0] for frame in frames]
    model.heads[2].box_code.bias[0] += 0.25
    assert training.detection_change(0.3) == pytest.approx({"score": 0, "box_pixels": 8}, abs=1e-3)
    model.heads[2].box_code.bias[0] -= 0.25
    model.heads[1].objectness.bias += 1.0
    new = [model.scores(raw_of(model, frame))[0] for frame in frames]
    moved = max((b - a)[a >= 0.3].abs().max().item() for a, b in zip(old, new, strict=True))
    assert moved > 0.05
    assert training.detection_change(0.3) == pytest.approx({"score": moved, "box_pixels": 0}, abs=1e-3)
    assert training.detection_change(1.0) == {"score": 0.0, "box_pixels": 0.0}  # nobody was there


def test_batches_of_fewer_frames_than_asked_for() -> None:
    training, _ = neck_training(lively_model(embedding_dim=16), replace(NECK, steps=2, frames_per_step=50))
    for rows in training.batches(np.zeros(9, np.int64), 0):
        assert rows.tolist() == list(range(9))


def test_learning_rates(model) -> None:
    names = dict(model.named_parameters())
    heads = {id(p) for name, p in names.items() if is_embedding(name)}
    (head,) = make_optimizer(model, AdaptConfig(lr=0.1)).param_groups
    assert (head["lr"], {id(p) for p in head["params"]}) == (0.1, heads)
    head, neck = make_optimizer(model, AdaptConfig(part="neck", lr=0.1, neck_lr=0.2)).param_groups
    assert (head["lr"], neck["lr"], head["weight_decay"], neck["weight_decay"]) == (0.1, 0.2, 0, 0)
    assert {id(p) for p in head["params"]} == heads
    wanted = {n for n in names if not is_embedding(n) and not is_head(n) and not n.startswith("backbone.")}
    assert {id(p) for p in neck["params"]} == {id(names[name]) for name in wanted}


@pytest.mark.parametrize("part", ["head", "neck"])
def test_what_was_learned_makes_the_model_again(model, part: str) -> None:
    config = AdaptConfig(part=part, lr=0.01, neck_lr=0.01)
    training = head_training(model, config) if part == "head" else neck_training(model, config)[0]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    kept = learned_state(model, config)
    swap(training, model, config, steps=2)
    assert all(torch.equal(value, start[name]) for name, value in kept.items())  # copies, not views
    learned = learned_state(model, config)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(start)
    assert model.load_state_dict(learned, strict=False).unexpected_keys == []
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert not all(torch.equal(value, start[name]) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_score", 1.1, r"expected a number in \[0, 1\], got 1.1"),
        ("max_cover", -0.1, r"expected a number in \[0, 1\], got -0.1"),
        ("held_out", 1.0, r"expected a number in \[0, 1\), got 1.0"),
        ("frame_rate", 0.0, "expected a number above 0, got 0.0"),
        ("hold", math.nan, "expected 0 or more, got nan"),
        ("seed", 2**32, "expected at most 4294967295, got 4294967296"),
        ("part", "tail", "expected one of head, neck, got 'tail'"),
        ("norm", "auto", "expected one of frozen, train, got 'auto'"),
        ("mirror", math.nan, r"expected a number in \[0, 1\], got nan"),
        ("lr", math.inf, "expected a number above 0, got inf"),
        ("neck_lr", -1.0, "expected a number above 0, got -1.0"),
        *(
            (name, -1, "expected 0 or more, got -1")
            for name in ("max_gap", "min_seconds", "noise", "detection", "seed")
        ),
        *((name, 0, "expected at least 1, got 0") for name in ("epochs", "steps", "images", "sampled")),
        *((name, 0, "expected at least 1, got 0") for name in ("frames_per_step", "patience")),
        *((name, 1, "expected at least 2, got 1") for name in ("people", "boxes_per_tracklet", "max_boxes")),
        ("neck_frames", 1, "expected at least 2, got 1"),
    ],
)
def test_every_setting_is_checked(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        AdaptConfig(**{name: value})  # type: ignore[arg-type]
