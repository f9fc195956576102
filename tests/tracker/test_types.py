from types import SimpleNamespace

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
        ((BOX * [[1], [1e39]], [1, 1]), r"xyxy: row 1 is not finite in float32: \[.*e\+3"),
        ((BOX, [1, 1e39]), r"scores: row 1 is not finite in float32: 1e\+39"),
        ((BOX, [1, 1], np.array([[1, 0], [0, np.nan]])), "embeddings: row 1 is not finite"),
        ((BOX, [0.5, 1.01]), r"scores: row 1: expected a number in \[0, 1\], got 1.01"),
        ((BOX, [-0.5, 1]), r"scores: row 0: expected a number in \[0, 1\], got -0.5"),
        ((BOX, [True, False]), "scores: expected an array of numbers, got one of bool"),
        ((BOX.astype(complex), [1, 1]), "xyxy: expected an array of numbers, got one of complex128"),
        ((BOX.astype(object), [1, 1]), "xyxy: expected an array of numbers, got one of object"),
        (([[1, 2, 3, 4], [1, 2]], [1, 1]), "xyxy: expected an array of numbers, got rows of different lengths"),
        ((BOX, ["0.5", "1"]), "scores: expected an array of numbers, got one of <U3"),
        ((BOX, 1.0), r"scores: expected shape \(2,\), got \(\)"),
        ((np.inf, [1.0]), "xyxy: row 0 is not finite"),
        ((BOX, [1, 1], None, [1, 1.5]), "classes: row 1: expected a whole number, got 1.5"),
        ((BOX, [1, 1], None, [np.nan, 1]), "classes: row 0: expected a whole number, got nan"),
        ((BOX, [1, 1], None, [True, False]), "classes: expected an array of numbers, got one of bool"),
        ((BOX, [1, 1], np.ones((2, 0))), "embeddings: row 0 has length zero"),
        ((BOX, [1, 1], [1.0, 1.0]), r"embeddings: expected shape \(2, D\), got \(2,\)"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Detections(*fields)


def test_scores_off_by_rounding_are_brought_back():
    assert Detections(BOX, [1.00001, -0.00001]).scores.tolist() == [1, 0]


def test_embeddings_of_extreme_lengths_become_unit_rows():
    for scale in (1e-30, 1e-38, 1.0, 1e30, 3e38):
        detections = Detections(BOX, [1, 1], np.array([[1.0, 0.0], [0.5, 0.5]]) * scale)
        np.testing.assert_allclose(detections.embeddings, [[1, 0], [0.5**0.5] * 2], rtol=1e-5)


def test_the_callers_arrays_are_neither_kept_nor_changed():
    given = [BOX.astype(np.float32), np.array([0.5, 1], np.float32), np.eye(2, dtype=np.float32), np.array([1, 2])]
    before = [array.copy() for array in given]
    detections = Detections(*given)
    for array, expected in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, expected)
        array[:] = 0
    np.testing.assert_array_equal(detections.xyxy, BOX)
    assert detections.scores.tolist() == [0.5, 1] and detections.classes.tolist() == [1, 2]
    np.testing.assert_array_equal(detections.embeddings, np.eye(2))


def test_whole_classes_may_be_floats():
    assert Detections(BOX, [1, 1], None, [3.0, -1.0]).classes.tolist() == [3, -1]


def test_rows_are_chosen_by_mask_index_or_slice():
    detections = Detections(BOX, [0.5, 1.0], np.eye(2), [3, 4])
    for rows in (np.array([False, True]), np.array([1]), slice(1, 2)):
        chosen = detections[rows]
        np.testing.assert_array_equal(chosen.xyxy, BOX[1:])
        np.testing.assert_array_equal(chosen.embeddings, [[0, 1]])
        assert chosen.scores.tolist() == [1.0] and chosen.classes.tolist() == [4]
    with pytest.raises(ValueError, match="rows: expected a mask, an index array or a slice, got 1"):
        detections[1]


