import math

import pytest
import torch

from detector.assign import simota
from detector.priors import Priors, make_priors


def grid(height: int = 64, width: int = 96) -> Priors:
    return make_priors([torch.zeros(1, 6, height // s, width // s) for s in (8, 16, 32)], [[(1.0, 1.0)]] * 3)


def iou(a: list[float], b: list[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def oracle(cells, boxes, objectness, class_logits, targets, labels):
    """The assignment as the paper tells it, a pair at a time."""
    candidates, outside = [], {}
    for a in range(len(boxes)):
        stride = float(cells.stride[a])
        cx, cy = ((float(v) + 0.5) * stride for v in cells.xy[a])
        for g, (x1, y1, x2, y2) in enumerate(targets):
            in_box = x1 < cx < x2 and y1 < cy < y2
            in_centre = abs(cx - (x1 + x2) / 2) < 2.5 * stride and abs(cy - (y1 + y2) / 2) < 2.5 * stride
            outside[g, a] = (not in_box) + (not in_centre)
        if any(outside[g, a] < 2 for g in range(len(targets))):
            candidates.append(a)
    cost, chosen = {}, set()
    for g, target in enumerate(targets):
        for a in candidates:
            loss = 0.0
            for c, logit in enumerate(class_logits[a]):
                p = math.sqrt(sigmoid(logit) * sigmoid(objectness[a]))
                loss -= math.log(p if c == labels[g] else 1 - p)
            cost[g, a] = loss - 3 * math.log(iou(boxes[a], target) + 1e-8) + 1e5 * outside[g, a]
        best = sorted((iou(boxes[a], target) for a in candidates), reverse=True)[:10]
        wanted = max(int(sum(best)), 1)
        chosen |= {(g, a) for a in sorted(candidates, key=lambda a: cost[g, a])[:wanted]}
    matched = []
    for a in range(len(boxes)):
        owners = [g for g in range(len(targets)) if (g, a) in chosen]
        matched.append(min(owners, key=lambda g: cost[g, a]) if owners else -1)
    return matched, [iou(boxes[a], targets[g]) if g >= 0 else 0.0 for a, g in enumerate(matched)]


def random_boxes(count: int, generator: torch.Generator, least: float, most: float) -> torch.Tensor:
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([96.0, 64])
    half = (least + (most - least) * torch.rand(count, 2, generator=generator, dtype=torch.float64)) / 2
    return torch.cat((centre - half, centre + half), dim=1)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_oracle(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells = grid()
    count, classes = len(cells.xy), 1 + seed % 3
    targets = random_boxes(1 + seed % 6, generator, 3, 60)
    labels = torch.randint(classes, (len(targets),), generator=generator)
    # Every second cell predicts something near a person, the others anything.
    near = targets[torch.randint(len(targets), (count,), generator=generator)]
    near = near + 4 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    near = torch.cat((torch.minimum(near[:, :2], near[:, 2:]), torch.maximum(near[:, :2], near[:, 2:])), dim=1)
    boxes = torch.where((torch.arange(count) % 2 == 0)[:, None], near, random_boxes(count, generator, 4, 50))
    objectness = torch.randn(count, generator=generator, dtype=torch.float64)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    matched, overlap = simota(cells, boxes, objectness, logits, targets, labels)
    wanted, wanted_overlap = oracle(
        cells, boxes.tolist(), objectness.tolist(), logits.tolist(), targets.tolist(), labels.tolist()
    )
    assert matched.tolist() == wanted
    assert overlap.tolist() == pytest.approx(wanted_overlap, abs=1e-9)
    assert (matched >= 0).any()


def predictions(cells: Priors, size: float = 12.0) -> torch.Tensor:
    """Every cell predicts a square at its own centre."""
    centre = (cells.xy + 0.5) * cells.stride[:, None]
    return torch.cat((centre - size / 2, centre + size / 2), dim=1)


def assign(cells: Priors, boxes: torch.Tensor, targets: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    zeros = torch.zeros(len(boxes))
    rows = torch.tensor(targets).reshape(-1, 4)
    return simota(cells, boxes, zeros, zeros[:, None], rows, torch.zeros(len(rows), dtype=torch.int64))


def test_nobody() -> None:
    cells = grid()
    matched, overlap = assign(cells, predictions(cells), [])
    assert matched.dtype == torch.int64
    assert matched.tolist() == [-1] * len(cells.xy)
    assert overlap.sum() == 0


def test_a_person_smaller_than_a_cell_still_has_a_cell_beside_it() -> None:
    cells = grid()
    target = [41.0, 25.0, 43.0, 27.0]  # no centre of a cell lies inside
    matched, _ = assign(cells, predictions(cells), [target])
    taken = (matched == 0).nonzero()[:, 0]
    assert len(taken) >= 1
    centre = (cells.xy[taken] + 0.5) * cells.stride[taken, None]
    assert ((centre - torch.tensor([42.0, 26.0])).abs() < 2.5 * cells.stride[taken, None]).all()


def test_a_small_person_does_not_take_cells_of_someone_far_away() -> None:
    """Nothing overlaps the small one, and the cells at the large one score higher."""
    cells = grid(128, 128)
    boxes = torch.tensor([[100.0, 60, 128, 128]]).expand(len(cells.xy), 4).contiguous()
    small, large = [9.0, 9.0, 11.0, 11.0], [70.0, 30.0, 128.0, 128.0]
    objectness = torch.where(cells.xy[:, 0] * cells.stride > 60, 5.0, -5.0)
    matched, _ = simota(
        cells, boxes, objectness, objectness[:, None], torch.tensor([small, large]), torch.tensor([0, 0])
    )
    taken = matched == 0
    centre = (cells.xy[taken] + 0.5) * cells.stride[taken, None]
    assert taken.any()
    assert ((centre - 10).abs() < 2.5 * cells.stride[taken, None]).all()


def test_two_people_on_one_cell() -> None:
    """Both want the same few cells; each cell goes to one, the better fitting."""
    cells = grid()
    boxes = predictions(cells)
    a, b = [30.0, 22.0, 42.0, 34.0], [33.0, 22.0, 45.0, 34.0]
    matched, overlap = assign(cells, boxes, [a, b])
    for row in (matched >= 0).nonzero()[:, 0].tolist():
        pair = [iou(boxes[row].tolist(), a), iou(boxes[row].tolist(), b)]
        assert float(overlap[row]) == pytest.approx(pair[int(matched[row])], abs=1e-6)
    assert {0, 1} <= set(matched.tolist())


def test_at_most_ten_cells_and_at_least_one() -> None:
    cells = grid(128, 128)
    target = [40.0, 40.0, 88.0, 88.0]
    perfect = torch.tensor([target]).expand(len(cells.xy), 4)
    assert int((assign(cells, perfect, [target])[0] == 0).sum()) in (9, 10)  # the sum of ten ones may round down
    hopeless = torch.tensor([[0.0, 0, 1, 1]]).expand(len(cells.xy), 4)
    assert int((assign(cells, hopeless, [target])[0] == 0).sum()) == 1


def test_nothing_is_differentiated() -> None:
    cells = grid()
    boxes = predictions(cells).requires_grad_()
    _, overlap = assign(cells, boxes, [[20.0, 20, 40, 40]])
    assert not overlap.requires_grad
