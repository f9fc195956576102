import numpy as np
import pytest
import torch

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
from tests.detector.scenes import lively_darknet, lively_model
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
    noisy = vary(patches, AdaptConfig(mirror=0, noise=0.1), generator()).fine / patches.fine
    assert noisy.nanmean().item() == pytest.approx(1, abs=0.01)
    assert (noisy[noisy.isfinite()]).std().item() == pytest.approx(0.1, rel=0.1)


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


def test_drift_is_what_loops_find() -> None:
    """The weighted squared distance of raw detections, prior by prior."""
    model = lively_model(embedding_dim=16)
    training, _ = neck_training(model, AdaptConfig(part="neck", detection=2.0, hold=0))
    old = torch.cat([model.flatten(model(pictures(3)[i : i + 1])[0]) for i in range(3)])
    with torch.no_grad():
        for parameter in model.pyramid.parameters():
            parameter *= 1.05
    new = torch.cat([model.flatten(model(pictures(3)[i : i + 1])[0]) for i in range(3)])
    total = weights = 0.0
    for was, now in zip(old.flatten(0, 1).double(), new.flatten(0, 1).double(), strict=True):
        weight = (was[4].sigmoid() * was[5].sigmoid()).item() + 0.01
        total += weight * (now - was).square().mean().item()
        weights += weight
    _, terms = training.forward(torch.arange(9), generator())
    assert terms["detection"].item() == pytest.approx(2 * total / weights, rel=1e-3)
    score, box = training.detection_change(0.5).values()
    sure = model.scores(old)[0] >= 0.5
    assert score == pytest.approx((model.scores(new)[0] - model.scores(old)[0])[sure].abs().max().item(), abs=1e-5)
    assert box > 0


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_score": 1.1}, r"min_score: expected a number in \[0, 1\], got 1.1"),
        ({"held_out": 1.0}, r"held_out: expected a number in \[0, 1\), got 1.0"),
        ({"frame_rate": 0.0}, "frame_rate: expected a number above 0, got 0.0"),
        ({"hold": float("nan")}, "hold: expected 0 or more, got nan"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"people": 1}, "people: expected at least 2, got 1"),
        ({"part": "tail"}, "part: expected one of head, neck, got 'tail'"),
        ({"norm": "auto"}, "norm: expected one of frozen, train, got 'auto'"),
    ],
)
def test_impossible_settings(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**given)  # type: ignore[arg-type]
