"""Pictures of how a ranking went, some queries on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reid.datasets import Crops
from reid.evaluation import Ranking
from reid.extraction import EncoderDescriber
from reid.heat_maps import draw_heat_maps
from reid.pictures import draw_rank_lists, rank_list, worst_and_best

QUERIES_A_PAGE = 10


def draw_rank_pages(
    folder: Path, ranking: Ranking, query: Crops, gallery: Crops, count: int, chosen: Sequence[int] = ()
) -> Iterator[Path]:
    """Write `ranks-….png`: whom queries find, see `draw_rank_lists`.

    Args:
        folder: where to write.
        ranking: of the queries in the gallery.
        query: all queries.
        gallery: where they are looked for.
        count: of the worst and of the best queries.
        chosen: places of the queries that are shown instead.

    Yields:
        Each file, when it is written.

    Raises:
        ValueError: an image cannot be read; its file is named.
    """
    for name, places in _pages(ranking, count, chosen):
        path = folder / f"ranks-{name}.png"
        lists = [rank_list(ranking.distances, place, query, gallery) for place in places]
        draw_rank_lists(path, lists, query, gallery, ranking.result)
        yield path


def draw_heat_pages(
    folder: Path,
    describer: EncoderDescriber,
    ranking: Ranking,
    query: Crops,
    gallery: Crops,
    count: int,
    chosen: Sequence[int] = (),
) -> Iterator[Path]:
    """Write `heat-….png`: where an encoder looks, see `draw_heat_maps`; the rest as in `draw_rank_pages`."""
    for name, places in _pages(ranking, count, chosen):
        path = folder / f"heat-{name}.png"
        lists = [rank_list(ranking.distances, place, query, gallery) for place in places]
        draw_heat_maps(path, describer, lists, query, gallery, ranking.result)
        yield path


def _pages(ranking: Ranking, count: int, chosen: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
    """Names of pages and the queries on them; pages are numbered where there are several of a kind."""
    worst, best = worst_and_best(ranking.result, count)
    for name, places in {"chosen": chosen}.items() if chosen else (("worst", worst), ("best", best)):
        for start in range(0, len(places), QUERIES_A_PAGE):
            number = f"-{start // QUERIES_A_PAGE + 1}" if len(places) > QUERIES_A_PAGE else ""
            yield f"{name}{number}", places[start : start + QUERIES_A_PAGE]
