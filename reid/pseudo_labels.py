"""Pseudo-labels: clusters of images on the sparse graph of their distances, and how good these are.

Every clustering takes the graph of `reid/jaccard.py`, in which a pair that is not stored is 1 apart, and no dense
matrix is made from it. Without labels an image of a cluster has the cluster's number for a person, and an image of
none is an outlier, left out of the epoch (Ester et al., "A Density-Based Algorithm for Discovering Clusters", KDD
1996, as used by Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV 2022).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.map_equation import communities
from reid.reciprocal import row_numbers

Labels = NDArray[np.int64]

# HDBSCAN divides by distances, and a spanning tree in SciPy loses edges of length zero.
_LEAST_DISTANCE = 1e-6
# Images that count against the mean of a camera.
_CAMERA_PRIOR = 10
# From this share of outliers on there is too little to learn from.
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class ClusterConfig:
    """How images are clustered."""

    method: Literal["dbscan", "hdbscan", "infomap"] = "dbscan"
    """`dbscan`: the paper's. `hdbscan`: clusters of any density, without eps (Campello et al., PAKDD 2013). `infomap`:
    communities of the graph by the map equation (Rosvall and Bergstrom, PNAS 2008)."""
    eps: float = 0.6
    """Largest distance of neighbours, above 0 and below 1; not used by `hdbscan`."""
    min_samples: int = 4
    """Neighbours of a core image, itself counted (`dbscan`, `hdbscan`); smallest community (`infomap`)."""
    min_cluster_size: int = 4
    """Smallest cluster of `hdbscan`, at least 2."""
    selection: Literal["eom", "leaf"] = "eom"
    """Which clusters of its hierarchy `hdbscan` takes: the most stable ones, or all leaves, which are smaller and more
    alike in size."""
    seed: int = 0
    """Order in which `infomap` visits the images."""
    centre_cameras: bool = False
    """Compare images by what is left of their features without their camera's mean, see `centre_cameras`. Not in the
    paper. Where cameras differ so much that clusters are one camera's each, it brings them together."""

    def __post_init__(self) -> None:
        if self.method not in ("dbscan", "hdbscan", "infomap"):
            raise ValueError(f"method: expected dbscan, hdbscan or infomap, got {self.method!r}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps: expected a distance above 0 and below 1, got {self.eps}")
        if self.min_samples < 1:
            raise ValueError(f"min_samples: expected at least 1, got {self.min_samples}")
        if self.min_cluster_size < 2:
            raise ValueError(f"min_cluster_size: expected at least 2, got {self.min_cluster_size}")
        if self.selection not in ("eom", "leaf"):
            raise ValueError(f"selection: expected eom or leaf, got {self.selection!r}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")

    @property
    def max_distance(self) -> float:
        """Distances up to here decide, so that a graph needs to hold no others."""
        return 1.0 if self.method == "hdbscan" else self.eps


def centre_cameras(features: Tensor, camids: Tensor) -> Tensor:
    """Features less the mean of their camera, which tells the camera's colours more than anybody's looks.

    Of n images the mean counts n / (n + 10): a few do not tell what a camera does to them.

    Args:
        features: (N, D) unit rows.
        camids: (N,).

    Returns:
        (N, D), of any length.
    """
    _, camera = torch.unique(camids.to(features.device), return_inverse=True)
    counts = torch.bincount(camera)
    sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, camera, features)
    return features - (sums / (counts[:, None] + _CAMERA_PRIOR))[camera]


