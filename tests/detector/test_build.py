"""What is trained, put together from settings; and the weights it starts from."""

from pathlib import Path

import pytest
import torch

from detector import save_model
from detector.build import build_step
from detector.darknet import DarknetConfig, DarknetJDE
from detector.losses import UNCERTAINTY_START, AnchorCriterion, JDECriterion
from detector.model import JDE, ModelConfig
from detector.training import TrainConfig, TrainingStep, is_embedding
from tests.detector.scenes import lively_darknet, lively_model
from tests.detector.test_published import darknet_binary, published, saved

COMPACT = ModelConfig(embedding_dim=8)
DARKNET = DarknetConfig(width=1 / 8, embedding_dim=16)
STRIDES = (8, 16, 32)


def build(num_ids: int = 5, teacher_dim: int = 0, darknet: DarknetConfig = DARKNET, **train: object):
    torch.manual_seed(0)
    return build_step(TrainConfig(**train), COMPACT, darknet, num_ids, teacher_dim)  # type: ignore[arg-type]


def same(model: torch.nn.Module, other: torch.nn.Module, skip: str = "\0") -> None:
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert name.endswith("num_batches_tracked") or skip in name or torch.equal(a, b), name


def uncertainties(step: TrainingStep) -> dict[str, float]:
    return {task: pytest.approx(s.item(), abs=1e-6) for task, s in step.weighting.s.items()}


# --- from random weights


def test_the_compact_family() -> None:
    step, taken = build(teacher_dim=6)
    assert taken == ""
    assert isinstance(step.model, JDE)
    assert step.model.config == COMPACT
    assert isinstance(step.criterion, JDECriterion)
    assert uncertainties(step) == dict.fromkeys(("box", "conf", "id", "distill"), 0)
    assert step.criterion.appearance.identity.weight.shape == (5, 8)
    assert step.criterion.appearance.to_teacher.weight.shape == (6, 8)
    assert all(p.requires_grad for p in step.parameters())


def test_the_published_family() -> None:
    step, _ = build(family="darknet53", parity=True)
    assert isinstance(step.model, DarknetJDE)
    assert step.model.config == DARKNET
    assert isinstance(step.criterion, AnchorCriterion)
    assert step.criterion.parity
    assert uncertainties(step) == {f"{task}_{s}": v for s in STRIDES for task, v in UNCERTAINTY_START.items()}
    assert not build(family="darknet53")[0].criterion.parity


@pytest.mark.parametrize("family", ["compact", "darknet53"])
def test_without_embeddings_there_is_nothing_to_identify(family: str) -> None:
    darknet53 = DarknetConfig(width=1 / 8, embedding_dim=0)
    step, _ = build_step(TrainConfig(family), ModelConfig(embedding_dim=0), darknet53, 5, 6)  # type: ignore[arg-type]
    assert {task.partition("_")[0] for task in step.weighting.s} == {"box", "conf"}
    with pytest.raises(ValueError, match="nothing to learn: the detector is frozen"):
        build_step(TrainConfig(family, freeze="detector"), ModelConfig(embedding_dim=0), darknet53, 5, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["compact", "darknet53"])
@pytest.mark.parametrize("still", [{"freeze": "detector"}, {"detector_lr": 0.0}])
def test_a_frozen_detector_has_no_losses_of_its_own(family: str, still: dict[str, object]) -> None:
    step, _ = build(family=family, **still)
    assert {task.partition("_")[0] for task in step.weighting.s} == {"id"}
    for name, parameter in step.model.named_parameters():
        assert parameter.requires_grad == is_embedding(name), name
    with pytest.raises(ValueError, match="nothing to learn"):
        build(num_ids=0, family=family, **still)


def test_a_frozen_backbone() -> None:
    for family in ("compact", "darknet53"):
        step, _ = build(family=family, freeze="backbone")
        for name, parameter in step.model.named_parameters():
            assert parameter.requires_grad != name.startswith("backbone."), name


def test_fixed_weights_are_one_half() -> None:
    for family in ("compact", "darknet53"):
        step, _ = build(family=family, weighting="fixed")
        assert {s.item() for s in step.weighting.s.values()} == {0}
        assert not any(s.requires_grad for s in step.weighting.s.values())


def test_weights_are_not_read_for_a_run_that_goes_on(tmp_path: Path) -> None:
    config = TrainConfig(init=str(tmp_path / "gone.onnx"))
    step, taken = build_step(config, COMPACT, DARKNET, 5, 0, take_over=False)
    assert taken == ""
    assert isinstance(step.model, JDE)


