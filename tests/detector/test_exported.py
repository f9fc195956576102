"""Exported files give the people of the model they were made from, and say what is wrong with other files."""

import concurrent.futures
import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from detector import Detector, DetectorConfig, load_detector
from detector.exported import ExportedDetector
from detector.manifest import Manifest
from detector.readers import EXTRA, open_exported
from detector.tensorrt_engine import MAGIC, open_plan, split_engine
from detector.writers import WRITERS
from tests.detector.scenes import lively_darknet, lively_model, noise

CONFIG = DetectorConfig(input_size=96, score_thresh=0.6, engine="torch", precision="fp32")
MODELS: dict[str, Any] = {"compact": lambda: lively_model(embedding_dim=16), "darknet53": lively_darknet}
FORMATS = ["onnx", "openvino", "torchscript"]
FRAMES = [noise(90, 120), noise(70, 50, 1), noise(90, 120, 2)]
EASY = DetectorConfig()
"""Its thresholds are below those baked in, which then hold."""


def manifest_of(family: str, **changes: Any) -> Manifest:
    model = MODELS[family]()
    return Manifest(
        family=family,
        model=dataclasses.asdict(model.config),
        **{"graph": "people", "precision": "fp32", "input_size": 96, "score_thresh": 0.6}
        | {"nms_thresh": model.nms_thresh, "max_detections": 300, "weights": "w.safetensors", "weights_sha256": "0"}
        | changes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def written(folder: Path, name: str, family: str = "compact", **changes: Any) -> Path:
    """A file of that format, written once."""
    if name == "openvino":
        pytest.importorskip("openvino")
    suffix, write = WRITERS[name]
    path = folder / ("-".join([family, *map(str, changes.values())]) + suffix)
    if not path.exists():
        write(MODELS[family](), manifest_of(family, **changes), path)
    return path


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype
            np.testing.assert_allclose(ours[name], array, atol=5e-3 if name == "boxes" else 1e-4, err_msg=name)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_people_as_by_the_model(folder: Path, name: str, family: str) -> None:
    wanted = Detector(MODELS[family](), "cpu", CONFIG)(FRAMES)
    assert sum(len(each["boxes"]) for each in wanted) > 20
    detector = load_detector(written(folder, name, family), config=EASY)
    assert isinstance(detector, ExportedDetector)
    assert detector.device.type == "cpu"
    assert_same(detector(FRAMES), wanted)
    assert detector([]) == []


@pytest.mark.parametrize("name", FORMATS)
def test_several_threads_may_call_at_once(folder: Path, name: str) -> None:
    detector = load_detector(written(folder, name))
    alone = [detector([frame]) for frame in FRAMES * 4]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frame: detector([frame]), FRAMES * 4))
    for ours, theirs in zip(together, alone, strict=True):
        assert_same(ours, theirs)


def test_settings_may_narrow_what_is_baked_in(folder: Path) -> None:
    path = written(folder, "onnx")
    everybody = load_detector(path)(FRAMES)
    detector = load_detector(path, config=DetectorConfig(score_thresh=0.7, max_detections=3))
    assert (detector.config.score_thresh, detector.config.max_detections) == (0.7, 3)
    assert (detector.config.engine, detector.config.precision, detector.config.weights) == (
        "onnxruntime",
        "fp32",
        "w.safetensors",
    )
    for few, many in zip(detector(FRAMES), everybody, strict=True):
        wanted = many["scores"][many["scores"] >= 0.7][:3]
        np.testing.assert_array_equal(few["scores"], wanted)
    small = load_detector(path, config=DetectorConfig(input_size=64))([FRAMES[0]])[0]
    wanted = Detector(MODELS["compact"](), "cpu", dataclasses.replace(CONFIG, input_size=64))([FRAMES[0]])[0]
    assert_same([small], [wanted])


