import math

import pytest
import torch
from torchvision.ops import nms

from detector.postprocess import MAX_CANDIDATES, postprocess
from detector.priors import Picks, decode_boxes
from tests.detector.scenes import lively_model


def raw_maps(batch: int = 1, classes: int = 1, height: int = 64, width: int = 96, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 5 + classes, height // s, width // s, generator=generator) for s in (8, 16, 32)]


def rows_of(raw: list[torch.Tensor], image: int) -> list[tuple[list[float], float, int, int]]:
    """Box, score, label and level of every cell, one at a time."""
    rows = []
    for level, (stride, output) in enumerate(zip((8, 16, 32), raw, strict=True)):
        for y in range(output.shape[2]):
            for x in range(output.shape[3]):
                dx, dy, w, h, objectness, *classes = output[image, :, y, x].tolist()
                cx, cy = (x + dx) * stride, (y + dy) * stride
                w, h = math.exp(w) * stride, math.exp(h) * stride
                label = max(range(len(classes)), key=classes.__getitem__)
                score = 1 / (1 + math.exp(-objectness)) / (1 + math.exp(-classes[label]))
                rows.append(([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], score, label, level))
    return rows


def survivors(rows, score_thresh: float, nms_thresh: float):
    """Greedy suppression, class by class, best first."""
    kept = []
    for box, score, label, _ in sorted((r for r in rows if r[1] >= score_thresh), key=lambda r: -r[1]):
        for other, _, its_label in kept:
            w = min(box[2], other[2]) - max(box[0], other[0])
            h = min(box[3], other[3]) - max(box[1], other[1])
            overlap = max(w, 0) * max(h, 0)
            union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - overlap
            if label == its_label and overlap / union > nms_thresh:
                break
        else:
            kept.append((box, score, label))
    return kept


@pytest.mark.parametrize("classes", [1, 3])
def test_survivors_equal_a_loop(classes: int) -> None:
    model = lively_model(embedding_dim=0, num_classes=classes)
    raw = raw_maps(2, classes)
    for level in raw:
        level[:, 2:4] += 0.7  # large boxes overlap
    found = postprocess(model, raw, [], 0.3, 0.4, 300)
    for image in range(2):
        wanted = survivors(rows_of(raw, image), 0.3, 0.4)
        everyone = sum(row[1] >= 0.3 for row in rows_of(raw, image))
        assert 3 < len(wanted) < everyone  # something was suppressed
        assert found[image]["scores"].tolist() == pytest.approx([w[1] for w in wanted], abs=1e-6)
        assert found[image]["labels"].tolist() == [w[2] for w in wanted]
        assert torch.allclose(found[image]["boxes"], torch.tensor([w[0] for w in wanted]), atol=1e-3)
        assert "embeddings" not in found[image]


def test_the_threshold_itself_is_reported() -> None:
    raw = [torch.full_like(m, -20.0) for m in raw_maps()]
    raw[0][0, :4, 2, 3] = 0
    raw[0][0, 4:, 2, 3] = 0  # 0.5 times 0.5
    model = lively_model(embedding_dim=0)
    assert postprocess(model, raw, [], 0.25, 0.5, 10)[0]["boxes"].tolist() == [[20, 12, 28, 20]]
    assert len(postprocess(model, raw, [], 0.2501, 0.5, 10)[0]["boxes"]) == 0


def test_the_best_are_kept_when_there_are_too_many() -> None:
    model = lively_model(embedding_dim=0)
    raw = raw_maps()
    everyone = postprocess(model, raw, [], 0.1, 0.9, 300)[0]["scores"]
    assert len(everyone) > 20
    assert torch.equal(postprocess(model, raw, [], 0.1, 0.9, 20)[0]["scores"], everyone[:20])


def test_suppression_looks_at_the_best_candidates_only() -> None:
    raw = raw_maps(1, 1, 256, 320)
    model = lively_model(embedding_dim=0)
    flat = model.flatten(raw)[0]
    scores = flat[:, 4].sigmoid() * flat[:, 5].sigmoid()
    assert len(scores) > MAX_CANDIDATES
    best = scores.topk(MAX_CANDIDATES).indices
    boxes = decode_boxes(flat[:, :4], model.priors(raw))[best]
    wanted = scores[best][nms(boxes, scores[best], 0.99)]
    found = postprocess(model, raw, [], 0.0, 0.99, 10_000)[0]["scores"]
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_embeddings_are_computed_for_survivors_alone() -> None:
    model = lively_model(embedding_dim=16)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    _, features = model(images)
    raw = raw_maps(2)
    counts: list[int] = []
    model.embedding_head.register_forward_pre_hook(lambda module, args: counts.extend(len(p) for p in args[0]))
    found = postprocess(model, raw, features, 0.3, 0.4, 8)
    kept = [(box, score) for f in found for box, score in zip(f["boxes"], f["scores"], strict=True)]
    assert [len(f["boxes"]) for f in found] == [8, 8]
    assert sum(counts) == 16
    assert sum(c > 0 for c in counts) >= 2  # rows of several levels are mixed below
    everyone = [row for image in range(2) for row in rows_of(raw, image)]
    levels = [min(everyone, key=lambda row: abs(row[1] - float(score)))[3] for _, score in kept]
    for i, level in enumerate(levels):
        image = i // 8
        pick = Picks(torch.tensor([image]), torch.tensor([level]), torch.zeros(1, 2).long(), kept[i][0][None])
        alone = model.embed(features, pick)
        assert torch.allclose(found[image]["embeddings"][i % 8], alone[0], atol=1e-5)


@torch.no_grad()
def test_nobody() -> None:
    model = lively_model(embedding_dim=16)
    _, features = model(torch.zeros(3, 3, 64, 96))
    for found in postprocess(model, [m.clone() for m in raw_maps(3)], features, 1.0, 0.5, 10):
        assert {k: tuple(v.shape) for k, v in found.items()} == {
            "boxes": (0, 4),
            "scores": (0,),
            "labels": (0,),
            "embeddings": (0, 16),
        }
