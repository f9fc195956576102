"""Inputs on their way to their results: the loop behind `tools/track.py`, and its summary."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracker.console import counted, hold_signals, meter, one_line, progress, say
from tracker.global_ids import join_cameras
from tracker.offline import OfflineConfig, refine
from tracker.output import Output, rewritten
from tracker.sources import Source, SourceError
from tracker.trajectories import Recorder, Trajectories
from tracker.types import FrameResult
from tracker.video import Frame

Results = Generator[tuple[int, Frame | None, FrameResult], None, None]
"""The index of a run, the picture where there is one, and the result."""
Show = Callable[[int, Frame, FrameResult], bool]


@dataclass(eq=False)
class Run:
    """One input, what is written of it, and how it went.

    Attributes:
        location: the input as messages call it.
        output: what is written.
        first_frame: number of the first frame.
        last_frame: number of the last one as far as it is known.
        live: whether frames may be dropped.
        recorder: collects the results where they are to be refined.
        film: the video of the refined results, drawn on the pictures that `reopen` gives once more; None for none.
        reopen: opens the input anew.
        refined: whether the text holds refined results.
        dropped: frames that were dropped.
        error: what ended it early.
    """

    location: str
    output: Output
    first_frame: int = 1
    last_frame: int | None = None
    live: bool = False
    recorder: Recorder | None = None
    film: Path | None = None
    reopen: Callable[[], Source] | None = None
    refined: bool = False
    dropped: int = 0
    error: BaseException | None = None


class Session:
    """Runs that go on side by side, from the first frame to the summary.

    Attributes:
        runs: one for each input.
        seconds: on the clock under `total`, then in each stage; stages may overlap.
        stopped: what ended it early; None while nothing did.
        joined: whether the ids of all runs are of one space.

    Args:
        runs: their outputs are closed at the end.
        stages: seconds of the stages before `write`; read at the end.
        offline: how results are refined at the end; the runs have a recorder then.
    """

    def __init__(self, runs: Sequence[Run], stages: Mapping[str, float], offline: OfflineConfig) -> None:
        self.runs = runs
        self.seconds: dict[str, float] = {"total": 0.0}
        self.stopped: BaseException | None = None
        self.joined = False
        self._stages = stages
        self._offline = offline

    def go(self, results: Results, show: Show | None = None) -> None:
        """Follow all results, then refine them; what goes wrong becomes `stopped`, so that a summary can come first.

        Args:
            results: of all runs, in order within each.
            show: given every result with its picture, drawn on; ends the session by saying False.
        """
        try:
            try:
                self._follow(results, show)
            except SourceError as error:
                self.stopped = error  # what came before is refined all the same
            if refines(self._offline):
                self._refine()
        except (Exception, KeyboardInterrupt) as error:
            self.stopped = error

    def _follow(self, results: Results, show: Show | None) -> None:
        """The loop: every result to the output of its run."""
        started = time.perf_counter()
        lengths = [run.last_frame and run.last_frame - run.first_frame + 1 for run in self.runs]
        done = self.runs[0].first_frame - 1 if len(self.runs) == 1 else 0  # so that frame numbers are shown
        total = None if None in lengths else done + sum(length or 0 for length in lengths)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.closing(results))
                for run in self.runs:
                    stack.enter_context(run.output)
                for index, frame, result in progress(results, total, done):
                    run = self.runs[index]
                    with hold_signals():  # a frame is written whole
                        run.output.add(frame, result)
                        if run.recorder:
                            run.recorder.add(result)
                    if show and frame is not None and not show(index, frame, result):
                        break
        finally:
            written = sum(run.output.seconds for run in self.runs)
            self.seconds = {"total": time.perf_counter() - started, **self._stages, "write": written}

    def _refine(self) -> None:
        """Put refined results in place of those written, and draw the films of them.

        The text files are replaced together, when the last new one is complete, before any film is begun.
        """
        started = time.perf_counter()
        runs = [run for run in self.runs if run.output.frames]
        try:
            tables = [_refine(run, self._offline) for run in runs]
            if self._offline.global_ids:
                tables = join_cameras(tables, [run.output.frame_rate for run in runs], self._offline.global_thresh)
                if any(len(table) for table in tables) and not any(table.embeddings for table in tables):
                    say("note: no embedding describes anybody, so that every track has a global id of its own")
            _replace_texts(runs, tables)
            self.joined = self._offline.global_ids
            for run, table in zip(runs, tables, strict=True):
                _draw(run, table)
        finally:
            self.seconds["refine"] = time.perf_counter() - started
            self.seconds["total"] += self.seconds["refine"]

    def report(self) -> dict[str, Any]:
        """The summary as data: of all runs, and where there are several, of each."""
        report = {**_count(self.runs), "fps": round(self._rate, 2)}
        if self.joined:
            report["ids"], report["shared_ids"] = self._joined_ids()
        report["seconds"] = {stage: round(value, 4) for stage, value in self.seconds.items()}
        if len(self.runs) > 1:
            report["runs"] = [
                {"input": run.location, **_count([run]), "error": one_line(run.error) if run.error else None}
                for run in self.runs
            ]
        return report

    def summary(self) -> list[str]:
        """The summary in lines: where there are several runs one for each, then one of all."""
        lines = [f"{run.location}: {_describe([run])}" for run in self.runs] if len(self.runs) > 1 else []
        frames = max(sum(run.output.frames for run in self.runs), 1)
        split = ", ".join(f"{k} {v * 1000 / frames:.1f}" for k, v in self.seconds.items() if k != "total")
        rate = f"{self._rate:.1f} frames/s (ms a frame, overlapping: {split})"
        ids = ""
        if self.joined and len(self.runs) > 1:
            joined, several = self._joined_ids()
            ids = "{} over all inputs, {} of them in several".format(counted(joined, "ids"), several)
        return [*lines, f"{_describe(self.runs, ids)}, {rate}"]

    def reach(self) -> str:
        """How far an interrupted session came, in words that go on after "interrupted"."""
        if "refine" in self.seconds:
            refined = sum(run.refined for run in self.runs)
            return f" while refining; all results are complete, {refined} of {len(self.runs)} are refined"
        frames = sum(run.output.frames for run in self.runs)
        place = f"frame {self.runs[0].output.last_frame}" if len(self.runs) == 1 else counted(frames, "frames")
        unrefined = ", but not refined" if refines(self._offline) else ""
        return f" after {place}; the results are complete up to there{unrefined}"

    def _joined_ids(self) -> tuple[int, int]:
        """How many ids there are over all runs, and how many of these several runs have."""
        runs_of = Counter(itertools.chain.from_iterable(run.output.ids for run in self.runs))
        return len(runs_of), sum(count > 1 for count in runs_of.values())

    @property
    def _rate(self) -> float:
        return sum(run.output.frames for run in self.runs) / max(self.seconds["total"], 1e-9)


def _refine(run: Run, config: OfflineConfig) -> Trajectories:
    assert run.recorder
    with meter("smoothing", "identities") as show:
        return refine(run.recorder.trajectories(), run.output.frame_rate, config, show)


def _replace_texts(runs: Sequence[Run], tables: Sequence[Trajectories]) -> None:
    """Write all texts anew; the old ones are all lost, or where one cannot be written, none."""
    with contextlib.ExitStack() as stack:
        outputs = []
        for run, table in zip(runs, tables, strict=True):
            results = table.results(run.first_frame, run.output.last_frame)
            outputs.append(stack.enter_context(rewritten(run.output, results)))
        with hold_signals():
            stack.close()
            for run, output in zip(runs, outputs, strict=True):
                run.output, run.refined = output, True


def _draw(run: Run, table: Trajectories) -> None:
    output = run.output
    if run.film and run.reopen:
        with contextlib.closing(run.reopen()) as source:
            film = Output(None, run.film, source.size, output.frame_rate, output.with_classes)
            pictures = zip(table.results(run.first_frame, output.last_frame), source, strict=False)
            with film:
                for result, frame in progress(pictures, output.frames, doing="drawing"):
                    with hold_signals():
                        film.add(frame, result)
        output.film = run.film


def refines(config: OfflineConfig) -> bool:
    """Whether the settings ask for anything that is done when all frames are known."""
    return config.relink or config.fill_gaps is not None or config.smooth or config.global_ids


def _count(runs: Sequence[Run]) -> dict[str, Any]:
    outputs = [run.output for run in runs]
    return {
        "frames": sum(output.frames for output in outputs),
        "ids": sum(len(output.ids) for output in outputs),
        "boxes": sum(output.boxes for output in outputs),
        "dropped": sum(run.dropped for run in runs),
        "outputs": [str(path) for output in outputs for path in (output.text, output.film) if path],
    }


def _describe(runs: Sequence[Run], ids: str = "") -> str:
    """What was found, in words; `ids` says how many identities, in place of a count for each run."""
    count = _count(runs)
    dropped = f", {count['dropped']} dropped" if any(run.live for run in runs) else ""
    people = count["boxes"] / max(count["frames"], 1)
    frames, ids = counted(count["frames"], "frames"), ids or counted(count["ids"], "ids")
    return f"{frames}{dropped}, {people:.1f} people a frame, {ids}"
