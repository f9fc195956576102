"""`tools/train_reid.py` without labels, end to end on people of two colours: relabelling, resuming, bad input."""

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import reid.caccl
from reid.encoders import EncoderConfig, load_encoder
from reid.pseudo_labels import cluster_graph
from tests.tools.conftest import TOOLS, call_tool, load_tool

TOOL = TOOLS / "train_reid.py"
SMALL = (
    *("encoder.pretrained=false", "encoder.input_size=[64,32]", "encoder.pooling=average", "augmentation.erasing=0"),
    *("train.batch_size=8", "train.images_per_identity=2", "train.milestones=[]", "train.epochs=2"),
    *("jaccard.k1=6", "jaccard.k2=2", "clusters.eps=0.5", "clusters.min_samples=3", "train.validate_every=0"),
)
PEOPLE, EACH = 6, 4  # to learn from; images of a person in each of two cameras
IMAGES = 2 * PEOPLE * EACH


@pytest.fixture(scope="module")
def tool():
    return load_tool("train_reid")


def draw(path, colours, noise, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.empty((48, 24, 3), np.uint8)
    image[:24], image[24:] = colours
    cv2.imwrite(str(path), np.clip(image + rng.integers(-20, 20, image.shape) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Market-1501's layout, two cameras; each person has two colours."""
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    for pid in range(1, PEOPLE + 4):
        colours = rng.integers(30, 225, (2, 3))
        for camid in (1, 2):
            for number in range(EACH if pid <= PEOPLE else 2):
                folder = "bounding_box_train" if pid <= PEOPLE else ("query", "bounding_box_test")[number]
                draw(root / folder / f"{pid:04d}_c{camid}s1_{number:06d}_00.png", colours, (camid - 1) * 15, rng)
    return root


@pytest.fixture
def pictures():
    """For a test that looks at them: drawing takes longer than all else."""


@pytest.fixture
def call(tool, capfd, monkeypatch, request):
    if "pictures" not in request.fixturenames:
        for name in ("plot_curves", "plot_clusters"):
            monkeypatch.setattr(tool, name, lambda *_: None)

    return functools.partial(call_tool, tool, capfd)


def train(call, data, out, *settings, method="caccl", options=("--encoder", "osnet_x0_25"), workers=0):
    source = ("--data", data, "--method", method, "--out", out, "--device", "cpu", "--workers", workers)
    return call(*source, *options, "--set", *SMALL, *settings)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights(out):
    return load_encoder(out / "model.safetensors").state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_epoch_makes_labels_and_learns_from_them(call, pictures, data, tmp_path):
    status, out, err = train(call, data, tmp_path, "train.validate_every=1", "train.epochs=3")
    assert status == 0, err
    assert f"{IMAGES} images, 2 cameras; identities are not used" in out
    found = rows(tmp_path / "clusters.jsonl")
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert all(row["images"] == IMAGES and row["clusters"] >= 2 and 0 < row["nmi"] <= 1 for row in found)
    assert (
        f"epoch 1: {found[0]['clusters']} clusters, {found[0]['outliers']} outliers, nmi {found[0]['nmi']:.3f}" in out
    )
    log = rows(tmp_path / "log.jsonl")
    assert {"total", "cluster", "camera", "lr"} <= log[0].keys() and "accuracy" not in log[0]
    assert log[0]["total"] == pytest.approx(log[0]["cluster"] + 0.8 * log[0]["camera"], rel=1e-4)
    assert [row["step"] for row in found] == [0, *(max(r["step"] for r in log if r["epoch"] <= e) for e in (1, 2))]
    assert [row["step"] for row in rows(tmp_path / "validation.jsonl")] == [
        *(r["step"] for r in found),
        log[-1]["step"],
    ]
    assert log[-1]["epoch"] == 3
    for picture in ("clusters.png", "curves.png"):
        assert min(cv2.imread(str(tmp_path / picture)).shape[:2]) > 300
    assert load_encoder(tmp_path / "model.safetensors").config == EncoderConfig(
        "osnet_x0_25", input_size=(64, 32), dropout=0.0
    )


@pytest.mark.parametrize(("method", "terms"), [("cluster", {"cluster"}), ("self-paced", {"instance"})])
def test_ablations(call, data, tmp_path, method, terms):
    status, _, err = train(call, data, tmp_path, "train.epochs=0.5", method=method)
    assert status == 0, err
    log = rows(tmp_path / "log.jsonl")
    assert log[0].keys() == {"step", "epoch", "lr", "grad_norm", "total"} | terms


def test_labels_are_never_used(call, tool, data, tmp_path, monkeypatch):
    load = tool.load_dataset

    def shuffled(*args):
        dataset = load(*args)
        pids = np.random.default_rng(1).permutation(dataset.train.pids)
        return replace(dataset, train=replace(dataset.train, pids=pids))

    assert train(call, data, tmp_path / "true")[0] == 0
    monkeypatch.setattr(tool, "load_dataset", shuffled)
    assert train(call, data, tmp_path / "shuffled")[0] == 0
    assert equal(weights(tmp_path / "true"), weights(tmp_path / "shuffled"))
    found = [rows(tmp_path / name / "clusters.jsonl")[0] for name in ("true", "shuffled")]
    assert found[0]["clusters"] == found[1]["clusters"] and found[0]["ari"] > found[1]["ari"] + 0.1


@pytest.mark.parametrize(("method", "workers"), [("caccl", 1), ("self-paced", 0)])
def test_a_run_that_is_stopped_within_an_epoch_goes_on_to_the_same_weights(
    call, tool, data, tmp_path, monkeypatch, method, workers
):
    settings = ("train.epochs=3", "train.save_steps=2", "train.ema=0.9", "encoder.dropout=0.3")
    assert train(call, data, tmp_path / "whole", *settings, method=method)[0] == 0
    log = rows(tmp_path / "whole" / "log.jsonl")
    first = sum(row["epoch"] <= 1 for row in log)
    steps = tool.optimise

    def stop(*args):
        stop.left -= 1
        if stop.left < 0:
            raise KeyboardInterrupt
        return steps(*args)

    stop.left = first + 3
    monkeypatch.setattr(tool, "optimise", stop)
    status, _, err = train(call, data, tmp_path / "cut", *settings, method=method, workers=workers)
    assert status == 130 and "go on with: --out" in err
    saved = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    assert saved["place"][0] == 1 and saved["place"][1] > 0  # in the second epoch
    stop.left = 1000
    relabelled = []
    renew = reid.caccl.Relabelling.renew
    monkeypatch.setattr(
        reid.caccl.Relabelling, "renew", lambda self, encoder: relabelled.append(1) or renew(self, encoder)
    )
    assert call("--out", tmp_path / "cut", "--resume", "--workers", workers)[0] == 0
    assert len(relabelled) == 1  # that of the third epoch
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    for name in ("log.jsonl", "clusters.jsonl"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "cut" / name)


def lose_clusters(monkeypatch, when):
    """Have the clusterings of some numbers, from 0, find outliers alone."""
    calls = iter(range(1000))
    monkeypatch.setattr(
        reid.caccl,
        "cluster_graph",
        lambda graph, config: np.full(IMAGES, -1) if next(calls) in when else cluster_graph(graph, config),
    )


def test_without_clusters_it_saves_and_stops(call, tool, data, tmp_path, monkeypatch):
    settings = ("train.save_every=9", "train.epochs=3")
    assert train(call, data, tmp_path / "whole", *settings)[0] == 0
    lose_clusters(monkeypatch, {1})
    saved = []
    monkeypatch.setattr(tool.parallel, "wait", lambda: saved.append((tmp_path / "cut" / "last.pt").is_file()))
    status, _, err = train(call, data, tmp_path / "cut", *settings)
    assert saved == [True]  # the other processes, which would end this one, fail when it has saved
    line = err.strip().splitlines()[-1]
    assert status == 1 and "error: epoch 2: no cluster, all 48 images are outliers: raise eps (0.5)" in line
    assert "--resume goes on" in line and (tmp_path / "cut" / "model.safetensors").is_file()
    assert call("--out", tmp_path / "cut", "--resume", "--workers", 0)[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_without_clusters_it_keeps_labels_if_told_to(call, data, tmp_path, monkeypatch):
    lose_clusters(monkeypatch, {1})
    status, out, err = train(call, data, tmp_path, "train.no_clusters=keep", "train.epochs=3")
    assert status == 0, err
    assert "the labels of the epoch before are kept" in out
    clusters = [row["clusters"] for row in rows(tmp_path / "clusters.jsonl")]
    assert clusters[0] >= 2 and clusters[1] == 0 and clusters[2] >= 2
    lose_clusters(monkeypatch, {0})
    status, _, err = train(call, data, tmp_path / "none", "train.no_clusters=keep")
    assert status == 1 and "epoch 1: no cluster" in err and not (tmp_path / "none" / "model.safetensors").exists()


def test_the_last_part_of_an_epoch_is_learned_and_saved_however_many_steps_an_epoch_has(
    call, data, tmp_path, monkeypatch
):
    batches, counts = reid.caccl.Relabelling.batches, (5, 2)
    monkeypatch.setattr(
        reid.caccl.Relabelling,
        "batches",
        lambda self, epoch, start=0: (counts[epoch], batches(self, epoch, start)[1]),
    )
    assert train(call, data, tmp_path, "train.epochs=1.2", "train.save_every=9")[0] == 0
    assert [row["epoch"] for row in rows(tmp_path / "log.jsonl")] == [0.2, 0.4, 0.6, 0.8, 1, 1.5]
    assert (tmp_path / "model.safetensors").is_file()


def test_a_run_goes_on_with_other_images(call, tool, data, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(data, source)
    assert train(call, source, out, "train.epochs=0.5", "train.steps_per_epoch=4")[0] == 0
    assert torch.load(out / "last.pt", weights_only=True)["place"] == (0, 2)
    for path in (source / "bounding_box_train").glob("0001_*"):
        path.unlink()
    status, printed, err = call("--out", out, "--resume", "--workers", "0", "--set", "train.epochs=1")
    assert status == 0, err
    assert "the data changed since the checkpoint" in printed
    assert [row["epoch"] for row in rows(out / "log.jsonl")] == [0.25, 0.5, 0.25, 0.5, 0.75, 1]
    assert [row["images"] for row in rows(out / "clusters.jsonl")] == [IMAGES - 2 * EACH]


def test_a_query_without_a_gallery_is_not_evaluated(call, data, tmp_path):
    source = tmp_path / "in"
    for folder, name in (("bounding_box_train", "train"), ("query", "query")):
        shutil.copytree(data / folder, source / name)
    settings = ("train.validate_every=1", "train.epochs=1", "train.steps_per_epoch=1")
    status, out, err = train(call, f"folder:{source}", tmp_path / "out", *settings)
    assert status == 0, err
    assert "nothing is evaluated" in out and not (tmp_path / "out" / "validation.jsonl").exists()


def images(folder, count, camid=1, colours=None):
    rng = np.random.default_rng(0)
    for number in range(count):
        own = rng.integers(30, 225, (2, 3)) if colours is None else colours
        draw(folder / f"{number % 3 + 1:04d}_c{camid}_{number}.png", own, 0, np.random.default_rng(0))
    return folder


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (1, (), "train: expected at least two images to tell apart, got 1"),
        (2, (), "epoch 1: no cluster, all 2 images are outliers"),
        (12, ("clusters.eps=0.0001",), "epoch 1: no cluster, all 12 images are outliers: raise eps (0.0001)"),
    ],
)
def test_images_that_make_no_clusters(call, tmp_path, count, settings, message):
    status, _, err = train(call, f"images:{images(tmp_path / 'in', count)}", tmp_path / "out", *settings)
    assert status == 1 and message in err.strip().splitlines()[-1] and "Traceback" not in err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_images_that_are_all_alike(call, tmp_path):
    folder = images(tmp_path / "in", 12, colours=(100, 200))
    status, out, err = train(call, f"images:{folder}", tmp_path / "out", "jaccard.k1=30")
    assert status == 1 and "epoch 1: a single cluster (12 of 12 images)" in err.strip().splitlines()[-1]
    assert "note: 12 images are no more than jaccard.k1=30: all are neighbours of all" in out


def test_images_of_a_folder_and_a_single_camera(call, data, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for path in (data / "bounding_box_train").glob("*_c1s1_*"):
        (source / f"crop {path.stem[:4]} {path.stem[-9:]}.png").write_bytes(path.read_bytes())
    status, out, err = train(call, f"images:{source}", tmp_path / "out", "train.validate_every=1", "train.epochs=1")
    assert status == 0, err
    assert "note: one camera only: the camera term is off" in out and "nothing is evaluated" in out
    log = rows(tmp_path / "out" / "log.jsonl")
    assert all(row["camera"] == 0 and row["total"] == row["cluster"] for row in log)
    assert "nmi" not in rows(tmp_path / "out" / "clusters.jsonl")[0]


def test_training_images_alone_are_enough(call, data, tmp_path):
    root = tmp_path / "market"
    (root / "bounding_box_train").mkdir(parents=True)
    for path in (data / "bounding_box_train").iterdir():
        (root / "bounding_box_train" / path.name).write_bytes(path.read_bytes())
    status, out, err = train(call, root, tmp_path / "out", "train.validate_every=1", "train.steps_per_epoch=1")
    assert status == 0, err
    assert "nothing is evaluated" in out and not (tmp_path / "out" / "validation.jsonl").exists()


def test_images_without_labels_need_a_method_without(call, data, tmp_path):
    status, _, err = call("--data", f"images:{data}", "--out", tmp_path)
    assert status == 1 and "images without labels: expected --method caccl, cluster or self-paced" in err


def test_batches_shrink_to_the_clusters_there_are(call, data, tmp_path):
    status, out, err = train(call, data, tmp_path, "train.batch_size=64", "train.steps_per_epoch=2")
    assert status == 0, err
    assert out.count("note: fewer clusters than people in a batch") == 1
    assert len(rows(tmp_path / "log.jsonl")) == 4


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--encoder", "osnet_x0_25", "--bn-chunk", "3"), ["train.precision=bf16", "contrast.update=hard"]),
        (("--encoder", "osnet_x0_25"), ["train.precision=fp16", "train.optimizer=sgd", "clusters.method=hdbscan"]),
        (("--encoder", "vit_small"), ["train.steps_per_epoch=1"]),
        (("--encoder", "resnet50"), ["encoder.parts=2", "encoder.compared=pooled", "train.steps_per_epoch=1"]),
    ],
)
def test_options(call, data, tmp_path, options, settings):
    status, _, err = train(call, data, tmp_path, "train.epochs=1", *settings, options=options)
    assert status == 0, err
    log = rows(tmp_path / "log.jsonl")
    assert log and all(np.isfinite(row["total"]) for row in log)


def test_two_processes(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    command += ["--data", str(data), "--encoder", "osnet_x0_25", "--out", str(tmp_path), "--device", "cpu"]
    command += ["--method", "caccl", "--workers", "0", "--set", *SMALL, "train.validate_every=2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["epoch"] for row in rows(tmp_path / "clusters.jsonl")] == [1, 2]
    assert len(rows(tmp_path / "validation.jsonl")) == 2


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("caccl", ["losses.triplet=1"], "the sections of a --method without labels are train, encoder"),
        ("supervised", ["contrast.momentum=0.2"], "the sections of --method supervised are train, encoder"),
        ("supervised", ["train.no_clusters=keep"], "train.no_clusters: expected stop with labels, got keep"),
        ("supervised", ["train.steps_per_epoch=5"], "train.steps_per_epoch: expected 0 with labels, got 5"),
        ("cluster", ["contrast.method=caccl"], "contrast.method: expected cluster, the --method, got caccl"),
        ("caccl", ["train.adversarial=2"], "train.adversarial: expected 0.0 without labels, got 2"),
        ("cluster", ["train.sampler=shuffle"], "train.sampler: expected identities without labels, got shuffle"),
        ("caccl", ["train.epochs=0"], "epochs: expected a number above 0"),
        ("caccl", ["train.steps_per_epoch=-1"], "steps_per_epoch: expected 0 or more, got -1"),
        ("caccl", ["train.bn_chunk=1"], "bn_chunk: expected 0, or at least 2 images"),
        ("caccl", ["jaccard.k1=0"], "k1: expected at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(call, data, tmp_path, method, settings, message):
    small = SMALL if method != "supervised" else ()
    argv = ("--data", data, "--method", method, "--encoder", "osnet_x0_25", "--out", tmp_path, "--workers", "0")
    status, _, err = call(*argv, "--set", *small, *settings)
    assert status == 1
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line and "Traceback" not in err


def test_what_a_resumed_run_cannot_change(call, data, tmp_path):
    assert train(call, data, tmp_path, "train.epochs=1", "train.steps_per_epoch=1")[0] == 0
    for options, message in (
        (["--method", "cluster"], "--resume: data, method"),
        (["--set", "train.optimizer=adamw"], "train.optimizer: expected adam, the checkpoint's"),
        (
            ["--set", "contrast.method=self-paced", "train.epochs=2"],
            "contrast.method: expected caccl, the checkpoint's",
        ),
        (["--set", "train.epochs=0.1", "losses.triplet=1"], "the sections of a --method without labels are train"),
    ):
        status, _, err = call("--out", tmp_path, "--resume", "--workers", "0", *options)
        assert status == 1 and message in err.strip().splitlines()[-1], err
    assert call("--out", tmp_path, "--resume", "--workers", "0", "--set", "train.epochs=2")[0] == 0
    assert [row["epoch"] for row in rows(tmp_path / "log.jsonl")] == [1, 2]
