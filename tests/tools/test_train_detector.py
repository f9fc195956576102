import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

import reid.teacher
from detector import Detector, DetectorConfig, load_model, save_model
from detector.darknet import DarknetConfig, DarknetJDE
from detector.data import BatchPlan, TrainingSet, open_source
from detector.losses import JDECriterion, UncertaintyWeighting
from detector.model import JDE, ModelConfig
from reid.osnet import OSNet
from tests.detector.scenes import lively_darknet, noise, write_people
from tests.detector.test_annotations import write_sequence
from tests.detector.test_published import darknet_binary, published, saved
from tests.tools.conftest import TOOLS, call_tool, load_tool

TOOL = TOOLS / "train_detector.py"
SMALL = ["train.steps=4", "train.batch_size=2", "train.sizes=[64]", "train.save_every=2", "train.warmup=2"]
SMALL += ["model.embedding_dim=8"]
DARKNET = ["train.family=darknet53", "darknet53.width=0.125", "darknet53.embedding_dim=8"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_detector")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums, and with it the last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"), 6, 96)


@pytest.fixture
def run(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process on the CPU: arguments -> (status, stdout, stderr)."""

    def call(*argv: object, small: bool = True, workers: int = 0) -> tuple[int, str, str]:
        settings = sets(*SMALL) if small else []
        return call_tool(tool, capfd, *settings, "--device", "cpu", "--workers", workers, *argv)

    return call


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "osnet.pth"
    torch.save(OSNet(0.25).state_dict(), path)
    return path


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def checkpoint(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(out / "last.pt", weights_only=True)


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """All leaves of nested dictionaries and lists."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(item, f"{name}.{key}")
    else:
        yield name, value


def assert_equal(a: object, b: object) -> None:
    """Bit for bit."""
    left, right = dict(flat(a)), dict(flat(b))
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        assert same, name


def test_trains_and_writes_everything(run: Run, images: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, _ = run("--data", f"jde:{images}", "--teacher", encoder, "--out", out)
    assert status == 0
    assert "6 images, 12 people, 12 with an identity, 0 images without labels" in printed
    assert "2 identities" in printed
    files = ["last.pt", "log.jsonl", "model.safetensors", "tensorboard"]
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".npy") == files
    log = log_of(out)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    tasks = ("box", "conf", "id", "distill")
    assert log[0].keys() == {"step", "lr", "total", "grad_norm", *tasks, *(f"s_{task}" for task in tasks)}
    for row in log:
        assert np.isfinite(list(row.values())).all()
    assert log[0]["total"] == pytest.approx(0.5 * sum(log[0][task] for task in tasks), rel=1e-5)  # s starts at zero

    model = load_model(out / "model.safetensors")
    assert model.config == ModelConfig(embedding_dim=8)
    average = {k.removeprefix("average."): v for k, v in checkpoint(out)["parts"].items() if k.startswith("average.")}
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, average[name].half().float()), name
    Detector(model, "cpu", DetectorConfig(input_size=96))([noise(60, 90)])


