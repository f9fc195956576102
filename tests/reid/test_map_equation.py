"""The map equation against its definition by entropies, and its search against all partitions of small graphs."""

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import map_equation
from reid.map_equation import code_length, communities


def entropy(rates: list[float]) -> float:
    return -sum(r / sum(rates) * np.log2(r / sum(rates)) for r in rates if r > 0)


def length_by_entropies(weights: NDArray[np.float64], labels: list[int]) -> float:
    """L(M) = q H(Q) + sum of p_i H(P_i), word by word from the paper."""
    n = len(weights)
    visits = [weights[a].sum() / weights.sum() for a in range(n)]
    exits, within = {}, 0.0
    for c in set(labels):
        inside = [a for a in range(n) if labels[a] == c]
        exits[c] = sum(weights[a, b] for a in inside for b in range(n) if labels[b] != c) / weights.sum()
        used = exits[c] + sum(visits[a] for a in inside)
        if used > 0:
            within += used * entropy([exits[c], *(visits[a] for a in inside)])
    leaving = sum(exits.values())
    return within + (leaving * entropy(list(exits.values())) if leaving > 0 else 0.0)


def partitions(n: int) -> Iterator[list[int]]:
    """All ways to label n nodes, each once."""

    def grow(labels: list[int]) -> Iterator[list[int]]:
        if len(labels) == n:
            yield labels
            return
        for c in range(max(labels, default=-1) + 2):
            yield from grow([*labels, c])

    return grow([])


@st.composite
def graphs(draw: st.DrawFn, most: int = 7) -> NDArray[np.float64]:
    n = draw(st.integers(2, most))
    pairs = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.9, 1.0]), min_size=n * n, max_size=n * n))
    weights = np.triu(np.array(pairs).reshape(n, n), 1)
    weights[0, 1] = 1.0
    return weights + weights.T


def groups(rng: np.random.Generator, sizes: list[int], inside: float, across: float) -> NDArray[np.float64]:
    """Weights of about one within groups and fewer between them, with the shares of pairs that are given."""
    who = np.repeat(np.arange(len(sizes)), sizes)
    share = np.where(who[:, None] == who, inside, across)
    weights = np.triu(rng.uniform(0.3, 0.7, share.shape) * (rng.uniform(size=share.shape) < share), 1)
    return weights + weights.T


def ring_of_cliques(cliques: int, size: int) -> NDArray[np.float64]:
    weights = np.kron(np.eye(cliques), np.ones((size, size)) - np.eye(size))
    for c in range(cliques):
        a, b = c * size, (c + 1) % cliques * size + 1
        weights[a, b] = weights[b, a] = 1
    return weights


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_code_length_is_that_of_the_definition(weights: NDArray[np.float64], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 4), min_size=len(weights), max_size=len(weights)))
    assert code_length(sp.csr_array(weights), labels) == pytest.approx(length_by_entropies(weights, labels), abs=1e-12)


def test_code_length_of_two_nodes_is_one_bit_together() -> None:
    weights = sp.csr_array(np.array([[0.0, 3.0], [3.0, 0.0]]))
    assert code_length(weights, [0, 0]) == pytest.approx(1)
    # Apart: each step leaves, told by one bit between communities, one to leave and one to enter.
    assert code_length(weights, [0, 1]) == pytest.approx(3)


@pytest.mark.parametrize("seed", range(6))
def test_search_reaches_the_shortest_code_of_all_partitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = groups(rng, [[4, 4], [3, 5], [3, 3, 2], [4, 3], [2, 3, 3], [8]][seed], inside=0.9, across=0.15)
    weights[0, 1] = weights[1, 0] = 0.5
    shortest = min(length_by_entropies(weights, labels) for labels in partitions(len(weights)))
    found = communities(sp.csr_array(weights))
    assert code_length(sp.csr_array(weights), found) == pytest.approx(shortest, abs=1e-9)


def test_search_on_graphs_without_groups_stays_close_to_the_shortest_code() -> None:
    excess = []
    for seed in range(25):
        weights = groups(np.random.default_rng(seed), [6], inside=0.5, across=0)
        weights[0, 1] = weights[1, 0] = 0.5
        shortest = min(length_by_entropies(weights, labels) for labels in partitions(6))
        excess.append(code_length(sp.csr_array(weights), communities(sp.csr_array(weights))) / shortest - 1)
    assert min(excess) > -1e-9
    assert np.sum(np.array(excess) > 1e-9) <= 1
    assert max(excess) < 0.02


