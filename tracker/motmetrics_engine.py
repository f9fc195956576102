"""The figures as motmetrics computes them: a second opinion on CLEAR and Identity.

motmetrics' own accumulator decides who is matched with whom; overlaps and pre-processing are ours. Identity agrees with
`metrics.identity`. CLEAR differs from `metrics.clear`, the benchmarks' official evaluation, where the definitions leave
room:

- A person goes on with the track of their last match wherever the two still overlap enough, however long ago that was.
  Officially this holds only if it was in the frame before; else overlaps decide.
- Those who go on are matched one after the other. If two had the same track at their last match, the first one in the
  ground truth gets it, and the other may go without.
- Of the rest as many pairs as possible are made, and among equally many those of the greatest overlap. Officially only
  the sum of overlaps counts, so that two good pairs may be better than three poor ones.
- Frag: frames without any result interrupt a person, and frames in which the person is not annotated do not. Officially
  it is the other way round.
- MT: a person found in exactly 80 % of the frames is mostly tracked, officially partially.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import motmetrics
import numpy as np

from tracker.challenge import COMBINED
from tracker.comparison import Compared, Comparison
from tracker.events import Events, list_events
from tracker.metrics import MATCH_THRESH, Figures
from tracker.types import IntArray

# Ours -> motmetrics'.
_RATIOS = {
    "IDF1": "idf1",
    "IDP": "idp",
    "IDR": "idr",
    "MOTA": "mota",
    "MOTP": "motp",
    "CLR_Re": "recall",
    "CLR_Pr": "precision",
}
_COUNTS = {
    "IDTP": "idtp",
    "IDFN": "idfn",
    "IDFP": "idfp",
    "CLR_TP": "num_detections",
    "CLR_FN": "num_misses",
    "CLR_FP": "num_false_positives",
    "IDSW": "num_switches",
    "Frag": "num_fragmentations",
    "MT": "mostly_tracked",
    "PT": "partially_tracked",
    "ML": "mostly_lost",
    "CLR_Frames": "num_frames",
    "Transfer": "num_transfer",
    "Ascend": "num_ascend",
    "Migrate": "num_migrate",
}
# The last two are what the combined figures are computed from.
_ASKED = [*_RATIOS.values(), *_COUNTS.values(), "num_objects", "num_predictions"]


def motmetrics_figures(
    compared: Sequence[Compared], show: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Figures], dict[str, Events]]:
    """Score sequences by motmetrics.

    Args:
        compared: at least one.
        show: is called with the number of sequences done and that of all, after each.

    Returns:
        Figures of each sequence by its name, and of all together as "COMBINED", and the events of each sequence.
        The figures have the names of `metrics.clear` and `metrics.identity`: ratios `IDF1`, `IDP`, `IDR`, `MOTA`,
        `MOTP` (mean overlap, while motmetrics' is a mean distance), `CLR_Re`, `CLR_Pr`; counts `IDTP`, `IDFN`, `IDFP`,
        `CLR_TP`, `CLR_FN`, `CLR_FP`, `IDSW`, `Frag`, `MT`, `PT`, `ML`, `CLR_Frames`; and `Transfer`, `Ascend`,
        `Migrate`, which only motmetrics counts (see `Events`). A ratio that divides by 0 is 0.
    """
    host = motmetrics.metrics.create()
    values: list[dict[str, Any]] = []
    events: dict[str, Events] = {}
    for number, one in enumerate(compared, start=1):
        accumulator = _accumulate(one.comparison, one.first_frame)
        value = host.compute(accumulator, metrics=_ASKED, return_dataframe=False)
        # The combined mean weighs this by the number of pairs: 0 times nan would be nan.
        values.append(value | {"motp": value["motp"] if value["num_detections"] else 0.0})
        events[one.name] = _events(one, accumulator)
        if show:
            show(number, len(compared))
    figures = {one.name: _figures(value) for one, value in zip(compared, values, strict=True)}
    together = host.compute_overall(values, metrics=_ASKED, return_dataframe=False)
    return figures | {COMBINED: _figures(together)}, events


def _accumulate(c: Comparison, first_frame: int) -> Any:
    """The accumulator of motmetrics after all frames, also those without any box."""
    accumulator = motmetrics.MOTAccumulator()
    reaching = (c.similarity >= MATCH_THRESH).nonzero()[0]  # as in Identity: nothing is allowed for rounding
    truth, result, distance = c.pair_truth[reaching], c.pair_result[reaching], 1 - c.similarity[reaching]
    numbers = np.arange(c.frames + 2)
    truth_begin, result_begin, _ = c.begins()
    pair_begin = c.truth_frames[truth].searchsorted(numbers).tolist()
    for frame in range(1, c.frames + 1):
        persons = slice(truth_begin[frame], truth_begin[frame + 1])
        tracks = slice(result_begin[frame], result_begin[frame + 1])
        pairs = slice(pair_begin[frame], pair_begin[frame + 1])
        distances = np.full((persons.stop - persons.start, tracks.stop - tracks.start), np.nan)
        distances[truth[pairs] - persons.start, result[pairs] - tracks.start] = distance[pairs]
        accumulator.update(c.truth_ids[persons], c.result_ids[tracks], distances, frameid=first_frame + frame - 1)
    return accumulator


def _figures(values: dict[str, Any]) -> Figures:
    ratios = {name: float(values[theirs]) for name, theirs in _RATIOS.items()}
    ratios["MOTP"] = 1 - ratios["MOTP"] if values["num_detections"] else 0.0
    counts = {name: round(values[theirs]) for name, theirs in _COUNTS.items()}
    return {name: ratio if math.isfinite(ratio) else 0.0 for name, ratio in ratios.items()} | counts


def _events(compared: Compared, accumulator: Any) -> Events:
    c = compared.comparison
    table = accumulator.mot_events
    table = table[table["OId"].notna() & table["HId"].notna()]
    kinds = table["Type"].to_numpy(np.str_)
    frames = table.index.get_level_values("FrameId").to_numpy(np.int64) - compared.first_frame + 1
    truth = _places(c.truth_frames, c.truth_ids, frames, table["OId"].to_numpy(np.int64))
    result = _places(c.result_frames, c.result_ids, frames, table["HId"].to_numpy(np.int64))

    # The table has no fragments. motmetrics counts one where a person was missed since the last match.
    place_in_life = c.truth_ids.argsort(kind="stable").argsort()
    found = np.isin(kinds, ("MATCH", "SWITCH")).nonzero()[0]
    found = found[place_in_life[truth[found]].argsort()]
    same_person = np.diff(c.truth_ids[truth[found]]) == 0
    again = found[1:][same_person & (np.diff(place_in_life[truth[found]]) > 1)]
    return list_events(
        compared,
        np.append(kinds, np.full(len(again), "FRAGMENT")),
        c.truth_rows[np.append(truth, truth[again])],
        c.result_rows[np.append(result, result[again])],
    )


def _places(of_frames: IntArray, of_ids: IntArray, frames: IntArray, ids: IntArray) -> IntArray:
    """Which of the boxes, given by their frames and ids, has which frame and id."""
    size = of_ids.max(initial=0) + 1
    boxes = of_frames * size + of_ids
    by_number = boxes.argsort()
    return np.asarray(by_number[boxes.searchsorted(frames * size + ids, sorter=by_number)])
