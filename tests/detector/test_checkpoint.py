import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from detector import JDE, ModelConfig, load_model, load_yolox_onnx, save_model
from detector.darknet import DarknetJDE
from detector.inference import letterbox
from detector.priors import Canvas
from tests.detector.scenes import lively_darknet, lively_model


@pytest.fixture(scope="module")
def yolox(shared: Path) -> Path:
    return shared / "data" / "weights" / "yolox_nano.onnx"


def real_image(shared: Path) -> np.ndarray:
    frame = cv2.imread(str(sorted((shared / "data" / "det" / "coco256" / "images" / "val2017").glob("*.jpg"))[0]))
    return letterbox(frame, Canvas(416, 416, 416 / max(frame.shape[:2]), centred=False), 114)[0]


@pytest.mark.shared
def test_yolox_weights_give_onnx_runtimes_output(yolox: Path, shared: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(yolox), options, providers=["CPUExecutionProvider"])
    model = JDE(ModelConfig(num_classes=80, embedding_dim=0))
    assert load_yolox_onnx(yolox, model) == 226
    one_class = JDE(ModelConfig(embedding_dim=0))
    assert load_yolox_onnx(yolox, one_class) == 226
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (416, 416, 3), dtype=np.uint8), real_image(shared)):
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        wanted = session.run(None, {session.get_inputs()[0].name: images})[0]
        with torch.no_grad():
            ours = model.flatten(model.eval()(torch.from_numpy(images))[0]).numpy()
            person = one_class.flatten(one_class.eval()(torch.from_numpy(images))[0]).numpy()
        assert ours.shape == wanted.shape == (1, 3549, 85)
        ours[..., 4:] = 1 / (1 + np.exp(-ours[..., 4:]))
        person[..., 4:] = 1 / (1 + np.exp(-person[..., 4:]))
        assert np.abs(ours - wanted).max() < 1e-3
        assert person.shape == (1, 3549, 6)
        assert np.abs(person - wanted[..., :6]).max() < 1e-3  # class 0 of the 80 is person


@pytest.mark.shared
def test_yolox_weights_leave_the_embedding_head_alone(yolox: Path) -> None:
    model = lively_model(embedding_dim=16)
    before = {k: v.clone() for k, v in model.embedding_head.state_dict().items()}
    load_yolox_onnx(yolox, model)
    assert all(torch.equal(v, before[k]) for k, v in model.embedding_head.state_dict().items())


@pytest.mark.shared
@pytest.mark.parametrize("size", ["tiny", "m"])
def test_yolox_of_another_size(yolox: Path, size: str) -> None:
    with pytest.raises(ValueError, match=r"yolox_nano.onnx: expected \d+ convolutions, got 113"):
        load_yolox_onnx(yolox, JDE(ModelConfig(size=size)))


