"""Ranking scores against loops written from the definition, recorded figures and cases worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import ranking
from reid.distances import FeatureDistances
from reid.ranking import evaluate_ranking


def rank_by_loops(distances, query_pids, gallery_pids, query_camids, gallery_camids):
    """Market-1501's rules, one image at a time; None where no query has a match."""
    aps, trapezoids, penalties, firsts = [], [], [], []
    for q in range(len(query_pids)):
        ranked = []
        for g in sorted(range(len(gallery_pids)), key=lambda g: distances[q][g]):
            same_pid = gallery_pids[g] == query_pids[q]
            if gallery_pids[g] == -1 or (same_pid and gallery_camids[g] == query_camids[q]):
                continue
            ranked.append(bool(same_pid))
        if True not in ranked:
            aps.append(np.nan)
            firsts.append(-1)
            continue
        hits, before, precisions, areas = 0, 1.0, [], []
        for rank, hit in enumerate(ranked, start=1):
            hits += hit
            if hit:
                precisions.append(hits / rank)
                areas.append((before + hits / rank) / 2)
                last = rank
            before = hits / rank
        aps.append(sum(precisions) / hits)
        trapezoids.append(sum(areas) / hits)
        penalties.append(hits / last)
        firsts.append(ranked.index(True))
    valid = len(trapezoids)
    if not valid:
        return None
    cmc = [sum(0 <= first <= k for first in firsts) / valid for k in range(len(gallery_pids))]
    return aps, sum(trapezoids) / valid, sum(penalties) / valid, cmc, [first + 1 for first in firsts]


def assert_equals_loops(case):
    expected = rank_by_loops(*case)
    if expected is None:
        with pytest.raises(ValueError, match="query_pids: expected a query with a match"):
            evaluate_ranking(*case)
        return
    aps, trapezoid, penalty, cmc, firsts = expected
    result = evaluate_ranking(*case)
    assert result.mean_ap == pytest.approx(np.nanmean(aps), abs=1e-12)
    assert result.mean_ap_trapezoid == pytest.approx(trapezoid, abs=1e-12)
    assert result.mean_inp == pytest.approx(penalty, abs=1e-12)
    np.testing.assert_allclose(result.cmc, cmc, atol=1e-12)
    np.testing.assert_allclose(result.average_precisions, aps, atol=1e-12)
    np.testing.assert_array_equal(result.first_ranks, firsts)
    assert (result.queries, result.valid_queries) == (len(aps), np.isfinite(aps).sum())


def random_case(seed, n_query=40, n_gallery=90):
    rng = np.random.default_rng(seed)
    distances = rng.random((n_query, n_gallery)).round(1 if seed % 2 else 6)  # odd seeds: many ties
    # Identity 12 is asked for but is not in the gallery; the gallery also has distractors and junk.
    query_pids, gallery_pids = rng.integers(1, 13, n_query), rng.integers(-1, 12, n_gallery)
    query_pids[0] = 12
    return distances, query_pids, gallery_pids, rng.integers(1, 4, n_query), rng.integers(1, 4, n_gallery)


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops(seed):
    assert_equals_loops(random_case(seed))


