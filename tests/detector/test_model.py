import pytest
import torch

from detector import JDE, ModelConfig
from detector.model import sample_boxes
from detector.priors import Picks
from tests.detector.scenes import lively_model


@pytest.mark.parametrize(("size", "width"), [("nano", 16), ("tiny", 24), ("s", 32), ("m", 48)])
def test_every_size_runs(size: str, width: int) -> None:
    model = JDE(ModelConfig(size=size, embedding_dim=8)).eval()
    with torch.no_grad():
        raw, features = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(r.shape) for r in raw] == [(1, 6, 8, 12), (1, 6, 4, 6), (1, 6, 2, 3)]
    assert [f.shape[1] for f in features] == [width * times for times in (2, 4, 4, 8, 8, 16, 16)]
    assert features[0].shape[2:] == (16, 24)
    assert [f.shape[2:] for f in features[1:]] == [r.shape[2:] for r in raw for _ in range(2)]


def test_larger_sizes_are_larger() -> None:
    counts = [sum(p.numel() for p in JDE(ModelConfig(size=s)).parameters()) for s in ("nano", "tiny", "s", "m")]
    assert counts == sorted(counts)
    assert counts[0] < 4e6  # float16 in less than 8 MB


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "xl"}, r"size: expected one of \['m', 'nano', 's', 'tiny'\], got 'xl'"),
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"embedding_dim": -1}, "embedding_dim: expected 0 or more, got -1"),
    ],
)
def test_impossible_configurations(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**given)


def test_starts_with_everything_improbable() -> None:
    with torch.no_grad():
        raw, _ = JDE().eval()(torch.zeros(1, 3, 64, 64))
    for level in raw:
        assert level[:, 4:].sigmoid().max() < 0.05


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one() -> None:
    model = lively_model()
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255
    together = model(images)
    for i in range(3):
        alone = model(images[i : i + 1])
        for maps, single in zip(together, alone, strict=True):
            for a, b in zip(maps, single, strict=True):
                assert torch.allclose(a[i], b[0], atol=1e-4)


def picks(level: torch.Tensor, boxes: torch.Tensor, image: torch.Tensor) -> Picks:
    """Cells are nothing to this family: it embeds what lies under the box."""
    return Picks(image, level, torch.full((len(boxes), 2), -7), boxes)


def boxes_of_all_levels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels, boxes and images of seven people, mixed."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(7, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 8 + torch.rand(7, 2, generator=generator) * 30), dim=1)
    return torch.tensor([2, 0, 1, 0, 2, 1, 0]), boxes, torch.tensor([1, 0, 0, 1, 0, 1, 0])


@torch.no_grad()
def test_embeddings_are_unit_rows_in_the_order_of_the_boxes() -> None:
    model = lively_model(embedding_dim=16)
    _, features = model(torch.rand(2, 3, 64, 96) * 255)
    levels, boxes, images = boxes_of_all_levels()
    together = model.embed(features, picks(levels, boxes, images))
    assert together.shape == (7, 16)
    assert torch.allclose(together.norm(dim=1), torch.ones(7), atol=1e-5)
    for i in range(7):
        alone = model.embed(features, picks(levels[i : i + 1], boxes[i : i + 1], images[i : i + 1]))
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    near = together[levels == 0]
    assert (near @ near.T).fill_diagonal_(0).max() < 0.999  # people differ


@torch.no_grad()
def test_the_head_sees_the_boxes_given_and_nothing_else() -> None:
    model = lively_model(embedding_dim=16)
    seen = []
    model.embedding_head.register_forward_pre_hook(
        lambda module, args: seen.append(([tuple(p.shape) for p in args[0]], tuple(args[1].shape)))
    )
    _, features = model(torch.rand(2, 3, 64, 96))
    assert seen == []  # looking at the image embeds nobody
    levels, boxes, images = boxes_of_all_levels()
    few = levels != 1
    model.embed(features, picks(levels[few], boxes[few], images[few]))
    fine, *channels = [f.shape[1] for f in features]
    channels = [shallow + deep for shallow, deep in zip(channels[::2], channels[1::2], strict=True)]
    assert seen == [([(n, c, 8, 4) for n, c in zip((3, 0, 2), channels, strict=True)], (5, fine, 16, 8))]


