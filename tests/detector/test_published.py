import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import load_model
from detector.csp import ConvBlock
from detector.darknet import Darknet53, DarknetConfig, DarknetJDE
from detector.priors import Picks, decode_boxes
from detector.published import load_darknet53, load_published, published_names, training_names
from tests.detector.scenes import lively_darknet

# --- the recorded numbers


def golden_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The weights that golden/README.md describes."""
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if "batch_norm" in key:
        kind = key.rpartition(".")[2]
        return {"weight": 0.3 + 0.05 * r, "running_var": 0.75 + 0.25 * r.tanh()}.get(kind, 0.1 * r)
    if r.ndim == 4:
        return r * (2 / r[0].numel()) ** 0.5
    return 0.1 * r


@pytest.mark.shared
@torch.no_grad()
def test_the_published_network(shared: Path, tmp_path: Path) -> None:
    """Every tensor is taken over, and predictions and embeddings are those recorded."""
    shapes = json.loads((shared / "golden" / "jde_state_dict_shapes.json").read_text())
    state = {}
    for key, shape in shapes.items():
        kind = key.rpartition(".")[2]
        if kind == "num_batches_tracked":
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif kind in ("s_c", "s_r", "s_id"):
            state[key] = torch.full(shape, -float(zlib.crc32(key.encode()) % 7))
        else:
            state[key] = golden_tensor(key, shape)
    path = tmp_path / "jde.576x320.pt"
    torch.save({"epoch": 30, "model": state}, path)
    model, training = load_published(path)
    path.unlink()

    assert model.config == DarknetConfig(input_size=(576, 320))
    consumed = {*published_names(model).values(), *training_names().values(), "classifier.weight", "classifier.bias"}
    assert consumed == {k for k in shapes if not k.endswith("num_batches_tracked")}
    assert {k: float(training[k]) for k in training_names()} == {
        k: float(state[v]) for k, v in training_names().items()
    }
    assert torch.equal(training["classifier.weight"], state["classifier.weight"])

    recorded = np.load(shared / "golden" / "jde_forward_576x320.npz")
    wanted, rows = torch.from_numpy(recorded["output"]), torch.from_numpy(recorded["rows"])
    images = torch.rand(2, 3, 320, 576, generator=torch.Generator().manual_seed(7))
    raw, features = model.eval()(images.flip(1) * 255)
    flat, priors = model.flatten(raw), model.priors(raw)
    assert (len(flat), flat.shape[1], 6 + model.config.embedding_dim) == tuple(recorded["shape"])
    ours = torch.cat([(priors.level == level).nonzero()[:, 0] for level in (2, 1, 0)])[rows]
    boxes = decode_boxes(flat[..., :4], priors)[:, ours]
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    image = torch.arange(2).repeat_interleave(len(rows))
    embeddings = model.embed(features, Picks.of(priors, ours.repeat(2), image, boxes.flatten(0, 1))).view(
        2, len(rows), -1
    )
    scores = model.scores(flat)[0][:, ours, None]
    found = torch.cat((centre, size, scores, torch.zeros_like(scores), embeddings), dim=2)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-3


# --- small checkpoints of the published kind


def published(model: DarknetJDE, ids: int = 7) -> dict[str, torch.Tensor]:
    """The state dict that the published code would have written for a network."""
    own = model.state_dict()
    state = {theirs: own[ours].clone() for ours, theirs in published_names(model).items()}
    state |= {f"{k.rpartition('.')[0]}.num_batches_tracked": torch.tensor(3) for k in state if "running_mean" in k}
    state |= {theirs: torch.full((1,), -float(i)) for i, theirs in enumerate(training_names().values())}
    dim = model.config.embedding_dim
    generator = torch.Generator().manual_seed(0)
    state["classifier.weight"] = torch.randn(ids, dim, generator=generator)
    state["classifier.bias"] = torch.randn(ids, generator=generator)
    return state


@pytest.fixture(scope="module")
def model() -> DarknetJDE:
    return lively_darknet(input_size=(1088, 608))


def saved(path: Path, state: dict[str, torch.Tensor], **options: object) -> Path:
    torch.save({"epoch": 1, "best_loss": 0.5, "optimizer": {"state": {}}, "model": state}, path, **options)
    return path


def assert_equal(a: DarknetJDE, b: DarknetJDE) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.equal(x, y), name


@pytest.mark.parametrize("ids", [7, 14455])
def test_round_trip_with_any_number_of_identities(model: DarknetJDE, tmp_path: Path, ids: int) -> None:
    state = published(model, ids)
    again, training = load_published(saved(tmp_path / "jde.pt", state))
    assert again.config == model.config  # width, embedding length and input size are found out
    assert_equal(model, again)
    assert set(training) == {"classifier.weight", "classifier.bias", *training_names()}
    assert torch.equal(training["classifier.weight"], state["classifier.weight"])
    assert torch.equal(training["classifier.bias"], state["classifier.bias"])
    assert training["s.box_32"].shape == ()
    assert [float(training[k]) for k in ("s.box_32", "s.conf_32", "s.id_32", "s.box_16")] == [0, -1, -2, -3]


def test_another_width_and_embedding_length(tmp_path: Path) -> None:
    narrow = lively_darknet(width=0.25, embedding_dim=24, input_size=(864, 480))
    path = saved(tmp_path / "jde_864x480_uncertainty.pt", published(narrow))
    again = load_model(path)
    assert again.config == DarknetConfig(width=0.25, embedding_dim=24, input_size=(864, 480))
    assert not again.training
    assert_equal(narrow, again)


@pytest.mark.parametrize("how", ["parallel", "half", "old format", "counters left out"])
def test_ways_to_write_the_same(model: DarknetJDE, tmp_path: Path, how: str) -> None:
    state, options = published(model), {}
    if how == "parallel":
        state = {f"module.{k}": v for k, v in state.items()}
    elif how == "half":
        state = {k: v.half().float() for k, v in state.items()}
        model = load_published(saved(tmp_path / "rounded.pt", state))[0]
        state = {k: v.half() for k, v in state.items()}
    elif how == "old format":
        options = {"_use_new_zipfile_serialization": False}
    else:
        state = {k: v for k, v in state.items() if "num_batches" not in k}
    again = load_published(saved(tmp_path / "jde.pt", state, **options))[0]
    assert_equal(model, again)
    assert again.backbone.stem.conv.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("jde.1088x608.uncertainty.pt", (1088, 608)),
        ("jde.864x480.pt", (864, 480)),
        ("576x320.pth", (576, 320)),
        ("latest.pt", (1088, 608)),
    ],
)
def test_the_input_size_is_in_the_name(model: DarknetJDE, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    assert load_published(saved(tmp_path / name, published(model)))[0].config.input_size == size


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_input_size(model: DarknetJDE, tmp_path: Path) -> None:
    path = saved(tmp_path / "jde.640x480.pt", published(model))
    refuse(path, "input size in the name: expected one of 1088x608, 864x480, 576x320, got 640x480")


def test_tensors_that_do_not_fit_are_named_as_published(model: DarknetJDE, tmp_path: Path) -> None:
    path = tmp_path / "jde.pt"
    state = published(model)
    missing = {k: v for k, v in state.items() if k != "module_list.45.batch_norm_45.running_var"}
    refuse(saved(path, missing), r"1 missing \(module_list.45.batch_norm_45.running_var\)")
    refuse(saved(path, state | {"module_list.200.conv_200.weight": torch.zeros(1)}), r"1 unexpected \(module_list.200")
    odd = state | {"module_list.1.conv_1.weight": torch.zeros(5, 5, 3, 3)}
    refuse(saved(path, odd), r"1 mis-shaped \(module_list.1.conv_1.weight \(5, 5, 3, 3\) for \(8, 4, 3, 3\)\)")
    refuse(saved(path, state | {"classifier.weight": torch.zeros(7, 9)}), r"classifier.weight \(7, 9\) for \(7, 16\)")
    refuse(saved(path, state | {"classifier.weight": torch.zeros(9)}), r"2 mis-shaped \(classifier.weight \(9,\) for")
    without = {k: v for k, v in state.items() if not k.startswith("classifier")}
    refuse(saved(path, without), r"2 missing \(classifier.weight, classifier.bias\)")
    few = dict(list(state.items())[: len(state) // 2])
    refuse(saved(path, few), r"\d\d+ missing \(.*, .*, .*, …\)")
    wide = state | {"module_list.0.conv_0.weight": torch.zeros(1000, 3, 3, 3)}
    refuse(saved(path, wide), r"width: expected a number in \(0, 4\], got 31.25")
    refuse(
        saved(path, state | {"module_list.83.conv_83.weight": torch.zeros(0, 32, 3, 3)}),
        r"mis-shaped \(module_list.83.conv_83.weight \(0, 32, 3, 3\) for \(512,",
    )


def test_files_that_are_no_published_checkpoint(model: DarknetJDE, tmp_path: Path) -> None:
    path = saved(tmp_path / "jde.pt", published(model))
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1000, 10, 0):
        path.write_bytes(whole[:cut])
        refuse(path, "not a readable checkpoint of plain tensors")
    refuse(tmp_path / "absent.pt", "no such weights file")
    (tmp_path / "folder.pt").mkdir()
    refuse(tmp_path / "folder.pt", "no such weights file")
    expected = r"expected a published JDE checkpoint, \{'model': state_dict, ...\}"
    for content in (model.state_dict(), {"model": {}}, {"model": {"a": 1}}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        refuse(path, expected)
    torch.save({"parts": {"model": model.state_dict()}, "optimizer": {}, "step": 3}, tmp_path / "last.pt")
    refuse(tmp_path / "last.pt", "a checkpoint to resume training from; the model is model.safetensors beside it")


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"model": Evil(trace)}, path, _use_new_zipfile_serialization=zipped)
    refuse(path, "not a readable checkpoint of plain tensors")
    assert not trace.exists()


# --- Darknet binaries


def darknet_binary(backbone: Darknet53) -> np.ndarray:
    """What Darknet writes: five words, then of each convolution bias, scale, mean, variance, kernels."""
    parts = [np.array([0, 2, 0, 32013312, 0], "<i4").view("<f4")]
    for block in (m for m in backbone.modules() if isinstance(m, ConvBlock)):
        norm = block.norm
        for part in (norm.bias, norm.weight, norm.running_mean, norm.running_var, block.conv.weight):
            parts.append(part.detach().numpy().astype("<f4").ravel())
    return np.concatenate(parts)


def test_darknet_weights_round_trip(model: DarknetJDE, tmp_path: Path) -> None:
    words = darknet_binary(model.backbone)
    words.tofile(tmp_path / "darknet53.conv.74")
    torch.manual_seed(1)
    other = DarknetJDE(model.config)
    levels = {k: v.clone() for k, v in other.state_dict().items() if not k.startswith("backbone")}
    assert load_darknet53(tmp_path / "darknet53.conv.74", other.backbone) == 52
    for (name, a), b in zip(other.backbone.state_dict().items(), model.backbone.state_dict().values(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.equal(a, b), name
    assert all(torch.equal(v, levels[k]) for k, v in other.state_dict().items() if k in levels)
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        for a, b in zip(other.eval().backbone(images), model.backbone(images), strict=True):
            assert torch.equal(a, b)


def test_darknet_files_that_do_not_fit(model: DarknetJDE, tmp_path: Path) -> None:
    path = tmp_path / "darknet53.conv.74"
    words = darknet_binary(model.backbone)
    other = DarknetJDE(model.config)
    before = {k: v.clone() for k, v in other.state_dict().items()}

    def refuse_binary(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            load_darknet53(path, other.backbone)
        assert str(path) in str(caught.value)

    whole = words.tobytes()
    for data in (whole[:-4], whole[:-1], whole[: len(whole) // 2], whole + b"\0\0\0\0", whole + b"\0", b""):
        refuse_binary(data, rf"expected {len(whole)} bytes \(52 convolutions of Darknet-53\), got {len(data)}")
    for value in (np.nan, np.inf):
        words[-1] = value
        refuse_binary(words.tobytes(), "holds numbers that are not finite")
    with pytest.raises(ValueError, match=r"absent: not a readable file \(No such file or directory\)"):
        load_darknet53(tmp_path / "absent", other.backbone)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
