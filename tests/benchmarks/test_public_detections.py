"""Detections come frame by frame, and scores are those published for the same results."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.public_detections import detect, load, score_results
from tracker.mot import read_mot
from tracker.trajectories import Trajectories


def write_sequence(folder: Path, described: bool) -> Path:
    """Four frames of one person, in MOT15's columns; found in the first and third frame, together with a ghost."""
    (folder / "gt").mkdir(parents=True)
    (folder / "det").mkdir()
    (folder / "gt" / "gt.txt").write_text("".join(f"{f},1,{10 * f},20,30,60,1,7.5,3.25,0\n" for f in range(1, 5)))
    (folder / "det" / "det.txt").write_text("3,-1,30,20,30,60,0.9\n1,-1,10,20,30,60,0.8\n3,-1,300,20,30,60,0.2\n")
    if described:
        (folder / "seqinfo.ini").write_text(f"[Sequence]\nname={folder.name}\nframeRate=12\nseqLength=6\n")
    return folder


def test_detections_come_frame_by_frame(tmp_path):
    sequence = load(write_sequence(tmp_path / "walk", described=False))
    assert (sequence.name, sequence.frame_rate, len(sequence)) == ("walk", 25, 4)
    assert [len(found) for found in sequence.detections] == [1, 0, 2, 0]
    np.testing.assert_array_equal(sequence.detections[2].xyxy, [[30, 20, 60, 80], [300, 20, 330, 80]])
    np.testing.assert_allclose(sequence.detections[2].scores, [0.9, 0.2])
    described = load(write_sequence(tmp_path / "described", described=True))
    assert (described.frame_rate, len(described)) == (12, 6)


def test_ground_truth_without_classes_is_of_pedestrians(tmp_path):
    folder = write_sequence(tmp_path / "walk", described=False)
    perfect = Trajectories.from_mot(read_mot(folder / "gt" / "gt.txt"))
    row = score_results(folder, perfect.results())
    assert (row["HOTA"], row["MOTA"], row["IDF1"], row["CLR_TP"]) == (1, 1, 1, 4)
    missed = score_results(folder, perfect[perfect.frames < 3].results())
    assert (missed["MOTA"], missed["CLR_FN"]) == (0.5, 2)


def test_nothing_found_scores_nothing(tmp_path):
    row = score_results(write_sequence(tmp_path / "walk", described=False), [])
    assert (row["HOTA"], row["CLR_FN"]) == (0, 4)


def test_kept_detections_are_read(tmp_path):
    folder, cache = write_sequence(tmp_path / "walk", described=True), tmp_path / "kept"
    cache.mkdir()

    def keep(counts):
        total = sum(counts)
        np.savez(
            cache / "walk.npz",
            counts=counts,
            xyxy=np.tile([0.0, 0, 10, 20], (total, 1)),
            scores=np.linspace(0.1, 0.9, total),
            embeddings=np.tile([3.0, 4], (total, 1)),
            classes=np.zeros(total, int),
        )

    keep([1, 0, 2, 0, 0, 3])
    sequence = detect(folder, cache)
    assert [len(found) for found in sequence.detections] == [1, 0, 2, 0, 0, 3]
    np.testing.assert_allclose(sequence.detections[5].embeddings, np.tile([0.6, 0.8], (3, 1)), rtol=1e-6)
    keep([1, 2])
    with pytest.raises(ValueError, match=r"walk.npz: expected 6 frames, got 2; delete it to detect anew"):
        detect(folder, cache)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "mota", "idf1"), [("TUD-Campus", 0.526, 0.558), ("TUD-Stadtmitte", 0.564, 0.645)])
def test_published_results_score_as_published(shared, name, mota, idf1):
    """The figures that motmetrics prints for the same files."""
    folder = shared / "data" / "mot" / name
    rows = score_results(folder, Trajectories.from_mot(read_mot(folder / "motmetrics_test.txt")).results())
    assert rows["MOTA"] == pytest.approx(mota, abs=5e-4)
    assert rows["IDF1"] == pytest.approx(idf1, abs=5e-4)