def test_what_is_baked_in_holds(folder: Path) -> None:
    path = written(folder, "onnx")
    assert load_detector(path, config=EASY).config.score_thresh == 0.6
    for config, match in (
        (DetectorConfig(nms_thresh=0.3), "nms_thresh: 0.65 is part of the exported model, got 0.3"),
        (DetectorConfig(engine="torch"), "engine: is part of the exported model, expected auto, got torch"),
        (DetectorConfig(precision="bf16"), "precision: is part of the exported model"),
    ):
        with pytest.raises(ValueError, match=match):
            load_detector(path, config=config)
    with pytest.raises(ValueError, match=r"frame 0: expected \(H, W, 3\) uint8"):
        load_detector(path)([FRAMES[0][..., 0]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_devices_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match="device: 'cuda' asked for, but 0 CUDA devices"):
        load_detector(written(folder, "onnx"), "cuda")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda"):
        load_detector(written(folder, "onnx"), "abacus")


@pytest.mark.parametrize(("name", "graph"), [("onnx", "boxes"), ("onnx", "maps"), ("torch-export", "boxes")])
def test_other_graphs_are_for_other_programs(folder: Path, name: str, graph: str) -> None:
    path = written(folder, name, graph=graph)
    pixels = np.stack([noise(96, 64), noise(96, 64, 1), noise(96, 64, 2)])
    outputs = open_exported(path).run(pixels)
    with torch.inference_mode():
        raw, features = MODELS["compact"]()(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    for ours, theirs in zip(outputs[-len(features) :], features, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3, rtol=1e-3)
    if graph == "maps":
        np.testing.assert_allclose(outputs[0], raw[0].numpy(), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="for other programs"):
        load_detector(path)


def test_a_program_of_torch_export_cannot_hold_people(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.pt2: a torch\.export program cannot hold people"):
        WRITERS["torch-export"][1](MODELS["compact"](), manifest_of("compact"), folder / "p.pt2")


def test_half_precision_is_near(folder: Path) -> None:
    exact, half = (load_detector(written(folder, "onnx", precision=p)) for p in ("fp32", "fp16"))
    assert half.config.precision == "fp16"
    one, other = exact([FRAMES[0]])[0], half([FRAMES[0]])[0]
    best = 5
    np.testing.assert_allclose(one["scores"][:best], other["scores"][:best], atol=0.02)
    assert not np.array_equal(one["scores"][:best], other["scores"][:best])


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".torchscript", ".engine"])
def test_files_that_are_none(tmp_path: Path, suffix: str) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ValueError, match=f"model{suffix}: no such file"):
        load_detector(path)
    path.touch()
    with pytest.raises(ValueError, match=f"model{suffix}: empty file"):
        load_detector(path)
    path.write_text("once upon a time")
    with pytest.raises(ValueError, match=rf"model{suffix}: (not|expected)"):
        load_detector(path)


@pytest.mark.parametrize("name", FORMATS)
def test_files_cut_short(folder: Path, tmp_path: Path, name: str) -> None:
    whole = written(folder, name)
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if name == "openvino":
        with pytest.raises(ValueError, match=r"the weights beside it, compact\.bin, are missing"):
            load_detector(path)
        path.with_suffix(".bin").write_bytes(whole.with_suffix(".bin").read_bytes())
    with pytest.raises(ValueError, match=f"{path.name}: not "):
        load_detector(path)


def test_weights_of_another_model_beside_an_openvino_file(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(written(folder, "openvino"), tmp_path / "m.xml"))
    whole = written(folder, "openvino").with_suffix(".bin").read_bytes()
    for other in (bytes(len(whole)), whole + b"0", whole[:-1]):
        path.with_suffix(".bin").write_bytes(other)
        with pytest.raises(ValueError, match=r"m\.xml: (the weights beside it, m\.bin, are not those|not a readable)"):
            load_detector(path)
    path.with_suffix(".bin").write_bytes(whole)
    assert load_detector(path).config.engine == "openvino"


@pytest.mark.shared
def test_a_foreign_onnx_model(shared: Path) -> None:
    with pytest.raises(ValueError, match=r"yolox_nano\.onnx: expected a model that tools/export\.py wrote"):
        load_detector(shared / "data" / "weights" / "yolox_nano.onnx")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "expected a model that tools/export.py wrote"),
        ("{", "unreadable"),
        ("[]", "unreadable"),
        ('{"family": "compact"}', "unreadable"),
        (manifest_of("compact", graph="faces").text, "unreadable .*graph: expected one of .*, got 'faces'"),
        (manifest_of("compact", score_thresh=2).text, r"unreadable .*score_thresh: expected a number in \[0, 1\]"),
        (manifest_of("compact", score_thresh="x").text, "unreadable"),
        (manifest_of("compact").text.replace('"compact"', '"giant"'), "unreadable .*'giant'"),
        (manifest_of("compact").text.replace('"nano"', '"huge"'), "unreadable .*size: expected one of"),
        (
            manifest_of("compact", precision="x").text,
            "unreadable .*precision: expected one of fp32, fp16, int8, got 'x'",
        ),
        (manifest_of("compact", device="abc").text, "unreadable .*device: expected one of cpu, cuda, got 'abc'"),
        (manifest_of("compact", max_detections=1.5).text, "unreadable .*max_detections: expected int, got float"),
        (manifest_of("compact", input_size=None).text, "unreadable .*input_size: expected int, got NoneType"),
        (manifest_of("compact", nms_thresh=None).text, "unreadable .*nms_thresh: expected float, got NoneType"),
        (manifest_of("compact", score_thresh=True).text, "unreadable .*score_thresh: expected float, got bool"),
        (manifest_of("compact", weights=[1]).text, "unreadable .*weights: expected str, got list"),
        (manifest_of("compact").text.replace('"num_classes": 1', f'"num_classes": {10**18}'), "unreadable"),
        (manifest_of("compact").text.replace('"num_classes": 1', f'"num_classes": {10**30}'), "unreadable"),
        ("[" * 200_000 + "]" * 200_000, "unreadable .*recursion"),
    ],
)
def test_manifests_that_are_none(text: str | None, match: str) -> None:
    with pytest.raises(ValueError, match=f"m.onnx: {match}"):
        Manifest.parse(Path("m.onnx"), text)


