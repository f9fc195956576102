"""Communities of a weighted graph by the two-level map equation.

A random walker on the graph is described with one code for the steps between communities and one for each community.
The better communities fit the graph, the more rarely it leaves one, and the shorter is the description (Rosvall and
Bergstrom, "Maps of random walks on complex networks reveal community structure", PNAS 2008). Written from that paper
and from Rosvall, Axelsson and Bergstrom, "The map equation", EPJ Special Topics 2009, for undirected graphs, where the
walker is at a node with a probability in proportion to its weights, so that no teleportation is needed.
"""

from __future__ import annotations

from math import log2

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

# Bits that a move must save, well above what rounding makes of none, and those that make another round worth while.
_LEAST_MOVE = 1e-10
_LEAST_ROUND = 1e-6


def code_length(weights: sp.csr_array, labels: ArrayLike) -> float:
    """Bits that describe one step of the walker, given communities: the map equation, L(M).

    Args:
        weights: (N, N) symmetric, at least 0.
        labels: (N,) community of each node, from 0.

    Raises:
        ValueError: the weights are not square, not symmetric or below 0, or labels are not one of each node.
    """
    flow = _flow(weights)
    labels = np.asarray(labels, np.int64)
    if labels.shape != flow.shape[:1]:
        raise ValueError(f"labels: expected one of each of {flow.shape[0]} nodes, got shape {labels.shape}")
    if labels.min(initial=0) < 0:
        raise ValueError(f"labels: expected communities from 0, got {labels.min()}")
    return _length(flow, labels)


def communities(weights: sp.csr_array, seed: int = 0) -> NDArray[np.int64]:
    """Find communities that make the code length short, by Infomap's search.

    Nodes move one by one to the neighbouring community that shortens the code most, then communities do so as nodes of
    a smaller graph, until nothing moves. From there single nodes may move again, for as long as that helps.

    Args:
        weights: (N, N) symmetric, at least 0; the diagonal holds a node's weight to itself.
        seed: of the order in which nodes are visited. The same seed gives the same communities.

    Returns:
        (N,) communities, numbered from 0 without gaps. A node without weights is one of its own.

    Raises:
        ValueError: the weights are not square, not symmetric or below 0.
    """
    flow = _flow(weights)
    order = np.random.default_rng(seed)
    labels = np.arange(flow.shape[0])
    shortest = _length(flow, labels)
    while True:
        found = _move(flow, labels, order)
        while True:
            merged = _move(_aggregate(flow, found), np.arange(found.max(initial=-1) + 1), order)
            if merged.max(initial=-1) == found.max(initial=-1):
                break
            found = merged[found]
        length = _length(flow, found)
        if length < shortest:
            labels = found
        if length > shortest - _LEAST_ROUND:
            return labels
        shortest = length


def _flow(weights: sp.csr_array) -> sp.csr_array:
    """Probabilities of the walker's steps, from row to column, that sum to 1."""
    if not sp.issparse(weights) or weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"weights: expected a square sparse matrix, got {getattr(weights, 'shape', type(weights))}")
    flow = sp.csr_array(weights, dtype=np.float64)
    if not (flow.data >= 0).all():
        raise ValueError("weights: expected none below 0")
    if flow.nnz and abs(flow - flow.T).max() > 1e-6 * flow.data.max(initial=0):
        raise ValueError("weights: expected a symmetric matrix")
    total = flow.sum()
    return flow / total if total > 0 else flow


def _length(flow: sp.csr_array, labels: NDArray[np.int64]) -> float:
    visits, exits = _visits_and_exits(_aggregate(flow, labels))
    nodes, _ = _visits_and_exits(flow)
    return _bits(sum(exits)) + sum(map(_cost, exits, visits)) - sum(map(_bits, nodes))


def _aggregate(flow: sp.csr_array, labels: NDArray[np.int64]) -> sp.csr_array:
    """The graph of communities; what flows within one is its flow to itself."""
    n = len(labels)
    member = sp.csr_array((np.ones(n), (np.arange(n), labels)), shape=(n, labels.max(initial=-1) + 1))
    return sp.csr_array(member.T @ flow @ member)


