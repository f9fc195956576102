"""The recipes of re-identification that ship as YAML files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import configs
from configs import load_config
from reid.encoders import EncoderConfig, build_encoder
from reid.losses import ReidLossConfig
from reid.optimisation import make_optimizer, optimise, rate_share, set_rates
from reid.training import TrainConfig, build_step
from reid.transforms import AugmentConfig
from tools.train_reid import UNLABELLED

SECTIONS = {"train": TrainConfig, "encoder": EncoderConfig, "losses": ReidLossConfig, "augmentation": AugmentConfig}
FILES = {file.stem: file for file in Path(configs.__file__).parent.glob("reid_*.yaml")}


@pytest.mark.parametrize("name", ["reid_resnet50", "reid_circle", "reid_pcb", "reid_swin"])
def test_each_loads_and_says_what_it_should_give(name):
    sections = load_config(name, (), SECTIONS)
    assert sections["encoder"].pretrained and sections["train"].epochs == 60
    assert sections["train"].milestones == (0.667,) and sections["train"].optimizer == "sgd"
    text = FILES[name].read_text()
    assert f"--config {name} " in text and "published: rank-1" in text


@pytest.mark.parametrize(
    ("name", "method", "batch", "drops"),
    [("reid_caccl", "caccl", (16, 4), (20, 40, 60, 80)), ("reid_cluster_contrast", "cluster", (16, 16), (20, 40))],
)
def test_recipes_without_labels(name, method, batch, drops):
    sections = load_config(name, (), UNLABELLED)
    config = sections["train"]
    assert sections["contrast"].method == method and sections["encoder"].pretrained
    assert (config.batch_size // config.images_per_identity, config.images_per_identity) == batch
    shares = [rate_share(epoch, round(config.epochs), round(config.warmup), config) for epoch in range(100)]
    assert shares[: round(config.epochs)] == [
        pytest.approx(0.1 ** sum(epoch >= drop for drop in drops)) for epoch in range(round(config.epochs))
    ]
    text = FILES[name].read_text()
    assert f"--method {method} " in text and "ublished" in text
    assert name == "reid_caccl" or f"--config {name} " in text


@pytest.mark.parametrize(("name", "parts"), [("reid_circle", 1), ("reid_pcb", 6)])
def test_each_trains(name, parts):
    sections = load_config(name, (), SECTIONS)
    encoder = build_encoder(replace(sections["encoder"], pretrained=False), seed=0)
    step = build_step(encoder, sections["losses"], 4, sections["train"])
    assert len(step.criterion.parts) == parts
    optimizer = make_optimizer(step, sections["train"], pretrained=True)
    peaks = sorted({group["peak"] for group in optimizer.param_groups})
    assert peaks == pytest.approx([0.1 * sections["train"].lr, sections["train"].lr])
    set_rates(optimizer, 0.05)
    images = torch.randn(8, 3, 96, 48, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4
    losses = [
        optimise(step, optimizer, torch.amp.GradScaler("cpu", enabled=False), images, labels, 0)[0]["total"]
        for _ in range(8)
    ]
    assert min(losses[-3:]) < losses[0]
