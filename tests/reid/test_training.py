"""What is trained: the losses of a batch, chunks of it, settings, batches with extra images."""

import numpy as np
import pytest
import torch

from reid.datasets import Crops
from reid.encoders import EncoderConfig, build_encoder
from reid.losses import OUTLIER, ReidLossConfig
from reid.storage import Folder
from reid.training import TrainConfig, TrainingCrops, build_step, plan_batches
from reid.transforms import AugmentConfig
from tests.reid.steps import batch, small


def test_batch_statistics_of_chunks_are_those_of_passes_of_their_own():
    images, labels = batch(7)
    plain = EncoderConfig("osnet_x0_25", input_size=(32, 16), dropout=0.0)
    step, alone = (build_encoder(plain, seed=0) for _ in range(2))
    step = build_step(step, ReidLossConfig(), 3, TrainConfig(bn_chunk=3))
    seen = {}
    step.criterion.register_forward_pre_hook(lambda _, given: seen.update(raw=given[0], necked=given[1]))
    step(images, labels)
    passes = [alone.features(images[:3]), alone.features(images[3:])]  # the seventh joins: alone it has no statistics
    for name, parts in zip(("raw", "necked"), zip(*passes, strict=True), strict=True):
        assert torch.equal(seen[name], torch.cat(parts))
    own, theirs = step.encoder.state_dict(), alone.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


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
    total, terms, _ = step(images, labels)
    assert total.item() == pytest.approx((terms["cross_entropy"].item() + terms["perturbed"].item()) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("losses", "settings", "message"),
    [
        ({"cross_entropy": 0, "triplet": 1}, {"adversarial": 2.0}, "train.adversarial: expected 0"),
        ({}, {"extra": "folder"}, "losses.lsro: expected a weight above 0 with train.extra"),
        ({"lsro": 1.0}, {}, "losses.lsro: expected a weight above 0 with train.extra"),
        ({}, {"steps_per_epoch": 3}, "train.steps_per_epoch: expected 0 with labels, got 3"),
        ({}, {"no_clusters": "keep"}, "train.no_clusters: expected stop with labels, got keep"),
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
        ({"bn_chunk": 1}, "bn_chunk: expected 0, or at least 2 images"),
        ({"save_steps": -1}, "save_steps: expected 0 or more"),
        ({"no_clusters": "go"}, "no_clusters: expected one of stop, keep, got 'go'"),
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
    _, later = plan_batches(data, config, *divmod(3, per_epoch))
    assert [next(later) for _ in range(2)] == first[3:5]
    shares = [plan_batches(data, config, 0, 0, rank, 2)[1] for rank in range(2)]
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
