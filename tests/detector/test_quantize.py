"""8-bit copies of small networks: which layers are 8-bit, what is kept, and that they still find the same."""

import dataclasses

import cv2
import numpy as np
import onnx
import pytest

from detector.agreement import agreement
from detector.exported import load_exported
from detector.manifest import Manifest
from detector.quantize import calibration_batches, quantize_onnx, quantize_openvino
from detector.readers import open_exported
from detector.writers import write_onnx, write_openvino
from tests.detector.scenes import lively_darknet, lively_model

RNG = np.random.default_rng(0)
SHAPES = ((64, 96), (96, 64), (64, 96))


def blurred(height, width):
    """A picture with something to see in it."""
    small = RNG.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


BATCHES = [blurred(*shape)[None] for shape in SHAPES]


def manifest(model, family="compact", graph="people", precision="int8", score_thresh=0.3):
    return Manifest(
        family=family,
        model=dataclasses.asdict(model.config),
        graph=graph,
        precision=precision,
        input_size=96,
        score_thresh=score_thresh,
        nms_thresh=0.5,
        max_detections=20,
        weights="toy.safetensors",
        weights_sha256="0" * 64,
    )


@pytest.fixture(scope="module")
def model():
    return lively_model(embedding_dim=16)


def quantized_convolutions(path):
    """Names of the convolutions of an ONNX file whose weights are 8-bit, and of those whose are not."""
    nodes = onnx.load(str(path)).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    names = ([], [])
    for node in nodes:
        if node.op_type == "Conv":
            names[made_by.get(node.input[1]) != "DequantizeLinear"].append(node.name)
    return names


def test_onnx(model, tmp_path):
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    notes = manifest(model)
    write_onnx(model, notes, source)
    quantize_onnx(source, target, iter(BATCHES))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.onnx", "target.onnx"]
    eight, others = quantized_convolutions(target)
    assert len(eight) > 60
    assert all("/backbone/stages" in name or "/pyramid/" in name or "/heads." in name for name in eight)
    predictions = [name for name in others if name.endswith(("box_code/Conv", "objectness/Conv", "class_logits/Conv"))]
    assert len(predictions) == 9
    shallow = [name for name in others if "/backbone/stem/" in name or "/backbone/stages.0/" in name]
    assert all("/embedding_head/" in name for name in others if name not in predictions + shallow)
    assert len(shallow) == 9
    frames = [batch[0] for batch in BATCHES]
    found = agreement(load_exported(source, "cpu"), load_exported(target, "cpu"), frames)
    assert found.people > 10
    assert found.matched > 0.6 * found.people
    assert 0 < found.mean_box_error < 4
    assert 0.8 < found.mean_cosine < 1 - 1e-7
    assert open_exported(target).manifest == notes


def test_layers_left_in_floating_point_are_the_callers_choice(model, tmp_path):
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    notes = manifest(model, score_thresh=1.0)  # nobody is seen while it is calibrated
    write_onnx(model, notes, source)
    quantize_onnx(source, target, BATCHES[:1], float_layers=("/backbone/", "/pyramid/"))
    eight, others = quantized_convolutions(target)
    assert eight and all("/heads." in name for name in eight)
    assert not any("/heads." in name for name in others)
    assert [len(found["scores"]) for found in load_exported(target, "cpu")([BATCHES[0][0]])] == [0]


def test_darknet(tmp_path):
    model = lively_darknet()
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    notes = manifest(model, family="darknet53", graph="maps")
    write_onnx(model, notes, source)
    quantize_onnx(source, target, BATCHES[:1])
    eight, others = quantized_convolutions(target)
    assert len([name for name in others if name.endswith("/detect/Conv")]) == 3
    assert len(eight) > 60
    for a, b in zip(*(open_exported(path).run(BATCHES[0]) for path in (source, target)), strict=True):
        assert 0 < np.abs(a - b).mean() < 0.3 * a.std()


def test_openvino(model, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    source, target = tmp_path / "source.xml", tmp_path / "target.xml"
    notes = manifest(model)
    write_openvino(model, notes, source)
    quantize_openvino(source, target, iter(BATCHES))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.bin", "source.xml", "target.bin", "target.xml"]
    assert target.with_suffix(".bin").stat().st_size < 0.6 * source.with_suffix(".bin").stat().st_size
    assert open_exported(target).manifest == notes
    found = agreement(load_exported(source, "cpu"), load_exported(target, "cpu"), [batch[0] for batch in BATCHES])
    assert found.matched > 0.6 * found.people > 6
    assert 0 < found.mean_box_error < 4
    assert 0.8 < found.mean_cosine < 1 - 1e-7


def grown(frame):
    """A letterbox that tells frames apart: their own pixels at the network's size."""
    return cv2.resize(frame, (96, 64), interpolation=cv2.INTER_NEAREST)


def test_pictures_are_spread_over_a_folder(tmp_path):
    for i in range(9):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), i, np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    batches = list(calibration_batches(tmp_path, grown, count=3))
    assert [batch.shape for batch in batches] == [(1, 64, 96, 3)] * 3
    assert [int(batch.max()) for batch in batches] == [0, 4, 8]
    assert len(list(calibration_batches(tmp_path, grown))) == 9


def test_pictures_are_spread_over_a_video(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(9):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    batches = list(calibration_batches(tmp_path / "in.avi", grown, count=3))
    assert [round(float(batch.mean()) / 20) for batch in batches] == [0, 4, 8]


def test_errors(model, tmp_path):
    with pytest.raises(ValueError, match=r"empty: expected images, found none"):
        (tmp_path / "empty").mkdir()
        calibration_batches(tmp_path / "empty", grown)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        calibration_batches(tmp_path, grown, count=0)
    with pytest.raises(ValueError, match=r"none\.mp4: expected a folder of images or a video"):
        list(calibration_batches(tmp_path / "none.mp4", grown))
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.onnx: not a readable ONNX model"):
        quantize_onnx(tmp_path / "text.onnx", tmp_path / "out.onnx", BATCHES)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["frames"], ["out"], name="relu")],
        "other",
        [onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])],
    )
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=r"other\.onnx: expected a model that tools/export\.py wrote"):
        quantize_onnx(tmp_path / "other.onnx", tmp_path / "out.onnx", BATCHES)
    notes = manifest(model, graph="maps")
    write_onnx(model, notes, tmp_path / "maps.onnx")
    with pytest.raises(ValueError, match="batches: expected at least one picture"):
        quantize_onnx(tmp_path / "maps.onnx", tmp_path / "out.onnx", [])
    assert not (tmp_path / "out.onnx").exists()
