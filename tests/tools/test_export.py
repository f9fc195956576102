import argparse
import dataclasses
import functools
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest

from detector import DetectorConfig, load_detector, save_model
from tests.detector.scenes import lively_darknet, lively_model, noise
from tests.tools.conftest import call_tool, load_tool

Run = Callable[..., tuple[int, str, str]]
NOBODY = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, np.int64)}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("export")


@pytest.fixture
def run(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process: arguments -> (status, stdout, stderr)."""
    return functools.partial(call_tool, tool, capfd)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of a file, which finds people in noise."""
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_model(path, lively_model(embedding_dim=16), half=False)
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MOTChallenge sequence of noise, in which a box is a person."""
    folder = tmp_path_factory.mktemp("sequences") / "noise"
    (folder / "img1").mkdir(parents=True)
    (folder / "gt").mkdir()
    for number in range(1, 5):
        cv2.imwrite(str(folder / "img1" / f"{number:06d}.png"), noise(90, 120, number))
    (folder / "gt" / "gt.txt").write_text("".join(f"{n},1,10,10,20,40,1,1,1\n" for n in range(1, 5)))
    (folder / "seqinfo.ini").write_text(
        "[Sequence]\nname=noise\nimDir=img1\nframeRate=10\nseqLength=4\nimWidth=120\nimHeight=90\nimExt=.png\n"
    )
    return folder


@pytest.fixture
def options(weights: Path, footage: Path, tmp_path: Path) -> list[object]:
    """Of a small export."""
    return ["--weights", weights, "--out", tmp_path / "out", "--check", footage, "--frames", 3, "--input-size", 96]


PEOPLE = ["--score-thresh", 0.6]


def test_a_file_is_written_compared_and_run(run: Run, options: list[object], footage: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    status, out, err = run(*options, *PEOPLE, "--format", "onnx", "--gt", footage, "--json", report)
    assert status == 0, err
    path = tmp_path / "out" / "lively.onnx"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing is left behind
    head, row = out.strip().splitlines()
    assert head.split("  ")[0] == "file"
    assert "IDF1" in head
    assert row.startswith(str(path))
    assert row.endswith("(+0.00)")
    facts = json.loads(report.read_text())
    assert facts["failed"] == {}
    (file,) = facts["files"]
    assert file["frames"] == 3
    assert file["people"] == file["matched"] > 10
    assert file["max_box_error"] <= 0.01
    assert file["min_cosine"] > 0.9999
    assert file["bytes"] == path.stat().st_size
    assert facts["manifest"]["score_thresh"] == 0.6
    assert len(load_detector(path)([noise(90, 120)])[0]["boxes"])


def test_average_precision_of_labelled_images(run: Run, options: list[object], footage: Path) -> None:
    status, out, err = run(*options, *PEOPLE, "--format", "onnx", "--data", f"mot:{footage}")
    assert status == 0, err
    assert "AP50" in out
    assert out.strip().endswith("(+0.00)")


def test_several_formats_and_one_that_fails(
    run: Run, tool: ModuleType, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("no luck today")  # as of a library whose errors are its own

    monkeypatch.setitem(tool.WRITERS, "torchscript", (".torchscript", broken))
    report = tmp_path / "report.json"
    status, out, err = run(*options, "--format", "torchscript", "onnx", "--graph", "boxes", "--json", report)
    assert status == 1
    assert "error: torchscript: LookupError: no luck today" in err
    facts = json.loads(report.read_text())
    assert [file["format"] for file in facts["files"]] == ["onnx"]
    assert list(facts["failed"]) == ["torchscript"]
    assert "no luck today" in facts["failed"]["torchscript"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["lively-boxes.onnx"]
    assert "max relative error" in out


def test_a_file_that_differs_is_not_kept(
    run: Run, tool: ModuleType, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, write = tool.WRITERS["onnx"]
    other = lively_model(1, embedding_dim=16)
    monkeypatch.setitem(tool.WRITERS, "onnx", (suffix, lambda model, *rest: write(other, *rest)))
    for graph in ("people", "maps"):
        given = PEOPLE if graph == "people" else []
        status, out, err = run(*options, *given, "--format", "onnx", "--graph", graph, "--frames", 1)
        assert (status, out) == (1, "")
        assert "error: " in err
        assert "differs from the model" in err or "nothing could be compared" in err
        assert not list((tmp_path / "out").iterdir())


def test_nobody_in_common(
    run: Run, tool: ModuleType, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dataclasses.replace(tool.agreement(*[lambda frames: [NOBODY for _ in frames]] * 2, [noise(9, 9)]), people=3)
    monkeypatch.setattr(tool, "agreement", lambda *_: dataclasses.replace(found, other_people=2))
    status, _, err = run(*options, *PEOPLE, "--format", "onnx")
    assert status == 1
    assert "differs from the model: none of 3 people by the model is among the 2 by the file" in err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript", "torch-export"])
def test_a_full_disk(run: Run, options: list[object], tmp_path: Path, name: str) -> None:
    import resource

    if name == "openvino":
        pytest.importorskip("openvino")
    graph = ["--graph", "boxes"] if name == "torch-export" else PEOPLE
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error then, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        status, out, err = run(*options, *graph, "--format", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'out'}")
    assert not list((tmp_path / "out").iterdir())


def test_an_older_file_outlives_a_failure(run: Run, tool: ModuleType, options: list[object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    old = tmp_path / "out" / "lively.onnx"
    old.write_text("old")
    status, _, err = run(*options, *PEOPLE, "--format", "onnx", "--tolerance", 0, 1)
    assert status == 1
    assert "pixels away, expected 0" in err
    assert old.read_text() == "old"


def test_int8(
    run: Run, tool: ModuleType, options: list[object], footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few bits cost a random network more than a trained one.
    monkeypatch.setitem(tool.TOLERANCES, "int8", (1000, -1, 99))
    status, out, err = run(*options, *PEOPLE, "--format", "onnx", "--int8", "--calibration", footage / "img1")
    assert status == 0, err
    assert "lively-int8.onnx" in out
    assert load_detector(tmp_path / "out" / "lively-int8.onnx").config.precision == "int8"


def test_darknet(run: Run, options: list[object], tmp_path: Path) -> None:
    path = tmp_path / "dark.safetensors"
    save_model(path, lively_darknet(), half=False)
    status, out, err = run(*options, *PEOPLE, "--weights", path, "--format", "onnx")
    assert status == 0, err
    assert "dark.onnx" in out


def test_without_footage_frames_are_drawn(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    frames = list(tool.check_frames(argparse.Namespace(check=None)))
    assert len(frames) == tool.DRAWN_FRAMES
    assert "no --check: comparing on pictures put together" in capfd.readouterr().err
    found = load_detector(device="cpu", config=DetectorConfig(score_thresh=0.1))(frames[:1])[0]
    assert len(found["boxes"]) >= 3
    assert not np.array_equal(frames[0], frames[1])


def test_frames_are_spread_over_the_start(tool: ModuleType, footage: Path) -> None:
    args = argparse.Namespace(check=[str(footage)], frames=2)
    frames = list(tool.check_frames(args))
    assert np.array_equal(frames[0], noise(90, 120, 1))
    assert np.array_equal(frames[1], noise(90, 120, 3))


def test_frames_are_of_the_footage(run: Run) -> None:
    status, _, err = run("--format", "onnx", "--frames", 3)
    assert (status, err) == (1, "error: --frames: is for the footage of --check\n")


def test_a_live_source_is_refused_without_its_password(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MagicMock(live=True, location="rtsp://camera/1")
    monkeypatch.setattr(tool, "open_source", lambda _: source)
    with pytest.raises(ValueError, match="--check: rtsp://camera/1: expected a recording"):
        list(tool.check_frames(argparse.Namespace(check=["rtsp://user:secret@camera/1"], frames=2)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--format", "torch-export"], "a torch-export program cannot hold people"),
        (["--format", "onnx", "--int8"], "--int8: needs --calibration"),
        (["--format", "onnx", "--calibration", "x"], "--calibration is for --int8"),
        (["--format", "torchscript", "--int8", "--calibration", "x"], "is for onnx and openvino, not torchscript"),
        (["--format", "onnx", "--int8", "--calibration", "x"], "--calibration: x: no such file or folder"),
        (["--format", "onnx", "--int8", "--half", "--calibration", "x"], "expected either --half or --int8"),
        (["--format", "onnx", "--graph", "maps", "--gt", "x"], "--data, --gt: are for --graph people"),
        (["--format", "onnx", "--graph", "maps", "--nms-thresh", "0.5"], "--nms-thresh: is for --graph people"),
        (["--format", "onnx", "--graph", "boxes", "--tolerance", "1", "1"], "--tolerance: is for --graph people"),
        (["--format", "onnx", "--device", "cuda"], "--device: is for torchscript and torch-export"),
        (["--format", "onnx", "--json", "nowhere/r.json"], "--json: nowhere: no such folder"),
        (["--format", "onnx", "--json", "/"], "--json: /: is a folder"),
        (["--format", "onnx", "--frames", "0"], "--frames: expected at least 1, got 0"),
        (["--format", "onnx", "--tolerance", "-1", "0.9"], "--tolerance: expected pixels and a cosine"),
        (["--format", "onnx", "--score-thresh", "2"], "score_thresh: expected a number in [0, 1], got 2.0"),
        (["--format", "onnx", "--check", "nowhere.mp4"], "nowhere.mp4: no such file or folder"),
        (["--format", "onnx", "--gt", "nowhere"], "nowhere: no such folder"),
        (["--format", "onnx", "--weights", "nowhere.safetensors"], "nowhere.safetensors: no such weights file"),
    ],
)
def test_what_cannot_be_is_refused_first(run: Run, tmp_path: Path, given: list[str], message: str) -> None:
    check = [] if "--check" in given else ["--check", Path(__file__).parents[1]]
    status, _, err = run(*given, "--out", tmp_path / "out", *check)
    assert status == 1
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_track_takes_an_exported_model(
    run: Run, track_tool: ModuleType, options: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*options, *PEOPLE, "--format", "onnx", "--frames", 1)[0] == 0
    path = tmp_path / "out" / "lively.onnx"

    def load(score_thresh: float | None, config: DetectorConfig) -> object:
        args = argparse.Namespace(weights=path, device=None, threads=1, score_thresh=score_thresh)
        return track_tool.load(args, config)[0]

    detector = load(0.7, DetectorConfig(score_thresh=0.1, max_detections=1000))
    assert detector.config.score_thresh == 0.6
    assert re.findall(r"note: .* was exported to report (.*)", capfd.readouterr().err) == [
        "people from 0.6 on, not 0.1",
        "300 people a frame at most, not 1000",
    ]
    with pytest.raises(ValueError, match=r"--score-thresh: .*lively\.onnx was exported to report people from 0\.6 on"):
        load(0.5, DetectorConfig(score_thresh=0.1))