def test_no_detection():
    assert len(Detections.empty()) == 0
    assert Detections([], []).xyxy.shape == (0, 4)
    assert Detections([], [], [], []).embeddings.shape == (0, 0)
    assert Detections([], [], np.zeros((0, 128))).embeddings.shape == (0, 128)


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


def test_tensors_with_gradients_and_of_half_precision():
    torch = pytest.importorskip("torch")
    boxes = torch.tensor(BOX, requires_grad=True)
    prediction = {"boxes": boxes * 1, "scores": torch.tensor([0.25, 0.5], dtype=torch.bfloat16)}
    detections = Detections.from_torchvision(prediction, embeddings=torch.eye(2).half())
    np.testing.assert_array_equal(detections.xyxy, BOX)
    assert detections.scores.tolist() == [0.25, 0.5]
    assert detections.embeddings.tolist() == [[1, 0], [0, 1]]


@pytest.mark.gpu
def test_tensors_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    prediction = {"boxes": torch.tensor(BOX, device="cuda"), "scores": torch.tensor([0.25, 0.5], device="cuda")}
    np.testing.assert_array_equal(Detections.from_torchvision(prediction).xyxy, BOX)


def test_supervision_detections():
    given = SimpleNamespace(
        xyxy=BOX, confidence=np.array([0.25, 0.5]), class_id=np.array([1, 7]), data={"embeddings": np.eye(2)[::-1]}
    )
    detections = Detections.from_supervision(given)
    np.testing.assert_array_equal(detections.xyxy, BOX)
    assert detections.scores.tolist() == [0.25, 0.5] and detections.classes.tolist() == [1, 7]
    assert detections.embeddings.tolist() == [[0, 1], [1, 0]]
    assert Detections.from_supervision(given, embeddings=np.eye(2)).embeddings.tolist() == [[1, 0], [0, 1]]
    bare = SimpleNamespace(xyxy=BOX, confidence=None, class_id=None, data={})
    detections = Detections.from_supervision(bare)
    assert detections.scores.tolist() == [1, 1] and detections.classes.tolist() == [0, 0]
    assert detections.embeddings is None
    with pytest.raises(ValueError, match="expected attributes xyxy, confidence, class_id, got dict without them"):
        Detections.from_supervision({"xyxy": BOX})


def test_ultralytics_rows():
    scores, classes, ids = [[0.25], [0.5]], [[1], [7]], [[11], [12]]
    for columns, expected in [((scores,), [0, 0]), ((scores, classes), [1, 7]), ((ids, scores, classes), [1, 7])]:
        rows = np.hstack([BOX, *columns])
        before = rows.copy()
        detections = Detections.from_ultralytics(rows)
        np.testing.assert_array_equal(detections.xyxy, BOX)
        assert detections.scores.tolist() == [0.25, 0.5] and detections.classes.tolist() == expected
        np.testing.assert_array_equal(rows, before)
    assert len(Detections.from_ultralytics([])) == 0
    assert len(Detections.from_ultralytics(np.zeros((0, 6)))) == 0
    for wrong in (BOX, np.zeros((2, 8)), np.zeros(6)):
        with pytest.raises(ValueError, match="result: expected rows of 5, 6 or 7 numbers, got shape"):
            Detections.from_ultralytics(wrong)


def test_ultralytics_results():
    torch = pytest.importorskip("torch")
    boxes = SimpleNamespace(
        xyxy=torch.tensor(BOX), conf=torch.tensor([0.25, 0.5]), cls=torch.tensor([1.0, 7.0]), id=None
    )
    for given in (SimpleNamespace(boxes=boxes), boxes):
        detections = Detections.from_ultralytics(given, embeddings=np.eye(2))
        np.testing.assert_array_equal(detections.xyxy, BOX)
        assert detections.scores.tolist() == [0.25, 0.5] and detections.classes.tolist() == [1, 7]
        assert detections.embeddings.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"expected the result of one frame, got a list of 1; pass result\[0\]"):
        Detections.from_ultralytics([SimpleNamespace(boxes=boxes)])
    with pytest.raises(ValueError, match="result: expected boxes, got None"):
        Detections.from_ultralytics(SimpleNamespace(boxes=None))
