"""`tools/eval_reid.py` end to end: figures, files, pictures, and what it says to bad input."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import reid.pages
from reid.datasets import load_dataset
from reid.encoders import save_encoder
from reid.extraction import EncoderDescriber, extract_features
from reid.ranking import evaluate_ranking
from tests.reid.crops import add_images, add_market, tiny_encoder
from tests.tools.conftest import TOOLS, call_tool, failing, load_tool

TOOL = TOOLS / "eval_reid.py"


@pytest.fixture(scope="module")
def tool():
    return load_tool("eval_reid")


@pytest.fixture
def call(tool, capfd):
    """The tool in this process: arguments -> (status, stdout, stderr)."""
    threads = torch.get_num_threads()

    yield functools.partial(call_tool, tool, capfd)
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set `m` and weights `e.safetensors`; the working folder is theirs."""
    add_market(tmp_path / "m")
    save_encoder(tmp_path / "e.safetensors", tiny_encoder())
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ("--data", "m", "--weights", "e.safetensors")


def read(path):
    return json.loads(Path(path).read_text())


# --- figures


@pytest.mark.shared
def test_osnet_on_pku(shared, call, tmp_path):
    weights = shared / "data" / "weights" / "osnet_x0_25_market1501.pth"
    data = shared / "data" / "reid" / "pku_market_layout"
    status, out, err = call("--data", data, "--weights", weights, "--rerank", "--json", tmp_path / "o.json")
    assert (status, err) == (0, "")
    assert "c0ff09177a21417a19bc73bbf5af4eb5d2b097c2074ed35e67819ee6cd93612c" in out
    assert "keys:      565 loaded, 2 left out (classifier.weight, classifier.bias)" in out
    assert "queries: 24, all with a match" in out
    plain, again = read(tmp_path / "o.json")["figures"].values()
    assert plain["rank-1"] == pytest.approx(3 / 24)
    assert plain["mAP"] == pytest.approx(0.2024, abs=2e-3)
    assert plain["mAP_trapezoid"] == pytest.approx(0.1828, abs=2e-3)
    assert again["mAP"] == pytest.approx(0.2593, abs=5e-3)