def test_a_manifest_survives_its_file() -> None:
    manifest = manifest_of("darknet53", max_detections=7)
    again = Manifest.parse(Path("m"), manifest.text)
    assert again.text == manifest.text
    assert again.max_detections == 7


@pytest.mark.parametrize(
    ("name", "written_as", "claimed", "match"),
    [
        ("onnx", "boxes", "people", r"expected 5 outputs, image, boxes, .*, got boxes, scores"),
        ("openvino", "boxes", "people", r"expected 5 outputs, image, boxes, .*, got boxes, scores"),
        ("torchscript", "boxes", "people", r"expected 5 outputs, .*, got 10 of them"),
        ("torch-export", "boxes", "people", r"expected 5 outputs, .*, got 10 of them"),
    ],
)
def test_a_graph_that_is_not_what_its_notes_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written_as: str, claimed: str, match: str
) -> None:
    path = written(folder, name, graph=written_as)
    monkeypatch.setattr(Manifest, "parse", lambda *_: manifest_of("compact", graph=claimed))
    with pytest.raises(ValueError, match=f"{path.name}: not the {claimed} graph that its notes tell of: {match}"):
        open_exported(path)


@pytest.mark.parametrize("name", FORMATS)
def test_suffixes_in_capitals(folder: Path, tmp_path: Path, name: str) -> None:
    path = written(folder, name)
    loud = tmp_path / (path.stem + path.suffix.upper())
    shutil.copy(path, loud)
    if name == "openvino":
        shutil.copy(path.with_suffix(".bin"), loud.with_suffix(".bin"))
    assert_same(load_detector(loud)([FRAMES[0]]), load_detector(path)([FRAMES[0]]))


def test_without_sched_getaffinity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, "openvino")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert load_detector(path).config.engine == "openvino"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.filterwarnings("ignore")  # ONNX Runtime's own about the same
def test_cuda_that_onnx_runtime_cannot_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, "onnx")
    monkeypatch.setattr("detector.readers.choose_device", lambda _: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ValueError, match="device: cuda:0 asked for, but ONNX Runtime cannot use CUDA here"):
        load_detector(path, "cuda:0")
    assert load_detector(path).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_program_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "m.torchscript"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"m/extra/{EXTRA}", manifest_of("compact", device="cuda").text)
    with pytest.raises(ValueError, match=r"m\.torchscript: was exported on cuda .* no CUDA device is available"):
        load_detector(path)


@pytest.mark.parametrize(("place", "value"), [("flags", b"\x01\x00"), ("method", b"\x63\x00"), ("method", b"\x08\x00")])
def test_archives_that_cannot_be_unpacked(tmp_path: Path, place: str, value: bytes) -> None:
    """Encrypted, packed in an unknown way, not packed as they say."""
    path = tmp_path / "m.torchscript"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"m/extra/{EXTRA}", manifest_of("compact").text)
    data = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(header) + flags + (2 if place == "method" else 0)
        data[at : at + 2] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.torchscript: not a readable archive of torch"):
        load_detector(path)


def test_files_beside_the_target_are_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    other = tmp_path / "m.onnx"
    other.write_text("mine")
    WRITERS["openvino"][1](MODELS["compact"](), manifest_of("compact"), tmp_path / "m.xml")
    assert other.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.onnx", "m.xml"]


def test_engine_files(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(MAGIC + (5).to_bytes(4, "little") + b"notesplan")
    assert split_engine(path) == (b"notes", b"plan")
    path.write_bytes(MAGIC + (50).to_bytes(4, "little") + b"notesplan")
    with pytest.raises(ValueError, match=r"m\.engine: cut short"):
        split_engine(path)


class FakeLogger:
    """Stands for TensorRT's."""

    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)


