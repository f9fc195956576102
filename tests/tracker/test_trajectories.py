"""The table of a whole result: checked, sorted, and the same again when written and read."""

from dataclasses import replace

import numpy as np
import pytest

from tracker.mot import MotWriter, read_mot
from tracker.trajectories import Recorder, Trajectories
from tracker.types import FrameResult


def table(rows, **fields):
    """Trajectories of (frame, track_id) rows, each box 10x20 at (10 * id, frame)."""
    frames, track_ids = np.array(rows, np.int64).reshape(-1, 2).T
    left, top = 10.0 * track_ids, 1.0 * frames
    columns = {
        "xyxy": np.stack([left, top, left + 10, top + 20], axis=1),
        "scores": np.full(len(frames), 0.5),
        "classes": np.zeros(len(frames), np.int64),
        "predicted": np.zeros(len(frames), bool),
    }
    return Trajectories(frames, track_ids, **(columns | fields))


def result(frame, track_ids, embeddings=None):
    xyxy = np.array([[10 * i, frame, 10 * i + 10, frame + 20] for i in track_ids], np.float32).reshape(-1, 4)
    count = len(track_ids)
    vectors = None if embeddings is None else np.array(embeddings, np.float32)
    return FrameResult(
        frame, np.array(track_ids, np.int64), xyxy, np.full(count, 0.5, np.float32), np.zeros(count, np.int64), vectors
    )


def test_rows_are_sorted_by_identity_then_frame():
    made = table([(3, 2), (1, 7), (1, 2), (2, 7)], scores=np.array([0.1, 0.2, 0.3, 0.4]))
    assert made.track_ids.tolist() == [2, 2, 7, 7]
    assert made.frames.tolist() == [1, 3, 1, 2]
    assert made.scores.tolist() == pytest.approx([0.3, 0.1, 0.2, 0.4])
    assert made.xyxy[:, 1].tolist() == [1, 3, 1, 2]
    assert made.starts.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": [(1, 5), (2, 5), (1, 5)]}, "identity 5 has two boxes in frame 1"),
        ({"rows": [(1, 1), (0, 1)]}, r"frames: expected numbers from 1, got 0 in row 1"),
        ({"xyxy": np.zeros((2, 3))}, r"xyxy: expected shape \(2, 4\), got \(2, 3\)"),
        ({"scores": np.zeros(3)}, r"scores: expected shape \(2,\), got \(3,\)"),
        ({"scores": np.array([0, np.nan])}, "row 1 is not finite"),
        ({"xyxy": np.full((2, 4), np.inf)}, "row 0 is not finite"),
    ],
)
def test_impossible_tables_are_refused(fields, message):
    rows = fields.pop("rows", [(1, 1), (2, 1)])
    with pytest.raises(ValueError, match=message):
        table(rows, **fields)


def test_results_give_every_frame_back():
    given = [result(1, []), result(2, [4, 9]), result(3, []), result(4, [9])]
    made = Trajectories.from_results(given)
    assert not made.predicted.any()
    again = list(made.results())
    assert [r.frame for r in again] == [1, 2, 3, 4]
    for before, after in zip(given, again, strict=True):
        np.testing.assert_array_equal(after.track_ids, before.track_ids)
        np.testing.assert_array_equal(after.xyxy, before.xyxy)
        np.testing.assert_array_equal(after.scores, before.scores)
        assert (after.xyxy.dtype, after.scores.dtype, after.classes.dtype) == (np.float32, np.float32, np.int64)
    assert [len(r) for r in made.results(first=2, last=6)] == [2, 0, 1, 0, 0]
    assert [r.frame for r in made.results(first=3)] == [3, 4]


def test_an_empty_result_stays_empty():
    made = Trajectories.from_results([result(1, []), result(2, [])])
    assert len(made) == 0 and made.starts.tolist() == [] and list(made.results()) == []
    assert [len(r) for r in made.results(1, 2)] == [0, 0]


