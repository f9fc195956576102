"""The figures of one sequence: hand-made cases, and TrackEval's values on random ones full of ties."""

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from benchmarks.evaluation import by_trackeval
from tracker.comparison import Comparison, matches
from tracker.evaluation import evaluate
from tracker.metrics import HOTA_THRESHOLDS, combine, sequence_figures, summary
from tracker.mot import MotRows
from tracker.preprocessing import prepare

BENCHMARKS = ("MOT15", "MOT16", "MOT17", "MOT20")
COUNTS = ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW", "MT", "PT", "ML", "Frag", "CLR_Frames", "IDTP", "IDFN", "IDFP")
COUNTS += ("HOTA_TP", "HOTA_FN", "HOTA_FP")
FRAMES = 6


# --- the official evaluation, from the same files


def write(root, truths, results, frames=FRAMES):
    """Sequences as files: `truths` and `results` are rows by name."""
    (root / "results").mkdir()
    for name, rows in truths.items():
        (root / "gt" / name / "gt").mkdir(parents=True)
        info = f"[Sequence]\nname={name}\nimDir=img1\nframeRate=25\nseqLength={frames}\n"
        (root / "gt" / name / "seqinfo.ini").write_text(info)
        (root / "gt" / name / "gt" / "gt.txt").write_text(lines(rows))
    for name, rows in results.items():
        (root / "results" / f"{name}.txt").write_text(lines(rows))


def lines(rows):
    return "".join(",".join(f"{value:.17g}" for value in row) + "\n" for row in rows)


def official(root, names, benchmark):
    return by_trackeval(root / "gt", root / "results", names, benchmark)


def assert_equal_figures(ours, theirs):
    assert ours.keys() == theirs.keys()
    for sequence in ours:
        assert set(theirs[sequence]) == set(ours[sequence])
        for name, value in theirs[sequence].items():
            if name in COUNTS:
                np.testing.assert_array_equal(ours[sequence][name], value, f"{sequence} {name}")
            else:
                np.testing.assert_allclose(
                    ours[sequence][name], value, rtol=1e-12, atol=1e-12, err_msg=f"{sequence} {name}"
                )


