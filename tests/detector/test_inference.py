import concurrent.futures
import copy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import Detector, DetectorConfig, load_detector, save_model
from detector.darknet import DarknetConfig, DarknetJDE
from detector.inference import letterbox
from detector.model import JDE, ModelConfig
from detector.postprocess import postprocess
from detector.priors import Canvas
from tests.detector.scenes import drawn, extent, lively_model, noise

CONFIG = DetectorConfig(input_size=96, score_thresh=0.3)
MODEL = JDE(ModelConfig(embedding_dim=0))
DARKNET = DarknetJDE(DarknetConfig(width=1 / 16, embedding_dim=0))


@pytest.fixture(scope="module")
def model() -> JDE:
    return lively_model(embedding_dim=16)


@pytest.fixture(scope="module")
def detector(model: JDE) -> Detector:
    return Detector(model, "cpu", CONFIG)


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], atol: float = 1e-3) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape
        assert np.allclose(a[name], b[name], atol=atol), name


@pytest.mark.parametrize(
    ("size", "shape", "content"),
    [
        ((640, 480), (96, 96), (96, 72)),
        ((480, 640), (96, 96), (72, 96)),
        ((1000, 100), (96, 32), (96, 10)),
        ((30, 20), (96, 64), (96, 64)),  # small images grow
        ((97, 1), (96, 32), (96, 1)),
    ],
)
def test_letterbox_sizes(size: tuple[int, int], shape: tuple[int, int], content: tuple[int, int]) -> None:
    width, height = size
    canvas = MODEL.canvas(height, width, 96)
    pixels, scale, place = letterbox(np.full((height, width, 3), 255, np.uint8), canvas, 114)
    assert place == (0, 0)
    assert pixels.shape == (shape[1], shape[0], 3)
    assert extent(pixels[..., 0] == 255).tolist() == [0, 0, *content]
    assert (pixels[content[1] :] == 114).all()
    assert (pixels[:, content[0] :] == 114).all()
    assert scale == pytest.approx((content[0] / width, content[1] / height))


@pytest.mark.parametrize(
    ("size", "place", "content"),
    [
        ((1280, 720), (0, 5), (96, 54)),
        ((720, 1280), (30, 0), (36, 64)),
        ((96, 64), (0, 0), (96, 64)),
        ((48, 31), (0, 1), (96, 62)),
        ((1000, 1), (0, 31), (96, 1)),
        ((97, 64), (0, 0), (96, 63)),  # an odd row of grey lies below
    ],
)
def test_a_centred_picture_has_grey_on_both_sides(size, place, content) -> None:
    width, height = size
    canvas = Canvas(96, 64, min(96 / width, 64 / height), centred=True)
    pixels, scale, found = letterbox(np.full((height, width, 3), 255, np.uint8), canvas, 128)
    assert pixels.shape == (64, 96, 3)
    assert found == place
    (x, y), (w, h) = place, content
    assert extent(pixels[..., 0] == 255).tolist() == [x, y, x + w, y + h]
    assert set(np.unique(pixels)) <= {128, 255}
    assert scale == (w / width, h / height)


@pytest.mark.parametrize("family", ["compact", "darknet53"])
@pytest.mark.parametrize("size", [(640, 360), (200, 333), (60, 45), (37, 96)])
def test_a_box_comes_back_in_original_pixels(size: tuple[int, int], family: str) -> None:
    """Draw it, letterbox, measure it in the network's input, undo: the box drawn."""
    width, height = size
    box = (width // 4, height // 5, width // 4 + width // 3, height // 5 + height // 2)
    canvas = MODEL.canvas(height, width, 320) if family == "compact" else DARKNET.canvas(height, width, 320)
    pixels, scale, place = letterbox(drawn(width, height, box), canvas, 114)
    found = (extent(pixels[..., 0] > 130) - place * 2) / (scale * 2)
    assert np.abs(found - box).max() <= 0.75 / min(scale[0], 1)


def test_frames_of_mixed_sizes_equal_one_by_one(detector: Detector) -> None:
    frames = [noise(60, 90, 1), noise(90, 60, 2), noise(60, 90, 3), noise(33, 47, 4)]
    together = detector(frames)
    assert all(len(found["scores"]) > 3 for found in together)
    for frame, found in zip(frames, together, strict=True):
        assert_same(found, detector([frame])[0])


def test_no_frames(detector: Detector) -> None:
    assert detector([]) == []


def test_what_comes_out(detector: Detector) -> None:
    found = detector([noise(60, 90)])[0]
    n = len(found["scores"])
    assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
        "boxes": ((n, 4), "float32"),
        "scores": ((n,), "float32"),
        "labels": ((n,), "int64"),
        "embeddings": ((n, 16), "float32"),
    }
    assert (np.diff(found["scores"]) <= 0).all()
    assert found["scores"].min() >= CONFIG.score_thresh
    assert np.allclose(np.linalg.norm(found["embeddings"], axis=1), 1, atol=1e-5)


