"""Networks that find something without training, and drawn images with known people."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detector import JDE, ModelConfig
from detector.darknet import DarknetConfig, DarknetJDE
from detector.losses import NO_IDENTITY


def lively_model(seed: int = 0, **config: object) -> JDE:
    """A random network whose batch norms do something and whose scores are spread over (0, 1)."""
    torch.manual_seed(seed)
    model = JDE(ModelConfig(**config))  # type: ignore[arg-type]
    _stir(model)
    with torch.no_grad():
        for head, raw in zip(model.heads, model(_picture())[0], strict=True):
            for layer, logits in ((head.objectness, raw[:, 4:5]), (head.class_logits, raw[:, 5:])):
                layer.weight /= logits.std()
                layer.bias.copy_((layer.bias - logits.mean()) / logits.std())
    return model


def lively_darknet(seed: int = 0, **config: object) -> DarknetJDE:
    """A narrow random network of the published family, with batch norms and scores as above."""
    torch.manual_seed(seed)
    model = DarknetJDE(DarknetConfig(**{"width": 1 / 8, "embedding_dim": 16, "input_size": (96, 64)} | config))  # type: ignore[arg-type]
    _stir(model)
    with torch.no_grad():
        for level, raw in zip(model.levels, model(_picture())[0], strict=True):
            outputs = raw.unflatten(1, (-1, 6))  # (1, anchors, 6, H, W)
            spread = outputs.std(dim=(0, 3, 4)).clamp(min=1e-3)  # (anchors, 6)
            spread[:, :4] *= 3  # boxes stay near their anchors
            level.detect.weight /= spread.flatten()[:, None, None, None]
            level.detect.bias.copy_((level.detect.bias - outputs.mean(dim=(0, 3, 4)).flatten()) / spread.flatten())
    return model


def target(boxes, labels=None, ids=None, teacher=None, draw=None) -> dict[str, torch.Tensor]:
    """What is known of the people in an image: by default people without identity or teacher."""
    n = len(boxes)
    known = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * n, dtype=torch.int64),
        "ids": torch.tensor(ids or [NO_IDENTITY] * n, dtype=torch.int64),
        "teacher": torch.zeros(n, 6) if teacher is None else torch.tensor(teacher, dtype=torch.float32),
    }
    return known if draw is None else known | {"draw": torch.tensor(draw)}


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A random picture with structure larger than a pixel."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def drawn(width: int, height: int, *boxes: tuple[int, int, int, int], colour: tuple[int, ...] = (255, 255, 255)):
    """A black image with filled boxes xyxy; the right and bottom edge are outside, as in our boxes."""
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = colour
    return image


def _stir(model: nn.Module) -> None:
    """Batch norms that do something; evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.8)
            nn.init.uniform_(module.weight, 0.8, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
    model.eval()


def _picture() -> torch.Tensor:
    return torch.from_numpy(noise(128, 128)).permute(2, 0, 1)[None].float()


def extent(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Tight xyxy around the true pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float64)


def write_people(folder: Path, count: int = 6, size: int = 96, first_id: int = 1) -> Path:
    """A data set in the JDE layout: two upright rectangles of a colour each an image; returns the image folder."""
    images, labels = folder / "images", folder / "labels_with_ids"
    images.mkdir(parents=True)
    labels.mkdir()
    for i in range(count):
        rng = np.random.default_rng(i)
        image = noise(size, size, i) // 4
        rows = []
        for k, colour in enumerate(((40, 60, 230), (220, 90, 30))):
            w, h = size // 5, size // 2
            x, y = k * size // 2 + rng.integers(0, size // 2 - w), rng.integers(0, size - h)
            image[y : y + h, x : x + w] = colour
            rows.append(f"0 {first_id + k} {(x + w / 2) / size} {(y + h / 2) / size} {w / size} {h / size}")
        cv2.imwrite(str(images / f"{i:03d}.png"), image)
        (labels / f"{i:03d}.txt").write_text("\n".join(rows) + "\n")
    return images
