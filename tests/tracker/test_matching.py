import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from tracker.matching import (
    assign,
    assign_pairs,
    direction_similarity,
    embedding_distance,
    embedding_distance_of_pairs,
    fuse_motion,
    stand_out,
)


def unit_rows(count, dimension=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def least_cost(cost, limit):
    """Least total of matched costs and `limit` for each pair forgone, by trying every partial assignment."""
    n_rows, n_columns = cost.shape
    best = np.inf
    for count in range(min(n_rows, n_columns) + 1):
        for rows in itertools.combinations(range(n_rows), count):
            for columns in itertools.permutations(range(n_columns), count):
                pairs = [cost[row, column] for row, column in zip(rows, columns, strict=True)]
                if all(pair <= limit for pair in pairs):
                    best = min(best, sum(pairs) + limit * (min(n_rows, n_columns) - count))
    return best


def test_metrics_are_what_they_are_called():
    a, b = unit_rows(5), unit_rows(7, seed=1)
    cosine, euclidean = embedding_distance(a, b, "cosine"), embedding_distance(a, b, "euclidean")
    for row, column in itertools.product(range(5), range(7)):
        assert cosine[row, column] == pytest.approx(1 - float(a[row] @ b[column]), abs=1e-6)
        assert euclidean[row, column] == pytest.approx(float(np.linalg.norm(a[row] - b[column])), abs=1e-6)
    orthogonal = np.eye(2)
    assert embedding_distance(orthogonal[:1], orthogonal[1:], "cosine") == 1
    assert embedding_distance(orthogonal[:1], orthogonal[1:], "euclidean") == pytest.approx(np.sqrt(2))


def test_equal_embeddings_have_no_negative_distance():
    rows = unit_rows(200, dimension=128)
    for metric in ("cosine", "euclidean"):
        distance = embedding_distance(rows, rows, metric)
        assert (distance >= 0).all()
        assert np.diag(distance).max() < 1e-3


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("pairs", [0, 1, 20, 600])  # few are worked out by themselves, many by a product of matrices
def test_distances_of_pairs_are_those_of_the_matrix(pairs, metric):
    a, b = unit_rows(25), unit_rows(30, seed=1)
    row, column = np.random.default_rng(0).integers(0, (25, 30), (pairs, 2)).T
    distance = embedding_distance_of_pairs(a, b, row, column, metric)
    np.testing.assert_allclose(distance, embedding_distance(a, b, metric)[row, column], atol=1e-6)


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: expected 'cosine' or 'euclidean', got 'manhattan'"):
        embedding_distance(np.eye(2), np.eye(2), "manhattan")


def test_fusion_weighs_both():
    cost, gating = np.array([[0.5, 0.5, 0.5]]), np.array([[2.0, 9.4877, np.inf]])
    fused = fuse_motion(cost, gating)
    np.testing.assert_allclose(fused, [[0.98 * 0.5 + 0.02 * 2, 0.98 * 0.5 + 0.02 * 9.4877, np.inf]])
    np.testing.assert_allclose(fuse_motion(cost[0, :2], gating[0, :2], weight=0.5), [1.25, 4.99385])
    np.testing.assert_array_equal(cost, 0.5)


def stood_out(cost, margin):
    """Adaptive weighting, entry by entry: similarity · (1 + mean of the leads of its row and its column)."""

    def lead(values):
        ranked = sorted(values, reverse=True)
        return min(ranked[0] - ranked[1], margin) if len(ranked) > 1 else 0.0

    similarity = 1 - cost
    result = np.empty_like(cost)
    for row, column in np.ndindex(*cost.shape):
        boost = (lead(similarity[row]) + lead(similarity[:, column])) / 2
        result[row, column] = max(1 - similarity[row, column] * (1 + boost), 0)
    return result


@given(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.floats(0, 2))
    ),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_standing_out_equals_its_formula(cost, margin):
    before = cost.copy()
    np.testing.assert_allclose(stand_out(cost, margin), stood_out(cost, margin), atol=1e-12)
    np.testing.assert_array_equal(cost, before)


