"""A detector run over labelled images: what is asked of it, and what is made of its answers."""

import json
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.evaluation import pixel_targets, plot_precision_recall, validate
from detector.inference import Detector, DetectorConfig
from detector.metrics import FARS, detection_scores, tpr_at_far
from tests.detector.scenes import drawn, lively_model

SIZES = [(80, 60), (100, 40), (80, 60), (64, 64), (120, 90)]


class Scenes:
    """Images with people of known boxes, and a detector that knows them; `embed` describes by the pixels it is given.

    Image i has people at x = 2 and x = 20, the second one tall, and a region to be ignored; the identities are
    0 and i, the second unknown in odd images.
    """

    def __init__(self, folder: Path) -> None:
        self.images, self.labels, self.boxes = [], [], []
        self.batches, self.frames = [], []
        self.asked = 0
        for i, (width, height) in enumerate(SIZES):
            boxes = np.array([[2, 2, 12, 22], [20, 2, 35, height - 2], [38, 0, 40, 40]], float)
            frame = drawn(width, height, *boxes[:2].astype(int).tolist(), colour=(0, 40 * i + 40, 255))
            self.images.append(folder / f"{i}.png")
            cv2.imwrite(str(self.images[-1]), frame)
            centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            tags = np.array([[0, 0], [0, -1 if i % 2 else i], [-1, 7]])
            self.labels.append(np.concatenate((tags, centre / [width, height], size / [width, height]), axis=1))
            self.boxes.append(boxes)

    def detect(self, frames):
        assert all(reference() is None for reference in self.frames), "frames of an earlier batch are still held"
        self.frames = [weakref.ref(frame) for frame in frames]
        self.batches.append(len(frames))
        start = sum(self.batches[:-1])
        return [
            {
                "boxes": self.boxes[start + k].astype(np.float32),
                "scores": np.array([0.9, 0.6, 0.3], np.float32),
                "embeddings": np.ones((3, 4), np.float32),
            }
            for k in range(len(frames))
        ]

    def embed(self, frame, boxes):
        self.asked += len(boxes)
        rows = [frame[int(y1) + 1 : int(y2) - 1, int(x1) + 1 : int(x2) - 1].mean((0, 1)) for x1, y1, x2, y2 in boxes]
        return np.array(rows, np.float32)


