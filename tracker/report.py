"""What an evaluation leaves behind: an aligned table, JSON, CSV, a list of events, pictures, films."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracker.challenge import CLASS_AVERAGED, COMBINED
from tracker.comparison import Compared
from tracker.console import meter
from tracker.error_film import write_error_film
from tracker.events import Events, write_events
from tracker.files import write_text
from tracker.metrics import HOTA_THRESHOLDS, Figures, summary
from tracker.mot import MotSequence
from tracker.output import claim
from tracker.plots import plot_hota, plot_timeline

# What the table shows: heading, name of the figure. Ratios are in per cent, counts as they are.
_RATIOS = {name: name for name in ("HOTA", "DetA", "AssA", "LocA", "MOTA", "MOTP", "IDF1", "IDP", "IDR")}
_COUNTS = {"IDSW": "IDSW", "FP": "CLR_FP", "FN": "CLR_FN", "MT": "MT", "PT": "PT", "ML": "ML", "Frag": "Frag"}


def format_table(figures: Mapping[str, Figures]) -> str:
    """An aligned table: a line for each name, and below a rule what puts several together.

    Ratios are in per cent. Figures that the engine does not have are left out, and so is "COMBINED" of one sequence.
    """
    named = {name: summary(one) for name, one in figures.items()}
    if len(named) == 2:
        named.pop(COMBINED, None)
    first = next(iter(named.values()))
    headings = [heading for heading, name in (_RATIOS | _COUNTS).items() if name in first]
    rows = [["%", *headings]]
    for name, one in named.items():
        ratios = [f"{100 * one[figure]:.2f}" for figure in _RATIOS.values() if figure in one]
        rows.append([name, *ratios, *(f"{one[figure]:.0f}" for figure in _COUNTS.values() if figure in one)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    together = sum(name.split("/")[0] in (COMBINED, CLASS_AVERAGED) for name in named)
    rule = "-" * len(lines[0])
    blocks = [lines[:1], lines[1 : len(lines) - together], lines[len(lines) - together :]]
    return f"\n{rule}\n".join("\n".join(block) for block in blocks if block)


def write_json(path: str | Path, figures: Mapping[str, Figures]) -> None:
    """Write all figures by name as JSON: one number each, ratios in [0, 1] (MOTA and the like up to 1)."""
    numbers = {name: {key: _number(value) for key, value in summary(one).items()} for name, one in figures.items()}
    write_text(path, json.dumps(numbers, indent=1) + "\n")


def write_csv(path: str | Path, figures: Mapping[str, Figures]) -> None:
    """Write all figures as a table of comma-separated values, a line for each name.

    What HOTA has for each threshold follows at the end, as in `HOTA@0.50`.
    """
    rows: list[dict[str, Any]] = []
    for name, one in figures.items():
        row: dict[str, Any] = {"sequence": name}
        row |= {key: _number(value) for key, value in summary(one).items()}
        for key, value in one.items():
            if isinstance(value, np.ndarray):
                row |= {f"{key}@{at:.2f}": _number(v) for at, v in zip(HOTA_THRESHOLDS, value.tolist(), strict=True)}
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _number(value: Any) -> int | float:
    """A plain number: counts stay without a fraction."""
    return int(value) if isinstance(value, int | np.integer) else float(value)


@dataclass
class Places:
    """Where the parts of a report go; None for those that are not wanted.

    Attributes:
        scores: JSON of all figures.
        table: CSV of all figures.
        events: CSV of all events.
        settings: JSON of how the figures came about.
        plots: folder of pictures.
        films: folder of videos.
    """

    scores: Path | None = None
    table: Path | None = None
    events: Path | None = None
    settings: Path | None = None
    plots: Path | None = None
    films: Path | None = None

    def claim(self, inputs: Iterable[Path], others: Iterable[Path] = ()) -> None:
        """Make sure that nothing is overwritten that is read, or written twice.

        Args:
            inputs: files that are read.
            others: further files that will be written.

        Raises:
            ValueError: names the place; also where it cannot be written.
        """
        taken = {path.resolve(): "an input" for path in inputs}
        for path in (self.scores, self.table, self.events, self.settings, *others):
            if path:
                claim(path, taken)
        for folder in (self.plots, self.films):
            if folder and folder.exists() and not folder.is_dir():
                raise ValueError(f"{folder}: expected a folder, got a file")

    @property
    def details(self) -> bool:
        """Whether events are needed."""
        return bool(self.events or self.plots or self.films)


def write_report(
    places: Places,
    figures: Mapping[str, Figures],
    settings: Mapping[str, Any],
    compared: Mapping[str, Compared],
    events: Mapping[str, Events],
) -> list[Path]:
    """Write all but the films; returns what has been written.

    Args:
        places: where to.
        figures: by name.
        settings: how they came about.
        compared: the sequences by name; where there are events or plots.
        events: of these.
    """
    if places.scores:
        write_json(places.scores, figures)
    if places.table:
        write_csv(places.table, figures)
    if places.settings:
        write_text(places.settings, json.dumps(settings, indent=1) + "\n")
    if places.events:
        write_events(places.events, events)
    if places.plots:
        timelines = places.plots / "timelines"
        timelines.mkdir(parents=True, exist_ok=True)
        if "HOTA" in next(iter(figures.values())):
            plot_hota(figures, places.plots / "hota.png")
        with meter("drawing", "timelines") as show:
            for number, (name, one) in enumerate(compared.items(), start=1):
                plot_timeline(one, events[name], timelines / f"{_file_name(name)}.png", figures[name])
                show(number, len(compared))
    return [path for path in (places.scores, places.table, places.settings, places.events, places.plots) if path]


def write_films(
    folder: Path, compared: Mapping[str, Compared], events: Mapping[str, Events], sequences: Sequence[MotSequence]
) -> Iterator[Path]:
    """Write a film of what is wrong in each sequence, and say its path when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for sequence, (name, one) in zip(sequences, compared.items(), strict=True):
        path = folder / f"{_file_name(name)}.errors.mp4"
        write_error_film(one, events[name], sequence.image_dir, path, sequence.frame_rate)
        yield path


def list_switches(events: Mapping[str, Events]) -> Iterator[str]:
    """Who was taken for whom, and where tracks broke off: a line each."""
    for name, every in events.items():
        some = every.of("SWITCH", "FRAGMENT")
        columns = (some.frames, some.kinds, some.truth_ids, some.track_ids, some.previous_ids, some.overlaps)
        for frame, kind, person, track_id, before, overlap in zip(*(c.tolist() for c in columns), strict=True):
            what = f"{before} -> {track_id}" if kind == "SWITCH" else f"found again by {track_id}"
            yield f"{name} frame {frame}: {kind} of person {person}, {what} (IoU {overlap:.2f})"


def _file_name(name: str) -> str:
    """A name without the slash before its class."""
    return name.replace("/", "-class")
