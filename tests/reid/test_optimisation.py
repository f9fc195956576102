"""One optimiser step: rates, groups of parameters, losses that fall, numbers that are not finite."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reid.losses import ReidLossConfig
from reid.optimisation import average_statistics, make_optimizer, optimise, parameter_groups, rate_share, set_rates
from reid.training import TrainConfig
from tests.reid.steps import batch, small

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def test_rates_warm_up_then_step():
    config = TrainConfig(schedule="step", milestones=(0.5, 0.75))
    shares = [rate_share(step, 40, 4, config) for step in range(40)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1, 1] and shares[19:21] == [1, pytest.approx(0.1)]
    assert shares[30:] == pytest.approx([0.01] * 10)
    assert rate_share(9, 40, 1000, config) == 1  # warm-up takes a quarter at most


def test_rates_along_a_cosine():
    config = TrainConfig(schedule="cosine")
    shares = [rate_share(step, 100, 0, config) for step in range(101)]
    assert shares[0] == 1 and shares[100] == pytest.approx(0.01)
    assert shares[50] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert np.all(np.diff(shares) < 0)


@pytest.mark.parametrize(("pretrained", "share", "expected"), [(False, None, 1), (True, None, 0.1), (True, 0.5, 0.5)])
def test_groups(pretrained, share, expected):
    config = TrainConfig(lr=0.2, backbone_share=share, weight_decay=0.3, optimizer="sgd")
    step = small()
    groups = parameter_groups(step, config, pretrained)
    members = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in members} == {id(p) for p in step.parameters()} and len(members) == len(set(map(id, members)))
    backbone = {id(p) for p in step.encoder.backbone.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["peak"] == pytest.approx(0.2 * (expected if id(parameter) in backbone else 1))
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)
    optimizer = make_optimizer(step, config, pretrained)
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [group["peak"] / 2 for group in optimizer.param_groups]
    assert all(group["nesterov"] for group in optimizer.param_groups)


def test_adam_adds_the_decay_of_all_weights_to_the_gradient():
    config = TrainConfig(optimizer="adam", weight_decay=0.3)
    step = small()
    optimizer = make_optimizer(step, config, pretrained=False)
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_lower_the_loss(precision):
    step = small(ReidLossConfig(triplet=0.1), precision=precision, lr=1e-3)
    optimizer = make_optimizer(step, step.config, pretrained=False)
    images, labels = batch()
    torch.manual_seed(0)
    losses = [optimise(step, optimizer, NO_SCALER, images, labels, 5)[0] for _ in range(12)]
    assert losses[-1]["total"] < losses[0]["total"]
    assert losses[0].keys() == {"total", "cross_entropy", "triplet", "accuracy"}
    expected = losses[0]["cross_entropy"] + 0.1 * losses[0]["triplet"]
    assert losses[0]["total"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights():
    step = small()
    before = {name: value.clone() for name, value in step.named_parameters()}
    images, labels = batch()
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"not finite: \{'total': nan"):
        optimise(step, make_optimizer(step, step.config, False), NO_SCALER, images, labels, 0)
    assert all(torch.equal(value, before[name]) for name, value in step.named_parameters())


def test_one_process_keeps_its_statistics():
    norm = nn.BatchNorm1d(2)
    norm.running_mean += 3
    average_statistics(norm)
    assert norm.running_mean.tolist() == [3, 3]