def test_who_stands_out():
    cost = np.array([[0.2, 0.9, 0.8], [0.4, 0.5, 0.9]])
    # Rows lead by 0.6, cut to 0.5, and by 0.1; columns by 0.2, 0.4 and 0.1.
    expected = [[0.2 - 0.8 * 0.35, 0.9 - 0.1 * 0.45, 0.8 - 0.2 * 0.3], [0.4 - 0.6 * 0.15, 0.5 - 0.5 * 0.25, 0.89]]
    np.testing.assert_allclose(stand_out(cost, 0.5), np.maximum(expected, 0))
    np.testing.assert_allclose(stand_out(cost, 0.0), cost)
    np.testing.assert_allclose(stand_out(np.array([[0.7]]), 0.5), [[0.7]])  # alone, nobody stands out


coordinates = st.floats(-1e3, 1e3).map(lambda value: round(value, 2))


@given(st.lists(st.tuples(*[coordinates] * 6), min_size=1, max_size=8))
def test_direction_is_the_angle_between_the_way_and_the_step(pairs):
    pairs = np.array(pairs)
    path, centre = pairs[:, :4].reshape(-1, 2, 2), pairs[:, 4:]
    middle = np.full((len(pairs), 3, 2), 1e5)  # what lies between first and last place does not count
    similarity = direction_similarity(np.concatenate([path[:, :1], middle, path[:, 1:]], axis=1), centre)
    for (start, end), place, value in zip(path, centre, similarity, strict=True):
        way, step = end - start, place - start
        if not way.any() or not step.any():
            assert value == 0
            continue
        angle = abs(np.arctan2(way[1], way[0]) - np.arctan2(step[1], step[0]))
        angle = min(angle, 2 * np.pi - angle)
        assert value == pytest.approx(0.5 - angle / np.pi, abs=1e-6)