@torch.no_grad()
def test_an_embedding_does_not_depend_on_pixels_far_away() -> None:
    """The patch is cut from the box, so the same features there give the same embedding."""
    model = lively_model(embedding_dim=16)
    _, features = model(torch.rand(1, 3, 128, 128) * 255)
    box, zero = torch.tensor([[8.0, 8, 40, 56]]), torch.tensor([0])
    before = model.embed(features, picks(zero, box, zero))
    features[0][..., 20:, 20:] += 5
    for own_level in features[1:3]:
        own_level[..., 10:, 10:] += 5
    for other_level in features[3:]:
        other_level += 5
    assert torch.equal(model.embed(features, picks(zero, box, zero)), before)
    for level, row, column in ((0, 12, 8), (1, 5, 4), (2, 5, 4)):  # near the corner of the box
        features[level][..., row : row + 2, column] += 5
        after = model.embed(features, picks(zero, box, zero))
        assert not torch.allclose(after, before, atol=1e-3)
        before = after


@torch.no_grad()
def test_nobody_to_embed() -> None:
    model = lively_model(embedding_dim=16)
    _, features = model(torch.zeros(1, 3, 32, 32))
    none = torch.zeros(0, dtype=torch.int64)
    assert model.embed(features, picks(none, torch.zeros(0, 4), none)).shape == (0, 16)


def test_a_single_person_can_be_embedded_in_training() -> None:
    """Batch statistics of one row do not exist; those seen so far stand in, unchanged."""
    model = lively_model(embedding_dim=16)
    _, features = model(torch.rand(1, 3, 64, 64) * 255)
    zero, box = torch.tensor([0]), torch.tensor([[8.0, 8, 40, 56]])
    head = model.embedding_head
    before = head.norm.running_mean.clone()
    wanted = model.embed(features, picks(zero, box, zero))
    head.training = head.norm.training = True  # the other norms have many cells each, and would differ
    got = model.embed(features, picks(zero, box, zero))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.equal(head.norm.running_mean, before)
    got.sum().backward()
    assert head.project.weight.grad.abs().sum() > 0


def test_no_embedding_head_without_dimensions() -> None:
    model = JDE(ModelConfig(embedding_dim=0))
    assert not hasattr(model, "embedding_head")


@pytest.mark.parametrize(
    ("frame", "input_size", "canvas"),
    [
        ((480, 640), None, (640, 480, 1.0)),
        ((1080, 1920), None, (640, 384, 1 / 3)),
        ((1920, 1080), 320, (192, 320, 1 / 6)),
        ((50, 4000), 640, (640, 32, 0.16)),
    ],
)
def test_the_canvas_follows_the_frame(frame, input_size: int | None, canvas) -> None:
    width, height, ratio = canvas
    found = JDE(ModelConfig(embedding_dim=0)).canvas(*frame, input_size)
    assert found == (width, height, pytest.approx(ratio), False)


def test_scores_are_objectness_times_the_best_class() -> None:
    flat = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
    scores, labels = JDE(ModelConfig(num_classes=3, embedding_dim=0)).scores(flat)
    probability = flat[..., 4:].sigmoid()
    assert torch.equal(labels, flat[..., 5:].argmax(-1))
    assert torch.allclose(scores, probability[..., 0] * probability[..., 1:].amax(-1))


def test_sampling_boxes_takes_the_middle_of_each_cell() -> None:
    """A map that holds its own coordinates gives them back; cell (0, 0) has its middle at (0.5, 0.5)."""
    y, x = torch.meshgrid(torch.arange(12.0) + 0.5, torch.arange(20.0) + 0.5, indexing="ij")
    level_map = torch.stack((torch.stack((x, y)), torch.stack((x + 100, y))))
    boxes, image = torch.tensor([[2.0, 1, 10, 9], [4.3, 2.2, 7.1, 10.4]]), torch.tensor([0, 1])
    found = sample_boxes(level_map, boxes, image, (8, 4))
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for row in range(8):
            for column in range(4):
                middle = [x1 + (x2 - x1) * (column + 0.5) / 4 + 100 * i, y1 + (y2 - y1) * (row + 0.5) / 8]
                assert found[i, :, row, column].tolist() == pytest.approx(middle, abs=1e-4)
    assert sample_boxes(level_map, boxes + 50, image, (8, 4)).abs().max() == 0
    assert sample_boxes(level_map, boxes[:0], image[:0], (16, 8)).shape == (0, 2, 16, 8)