def _move(flow: sp.csr_array, labels: NDArray[np.int64], order: np.random.Generator) -> NDArray[np.int64]:
    """Move nodes one by one, each where the code gets shortest, until none has anywhere to go.

    One move decides on the next, and a node has few neighbours, so that plain lists are faster here than arrays. After
    the first pass only those are looked at that have seen a neighbour move.
    """
    code = _Code(flow, labels)
    steps = sp.csr_array(sp.triu(flow, 1) + sp.tril(flow, -1))
    starts, neighbours, flows = steps.indptr.tolist(), steps.indices.tolist(), steps.data.tolist()
    community = labels.tolist()
    waiting = np.ones(len(labels), bool)
    while waiting.any():
        for node in order.permutation(np.flatnonzero(waiting)).tolist():
            waiting[node] = False
            around = slice(starts[node], starts[node + 1])
            home = community[node]
            towards = {home: 0.0}  # flow to the others of each community
            for neighbour, step in zip(neighbours[around], flows[around], strict=True):
                c = community[neighbour]
                towards[c] = towards.get(c, 0.0) + step
            best = code.best(node, home, towards)
            if best != home:
                code.move(node, home, best, towards)
                community[node] = best
                waiting[neighbours[around]] = True
    moved: NDArray[np.int64] = np.unique(community, return_inverse=True)[1]
    return moved


class _Code:
    """The terms of the map equation for each community, kept up to date while nodes move."""

    def __init__(self, flow: sp.csr_array, labels: NDArray[np.int64]) -> None:
        n = len(labels)
        self._node_visits, self._node_exits = _visits_and_exits(flow)
        visits, exits = _visits_and_exits(_aggregate(flow, labels))
        self._visits = visits + [0.0] * (n - len(visits))
        self._exits = exits + [0.0] * (n - len(exits))
        self._costs = list(map(_cost, self._exits, self._visits))
        self._members = np.bincount(labels, minlength=n).tolist()
        self._empty = [c for c in range(n) if not self._members[c]]
        self._total = sum(exits)

    def best(self, node: int, home: int, towards: dict[int, float]) -> int:
        """The community around a node, or an empty one, that it shortens the code most to move to; else its own."""
        visits, exits, costs, total = self._visits, self._exits, self._costs, self._total
        p, q, back = self._node_visits[node], self._node_exits[node], towards[home]
        choices = dict(towards)
        if self._members[home] > 1:
            choices[self._empty[-1]] = 0.0
        del choices[home]
        best = home
        shortest = _bits(total) + costs[home] - _cost(*self._without(node, home, back)) - _LEAST_MOVE
        for c, step in choices.items():
            length = _bits(total + 2 * back - 2 * step) + _cost(exits[c] + q - 2 * step, visits[c] + p) - costs[c]
            if length < shortest:
                shortest, best = length, c
        return best

    def move(self, node: int, home: int, to: int, towards: dict[int, float]) -> None:
        """Move a node from one community to another."""
        back, step = towards[home], towards.get(to, 0.0)
        self._exits[home], self._visits[home] = self._without(node, home, back)
        self._exits[to] += self._node_exits[node] - 2 * step
        self._visits[to] += self._node_visits[node]
        self._total += 2 * back - 2 * step
        for c in (home, to):
            self._costs[c] = _cost(self._exits[c], self._visits[c])
        if not self._members[to]:
            self._empty.pop()
        self._members[to] += 1
        self._members[home] -= 1
        if not self._members[home]:
            self._empty.append(home)

    def _without(self, node: int, home: int, back: float) -> tuple[float, float]:
        """Exits and visits of a community when one of its nodes has left."""
        if self._members[home] == 1:
            return 0.0, 0.0  # without what rounding has left
        return self._exits[home] - self._node_exits[node] + 2 * back, self._visits[home] - self._node_visits[node]


def _visits_and_exits(flow: sp.csr_array) -> tuple[list[float], list[float]]:
    """Probability to be at each node, and to leave it for another one."""
    visits = np.asarray(flow.sum(axis=1))
    return visits.tolist(), (visits - flow.diagonal()).tolist()


def _cost(exits: float, visits: float) -> float:
    """What a community adds to the code length, apart from the code between communities."""
    return _bits(exits + visits) - 2 * _bits(exits)


def _bits(x: float) -> float:
    return x * log2(x) if x > 0 else 0.0
