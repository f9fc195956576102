import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from detector import Detector, DetectorConfig
from detector.csp import ConvBlock
from detector.darknet import PUBLISHED_ANCHORS, RESIDUALS, Darknet53, DarknetConfig, DarknetJDE
from detector.engine import dense_forward, fused
from detector.priors import Picks, rows_at
from tests.detector.scenes import drawn, extent, lively_darknet, noise


@pytest.fixture(scope="module")
def model() -> DarknetJDE:
    return lively_darknet(width=0.25)


def images(batch: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255


@torch.no_grad()
def test_shapes(model: DarknetJDE) -> None:
    raw, features = model(images())
    assert [tuple(r.shape) for r in raw] == [(2, 24, 8, 12), (2, 24, 4, 6), (2, 24, 2, 3)]
    assert [tuple(f.shape) for f in features] == [(2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
    rows = 4 * (8 * 12 + 4 * 6 + 2 * 3)
    flat, priors = model.flatten(raw), model.priors(raw)
    assert flat.shape == (2, rows, 6)
    assert len(priors.xy) == rows
    assert priors.level.bincount().tolist() == [384, 96, 24]


@pytest.mark.parametrize("size", PUBLISHED_ANCHORS)
def test_priors_are_the_anchors_in_pixels(size: tuple[int, int]) -> None:
    model = DarknetJDE(DarknetConfig(width=1 / 16, embedding_dim=0, input_size=size))
    raw = [torch.zeros(1, 24, 4 // f, 8 // f) for f in (1, 2, 4)]
    priors = model.priors(raw)
    published = np.array(PUBLISHED_ANCHORS[size]).reshape(3, 4, 2)
    first = 0
    for level, cells in enumerate((32, 8, 2)):
        for anchor in range(4):
            boxes = priors.xyxy[first : first + cells]
            assert torch.allclose(boxes[:, 2:] - boxes[:, :2], torch.tensor(published[level, anchor]).float())
            middle = (boxes[:, 2:] + boxes[:, :2]) / 2 / (8 << level)
            assert torch.allclose(middle, middle.round(), atol=1e-5)  # on the integer cell, no half added
            first += cells


def test_the_network_is_darknet_53() -> None:
    backbone = Darknet53(2)
    blocks = [m for m in backbone.modules() if isinstance(m, ConvBlock)]
    assert len(blocks) == 52 == 1 + sum(1 + 2 * n for n in RESIDUALS)
    assert all((b.norm.eps, b.norm.momentum) == (1e-5, 0.1) for b in blocks)
    x = torch.randn(1, 3, 8, 8)
    block = blocks[0].eval()
    assert torch.allclose(block(x), functional.leaky_relu(block.norm(block.conv(x)), 0.1), atol=1e-6)
    residual = backbone.stages[0][1].eval()
    x = torch.randn(1, 4, 8, 8)
    assert torch.allclose(residual(x), x + residual.expand(residual.reduce(x)), atol=1e-6)


@torch.no_grad()
def test_images_are_bgr_bytes_and_the_network_reads_rgb_fractions(model: DarknetJDE) -> None:
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    given = images()
    model(given)
    hook.remove()
    assert torch.allclose(seen[0], given.flip(1) / 255)


@torch.no_grad()
def test_embeddings_equal_the_full_maps_at_the_cells(model: DarknetJDE) -> None:
    raw, features = model(images())
    priors = model.priors(raw)
    everyone = torch.randperm(2 * len(priors.xy), generator=torch.Generator().manual_seed(1))
    image, rows = everyone % 2, everyone // 2
    found = model.embed(features, Picks.of(priors, rows, image, torch.zeros(len(rows), 4)))
    assert found.shape == (len(rows), 16)
    dense = [functional.normalize(level.embedding(f)) for level, f in zip(model.levels, features, strict=True)]
    for i, (b, row) in enumerate(zip(image.tolist(), rows.tolist(), strict=True)):
        x, y = priors.xy[row].long().tolist()
        assert torch.allclose(found[i], dense[int(priors.level[row])][b, :, y, x], atol=1e-5)
    one_level = (priors.level == 1).nonzero()[:, 0][:3]
    some = model.embed(features, Picks.of(priors, one_level, torch.ones(3).long(), torch.zeros(3, 4)))
    assert torch.allclose(some.norm(dim=1), torch.ones(3), atol=1e-5)
    none = torch.zeros(0, dtype=torch.int64)
    assert model.embed(features, Picks.of(priors, none, none, torch.zeros(0, 4))).shape == (0, 16)


def test_gradients_of_the_gathered_embeddings_are_those_of_the_full_map(model: DarknetJDE) -> None:
    features = [f.detach().requires_grad_() for f in model(images(1))[1]]
    raw = [torch.zeros(1, 24, *f.shape[2:]) for f in features]
    priors = model.priors(raw)
    rows = torch.tensor([0, 400, 500, 3])
    picks = Picks.of(priors, rows, torch.zeros(4).long(), torch.zeros(4, 4))
    weights = [level.embedding.weight for level in model.levels]
    ours = torch.autograd.grad(model.embed(features, picks)[:, 0].sum(), [*features, *weights])
    total = torch.zeros(())
    for row in rows.tolist():
        x, y = priors.xy[row].long().tolist()
        level = int(priors.level[row])
        total = total + functional.normalize(model.levels[level].embedding(features[level]))[0, 0, y, x]
    for a, b in zip(ours, torch.autograd.grad(total, [*features, *weights]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_scores_are_the_softmax_of_the_foreground(model: DarknetJDE) -> None:
    flat = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0)) * 5
    scores, labels = model.scores(flat)
    assert torch.allclose(scores, flat[..., 4:].softmax(-1)[..., 1], atol=1e-6)
    assert labels.tolist() == [[0] * 7] * 2


def test_a_random_start_believes_in_no_one() -> None:
    torch.manual_seed(0)
    model = DarknetJDE(DarknetConfig(width=1 / 8, embedding_dim=0)).eval()
    with torch.no_grad():
        scores = model.scores(model.flatten(model(images())[0]))[0]
    assert 0.003 < scores.mean() < 0.03
    assert not any("embedding" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("own", "input_size", "canvas"),
    [
        ((1088, 608), None, (1088, 608)),
        ((576, 320), None, (576, 320)),
        ((1088, 608), 1088, (1088, 608)),
        ((1088, 608), 864, (864, 480)),
        ((1088, 608), 576, (576, 320)),
        ((576, 320), 1088, (1088, 576)),
        ((1088, 608), 32, (32, 32)),
    ],
)
def test_the_canvas_is_the_same_for_every_frame(own, input_size: int | None, canvas: tuple[int, int]) -> None:
    model = DarknetJDE(DarknetConfig(width=1 / 16, embedding_dim=0, input_size=own))
    for height, width in ((720, 1280), (1280, 720), (100, 100), (1, 500)):
        found = model.canvas(height, width, input_size)
        assert found[:2] == canvas
        assert found.ratio == pytest.approx(min(canvas[0] / width, canvas[1] / height))
        assert found.centred


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 0}, r"width: expected a number in \(0, 4\], got 0"),
        ({"embedding_dim": -1}, "embedding_dim: expected 0 or more, got -1"),
        ({"input_size": (1088, 600)}, r"input_size: expected positive multiples of 32, got \(1088, 600\)"),
        ({"input_size": (1088,)}, r"input_size: expected width and height"),
        ({"anchors": (8, 24, 16, 48)}, "anchors: expected pairs of positive numbers"),
        ({"anchors": (8, 24, 16, 48, 0, 5)}, "anchors: expected pairs of positive numbers"),
    ],
)
def test_impossible_configurations(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DarknetConfig(**given)


def test_anchors_given_published_or_scaled() -> None:
    assert DarknetConfig().anchor_levels[0] == [(8, 24), (11, 34), (16, 48), (23, 68)]
    assert DarknetConfig(input_size=(576, 320)).anchor_levels[2][3] == (340, 320)
    assert DarknetConfig(input_size=(544, 320)).anchor_levels[1] == [(16, 48), (22.5, 67.5), (32, 96), (45, 135.5)]
    own = DarknetConfig(anchors=(8, 24, 32, 96, 128, 384))
    assert own.anchor_levels == [[(8, 24)], [(32, 96)], [(128, 384)]]
    raw, _ = DarknetJDE(DarknetConfig(width=1 / 16, embedding_dim=0, anchors=own.anchors))(images(1))
    assert [r.shape[1] for r in raw] == [6, 6, 6]


# --- as a detector


CONFIG = DetectorConfig(score_thresh=0.5, precision="fp32")


@pytest.fixture(scope="module")
def detector(model: DarknetJDE) -> Detector:
    return Detector(model, "cpu", CONFIG)


def test_both_engines_give_the_same_maps(model: DarknetJDE, detector: Detector) -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.model.modules())
    by_torch = dense_forward(detector.model, torch.device("cpu"), "torch")
    by_onnxruntime = dense_forward(fused(model), torch.device("cpu"), "onnxruntime")
    for shape in ((1, 64, 96), (3, 96, 64)):
        frames = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            plain = model(frames.permute(0, 3, 1, 2).float())
            for found in (by_torch(frames), by_onnxruntime(frames)):
                for maps, others in zip(plain, found, strict=True):
                    for a, b in zip(maps, others, strict=True):
                        torch.testing.assert_close(a, b, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(192, 108), (108, 192)], ids=["landscape", "portrait"])
