import numpy as np
import pytest

from tracker import Detections

BOX = np.array([[0.0, 0.0, 10.0, 20.0], [-5.0, 3.0, 8.0, 900.0]])


def test_fields_are_converted_and_classes_filled_in():
    detections = Detections(BOX, [0.5, 1.0])
    assert detections.xyxy.dtype == np.float32 and detections.scores.dtype == np.float32
    np.testing.assert_array_equal(detections.xyxy, BOX)  # boxes that leave the frame stay as they are
    np.testing.assert_array_equal(detections.classes, [0, 0])
    assert detections.embeddings is None
    assert len(detections) == 2


def test_embeddings_become_unit_rows_without_touching_the_callers():
    given = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    before = given.copy()
    detections = Detections(BOX, [0.5, 1.0], given)
    np.testing.assert_allclose(detections.embeddings, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((np.zeros((2, 5)), [1, 1]), r"xyxy: expected shape \(N, 4\), got \(2, 5\)"),
        ((BOX, [1.0]), r"scores: expected shape \(2,\), got \(1,\)"),
        ((BOX, [1.0, np.nan]), "scores: row 1 is not finite"),
        ((BOX * np.array([[1], [np.inf]]), [1, 1]), "xyxy: row 1 is not finite"),
        ((BOX, [1, 1], np.ones((3, 4))), r"embeddings: expected shape \(2, D\), got \(3, 4\)"),
        ((BOX, [1, 1], np.array([[1.0, 0.0], [0.0, 0.0]])), "embeddings: row 1 has length zero"),
        ((BOX, [1, 1], None, [1]), r"classes: expected shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Detections(*fields)


def test_rows_are_chosen_by_mask_index_or_slice():
    detections = Detections(BOX, [0.5, 1.0], np.eye(2), [3, 4])
    for rows in (np.array([False, True]), np.array([1]), slice(1, 2)):
        chosen = detections[rows]
        np.testing.assert_array_equal(chosen.xyxy, BOX[1:])
        np.testing.assert_array_equal(chosen.embeddings, [[0, 1]])
        assert chosen.scores.tolist() == [1.0] and chosen.classes.tolist() == [4]


def test_no_detection():
    assert len(Detections.empty()) == 0
    assert Detections([], []).xyxy.shape == (0, 4)


def test_torchvision_prediction():
    torch = pytest.importorskip("torch")
    prediction = {
        "boxes": torch.tensor(BOX),
        "scores": torch.tensor([0.25, 0.5]),
        "labels": torch.tensor([1, 7]),
        "embeddings": torch.eye(2),
    }
    detections = Detections.from_torchvision(prediction)
    np.testing.assert_array_equal(detections.xyxy, BOX)
    assert detections.scores.tolist() == [0.25, 0.5]
    assert detections.classes.tolist() == [1, 7]
    assert detections.embeddings.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="expected key 'scores'"):
        Detections.from_torchvision({"boxes": BOX})