def test_the_program_and_its_json(folder):
    command = [sys.executable, str(TOOL), *MODEL, "--json", "o.json", "--ranks", "1,3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    data = load_dataset("m", ("query", "gallery"))
    rows = [extract_features(EncoderDescriber(tiny_encoder()), crops) for crops in data.splits.values()]
    labels = (data.query.pids, data.gallery.pids, data.query.camids, data.gallery.camids)
    expected = evaluate_ranking(1 - rows[0] @ rows[1].T, *labels).figures((1, 3))
    content = read("o.json")
    assert content["figures"] == {"single query": pytest.approx(expected, abs=1e-6)}
    assert list(expected) == ["mAP", "mAP_trapezoid", "rank-1", "rank-3", "mINP", "queries", "valid_queries"]
    assert content["images"] == {"query": 8, "gallery": 18}
    assert content["sha256"] in done.stdout
    assert content["features"]["input_size"] == "32x16"
    assert "gallery                4          18           2           1           1" in done.stdout


def test_all_rows_and_settings(folder, call):
    add_images(
        folder / "m" / "gt_bbox",
        [f"000{p}_c{c}s1_00000{k}_00.png" for p in (1, 2, 3, 4) for c in (1, 2) for k in (5, 6)],
    )
    options = (
        "--rerank",
        "--set",
        "rerank.k1=6",
        "--multi-query",
        "--flip",
        "--scales",
        "1,1.25",
        "--precision",
        "bf16",
    )
    status, out, _ = call(*MODEL, *options, "--fuse", "--metric", "euclidean", "--json", "o.json", "--device", "cpu")
    assert status == 0
    content = read("o.json")
    assert list(content["figures"]) == [
        "single query", "single query, re-ranked", "multi-query", "multi-query, re-ranked",
    ]  # fmt: skip
    assert content["images"]["multi_query"] == 16
    assert content["rerank"]["k1"] == 6
    made = content["features"]
    assert (made["flip"], made["scales"], made["precision"], made["fuse"]) == (True, "1,1.25", "bf16", True)
    assert "batch norms folded" in out


def test_an_archive_and_the_queries_pooled_themselves(folder, call):
    add_images(folder / "m" / "query", ["0001_c1s1_000007_00.png"])
    with zipfile.ZipFile("m.zip", "w") as archive:
        for path in sorted(Path("m").rglob("*.png")):
            archive.write(path)
    assert call("--data", "market1501:m.zip", "--weights", "e.safetensors", "--multi-query", "--json", "o.json")[0] == 0
    assert list(read("o.json")["figures"]) == ["single query", "multi-query"]


def test_queries_without_a_match_are_counted(folder, call):
    add_images(folder / "m" / "query", ["0099_c1s1_000001_00.png"])
    status, out, _ = call(*MODEL)
    assert status == 0
    assert "query: no match in the gallery from another camera: 1 of 9; these do not count" in out
    assert "queries: 9, 1 without a match in the gallery do not count" in out


def test_the_detectors_branch(folder, call):
    data = folder / "few"
    for split, name in (("query", "0001_c1_1.png"), ("gallery", "0001_c2_1.png"), ("gallery", "0002_c2_1.png")):
        add_images(data / split, [name])
    Image.fromarray(np.full((500, 40, 3), 90, np.uint8)).save(
        data / "gallery" / "0003_c2_1.png"
    )  # larger than the grey
    status, out, _ = call("--data", data, "--weights", "detector", "--flip", "--features", "d.npz")
    assert status == 0
    assert "nano.safetensors" in out
    assert "canvas 416, input_size 640" in out
    assert call("--data", data, "--weights", "detector", "--flip", "--features", "d.npz")[1].count("described") == 0


def test_an_encoder_without_weights(folder, call):
    status, out, _ = call("--data", "m", "--encoder", "osnet_x0_25", "--input-size", "32x16")
    assert status == 0
    assert "osnet_x0_25, random weights" in out
    assert "input_size 32x16" in out


# --- features


def test_features_are_used_again(folder, call):
    assert call(*MODEL, "--flip", "--features", "f.npz", "--json", "a.json")[0] == 0
    before = Path("f.npz").read_bytes()
    for argv in ((*MODEL, "--flip"), ("--data", "m"), ()):
        status, out, _ = call(*argv, "--features", "f.npz", "--json", "b.json")
        assert status == 0
        assert "described" not in out
        assert read("b.json")["figures"] == read("a.json")["figures"]
        assert read("b.json")["sha256"] == read("a.json")["sha256"]
    assert Path("f.npz").read_bytes() == before


def test_a_split_is_added(folder, call):
    call(*MODEL, "--features", "f.npz")
    add_images(folder / "m" / "gt_bbox", [f"000{p}_c{c}s1_000005_00.png" for p in (1, 2, 3, 4) for c in (1, 2)])
    status, out, _ = call(*MODEL, "--features", "f.npz", "--multi-query")
    assert status == 0
    assert "described multi_query: 8 images" in out
    assert "described query" not in out
    assert call("--features", "f.npz", "--multi-query", "--json", "o.json")[0] == 0
    assert list(read("o.json")["figures"]) == ["single query", "multi-query"]


def test_features_of_something_else(folder, call):
    call(*MODEL, "--features", "f.npz")
    before = Path("f.npz").read_bytes()
    save_encoder("other.safetensors", tiny_encoder(neck="bn"))
    add_market(folder / "other", people=3)
    for argv, message in (
        ((*MODEL, "--flip"), "f.npz: features made with flip False, not True; name another file"),
        (("--data", "m", "--weights", "other.safetensors"), "f.npz: features of other weights (SHA-256 "),
        (("--data", "other", "--weights", "e.safetensors"), "f.npz: features of other data (query: 8 images, not 6)"),
        (("--data", "other"), "f.npz: features of other data (query: 8 images, not 6)"),
    ):
        assert failing(call(*argv, "--features", "f.npz")).startswith(f"error: {message}")
    assert Path("f.npz").read_bytes() == before
    Path("f.npz").write_bytes(b"text")
    assert failing(call(*MODEL, "--features", "f.npz")).startswith(
        "error: f.npz: expected features written by eval_reid"
    )


# --- pictures and exports


def test_pictures(folder, call):
    options = ("--pictures", "2", "--heat-maps", "1", "--embedding-plot", "--out", "r")
    assert call(*MODEL, *options, "--rerank", "--set", "rerank.k1=5")[0] == 0
    names = {"ranks-worst.png", "ranks-best.png", "heat-worst.png", "heat-best.png", "features.png"}
    assert {path.name for path in Path("r").iterdir()} == {*names, "figures.json"}
    for name in names:
        assert min(cv2.imread(f"r/{name}").shape[:2]) > 150
    assert cv2.imread("r/ranks-worst.png").shape[0] == 2 * cv2.imread("r/heat-worst.png").shape[0]


def test_pages_and_chosen_queries(folder, call, monkeypatch):
    monkeypatch.setattr(reid.pages, "QUERIES_A_PAGE", 3)
    call(*MODEL, "--pictures", "7", "--features", "f.npz", "--out", "r")
    assert {path.name for path in Path("r").glob("*.png")} == {
        f"ranks-{name}-{page}.png" for name in ("worst", "best") for page in (1, 2, 3)
    }
    chosen = ("0002_c1s1_000001_00.png", "0003_c2s1_000001_00", "query/0004_c1s1_000001_00.png")
    call("--data", "m", "--features", "f.npz", "--out", "c", "--pictures", "--queries", *chosen)
    assert [path.name for path in Path("c").glob("*.png")] == ["ranks-chosen.png"]


@pytest.mark.parametrize(("kind", "name"), [("onnx", "e.onnx"), ("torchscript", "e.torchscript.pt")])
def test_exports(folder, call, kind, name):
    status, out, _ = call("--weights", "e.safetensors", "--export", kind, "--fuse", "--out", "x")
    assert status == 0
    assert f"wrote x/{name}, features differ by" in out
    assert Path("x", name).stat().st_size > 100_000


# --- bad input


def spoil_query(folder):
    for path in (folder / "m" / "query").iterdir():
        path.unlink()


def spoil_pids(folder):
    for path in (folder / "m" / "query").iterdir():
        path.rename(path.with_name(f"9{path.name}"))


def spoil_image(folder):
    path = folder / "m" / "bounding_box_test" / "0002_c1s1_000001_00.png"
    path.write_bytes(path.read_bytes()[:200])


def spoil_weights(folder):
    path = folder / "e.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_shape(folder):
    encoder = tiny_encoder()
    encoder.backbone.fc[0] = torch.nn.Linear(128, 40)
    save_encoder(folder / "e.safetensors", encoder)


def spoil_kind(folder):
    (folder / "e.safetensors").rename(folder / "e.pth")
    torch.save({"layer.weight": torch.zeros(3)}, folder / "e.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_query, r"m/query: expected .*found none|m: expected query images, found none"),
        (spoil_pids, "query_pids: expected a query with a match seen by another camera, got none among 8"),
        (spoil_image, "m/bounding_box_test/0002_c1s1_000001_00.png: not a whole image"),
        (spoil_weights, "e.safetensors: not a readable safetensors file"),
        (spoil_shape, r"e.safetensors: the weights do not fit Encoder: .*backbone.fc.0.weight: expected \(512, 128\)"),
        (spoil_kind, "e.safetensors: not a readable safetensors file"),
    ],
)
def test_bad_files(folder, call, spoil, message):
    spoil(folder)
    error = failing(call(*MODEL, "--features", "f.npz", "--json", "o.json"))
    assert re.search(message, error), error
    assert not Path("o.json").exists()
    assert Path("f.npz").exists() == (spoil is spoil_pids)  # what cost time is kept