def test_folded_norms_change_nothing(model: JDE, detector: Detector) -> None:
    before = copy.deepcopy(model.state_dict())
    frame = noise(50, 90)
    pixels, scale, _ = letterbox(frame, model.canvas(*frame.shape[:2], 96), 114)
    assert scale[0] != scale[1]  # the height is rounded
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        raw, features = model(images)
        folded, folded_features = detector.model(images)
        for a, b in zip([*raw, *features], [*folded, *folded_features], strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
        wanted = {k: v.numpy() for k, v in postprocess(model, raw, features, 0.3, 0.65, 300)[0].items()}
    wanted["boxes"] = wanted["boxes"] / np.array(scale * 2, np.float32)
    assert_same(detector([frame])[0], wanted)
    assert not any(name.endswith("backbone.stem.conv.norm.weight") for name in detector.model.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model given is as it was


def test_boxes_are_in_pixels_of_the_frame(detector: Detector) -> None:
    """A frame of twice the size gives boxes of twice the size."""
    small = noise(48, 96)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    a, b = detector([small])[0], detector([large])[0]
    assert len(a["scores"]) > 3
    assert np.allclose(2 * a["boxes"], b["boxes"], rtol=0.05, atol=2)


def test_frames_need_not_be_contiguous_and_stay_as_they_are(detector: Detector) -> None:
    frame = noise(60, 90)
    before = frame.copy()
    mirrored = frame[:, ::-1]
    assert_same(detector([mirrored])[0], detector([np.ascontiguousarray(mirrored)])[0])
    assert np.array_equal(frame, before)


def test_two_threads_get_what_one_gets(detector: Detector) -> None:
    frames = [noise(60, 90, seed) for seed in range(6)]
    wanted = [detector([frame])[0] for frame in frames]
    results: dict[int, list[dict[str, np.ndarray]]] = {}

    def work(which: int) -> None:
        results[which] = [detector([frame])[0] for frame in frames]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results.values():
        for a, b in zip(found, wanted, strict=True):
            assert_same(a, b, 1e-5)
    assert len(results) == 2


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((10, 10), np.uint8), r"frame 1: expected \(H, W, 3\) uint8, got \(10, 10\) uint8"),
        (np.zeros((10, 10, 4), np.uint8), r"got \(10, 10, 4\)"),
        (np.zeros((10, 10, 3), np.float32), r"got \(10, 10, 3\) float32"),
        (np.zeros((0, 10, 3), np.uint8), r"got \(0, 10, 3\)"),
    ],
)
def test_frames_that_are_none(detector: Detector, frame: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector([noise(20, 20), frame])
    with pytest.raises(ValueError, match=message.replace("frame 1", "frame")):
        detector.embed(frame, np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_size": 333}, "input_size: expected a positive multiple of 32 up to 8192, got 333"),
        ({"input_size": 0}, "input_size: expected a positive multiple of 32 up to 8192, got 0"),
        ({"input_size": -64}, "input_size"),
        ({"score_thresh": 1.5}, r"score_thresh: expected a number in \[0, 1\], got 1.5"),
        ({"nms_thresh": float("nan")}, r"nms_thresh: expected a number in \[0, 1\], got nan"),
        ({"max_detections": 0}, "max_detections: expected at least 1, got 0"),
    ],
)
def test_impossible_settings(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorConfig(**given)


def test_embeddings_of_known_boxes(detector: Detector) -> None:
    """A detection that is the surest at its own centre is described as the detection was."""
    frame = noise(60, 90)
    found = detector([frame])[0]
    again = detector.embed(frame, found["boxes"])
    assert again.shape == found["embeddings"].shape
    assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-5)
    assert (np.sum(again * found["embeddings"], axis=1) > 0.9999).any()
    order = np.arange(len(again))[::-1]
    assert np.allclose(detector.embed(frame, found["boxes"][order]), again[order], atol=1e-5)
    assert detector.embed(frame, np.zeros((0, 4))).shape == (0, 16)


def test_no_embeddings_without_a_head() -> None:
    detector = Detector(lively_model(embedding_dim=0), "cpu", CONFIG)
    assert sorted(detector([noise(60, 90)])[0]) == ["boxes", "labels", "scores"]
    with pytest.raises(ValueError, match="no embedding head"):
        detector.embed(noise(60, 90), np.zeros((1, 4)))


def test_while_another_thread_writes_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's flag for that counts for all threads."""
    config = DetectorConfig(input_size=96, score_thresh=0.0, max_detections=20, engine="torch")
    detector, frame = Detector(lively_model(embedding_dim=16), "cpu", config), noise(60, 90)
    alone = detector([frame])[0]
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    assert_same(detector([frame])[0], alone, 0)


def test_detectors_made_in_several_threads_at_once() -> None:
    frame = noise(60, 90)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Detector(MODEL, "cpu", CONFIG), range(4)))
    expected = Detector(MODEL, "cpu", CONFIG)([frame])[0]
    for detector in made:
        assert_same(detector([frame])[0], expected, 1e-6)


def test_load_detector(tmp_path: Path, model: JDE) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model, half=False)
    loaded = load_detector(path, "cpu", CONFIG)
    frame = noise(60, 90)
    assert_same(loaded([frame])[0], Detector(model, "cpu", CONFIG)([frame])[0], 1e-5)
    with pytest.raises(ValueError, match=r"absent\.safetensors: no such weights file"):
        load_detector(tmp_path / "absent.safetensors", "cpu")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        load_detector(path, "gpu")
    with pytest.raises(ValueError, match="device: 'cuda:99' asked for"):
        load_detector(path, "cuda:99")


def test_the_bundled_model_starts_without_torchvision() -> None:
    program = """
import sys, numpy, detector
people, = detector.load_detector(device="cpu")([numpy.zeros((64, 96, 3), numpy.uint8)])
assert people["embeddings"].shape == (0, 128)
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_what_the_cpu_gives(model: JDE, detector: Detector) -> None:
    frame = noise(60, 90)
    assert_same(Detector(model, "cuda", CONFIG)([frame])[0], detector([frame])[0], 0.05)


def test_the_configuration_says_what_is_used() -> None:
    assert (Detector(MODEL).config.input_size, Detector(MODEL).config.nms_thresh) == (640, 0.65)
    own = Detector(DARKNET).config
    assert (own.input_size, own.nms_thresh) == (DARKNET.config.input_size[0], 0.4)
    assert Detector(MODEL, "cpu", DetectorConfig(input_size=96, nms_thresh=0.5)).config.input_size == 96
