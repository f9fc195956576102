import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from tracker.matching import assign, embedding_distance, fuse_motion


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


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric: expected 'cosine' or 'euclidean', got 'manhattan'"):
        embedding_distance(np.eye(2), np.eye(2), "manhattan")


def test_fusion_weighs_both_and_forbids_beyond_the_gate():
    cost = np.array([[0.5, 0.5, 0.5]])
    gating = np.array([[2.0, 9.4877, 9.4878]])
    fused = fuse_motion(cost, gating)
    np.testing.assert_allclose(fused, [[0.98 * 0.5 + 0.02 * 2, 0.98 * 0.5 + 0.02 * 9.4877, np.inf]])
    np.testing.assert_array_equal(cost, 0.5)


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
