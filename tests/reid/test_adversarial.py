import pytest
import torch
from torch import nn
from torch.nn import functional

from reid.adversarial import perturb
from reid.losses import ReidCriterion, ReidLossConfig
from reid.transforms import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    return (images * STD + MEAN) * 255


def normalised(levels: torch.Tensor) -> torch.Tensor:
    return (levels / 255 - MEAN) / STD


@pytest.fixture
def images() -> torch.Tensor:
    return normalised(torch.randint(256, (6, 3, 16, 8), generator=torch.Generator().manual_seed(0)).float())


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 14 * 6, 3))
    made = nn.Sequential(*layers)
    made(torch.randn(16, 3, 16, 8))  # some running statistics
    return made.train()


def classification(encoder: nn.Module):
    return lambda images: functional.cross_entropy(encoder(images), LABELS)


def test_the_loss_rises(encoder: nn.Module, images: torch.Tensor) -> None:
    loss = classification(encoder)
    changed = perturb(encoder, loss, images, 4.0)
    encoder.eval()
    with torch.no_grad():
        before, after = loss(images), loss(changed)
        sign = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
        by_chance = loss(normalised((grey_levels(images) + 4 * sign).clamp(0, 255)))
    assert after > 1.15 * before
    assert by_chance < 1.03 * before


def test_values_change_by_epsilon_and_stay_in_range(encoder: nn.Module, images: torch.Tensor) -> None:
    for epsilon in (0.5, 4.0, 40.0):
        changed = perturb(encoder, classification(encoder), images, epsilon)
        levels, start = grey_levels(changed), grey_levels(images)
        assert levels.min() > -1e-3
        assert levels.max() < 255 + 1e-3
        change = (levels - start).abs()
        assert change.max() < epsilon + 1e-3
        free = (start >= epsilon) & (start <= 255 - epsilon)
        full = (change[free] - epsilon).abs() < 1e-3
        assert full.float().mean() > 0.99
        assert (change[free][~full] < 1e-3).all()  # where nothing depends on a value
        assert (changed - images).reshape(6, 3, -1).abs().amax((0, 2)) == pytest.approx(
            epsilon / 255 / STD.flatten(), rel=1e-4
        )


def test_the_sign_is_that_of_the_slope() -> None:
    """A linear loss: its weights' signs, and nothing where a weight is zero."""
    weights = torch.tensor([2.0, 0.0, -1e-6])[:, None, None].expand(3, 2, 2)
    images = torch.zeros(1, 3, 2, 2)
    changed = perturb(nn.Identity(), lambda x: (x * weights).sum(), images, 3.0)
    wanted = torch.tensor([3.0, 0.0, -3.0])[:, None, None] / 255 / STD
    torch.testing.assert_close(changed, wanted.expand(1, 3, 2, 2))


def test_the_encoder_is_left_alone(encoder: nn.Module, images: torch.Tensor) -> None:
    encoder[4].eval()
    modes = [part.training for part in encoder.modules()]
    classification(encoder)(images).backward()
    slopes = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    given = images.clone().requires_grad_()
    changed = perturb(encoder, classification(encoder), given, 4.0)
    assert all(torch.equal(p.grad, slopes[name]) for name, p in encoder.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert [part.training for part in encoder.modules()] == modes
    assert all(p.requires_grad for p in encoder.parameters())
    assert given.grad is None
    assert torch.equal(given, images)
    assert not changed.requires_grad
    assert torch.equal(changed, perturb(encoder, classification(encoder), images, 4.0))  # no dropout in it


def test_modes_are_put_back_after_a_failure(encoder: nn.Module, images: torch.Tensor) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        assert not encoder.training
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        perturb(encoder, broken, images, 4.0)
    assert all(part.training for part in encoder.modules())


def test_half_precision_does_not_hide_small_slopes(encoder: nn.Module, images: torch.Tensor) -> None:
    def faint(images: torch.Tensor) -> torch.Tensor:
        return 1e-9 * classification(encoder)(images)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = perturb(encoder, faint, images, 4.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, perturb(encoder, classification(encoder), images, 4.0))
    assert perturb(encoder, faint, images.bfloat16(), 4.0).dtype == torch.bfloat16


def test_training_on_perturbed_crops_makes_them_harmless(encoder: nn.Module, images: torch.Tensor) -> None:
    """As the training does it, with the criterion's cross-entropy."""
    criterion = ReidCriterion(ReidLossConfig(label_smoothing=0.0), 3, (3, 3))

    def loss(images: torch.Tensor) -> torch.Tensor:
        features = encoder(images).unsqueeze(1)
        return criterion(features, features, LABELS)["cross_entropy"]

    optimizer = torch.optim.Adam((*encoder.parameters(), *criterion.parameters()), 0.003)
    history = []
    for _ in range(60):
        changed = perturb(encoder, loss, images, 8.0)
        optimizer.zero_grad()
        attacked = loss(changed)
        (loss(images) + attacked).backward()
        optimizer.step()
        history.append(attacked.item())
    assert min(history[-5:]) < 0.3 * history[0]


@pytest.mark.parametrize("epsilon", [-1.0, 256.0, float("nan")])
def test_epsilon_is_in_grey_levels(encoder: nn.Module, images: torch.Tensor, epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon: expected grey levels of 0 to 255, got"):
        perturb(encoder, classification(encoder), images, epsilon)
