"""`tools/train_reid.py` end to end on people of one colour each: learning, resuming, options, bad input."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from reid.encoders import EncoderConfig, build_encoder, load_encoder, save_encoder
from tests.tools.conftest import TOOLS, call_tool, load_tool

TOOL = TOOLS / "train_reid.py"
SMALL = ("encoder.input_size=[64,32]", "train.batch_size=8", "train.images_per_identity=2", "train.lr=0.003")
STEPS = 5  # of an epoch
ONLY_TRAIN = ("--set", *SMALL, "train.batch_size=4")


@pytest.fixture(scope="module")
def tool():
    return load_tool("train_reid")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Market-1501's layout: 6 people to learn from, 4 others to rank, two cameras; each person has two colours."""
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)

    def draw(folder, pid, camid, number, colours):
        (root / folder).mkdir(exist_ok=True)
        image = np.empty((48, 24, 3), np.uint8)
        image[:24], image[24:] = colours
        noise = rng.integers(-20, 20, image.shape) + (camid - 1) * 15
        path = root / folder / f"{pid:04d}_c{camid}s1_{number:06d}_00.png"
        cv2.imwrite(str(path), np.clip(image + noise, 0, 255).astype(np.uint8))

    for pid in range(1, 11):
        colours = rng.integers(30, 225, (2, 3))
        for camid in (1, 2):
            if pid <= 6:
                for number in range(3):
                    draw("bounding_box_train", pid, camid, number, colours)
            else:
                draw("query", pid, camid, 0, colours)
                draw("bounding_box_test", pid, camid, 1, colours)
    return root


@pytest.fixture
def call(tool, capfd):
    return functools.partial(call_tool, tool, capfd)


def train(call, data, out, *settings, options=("--encoder", "osnet_x0_25"), workers=0):
    return call("--data", data, "--out", out, "--workers", workers, *options, "--set", *SMALL, *settings)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_it_learns(call, data, tmp_path):
    settings = ("train.epochs=6", "train.validate_every=3", "losses.triplet=0.1", "augmentation.erasing=0")
    status, out, err = train(call, data, tmp_path, *settings)
    assert status == 0, err
    log = rows(tmp_path / "log.jsonl")
    assert len(log) == 6 * STEPS and log[-1]["total"] < 0.7 * log[0]["total"]
    assert log[-1]["accuracy"] > 0.6 and {"cross_entropy", "triplet", "lr", "grad_norm", "epoch"} <= log[-1].keys()
    evaluations = rows(tmp_path / "validation.jsonl")
    assert [row["step"] for row in evaluations] == [3 * STEPS, 6 * STEPS]
    assert evaluations[-1]["queries"] == evaluations[-1]["valid_queries"] == 8
    assert min(cv2.imread(str(tmp_path / "curves.png")).shape[:2]) > 300
    encoder = load_encoder(tmp_path / "model.safetensors")
    assert encoder.config == EncoderConfig("osnet_x0_25", input_size=(64, 32))
    assert (tmp_path / "best.safetensors").is_file() and any((tmp_path / "tensorboard").iterdir())
    assert "6 identities" in out and "rank-1" in out


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(call, tool, data, tmp_path, monkeypatch):
    settings = ("train.epochs=3", "train.validate_every=0", "train.ema=0.9", "encoder.dropout=0.5")
    assert train(call, data, tmp_path / "whole", *settings)[0] == 0
    steps = tool.optimise

    def stop(*args):
        stop.left -= 1
        if stop.left < 0:
            raise KeyboardInterrupt
        return steps(*args)

    stop.left = STEPS + 2
    monkeypatch.setattr(tool, "optimise", stop)
    status, _, err = train(call, data, tmp_path / "cut", *settings, workers=1)
    assert status == 130 and "go on with: --out" in err
    stop.left = 100
    assert call("--out", tmp_path / "cut", "--resume")[0] == 0
    whole, cut = (load_encoder(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert rows(tmp_path / "whole" / "log.jsonl") == rows(tmp_path / "cut" / "log.jsonl")


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=bf16", "train.optimizer=sgd", "train.schedule=cosine", "train.clip=1"],
        ["train.adversarial=4", "train.sampler=shuffle"],
        ["encoder.parts=3", "encoder.name=resnet50", "encoder.neck=linear", "encoder.embedding_size=16"],
        ["encoder.pooling=gem", "losses.cross_entropy=0", "losses.circle=1", "losses.arcface=1"],
    ],
)
def test_options(call, data, tmp_path, settings):
    shuffled = "train.sampler=shuffle" in settings  # leaves out what does not fill a batch
    named = any(setting.startswith("encoder.name") for setting in settings)
    options = () if named else ("--encoder", "osnet_x0_25")
    status, _, err = train(call, data, tmp_path, "train.epochs=1", *settings, options=options)
    assert status == 0, err
    log = rows(tmp_path / "log.jsonl")
    assert len(log) == STEPS - shuffled and all(np.isfinite(row["total"]) for row in log)
    assert ("perturbed" in log[0]) == ("train.adversarial=4" in settings)
    assert ("accuracy" in log[0]) == ("losses.cross_entropy=0" not in settings)