@pytest.mark.parametrize(("cliques", "size"), [(3, 4), (8, 5), (30, 6)])
def test_cliques_of_a_ring_are_the_communities(cliques: int, size: int) -> None:
    for seed in range(3):
        found = communities(sp.csr_array(ring_of_cliques(cliques, size)), seed=seed)
        assert len(set(zip(found, np.repeat(np.arange(cliques), size), strict=True))) == cliques == found.max() + 1


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_moves_never_make_the_code_longer(weights: NDArray[np.float64], data: st.DataObject) -> None:
    n = len(weights)
    start = np.unique(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), return_inverse=True)[1]
    flow = sp.csr_array(weights / weights.sum())
    moved = map_equation._move(flow, start, np.random.default_rng(0))
    assert code_length(flow, moved) <= code_length(flow, start) + 1e-12
    assert code_length(flow, communities(flow)) <= code_length(flow, np.arange(n)) + 1e-12


def test_terms_are_kept_up_to_date_move_by_move() -> None:
    rng = np.random.default_rng(4)
    weights = groups(rng, [6, 5, 7], inside=0.6, across=0.2)
    flow, labels = sp.csr_array(weights / weights.sum()), rng.integers(0, 6, 18)
    labels[:6] = range(6)
    code = map_equation._Code(flow, labels)
    for node in rng.integers(0, 18, 60).tolist():
        home = int(labels[node])
        towards = {c: float(flow[[node]].toarray()[0, labels == c].sum()) for c in {home, *labels.tolist()}}
        to = code.best(node, home, towards)
        before, tried = code_length(flow, labels), labels.copy()
        lengths = {}
        for c in towards:
            tried[node] = c
            lengths[c] = code_length(flow, tried)
        if to in towards:
            assert lengths[to] == pytest.approx(min(lengths.values()), abs=1e-9)
        if to != home:
            code.move(node, home, to, towards)
            labels[node] = to
            assert code_length(flow, labels) < before
        fresh = map_equation._Code(flow, labels)
        for name in ("_visits", "_exits", "_costs"):
            np.testing.assert_allclose(getattr(code, name), getattr(fresh, name), atol=1e-12)
        assert code._total == pytest.approx(fresh._total, abs=1e-12)
        assert sorted(code._empty) == sorted(fresh._empty)


def test_planted_communities_are_found_whatever_the_order_of_nodes() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(6, 20, 30).tolist()
    truth, weights = np.repeat(np.arange(30), sizes), groups(rng, sizes, inside=0.9, across=0.005)
    shuffle = rng.permutation(len(truth))
    found = communities(sp.csr_array(weights))
    mixed = communities(sp.csr_array(weights[np.ix_(shuffle, shuffle)]), seed=3)
    assert len(set(zip(truth, found, strict=True))) == 30 == found.max() + 1
    assert len(set(zip(truth[shuffle], mixed, strict=True))) == 30 == mixed.max() + 1


def test_the_same_seed_gives_the_same_communities() -> None:
    weights = sp.csr_array(groups(np.random.default_rng(2), [40], inside=0.15, across=0))
    assert np.array_equal(communities(weights, seed=5), communities(weights.copy(), seed=5))


def test_nodes_without_weights_are_communities_of_their_own() -> None:
    weights = np.zeros((5, 5))
    weights[1, 3] = weights[3, 1] = 1
    found = communities(sp.csr_array(weights))
    assert found[1] == found[3]
    assert len(set(found.tolist())) == 4
    assert communities(sp.csr_array((3, 3))).tolist() == [0, 1, 2]
    assert communities(sp.csr_array((0, 0))).tolist() == []
    assert code_length(sp.csr_array((3, 3)), [0, 0, 1]) == 0


def test_weights_to_oneself_stay_inside() -> None:
    weights = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert code_length(sp.csr_array(weights), [0, 1]) == pytest.approx(length_by_entropies(weights, [0, 1]))
    assert communities(sp.csr_array(np.array([[99.0, 1.0], [1.0, 99.0]]))).tolist() == [0, 1]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"weights: expected a square sparse matrix, got \(2, 3\)"):
        communities(sp.csr_array((2, 3)))
    with pytest.raises(ValueError, match="weights: expected a square sparse matrix"):
        communities(np.eye(2))
    with pytest.raises(ValueError, match="weights: expected none below 0"):
        communities(sp.csr_array(np.array([[0, -1], [-1, 0]])))
    with pytest.raises(ValueError, match="weights: expected a symmetric matrix"):
        communities(sp.csr_array(np.array([[0, 1], [0, 0]])))
    with pytest.raises(ValueError, match=r"labels: expected one of each of 2 nodes, got shape \(3,\)"):
        code_length(sp.csr_array(np.ones((2, 2))), [0, 1, 1])
    with pytest.raises(ValueError, match="labels: expected communities from 0, got -1"):
        code_length(sp.csr_array(np.ones((2, 2))), [0, -1])
