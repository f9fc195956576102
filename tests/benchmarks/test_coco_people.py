"""YOLOX's people come back in place, and both networks are scored on the same images."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import coco_people, yardstick
from benchmarks.coco_people import YoloxPeople, format_table, main

NAMES = ("000000000785", "000000000872", "000000000885", "000000001000")


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Four images, their labels, and YOLOX-nano."""
    source = shared / "data" / "det" / "coco256"
    (tmp_path / "images").mkdir()
    for name in NAMES:
        shutil.copy(source / "images" / "val2017" / f"{name}.jpg", tmp_path / "images")
    labels = source / "object_detection" / "labels" / "val2017"
    return tmp_path / "images", labels, shared / "data" / "weights" / "yolox_nano.onnx"


@pytest.mark.shared
@pytest.mark.parametrize("size", [416, 320])
def test_people_are_those_of_the_yardstick(data, size, monkeypatch):
    images, _, onnx = data
    monkeypatch.setattr(coco_people, "SCORE_THRESH", yardstick.SCORE_THRESH)
    monkeypatch.setattr(coco_people, "NMS_THRESH", yardstick.NMS_THRESH)
    frames = [cv2.imread(str(path)) for path in sorted(images.iterdir())]
    found = YoloxPeople(onnx, size)(frames)
    session, grid = yardstick.load_session(onnx, (size, size)), yardstick.cell_grid((size, size))
    for frame, people in zip(frames, found, strict=True):
        image, scale = yardstick.letterbox(frame, (size, size))
        expected = yardstick.people(session.run(None, {"images": image})[0][0], grid, scale)
        np.testing.assert_allclose(people["boxes"], expected, atol=1e-3)
        assert (np.diff(people["scores"]) <= 0).all()
        assert people["scores"].shape == (len(expected),)
    assert sum(len(people["scores"]) for people in found) >= 4


@pytest.mark.shared
def test_end_to_end(data, tmp_path, capsys):
    images, labels, onnx = data
    argv = ["--images", images, "--labels", labels, "--onnx", onnx, "--sizes", 416, 320]
    argv = [str(word) for word in [*argv, "--json", tmp_path / "out.json", "--plot", tmp_path / "curves.png"]]
    assert main(argv) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    rows = report["rows"]
    assert [(row["model"], row["input_size"]) for row in rows] == [
        (model, size) for size in (416, 320) for model in ("yolox_nano", "bundled")
    ]
    assert {row["images"] for row in rows} == {4}
    assert len({row["people"] for row in rows}) == len({row["people_small"] for row in rows}) == 1
    assert all(0.4 < row["AP50"] <= 1 and row["AP50:95"] < row["AP50"] for row in rows)
    # The bundled model was made of YOLOX-nano's weights.
    assert rows[0]["AP50"] == pytest.approx(rows[1]["AP50"], abs=0.15)
    assert report["command"].endswith(" ".join(argv))
    assert report["machine"]["cores"] >= 1
    out = capsys.readouterr().out.splitlines()
    assert out == format_table(report).splitlines()
    assert len(out) == 6
    assert cv2.imread(str(tmp_path / "curves.png")).shape[2] == 3


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["--images", str(tmp_path / "none"), "--labels", str(tmp_path)]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((64, 64, 3), np.uint8))
    assert main(["--images", str(tmp_path), "--labels", str(tmp_path), "--sizes", "100"]) == 2
    assert "input_size: expected a positive multiple of 32" in capsys.readouterr().err
    with pytest.raises(ValueError, match="input_size"):
        main(["--images", str(tmp_path), "--labels", str(tmp_path), "--sizes", "100", "--debug"])


def test_a_figure_that_could_not_be_measured_is_a_dash():
    row = dict.fromkeys(coco_people.FIGURES) | {"model": "m", "input_size": 640, "images": 1, "people": 0}
    assert format_table({"rows": [row]}).splitlines()[-1].split() == ["m", "640", *["-"] * len(coco_people.COLUMNS)]