def test_known_directions():
    path = np.repeat([[[0.0, 0.0], [2.0, 0.0]]], 5, axis=0)
    centre = np.array([[9.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(direction_similarity(path, centre), [0.5, 0, -0.5, 0.25, 0], atol=1e-12)
    assert direction_similarity(np.zeros((0, 4, 2)), np.zeros((0, 2))).shape == (0,)


@given(
    st.tuples(st.integers(0, 4), st.integers(0, 4)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.one_of(st.floats(0, 1), st.just(np.inf)))
    ),
    st.floats(0.05, 1),
)
def test_assignment_is_optimal_and_complete(cost, limit):
    matches, rows, columns = assign(cost, limit)
    assert sorted([*matches[:, 0], *rows]) == list(range(cost.shape[0]))
    assert sorted([*matches[:, 1], *columns]) == list(range(cost.shape[1]))
    paid = cost[matches[:, 0], matches[:, 1]]
    assert (paid <= limit).all()
    total = paid.sum() + limit * (min(cost.shape) - len(matches))
    assert total == pytest.approx(least_cost(cost, limit), abs=1e-5)


def test_parity_with_scipy_where_the_limit_does_not_bind():
    rng = np.random.default_rng(0)
    for shape in ((20, 20), (12, 30), (30, 12)):
        cost = rng.random(shape)
        matches, _, _ = assign(cost, 1e3)
        np.testing.assert_array_equal(matches, np.stack(linear_sum_assignment(cost), axis=1))


def least_total(cost, limit):
    """By scipy's solver: every row and every column may also stay alone, for half the limit each."""
    n_rows, n_columns = cost.shape
    allowed = np.where(cost <= limit, cost, 1e6)
    square = np.full((n_rows + n_columns, n_rows + n_columns), 0.0)
    square[:n_rows, :n_columns] = allowed
    square[:n_rows, n_columns:] = square[n_rows:, :n_columns] = limit / 2
    return square[linear_sum_assignment(square)].sum()


@pytest.mark.parametrize("seed", range(60))
def test_parity_with_scipy_where_the_limit_binds(seed):
    """Crowds of all densities: pairs alone in row and column, small groups who compete, and one large group."""
    rng = np.random.default_rng(seed)
    n_rows, n_columns = rng.integers(0, 40, 2)
    limit = rng.uniform(0.2, 1)
    cost = rng.random((n_rows, n_columns))
    cost[rng.random(cost.shape) < rng.choice([0.2, 0.9, 0.97, 0.995])] = np.inf
    cost[rng.random(cost.shape) < 0.02] = limit
    before = cost.copy()
    matches, rows, columns = assign(cost, limit)
    np.testing.assert_array_equal(cost, before)
    assert sorted([*matches[:, 0], *rows]) == list(range(n_rows)) and (np.diff(rows) > 0).all()
    assert sorted([*matches[:, 1], *columns]) == list(range(n_columns)) and (np.diff(columns) > 0).all()
    assert (np.diff(matches[:, 0]) > 0).all()
    paid = cost[matches[:, 0], matches[:, 1]]
    assert (paid <= limit).all()
    assert paid.sum() + limit / 2 * (len(rows) + len(columns)) == pytest.approx(least_total(cost, limit), abs=1e-4)


def test_pairs_alone_are_matched_beside_those_who_compete():
    cost = np.full((5, 6), np.inf)
    cost[4, 0] = 0.5  # alone, and at the limit
    cost[2, 5] = 0.1  # alone
    cost[0, 1], cost[0, 3], cost[3, 1] = 0.1, 0.2, 0.15  # 0 gives way: 0.35 for two pairs, in place of 0.1 for one
    cost[1, 4] = 0.6  # too far
    matches, rows, columns = assign(cost, 0.5)
    assert matches.tolist() == [[0, 3], [2, 5], [3, 1], [4, 0]]
    assert rows.tolist() == [1] and columns.tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(20))
def test_pairs_in_any_order_are_matched_as_in_the_matrix(seed):
    rng = np.random.default_rng(seed)
    cost = rng.random((20, 25))
    rows, columns = (rng.random(cost.shape) < rng.choice([0.02, 0.1, 0.5])).nonzero()
    order = rng.permutation(len(rows))
    rows, columns = rows[order], columns[order]
    dense = np.full_like(cost, np.inf)
    dense[rows, columns] = cost[rows, columns]
    found = assign_pairs(rows, columns, cost[rows, columns], 0.6)
    np.testing.assert_array_equal(np.stack(found, axis=1), assign(dense, 0.6)[0])


def test_no_pairs_and_pairs_without_a_cost():
    none = np.zeros(0, np.int64)
    rows, columns = assign_pairs(none, none, np.zeros(0), 0.5)
    assert len(rows) == len(columns) == 0
    pairs = np.array([3, 8]), np.array([4, 9])
    with pytest.raises(ValueError, match="cost: expected numbers, got NaN at row 8, column 9"):
        assign_pairs(*pairs, np.array([0.1, np.nan]), 0.5)
    with pytest.raises(ValueError, match="limit: expected a finite number, got nan"):
        assign_pairs(*pairs, np.array([0.1, 0.2]), np.nan)


def test_negative_costs_are_costs():
    """A direction lowers the cost of a step straight on below zero."""
    cost = np.array([[-0.1, 0.0], [-0.05, 0.2]])
    assert assign(cost, 0.5)[0].tolist() == [[0, 1], [1, 0]]
    assert assign(np.array([[-0.1, np.inf], [np.inf, -0.2]]), 0.5)[0].tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_of_the_costs(dtype):
    cost = np.random.default_rng(0).random((30, 40)).astype(dtype)
    expected = np.stack(linear_sum_assignment(cost), axis=1)
    np.testing.assert_array_equal(assign(cost, 100.0)[0], expected)


def test_pair_exactly_at_the_limit():
    for limit in (0.5, 0.7):
        assert assign(np.array([[limit]]), limit)[0].tolist() == [[0, 0]]
        assert assign(np.array([[limit, limit], [limit, np.inf]]), limit)[0].tolist() == [[0, 1], [1, 0]]
        assert len(assign(np.array([[np.nextafter(limit, 1)]]), limit)[0]) == 0


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_assign(shape):
    matches, rows, columns = assign(np.zeros(shape), 0.5)
    assert matches.shape == (0, 2) and len(rows) == shape[0] and len(columns) == shape[1]


def test_only_forbidden_pairs():
    matches, rows, columns = assign(np.full((2, 3), np.inf), 0.5)
    assert len(matches) == 0 and rows.tolist() == [0, 1] and columns.tolist() == [0, 1, 2]


def test_nan_and_endless_limits_are_refused():
    cost = np.zeros((2, 3))
    cost[1, 2] = np.nan
    with pytest.raises(ValueError, match="cost: expected numbers, got NaN at row 1, column 2"):
        assign(cost, 0.5)
    with pytest.raises(ValueError, match="limit: expected a finite number, got inf"):
        assign(np.zeros((2, 2)), np.inf)
