"""The figures of one sequence: hand-made cases, and TrackEval's values on random ones full of ties."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import trackeval
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tracker.comparison import _by_shortest_paths, _only_optimum
from tracker.evaluation import evaluate
from tracker.metrics import HOTA_THRESHOLDS, combine, summary

BENCHMARKS = ("MOT15", "MOT16", "MOT17", "MOT20")
COUNTS = ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW", "MT", "PT", "ML", "Frag", "CLR_Frames", "IDTP", "IDFN", "IDFP")
COUNTS += ("HOTA_TP", "HOTA_FN", "HOTA_FP")
FRAMES = 6


# --- the official evaluation, from the same files


def write(root, truths, results):
    """Sequences as files: `truths` and `results` are rows by name."""
    (root / "results").mkdir()
    for name, rows in truths.items():
        (root / "gt" / name / "gt").mkdir(parents=True)
        info = f"[Sequence]\nname={name}\nimDir=img1\nframeRate=25\nseqLength={FRAMES}\n"
        (root / "gt" / name / "seqinfo.ini").write_text(info)
        (root / "gt" / name / "gt" / "gt.txt").write_text(lines(rows))
    for name, rows in results.items():
        (root / "results" / f"{name}.txt").write_text(lines(rows))


def lines(rows):
    return "".join(",".join(f"{value:.17g}" for value in row) + "\n" for row in rows)


def official(root, names, benchmark):
    with contextlib.redirect_stdout(io.StringIO()):
        config = {
            "BENCHMARK": benchmark,
            "GT_FOLDER": str(root / "gt"),
            "TRACKERS_FOLDER": str(root),
            "TRACKERS_TO_EVAL": ["results"],
            "TRACKER_SUB_FOLDER": "",
            "SKIP_SPLIT_FOL": True,
            "SEQ_INFO": dict.fromkeys(names, FRAMES),
            "PRINT_CONFIG": False,
        }
        dataset = trackeval.datasets.MotChallenge2DBox(config)
        silent = {"PRINT_CONFIG": False}
        metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(silent), trackeval.metrics.Identity(silent)]
        figures = {name: {} for name in [*names, "COMBINED"]}
        raw = [dataset.get_raw_seq_data("results", name) for name in names]
        data = [dataset.get_preprocessed_seq_data(one, "pedestrian") for one in raw]
        for metric in metrics:
            parts = {name: metric.eval_sequence(one) for name, one in zip(names, data, strict=True)}
            parts["COMBINED"] = metric.combine_sequences(dict(parts))
            for name, part in parts.items():
                figures[name] |= part
    return figures


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


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 4, 1000]))
@example(0, 5, 5, 0)
def test_equally_good_assignments_are_chosen_as_scipy_does(seed, n, m, levels):
    scores = np.random.default_rng(seed).integers(0, levels + 1, (n, m)) / max(levels, 1) * 0.3
    row, column = linear_sum_assignment(-scores)
    expected = np.full(n, -1)
    expected[row] = column
    np.testing.assert_array_equal(_by_shortest_paths(scores), expected)
    pairs = scores.nonzero()
    best = _only_optimum(*pairs, scores[pairs]) if scores.any() else None  # it is only asked where pairs compete
    if best is not None:
        np.testing.assert_array_equal(best, expected[pairs[0]] == pairs[1])


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
