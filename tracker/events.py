"""The event list of an evaluation: who was found, missed, switched or invented, in which frame, and where.

It is what `metrics.clear` counts, one by one, so that every figure can be looked up in the pictures.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracker.boxes import iou_of_edges, tlwh_to_xyxy
from tracker.comparison import Compared
from tracker.files import replacing
from tracker.metrics import clear_matches
from tracker.types import IntArray

KINDS = ("MATCH", "SWITCH", "FRAGMENT", "TRANSFER", "ASCEND", "MIGRATE", "MISS", "FP")
"""Kinds of events, in the order in which they stand within a frame; see `Events`."""

_HEADER = "sequence,frame,event,gt_id,track_id,previous_track_id,iou,left,top,width,height"


@dataclass(frozen=True)
class Events:
    """The E events of one sequence: by frame, then by kind in the order of `KINDS`, then by person and track.

    Each box of the ground truth has exactly one of `MATCH` (found), `SWITCH` (found, but by another track than the last
    time) and `MISS`; each box of the result that finds nobody has an `FP`. The other kinds come in addition, for the
    same pair of boxes: `FRAGMENT` (found again after an interruption), and motmetrics' `TRANSFER` (by a track that has
    been with another person), `ASCEND` (a switch to a track that is new) and `MIGRATE` (a transfer to a person who is
    new).

    Attributes:
        frames: (E,) number of the frame in the file.
        kinds: (E,) of `KINDS`.
        truth_ids: (E,) the person; -1: none.
        track_ids: (E,) the track; -1: none.
        previous_ids: (E,) of a SWITCH, the track that found this person the last time; else -1.
        overlaps: (E,) intersection over union of the pair; nan where there is no pair.
        tlwh: (E, 4) left, top, width, height in pixels of the person's box in the ground truth; of an FP, the result's.
        truth_rows: (E,) row of `Compared.truth`; -1: none.
        result_rows: (E,) row of `Compared.results`; -1: none.
    """

    frames: IntArray
    kinds: NDArray[np.str_]
    truth_ids: IntArray
    track_ids: IntArray
    previous_ids: IntArray
    overlaps: NDArray[np.float64]
    tlwh: NDArray[np.float64]
    truth_rows: IntArray
    result_rows: IntArray

    def __len__(self) -> int:
        return len(self.frames)

    def of(self, *kinds: str) -> Events:
        """Those of some kinds alone."""
        chosen = np.isin(self.kinds, kinds)
        return Events(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def clear_events(compared: Compared) -> Events:
    """The events behind the figures of `metrics.clear`.

    MATCH and SWITCH together are its CLR_TP, MISS its CLR_FN, FP its CLR_FP, SWITCH its IDSW, FRAGMENT its Frag.
    """
    c = compared.comparison
    found = clear_matches(c)
    truth, result = c.pair_truth[found.pairs], c.pair_result[found.pairs]
    return list_events(
        compared,
        np.append(np.where(found.switched, "SWITCH", "MATCH"), np.full(found.resumed.sum(), "FRAGMENT")),
        c.truth_rows[np.append(truth, truth[found.resumed])],
        c.result_rows[np.append(result, result[found.resumed])],
    )


def list_events(compared: Compared, kinds: NDArray[np.str_], truth_rows: IntArray, result_rows: IntArray) -> Events:
    """The events of a sequence from what happens to its pairs of boxes, in any order.

    Args:
        compared: the sequence.
        kinds: (K,) what happens; MATCH or SWITCH exactly once for each pair.
        truth_rows: (K,) row of the pair's box in `compared.truth`.
        result_rows: (K,) row of the pair's box in `compared.results`.

    Returns:
        These events, and a MISS or an FP for each of the compared boxes that is in no pair.
    """
    truth, results = compared.truth, compared.results
    missed = np.setdiff1d(compared.comparison.truth_rows, truth_rows)
    wrong = np.setdiff1d(compared.comparison.result_rows, result_rows)
    pairs = np.arange(len(kinds) + len(missed) + len(wrong)) < len(kinds)
    kinds = np.concatenate([kinds, np.full(len(missed), "MISS"), np.full(len(wrong), "FP")])
    truth_rows = np.concatenate([truth_rows, missed, np.full(len(wrong), -1)])
    result_rows = np.concatenate([result_rows, np.full(len(missed), -1), wrong])

    # Row -1 is the one that is appended: "none".
    truth_ids = np.append(truth.track_ids, -1)[truth_rows]
    track_ids = np.append(results.track_ids, -1)[result_rows]
    frames = np.maximum(np.append(truth.frames, -1)[truth_rows], np.append(results.frames, -1)[result_rows])
    overlaps = np.full(len(kinds), np.nan)
    sides = truth.tlwh[truth_rows[pairs]], results.tlwh[result_rows[pairs]]
    overlaps[pairs] = iou_of_edges(*(tlwh_to_xyxy(tlwh).T for tlwh in sides))
    tlwh = np.concatenate([truth.tlwh[truth_rows[truth_rows >= 0]], results.tlwh[wrong]])

    by_name = np.argsort(KINDS)
    rank = by_name[np.searchsorted(KINDS, kinds, sorter=by_name)]
    order = np.lexsort((track_ids, truth_ids, rank, frames))
    kinds, truth_ids, track_ids = kinds[order], truth_ids[order], track_ids[order]
    return Events(
        frames=frames[order],
        kinds=kinds,
        truth_ids=truth_ids,
        track_ids=track_ids,
        previous_ids=_previous_ids(kinds, truth_ids, track_ids),
        overlaps=overlaps[order],
        tlwh=tlwh[order],
        truth_rows=truth_rows[order],
        result_rows=result_rows[order],
    )


def _previous_ids(kinds: NDArray[np.str_], truth_ids: IntArray, track_ids: IntArray) -> IntArray:
    """Of each SWITCH (E,), by rising frame, the track that found this person the last time; -1 elsewhere."""
    found = np.isin(kinds, ("MATCH", "SWITCH")).nonzero()[0]
    found = found[truth_ids[found].argsort(kind="stable")]
    previous = np.full(len(kinds), -1)
    previous[found[1:]] = track_ids[found[:-1]]
    return np.where(kinds == "SWITCH", previous, -1)


def write_events(path: str | Path, events: Mapping[str, Events], kinds: Collection[str] | None = None) -> None:
    """Write the events of several sequences as CSV: beside its place, then renamed.

    Columns: `sequence,frame,event,gt_id,track_id,previous_track_id,iou,left,top,width,height`. What an event does not
    have is empty. The box is the person's in the ground truth, or the result's where there is no person.

    Args:
        path: the file.
        events: of each sequence, by its name.
        kinds: those to write, of `KINDS`; None: all but MATCH.

    Raises:
        ValueError: an unknown kind.
        OSError: the file cannot be written; an older one is still there.
    """
    kinds = KINDS[1:] if kinds is None else kinds
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {kind!r}")
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER.split(","))
        for name, of_sequence in events.items():
            writer.writerows(_lines(name, of_sequence.of(*kinds)))


def _lines(name: str, events: Events) -> Iterator[list[str]]:
    ids = np.stack([events.truth_ids, events.track_ids, events.previous_ids], axis=1)
    columns = (events.frames, events.kinds, ids, events.overlaps, events.tlwh)
    for frame, kind, numbers, overlap, box in zip(*(column.tolist() for column in columns), strict=True):
        known = ("" if number == -1 else f"{number}" for number in numbers)
        iou = "" if math.isnan(overlap) else f"{overlap:.4f}"
        yield [name, f"{frame}", kind, *known, iou, *(f"{value:.2f}" for value in box)]