def test_an_engine_is_built_from_the_onnx_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = MagicMock(ILogger=FakeLogger, __version__="10.0")
    builder, parser = trt.Builder.return_value, trt.OnnxParser.return_value
    builder.build_serialized_network.return_value = b"plan"
    builder.create_builder_config.return_value.add_optimization_profile.return_value = 0
    monkeypatch.setattr("detector.tensorrt_engine.import_tensorrt", lambda: trt)
    path, manifest = tmp_path / "m.engine", manifest_of("compact")
    write = WRITERS["tensorrt"][1]
    write(MODELS["compact"](), manifest, path)
    notes, plan = split_engine(path)
    assert (Manifest.parse(path, notes), plan) == (manifest, b"plan")
    assert [p.name for p in tmp_path.iterdir()] == ["m.engine"]
    builder.create_optimization_profile.return_value.set_shape.assert_called_once_with(
        "frames", (1, 32, 32, 3), (1, 64, 96, 3), (16, 96, 96, 3)
    )
    builder.build_serialized_network.return_value = None
    with pytest.raises(ValueError, match=r"TensorRT 10\.0 could not build the engine \(no reason given\)"):
        write(MODELS["compact"](), manifest, path)
    parser.parse_from_file.return_value, parser.num_errors = False, 1
    parser.get_error.return_value = "unknown operator"
    with pytest.raises(ValueError, match=r"TensorRT 10\.0 cannot read the graph \(unknown operator\)"):
        write(MODELS["compact"](), manifest, path)


def test_an_engine_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the current GPU, with everything that needs one stood in for."""
    scores = torch.tensor([0.5, 0.25])
    trt = MagicMock(ILogger=FakeLogger, IOutputAllocator=object, nptype=lambda _: np.float32)
    engine = trt.Runtime.return_value.deserialize_cuda_engine.return_value
    engine.num_io_tensors = 2
    engine.get_tensor_name = ["frames", "scores"].__getitem__
    engine.get_tensor_profile_shape.return_value = [None, None, (16, 96, 96, 3)]
    context = engine.create_execution_context.return_value

    def execute(_: object) -> bool:
        (_, output), _ = context.set_output_allocator.call_args
        assert output.reallocate_output("scores", 0, 8, 1) == output.memory.data_ptr()
        output.memory[:] = scores.view(torch.uint8)
        output.notify_shape("scores", (2,))
        return True

    context.execute_async_v3 = execute
    empty = torch.empty
    monkeypatch.setattr("detector.tensorrt_engine.import_tensorrt", lambda: trt)
    monkeypatch.setattr("torch.empty", lambda *size, device, **rest: empty(*size, **rest))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    for name in ("device", "current_stream"):  # not set_device, which refuses "cuda" without a number
        monkeypatch.setattr(f"torch.cuda.{name}", MagicMock())
    run, outputs, max_batch = open_plan(Path("m.engine"), b"plan", torch.device("cuda"))
    assert (outputs, max_batch) == (["scores"], 16)
    (found,) = run(np.zeros((1, 64, 96, 3), np.uint8))
    np.testing.assert_array_equal(found, scores.numpy())
    context.set_input_shape.return_value = False
    with pytest.raises(ValueError, match=r"m\.engine: was built for inputs up to 96x96 pixels, got 128x64"):
        run(np.zeros((1, 64, 128, 3), np.uint8))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="is about machines without TensorRT")
def test_without_tensorrt(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TensorRT is not installed"):
        WRITERS["tensorrt"][1](MODELS["compact"](), manifest_of("compact"), tmp_path / "m.engine")
    path = tmp_path / "m.engine"
    notes = manifest_of("compact").text.encode()
    path.write_bytes(MAGIC + len(notes).to_bytes(4, "little") + notes + b"plan")
    with pytest.raises(ValueError, match="TensorRT is not installed"):
        load_detector(path)
    with pytest.raises(ValueError, match="runs on CUDA devices alone, got device cpu"):
        load_detector(path, "cpu")


def test_a_signal_after_openvino_ends_nobody() -> None:
    """Two plugins that end in the order in which they were made; without help, the signal's stack is gone then."""
    pytest.importorskip("openvino")
    script = """
import gc, os, signal, sys
import numpy, openvino
from openvino import opset13
from detector.openvino_library import signal_stack_kept

def make():
    with signal_stack_kept():
        given = opset13.parameter([1, 4], numpy.float32)
        core = openvino.Core()
        return [core, core.compile_model(openvino.Model([opset13.relu(given)], [given]), "CPU")]

signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
first, second = make(), make()
for each in (first, second):
    each.clear()
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
