"""Clusters of boxes made clusters of tracklets: all of a tracklet together, no two people of one frame together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
import scipy.sparse as sp

from reid.tracklets import Float64Array, IntArray, Tracklets, check_labels


@dataclass(frozen=True)
class ConstraintConfig:
    """How clusters of boxes become clusters of tracklets."""

    share: float = 0.25
    """A tracklet is in a cluster that has at least this share of its (sampled) boxes, in (0, 1]. Tracklets of a
    common cluster may be joined; above 0.5 each tracklet is in one cluster at most."""
    overlapping: bool = True
    """Tracklets whose times overlap in one camera are two people (see `Tracklets.cannot_link`), not only those seen
    in one frame."""
    min_boxes: int = 4
    """Fewest boxes of a cluster, at least 1; what is smaller is an outlier."""
    lone_tracklets: bool = True
    """Whether a tracklet that is in no cluster becomes one of its own, as long as it has enough boxes."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a number in (0, 1], got {self.share}")
        if self.min_boxes < 1:
            raise ValueError(f"min_boxes: expected at least 1, got {self.min_boxes}")


def constrain(
    labels: IntArray,
    graph: sp.csr_array,
    tracklets: Tracklets,
    config: ConstraintConfig | None = None,
    rows: IntArray | None = None,
) -> IntArray:
    """Clusters of whole tracklets, in which no two are seen at the same time, from clusters of boxes.

    Tracklets that share a cluster are joined by constrained average linkage: those first whose boxes are most similar
    (1 - Jaccard distance, mean over all pairs of boxes, 0 where the graph holds nothing), as long as there is any
    similarity, and never two groups that hold tracklets of two people.

    Args:
        labels: (R,) clusters of the boxes, -1 outliers.
        graph: (R, R) Jaccard distances, see `reid.jaccard.jaccard_graph`.
        tracklets: N boxes.
        config: None: the defaults.
        rows: (R,) the boxes that were clustered, as from `sample`; None: all.

    Returns:
        (N,) int64 labels of all boxes, from 0 in the order of first appearance, -1 outliers.

    Raises:
        ValueError: a wrong shape, a label below -1, a row that does not exist or is given twice.
    """
    config = config or ConstraintConfig()
    rows = np.arange(len(tracklets)) if rows is None else np.asarray(rows, np.int64)
    if len(np.unique(rows)) < len(rows) or not np.isin(rows, np.arange(len(tracklets))).all():
        raise ValueError(f"rows: expected each of 0 to {len(tracklets) - 1} at most once")
    labels = check_labels(labels, len(rows))
    if graph.shape != (len(rows), len(rows)):
        raise ValueError(f"graph: expected shape {(len(rows), len(rows))}, got {graph.shape}")

    track = tracklets.index[rows]
    sampled = np.bincount(track, minlength=len(tracklets.sizes))
    clusters = _clusters_of_tracklets(labels, track, sampled, config.share)
    pairs, similarity = _common_pairs(graph, track, clusters)
    groups = _join(pairs, similarity, sampled, tracklets.cannot_link(config.overlapping))

    kept = np.bincount(groups, tracklets.sizes)[groups] >= config.min_boxes
    if not config.lone_tracklets:
        kept &= clusters.sum(axis=1) > 0
    constrained = np.full(len(groups), -1)
    constrained[kept] = np.unique(groups[kept], return_inverse=True)[1]
    return np.asarray(constrained[tracklets.index], np.int64)


def _clusters_of_tracklets(labels: IntArray, track: IntArray, sizes: IntArray, share: float) -> sp.csr_array:
    """(T, K) bool: the clusters that have at least a share of a tracklet's boxes."""
    inside = labels >= 0
    places = (track[inside], labels[inside])
    votes = sp.coo_array((np.ones(len(places[0])), places), (len(sizes), labels.max(initial=-1) + 1)).tocoo()
    votes.sum_duplicates()
    enough = votes.data / sizes[votes.row] >= share
    return sp.csr_array((np.ones(enough.sum(), bool), (votes.row[enough], votes.col[enough])), votes.shape)