@dataclass(frozen=True)
class ClusterReport:
    """What came out of a clustering. The last three are None where no true identity is known.

    Attributes:
        images: all images.
        clusters: clusters found.
        outliers: images in no cluster.
        largest: images of the largest cluster.
        nmi: normalised mutual information (arithmetic mean) with the true identities, in [0, 1]. This and the next
            two are figures of the images that are in a cluster and have a known identity.
        ari: adjusted Rand index, at most 1, 0 by chance.
        purity: share of the images whose identity is the most frequent one of their cluster.
    """

    images: int
    clusters: int
    outliers: int
    largest: int
    nmi: float | None = None
    ari: float | None = None
    purity: float | None = None

    def figures(self) -> dict[str, float]:
        """All that is known, by name, for logs and curves."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def cluster_graph(graph: sp.csr_array, config: ClusterConfig | None = None) -> Labels:
    """Cluster images by their distances.

    Args:
        graph: (N, N) symmetric distances in [0, 1], stored where they are below 1, zeros and the diagonal included, as
            by `jaccard_graph`; it may stop at `config.max_distance`.
        config: the settings; None: the defaults.

    Returns:
        (N,) clusters from 0 in order of first appearance, -1 for outliers. The same graph and settings give the same.

    Raises:
        ValueError: the graph is not sparse, not square, has other values, or lacks its diagonal.
    """
    config = config or ClusterConfig()
    if not sp.issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"graph: expected a square sparse matrix, got {getattr(graph, 'shape', type(graph).__name__)}")
    if graph.nnz and not (graph.data.min() >= 0 and graph.data.max() <= 1):
        raise ValueError(f"graph: expected distances in [0, 1], got {graph.data.min()} to {graph.data.max()}")
    if graph.shape[0] == 0:
        return np.zeros(0, np.int64)
    graph = sp.csr_array(graph)
    itself = row_numbers(graph) == graph.indices
    if itself.sum() != graph.shape[0] or graph.data[itself].any():
        raise ValueError("graph: expected all of its diagonal stored, as 0")
    cluster = {"dbscan": _dbscan, "hdbscan": _hdbscan, "infomap": _infomap}[config.method]
    return _in_order(cluster(graph, config))


def describe_labels(labels: ArrayLike, pids: ArrayLike | None = None) -> ClusterReport:
    """Count clusters and outliers, and compare with the true identities where these are known.

    Args:
        labels: (N,) clusters from 0, -1 for outliers.
        pids: (N,) true identities, 0 and below for images whose identity is not known; None: none is known.

    Raises:
        ValueError: labels and pids differ in length.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels = np.asarray(labels, np.int64)
    sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
    report = {
        "images": len(labels),
        "clusters": len(sizes),
        "outliers": int((labels < 0).sum()),
        "largest": int(sizes.max(initial=0)),
    }
    if pids is None:
        return ClusterReport(**report)
    pids = np.asarray(pids, np.int64)
    if pids.shape != labels.shape:
        raise ValueError(f"pids: expected one of each of {len(labels)} labels, got shape {pids.shape}")
    seen = (labels >= 0) & (pids > 0)
    if not seen.any():
        return ClusterReport(**report)
    labels, pids = labels[seen], pids[seen]
    pairs, counts = np.unique(np.stack((labels, pids)), axis=1, return_counts=True)
    most = np.zeros(labels.max() + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    return ClusterReport(
        **report,
        nmi=float(normalized_mutual_info_score(pids, labels)),
        ari=float(adjusted_rand_score(pids, labels)),
        purity=float(most.sum() / len(labels)),
    )


def advice(report: ClusterReport, config: ClusterConfig) -> str | None:
    """What to change where clusters are of no use to learn from: none, a single one, or nearly all images outliers.

    Returns:
        One line for the user, or None where all is well.
    """
    if report.images < 2:
        return f"too few images to cluster ({report.images}): give several images each of two people and more"
    eps, samples = f"eps ({config.eps:g})", f"min_samples ({config.min_samples})"
    size = f"min_cluster_size ({config.min_cluster_size})"
    more = {
        "dbscan": f"raise {eps}, lower {samples}",
        "hdbscan": f"lower {size} or {samples}, try method dbscan",
        "infomap": f"raise {eps}, lower {samples}",
    }[config.method]
    more += ", give more images of each person, or lower k1 of the Jaccard distance if people have few images"
    if report.clusters == 0:
        return f"no cluster, all {report.images} images are outliers: {more}"
    if report.clusters == 1:
        finer = {
            "dbscan": f"lower {eps} or raise {samples}",
            "hdbscan": f"lower {size} or take selection leaf",
            "infomap": f"lower {eps}",
        }[config.method]
        return (
            f"a single cluster ({report.largest} of {report.images} images), nobody to tell apart: {finer}, lower "
            "k1 of the Jaccard distance, or give images of more people"
        )
    if report.outliers > _NEARLY_ALL * report.images:
        return f"{report.outliers} of {report.images} images are outliers: {more}"
    return None


def _dbscan(graph: sp.csr_array, config: ClusterConfig) -> Labels:
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    near = sort_graph_by_row_values(sp.csr_matrix(_within(graph, config.eps)), warn_when_not_sorted=False)
    labels: Labels = DBSCAN(eps=config.eps, min_samples=config.min_samples, metric="precomputed").fit(near).labels_
    return labels


def _hdbscan(graph: sp.csr_array, config: ClusterConfig) -> Labels:
    """HDBSCAN as on the dense matrix, where images that are not neighbours are 1 apart.

    scikit-learn wants one connected graph with several neighbours for everybody, and needs no more of it than a
    spanning tree of the mutual reachability distances: it gets this. Components meet at a distance of 1. One that is
    smaller than a cluster is no part of any; the others are each tied to the first, so that no two of them merge before
    the rest.
    """
    from sklearn.cluster import HDBSCAN

    forest = sp.csgraph.minimum_spanning_tree(_mutual_reachability(graph, config.min_samples))
    _, component = sp.csgraph.connected_components(forest, directed=False)
    kept = np.flatnonzero(np.bincount(component)[component] >= config.min_cluster_size)
    labels = np.full(len(component), -1, np.int64)
    if not len(kept):
        return labels
    forest = sp.csr_array(forest)[kept][:, kept].tocoo()
    firsts = np.unique(component[kept], return_index=True)[1]
    rows = np.concatenate((forest.row, np.full(len(firsts) - 1, firsts[0])))
    columns = np.concatenate((forest.col, firsts[1:]))
    tree = sp.csr_matrix((np.append(forest.data, np.ones(len(firsts) - 1)), (rows, columns)), shape=forest.shape)
    search = HDBSCAN(
        min_cluster_size=config.min_cluster_size,
        min_samples=1,  # the tree knows of the others
        metric="precomputed",
        cluster_selection_method=config.selection,
        copy=True,
    )
    labels[kept] = search.fit_predict(tree + tree.T)
    return labels


def _mutual_reachability(graph: sp.csr_array, min_samples: int) -> sp.csr_array:
    """Distances of at least both images' core distances, where they are below 1; the upper triangle."""
    core = np.ones(graph.shape[0])
    for image, row in enumerate(np.split(graph.data, graph.indptr[1:-1])):
        if len(row) >= min_samples:
            core[image] = np.partition(row, min_samples - 1)[min_samples - 1]
    pairs = sp.triu(graph, 1, format="coo")
    reach = np.maximum(np.maximum(core[pairs.row], core[pairs.col]), pairs.data).clip(_LEAST_DISTANCE)
    near = reach < 1
    return sp.csr_array((reach[near], (pairs.row[near], pairs.col[near])), shape=graph.shape)


def _infomap(graph: sp.csr_array, config: ClusterConfig) -> Labels:
    similarity = _within(graph, config.eps)
    similarity.data = 1 - similarity.data
    similarity.data[row_numbers(similarity) == similarity.indices] = 0
    labels = communities(similarity.maximum(similarity.T), seed=config.seed)
    return np.where(np.bincount(labels)[labels] >= config.min_samples, labels, -1)


def _within(graph: sp.csr_array, eps: float) -> sp.csr_array:
    """What is stored of distances up to eps, zeros among it."""
    pairs = graph.tocoo()
    near = pairs.data <= eps
    return sp.csr_array((pairs.data[near], (pairs.row[near], pairs.col[near])), shape=graph.shape)


def _in_order(labels: Labels) -> Labels:
    """Numbers from 0 in order of first appearance; outliers stay -1."""
    found, firsts, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.full(len(found), -1, np.int64)
    clusters = np.flatnonzero(found >= 0)
    rank[clusters[np.argsort(firsts[clusters])]] = np.arange(len(clusters))
    return rank[inverse]
