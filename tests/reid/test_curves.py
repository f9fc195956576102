"""The picture of how training went."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid.curves import plot_curves


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("steps", [1, 1000])
def test_a_log_becomes_a_picture(tmp_path: Path, steps: int) -> None:
    rows = [
        {"step": step, "epoch": step / 10, "lr": 0.1, "grad_norm": 1.0, "total": 3 / step, "accuracy": 0.5}
        for step in range(1, steps + 1)
    ]
    log = write(tmp_path / "log.jsonl", rows)
    validation = write(tmp_path / "validation.jsonl", [{"step": steps, "mAP": 0.3, "rank-1": 0.4}])
    plot_curves(log, validation, tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # lines of several colours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.jsonl", "validation.jsonl"]


def test_values_that_are_missing_and_no_evaluation(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl", [{"step": s, "epoch": s, "lr": 0.1, "total": loss} for s, loss in ((1, None), (2, 1.0))]
    )
    plot_curves(log, tmp_path / "none.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
    plot_curves(tmp_path / "none.jsonl", tmp_path / "none.jsonl", tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
