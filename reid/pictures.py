"""Rank lists as pictures: whom a query finds, in green and red frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.datasets import JUNK_PID, Crops
from reid.distances import DistanceRows
from reid.ranking import RankingResult
from reid.sheets import QUERY, RIGHT, WRONG, Tile, draw_sheet


@dataclass(frozen=True)
class RankList:
    """What one query finds.

    Attributes:
        query: its place among the queries.
        places: (R,) gallery images, nearest first; those that the protocol leaves out are not among them.
        distances: (R,) theirs.
        right: (R,) whether they show the query's person.
    """

    query: int
    places: NDArray[np.int64]
    distances: NDArray[np.floating[Any]]
    right: NDArray[np.bool_]


def rank_list(distances: DistanceRows, place: int, query: Crops, gallery: Crops) -> RankList:
    """The whole ranking of one query, by the rules of `reid.ranking.evaluate_ranking`.

    Args:
        distances: (Q, G), lower is nearer.
        place: which query.
        query: all queries.
        gallery: where they are looked for.
    """
    row = torch.as_tensor(distances[slice(place, place + 1)])[0].float().cpu().numpy()
    same = gallery.pids == query.pids[place]
    kept = np.flatnonzero((gallery.pids != JUNK_PID) & ~(same & (gallery.camids == query.camids[place])))
    order = kept[np.argsort(row[kept], kind="stable")]
    return RankList(place, order, row[order], same[order])


def worst_and_best(result: RankingResult, count: int) -> tuple[list[int], list[int]]:
    """The queries with the lowest average precision, lowest first, and those with the highest; of each `count`.

    Of equally bad ones those come first whose first match comes last. Queries without a match are not among them.
    """
    valid = np.flatnonzero(result.first_ranks > 0)
    precision, first = result.average_precisions[valid], result.first_ranks[valid]
    worst = valid[np.lexsort((-first, precision))]
    best = valid[np.lexsort((first, -precision))]
    return worst[:count].tolist(), best[:count].tolist()


def draw_rank_lists(
    path: str | Path, lists: Sequence[RankList], query: Crops, gallery: Crops, result: RankingResult, count: int = 10
) -> None:
    """Write a PNG with a row for each query: the query, then the nearest images in green or red frames.

    Where none of these is right, the first right one follows. Below an image stand its rank and distance, then identity
    and camera; distractors are identity 0.

    Raises:
        ValueError: an image cannot be read; its file is named.
    """
    rows = []
    for one in lists:
        first = int(result.first_ranks[one.query]) - 1
        groups = [[query_tile(one, query)], [found_tile(one, rank, gallery) for rank in range(len(one.places[:count]))]]
        groups += [[found_tile(one, first, gallery)]] if first >= count else []
        rows.append((headline(one, query, result), groups))
    draw_sheet(path, rows)


def headline(one: RankList, query: Crops, result: RankingResult) -> str:
    """A query's file and how well it did."""
    first = int(result.first_ranks[one.query])
    found = (
        f"AP {result.average_precisions[one.query]:.3f}, first of {int(one.right.sum()):,} matches at rank {first:,}"
    )
    return f"{query.names[one.query]}    {found if first else 'no match in the gallery'}"


def query_tile(one: RankList, query: Crops) -> Tile:
    """The image that is looked for."""
    return Tile(query.read(one.query), ("query", _label(query, one.query)), QUERY)


def found_tile(one: RankList, rank: int, gallery: Crops) -> Tile:
    """The image at a rank, from 0."""
    place = int(one.places[rank])
    lines = (f"{rank + 1}: {one.distances[rank]:.3f}", _label(gallery, place))
    return Tile(gallery.read(place), lines, RIGHT if one.right[rank] else WRONG)


def _label(crops: Crops, place: int) -> str:
    return f"id {crops.pids[place]} c{crops.camids[place]}"