@pytest.fixture
def scenes(tmp_path: Path) -> Scenes:
    return Scenes(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_detector_that_knows_everything(scenes: Scenes, batch_size: int) -> None:
    result = validate(scenes.detect, scenes.images, scenes.labels, batch_size=batch_size, progress=None)
    assert scenes.batches == [len(scenes.images[i : i + batch_size]) for i in range(0, 5, batch_size)]
    assert result.figures == {
        "images": 5,
        "people": 10,
        "people_small": 9,  # one is 86 pixels high
        "AP50": pytest.approx(1),
        "AP50:95": pytest.approx(1),
        "AP50_small": pytest.approx(1),
        "AP50:95_small": pytest.approx(1),
        "F1": 1,
        "F1_score": pytest.approx(0.6),
        "precision": 1,
        "recall": 1,
        "embeddings": 0,
        "identities": 0,
        **{f"TPR@FAR={far:.0e}": None for far in FARS},
    }
    assert json.loads(json.dumps(result.figures, allow_nan=False)) == result.figures


def test_the_figures_are_those_of_the_predictions(scenes: Scenes) -> None:
    """Boxes that are somewhat off, compared with scoring them by hand in pixels."""
    rng = np.random.default_rng(0)
    truth = [boxes.copy() for boxes in scenes.boxes]
    scenes.boxes = [boxes + rng.normal(0, 1.5, boxes.shape) for boxes in scenes.boxes]
    result = validate(scenes.detect, scenes.images, scenes.labels, progress=None, small_height=30)
    predictions = [{"boxes": b.astype(np.float32), "scores": np.array([0.9, 0.6, 0.3])} for b in scenes.boxes]
    targets = [{"boxes": boxes, "labels": np.array([0, 0, -1])} for boxes in truth]
    expected = detection_scores(predictions, targets)
    assert (result.figures["AP50"], result.figures["AP50:95"]) == pytest.approx((expected.ap50, expected.ap))
    assert 0.1 < expected.ap < 0.99
    np.testing.assert_allclose(result.detection.recall, expected.recall)
    small = detection_scores(predictions, targets, height_range=(0, 30))
    assert (result.figures["AP50_small"], result.figures["people_small"]) == pytest.approx((small.ap50, 5))
    np.testing.assert_allclose(result.small.precision, small.precision)


def test_embeddings_of_the_people_with_an_identity(scenes: Scenes) -> None:
    result = validate(scenes.detect, scenes.images, scenes.labels, scenes.embed, batch_size=2, progress=None)
    assert result.pids.tolist() == [0, 0, 0, 0, 2, 0, 0, 4]
    assert result.images.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    np.testing.assert_allclose(result.embeddings[:, 1], 40 * result.images + 40)  # each from its own frame
    assert (result.figures["embeddings"], result.figures["identities"]) == (8, 3)
    expected = tpr_at_far(result.embeddings, result.pids)
    assert {far: result.figures[f"TPR@FAR={far:.0e}"] for far in FARS} == expected


def test_no_more_embeddings_than_allowed(scenes: Scenes) -> None:
    result = validate(
        scenes.detect, scenes.images, scenes.labels, scenes.embed, max_embeddings=3, batch_size=2, progress=None
    )
    assert scenes.asked == len(result.embeddings) == len(result.pids) == 3
    assert result.images.tolist() == [0, 2, 4]
    np.testing.assert_allclose(result.embeddings[:, 1], 40 * result.images + 40)


def test_the_real_detector(scenes: Scenes) -> None:
    model = lively_model(embedding_dim=16)
    detector = Detector(model, "cpu", DetectorConfig(input_size=64, score_thresh=0.001, engine="torch"))
    result = validate(detector, scenes.images, scenes.labels, detector.embed, progress=None)
    assert result.embeddings.shape == (8, 16)
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
    frame = cv2.imread(str(scenes.images[2]))
    np.testing.assert_allclose(result.embeddings[3:5], detector.embed(frame, scenes.boxes[2][:2]), atol=1e-4)
    assert len(result.detection.scores) > 20
    assert result.figures["TPR@FAR=1e-01"] is not None


def test_progress_goes_to_stderr(scenes: Scenes, capsys: pytest.CaptureFixture[str]) -> None:
    validate(scenes.detect, scenes.images, scenes.labels, batch_size=2, progress="COCO people")
    captured = capsys.readouterr()
    assert "COCO people: 100%" in captured.err
    assert "5/5" in captured.err
    assert captured.out == ""


def test_no_images() -> None:
    result = validate(lambda frames: [], [], [], progress=None)
    assert result.figures["images"] == 0
    assert result.figures["AP50"] is None


def test_errors_name_what_is_wrong(scenes: Scenes) -> None:
    scenes.images[3].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png: not a readable image"):
        validate(scenes.detect, scenes.images, scenes.labels, progress=None)
    with pytest.raises(ValueError, match="labels: expected one array for each of 5 images, got 4"):
        validate(scenes.detect, scenes.images, scenes.labels[:4], progress=None)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        validate(scenes.detect, scenes.images, scenes.labels, batch_size=0)
    with pytest.raises(ValueError, match="max_embeddings: expected at least 1, got 0"):
        validate(scenes.detect, scenes.images, scenes.labels, max_embeddings=0)


def test_normalised_labels_to_pixels() -> None:
    targets = pixel_targets(np.array([[0, 5, 0.5, 0.5, 0.2, 0.4], [-1, -1, 0.0, 1.0, 0.5, 0.5]]), 50, 200)
    np.testing.assert_allclose(targets["boxes"], [[80, 15, 120, 35], [-50, 37.5, 50, 62.5]])
    assert targets["labels"].tolist() == [0, -1]
    assert pixel_targets(np.zeros((0, 6)), 50, 200)["boxes"].shape == (0, 4)


def test_the_picture_shows_every_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its global state is not needed
    target = [{"boxes": np.array([[0, 0, 9, 9], [20, 0, 29, 9]]), "labels": np.zeros(2)}]
    found = [{"boxes": target[0]["boxes"], "scores": np.array([0.9, 0.8])}]
    half = [{"boxes": target[0]["boxes"][:1], "scores": np.array([0.9])}]
    nothing = [{"boxes": np.zeros((0, 4)), "scores": np.zeros(0)}]
    curves = {
        "all": detection_scores(found, target),
        "half": detection_scores(half, target),
        "none": detection_scores(nothing, target),
        "nobody": detection_scores([], []),
    }
    plot_precision_recall(tmp_path / "all.png", curves)
    plot_precision_recall(tmp_path / "one.png", {"all": curves["all"]})
    both, one = (cv2.imread(str(tmp_path / name)) for name in ("all.png", "one.png"))
    assert both.shape == one.shape
    assert min(both.shape[:2]) >= 600
    coloured = [(np.ptp(picture, axis=2) > 60).sum() for picture in (one, both)]
    assert 0 < coloured[0] < coloured[1]
    with pytest.raises(ValueError, match="scores_by_name: expected at least one, got none"):
        plot_precision_recall(tmp_path / "x.png", {})


def test_without_matplotlib_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="matplotlib is not installed"):
        plot_precision_recall(tmp_path / "x.png", {"none": detection_scores([], [])})
