"""The rules of training an encoder: rates, groups, batches with extra images, one step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from reid.datasets import Crops
from reid.encoders import EncoderConfig, build_encoder
from reid.losses import OUTLIER, ReidLossConfig
from reid.storage import Folder
from reid.training import (
    TrainConfig,
    TrainingCrops,
    average_statistics,
    build_step,
    make_optimizer,
    optimise,
    parameter_groups,
    plan_batches,
    rate_share,
    set_rates,
)
from reid.transforms import AugmentConfig

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def small(losses=None, classes=3, neck="bn", **settings):
    encoder = build_encoder(EncoderConfig("osnet_x0_25", neck=neck, input_size=(32, 16), embedding_size=8), seed=0)
    return build_step(encoder, losses or ReidLossConfig(), classes, TrainConfig(**settings))


def batch(count=6, classes=3):
    images = torch.randn(count, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % classes


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


def test_metric_losses_see_what_is_compared():
    images, labels = batch()
    seen = {}
    for neck, length in (("linear", 8), ("bn", 512)):
        step = small(ReidLossConfig(triplet=1), neck=neck)
        step.criterion.register_forward_pre_hook(lambda _, given, neck=neck: seen.update({neck: given[0].shape[2]}))
        step(images, labels)
        assert seen[neck] == length


def test_perturbed_images_count_half():
    step = small(adversarial=8.0)
    images, labels = batch()
    torch.manual_seed(0)
    total, terms = step(images, labels)
    assert total.item() == pytest.approx((terms["cross_entropy"].item() + terms["perturbed"].item()) / 2, rel=1e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights():
    step = small()
    before = {name: value.clone() for name, value in step.named_parameters()}
    images, labels = batch()
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"not finite: \{'total': nan"):
        optimise(step, make_optimizer(step, step.config, False), NO_SCALER, images, labels, 0)
    assert all(torch.equal(value, before[name]) for name, value in step.named_parameters())


@pytest.mark.parametrize(
    ("losses", "settings", "message"),
    [
        ({"cross_entropy": 0, "triplet": 1}, {"adversarial": 2.0}, "train.adversarial: expected 0"),
        ({}, {"extra": "folder"}, "losses.lsro: expected a weight above 0 with train.extra"),
        ({"lsro": 1.0}, {}, "losses.lsro: expected a weight above 0 with train.extra"),
    ],
)
def test_settings_that_make_no_sense_together(losses, settings, message):
    with pytest.raises(ValueError, match=message):
        small(ReidLossConfig(**losses), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 10}, "batch_size: expected a multiple of images_per_identity=4, got 10"),
        ({"epochs": 0}, "epochs: expected a number above 0"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\)"),
        ({"sampler": "random"}, "sampler: expected one of identities, shuffle, got 'random'"),
        ({"milestones": (2.0,)}, "milestones: expected shares"),
        ({"warmup": -1}, "warmup: expected 0 or more"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def crops(tmp_path, pids):
    names = tuple(f"{number}.png" for number in range(len(pids)))
    return Crops(Folder(tmp_path), names, np.array(pids), np.ones(len(pids), np.int64))


def test_classes_are_the_people_above_zero(tmp_path):
    data = TrainingCrops(crops(tmp_path, [7, 3, 0, -1, 7]), None, (32, 16), AugmentConfig(), 0)
    assert data.pids.tolist() == [3, 7] and data.labels.tolist() == [1, 0, 1] and len(data) == 3
    with pytest.raises(ValueError, match="train: expected images of identities above 0"):
        TrainingCrops(crops(tmp_path, [0, -1]), None, (32, 16), AugmentConfig(), 0)


@pytest.mark.parametrize("sampler", ["identities", "shuffle"])
def test_batches_end_with_the_extra_images(tmp_path, sampler):
    labelled, extra = crops(tmp_path, [1, 1, 2, 2, 3, 3, 4, 4]), crops(tmp_path, [-1] * 3)
    data = TrainingCrops(labelled, extra, (32, 16), AugmentConfig(), 0)
    config = TrainConfig(batch_size=4, images_per_identity=2, extra_share=0.5, sampler=sampler)
    per_epoch, batches = plan_batches(data, config, 0)
    first = [next(batches) for _ in range(3 * per_epoch)]
    for drawn in first:
        assert len(drawn) == 6
        assert all(draw.row < 8 for draw in drawn[:4]) and all(8 <= draw.row < 11 for draw in drawn[4:])
    _, later = plan_batches(data, config, 3)
    assert [next(later) for _ in range(2)] == first[3:5]
    shares = [plan_batches(data, config, 0, rank, 2)[1] for rank in range(2)]
    for whole in first[:2]:
        parts = [next(share) for share in shares]
        assert sorted(draw.row for part in parts for draw in part) == sorted(draw.row for draw in whole)


def test_extra_images_have_no_class(tmp_path, monkeypatch):
    monkeypatch.setattr(Crops, "read", lambda self, index: np.full((20, 10, 3), 100, np.uint8))
    data = TrainingCrops(crops(tmp_path, [5, 6]), crops(tmp_path, [-1]), (32, 16), AugmentConfig(erasing=0), 0)
    _, batches = plan_batches(data, TrainConfig(batch_size=2, images_per_identity=1, extra_share=0.5), 0)
    drawn = [data[draw] for draw in next(batches)]
    assert sorted(label for _, label in drawn) == [OUTLIER, 0, 1]
    assert drawn[0][0].shape == (3, 32, 16)


def test_one_process_keeps_its_statistics():
    norm = nn.BatchNorm1d(2)
    norm.running_mean += 3
    average_statistics(norm)
    assert norm.running_mean.tolist() == [3, 3]
