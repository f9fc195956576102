"""Crops on grey: what the detector is shown, and which of its answers is taken."""

from __future__ import annotations

import numpy as np
import pytest

import detector.crops
from detector import Detector, DetectorConfig
from detector.crops import describe_crops
from detector.model import JDE, ModelConfig
from tests.detector.scenes import lively_model, noise

CANVAS = 96


@pytest.fixture(scope="module")
def looker() -> Detector:
    return Detector(lively_model(embedding_dim=16), "cpu", DetectorConfig(input_size=96, score_thresh=0.3))


class Fake:
    """A detector that finds what it is told, and remembers what it was shown."""

    def __init__(self, *people: tuple[list[list[float]], list[list[float]]]) -> None:
        self.model = JDE(ModelConfig(embedding_dim=2))
        self.people = list(people)
        self.calls: list[list[np.ndarray]] = []
        self.embedded: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, frames: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
        self.calls.append(list(frames))
        found = [self.people.pop(0) for _ in frames]
        return [
            {
                "boxes": np.array(boxes, np.float32).reshape(-1, 4),
                "embeddings": np.array(rows, np.float32).reshape(-1, 2),
            }
            for boxes, rows in found
        ]

    def embed(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        self.embedded.append((frame, boxes))
        return np.array([[0.6, 0.8]], np.float32)


def test_a_crop_lies_in_the_middle_of_grey() -> None:
    fake = Fake(([], []), ([], []))
    crops = [noise(20, 10, 0), noise(130, 41, 1)]  # the second is larger than the grey
    rows, found = describe_crops(fake, crops, CANVAS)
    assert (rows.tolist(), found.tolist()) == (np.array([[0.6, 0.8]] * 2, np.float32).tolist(), [False, False])
    for (frame, box), crop, side in zip(fake.embedded, crops, (CANVAS, 130), strict=True):
        height, width = crop.shape[:2]
        x, y = (side - width) // 2, (side - height) // 2
        assert box.tolist() == [[x, y, x + width, y + height]]
        expected = np.full((side, side, 3), fake.model.pad_value, np.uint8)
        expected[y : y + height, x : x + width] = crop
        assert np.array_equal(frame, expected)


def test_the_person_who_covers_the_crop_is_taken() -> None:
    crop = noise(20, 10, 0)  # from (43, 38) to (53, 58)
    whole, half, less = [43.0, 38, 53, 58], [43.0, 38, 53, 48], [43.0, 38, 53, 47]
    fake = Fake(([less, whole, half], [[0, 1], [1, 0], [0, -1]]), ([half], [[0, -1]]), ([less], [[0, 1]]))
    rows, found = describe_crops(fake, [crop] * 3, CANVAS)
    assert found.tolist() == [True, True, False]  # half the crop is just enough
    assert rows[:2].tolist() == [[1, 0], [0, -1]]
    assert len(fake.embedded) == 1


def test_many_crops_are_looked_at_in_batches(looker: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = [noise(40 + 3 * i, 20 + i, i) for i in range(7)]
    one_by_one = [describe_crops(looker, [crop], CANVAS) for crop in crops]
    monkeypatch.setattr(detector.crops, "BATCH", 3)
    rows, found = describe_crops(looker, crops, CANVAS)
    assert (rows.shape, rows.dtype, found.dtype) == ((7, 16), "float32", "bool")
    assert found.tolist() == [bool(each[0]) for _, each in one_by_one]
    assert np.allclose(rows, np.concatenate([each for each, _ in one_by_one]), atol=1e-4)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    fake = Fake(*[([], [])] * 7)
    describe_crops(fake, crops, CANVAS)
    assert [len(frames) for frames in fake.calls] == [3, 3, 1]


def test_no_crops(looker: Detector) -> None:
    rows, found = describe_crops(looker, [], CANVAS)
    assert (rows.shape, found.shape) == ((0, 16), (0,))


def test_errors(looker: Detector) -> None:
    with pytest.raises(ValueError, match=r"crops\[1\]: expected \(h, w, 3\) uint8, got \(20, 10\) uint8"):
        describe_crops(looker, [noise(20, 10, 0), noise(20, 10, 0)[..., 0]], CANVAS)
    blind = Detector(JDE(ModelConfig(embedding_dim=0)), "cpu", DetectorConfig(input_size=96))
    with pytest.raises(ValueError, match="detector: expected a model with an embedding head"):
        describe_crops(blind, [noise(20, 10, 0)], CANVAS)