def test_the_published_family_trains(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, _, _ = run("--data", f"jde:{images}", "--out", out, *sets(*DARKNET))
    assert status == 0
    log = log_of(out)
    tasks = {f"{task}_{stride}" for task in ("box", "conf", "id") for stride in (8, 16, 32)}
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    for row in log:
        assert row.keys() == {"step", "lr", "total", "grad_norm", *tasks, *(f"s_{task}" for task in tasks)}
        assert np.isfinite(list(row.values())).all()
    model = load_model(out / "model.safetensors")
    assert model.config == DarknetConfig(width=1 / 8, embedding_dim=8)
    Detector(model, "cpu", DetectorConfig(input_size=96))([noise(60, 90)])


def test_the_teacher_is_asked_once_and_not_about_crops(
    run: Run, images: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked: list[int] = []
    encode = reid.teacher.encode_crops
    monkeypatch.setattr(reid.teacher, "encode_crops", lambda e, crops: asked.append(len(crops)) or encode(e, crops))
    crops = tmp_path / "crops"
    crops.mkdir()
    for k in range(4):
        cv2.imwrite(str(crops / f"{k // 2:04d}_c1s1_{k}.png"), noise(48, 24, k))
    argv = ("--data", f"jde:{images}", "--data", f"crops:{crops}@4", "--teacher", encoder, "--out", out)
    assert run(*argv)[0] == 0
    assert asked == [12]
    rows = np.load(next(out.glob("*.npy")))
    assert (rows.shape, rows.dtype.name) == ((12, 512), "float16")
    for name in ("last.pt", "model.safetensors"):  # a new run in the same folder
        (out / name).unlink()
    assert run(*argv)[0] == 0
    assert asked == [12]
    assert all(np.isfinite(row["distill"]) for row in log_of(out))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_one_never_stopped(
    tool: ModuleType, run: Run, images: Path, encoder: Path, tmp_path: Path, monkeypatch, workers: int
) -> None:
    """Bit for bit, wherever it was stopped: weights, moving average, optimiser, log."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    data = ("--data", f"jde:{images}@0.5", "--teacher", encoder)  # an epoch of one step: several are passed
    assert run(*data, "--out", straight)[0] == 0

    optimise, steps = tool.optimise, []

    def interrupt(*args: object) -> object:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return optimise(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "optimise", interrupt)
        status, _, err = run(*data, "--out", stopped, workers=workers)
    assert status == 130
    assert err.strip().endswith(f"stopped; go on with: --out {stopped} --resume")
    assert checkpoint(stopped)["step"] == 2
    assert [row["step"] for row in log_of(stopped)] == [1, 2, 3]

    assert run("--out", stopped, "--resume", small=False, workers=workers)[0] == 0
    assert_equal(checkpoint(straight), checkpoint(stopped))
    assert log_of(straight) == log_of(stopped)
    weights = [load_model(out / "model.safetensors").state_dict() for out in (straight, stopped)]
    assert_equal(*map(dict, weights))
    rates = [group["lr"] for group in checkpoint(stopped)["optimizer"]["param_groups"]]
    share = 0.01 + 0.99 * 0.25  # the last of four steps, one of them warm-up: two thirds down the cosine
    assert rates == pytest.approx([2e-4 * share] * 2 + [2e-3 * share] * 4)  # detector, embedding, classifier


def test_training_can_be_prolonged_and_slowed(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--data", f"jde:{images}", "--out", out)[0] == 0
    changes = ["--set", "train.steps=6", "--set", "train.detector_lr=1e-5", "--set", "train.weight_decay=0.5"]
    assert run("--out", out, "--resume", *changes, small=False)[0] == 0
    assert [row["step"] for row in log_of(out)] == [1, 2, 3, 4, 5, 6]
    groups = checkpoint(out)["optimizer"]["param_groups"]
    assert [group["peak"] for group in groups] == [1e-5, 1e-5, 2e-3, 2e-3, 2e-3, 2e-3]
    assert [group["weight_decay"] for group in groups] == [0.5, 0, 0.5, 0, 0.5, 0]
    assert groups[0]["lr"] < 1e-5
    status, printed, _ = run("--out", out, "--resume", small=False)  # nothing left to do
    assert status == 0
    assert "trained for 6 steps" in printed


def test_an_earlier_run_is_not_overwritten(run: Run, images: Path, tmp_path: Path) -> None:
    argv = ("--data", f"jde:{images}", "--out", tmp_path / "out")
    assert run(*argv)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    status, _, err = run(*argv)
    assert (status, err.count("\n")) == (1, 1)
    assert "last.pt: is of an earlier run; give --resume to go on, or another --out" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    for name in ("last.pt", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    assert run(*argv)[0] == 0
    assert [row["step"] for row in log_of(tmp_path / "out")] == [1, 2, 3, 4]  # a log of its own


def test_nothing_to_resume(run: Run, tmp_path: Path) -> None:
    status, _, err = run("--out", tmp_path, "--resume")
    assert status == 1
    assert "last.pt: no checkpoint to resume from" in err


def test_detection_alone(run: Run, images: Path, tmp_path: Path) -> None:
    status, _, _ = run("--data", f"jde:{images}", "--out", tmp_path, "--set", "model.embedding_dim=0")
    assert status == 0
    assert log_of(tmp_path)[0].keys() == {"step", "lr", "total", "grad_norm", "box", "conf", "s_box", "s_conf"}
    assert load_model(tmp_path / "model.safetensors").config.embedding_dim == 0


def test_starts_from_a_model_of_ours(run: Run, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    start = JDE(ModelConfig(embedding_dim=8)).eval()
    save_model(tmp_path / "start.safetensors", start, half=False)
    out = tmp_path / "out"
    still = ["--set", "train.detector_lr=0", "--set", "train.embedding_lr=0"]
    assert run("--data", f"jde:{images}", "--init", tmp_path / "start.safetensors", "--out", out, *still)[0] == 0
    pixels = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():  # no learning, frozen norms: the detection part is what it was, in half precision
        assert torch.allclose(
            start.flatten(load_model(out / "model.safetensors")(pixels)[0]), start.flatten(start(pixels)[0]), atol=1e-2
        )
    save_model(tmp_path / "tiny.safetensors", JDE(ModelConfig("tiny", embedding_dim=8)))
    status, _, err = run("--data", f"jde:{images}", "--init", tmp_path / "tiny.safetensors", "--out", tmp_path / "b")
    assert status == 1
    assert err.startswith(f"error: {tmp_path / 'tiny.safetensors'}: the weights do not fit the model: ")
    assert err.count("\n") == 1


@pytest.mark.shared
def test_starts_from_yolox(run: Run, images: Path, tmp_path: Path, shared: Path) -> None:
    weights = shared / "data" / "weights" / "yolox_nano.onnx"
    status, printed, _ = run("--data", f"jde:{images}", "--init", weights, "--out", tmp_path)
    assert status == 0
    assert f"{weights}: 226 tensors taken over" in printed
    bias = load_model(tmp_path / "model.safetensors").heads[0].objectness.bias
    assert bias.item() != pytest.approx(-4.595, abs=0.1)  # not the start of a random network


def test_a_frozen_detector_stays_as_it_is(run: Run, images: Path, encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    save_model(tmp_path / "start.safetensors", JDE(ModelConfig(embedding_dim=8)))
    start = load_model(tmp_path / "start.safetensors").state_dict()
    data = ("--data", f"jde:{images}", "--teacher", encoder, "--init", tmp_path / "start.safetensors")
    assert run(*data, "--out", tmp_path / "out", "--set", "train.detector_lr=0")[0] == 0
    changed = {
        k for k, v in load_model(tmp_path / "out" / "model.safetensors").state_dict().items() if (v != start[k]).any()
    }
    assert changed
    assert all(name.startswith("embedding_head.") for name in changed)
    log = log_of(tmp_path / "out")
    assert {"s_id", "s_distill"} <= log[0].keys()
    assert "nothing to learn" in failing(
        run(
            "--data",
            f"jde:{images}",
            "--out",
            tmp_path / "none",
            *sets("train.detector_lr=0", "model.embedding_dim=0"),
        )
    )


def test_frozen_norms_keep_their_statistics(run: Run, images: Path, tmp_path: Path) -> None:
    def moved(out: Path) -> tuple[bool, bool]:
        start = "step.model."
        state = {k: v for k, v in checkpoint(out)["parts"].items() if k.startswith(start) and "running_var" in k}
        head = [bool((v != 1).any()) for k, v in state.items() if "embedding_head" in k]
        return any(bool((v != 1).any()) for k, v in state.items() if "embedding_head" not in k), any(head)

    # auto: nothing to keep without --init
    for given, expected in (("detector", (False, True)), ("auto", (True, True)), ("all", (False, False))):
        out = tmp_path / given
        assert run("--data", f"jde:{images}", "--out", out, "--set", f"train.frozen_norm={given}")[0] == 0
        assert moved(out) == expected


def failing(outcome: tuple[int, str, str]) -> str:
    """The one line on stderr of a run that failed."""
    status, _, err = outcome
    assert status == 1
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.removeprefix("error: ").strip()


def test_errors_are_one_line(run: Run, images: Path, tmp_path: Path) -> None:
    data = ("--data", f"jde:{images}", "--out", tmp_path / "out")

    def refused(*settings: str) -> str:
        return failing(run(*data, *sets(*settings)))

    assert failing(run("--out", tmp_path)).startswith("no data: give --data LAYOUT:PATH")
    assert failing(run("--data", f"jde:{tmp_path / 'absent'}")).startswith(
        f"{tmp_path / 'absent'}: no such file or folder"
    )
    assert "unknown key in section 'train': 'step'; did you mean steps" in refused("train.step=5")
    assert "train.steps: expected int or null, got 'many'" in refused("train.steps=many")
    assert "sizes: expected positive multiples of 32, got [333]" in refused("train.sizes=[333]")
    assert "batch_size: expected at least 1, got 0" in refused("train.batch_size=0")
    assert "save_every: expected at least 1, got 0" in refused("train.save_every=0")
    assert "mosaic: expected a number in [0, 1], got 2.0" in refused("augmentation.mosaic=2")
    assert "unknown key in section 'train': 'mosaic'" in refused("train.mosaic=0.5")
    assert "batch_size: expected a multiple of 1 processes times 3 parts, got 2" in refused("train.accumulate=3")
    assert "nothing to learn" in refused("train.freeze=detector", "model.embedding_dim=0")
    assert "size: expected one of" in refused("model.size=xl")
    assert "absent.yaml: no such config file" in failing(run(*data, "--config", "absent.yaml"))
    assert "absent.pth: no such weights file" in failing(run(*data, "--teacher", tmp_path / "absent.pth"))
    assert "absent.safetensors: no such weights file" in failing(run(*data, "--init", tmp_path / "absent.safetensors"))
    assert "absent.onnx: not a readable ONNX file" in failing(run(*data, "--init", tmp_path / "absent.onnx"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device(run: Run, images: Path, tmp_path: Path) -> None:
    message = failing(run("--data", f"jde:{images}", "--out", tmp_path, "--device", "cuda"))
    assert message == "device: 'cuda' asked for, but no CUDA device is available"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(run: Run, tmp_path: Path, workers: int) -> None:
    images = write_people(tmp_path / "a", 2)
    for path in images.iterdir():
        path.write_text("no picture")
    status, _, err = run("--data", f"jde:{images}", "--out", tmp_path / "out", workers=workers)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.endswith(".png: not a readable image")
    assert "Traceback" not in err


def test_resuming_what_cannot_be_resumed(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    resume = ("--out", out, "--resume")
    assert "last.pt" in failing(run(*resume, small=False))
    assert run("--data", f"jde:{images}", "--out", out, "--set", "train.steps=1")[0] == 0
    for option in ("--data", "--val"):
        message = failing(run(*resume, option, "jde:x", small=False))
        assert "data, val, init, teacher and config are the checkpoint's" in message
    assert "--eval-only: give the weights as --init" in failing(run(*resume, "--eval-only", small=False))
    message = failing(run(*resume, "--set", "train.optimizer=sgd", small=False))
    assert message == f"{out / 'last.pt'}: does not fit: the optimiser or what is frozen changed since"
    message = failing(run(*resume, "--set", "train.freeze=backbone", small=False))
    assert message == f"{out / 'last.pt'}: does not fit: the optimiser or what is frozen changed since"
    message = failing(run(*resume, "--set", "model.embedding_dim=4", small=False))
    assert message.startswith(f"{out / 'last.pt'}: does not fit")
    whole = (out / "last.pt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (out / "last.pt").write_bytes(content)
        assert failing(run(*resume, small=False)).startswith(f"{out / 'last.pt'}: not a readable checkpoint")
    torch.save({"weights": torch.zeros(1)}, out / "last.pt")
    assert failing(run(*resume, small=False)).endswith("last.pt: not a checkpoint of this tool")


def explode(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Make a loss, or the gradient alone, infinite in step 4."""
    steps = []
    if part == "gradient":
        forward = UncertaintyWeighting.forward

        def infinite_slope(self: UncertaintyWeighting, losses: dict[str, torch.Tensor]) -> torch.Tensor:
            steps.append(1)
            total = forward(self, losses)
            if len(steps) == 4:
                total.register_hook(lambda slope: slope * float("inf"))
            return total

        monkeypatch.setattr(UncertaintyWeighting, "forward", infinite_slope)
    else:
        criterion = JDECriterion.forward

        def infinite_loss(self: JDECriterion, *args: object) -> dict[str, torch.Tensor]:
            steps.append(1)
            losses = criterion(self, *args)
            return losses | {"box": losses["box"] / 0} if len(steps) == 4 else losses

        monkeypatch.setattr(JDECriterion, "forward", infinite_loss)


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_training_that_explodes_says_so_and_keeps_the_checkpoint(
    tool: ModuleType, run: Run, images: Path, tmp_path: Path, monkeypatch, part: str
) -> None:
    explode(tool, monkeypatch, part)
    status, _, err = run("--data", f"jde:{images}", "--out", tmp_path, *sets("augmentation.mosaic=0"))
    assert status == 1
    bad = r"'total': inf, 'box': inf" if part == "loss" else r"'gradient': (nan|inf)"
    end = "; the last checkpoint is good: lower the learning rates"
    assert re.search(rf"^error: step 4: not finite: {{{bad}}} on \S+\.png and 1 more \(all in \S+\){end}$", err, re.M)
    story = json.loads((tmp_path / "not_finite.json").read_text())
    assert len(log_of(tmp_path)) == 3
    data = TrainingSet([open_source(f"jde:{images}")], 0)
    shown = [(draw.epoch, draw.position) for draw in next(iter(BatchPlan(6, 2, ((64, 64),), 0, 3)))]
    assert [(item["epoch"], item["position"]) for item in story] == shown
    assert [item["image"] for item in story] == [str(data.path(*draw)) for draw in shown]
    assert len(set(shown)) == 2
    saved = checkpoint(tmp_path)
    assert saved["step"] == 2
    assert all(v.isfinite().all() for v in saved["parts"].values())
    assert all(v.isfinite().all() for v in load_model(tmp_path / "model.safetensors").state_dict().values())


def test_debug_shows_the_traceback(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"):
        tool.main(["--out", str(tmp_path), "--debug"])


# --- killed, and gone on


def test_a_run_killed_in_mid_epoch_ends_as_one_never_stopped(run: Run, images: Path, tmp_path: Path) -> None:
    """kill -9 gives no time to tidy up: what is on disk is enough."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = sets(*DARKNET, "train.steps=14", "train.save_every=4", "train.batch_size=2", "train.sizes=[64]")
    argv = ["--data", f"jde:{images}", *settings]
    assert run(*argv, "--out", straight, small=False)[0] == 0

    command = [sys.executable, str(TOOL), "--device", "cpu", "--workers", "0", *argv, "--out", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        patience = time.monotonic() + 300
        while not (killed / "last.pt").is_file() and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    done = checkpoint(killed)["step"]
    assert done < 14
    assert done % 3  # an epoch has three steps

    assert run("--out", killed, "--resume", small=False)[0] == 0
    assert_equal(checkpoint(straight), checkpoint(killed))
    assert log_of(straight) == log_of(killed)
    assert_equal(*(dict(load_model(out / "model.safetensors").state_dict()) for out in (straight, killed)))


def test_other_data_do_not_fit_a_checkpoint(run: Run, tmp_path: Path) -> None:
    images, out = write_people(tmp_path / "people", 4), tmp_path / "out"
    assert run("--data", f"jde:{images}", "--out", out, *sets("train.steps=2"))[0] == 0
    label = tmp_path / "people" / "labels_with_ids" / "000.txt"
    label.write_text(label.read_text() + "0 9 0.5 0.5 0.2 0.4\n")
    message = failing(run("--out", out, "--resume", *sets("train.steps=4"), small=False))
    assert message == (
        f"{out / 'last.pt'}: does not fit: the model's configuration, or the identities in the data, changed since"
    )
    label.write_text("0 1 0.5 0.5 0.2 0.4\n")  # another box: it fits, but it is another run
    status, printed, _ = run("--out", out, "--resume", *sets("train.steps=4"), small=False)
    assert status == 0
    assert "note: the data changed since the checkpoint" in printed
    status, printed, _ = run("--out", out, "--resume", *sets("train.steps=5"), small=False)
    assert status == 0
    assert "note: the data changed" not in printed
    for image in images.iterdir():
        image.unlink()
    assert "holds no image" in failing(run("--out", out, "--resume", small=False))


# --- averaging, precision, compiling


def test_without_averaging_the_weights_themselves_are_saved(run: Run, images: Path, tmp_path: Path) -> None:
    assert run("--data", f"jde:{images}", "--out", tmp_path, *sets("train.ema=0"))[0] == 0
    parts = checkpoint(tmp_path)["parts"]
    saved = load_model(tmp_path / "model.safetensors").state_dict()
    for name, value in parts.items():
        if name.startswith("average."):
            key = name.removeprefix("average.")
            assert torch.equal(value, parts[f"step.model.{key}"]), name
            assert "num_batches" in name or torch.equal(value.half().float(), saved[key]), name


@pytest.mark.parametrize("family", [[], DARKNET])
def test_parts_precision_and_the_published_schedule(run: Run, images: Path, tmp_path: Path, family: list[str]) -> None:
    """Accumulated bf16 SGD with a warm-up of the fourth power and steps; one optimiser step for two parts."""
    settings = ["train.accumulate=2", "train.precision=bf16", "train.optimizer=sgd", "train.warmup_power=4"]
    settings += ["train.schedule=step", "train.milestones=[0.75]", "train.detector_lr=1e-3"]
    settings += ["train.steps=null", "train.epochs=1.34"]
    assert run("--data", f"jde:{images}", "--out", tmp_path, *sets(*family, *settings))[0] == 0
    log = log_of(tmp_path)
    assert [row["step"] for row in log] == [1, 2, 3, 4]  # three steps an epoch
    assert all(np.isfinite(list(row.values())).all() for row in log)
    state = checkpoint(tmp_path)
    assert {group["lr"] for group in state["optimizer"]["param_groups"]} == {1e-3 * 0.1, 2e-3 * 0.1}
    assert {group["momentum"] for group in state["optimizer"]["param_groups"]} == {0.9}
    assert all(value.dtype != torch.bfloat16 for value in state["parts"].values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif("JDETRACK_SLOW" not in os.environ, reason="compiling takes minutes: set JDETRACK_SLOW=1 to run it")
def test_a_compiled_network_takes_the_same_steps(run: Run, images: Path, tmp_path: Path) -> None:
    logs = []
    for choice in ("false", "true"):
        out = tmp_path / choice
        settings = sets(f"train.compile={choice}", "train.steps=2", "train.detector_lr=1e-5", "train.embedding_lr=1e-5")
        status, _, err = run("--data", f"jde:{images}", "--out", out, *settings)
        assert status == 0, err
        logs.append(log_of(out))
        assert load_model(out / "model.safetensors").config == ModelConfig(embedding_dim=8)
    for plain, compiled in zip(*logs, strict=True):
        assert compiled == pytest.approx(plain, rel=1e-2, abs=1e-3)


def test_the_published_recipe_can_be_asked_for(tool: ModuleType) -> None:
    sections = tool.load_config("train_jde", [], tool.SECTIONS)
    assert sections["train"].canvases(sections["darknet53"].input_size) == ((1088, 608),)
    assert sections["train"].family == "darknet53"
    assert sections["darknet53"] == DarknetConfig()
    assert tool.load_config("train_nano", [], tool.SECTIONS)["train"].family == "compact"


# --- data looked at


def test_check_data_lists_what_is_wrong(run: Run, tmp_path: Path) -> None:
    images = write_people(tmp_path / "a", 6)
    labels = tmp_path / "a" / "labels_with_ids"
    (images / "000.png").write_text("no picture")
    (labels / "001.txt").write_text("0 1 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4\n")
    (labels / "002.txt").write_text("0 1.5 0.5 0.5 0.2 0.4\n")
    (labels / "003.txt").write_text("\n\n0 1 nan 0.5 0.2 0.4\n")
    (labels / "004.txt").unlink()
    out = tmp_path / "out"
    status, printed, _ = run("--data", f"jde:{images}", "--check-data", "--out", out, small=False)
    assert status == 1
    for fault in (
        f"{images / '000.png'}: not a readable image",
        f"{labels / '001.txt'}:2: expected 6 numbers, got 5",
        f"{labels / '002.txt'}:1: expected a whole identity, −1 or more, got 1.5",
        f"{labels / '003.txt'}:3: expected finite numbers, got '0 1 nan 0.5 0.2 0.4'",
    ):
        assert fault in printed
    assert "4  faults" in printed
    assert "1    without a label file" in printed
    for name in ("data.png", "samples.png"):
        assert cv2.imread(str(out / name)) is not None
    assert not (out / "last.pt").exists()
    # and training on it refuses
    message = failing(run("--data", f"jde:{images}", "--out", out))
    assert message == f"{labels / '001.txt'}:2: expected 6 numbers, got 5 (and 2 more)"


def test_check_data_of_good_and_of_empty_sources(run: Run, images: Path, tmp_path: Path) -> None:
    status, printed, _ = run("--data", f"jde:{images}", "--check-data", "--out", tmp_path / "good", small=False)
    assert status == 0
    assert "0  faults" in printed
    (tmp_path / "images").mkdir()
    empty = tmp_path / "empty.train"
    empty.write_text("\n")
    status, printed, _ = run("--val", f"jde:{empty}", "--check-data", "--out", tmp_path / "bad", small=False)
    assert status == 1
    assert f"{empty}: holds no image" in printed
    assert not (tmp_path / "bad").exists()
    assert "no data: give --data" in failing(run("--check-data", "--out", tmp_path, small=False))


def test_motchallenge_from_data_to_weights(run: Run, tmp_path: Path) -> None:
    rows = [f"{frame},{k},{5 + 30 * k + frame},8,18,44,1,1,1" for frame in (1, 2, 3, 4) for k in (0, 1)]
    rows = [row.replace(",0,", ",2,", 1) for row in rows]
    write_sequence(tmp_path / "mot" / "A-01", "\n".join(rows) + "\n1,7,40,1,30,30,0,8,1\n", frames=4)
    argv = ("--data", f"mot:{tmp_path / 'mot'}", "--val", f"mot:{tmp_path / 'mot' / 'A-01'}", "--out", tmp_path / "out")
    status, printed, _ = run(*argv)
    assert status == 0
    assert "4 images, 8 people, 8 with an identity, 0 images without labels" in printed
    assert "2 identities" in printed
    figures = json.loads((tmp_path / "out" / "validation.jsonl").read_text())
    assert (figures["images"], figures["people"], figures["embeddings"], figures["identities"]) == (4, 8, 8, 2)
    assert 0 <= figures["rank-1"] <= 1


# --- validation


def test_validation_while_training(run: Run, images: Path, tmp_path: Path) -> None:
    """Every two steps and at the end; the best weights stay; all of it is in TensorBoard."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = sets("train.steps=3", "train.validate_every=2", "train.val_size=96", "train.picture_every=2")
    status, printed, _ = run("--data", f"jde:{images}", "--val", f"jde:{images}", "--out", tmp_path, *settings)
    assert status == 0
    figures = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in figures] == [2, 3]
    for row in figures:
        assert (row["images"], row["people"]) == (6, 12)
        assert 0 <= row["AP50"] <= 1
        assert 0 <= row["rank-1"] <= 1
        assert 0 <= row["mAP"] <= 1
    assert "validation at step 2:" in printed
    assert cv2.imread(str(tmp_path / "precision_recall.png")) is not None
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes["AP50"] == max(row["AP50"] for row in figures)
    if notes["step"] == 3:
        assert_equal(*(dict(load_model(tmp_path / f"{n}.safetensors").state_dict()) for n in ("best", "model")))

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = log_of(tmp_path)
    for tag, name in (("train/total", "total"), ("train/box", "box"), ("uncertainty/s_id", "s_id")):
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (row["step"], pytest.approx(row[name], rel=1e-5)) for row in log
        ]
    assert [e.step for e in events.Scalars("val/AP50")] == [2, 3]
    pictures = events.Images("batch")
    assert [(e.step, e.width, e.height) for e in pictures] == [(1, 2 * 64, 64), (2, 2 * 64, 64)]


def test_the_best_weights_are_not_replaced_by_worse(
    tool: ModuleType, run: Run, images: Path, tmp_path: Path, monkeypatch
) -> None:
    """Over a stop too: what was reached before counts, what came after the checkpoint does not."""
    curve = iter([0.2, 0.6, 0.5, 0.7])
    validate = tool.validate

    def scripted(*args: object, **options: object) -> object:
        result = validate(*args, **options)
        result.figures["AP50"] = next(curve)
        return result

    monkeypatch.setattr(tool, "validate", scripted)
    argv = ("--data", f"jde:{images}", "--val", f"jde:{images}", "--out", tmp_path)
    settings = sets("train.validate_every=1", "train.val_size=64", "train.save_every=1", "train.steps=3")
    assert run(*argv, *settings)[0] == 0

    def best() -> tuple[int, float]:
        with safe_open(tmp_path / "best.safetensors", "pt") as file:
            notes = json.loads(file.metadata()["notes"])
        return notes["step"], notes["AP50"]

    assert best() == (2, 0.6)
    assert run("--out", tmp_path, "--resume", "--set", "train.steps=4", small=False)[0] == 0
    assert best() == (4, 0.7)
    figures = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["AP50"]) for row in figures] == [(1, 0.2), (2, 0.6), (3, 0.5), (4, 0.7)]


