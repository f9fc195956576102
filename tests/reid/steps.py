"""Small steps of training, and a batch for them."""

import torch

from reid.encoders import EncoderConfig, build_encoder
from reid.losses import ReidLossConfig
from reid.training import TrainConfig, build_step


def small(losses=None, classes=3, neck="bn", **settings):
    encoder = build_encoder(EncoderConfig("osnet_x0_25", neck=neck, input_size=(32, 16), embedding_size=8), seed=0)
    return build_step(encoder, losses or ReidLossConfig(), classes, TrainConfig(**settings))


def batch(count=6, classes=3):
    images = torch.randn(count, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(count) % classes
