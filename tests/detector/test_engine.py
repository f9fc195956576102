"""ONNX Runtime and torch run the same network."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detector.engine import choose, dense_forward, fused, quickened
from detector.inference import Detector, DetectorConfig
from tests.detector.scenes import lively_darknet, lively_model, noise


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


def test_impossible_engines_and_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="engine: expected one of auto, onnxruntime, torch, got 'tpu'"):
        DetectorConfig(engine="tpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision: expected one of auto, fp32, bf16, fp16, got 'int4'"):
        DetectorConfig(precision="int4")  # type: ignore[arg-type]
    model, cpu = lively_model(), torch.device("cpu")
    with pytest.raises(ValueError, match="engine: onnxruntime runs on the CPU here, got device cuda"):
        choose(model, torch.device("cuda"), "onnxruntime", "auto")
    with pytest.raises(ValueError, match="precision: onnxruntime computes in fp32 on a CPU, got bf16"):
        choose(model, cpu, "onnxruntime", "bf16")
    with pytest.raises(ValueError, match="precision: fp16 is for GPUs, expected bf16 or fp32 on a CPU"):
        choose(model, cpu, "torch", "fp16")


@pytest.mark.parametrize("hardware", [False, True])
def test_what_a_processor_runs_by_itself(monkeypatch: pytest.MonkeyPatch, hardware: bool) -> None:
    monkeypatch.setattr("detector.engine.multiplies_bfloat16", lambda: hardware)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose(lively_model(), cpu, "auto", "auto") == ("onnxruntime", "fp32")
    assert choose(lively_model(), cpu, "auto", "bf16") == ("torch", "bf16")
    assert choose(lively_model(), cpu, "torch", "auto") == ("torch", "fp32")
    assert choose(lively_darknet(), cpu, "auto", "auto") == ("torch", "bf16" if hardware else "fp32")
    assert choose(lively_darknet(), cpu, "auto", "fp32") == ("torch", "fp32")
    assert choose(lively_darknet(), gpu, "auto", "auto") == ("torch", "fp16")


@pytest.mark.parametrize("family", [lively_model, lively_darknet])
def test_bfloat16_finds_the_same_people(family) -> None:
    model, frame = family(embedding_dim=16), noise(90, 120)
    exact, lower = (
        Detector(model, "cpu", DetectorConfig(input_size=96, engine="torch", precision=precision, nms_thresh=1.0))
        for precision in ("fp32", "bf16")
    )
    assert (exact.config.precision, lower.config.precision) == ("fp32", "bf16")
    assert any(
        p.dtype == torch.bfloat16
        for block in lower.model.modules()
        for p in vars(block).values()
        if isinstance(p, torch.Tensor)
    )
    ours, theirs = (
        maps[0] for maps in (d._forward(torch.from_numpy(d._letterbox([frame])[0])) for d in (lower, exact))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.1 * b.std() + 0.1
    picture = [noise(90, 120, seed) for seed in range(3)]
    for found, expected in zip(lower(picture), exact(picture), strict=True):
        best = expected["scores"] > 0.6
        iou = box_iou(torch.from_numpy(expected["boxes"][best]), torch.from_numpy(found["boxes"]))
        overlap, match = iou.max(1)
        assert (overlap > 0.8).float().mean() > 0.9
        close = (overlap > 0.8).numpy()
        cosine = (expected["embeddings"][best] * found["embeddings"][match])[close].sum(1)
        assert np.median(cosine) > 0.99


@pytest.mark.parametrize("family", [lively_model, lively_darknet])
def test_packed_blocks_change_nothing(family) -> None:
    plain = fused(family(embedding_dim=16)).to(memory_format=torch.channels_last)
    packed, precision = quickened(copy.deepcopy(plain), torch.device("cpu"), "fp32")
    assert precision == "fp32"
    for shape in ((1, 64, 96), (2, 96, 64)):
        frames = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            maps, others = (dense_forward(m, torch.device("cpu"), "torch")(frames) for m in (plain, packed))
        for a, b in zip(*(itertools.chain(*each) for each in (maps, others)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_lower_precision_that_goes_wrong_is_not_used() -> None:
    """One channel grows beyond what bfloat16 can tell apart, and a later layer takes the differences."""
    model = lively_darknet()
    with torch.no_grad():
        for level in model.levels:
            level.spread.norm.bias += 1e4
            level.detect.bias -= level.detect.weight.sum(dim=(1, 2, 3)) * 1e4
    detector = Detector(model, "cpu", DetectorConfig(engine="torch", precision="bf16"))
    assert detector.config.precision == "fp32"
    frame = noise(64, 96)
    expected = Detector(model, "cpu", DetectorConfig(engine="torch", precision="fp32"))([frame])[0]
    for name, rows in detector([frame])[0].items():
        np.testing.assert_array_equal(rows, expected[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", [lively_model, lively_darknet])
def test_a_gpu_in_float16_finds_the_same_people(family) -> None:
    model, frames = family(embedding_dim=16), [noise(90, 120, seed) for seed in range(4)]
    exact = Detector(model, "cpu", DetectorConfig(input_size=96, engine="torch", precision="fp32"))(frames)
    quick = Detector(model, "cuda", DetectorConfig(input_size=96))
    assert quick.config.precision == "fp16"
    for _ in range(2):  # recorded, then replayed
        for found, expected in zip(quick(frames), exact, strict=True):
            assert abs(len(found["scores"]) - len(expected["scores"])) <= 0.1 * len(expected["scores"]) + 1
            iou = box_iou(torch.from_numpy(expected["boxes"]), torch.from_numpy(found["boxes"]))
            assert (iou.max(1).values > 0.8).float().mean() > 0.9
