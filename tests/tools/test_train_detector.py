import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from detector import Detector, DetectorConfig, load_model, save_model
from detector.model import JDE, ModelConfig
from detector.postprocess import flatten
from reid.encoders import OSNet
from tests.detector.scenes import noise, write_people

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_detector.py"
SMALL = ["train.steps=4", "train.batch_size=2", "train.sizes=[64]", "train.save_every=2", "train.warmup=2"]
SMALL += ["model.embedding_dim=8"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_detector_tool", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_detector_tool"] = module
    spec.loader.exec_module(module)
    return module


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
        capfd.readouterr()
        settings = [word for setting in SMALL for word in ("--set", setting)] if small else []
        status = tool.main([*settings, "--device", "cpu", "--workers", str(workers), *map(str, argv)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "osnet.pth"
    torch.save(OSNet(0.25).state_dict(), path)
    return path


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
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".npy") == ["last.pt", "log.jsonl", "model.safetensors"]
    log = log_of(out)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    tasks = ("box", "conf", "id", "distill")
    assert log[0].keys() == {"step", "total", "grad_norm", *tasks, *(f"s_{task}" for task in tasks)}
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


def test_the_teacher_is_asked_once(
    tool: ModuleType, run: Run, images: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked = []
    teach = tool.teach
    monkeypatch.setattr(tool, "teach", lambda *args: asked.append(1) or teach(*args))
    argv = ("--data", f"jde:{images}", "--teacher", encoder, "--out", out)
    assert run(*argv)[0] == 0
    assert asked == [1]
    rows = np.load(next(out.glob("*.npy")))
    assert (rows.shape, rows.dtype.name) == ((12, 512), "float16")
    assert np.linalg.norm(rows.astype(np.float32), axis=1) == pytest.approx(np.ones(12), abs=1e-2)
    (out / "last.pt").unlink()  # a new run in the same folder
    assert run(*argv)[0] == 0
    assert asked == [1]
    label = next((images.parent / "labels_with_ids").iterdir())
    before = label.read_text()
    label.write_text(before.replace("0 1 ", "0 1 0.4 0.5 0.3 0.6\n0 1 "))  # one person more: not the same question
    (out / "last.pt").unlink()
    assert run(*argv)[0] == 0
    label.write_text(before)
    assert asked == [1, 1]


def test_the_teacher_sees_the_crops_and_leaves_the_small_out(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    path = write_people(tmp_path / "a", 1, 96) / "000.png"
    image = tool.read_image(path)
    crops = []

    def encode(encoder: object, given: list[np.ndarray]) -> np.ndarray:
        crops.extend(given)
        return np.full((len(given), 512), 0.5, np.float32)

    monkeypatch.setattr(tool, "encode_crops", encode)
    rows = np.array(
        [
            [0, 1, 0.5, 0.5, 0.25, 0.5],
            [-1, -1, 0.5, 0.5, 0.5, 0.5],  # a region
            [0, 2, 0.5, 0.5, 0.2, 0.2],  # 19 pixels high
            [0, 3, 0.0, 0.5, 0.5, 1.5],  # leaves the image
        ]
    )
    result = tool.teach(None, [(path, rows[:2]), (path, rows[2:]), (path, rows[:0])])
    assert result[:, 0].tolist() == [0.5, 0, 0, 0.5]
    assert np.array_equal(crops[0], image[24:72, 36:60])
    assert np.array_equal(crops[1], image[:, :24])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_one_never_stopped(
    tool: ModuleType, run: Run, images: Path, encoder: Path, tmp_path: Path, monkeypatch, workers: int
) -> None:
    """Bit for bit, wherever it was stopped: weights, moving average, optimiser, log."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    data = ("--data", f"jde:{images}@0.5", "--teacher", encoder)  # an epoch of one step: several are passed
    assert run(*data, "--out", straight)[0] == 0

    check = tool.check_finite

    def interrupt(losses: object, step: int) -> None:
        check(losses, step)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "check_finite", interrupt)
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
    share = 0.01 + 0.99 * 0.5  # step 3 of 4 with two of warm-up: half way down the cosine
    assert rates == pytest.approx([2e-4 * share] * 2 + [2e-3 * share] * 2)


def test_training_can_be_prolonged_and_slowed(run: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--data", f"jde:{images}", "--out", out)[0] == 0
    changes = ["--set", "train.steps=6", "--set", "train.detector_lr=1e-5", "--set", "train.weight_decay=0.5"]
    assert run("--out", out, "--resume", *changes, small=False)[0] == 0
    assert [row["step"] for row in log_of(out)] == [1, 2, 3, 4, 5, 6]
    groups = checkpoint(out)["optimizer"]["param_groups"]
    assert [group["peak"] for group in groups] == [1e-5, 1e-5, 2e-3, 2e-3]
    assert [group["weight_decay"] for group in groups] == [0.5, 0, 0.5, 0]
    assert groups[0]["lr"] < 1e-5
    status, printed, _ = run("--out", out, "--resume", small=False)  # nothing left to do
    assert status == 0
    assert "trained for 6 steps" in printed


def test_an_earlier_run_is_not_overwritten(run: Run, images: Path, tmp_path: Path) -> None:
    argv = ("--data", f"jde:{images}", "--out", tmp_path / "out")
    assert run(*argv)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    status, _, err = run(*argv)
    assert (status, err.count("\n")) == (1, 1)
    assert "last.pt: holds an earlier run; give --resume to go on, or another --out" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "last.pt").unlink()
    assert run(*argv)[0] == 0
    assert [row["step"] for row in log_of(tmp_path / "out")] == [1, 2, 3, 4]  # a log of its own


def test_nothing_to_resume(run: Run, tmp_path: Path) -> None:
    status, _, err = run("--out", tmp_path, "--resume")
    assert status == 1
    assert "last.pt: no checkpoint to resume from" in err


def test_detection_alone(run: Run, images: Path, tmp_path: Path) -> None:
    status, _, _ = run("--data", f"jde:{images}", "--out", tmp_path, "--set", "model.embedding_dim=0")
    assert status == 0
    assert log_of(tmp_path)[0].keys() == {"step", "total", "grad_norm", "box", "conf", "s_box", "s_conf"}
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
            flatten(load_model(out / "model.safetensors")(pixels)[0]), flatten(start(pixels)[0]), atol=1e-2
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
            *(word for setting in ("train.detector_lr=0", "model.embedding_dim=0") for word in ("--set", setting)),
        )
    )


def test_frozen_norms_keep_their_statistics(run: Run, images: Path, tmp_path: Path) -> None:
    def moved(out: Path) -> tuple[bool, bool]:
        state = {k: v for k, v in checkpoint(out)["parts"].items() if k.startswith("model.") and "running_var" in k}
        head = [bool((v != 1).any()) for k, v in state.items() if "embedding_head" in k]
        return any(bool((v != 1).any()) for k, v in state.items() if "embedding_head" not in k), any(head)

    for given, expected in (("true", (False, True)), ("null", (True, True))):  # null: nothing to keep without --init
        out = tmp_path / given
        assert run("--data", f"jde:{images}", "--out", out, "--set", f"train.frozen_norm={given}")[0] == 0
        assert moved(out) == expected


def test_schedule_warms_up_and_falls_to_one_hundredth(tool: ModuleType) -> None:
    config = tool.TrainConfig(steps=110, warmup=10)
    shares = [tool.schedule(step, config) for step in range(111)]
    assert shares[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert shares[10] == pytest.approx(1)
    assert shares[60] == pytest.approx(0.505)
    assert shares[110] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))
    assert tool.schedule(0, tool.TrainConfig(warmup=0)) == pytest.approx(1)


def test_the_moving_average(tool: ModuleType) -> None:
    torch.manual_seed(0)
    average, model = JDE(ModelConfig(embedding_dim=0)), JDE(ModelConfig(embedding_dim=0))
    before = {k: v.clone() for k, v in average.state_dict().items()}
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).num_batches_tracked.fill_(5)
    tool.update_average(average, model, 0.9)
    for name, value in average.state_dict().items():
        other = model.state_dict()[name]
        wanted = 0.9 * before[name] + 0.1 * other if value.is_floating_point() else other
        assert torch.allclose(value, wanted, atol=1e-6), name


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
        return failing(run(*data, *(word for setting in settings for word in ("--set", setting))))

    assert failing(run("--out", tmp_path)).startswith("no data: give --data LAYOUT:PATH")
    assert failing(run("--data", f"jde:{tmp_path / 'absent'}")).startswith(f"{tmp_path / 'absent'}: no such folder")
    assert "unknown key in section 'train': 'step'; did you mean steps" in refused("train.step=5")
    assert "train.steps: expected int, got 'many'" in refused("train.steps=many")
    assert "sizes: expected positive multiples of 32, got [333]" in refused("train.sizes=[333]")
    assert "sizes: expected positive multiples of 32, got []" in refused("train.sizes=[]")
    assert "batch_size: expected at least 1, got 0" in refused("train.batch_size=0")
    assert "save_every: expected at least 1, got 0" in refused("train.save_every=0")
    assert "mosaic: expected a number in [0, 1], got 2.0" in refused("train.mosaic=2")
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
    assert "data, init, teacher and config are the checkpoint's" in failing(
        run(*resume, "--data", "jde:x", small=False)
    )
    message = failing(run(*resume, "--set", "model.embedding_dim=4", small=False))
    assert message.startswith(f"{out / 'last.pt'}: does not fit")
    whole = (out / "last.pt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (out / "last.pt").write_bytes(content)
        assert failing(run(*resume, small=False)).startswith(f"{out / 'last.pt'}: not a readable checkpoint")
    torch.save({"weights": torch.zeros(1)}, out / "last.pt")
    assert failing(run(*resume, small=False)).endswith("last.pt: not a checkpoint of this tool")


def test_training_that_explodes_says_so_and_keeps_the_checkpoint(
    tool: ModuleType, run: Run, images: Path, tmp_path: Path, monkeypatch
) -> None:
    forward = tool.UncertaintyWeighting.forward
    steps = []

    def explode(self: object, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        steps.append(1)
        return forward(self, losses) * (float("inf") if len(steps) == 4 else 1)

    monkeypatch.setattr(tool.UncertaintyWeighting, "forward", explode)
    status, _, err = run("--data", f"jde:{images}", "--out", tmp_path)
    assert status == 1
    assert "error: step 3: not finite: {'gradient': nan}; the last checkpoint is good" in err
    saved = checkpoint(tmp_path)
    assert saved["step"] == 2
    assert all(v.isfinite().all() for v in saved["parts"].values())


def test_debug_shows_the_traceback(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"):
        tool.main(["--out", str(tmp_path), "--debug"])