def test_both_engines_find_the_same_people(model: DarknetJDE, detector: Detector, size: tuple[int, int]) -> None:
    frame = noise(size[1], size[0])
    other = Detector(model, "cpu", DetectorConfig(score_thresh=0.5, engine="onnxruntime"))([frame])[0]
    found = detector([frame])[0]
    assert len(found["boxes"]) > 5
    for name in found:
        np.testing.assert_allclose(found[name], other[name], atol=2e-3, err_msg=name)


class Outline:
    """A network that finds one person: the bright pixels of the only image, box and all."""

    def __init__(self, family: DarknetJDE) -> None:
        self.family = family

    def __call__(self, frames: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        height, width = frames.shape[1:3]
        raw = [torch.full((1, 24, height // s, width // s), -9.0) for s in (8, 16, 32)]
        for level in raw:
            level[:, 4::6] = 9
        x1, y1, x2, y2 = extent(frames[0, ..., 0].numpy() > 200)
        pw, ph = self.family.anchors[0][0]
        x, y = int((x1 + x2) / 16), int((y1 + y2) / 16)
        code = [((x1 + x2) / 2 - 8 * x) / pw, ((y1 + y2) / 2 - 8 * y) / ph]
        code += [np.log((x2 - x1) / pw), np.log((y2 - y1) / ph)]
        raw[0][0, :6, y, x] = torch.tensor([*code, -9.0, 9.0])
        return raw, [torch.ones(1, r, *m.shape[2:]) for r, m in zip((32, 64, 128), raw, strict=True)]


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (333, 200), (96, 64), (40, 30)])
def test_boxes_come_back_in_pixels_of_the_frame(model: DarknetJDE, width: int, height: int) -> None:
    detector = Detector(model, "cpu", DetectorConfig(engine="torch"))
    detector._forward = Outline(detector.model)  # type: ignore[assignment]
    box = (width // 4, height // 5, width // 4 + width // 3, height // 5 + height // 2)
    found = detector([drawn(width, height, box)])[0]
    scale = min(96 / width, 64 / height)
    assert found["boxes"].shape == (1, 4)
    assert np.abs(found["boxes"][0] - box).max() <= 1 / min(scale, 1)


def test_known_boxes_are_described_as_their_detections(model: DarknetJDE, detector: Detector) -> None:
    """Where the surest prior at a detection's centre stands in the cell that found it, embeddings agree."""
    for frame in (noise(108, 192), noise(192, 108)):
        found = detector([frame])[0]
        again = detector.embed(frame, found["boxes"])
        pixels, scale, place = detector._letterbox([frame])
        with torch.inference_mode():
            raw, _ = detector._forward(torch.from_numpy(pixels))
        flat, priors = model.flatten(raw)[0], model.priors(raw)
        scores = model.scores(flat)[0]
        same = 0
        for i, box in enumerate(found["boxes"] * np.array(scale * 2) + np.array(place * 2)):
            centre = torch.tensor([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])
            rows = rows_at(centre.float(), raw, 4)[0]
            surest = rows[scores[rows].argmax()]
            finder = (scores - float(found["scores"][i])).abs().argmin()
            if priors.level[surest] == priors.level[finder] and torch.equal(priors.xy[surest], priors.xy[finder]):
                same += 1
                np.testing.assert_allclose(again[i], found["embeddings"][i], atol=1e-3)
        assert same >= 3
        order = np.arange(len(again))[::-1]
        np.testing.assert_allclose(detector.embed(frame, found["boxes"][order]), again[order], atol=1e-5)


def test_frames_of_mixed_sizes_equal_one_by_one(detector: Detector) -> None:
    frames = [noise(108, 192, 1), noise(192, 108, 2), noise(108, 192, 3)]
    for frame, found in zip(frames, detector(frames), strict=True):
        alone = detector([frame])[0]
        assert len(found["scores"])
        for name in found:
            np.testing.assert_allclose(found[name], alone[name], atol=2e-3)


def test_suppression_is_the_familys_own(model: DarknetJDE) -> None:
    def count(nms_thresh: float | None) -> int:
        config = DetectorConfig(score_thresh=0.5, nms_thresh=nms_thresh, max_detections=5000, engine="torch")
        return len(Detector(model, "cpu", config)([noise(108, 192)])[0]["boxes"])

    assert count(None) == count(0.4) < count(0.65)
