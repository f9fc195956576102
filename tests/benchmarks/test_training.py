from pathlib import Path

import pytest

from benchmarks import loss_weighting, training
from tests.detector.scenes import write_people


def test_a_row_is_measured(tmp_path: Path) -> None:
    images = write_people(tmp_path, 8, 96)
    row = training.measure_row("nano", "fp32", f"jde:{images}", 1, "cpu")
    assert (row["network"], row["precision"], row["input"], row["batch"]) == ("nano", "fp32", "416x416", 8)
    assert row["images_per_s"] > 0
    assert row["loader_images_per_s"] > 0
    assert row["peak_gib"] > 0.1
    assert sorted(row["parts"]) == ["backward", "forward", "losses", "update"]
    assert sum(row["parts"].values()) == pytest.approx(1)
    assert row["seconds_of_steps"] == [pytest.approx(8 / row["images_per_s"])]
    assert training.table([row]).splitlines()[-1].startswith("| nano | fp32 | 416x416 | 8 | ")


def test_what_cannot_be_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", f"yolo:{tmp_path / 'none'}", "--json", str(tmp_path / "out.json")]
    assert training.main([*options, "--row", "nano", "fp32"]) == 2
    assert "none: no such file or folder" in capsys.readouterr().err
    assert loss_weighting.main(["--val", "yolo:none", "--json", str(tmp_path / "out.json")]) == 2
    assert "fixed: error: no data" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_table_of_weightings() -> None:
    figures = dict.fromkeys(loss_weighting.COLUMNS, 0.5) | {"mAP": None}
    rows = [
        {**figures, "weighting": "fixed", "s": {"s_box": 0.0}},
        {**figures, "weighting": "learned", "s": {"s_id": -1.5}},
    ]
    lines = loss_weighting.table(rows).splitlines()
    assert lines[2].endswith("| 0.500 | - | box 0.00 |")
    assert lines[3].endswith("| id -1.50 |")
    assert len({line.count("|") for line in lines}) == 1
