"""Features ranked in each way that is asked for, and the figures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reid.datasets import DISTRACTOR_PID, Crops
from reid.distances import FeatureDistances, Features, Metric, pool_queries
from reid.feature_file import FeatureSet
from reid.ranking import RankingResult, evaluate_ranking
from reid.reranking import RerankConfig, RerankedDistances

_TITLES = {"mAP": "mAP", "mAP_trapezoid": "mAP trapezoid", "mINP": "mINP"}


@dataclass(frozen=True)
class Ranking:
    """One way to rank, and how well it does.

    Attributes:
        distances: (Q, G), rows of which are computed when they are asked for.
        result: the scores.
    """

    distances: FeatureDistances | RerankedDistances
    result: RankingResult


def evaluate_features(
    query: FeatureSet,
    gallery: FeatureSet,
    metric: Metric = "cosine",
    multi_query: FeatureSet | None = None,
    rerank: RerankConfig | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Ranking]:
    """Rank the gallery for each query.

    Args:
        query: features that are looked for.
        gallery: where they are looked for.
        metric: their distance.
        multi_query: images of the queries' people in the queries' cameras (the queries themselves, where there are
            no more); None leaves multi-query out.
        rerank: settings of re-ranking; None leaves it out.
        device: where to compute.

    Returns:
        "single query" and "multi-query", each followed by the same with ", re-ranked".

    Raises:
        ValueError: see `check_queries`, `evaluate_ranking` and `pool_queries`.
    """
    check_queries(query)
    asked: dict[str, Features] = {"single query": query.features}
    if multi_query is not None:
        asked["multi-query"] = pool_queries(
            multi_query.features, multi_query.pids, multi_query.camids, query.pids, query.camids
        )
    labels = (query.pids, gallery.pids, query.camids, gallery.camids)
    rankings = {}
    for name, features in asked.items():
        distances = FeatureDistances(features, gallery.features, metric, device)
        rankings[name] = Ranking(distances, evaluate_ranking(distances, *labels))
        if rerank is not None:
            again = RerankedDistances(features, gallery.features, rerank, metric, device)
            rankings[f"{name}, re-ranked"] = Ranking(again, evaluate_ranking(again, *labels))
    return rankings


def check_queries(query: Crops | FeatureSet) -> None:
    """Raise `ValueError` for a query that shows nobody: a distractor or junk; the image is named."""
    nobody = np.flatnonzero(query.pids <= DISTRACTOR_PID)
    if len(nobody):
        place = int(nobody[0])
        raise ValueError(
            f"{query.paths[place] if isinstance(query, Crops) else query.names[place]}: expected queries of identities "
            f"from 1 (0 is a distractor, -1 junk), got {query.pids[place]}"
        )


def format_table(rankings: Mapping[str, Ranking], ranks: Sequence[int] = (1, 5, 10, 20)) -> str:
    """The figures in per cent, a row for each way to rank, and what they mean."""
    result = next(iter(rankings.values())).result
    width = max(map(len, rankings)) + 2
    titles = {key: _TITLES.get(key, key) for key in result.figures(ranks) if not key.endswith("queries")}
    columns = {key: max(len(title), 6) + 3 for key, title in titles.items()}
    lines = [" " * width + "".join(f"{title:>{columns[key]}}" for key, title in titles.items())]
    for name, one in rankings.items():
        figures = one.result.figures(ranks)
        lines.append(f"{name:<{width}}" + "".join(f"{100 * figures[key]:>{columns[key]}.2f}" for key in titles))
    without = result.queries - result.valid_queries
    counted = f"{without:,} without a match in the gallery do not count" if without else "all with a match"
    return "\n".join([
        *lines,
        "",
        f"per cent; queries: {result.queries:,}, {counted}",
        "mAP: rectangle rule, precision averaged over the matches; trapezoid: rule of Market-1501's own code",
    ])  # fmt: skip
