"""The recipes of re-identification that ship as YAML files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import configs
from configs import load_config
from reid.encoders import EncoderConfig, build_encoder
from reid.losses import ReidLossConfig
from reid.training import TrainConfig, build_step, make_optimizer, optimise, set_rates
from reid.transforms import AugmentConfig

SECTIONS = {"train": TrainConfig, "encoder": EncoderConfig, "losses": ReidLossConfig, "augmentation": AugmentConfig}
FILES = {file.stem: file for file in Path(configs.__file__).parent.glob("reid_*.yaml")}


@pytest.mark.parametrize("name", ["reid_resnet50", "reid_circle", "reid_pcb", "reid_swin"])
def test_each_loads_and_says_what_it_should_give(name):
    sections = load_config(name, (), SECTIONS)
    assert sections["encoder"].pretrained and sections["train"].epochs == 60
    assert sections["train"].milestones == (0.667,) and sections["train"].optimizer == "sgd"
    text = FILES[name].read_text()
    assert f"--config {name} " in text and "published: rank-1" in text


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