@pytest.mark.shared
def test_yolox_with_another_number_of_classes(yolox: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a weight of \(3, 64, 1, 1\) for heads.0.class_logits, got \(80,"):
        load_yolox_onnx(yolox, JDE(ModelConfig(num_classes=3)))


def test_not_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    text = tmp_path / "text.onnx"
    text.write_text("hello, this is no network")
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(ValueError, match=r"text.onnx: not a readable ONNX file"):
        load_yolox_onnx(text, JDE())
    with pytest.raises(ValueError, match=r"absent.onnx: not a readable ONNX file"):
        load_yolox_onnx(tmp_path / "absent.onnx", JDE())
    with pytest.raises(ValueError, match=r"empty.onnx: expected 113 convolutions, got 0"):
        load_yolox_onnx(empty, JDE())


def test_round_trip_in_full_precision(tmp_path: Path) -> None:
    model = lively_model(size="tiny", num_classes=2, embedding_dim=24)
    save_model(tmp_path / "sub" / "m.safetensors", model, {"who": "me"}, half=False)
    again = load_model(tmp_path / "sub" / "m.safetensors")
    assert again.config == model.config
    assert not again.training
    for (name, a), (other, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(images)[0], again(images)[0], strict=True))


@pytest.mark.parametrize("anchors", [(), tuple(range(8, 32))], ids=["published anchors", "own anchors"])
def test_round_trip_of_the_other_family(tmp_path: Path, anchors: tuple[int, ...]) -> None:
    model = lively_darknet(anchors=anchors)
    save_model(tmp_path / "m.safetensors", model, {"who": "me"}, half=False)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata()["family"] == "darknet53"
    again = load_model(tmp_path / "m.safetensors")
    assert isinstance(again, DarknetJDE)
    assert again.config == model.config  # tuples, though JSON has lists alone
    assert again.anchors == model.anchors
    assert not again.training
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        for maps, others in zip(model(images), again(images), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(maps, others, strict=True))


def test_a_file_without_family_is_of_the_compact_one(tmp_path: Path) -> None:
    """So were all before there was a second."""
    save_model(tmp_path / "m.safetensors", lively_model(embedding_dim=8))
    old = without(tmp_path / "m.safetensors", tmp_path / "old.safetensors", lambda t, m: m.pop("family"))
    assert isinstance(load_model(old), JDE)


def test_round_trip_in_half_precision(tmp_path: Path) -> None:
    model = lively_model(embedding_dim=16)
    save_model(tmp_path / "m.safetensors", model)
    save_model(tmp_path / "full.safetensors", model, half=False)
    for a, b in zip(
        model.state_dict().values(), load_model(tmp_path / "m.safetensors").state_dict().values(), strict=True
    ):
        if a.is_floating_point():
            assert torch.equal(a.half().float(), b)
    sizes = [(tmp_path / name).stat().st_size for name in ("m.safetensors", "full.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    assert model.state_dict()["backbone.stem.conv.conv.weight"].dtype == torch.float32  # the model itself is as it was


def test_metadata_tells_what_the_file_is(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", lively_model(), {"step": 3, "data": ["a", "b"]})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "jdetrack-detector"
    assert json.loads(metadata["model"]) == {"size": "nano", "num_classes": 1, "embedding_dim": 128}
    assert json.loads(metadata["notes"]) == {"step": 3, "data": ["a", "b"]}


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lively_model(0))
    before = path.read_bytes()

    write_bytes = Path.write_bytes

    def broken(target: Path, data: bytes) -> int:
        write_bytes(target, data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        save_model(path, lively_model(1))
    assert path.read_bytes() == before


def without(path: Path, target: Path, change) -> Path:
    """A copy of a model file with its tensors or metadata changed."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, target, metadata=metadata)
    return target


def test_files_that_are_no_model(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_model(good, lively_model(embedding_dim=8))

    def refuse(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refuse(tmp_path / "absent.safetensors", "no such weights file")
    refuse(tmp_path, "no such weights file")
    text = tmp_path / "text.safetensors"
    text.write_text("hello, this is not a model at all")
    refuse(text, "not a readable safetensors file")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    refuse(empty, "not a readable safetensors file")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-1000])
    refuse(cut, "not a readable safetensors file")
    pickled = tmp_path / "pickled.safetensors"
    torch.save(lively_model(embedding_dim=8).state_dict(), pickled)
    refuse(pickled, "not a readable safetensors file")
    refuse(pickled.rename(tmp_path / "pickled.pt"), "expected a published JDE checkpoint")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    refuse(foreign, "expected a jdetrack-detector file, got format None")

    target = tmp_path / "changed.safetensors"
    refuse(without(good, target, lambda t, m: m.pop("model")), "unreadable model configuration")
    refuse(without(good, target, lambda t, m: m.update(model="{")), "unreadable model configuration")
    refuse(without(good, target, lambda t, m: m.update(model='{"size": "xl"}')), "size: expected one of")
    refuse(without(good, target, lambda t, m: m.update(model='{"sizes": 1}')), "unreadable model configuration")
    refuse(without(good, target, lambda t, m: m.update(family="odd")), r"unreadable model configuration \('odd'\)")
    refuse(without(good, target, lambda t, m: m.update(family="darknet53")), "unreadable model configuration")
    key = "heads.0.objectness.bias"
    refuse(without(good, target, lambda t, m: t.pop(key)), rf"do not fit the model: 1 missing \({key}\)")
    refuse(without(good, target, lambda t, m: t.update(odd=torch.zeros(1))), r"1 unexpected \(odd\)")
    refuse(
        without(good, target, lambda t, m: t.update({key: torch.zeros(2)})),
        rf"1 mis-shaped \({key} \(2,\) for \(1,\)\)",
    )


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = JDE()
    model.heads[1].objectness.bias.data[0] = torch.nan
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match=r"m\.safetensors: heads\.1\.objectness\.bias has weights that are not finite"):
        load_model(tmp_path / "m.safetensors")


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, lively_model())

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load_model(path)
    (tmp_path / "evil.safetensors").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_model(tmp_path / "evil.safetensors")


def test_numbers_too_large_for_half_precision_are_kept(tmp_path: Path) -> None:
    model = JDE(ModelConfig(embedding_dim=0))
    model.backbone.stem.conv.norm.running_var.fill_(7e4)
    save_model(tmp_path / "m.safetensors", model)
    assert (load_model(tmp_path / "m.safetensors").backbone.stem.conv.norm.running_var == 7e4).all()