@pytest.mark.parametrize("family", ["compact", "darknet53"])
def test_evaluation_alone(run: Run, images: Path, tmp_path: Path, family: str) -> None:
    """Of a file of any family, whatever train.family says; nothing is trained, and no weights are written."""
    torch.manual_seed(0)
    path, out = tmp_path / "start.safetensors", tmp_path / "out"
    save_model(path, JDE(ModelConfig(embedding_dim=8)) if family == "compact" else lively_darknet())
    argv = ("--eval-only", "--init", path, "--out", out)
    status, printed, _ = run(*argv, "--val", f"jde:{images}", *sets("train.val_size=64"), small=False)
    assert status == 0
    figures = json.loads((out / "evaluation.json").read_text())
    assert (figures["weights"], figures["people"]) == (str(path), 12)
    for name in ("AP50", "AP50:95", "rank-1", "mAP", "TPR@FAR=1e-01"):
        assert any(line.split()[0] == name for line in printed.splitlines()), name
    assert sorted(p.name for p in out.iterdir()) == ["evaluation.json", "evaluation.png"]
    assert "no data to validate on: give --val" in failing(run(*argv, small=False))


# --- weights to start from


def test_starts_from_a_published_checkpoint(run: Run, images: Path, tmp_path: Path) -> None:
    """The classifier too, where the data have as many identities; without learning, nothing moves."""
    model = lively_darknet(width=1 / 4, input_size=(1088, 608))
    settings = [*DARKNET[:1], "darknet53.width=0.25", "darknet53.embedding_dim=16", "train.steps=1", "train.ema=0"]
    settings += ["train.detector_lr=0", "train.embedding_lr=0"]
    for ids in (2, 7):
        path = saved(tmp_path / f"jde{ids}.pt", published(model, ids))
        out = tmp_path / str(ids)
        status, printed, _ = run("--data", f"jde:{images}", "--init", path, "--out", out, *sets(*settings))
        assert status == 0
        assert f"{path}: taken over, {'with' if ids == 2 else 'without'} its classifier of {ids} identities" in printed
        parts = checkpoint(out)["parts"]
        for name, value in model.state_dict().items():
            assert torch.equal(parts[f"step.model.{name}"], value) or "num_batches" in name, name
        weight = torch.load(path, weights_only=True)["model"]["classifier.weight"]
        ours = parts["step.criterion.appearance.identity.weight"]
        assert torch.equal(ours, weight) if ids == 2 else ours.shape == (2, 16)


