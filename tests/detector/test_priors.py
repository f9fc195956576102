import math

import pytest
import torch

from detector.priors import MAX_LOG_SIZE, Picks, decode_boxes, encode_boxes, flatten, make_priors, rows_at

STRIDES = (8, 16, 32)
ONE = [[(1.0, 1.0)]] * 3
THREE = [
    [(1.0, 3.0), (2.5, 2.0), (4.0, 0.5)],
    [(1.5, 2.0), (3.0, 3.0), (0.5, 6.0)],
    [(1.0, 1.0), (2.0, 5.0), (7.0, 3.0)],
]
BOTH = pytest.mark.parametrize("sizes", [ONE, THREE], ids=["one prior", "three priors"])


def raw_maps(sizes, batch: int = 2, outputs: int = 6, height: int = 64, width: int = 96) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = outputs * len(sizes[0])
    return [torch.randn(batch, channels, height // s, width // s, generator=generator) for s in STRIDES]


def rows_of(raw: list[torch.Tensor], sizes, outputs: int = 6):
    """Every row as level, prior, grid row, grid column, in the order documented."""
    for level, output in enumerate(raw):
        for prior in range(len(sizes[level])):
            for y in range(output.shape[2]):
                for x in range(output.shape[3]):
                    own = output[:, prior * outputs : (prior + 1) * outputs, y, x]
                    yield level, sizes[level][prior], y, x, own


@BOTH
def test_rows_decoding_and_picks_equal_a_loop(sizes) -> None:
    raw = raw_maps(sizes)
    priors, flat = make_priors(raw, sizes), flatten(raw, len(sizes[0]))
    rows = list(rows_of(raw, sizes))
    assert flat.shape == (2, len(rows), 6)
    assert len(rows) == (8 * 12 + 4 * 6 + 2 * 3) * len(sizes[0])
    assert priors.xyxy.shape == (len(rows), 4)
    boxes = decode_boxes(flat[..., :4], priors)
    wanted = []
    for i, (level, (w, h), y, x, own) in enumerate(rows):
        stride = STRIDES[level]
        assert torch.equal(flat[:, i], own)
        assert priors.xy[i].tolist() == [x, y]
        assert priors.size[i].tolist() == [w, h]
        assert (int(priors.level[i]), float(priors.stride[i])) == (level, stride)
        corners = ((x - w / 2) * stride, (y - h / 2) * stride, (x + w / 2) * stride, (y + h / 2) * stride)
        assert priors.xyxy[i].tolist() == list(corners)
        for dx, dy, dw, dh in own[:, :4].tolist():
            cx, cy = (x + w * dx) * stride, (y + h * dy) * stride
            half = w * math.exp(dw) * stride / 2, h * math.exp(dh) * stride / 2
            wanted.append([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
    assert torch.allclose(boxes.transpose(0, 1).reshape(-1, 4), torch.tensor(wanted), atol=2e-3, rtol=1e-5)

    some = torch.tensor([len(rows) - 1, 0, len(rows) // 2])
    picks = Picks.of(priors, some, torch.tensor([1, 0, 1]), boxes[0, some])
    assert picks.level.tolist() == [rows[i][0] for i in some.tolist()]
    assert picks.xy.tolist() == [[rows[i][3], rows[i][2]] for i in some.tolist()]
    assert picks.xy.dtype == torch.int64
    part = priors[some]
    assert torch.equal(part.xyxy, priors.xyxy[some])
    assert torch.equal(decode_boxes(flat[:, some, :4], part), boxes[:, some])


@BOTH
def test_encoding_undoes_decoding(sizes) -> None:
    raw = raw_maps(sizes, batch=1)
    priors, codes = make_priors(raw, sizes), flatten(raw, len(sizes[0]))[0, :, :4]
    assert torch.allclose(encode_boxes(decode_boxes(codes, priors), priors), codes, atol=1e-4)
    assert torch.allclose(encode_boxes(priors.xyxy, priors), torch.zeros(len(codes), 4), atol=1e-6)
    boxes = torch.tensor([[-20.0, 3, 700, 4], [10, 10, 10.5, 10.5]]).repeat(len(codes) // 2, 1)
    assert torch.allclose(decode_boxes(encode_boxes(boxes, priors), priors), boxes, atol=1e-2)


@pytest.mark.parametrize("value", [1000.0, -1000.0])
def test_a_wild_code_stays_finite_and_so_does_its_gradient(value: float) -> None:
    raw = [torch.full_like(m, value) for m in raw_maps(THREE)]
    codes = flatten(raw, 3)[..., :4].requires_grad_()
    boxes = decode_boxes(codes, make_priors(raw, THREE))
    boxes.sum().backward()
    assert boxes.isfinite().all()
    assert codes.grad.isfinite().all()
    assert (boxes[..., 2] - boxes[..., 0]).max() <= math.exp(MAX_LOG_SIZE) * 7 * 32 * 1.001


@BOTH
def test_the_rows_at_a_point(sizes) -> None:
    raw = raw_maps(sizes)
    points = torch.tensor([[0.0, 0.0], [17.9, 40.0], [95.9, 63.9], [-30.0, 900.0]])
    found = rows_at(points, raw, len(sizes[0]))
    rows = list(rows_of(raw, sizes))
    assert found.shape == (4, 3 * len(sizes[0]))
    for (px, py), own in zip(points.tolist(), found.tolist(), strict=True):
        wanted = []
        for i, (level, _, y, x, _) in enumerate(rows):
            stride = STRIDES[level]
            cell = [min(max(int(p // stride), 0), side // stride - 1) for p, side in ((px, 96), (py, 64))]
            if [x, y] == cell:
                wanted.append(i)
        assert own == wanted


def test_half_precision_maps_become_full() -> None:
    raw = [m.bfloat16() for m in raw_maps(ONE)]
    assert flatten(raw, 1).dtype == make_priors(raw, ONE).xy.dtype == torch.float32