def test_identities_are_described_by_their_mean_embedding():
    x, y = [1.0, 0.0], [0.0, 1.0]
    recorder = Recorder()
    recorder.add(result(1, [1, 2], [x, [0, 0]]))
    recorder.add(result(2, [2], [[0, 0]]))
    recorder.add(result(3, [1, 3], [y, y]))
    recorder.add(result(4, [3]))  # a result without embeddings among others
    made = recorder.trajectories()
    assert sorted(made.embeddings) == [1, 3]
    np.testing.assert_allclose(made.embeddings[1], [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(made.embeddings[3], y)


def test_guesses_of_the_tracker_are_marked_and_stay_so():
    guess = replace(result(2, [1, 2]), predicted=np.array([False, True]))
    made = Trajectories.from_results([result(1, [1, 2]), guess, result(3, [1])])
    assert made.predicted.tolist() == [False, False, False, False, True]
    marks = [each.predicted for each in made.results()]
    assert marks[0] is None and marks[2] is None
    assert marks[1].tolist() == [False, True]


def test_a_table_lies_over_another():
    over = table([(2, 1), (3, 4)], scores=np.array([0.8, 0.8]))
    under = table([(1, 1), (2, 1), (2, 4), (3, 4)], scores=np.full(4, 0.1))
    both = over.overlay(under)
    assert list(zip(both.track_ids.tolist(), both.frames.tolist(), strict=True)) == [(1, 1), (1, 2), (4, 2), (4, 3)]
    assert both.scores.tolist() == pytest.approx([0.1, 0.8, 0.1, 0.8])
    empty = table([])
    assert len(empty.overlay(empty)) == 0
    assert len(empty.overlay(under)) == len(under.overlay(empty)) == 4


def test_a_mot_file_is_the_same_when_read_and_written_again(tmp_path):
    text = "1,1,1000.25,20.5,30.75,90.1,0.9,-1,-1,-1\n1,2,-5,0,10,20,0.5,-1,-1,-1\n3,1,1004,20,30,90,0,-1,-1,-1\n"
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(text)
    with MotWriter(second) as writer:
        for each in Trajectories.from_mot(read_mot(first)).results():
            writer.write(each)
    before, after = read_mot(first), read_mot(second)
    np.testing.assert_allclose(after.tlwh, before.tlwh, atol=0.006)
    for name in ("frames", "track_ids", "classes"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-4)


def test_a_file_of_detections_is_no_result(tmp_path):
    path = tmp_path / "det.txt"
    path.write_text("1,-1,0,0,10,20,0.9\n1,-1,50,0,10,20,0.9\n")
    with pytest.raises(ValueError, match="identity -1 has two boxes in frame 1"):
        Trajectories.from_mot(read_mot(path))


def test_identities_renamed_and_joined():
    looks = {2: np.array([1, 0], np.float32), 7: np.array([0, 1], np.float32)}
    rows = [(1, 2), (2, 2), (3, 2), (5, 7), (9, 8)]
    given = table(rows, embeddings=looks)
    assert given.ends.tolist() == [False, False, True, True, True]
    assert given.embedding_rows().tolist() == [[1, 0], [0, 1], [0, 0]]
    swapped = given.renamed(np.array([7, 2, 1]))
    assert swapped.track_ids.tolist() == [1, 2, 7, 7, 7]
    assert swapped.frames.tolist() == [9, 5, 1, 2, 3]
    assert {i: vector.tolist() for i, vector in swapped.embeddings.items()} == {7: [1, 0], 2: [0, 1]}
    joined = given.renamed(np.array([1, 1, 3]))
    assert joined.track_ids.tolist() == [1, 1, 1, 1, 3]
    assert list(joined.embeddings) == [1]
    np.testing.assert_allclose(joined.embeddings[1], np.array([3, 1]) / np.sqrt(10), rtol=1e-6)
    nobody = table([])
    assert (len(nobody.renamed(np.zeros(0, np.int64))), nobody.ends.tolist()) == (0, [])
    assert nobody.embedding_rows().shape == (0, 0)


def test_of_two_boxes_in_a_frame_the_one_that_was_seen_stays():
    rows = [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (4, 2)]
    both = table(rows, predicted=np.array([False, True, True, False, True, False]))
    made = both.renamed(np.array([5, 5]))
    assert made.frames.tolist() == [1, 2, 3, 4]
    assert made.xyxy[:, 0].tolist() == [10, 20, 10, 20]
    assert made.predicted.tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="identity 5 has two boxes in frame 2"):
        table(rows).renamed(np.array([5, 5]))