def test_starts_from_a_backbone(run: Run, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "darknet53.conv.74"
    model = lively_darknet()
    darknet_binary(model.backbone).tofile(path)
    argv = ("--data", f"jde:{images}", "--init", path)
    frozen = sets(*DARKNET, "train.freeze=backbone", "train.steps=1")
    status, printed, _ = run(*argv, "--out", tmp_path / "out", *frozen)
    assert status == 0
    assert f"{path}: 52 convolutions of the backbone taken over" in printed
    parts = checkpoint(tmp_path / "out")["parts"]
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(parts[f"step.model.backbone.{name}"], value) or "num_batches" in name, name
    assert "set train.family=darknet53" in failing(run(*argv, "--out", tmp_path / "b"))


def test_weights_of_another_family(run: Run, images: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "a.safetensors", JDE(ModelConfig(embedding_dim=8)))
    save_model(tmp_path / "b.safetensors", DarknetJDE(DarknetConfig(width=1 / 8, embedding_dim=8)))
    for name, family in (("a", DARKNET), ("b", [])):
        path = tmp_path / f"{name}.safetensors"
        message = failing(run("--data", f"jde:{images}", "--init", path, "--out", tmp_path / "out", *sets(*family)))
        assert message == f"{path}: a model of another family: set train.family"
    assert not (tmp_path / "out" / "last.pt").exists()


def test_a_full_disk_is_one_line(run: Run, tool: ModuleType, images: Path, tmp_path: Path, monkeypatch) -> None:
    """Torch speaks of its archive; what was there stays."""
    out = tmp_path / "out"
    assert run("--data", f"jde:{images}", "--out", out)[0] == 0
    before = (out / "last.pt").read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 1 vs 2\nmore")

    monkeypatch.setattr("detector.resume.torch.save", full)
    status, _, err = run("--out", out, "--resume", "--set", "train.steps=6", small=False)
    assert status == 1
    assert err.strip().splitlines()[-1] == f"error: {out / 'last.pt'}: cannot be written: is the disk full?"
    assert (out / "last.pt").read_bytes() == before
    assert not (out / "last.partial").exists()


def test_models_without_their_checkpoint_are_not_overwritten(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--data", f"jde:{images}", "--out", out)[0] == 0
    (out / "last.pt").unlink()
    status, _, err = run("--data", f"jde:{images}", "--out", out)
    assert status == 1
    assert "model.safetensors: is of an earlier run" in err


def test_an_unreadable_validation_image_is_found_before_the_first_step(run: Run, images: Path, tmp_path: Path) -> None:
    bad = write_people(tmp_path / "bad", 2, 96)
    sorted(bad.iterdir())[0].write_bytes(b"")
    status, _, err = run("--data", f"jde:{images}", "--val", f"jde:{bad}", "--out", tmp_path / "out")
    assert status == 1
    assert "empty file" in err
    assert not (tmp_path / "out" / "log.jsonl").exists()
