"""ONNX Runtime and torch run the same network."""

import numpy as np
import pytest
import torch

from detector.engine import dense_forward, fused
from detector.inference import Detector, DetectorConfig
from tests.detector.scenes import lively_model, noise


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 96, 64)])
def test_both_engines_give_the_same_maps(shape: tuple[int, int, int]) -> None:
    model = fused(lively_model(embedding_dim=16))
    frames = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    with torch.inference_mode():
        ours = dense_forward(model, cpu, "torch")(frames)
        theirs = dense_forward(model, cpu, "onnxruntime")(frames)
    for maps, others in zip(ours, theirs, strict=True):
        assert len(maps) == len(others)
        for a, b in zip(maps, others, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_both_engines_find_the_same_people() -> None:
    frame = noise(90, 120)
    found = [
        Detector(lively_model(embedding_dim=16), "cpu", DetectorConfig(input_size=96, engine=engine))([frame])[0]
        for engine in ("torch", "onnxruntime")
    ]
    assert len(found[0]["boxes"])
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-3, err_msg=name)


def test_impossible_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="engine: expected one of auto, onnxruntime, torch, got 'tpu'"):
        DetectorConfig(engine="tpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="engine: onnxruntime runs on the CPU here, got device cuda"):
        dense_forward(fused(lively_model()), torch.device("cuda"), "onnxruntime")
