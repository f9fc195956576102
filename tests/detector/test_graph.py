"""What an exported graph returns is what `postprocess` returns, for any batch, size and number of people."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from detector.checkpoint import load_model
from detector.engine import fused
from detector.graph import BoxesGraph, MapsGraph, PeopleGraph, to_onnx
from detector.inference import Detector, DetectorConfig, letterbox
from detector.postprocess import MAX_CANDIDATES, postprocess
from tests.detector.scenes import lively_darknet, lively_model, noise

NMS_THRESH = 0.6
MODELS: dict[str, Callable[[], Any]] = {
    "compact": lambda: lively_model(embedding_dim=16),
    "classes": lambda: lively_model(embedding_dim=8, num_classes=3),
    "darknet53": lambda: lively_darknet(),
}
SHAPES = [(1, 64, 96), (3, 96, 64), (2, 32, 32)]


def pictures(batch: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.stack([noise(height, width, seed) for seed in range(batch)])


def session(graph: MapsGraph) -> onnxruntime.InferenceSession:
    file = io.BytesIO()
    to_onnx(graph, file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def by_postprocess(model: Any, frames: NDArray[np.uint8], score_thresh: float, max_detections: int) -> list[Any]:
    """The table of people that `PeopleGraph` is to return."""
    with torch.inference_mode():
        raw, features = model(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
        found = postprocess(model, raw, features, score_thresh, NMS_THRESH, max_detections)
    image = np.repeat(np.arange(len(found)), [len(each["boxes"]) for each in found])
    names = [name for name in ("boxes", "scores", "labels", "embeddings") if name in found[0]]
    return [image, *(torch.cat([each[name] for each in found]).numpy() for name in names)]


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    names = ("image", "boxes", "scores", "labels", "embeddings")[: len(wanted)]
    for name, ours, theirs in zip(names, found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 if name == "boxes" else 1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("family", MODELS)
def test_people_are_those_of_postprocess(family: str) -> None:
    model = fused(MODELS[family]())
    score_thresh = 0.6
    run = session(PeopleGraph(model, score_thresh, NMS_THRESH, 300))
    graph = PeopleGraph(model, score_thresh, NMS_THRESH, 300)
    levels = 0
    for shape in SHAPES:
        frames = pictures(*shape)
        wanted = by_postprocess(model, frames, score_thresh, 300)
        levels = max(levels, len(wanted[0]))
        assert_same(run.run(None, {"frames": frames}), wanted)
        with torch.inference_mode():
            assert_same([each.numpy() for each in graph(torch.from_numpy(frames))], wanted)
    assert levels > 10
    if family == "classes":
        assert len(np.unique(wanted[3])) > 1


def test_people_come_image_by_image_and_by_falling_score() -> None:
    run = session(PeopleGraph(fused(MODELS["classes"]()), 0.3, NMS_THRESH, 300))
    image, _, scores, *_ = run.run(None, {"frames": pictures(3, 96, 64)})
    assert (np.diff(image) >= 0).all()
    assert set(image) == {0, 1, 2}
    for i in range(3):
        assert (np.diff(scores[image == i]) <= 0).all()


def test_nobody_scores_enough() -> None:
    run = session(PeopleGraph(fused(MODELS["compact"]()), 1.0, NMS_THRESH, 300))
    found = run.run(None, {"frames": pictures(2, 64, 96)})
    assert [each.shape for each in found] == [(0,), (0, 4), (0,), (0,), (0, 16)]
    assert found[0].dtype == found[3].dtype == np.int64


def test_more_candidates_than_are_looked_at_and_more_people_than_are_wanted() -> None:
    model = fused(lively_darknet(embedding_dim=0))
    frames = pictures(2, 128, 160)
    run = session(PeopleGraph(model, 0.01, NMS_THRESH, 40))
    found = run.run(None, {"frames": frames})
    assert len(found) == 4  # no embeddings
    with torch.inference_mode():
        scores = model.scores(model.flatten(model(torch.from_numpy(frames).permute(0, 3, 1, 2).float())[0]))[0]
    assert ((scores >= 0.01).sum(1) > MAX_CANDIDATES).all()
    assert_same(found, by_postprocess(model, frames, 0.01, 40))
    assert np.bincount(found[0]).tolist() == [40, 40]


@pytest.mark.parametrize("above", [0, 1])
def test_a_score_equal_to_the_threshold_passes(above: int) -> None:
    model = fused(MODELS["compact"]())
    frames = pictures(1, 64, 96)
    best = session(PeopleGraph(model, 0.5, NMS_THRESH, 1)).run(None, {"frames": frames})[2]
    thresh = np.nextafter(best[0], np.float32(2)) if above else best[0]
    again = session(PeopleGraph(model, float(thresh), NMS_THRESH, 1)).run(None, {"frames": frames})[2]
    assert len(again) == 1 - above


@pytest.mark.parametrize("make", [lively_model, lively_darknet])
def test_boxes_and_maps_are_those_of_the_model(make: Callable[..., Any]) -> None:
    model = fused(make(embedding_dim=8))
    for kind in (MapsGraph, BoxesGraph):
        run = session(kind(model))
        assert [output.name for output in run.get_outputs()] == list(kind(model).outputs)
        for shape in SHAPES:
            frames = pictures(*shape)
            with torch.inference_mode():
                wanted = kind(model)(torch.from_numpy(frames))
            for ours, theirs in zip(run.run(None, {"frames": frames}), wanted, strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3, rtol=1e-3)
    boxes, scores, labels, *_ = wanted
    assert boxes.shape == (2, scores.shape[1], 4)
    assert scores.shape == labels.shape


@pytest.mark.shared
def test_people_of_real_frames_are_the_detectors(shared: Any) -> None:
    model = load_model()
    eager = Detector(model, "cpu", DetectorConfig(engine="torch", precision="fp32"))
    capture = cv2.VideoCapture(str(shared / "data" / "video" / "people.mp4"))
    frames = [capture.read()[1] for _ in range(2)]
    canvas = model.canvas(*frames[0].shape[:2], None)
    inputs, scales, places = zip(*(letterbox(frame, canvas, model.pad_value) for frame in frames), strict=True)
    run = session(PeopleGraph(fused(model), 0.1, 0.65, 300))
    image, boxes, scores, _, embeddings = run.run(None, {"frames": np.stack(inputs)})
    for i, wanted in enumerate(eager(frames)):
        own = image == i
        assert own.sum() > 20
        placed = (boxes[own] - np.array(places[i] * 2)) / np.array(scales[i] * 2)
        np.testing.assert_allclose(placed, wanted["boxes"], atol=2e-3)
        np.testing.assert_allclose(scores[own], wanted["scores"], atol=1e-5)
        np.testing.assert_allclose(embeddings[own], wanted["embeddings"], atol=2e-5)