def test_shared_statistics_need_gpus() -> None:
    with pytest.raises(ValueError, match="sync_norm: works on GPUs alone"):
        build(sync_norm=True)


# --- from weights


def test_from_models_of_ours(tmp_path: Path) -> None:
    for family, model in (("compact", lively_model(embedding_dim=8)), ("darknet53", lively_darknet())):
        path = tmp_path / f"{family}.safetensors"
        save_model(path, model, half=False)
        darknet = DarknetConfig(width=1 / 8, embedding_dim=16, input_size=(96, 64))
        step, taken = build(family=family, init=str(path), darknet=darknet)
        assert taken == f"{path}: taken over"
        same(step.model, model)


def test_from_a_darknet_backbone(tmp_path: Path) -> None:
    model = lively_darknet()
    path = tmp_path / "darknet53.conv.74"
    darknet_binary(model.backbone).tofile(path)
    step, taken = build(family="darknet53", init=str(path))
    assert taken == f"{path}: 52 convolutions of the backbone taken over"
    same(step.model.backbone, model.backbone)
    fresh = build(family="darknet53")[0].model
    for a, b in zip(step.model.levels, fresh.levels, strict=True):
        same(a, b)


@pytest.mark.parametrize("num_ids", [7, 5])
@pytest.mark.parametrize("weighting", ["learned", "fixed"])
def test_from_a_published_checkpoint(tmp_path: Path, num_ids: int, weighting: str) -> None:
    """Network and uncertainties; the classifier where the data have as many identities."""
    darknet = DarknetConfig(width=1 / 4, embedding_dim=16)
    model = lively_darknet(width=1 / 4, input_size=darknet.input_size)
    state = published(model, ids=7)
    path = saved(tmp_path / "jde.1088x608.pt", state)
    step, taken = build(num_ids, 6, darknet, family="darknet53", init=str(path), weighting=weighting)
    same(step.model, model)
    same_ids = num_ids == 7
    assert taken == f"{path}: taken over, {'with' if same_ids else 'without'} its classifier of 7 identities"
    if same_ids:
        assert torch.equal(step.criterion.appearance.identity.weight, state["classifier.weight"])
        assert torch.equal(step.criterion.appearance.identity.bias, state["classifier.bias"])
    else:
        assert step.criterion.appearance.identity.weight.shape == (5, 16)
    found = uncertainties(step)
    if weighting == "fixed":
        assert set(found) == {f"{t}_{s}" for s in STRIDES for t in ("box", "conf", "id", "distill")}
        assert all(value == 0 for value in found.values())
    else:  # published() counts down, coarsest level first
        tasks = [f"{task}_{s}" for s in (32, 16, 8) for task in ("box", "conf", "id")]
        assert found == {t: -i for i, t in enumerate(tasks)} | {f"distill_{s}": 0 for s in STRIDES}


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    """By what they are, with the setting that would fit."""

    def refuse(family: str, name: str, message: str, darknet: DarknetConfig = DARKNET) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            build(family=family, init=str(tmp_path / name), darknet=darknet)
        assert str(caught.value).startswith(str(tmp_path / name))

    save_model(tmp_path / "jde.safetensors", JDE(COMPACT))
    save_model(tmp_path / "tiny.safetensors", JDE(ModelConfig("tiny", embedding_dim=8)))
    save_model(tmp_path / "darknet.safetensors", DarknetJDE(DARKNET))
    refuse("darknet53", "jde.safetensors", "a model of another family: set train.family")
    refuse("compact", "darknet.safetensors", "a model of another family: set train.family")
    refuse("compact", "tiny.safetensors", "the weights do not fit the model: ")
    refuse("darknet53", "yolox.onnx", "YOLOX weights fit the compact family alone")
    for name in ("jde.pt", "jde.pth", "darknet53.conv.74"):
        refuse("compact", name, r"expected .onnx or .safetensors for the compact family; or set train.family=darknet53")
    refuse("darknet53", "absent.conv.74", "not a readable file")
    refuse("darknet53", "absent.pt", "no such weights file")
    saved(tmp_path / "jde.576x320.pt", published(lively_darknet(input_size=(576, 320))))
    refuse("darknet53", "jde.576x320.pt", r"made for other anchors: set darknet53.input_size=\[576, 320\]")
    wider = DarknetConfig(width=1 / 4, embedding_dim=16, input_size=(576, 320))
    refuse("darknet53", "jde.576x320.pt", "the weights do not fit the model: ", wider)
