"""Distances between features, computed a few rows at a time, so that no (Q, G) matrix need ever exist."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features: TypeAlias = "NDArray[np.floating[Any]] | Tensor"
"""(N, D), one image a row."""

Metric = Literal["cosine", "euclidean"]


class DistanceRows(Protocol):
    """A (Q, G) matrix of distances that gives slices of rows: an array, a tensor, or one that computes them."""

    @property
    def shape(self) -> Any:
        """(Q, G)."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Distances (B, G) of some queries, an array or a tensor on any device."""


class FeatureDistances:
    """Distances of queries to a gallery by their features; rows are computed when they are asked for.

    `distances[a:b]` is a tensor (b - a, G) on the features' device. Half precision is computed in float32.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        metric: Metric = "cosine",
        device: str | torch.device | None = None,
    ) -> None:
        """Check the features and their lengths; nothing is copied that is float32 and on the device already.

        Args:
            query: (Q, D).
            gallery: (G, D).
            metric: "cosine" is 1 - cos in [0, 2], whatever the lengths of the features (1 for a row of zeros);
                "euclidean" takes them as they are; in float32 what differs by less than some thousandth of their
                length coincides.
            device: where to compute; None: where the query features are.

        Raises:
            ValueError: an unknown metric, shapes that do not fit, or a row that is not finite.
        """
        check_metric(metric)
        self._query, self._gallery = feature_pair(query, gallery, device)
        self._metric = metric
        lengths = [squared_lengths(rows) for rows in (self._query, self._gallery)]
        if metric == "cosine":
            lengths = [each.clamp(min=torch.finfo(each.dtype).tiny).rsqrt() for each in lengths]
        self._query_lengths, self._gallery_lengths = lengths  # squared; for the cosine what brings rows to unit length

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, G)."""
        return len(self._query), len(self._gallery)

    def __getitem__(self, rows: slice) -> Tensor:
        query, lengths = self._query[rows], self._query_lengths[rows, None]
        if self._metric == "cosine":
            # Scaling the products instead of the gallery spares a second gallery in memory.
            cosines = ((query * lengths) @ self._gallery.T).mul_(self._gallery_lengths)
            return torch.sub(1, cosines)
        squared = self._gallery_lengths + lengths
        return squared.sub_(query @ self._gallery.T, alpha=2).clamp_(min=0).sqrt_()


def pool_queries(
    features: Features,
    pids: NDArray[np.integer[Any]],
    camids: NDArray[np.integer[Any]],
    query_pids: NDArray[np.integer[Any]],
    query_camids: NDArray[np.integer[Any]],
) -> Tensor:
    """Multi-query of Market-1501 (Zheng et al., ICCV 2015): one feature of all images of a query's person and camera.

    Each image counts with unit length, however long its feature is. Rank with the result in place of the query
    features, by cosine distance.

    Args:
        features: (M, D) of the images to pool, Market's `gt_bbox` or the queries themselves.
        pids: (M,) their identities.
        camids: (M,) their cameras.
        query_pids: (Q,) identities of the queries.
        query_camids: (Q,) cameras of the queries.

    Returns:
        (Q, D), one row for each query; queries of one person and camera have equal rows.

    Raises:
        ValueError: shapes that do not fit, a row that is not finite, or a query without an image to pool.
    """
    rows = torch.nn.functional.normalize(check_features(features, "features"), dim=1)
    check_labels(len(rows), pids=pids, camids=camids)
    check_labels(len(query_pids), query_camids=query_camids)
    found = np.stack((pids, camids))
    groups, group_of = np.unique(found, axis=1, return_inverse=True)
    place = {(int(pid), int(camid)): i for i, (pid, camid) in enumerate(groups.T)}
    wanted = []
    for row, key in enumerate(zip(query_pids.tolist(), query_camids.tolist(), strict=True)):
        if key not in place:
            raise ValueError(
                f"features: expected an image of person {key[0]} seen by camera {key[1]}, as in query {row}, got none"
            )
        wanted.append(place[key])
    index = torch.from_numpy(group_of.reshape(-1)).to(rows.device)[:, None].expand_as(rows)
    pooled = rows.new_zeros(groups.shape[1], rows.shape[1])
    pooled.scatter_reduce_(0, index, rows, "mean", include_self=False)
    return pooled[torch.tensor(wanted, dtype=torch.int64, device=rows.device)]


def feature_pair(query: Features, gallery: Features, device: str | torch.device | None) -> tuple[Tensor, Tensor]:
    """Both sides checked, with one precision and on one device (None: the query features')."""
    first, second = check_features(query, "query"), check_features(gallery, "gallery")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"gallery: expected features of length {first.shape[1]}, as the queries', got {second.shape[1]}"
        )
    dtype = torch.promote_types(first.dtype, second.dtype)
    place = first.device if device is None else torch.device(device)
    return first.to(place, dtype), second.to(place, dtype)


def check_features(features: Features, name: str) -> Tensor:
    """Features (N, D) as a tensor of float32 or float64.

    Raises:
        ValueError: another shape, or a row that is not finite; `name` and the row are named.
    """
    rows = torch.as_tensor(features)
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected features of shape (N, D), got {tuple(rows.shape)}")
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    # A row's length tells without temporary arrays of the features' size.
    bad = (~torch.isfinite(torch.linalg.vector_norm(rows, dim=1))).nonzero()
    if len(bad):
        raise ValueError(
            f"{name}: expected finite features, got NaN or infinity in row {int(bad[0])} ({len(bad)} in all)"
        )
    return rows


def squared_lengths(features: Tensor) -> Tensor:
    """Squared Euclidean lengths (N,) of features (N, D), without a temporary array of their size."""
    return torch.einsum("nd,nd->n", features, features)


def check_labels(length: int, **labels: NDArray[np.integer[Any]]) -> None:
    """Raise `ValueError` for the first of the named label arrays whose shape is not (length,)."""
    for name, values in labels.items():
        if values.shape != (length,):
            raise ValueError(f"{name}: expected shape ({length},), got {values.shape}")


def check_metric(metric: str) -> None:
    """Raise `ValueError` for an unknown metric."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric: expected one of {', '.join(get_args(Metric))}, got {metric!r}")
