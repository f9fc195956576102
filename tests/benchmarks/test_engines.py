"""Every way is measured on the same frames, and what must not be calibrated on is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.engine_ways import USUAL, EagerDetector, left_out
from benchmarks.engines import check_calibration, format_table, main
from detector import DetectorConfig, load_detector, load_model
from detector.agreement import agreement
from detector.source import images_in, read_image

NAMES = ("000000000785", "000000000872")
FRAMES = 3


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> dict[str, Path]:
    """Two images and their labels, three frames of PETS with their ground truth."""
    coco, pets = shared / "data" / "det" / "coco256", shared / "data" / "mot" / "PETS09-S2L1-dev"
    images, sequence = tmp_path / "images", tmp_path / "PETS"
    for folder in (images, sequence / "img1", sequence / "gt"):
        folder.mkdir(parents=True)
    for name in NAMES:
        shutil.copyfile(coco / "images" / "val2017" / f"{name}.jpg", images / f"{name}.jpg")
    for path in images_in(pets / "img1")[:FRAMES]:
        shutil.copyfile(path, sequence / "img1" / path.name)
    rows = (pets / "gt" / "gt.txt").read_text().splitlines(keepends=True)
    (sequence / "gt" / "gt.txt").write_text("".join(row for row in rows if int(row.split(",")[0]) <= FRAMES))
    info = (pets / "seqinfo.ini").read_text().replace("seqLength=397", f"seqLength={FRAMES}")
    (sequence / "seqinfo.ini").write_text(info)
    return {
        "--images": images,
        "--labels": coco / "object_detection" / "labels" / "val2017",
        "--sequence": sequence,
        "--calibration": coco / "images" / "train2017",
    }


@pytest.mark.shared
def test_end_to_end(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engines, "left_out", lambda name: "no such luck" if name == "torchscript" else left_out(name))
    argv = [str(word) for pair in data.items() for word in pair]
    argv += ["--only", "eager", "onnx", "torchscript", "--threads", "1", "--frames", "1", "--repeats", "1"]
    argv += ["--compared", "4", "--json", str(tmp_path / "out.json")]
    assert main(argv) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["rows"]) == ["eager", "onnx"]
    assert report["left_out"] == {"torchscript": "no such luck"}
    eager, onnx = report["rows"].values()
    assert eager["ms"]["1"]["forward"] > 0
    assert onnx["ms"]["1"]["forward"] > 0
    assert eager["fps"] is None and onnx["fps"] > 0
    # In floating point nothing is lost.
    for figure in ("AP50", "HOTA", "IDF1", "MOTA"):
        assert 0 < onnx[figure] <= 1
        assert onnx[figure] == pytest.approx(eager[figure], abs=1e-6)
    assert onnx["agreement"]["frames"] == 4
    assert onnx["agreement"]["matched"] == onnx["agreement"]["people"] > 4
    assert onnx["agreement"]["max_box_error"] < 0.01
    assert onnx["agreement"]["min_cosine"] > 0.9999
    assert (report["images"], report["network_input"]) == (len(NAMES), [480, 640])
    assert capsys.readouterr().out.strip() == format_table(report)


@pytest.mark.shared
def test_eager_sees_what_a_detector_sees(data):
    frames = [read_image(path) for path in images_in(data["--images"])]
    reference = load_detector(None, "cpu", DetectorConfig(engine="torch", precision="fp32"))
    found = agreement(reference, EagerDetector(load_model(None), USUAL), frames)
    assert found.matched == found.people == found.other_people > 1
    assert found.max_box_error < 0.01
    assert found.max_score_error < 1e-4


def test_calibration_is_not_evaluation(tmp_path):
    train, val = tmp_path / "train", tmp_path / "val"
    for folder in (train, val / "img1"):
        folder.mkdir(parents=True)
    check_calibration([train], [val])
    for path in (val, val / "img1", tmp_path):
        with pytest.raises(ValueError, match="pictures that are not evaluated on"):
            check_calibration([train, path], [val])
    with pytest.raises(ValueError, match="none: no such file or folder"):
        check_calibration([tmp_path / "none"], [val])


def test_table():
    found = {"people": 6, "other_people": 4, "matched": 4, "max_box_error": 1.234, "min_cosine": None}
    row = {"ms": {"1": {"forward": 10.04, "call": 20.0}}, "fps": None, "bytes": 3_650_000, "agreement": found}
    row |= {"AP50": 0.7, "HOTA": 0.5, "IDF1": 0.25, "MOTA": np.float64(0.125)}
    report = {
        "rows": {"onnx": row},
        "threads": [1],
        "left_out": {"openvino": "not installed"},
        "video": "in.mp4",
        "sequence": "PETS",
        "images": 3,
        "repeats": 1,
        "network_input": [384, 640],
        "machine": {"cpu": "a processor", "cores": 2, "load_average": None},
    }
    heads, rule, line, *rest = format_table(report).splitlines()
    assert line == "| onnx | 10.0 | 20.0 | - | 3.6 | 0.700 | 0.500 | 0.250 | 0.125 | 1.23 | - | 0.200 |"
    assert heads.count("|") == rule.count("|") == line.count("|")
    assert "openvino: left out, not installed" in rest


def test_errors_are_one_line(tmp_path, capsys):
    argv = ["--images", tmp_path, "--labels", tmp_path, "--sequence", tmp_path, "--calibration", tmp_path]
    assert main([str(word) for word in argv]) == 2
    assert "engines: --calibration: expected pictures" in capsys.readouterr().err
    assert main([str(word) for word in (*argv, "--repeats", 0)]) == 2
    assert capsys.readouterr().err == "engines: --repeats: expected at least 1, got 0\n"