def test_images_without_labels(call, data, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    for number in range(5):
        image = np.random.default_rng(number).integers(0, 255, (48, 24, 3), np.uint8)
        cv2.imwrite(str(extra / f"generated {number}.png"), image)
    options = ("--encoder", "osnet_x0_25", "--extra", extra)
    status, _, err = train(call, data, tmp_path / "out", "train.epochs=1", "losses.lsro=0.25", options=options)
    assert status == 0, err
    assert all(row["lsro"] > 0 for row in rows(tmp_path / "out" / "log.jsonl"))


def test_start_from_weights(call, data, tmp_path):
    start = build_encoder(EncoderConfig("osnet_x0_25", input_size=(64, 32)), seed=3)
    save_encoder(tmp_path / "start.safetensors", start)
    options = ("--encoder", "osnet_x0_25", "--init", tmp_path / "start.safetensors")
    status, out, _ = train(call, data, tmp_path / "a", "train.epochs=1", "train.backbone_share=0", options=options)
    assert status == 0 and "tensors taken over" in out and "evaluation at step 0" in out
    trained = load_encoder(tmp_path / "a" / "model.safetensors").state_dict()
    first = start.state_dict()
    weights = [name for name, _ in start.backbone.named_parameters(prefix="backbone")]
    assert all(torch.equal(trained[name], first[name]) for name in weights)
    assert not torch.equal(trained["necks.0.norm.running_mean"], first["necks.0.norm.running_mean"])
    options = ("--encoder", "resnet50", "--init", tmp_path / "start.safetensors")
    status, _, err = train(call, data, tmp_path / "b", options=options)
    assert status == 1 and "expected the backbone resnet50, got osnet_x0_25" in err


def test_two_processes(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    command += ["--data", str(data), "--encoder", "osnet_x0_25", "--out", str(tmp_path), "--device", "cpu"]
    command += ["--workers", "0", "--set", *SMALL, "train.epochs=1", "losses.triplet=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows(tmp_path / "log.jsonl")) == STEPS and len(rows(tmp_path / "validation.jsonl")) == 1


def test_look_at_the_data(call, data, tmp_path):
    status, out, _ = call("--data", data, "--check-data", "--out", tmp_path)
    assert status == 0 and "data.png" in out
    assert min(cv2.imread(str(tmp_path / "data.png")).shape[:2]) > 50


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data: give --data"),
        (["--data", "no/such"], "no/such"),
        (["--data", "DATA", "--set", "train.epoch=3"], "train.epoch"),
        (["--data", "DATA", "--set", "train.lr=-1"], "lr: expected 0 or more, got -1"),
        (["--data", "DATA", "--set", "train.images_per_identity=5"], "batch_size: expected a multiple of"),
        (
            ["--data", "DATA", "--set", "train.batch_size=28"],
            "train.batch_size: expected at most 24, 6 identities times",
        ),
        (["--data", "DATA", "--set", "train.batch_size=1"], "batch_size: expected at least 2, got 1"),
        (["--data", "TRAIN", *ONLY_TRAIN], "expected query and gallery; without: --set train.validate_every=0"),
        (["--data", "QUERY", "--set", *SMALL], "expected images to learn from"),
        (["--data", "DATA", "--init", "no.pth", "--encoder", "osnet_x0_25", "--set", *SMALL], "no.pth"),
        (["--resume"], "last.pt: no checkpoint to resume from"),
        (["--data", "DATA", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_input(call, data, tmp_path, argv, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "TRAIN").mkdir()
    for number in range(4):
        image = np.full((20, 10, 3), 60 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "TRAIN" / f"000{number + 1}_c1_{number}.png"), image)
    (tmp_path / "query.csv").write_text("path,pid,camid,split\nTRAIN/0001_c1_0.png,1,1,query\n")
    places = {"DATA": str(data), "TRAIN": f"folder:{tmp_path}/TRAIN", "QUERY": f"folder:{tmp_path}/query.csv"}
    argv = [places.get(a, a) for a in argv]
    status, _, err = call("--out", tmp_path / "out", "--workers", "0", *argv)
    assert status == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line and "Traceback" not in err


def test_an_image_that_is_cut_is_named(call, data, tmp_path):
    broken = tmp_path / "data"
    for path in data.rglob("*.png"):
        target = broken / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    image = next((broken / "bounding_box_train").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    for workers in (0, 1):
        status, _, err = train(call, broken, tmp_path / f"out{workers}", "train.epochs=9", workers=workers)
        assert status == 1 and image.name in err.strip().splitlines()[-1]
    status, out, _ = call("--data", broken, "--check-data", "--out", tmp_path / "check")
    assert status == 1 and image.name in out


def test_weights_that_blow_up_are_not_saved(call, data, tmp_path):
    settings = ("train.lr=1e30", "train.optimizer=sgd", "train.warmup=0", "train.epochs=0.2", "train.validate_every=0")
    status, _, err = train(call, data, tmp_path, *settings)
    assert status == 1 and "step 1: not finite" in err.strip().splitlines()[-1] and "good" not in err
    assert not (tmp_path / "last.pt").exists() and not (tmp_path / "model.safetensors").exists()


def test_an_earlier_run_is_not_overwritten(call, data, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    status, _, err = train(call, data, tmp_path)
    assert status == 1 and "is of an earlier run; give another --out" in err
    assert (tmp_path / "model.safetensors").read_text() == "mine"
