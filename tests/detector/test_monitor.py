"""The log of a run, its TensorBoard files, and the picture of a batch."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.losses import IGNORE_LABEL
from detector.monitor import IGNORED, PICTURES, PREDICTED, TARGET, Monitor, draw_batch, summary
from tests.detector.scenes import lively_darknet, lively_model, noise, target

pytest.importorskip("tensorboard")


def board(out: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return events


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_what_is_told_is_on_disk(tmp_path: Path) -> None:
    picture = noise(40, 60)
    with Monitor(tmp_path, 0) as monitor:
        for step in (1, 2):
            monitor.step({"step": step, "total": 3.0 - step, "box": 0.5, "s_box": -0.25 * step})
        monitor.validation({"AP50": 0.75, "AP50_small": None, "people": 3}, 2)
        monitor.picture("batch", picture, 2)
        monitor.flush()
        assert rows(tmp_path) == [  # before the end, where a checkpoint was written
            {"step": 1, "total": 2, "box": 0.5, "s_box": -0.25},
            {"step": 2, "total": 1, "box": 0.5, "s_box": -0.5},
        ]
    events = board(tmp_path)
    tags = {"train/total", "train/box", "uncertainty/s_box", "val/AP50", "val/people"}
    assert set(events.Tags()["scalars"]) == tags
    assert [(e.step, e.value) for e in events.Scalars("train/total")] == [(1, 2), (2, 1)]
    assert [(e.step, e.value) for e in events.Scalars("uncertainty/s_box")] == [(1, -0.25), (2, -0.5)]
    assert [(e.step, e.value) for e in events.Scalars("val/AP50")] == [(2, 0.75)]
    (image,) = events.Images("batch")
    assert (image.step, image.width, image.height) == (2, 60, 40)
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded, picture)  # BGR in, BGR read back


def test_a_run_that_goes_on_forgets_what_was_after_its_checkpoint(tmp_path: Path) -> None:
    for start, values in ((0, (1, 2, 3)), (2, (30, 40))):
        with Monitor(tmp_path, start) as monitor:
            for step, value in enumerate(values, start + 1):
                monitor.step({"step": step, "total": value})
    assert rows(tmp_path) == [{"step": i + 1, "total": v} for i, v in enumerate((1, 2, 30, 40))]
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("train/total")] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    with Monitor(tmp_path, 0):
        pass
    assert rows(tmp_path) == []  # a new run
    (tmp_path / "log.jsonl").unlink()
    with Monitor(tmp_path, 5) as monitor:  # somebody moved the log
        monitor.step({"step": 6, "total": 1})
    assert rows(tmp_path) == [{"step": 6, "total": 1}]


@pytest.mark.parametrize("family", ["compact", "darknet53"])
def test_the_picture_of_a_batch(family: str) -> None:
    """Known people, regions and what was found, each in its colour; the first few images side by side."""
    model = lively_model(embedding_dim=0) if family == "compact" else lively_darknet()
    images = torch.full((PICTURES + 1, 3, 64, 96), 20.0)
    targets = [target([])] * (PICTURES + 1)
    targets[1] = target([[10, 12, 40, 52]], ids=[7])
    targets[2] = target([[10, 12, 40, 52]], labels=[IGNORE_LABEL])
    silent = copy.deepcopy(model)
    for name, parameter in silent.named_parameters():  # background everywhere
        if name.endswith("objectness.bias"):
            parameter.data.fill_(-100)
        if name.endswith("detect.bias"):
            parameter.data.view(-1, 6)[:, 4] = 1e4
    picture = draw_batch(silent, images, targets)
    assert picture.shape == (64, PICTURES * 96, 3)
    assert picture.dtype == np.uint8
    panels = np.split(picture, PICTURES, axis=1)
    assert (panels[0] == 20).all()
    assert (panels[3] == 20).all()
    for panel, colour in ((panels[1], TARGET), (panels[2], IGNORED)):
        for x, y in ((10, 30), (40, 30), (25, 52)):
            assert panel[y, x].tolist() == pytest.approx(colour, abs=30)  # edges are smoothed
        assert panel[30, 60].tolist() == [20, 20, 20]
    assert (panels[1][15:25, 14:24] != 20).any()  # its identity
    assert (panels[2][15:25, 14:24] == 20).all()
    loud = draw_batch(model, images, targets)
    if family == "compact":
        assert (abs(loud.astype(int) - PREDICTED) < 30).all(axis=2).any()
    assert draw_batch(silent, images[:2], targets[:2]).shape == (64, 2 * 96, 3)


def test_boxes_far_outside_are_drawn_as_far_as_they_show() -> None:
    model = lively_model(embedding_dim=0)
    for head in model.heads:
        head.box_code.bias.data.fill_(20)  # e^8 cells wide
    images = torch.zeros(1, 3, 64, 64)
    assert draw_batch(model, images, [target([[-1e6, 5, 1e6, 20]])]).shape == (64, 64, 3)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """An fp16 step whose gradients overflow is left out and logged; the log stays JSON."""
    with Monitor(tmp_path, 0) as monitor:
        monitor.step({"step": 1, "grad_norm": float("inf"), "total": float("nan"), "box": 1.0})
    assert rows(tmp_path) == [{"step": 1, "grad_norm": None, "total": None, "box": 1}]


def test_a_fresh_run_leaves_no_validation_of_an_earlier_one(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("validation.jsonl", "best.safetensors")]
    for start, left in ((3, True), (0, False)):
        for file in files:
            file.write_text("earlier")
        with Monitor(tmp_path, start):
            pass
        assert [file.exists() for file in files] == [left, left]


def test_a_summary() -> None:
    text = summary({"AP50": 0.51239, "people": 3, "mAP": None})
    assert text.splitlines() == ["  AP50    0.5124", "  people  3", "  mAP     -"]
    assert summary({}) == ""
