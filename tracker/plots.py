"""Pictures of an evaluation: HOTA over its thresholds, and which track covered each person when."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracker.challenge import CLASS_AVERAGED, COMBINED
from tracker.comparison import Compared
from tracker.draw import track_colour
from tracker.events import Events
from tracker.files import replacing
from tracker.metrics import HOTA_THRESHOLDS, Figures
from tracker.types import IntArray

_DPI = 150
# More sequences than this are drawn in one colour: nobody could tell so many apart.
_NAMED_SEQUENCES = 30

# Of the timeline, in inches. Rows keep their height, and what is too much for a page goes on another.
_ROW, _ROWS_PER_PAGE = 0.22, 60
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.85, 1.85, 1.15, 0.6
# A pixel for a frame at least, as long as the picture does not get too wide to look at.
_LEAST_WIDTH, _GREATEST_WIDTH = 12.4, 22.0
# In rows: the height of a bar, and the room above the first one.
_BAR, _HEAD = 0.72, 0.3
_LABEL_POINTS = 7.0
_MISSED = -1  # in place of a track id
# No id has these colours: all of theirs are bright, so that black stands out among them.
_MISS_COLOUR, _SWITCH_COLOUR = "black", "#e000c0"


def plot_hota(figures: Mapping[str, Figures], path: str | Path) -> None:
    """Draw HOTA and its parts over the thresholds as a PNG file.

    Thick lines are those of `COMBINED`, or of the only sequence; thin ones the HOTA of each sequence, from blue for the
    best to red for the worst. The legend gives the means, which are the figures that the benchmarks report.

    Args:
        figures: by name of the sequence, with the arrays of `metrics.hota`; as `evaluation.evaluate` returns them.
        path: file to write.

    Raises:
        ValueError: several sequences without `COMBINED`, none at all, or matplotlib is not installed.
        OSError: the file cannot be written; an older one is still there.
    """
    # A class by itself, as in `MOT17-02/3`, is no sequence.
    names = [name for name in figures if name not in (COMBINED, CLASS_AVERAGED) and "/" not in name]
    sequences = {name: figures[name] for name in names}
    only = next(iter(sequences)) if len(sequences) == 1 else None
    if only is None and COMBINED not in figures:
        raise ValueError(f"figures: expected one sequence, or several with {COMBINED}, got {sorted(figures) or 'none'}")
    whole = figures[only or COMBINED]
    named = len(sequences) <= _NAMED_SEQUENCES
    height = max(6.0, 0.6 + 0.21 * (len(sequences) if named else 1) + 4 * 0.21)  # a line of the legend takes 0.21
    figure = _new_figure("plot_hota", 10.0, height, layout="constrained")
    axes = figure.add_subplot()

    def line(of: Figures, name: str, label: str, **style: Any) -> None:
        values = 100 * of[name]
        axes.plot(HOTA_THRESHOLDS, values, label=f"{values.mean():5.1f}  {label}", **style)

    line(whole, "HOTA", "HOTA", color="black", linewidth=3.5, zorder=3)
    line(whole, "DetA", "DetA, detection", color="C0", linewidth=2, linestyle="--", zorder=4)
    line(whole, "AssA", "AssA, association", color="C1", linewidth=2, linestyle="--", zorder=4)
    line(whole, "LocA", "LocA, overlap of what is found", color="0.55", linewidth=2, linestyle=":", zorder=3)
    if only is None:
        _draw_sequences(axes, sequences, named)
    title = only or f"{len(sequences)} sequences together" if sequences else COMBINED
    axes.set(xlim=(0.03, 0.97), ylim=(0, 100), xticks=np.arange(0.1, 0.95, 0.1))
    axes.set(xlabel="overlap (IoU) from which a box counts as found", ylabel="%", title=f"HOTA: {title}")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, title="mean over the thresholds, %", alignment="left")
    _save(figure, path)


def _draw_sequences(axes: Any, sequences: Mapping[str, Figures], named: bool) -> None:
    from matplotlib import colormaps

    means = {name: 100 * float(sequences[name]["HOTA"].mean()) for name in sequences}
    ranked = sorted(sequences, key=lambda name: -means[name])
    grey = "0.7"
    if named:
        axes.plot([], color="none", label="HOTA of each sequence:")
    else:
        span = f"{means[ranked[-1]]:.1f} to {means[ranked[0]]:.1f}"
        axes.plot([], color=grey, linewidth=0.9, label=f"HOTA of each sequence: {span}")
    for place, name in enumerate(ranked):
        colour = colormaps["turbo"](0.05 + 0.9 * place / (len(ranked) - 1)) if named else grey
        label = f"{means[name]:5.1f}  {name}" if named else None
        axes.plot(HOTA_THRESHOLDS, 100 * sequences[name]["HOTA"], color=colour, linewidth=0.9, label=label, zorder=2)


def plot_timeline(compared: Compared, events: Events, path: str | Path, figures: Figures | None = None) -> list[Path]:
    """Draw which track covered each person of the ground truth in each frame, as PNG files.

    A row is a person who is scored, in the order in which they appear; frames in which the person is not in the ground
    truth are left blank. Rows never become too small to read: more people than fit on a page go on further ones, which
    are called `<stem>-page2.png` and so on.

    Args:
        compared: the sequence.
        events: its events, of `events.clear_events`.
        path: file of the first page.
        figures: of the sequence, for the title; None for none.

    Returns:
        The files of all pages.

    Raises:
        ValueError: matplotlib is not installed.
        OSError: a file cannot be written; an older one is still there.
    """
    path = Path(path)
    timeline = _timeline(compared, events)
    count = len(timeline.people)
    pages = max(1, -(-count // _ROWS_PER_PAGE))
    edges = np.linspace(0, count, pages + 1).round().astype(int).tolist()
    frames = (compared.first_frame, compared.first_frame + compared.comparison.frames - 1)
    width = _LEFT + min(max(_LEAST_WIDTH, compared.comparison.frames / _DPI), _GREATEST_WIDTH) + _RIGHT
    title = f"{compared.name}: the track that covers each person of the ground truth"
    if figures is not None:
        title += f"  (MOTA {figures['MOTA']:.1%}, IDF1 {figures['IDF1']:.1%}, IDSW {figures['IDSW']})"
    files = []
    for page, (first, last) in enumerate(itertools.pairwise(edges), start=1):
        of_pages = f"  page {page} of {pages}" if pages > 1 else ""
        height = _TOP + (_HEAD + max(1, last - first)) * _ROW + _BOTTOM
        figure = _new_figure("plot_timeline", width, height)
        _draw_page(figure, timeline, first, last, frames, title + of_pages)
        files.append(path if page == 1 else path.with_name(f"{path.stem}-page{page}{path.suffix}"))
        _save(figure, files[-1])
    return files


@dataclass(frozen=True)
class _Timeline:
    """What became of each person, P in all, in the order in which they appear.

    `people` (P,) are their ids, `found` (P,) the share of their boxes that is covered, `tracks` (P,) the number of ids
    that cover them, `switches` (P,) how often these change. Frames without a break in which one track covers a person,
    or none does, are a run: `rows` (R,) is its person as a place in `people`, `first` and `last` (R,) its frames, `ids`
    (R,) the track. A switch is in row `switch_rows` (S,) at frame `switch_frames` (S,).
    """

    people: IntArray
    found: NDArray[np.float64]
    tracks: IntArray
    switches: IntArray
    rows: IntArray
    first: IntArray
    last: IntArray
    ids: IntArray
    switch_rows: IntArray
    switch_frames: IntArray


def _timeline(compared: Compared, events: Events) -> _Timeline:
    scored = compared.comparison.truth_rows  # by rising frame
    frames, people = compared.truth.frames[scored], compared.truth.track_ids[scored]
    covered = np.full(len(compared.truth), _MISSED)
    pairs, switches = events.of("MATCH", "SWITCH"), events.of("SWITCH")
    covered[pairs.truth_rows] = pairs.track_ids
    ids = covered[scored]

    known, appears, person = np.unique(people, return_index=True, return_inverse=True)
    order = np.lexsort((known, frames[appears]))
    place = np.empty(len(known), np.int64)
    place[order] = np.arange(len(known))
    rows = place[person]

    in_rows = np.lexsort((frames, rows))
    row, frame, track = rows[in_rows], frames[in_rows], ids[in_rows]
    starts = np.ones(len(row), bool)
    starts[1:] = (row[1:] != row[:-1]) | (track[1:] != track[:-1]) | (frame[1:] != frame[:-1] + 1)
    begin = starts.nonzero()[0]
    end = np.append(begin, len(row))[1:] - 1

    found = ids != _MISSED
    row_and_track = np.unique(np.column_stack((rows, ids))[found], axis=0)
    switch_rows = place[known.searchsorted(switches.truth_ids)]
    size = len(known)
    return _Timeline(
        people=known[order],
        found=np.bincount(rows, found, size) / np.maximum(1, np.bincount(rows, minlength=size)),
        tracks=np.bincount(row_and_track[:, 0], minlength=size),
        switches=np.bincount(switch_rows, minlength=size),
        rows=row[begin],
        first=frame[begin],
        last=frame[end],
        ids=track[begin],
        switch_rows=switch_rows,
        switch_frames=switches.frames,
    )


def _draw_page(figure: Any, t: _Timeline, first: int, last: int, frames: tuple[int, int], title: str) -> None:
    """Draw the people from place `first` to before `last`."""
    from matplotlib.ticker import MaxNLocator

    width, height = figure.get_size_inches()
    box = (_LEFT / width, _BOTTOM / height, 1 - (_LEFT + _RIGHT) / width, 1 - (_TOP + _BOTTOM) / height)
    axes = figure.add_axes(box)
    axes.set(xlim=(frames[0] - 0.5, frames[1] + 0.5), ylim=(max(last, first + 1) - 0.5, first - 0.5 - _HEAD))
    axes.set_xlabel("frame")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(np.arange(first, last), t.people[first:last], fontsize=8)
    axes.tick_params(axis="x", top=True, labeltop=True, labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["right", "left"]].set_visible(False)
    inches = width - _LEFT - _RIGHT
    _draw_runs(axes, t, (t.rows >= first) & (t.rows < last), 72 * inches / (frames[1] - frames[0] + 1))
    here = (t.switch_rows >= first) & (t.switch_rows < last)
    # Standing on the bar where the frame begins in which another track takes over.
    places = t.switch_frames[here] - 0.5, t.switch_rows[here] - _BAR / 2 - 0.05
    axes.scatter(
        *places, marker="v", s=42, color=_SWITCH_COLOUR, edgecolors="white", linewidths=0.6, zorder=5, clip_on=False
    )
    _write_figures(axes, t, first, last, inches)
    figure.text(_LEFT / width, 1 - 0.3 / height, title, fontsize=12, weight="bold", va="center")
    _add_legend(figure, width, height)


def _draw_runs(axes: Any, t: _Timeline, here: NDArray[np.bool_], points_a_frame: float) -> None:
    from matplotlib.collections import PolyCollection

    rows, ids, left, right = t.rows[here], t.ids[here], t.first[here] - 0.5, t.last[here] + 0.5
    low, high = rows - _BAR / 2, rows + _BAR / 2
    corners = np.stack((left, low, left, high, right, high, right, low), axis=1).reshape(-1, 4, 2)
    missed = ids == _MISSED
    known, of_run = np.unique(ids, return_inverse=True)
    palette = np.array([track_colour(track_id)[::-1] for track_id in known.tolist()]).reshape(-1, 3) / 255
    colours = palette[of_run]
    axes.add_collection(PolyCollection(corners[~missed], facecolors=colours[~missed], antialiaseds=False, zorder=2))
    # The outline keeps a single missed frame visible where a pixel stands for several.
    style: dict[str, Any] = {"facecolors": _MISS_COLOUR, "edgecolors": _MISS_COLOUR, "linewidths": 0.5, "zorder": 3}
    axes.add_collection(PolyCollection(corners[missed], **style))
    fits = ~missed & ((right - left) * points_a_frame > _LABEL_POINTS * (0.65 * np.char.str_len(ids.astype(str)) + 0.3))
    luminance = colours @ (0.299, 0.587, 0.114)
    for i in fits.nonzero()[0].tolist():
        ink = "black" if luminance[i] > 0.43 else "white"
        middle = ((left[i] + right[i]) / 2, rows[i])
        axes.text(*middle, ids[i], color=ink, fontsize=_LABEL_POINTS, ha="center", va="center_baseline", zorder=4)


def _write_figures(axes: Any, t: _Timeline, first: int, last: int, inches: float) -> None:
    """Write how much of each person was found, by how many tracks, and the switches; and what the columns are."""
    found = [f"{share:.0%}" for share in t.found]
    style = {"fontsize": 8, "ha": "right", "va": "center", "transform": axes.get_yaxis_transform()}
    columns: tuple[tuple[str, float, Any], ...] = (
        ("found", 0.5, found),
        ("tracks", 1.0, t.tracks),
        ("switches", 1.6, t.switches),
    )
    axes.text(-0.05 / inches, first - 1.3, "person", **style)
    for heading, offset, values in columns:
        axes.text(1 + offset / inches, first - 1.3, heading, **style)
        for row in range(first, last):
            axes.text(1 + offset / inches, row, values[row], **style)


def _add_legend(figure: Any, width: float, height: float) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = ["#{2:02x}{1:02x}{0:02x}".format(*track_colour(track_id)) for track_id in (1, 2, 3)]
    figure.legend(
        handles=[
            tuple(Patch(color=colour) for colour in colours),
            Patch(color=_MISS_COLOUR),
            Patch(facecolor="white", edgecolor="0.8"),
            Line2D([], [], marker="v", color=_SWITCH_COLOUR, linestyle="none"),
        ],
        labels=["found: the track's colour and id", "missed", "not there", "switch to another track"],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="center left",
        bbox_to_anchor=(_LEFT / width, 1 - 0.6 / height),
        ncols=4,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        fontsize=9,
    )


def _new_figure(caller: str, width: float, height: float, **options: Any) -> Any:
    """A matplotlib figure of so many inches, without the global state of pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(f"{caller}: matplotlib is not installed (pip install matplotlib)") from None
    return Figure(figsize=(width, height), dpi=_DPI, **options)


def _save(figure: Any, path: str | Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png")
