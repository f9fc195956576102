import pytest
import torch
from torch.nn import functional

from detector.csp import ConvBlock, CSPBackbone, Focus, PathAggregation, SpatialPyramidPooling, spatial_block


def test_focus_stacks_the_four_pixels_of_each_block() -> None:
    focus = Focus(4)
    seen = []
    focus.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    assert focus.eval()(image).shape == (2, 4, 2, 3)
    for k, (dy, dx) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        for y in range(2):
            for x in range(3):
                assert torch.equal(seen[0][:, 3 * k : 3 * k + 3, y, x], image[:, :, 2 * y + dy, 2 * x + dx])


def test_pooling_is_that_of_5_9_and_13_cells() -> None:
    pooling = SpatialPyramidPooling(8).eval()
    seen = []
    pooling.merge.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 8, 15, 14, generator=torch.Generator().manual_seed(0))
    assert pooling(x).shape == x.shape
    reduced = pooling.reduce(x)
    parts = [reduced, *(functional.max_pool2d(reduced, k, 1, k // 2) for k in (5, 9, 13))]
    assert torch.equal(seen[0], torch.cat(parts, dim=1))


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_block_is_convolution_norm_silu(stride: int) -> None:
    block = ConvBlock(3, 5, 3, stride).eval()
    x = torch.randn(2, 3, 8, 8)
    wanted = block.conv(x) / (1 + 1e-3) ** 0.5
    assert torch.allclose(block(x), wanted * wanted.sigmoid(), atol=1e-6)
    assert block(x).shape == (2, 5, 8 // stride, 8 // stride)


def test_depthwise_block_has_few_weights() -> None:
    def weights(depthwise: bool) -> int:
        return sum(p.numel() for p in spatial_block(32, 32, depthwise=depthwise).parameters() if p.ndim == 4)

    assert weights(False) == 32 * 32 * 9
    assert weights(True) == 32 * 9 + 32 * 32


def test_pyramid_keeps_the_shapes_of_the_backbone() -> None:
    backbone = CSPBackbone(8, 1, depthwise=True).eval()
    pyramid = PathAggregation(backbone.channels, 1, depthwise=True).eval()
    fine, *maps = backbone(torch.zeros(1, 3, 64, 96))
    assert fine.shape == (1, 16, 16, 24)
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 8, 12), (64, 4, 6), (128, 2, 3)]
    assert [m.shape for m in pyramid(maps)] == [m.shape for m in maps]


def test_every_level_of_the_pyramid_sees_every_level_of_the_backbone() -> None:
    torch.manual_seed(0)
    pyramid = PathAggregation((16, 32, 64), 1, depthwise=False).eval()
    maps = [torch.randn(1, 16 << i, 8 >> i, 8 >> i, requires_grad=True) for i in range(3)]
    for level in pyramid(maps):
        gradients = torch.autograd.grad(level.square().sum(), maps, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in gradients)