@st.composite
def cases(draw):
    """Few identities in a small gallery with junk and distractors; ties; one camera, a few, or two-digit numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_query, n_gallery = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    distances = rng.integers(0, levels, (n_query, n_gallery)) / levels
    distances = distances.astype(draw(st.sampled_from([np.float32, np.float64])))
    distances[rng.random(distances.shape) < draw(st.sampled_from([0, 0.2]))] = np.inf
    cameras = np.array(draw(st.sampled_from([[1], [1, 2], [1, 2, 3], [1, 10, 11, 15]])))
    pids = rng.integers(1, 5, n_query), rng.integers(-1, 5, n_gallery)
    return distances, *pids, rng.choice(cameras, n_query), rng.choice(cameras, n_gallery)


@settings(deadline=None, max_examples=200)
@given(cases())
def test_equals_loops_on_any_case(case):
    assert_equals_loops(case)


def test_blocks_do_not_change_the_result(monkeypatch):
    case = random_case(0)
    whole = evaluate_ranking(*case)
    monkeypatch.setattr(ranking, "_BLOCK_ELEMENTS", 7 * case[0].shape[1])  # 40 queries: last block is short
    parts = evaluate_ranking(*case)
    assert parts.figures() == whole.figures()
    np.testing.assert_array_equal(parts.cmc, whole.cmc)


def test_no_more_rows_than_the_memory_allows_are_asked_for(monkeypatch):
    distances, *labels = random_case(0)
    asked = []

    class Rows:
        shape = distances.shape

        def __getitem__(self, rows):
            asked.append(len(range(*rows.indices(len(distances)))))
            return distances[rows]

    monkeypatch.setattr(ranking, "_BLOCK_ELEMENTS", 11 * distances.shape[1] + 1)
    assert evaluate_ranking(Rows(), *labels).figures() == evaluate_ranking(distances, *labels).figures()
    assert asked == [11, 11, 11, 7]


def test_kinds_of_numbers_do_not_change_the_result():
    distances, *labels = random_case(1)  # of one digit each
    expected = evaluate_ranking(distances, *labels).figures()
    tens = (distances * 10).round().astype(int)
    for same in (tens, torch.from_numpy(distances), torch.from_numpy(tens).bfloat16(), tens.astype(np.float16)):
        assert evaluate_ranking(same, *labels).figures() == expected
    assert evaluate_ranking(tens, *(each.astype(np.int32) for each in labels)).figures() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_scores():
    for seed in range(4):
        distances, *labels = random_case(seed)
        expected = evaluate_ranking(distances, *labels)
        found = evaluate_ranking(torch.from_numpy(distances).cuda(), *labels)
        np.testing.assert_array_equal(found.average_precisions, expected.average_precisions)
        assert found.figures() == expected.figures()


@pytest.mark.shared
def test_equals_recorded_reference_scores(shared: Path):
    with np.load(shared / "golden" / "reid_eval.npz") as recorded:
        query, gallery = (recorded[f"{side}_features"].astype(np.float64) for side in ("query", "gallery"))
        labels = [recorded[f"{side}_{kind}"] for kind in ("pids", "camids") for side in ("query", "gallery")]
        keys = ("mAP", "mAP_trapezoid", "cmc", "cmc_trapezoid_repo")
        expected = {key: recorded[key] for key in keys}
    computed = evaluate_ranking(FeatureDistances(query.astype(np.float32), gallery.astype(np.float32)), *labels)
    result = evaluate_ranking(-query @ gallery.T, *labels)
    assert computed.figures() == pytest.approx(result.figures(), abs=1e-7)
    assert result.mean_ap == pytest.approx(float(expected["mAP"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc[:20], expected["cmc"], atol=1e-6)
    # The recorded trapezoid figures count a query without a match as zero; here such a query is skipped.
    assert result.valid_queries == len(query) - 1
    share = result.valid_queries / len(query)
    assert result.mean_ap_trapezoid * share == pytest.approx(float(expected["mAP_trapezoid"]), abs=1e-6)
    np.testing.assert_allclose(result.cmc[:20] * share, expected["cmc_trapezoid_repo"], atol=1e-6)


def test_worked_by_hand():
    """Order: own camera (out), distractor, match, junk (out), other person, match."""
    gallery_pids, gallery_camids = np.array([5, 0, 5, -1, 7, 5]), np.array([1, 2, 2, 2, 2, 3])
    distances = np.arange(6, dtype=np.float32)[None]
    result = evaluate_ranking(distances, np.array([5]), gallery_pids, np.array([1]), gallery_camids)
    assert result.mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.mean_ap_trapezoid == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert result.mean_inp == pytest.approx(2 / 4)
    np.testing.assert_allclose(result.cmc, [0, 1, 1, 1, 1, 1])
    assert (result.valid_queries, result.first_ranks.tolist()) == (1, [2])


def test_figures_are_labelled():
    result = evaluate_ranking(*random_case(0))
    figures = result.figures((1, 10, 5000))
    assert list(figures) == [
        "mAP",
        "mAP_trapezoid",
        "rank-1",
        "rank-10",
        "rank-5000",
        "mINP",
        "queries",
        "valid_queries",
    ]
    assert (figures["mAP"], figures["mAP_trapezoid"]) == (result.mean_ap, result.mean_ap_trapezoid)
    assert (figures["rank-10"], figures["rank-5000"]) == (result.cmc[9], 1)
    assert (figures["queries"], figures["valid_queries"]) == (40, result.valid_queries)
    with pytest.raises(ValueError, match="ranks: expected numbers from 1"):
        result.figures((0, 1))


def test_equal_distances_rank_in_gallery_order():
    """All the same: the match stands where it stands in the gallery, less what is left out before it."""
    pids, camids = np.array([-1, 3, 2, 1, 2]), np.array([2, 2, 1, 2, 2])
    result = evaluate_ranking(np.zeros((1, 5), np.float32), np.array([2]), pids, np.array([1]), camids)
    assert result.first_ranks.tolist() == [3]


def test_perfect_ranking_scores_one():
    pids = np.repeat(np.arange(1, 6), 3)
    distances = (pids[::3, None] != pids[None]).astype(float)
    result = evaluate_ranking(distances, pids[::3], pids, np.full(5, 1), np.full(15, 2))
    assert (result.mean_ap, result.mean_ap_trapezoid, result.cmc[0]) == pytest.approx((1, 1, 1), abs=1e-12)


def test_any_increasing_map_of_distances_keeps_the_scores():
    distances, *labels = random_case(2)
    plain, mapped = evaluate_ranking(distances, *labels), evaluate_ranking(np.exp(5 * distances), *labels)
    assert plain.mean_ap == mapped.mean_ap
    np.testing.assert_array_equal(plain.cmc, mapped.cmc)


def test_infinite_distance_ranks_last():
    labels = (np.array([1]), np.array([1, 2]), np.array([1]), np.array([2, 2]))
    assert evaluate_ranking(np.array([[np.inf, 0.0]]), *labels).mean_ap == 0.5


def test_no_valid_query_is_an_error():
    ones = np.ones(1, np.int64)
    with pytest.raises(ValueError, match="query_pids: expected a query with a match"):
        evaluate_ranking(np.zeros((1, 1)), ones, ones, ones, ones)
    with pytest.raises(ValueError, match="query_pids: expected a query with a match"):
        evaluate_ranking(np.zeros((1, 0)), ones, ones[:0], ones, ones[:0])


@pytest.mark.parametrize(
    ("place", "name"), [(1, "query_pids"), (2, "gallery_pids"), (3, "query_camids"), (4, "gallery_camids")]
)
def test_wrong_length_is_named(place, name):
    case = list(random_case(0))
    case[place] = case[place][:-1]
    with pytest.raises(ValueError, match=f"{name}: expected shape"):
        evaluate_ranking(*case)


def test_wrong_distances_are_refused():
    with pytest.raises(ValueError, match=r"distances: expected shape \(Q, G\), got \(3,\)"):
        evaluate_ranking(np.zeros(3), *random_case(0)[1:])


@pytest.mark.parametrize("pid", [0, -1])
def test_a_query_that_is_nobody_is_refused(pid):
    distances, query_pids, *labels = random_case(0)
    query_pids[5] = pid
    with pytest.raises(ValueError, match=rf"query_pids: expected identities from 1 .* got {pid} at \[5\]"):
        evaluate_ranking(distances, query_pids, *labels)


def test_nan_distance_is_placed(monkeypatch):
    distances, *labels = random_case(0)
    distances[33, 4] = np.nan
    monkeypatch.setattr(ranking, "_BLOCK_ELEMENTS", 10 * distances.shape[1])
    with pytest.raises(ValueError, match=r"NaN at \[33, 4\]"):
        evaluate_ranking(distances, *labels)
