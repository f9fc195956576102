"""Ranking scores against loops written from the definition, recorded figures and cases worked by hand."""

from pathlib import Path

import numpy as np
import pytest

from reid import ranking
from reid.ranking import evaluate_ranking


def rank_by_loops(distances, query_pids, gallery_pids, query_camids, gallery_camids):
    """Market-1501's rules, one image at a time."""
    aps, trapezoids, firsts = [], [], []
    for q in range(len(query_pids)):
        ranked = []
        for g in sorted(range(len(gallery_pids)), key=lambda g: distances[q][g]):
            same_pid = gallery_pids[g] == query_pids[q]
            if gallery_pids[g] == -1 or (same_pid and gallery_camids[g] == query_camids[q]):
                continue
            ranked.append(bool(same_pid))
        if True not in ranked:
            continue
        hits, before, precisions, areas = 0, 1.0, [], []
        for rank, hit in enumerate(ranked, start=1):
            hits += hit
            if hit:
                precisions.append(hits / rank)
                areas.append((before + hits / rank) / 2)
            before = hits / rank
        aps.append(sum(precisions) / hits)
        trapezoids.append(sum(areas) / hits)
        firsts.append(ranked.index(True))
    cmc = [sum(first <= k for first in firsts) / len(firsts) for k in range(len(gallery_pids))]
    return sum(aps) / len(aps), sum(trapezoids) / len(trapezoids), cmc, len(aps)


def random_case(seed, n_query=40, n_gallery=90):
    rng = np.random.default_rng(seed)
    distances = rng.random((n_query, n_gallery)).round(1 if seed % 2 else 6)  # odd seeds: many ties
    # Identity 12 is asked for but is not in the gallery; the gallery also has distractors and junk.
    query_pids, gallery_pids = rng.integers(1, 13, n_query), rng.integers(-1, 12, n_gallery)
    query_pids[0] = 12
    return distances, query_pids, gallery_pids, rng.integers(1, 4, n_query), rng.integers(1, 4, n_gallery)


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops(seed):
    case = random_case(seed)
    mean_ap, trapezoid, cmc, valid = rank_by_loops(*case)
    result = evaluate_ranking(*case)
    assert result.mean_ap == pytest.approx(mean_ap, abs=1e-12)
    assert result.mean_ap_trapezoid == pytest.approx(trapezoid, abs=1e-12)
    np.testing.assert_allclose(result.cmc, cmc, atol=1e-12)
    assert result.valid_queries == valid < len(case[1])


def test_batches_do_not_change_the_result(monkeypatch):
    case = random_case(0)
    whole = evaluate_ranking(*case)
    monkeypatch.setattr(ranking, "_BATCH_ELEMENTS", 7 * case[0].shape[1])  # 40 queries: last batch is short
    parts = evaluate_ranking(*case)
    assert parts.mean_ap == pytest.approx(whole.mean_ap, abs=1e-12)
    assert parts.mean_ap_trapezoid == pytest.approx(whole.mean_ap_trapezoid, abs=1e-12)
    np.testing.assert_array_equal(parts.cmc, whole.cmc)
    assert parts.valid_queries == whole.valid_queries


@pytest.mark.shared
def test_equals_recorded_reference_scores(shared: Path):
    with np.load(shared / "golden" / "reid_eval.npz") as recorded:
        query, gallery = (recorded[f"{side}_features"].astype(np.float64) for side in ("query", "gallery"))
        labels = [recorded[f"{side}_{kind}"] for kind in ("pids", "camids") for side in ("query", "gallery")]
        keys = ("mAP", "mAP_trapezoid", "cmc", "cmc_trapezoid_repo")
        expected = {key: recorded[key] for key in keys}
    result = evaluate_ranking(-query @ gallery.T, *labels)
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
    np.testing.assert_allclose(result.cmc, [0, 1, 1, 1, 1, 1])
    assert result.valid_queries == 1


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


def test_nan_distance_is_placed(monkeypatch):
    distances, *labels = random_case(0)
    distances[33, 4] = np.nan
    monkeypatch.setattr(ranking, "_BATCH_ELEMENTS", 10 * distances.shape[1])
    with pytest.raises(ValueError, match=r"NaN at \[33, 4\]"):
        evaluate_ranking(distances, *labels)