def test_odd_images(folder, call):
    gallery = folder / "m" / "bounding_box_test"
    Image.fromarray(np.full((20, 10), 90, np.uint8)).save(gallery / "0001_c1s1_000021_00.png")
    Image.fromarray(np.full((20, 10), 9000, np.uint16)).save(gallery / "0001_c1s1_000022_00.png")
    Image.fromarray(np.full((1, 1, 3), 90, np.uint8)).save(gallery / "0001_c1s1_000023_00.png")
    status, out, _ = call(*MODEL, "--pictures", "8", "--heat-maps", "8", "--out", "r")
    assert status == 0
    assert "described gallery: 21 images" in out


def test_ctrl_c_keeps_what_was_there(folder, call, tool, monkeypatch):
    call(*MODEL, "--features", "f.npz", "--json", "o.json")
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    names = [f"000{pid}_c{camid}s1_000005_00.png" for pid in (1, 2, 3, 4) for camid in (1, 2)]
    add_images(folder / "m" / "gt_bbox", names)
    original = tool.EncoderDescriber.describe

    def interrupted(self, prepared):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, prepared)

    monkeypatch.setattr(tool.EncoderDescriber, "describe", interrupted)
    status, _, err = call(*MODEL, "--features", "f.npz", "--json", "o.json", "--multi-query")
    assert (status, err) == (130, "interrupted\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*MODEL, "--json", "e.safetensors"], "e.safetensors: the result would overwrite an input"),
        ([*MODEL, "--json", "link"], "link: the result would overwrite an input"),
        ([*MODEL, "--features", "e.safetensors"], "e.safetensors: expected features written by eval_reid.py"),
        ([*MODEL, "--json", "f.npz", "--features", "f.npz"], "f.npz: the result would overwrite an input"),
        ([*MODEL, "--json", "n", "--features", "n"], "n: the result would overwrite another result"),
        ([*MODEL, "--json", "r/figures.json", "--out", "r"], "r/figures.json: would be written twice"),
        ([*MODEL, "--json", "m/query/0001_c1s1_000001_00.png"], "00.png: the result would overwrite an input"),
        (["--data", "m.zip", "--weights", "e.safetensors", "--json", "m.zip"], "m.zip: the result would overwrite an"),
        (["--data", "m.zip/m", "--weights", "e.safetensors", "--json", "m.zip"], "m.zip: the result would overwrite"),
        (["--data", "t.csv", "--weights", "e.safetensors", "--json", "t.csv"], "t.csv: the result would overwrite an"),
        (["--data", "folder:.,t.csv", "--weights", "e.safetensors", "--json", "t.csv"], "t.csv: the result would"),
        (["--features", "f.npz", "--json", "f.npz"], "f.npz: the result would overwrite an input"),
        (["--weights", "x/e.onnx", "--export", "onnx", "--out", "x"], "x/e.onnx: the result would overwrite an input"),
        ([*MODEL, "--out", "t.csv"], "t.csv: expected a folder that can be written to"),
        ([*MODEL, "--out", "t.csv/below"], "t.csv/below: expected a folder that can be written to"),
        ([*MODEL, "--json", "shut/o.json"], "shut/o.json: cannot be written"),
        ([*MODEL, "--features", "shut/f.npz"], "shut/f.npz: cannot be written"),
        ([*MODEL, "--out", "shut/r"], "shut/r: expected a folder that can be written to"),
    ],
)  # fmt: skip
def test_places_of_results_are_checked_first(folder, call, monkeypatch, options, message):
    assert call(*MODEL, "--features", "f.npz")[0] == 0
    with zipfile.ZipFile("m.zip", "w") as archive:
        for path in sorted(Path("m").rglob("*.png")):
            archive.write(path)
    Path("t.csv").write_text("path,pid,split\nm/query/0001_c1s1_000001_00.png,1,query\n")
    for name in ("x", "shut"):
        Path(name).mkdir()
    Path("x/e.onnx").write_bytes(Path("e.safetensors").read_bytes())
    Path("link").symlink_to("e.safetensors")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and access(path, mode))
    before = {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    error = failing(call(*options))
    assert message in error, error
    assert {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")} == before


def test_images_that_have_changed_since(folder, call):
    assert call(*MODEL, "--features", "f.npz")[0] == 0
    before = Path("f.npz").read_bytes()
    add_images(folder / "m" / "query", ["0001_c1s1_000001_00.png"], seed=77)
    error = failing(call(*MODEL, "--features", "f.npz"))
    assert re.search(r"f\.npz: features of other data \(query: query/0001_c1s1_000001_00\.png has changed", error)
    assert Path("f.npz").read_bytes() == before
    assert call("--features", "f.npz")[0] == 0


def test_a_query_that_shows_nobody(folder, call):
    add_images(folder / "m" / "query", ["-1_c1s1_000001_00.png"])
    error = failing(call(*MODEL, "--features", "f.npz"))
    assert "m/query/-1_c1s1_000001_00.png: expected queries of identities from 1" in error
    assert not Path("f.npz").exists()


def test_an_exported_detector(folder, call):
    (folder / "nano.onnx").write_text("x")
    error = failing(call("--data", "m", "--weights", "detector:nano.onnx"))
    assert "nano.onnx: expected a .safetensors model, or a published JDE .pt; exported models (.onnx, " in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "no", "--weights", "e.safetensors"], "no: no such file or folder"),
        (["--data", "m", "--weights", "no.safetensors"], "no.safetensors: no such weights file"),
        (["--data", "m", "--weights", "detector:no.safetensors"], "no.safetensors: no such weights file"),
        (["--weights", "e.safetensors"], "--data: expected a data set to describe by the encoder"),
        (["--features", "no.npz"], "no.npz: no such file"),
        (["--data", "m", "--features", "no.npz"], "no.npz: no features of gallery, query; --weights would make them"),
        ([*MODEL, "--features", "no/f.npz"], "no: no such folder"),
        ([*MODEL, "--json", "m"], "m: is a folder"),
        ([*MODEL, "--multi-query"], "--multi-query: expected several images of a query's person and camera"),
        ([*MODEL, "--ranks", "0,1"], "--ranks: expected numbers from 1, got 0"),
        ([*MODEL, "--scales", "1,-1"], "scales: expected numbers above 0"),
        ([*MODEL, "--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        ([*MODEL, "--workers", "0"], "workers: expected at least 1, got 0"),
        ([*MODEL, "--pictures", "-1"], "--pictures: expected at least 1, got -1"),
        ([*MODEL, "--queries", "x"], "--queries: needs --pictures or --heat-maps"),
        ([*MODEL, "--queries", "x", "--pictures"], "--queries: m: expected the name of an image, such as query/0001"),
        ([*MODEL, "--imagenet"], "--imagenet: needs --encoder"),
        ([*MODEL, "--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ([*MODEL, "--device", "cuda:99"], "--device: expected cpu or one of "),
        ([*MODEL, "--set", "rerank.k3=1"], "override 'rerank.k3=1': unknown key in section 'rerank': 'k3'"),
        (["--data", "m", "--features", "f.npz", "--flip"], "--flip: needs --weights or --encoder"),
        (["--features", "f.npz", "--pictures"], "--pictures: needs --data"),
        (["--data", "m", "--weights", "detector", "--heat-maps"], "--heat-maps: is for encoders of crops"),
        (["--data", "m", "--weights", "detector", "--export", "onnx"], "--export: is for encoders of crops"),
        (["--data", "m", "--weights", "detector", "--precision", "bf16"], "--precision: expected fp32 for a detector"),
    ],
)  # fmt: skip
def test_impossible_options(folder, call, options, message):
    error = failing(call(*options))
    assert message in error, error
    assert {path.name for path in folder.iterdir()} == {"m", "e.safetensors"}


def test_what_argparse_refuses(folder, call):
    for options, message in (
        (("--data", "m"), "expected one of --weights, --encoder, --features"),
        ((*MODEL, "--encoder", "resnet50"), "expected either --weights or --encoder"),
        (("--data", "m", "--encoder", "vgg"), "invalid choice: 'vgg'"),
        ((*MODEL, "--scales", "big"), "expected numbers with commas between, got 'big'"),
        ((*MODEL, "--input-size", "32"), "expected HEIGHTxWIDTH, got '32'"),
    ):
        status, _, err = call(*options)
        assert status == 2
        assert message in err