def _common_pairs(graph: sp.csr_array, track: IntArray, clusters: sp.csr_array) -> tuple[IntArray, Float64Array]:
    """Pairs of tracklets (P, 2) with a common cluster, the lower first, and the sums (P,) of their similarities."""
    edges = graph.tocoo()
    first, second = track[edges.row], track[edges.col]
    once = first < second
    sums = sp.coo_array((1 - edges.data[once].astype(np.float64), (first[once], second[once])), clusters.shape[:1] * 2)
    sums.sum_duplicates()
    common = (clusters[sums.row] * clusters[sums.col]).sum(axis=1) > 0
    common &= sums.data > 0
    return np.stack((sums.row, sums.col), axis=1, dtype=np.int64)[common], sums.data[common]


def _join(pairs: IntArray, similarity: Float64Array, sizes: IntArray, apart: IntArray) -> IntArray:
    """Join tracklets as far as they may be: (T,) the lowest tracklet of each one's group.

    Args:
        pairs: (P, 2) tracklets with something in common.
        similarity: (P,) sums of the similarities of their boxes, above 0.
        sizes: (T,) how many boxes these sums go over.
        apart: (Q, 2) tracklets that are two people.
    """
    shape = (len(sizes), len(sizes))
    _, part = sp.csgraph.connected_components(sp.coo_array((similarity, tuple(pairs.T)), shape), directed=False)
    groups: IntArray = np.unique(part, return_index=True)[1][part].astype(np.int64)
    # A part in which nobody has to be kept apart is one group in the end, in whichever order it is joined.
    apart = apart[part[apart[:, 0]] == part[apart[:, 1]]]
    torn = np.isin(part, part[apart])
    groups[torn] = np.flatnonzero(torn)
    inside = torn[pairs[:, 0]]
    for a, b in _average_linkage(pairs[inside], similarity[inside], sizes, apart):
        groups[groups == b] = a
    return groups


def _average_linkage(
    pairs: IntArray, similarity: Float64Array, sizes: IntArray, apart: IntArray
) -> Iterator[tuple[int, int]]:
    """Each two groups to join, one pair after the other, as their lowest tracklets; see `_join`.

    The strongest link is always the next, of equally strong ones that of the lowest tracklets.
    """
    weight = sizes.tolist()
    strangers: defaultdict[int, set[int]] = defaultdict(set)
    for a, b in apart.tolist():
        strangers[a].add(b)
        strangers[b].add(a)
    links: dict[int, dict[int, float]] = {a: {} for a in pairs.reshape(-1).tolist()}
    for (a, b), total in zip(pairs.tolist(), similarity.tolist(), strict=True):
        if b not in strangers[a]:
            links[a][b] = links[b][a] = total

    def strongest(a: int) -> tuple[float, int, int]:
        return min((-total / (weight[a] * weight[b]), min(a, b), max(a, b)) for b, total in links[a].items())

    # Each group waits with what was its strongest link once. A mean is never above the larger of the two that it is
    # made from, so a group that comes first and still has that link has the strongest of all.
    queue = [(strongest(a), a) for a in links if links[a]]
    heapify(queue)
    while queue:
        link, group = heappop(queue)
        if links.get(group) and link == (now := strongest(group)):
            _, group, other = now
            yield group, other
            _absorb(links, strangers, group, other)
            weight[group] += weight[other]
        if links.get(group):
            heappush(queue, (strongest(group), group))


def _absorb(links: dict[int, dict[int, float]], strangers: defaultdict[int, set[int]], a: int, b: int) -> None:
    """Make group b part of a (in place): its links and strangers become those of a."""
    for c, total in links.pop(b).items():
        del links[c][b]
        if c != a:
            links[a][c] = links[c][a] = links[a].get(c, 0.0) + total
    for c in strangers.pop(b, set()):
        strangers[c].remove(b)
        strangers[c].add(a)
        strangers[a].add(c)
    for c in links[a].keys() & strangers[a]:
        del links[a][c], links[c][a]