def score(truth, results, benchmark="MOT17"):
    """Figures of one sequence given as rows, the same as the official ones."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, {"A": truth}, {"A": results})
        ours = evaluate(root / "gt", root / "results", benchmark=benchmark)
        assert_equal_figures(ours, official(root, ["A"], benchmark))
    return ours["A"]


# --- random sequences


def rows(classes, scores, ids):
    """Boxes on a coarse grid: equal boxes, equally good matchings and overlaps of exactly 0.5 are frequent."""
    row = st.tuples(
        st.integers(1, FRAMES),
        st.integers(0, ids),
        st.sampled_from([0, 5, 10, 20]),
        st.sampled_from([0, 0, 10]),
        st.sampled_from([10, 20, 20, 40]),
        st.sampled_from([20, 20, 0]),
        st.sampled_from(scores),
        st.sampled_from(classes),
        st.just(1),
    )
    return st.lists(row, max_size=40, unique_by=lambda row: row[:2])


truths = rows(classes=[1, 1, 1, 1, 2, 3, 6, 7, 8, 12, 13], scores=[1, 1, 1, 0], ids=7)
tracks = rows(classes=[1, -1], scores=[0.25, 1], ids=7)
benchmarks = st.sampled_from(BENCHMARKS)


@settings(max_examples=150, deadline=None)
@given(truths, tracks, benchmarks)
def test_random_sequences_equal_the_official_evaluation(truth, results, benchmark):
    score(truth, results, benchmark)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(truths, tracks), min_size=2, max_size=3), benchmarks)
def test_several_sequences_combined_equal_the_official_evaluation(pairs, benchmark):
    names = [f"S{number}" for number in range(len(pairs))]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        truth, results = zip(*pairs, strict=True)
        write(root, dict(zip(names, truth, strict=True)), dict(zip(names, results, strict=True)))
        ours = evaluate(root / "gt", root / "results", benchmark=benchmark)
        assert_equal_figures(ours, official(root, names, benchmark))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 25), st.sampled_from([1, 5, 20]), benchmarks)
def test_crowds_that_swap_ids_equal_the_official_evaluation(seed, people, grid, benchmark):
    rng = np.random.default_rng(seed)
    truth, results = [], []
    place, size = rng.uniform(0, 200, (people, 2)), np.array([40, 80])
    names = np.arange(people)
    for frame in range(1, FRAMES + 1):
        place = place + rng.normal(0, 5, place.shape)
        first, second = rng.integers(0, people, 2)
        names[[first, second]] = names[[second, first]]
        for person in range(people):
            box = np.round(np.append(place[person], size) / grid) * grid
            if rng.random() < 0.9:
                truth.append((frame, person, *box, rng.random() < 0.9, rng.choice([1, 1, 1, 6, 7, 9]), 1))
            if rng.random() < 0.8:
                seen = np.round((box + rng.normal(0, 4, 4) * (1, 1, 1, 0)) / grid) * grid
                results.append((frame, names[person], *seen, 0.9, -1, -1))
    order = rng.permutation(len(truth))
    score([truth[row] for row in order], results, benchmark)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 25),
    m=st.integers(1, 25),
    levels=st.sampled_from([1, 2, 4, 1000]),
    share=st.sampled_from([0.1, 0.4, 1]),
    continuing=st.sampled_from([0, 0.1]),
)
@example(seed=0, n=5, m=5, levels=1, share=0, continuing=0)
def test_matches_of_a_frame_are_those_of_scipy_on_its_whole_table(seed, n, m, levels, share, continuing):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels + 1, (n, m)) / levels * 0.3 * (rng.random((n, m)) < share)
    scores += 1000 * ((scores > 0) & (rng.random((n, m)) < continuing))
    truth, result = scores.nonzero()
    frame = Comparison(
        frames=1,
        truth_frames=np.ones(n, np.int64),
        truth_ids=np.arange(n),
        result_frames=np.ones(m, np.int64),
        result_ids=np.arange(m),
        pair_truth=truth,
        pair_result=result,
        similarity=scores[truth, result],
        truth_rows=np.arange(n),
        result_rows=np.arange(m),
    )
    row, column = linear_sum_assignment(-scores)
    best = scores[row, column] > 0
    ours = matches(frame, scores[truth, result])
    assert list(zip(truth[ours], result[ours], strict=True)) == list(zip(row[best], column[best], strict=True))


def test_an_id_for_each_box_costs_little():
    """As a tracker writes that never links two frames: identities are many more than people."""
    frames, people = np.repeat(np.arange(1, 301), 40), np.tile(np.arange(40), 300)
    tlwh = np.stack([people * 30.0, frames % 7, np.full(len(people), 20.0), np.full(len(people), 40.0)], axis=1)
    ones = np.ones(len(people))
    truth = MotRows(frames, people, tlwh, ones, ones.astype(int), ones)
    results = MotRows(frames, np.arange(len(people)), tlwh, ones, ones.astype(int), ones)
    tracemalloc.start()
    figures = sequence_figures(prepare(truth, results, 300, "MOT17"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (figures["IDTP"], figures["IDSW"], figures["MOTA"]) == (40, 40 * 299, pytest.approx(1 / 300))
    assert peak < 100e6


# --- hand-made cases


def person(identity, frames, left=0, width=100, class_id=1, confidence=1):
    return [(frame, identity, left, 0, width, 100, confidence, class_id, 1) for frame in frames]


def test_perfect_result():
    truth = person(1, range(1, 7)) + person(2, range(1, 7), left=300)
    figures = summary(score(truth, truth))
    assert {figures[name] for name in ("HOTA", "DetA", "AssA", "LocA", "MOTA", "MOTP", "IDF1")} == {1.0}
    assert (figures["MT"], figures["IDSW"], figures["Frag"], figures["CLR_FN"]) == (2, 0, 0, 0)


def test_switch_and_fragment():
    truth = person(1, range(1, 7)) + person(2, range(1, 7), left=300)
    figures = score(truth, truth[6:] + person(7, [1, 2]) + person(8, [4, 5, 6]))
    assert (figures["IDSW"], figures["Frag"], figures["CLR_FN"], figures["MT"]) == (1, 1, 1, 2)
    assert figures["MOTA"] == pytest.approx(1 - 2 / 12)
    assert figures["IDTP"] == 6 + 3


def test_a_frame_without_any_result_is_no_fragment():
    assert score(person(1, range(1, 7)), person(7, [1, 2, 4, 5, 6]))["Frag"] == 0


def test_frames_without_results_count():
    truth = person(1, range(1, 7))
    assert score(truth, person(1, [3]))["MOTA"] == pytest.approx(1 / 6)  # a frame passed over is missed all the same
    nothing = score(truth, [])
    assert nothing["CLR_FN"] == 6 and nothing["MOTA"] == 0 and nothing["ML"] == 1


def test_overlap_of_exactly_half_is_a_match():
    figures = score(person(1, [1], width=100), person(1, [1], width=50))
    assert (figures["CLR_TP"], figures["IDTP"]) == (1, 1)
    assert figures["HOTA_TP"].tolist() == (HOTA_THRESHOLDS < 0.501).tolist()


@pytest.mark.parametrize("class_id", [2, 7, 8, 12])
def test_a_track_on_a_distractor_neither_helps_nor_harms(class_id):
    truth = person(1, range(1, 7)) + person(2, range(1, 7), left=300, class_id=class_id, confidence=0)
    figures = score(truth, truth[:6] + person(9, range(1, 7), left=300))
    assert figures["MOTA"] == 1 and figures["CLR_TP"] == 6 and figures["CLR_FP"] == 0


def test_non_mot_vehicles_are_distractors_in_mot20_alone():
    truth = person(1, range(1, 7)) + person(2, range(1, 7), left=300, class_id=6, confidence=0)
    results = truth[:6] + person(9, range(1, 7), left=300)
    assert score(truth, results, "MOT20")["MOTA"] == 1
    assert score(truth, results, "MOT17")["MOTA"] == 0


def test_ignored_ground_truth_is_not_missed():
    truth = person(1, range(1, 7)) + person(2, range(1, 7), left=300, confidence=0)
    for benchmark in BENCHMARKS:
        assert score(truth, truth[:6], benchmark)["MOTA"] == 1


def test_a_result_that_only_nears_a_distractor_is_kept():
    truth = person(1, [1]) + person(2, [1], left=20, class_id=8, confidence=0)
    assert score(truth, person(5, [1]))["CLR_TP"] == 1


def test_combined_figures_of_one_sequence_are_its_own():
    figures = score(person(1, range(1, 7)), person(1, [1, 2, 5]) + person(2, [6]))
    together = combine([figures])
    for name, value in figures.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-14)
