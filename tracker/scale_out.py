"""An archive of recordings, tracked by many processes: what is left to do, how it goes, and its summary."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tracker.archive import FAILED, FINISHED, TRACKED, Job, Outcome, Track, make, origin_of, reserved
from tracker.cluster import connected, plan_work
from tracker.console import counted, hold_signals, one_line, progress, say, stop_signals
from tracker.sources import SourceError

Start = Callable[[int, str], Track]
"""What a process does once, with a number of threads and a device: it loads the model."""


class ArchiveSession:
    """All recordings of an archive, from what is finished already to the summary; the counterpart of `runs.Session`.

    Attributes:
        jobs: the recordings.
        outcomes: what became of them, by index, so far.
        stopped: what ended the session early, or that some recordings failed; None while neither is so.

    Args:
        videos: see `sources.open_source`; recordings only.
        places: text and film of each.
        made_from: see `archive.origin_of`.
        debug: show the tracebacks of those that failed.
    """

    def __init__(
        self,
        videos: Sequence[str],
        places: Sequence[tuple[Path, Path | None]],
        made_from: Mapping[str, Any],
        debug: bool = False,
    ) -> None:
        self.jobs: list[Job] = []
        self.outcomes: dict[int, Outcome] = {}
        self.stopped: BaseException | None = None
        self._seconds = 0.0
        self._debug = debug
        self._locations = list(videos)
        for index, (video, (text, film)) in enumerate(zip(videos, places, strict=True)):
            path = str(Path(video).absolute())
            origin: dict[str, Any] = {}
            try:
                origin = origin_of(path, made_from)
            except OSError as error:  # the others go on
                self.outcomes[index] = Outcome(FAILED, error=one_line(error))
            self.jobs.append(Job(index, path, text.absolute(), film and film.absolute(), origin))

    def go(
        self,
        start: Start,
        address: str,
        modules: Sequence[ModuleType],
        workers: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        overwrite: bool = False,
    ) -> None:
        """Track what is not finished; what goes wrong becomes `stopped`, so that a summary can come first.

        Args:
            start: run in every process; must be such that it can be sent there.
            address: of a cluster, or `cluster.LOCAL`.
            modules: packages that `start` needs.
            workers: processes; None chooses, see `cluster.plan_work`.
            threads: of the network in each; None chooses.
            device: `cpu`, `cuda`, or `auto` for GPUs where there are some.
            overwrite: track those that are finished, too.
        """
        started = time.perf_counter()
        try:
            if not overwrite:
                self._pass_over()
            if len(self.outcomes) < len(self.jobs):
                self._track(start, address, modules, workers, threads, device)
            self._tell_failures()
        except (Exception, KeyboardInterrupt) as error:
            self.stopped = error
        self._seconds = time.perf_counter() - started

    def _pass_over(self) -> None:
        for job in self.jobs:
            if job.index not in self.outcomes and (summary := job.finished()) is not None:
                self.outcomes[job.index] = Outcome(FINISHED, summary)

    def _track(
        self,
        start: Start,
        address: str,
        modules: Sequence[ModuleType],
        workers: int | None,
        threads: int | None,
        device: str,
    ) -> None:
        jobs = [job for job in self.jobs if job.index not in self.outcomes]
        stdout = sys.stdout  # that of the block below goes nowhere
        with contextlib.ExitStack() as stack:
            for folder in sorted({job.text.parent for job in jobs}):
                stack.enter_context(reserved(folder))
            for job in jobs:
                stack.callback(job.clear)  # when no worker is left that could write
            with hold_signals():  # Ray must not be left half started
                cluster = stack.enter_context(connected(address, modules, workers and min(workers, len(jobs))))
                stack.enter_context(stop_signals())  # Ray before 2.53 has put its own in their place
            gpus = 0 if device == "cpu" else cluster.gpus
            if device == "cuda" and not gpus:
                raise ValueError("--device: cuda asked for, but Ray finds no GPU")
            plan = plan_work(cluster.cpus, cluster.largest, gpus, len(jobs), workers, threads)
            count, threads_each = counted(len(self.jobs), "videos"), counted(plan.threads, "threads")
            spread = f"{plan.workers} at a time, {threads_each} each"
            print(f"{len(jobs)} of {count}, {spread}", file=stdout, flush=True)
            place = device if gpus else "cpu"  # Ray does not hide GPUs from those who are given none
            tracks: list[Track] = []  # a process has its own

            def work(job: Job, attempt: int) -> Outcome:
                if not tracks:
                    tracks.append(start(plan.threads, place))
                return make(tracks[0], job, attempt)

            outcomes = cluster.scatter(work, jobs, plan)
            for job, outcome in progress(outcomes, len(self.jobs), len(self.outcomes), unit="videos"):
                self.outcomes[job.index] = outcome

    def _tell_failures(self) -> None:
        failed = [outcome for _, outcome in sorted(self.outcomes.items()) if outcome.state == FAILED]
        for outcome in failed:
            if self._debug:
                say(outcome.trace.rstrip())
            if len(self.jobs) > 1:
                say(f"error: {outcome.error}")
        if failed:
            reason = f"{len(failed)} of {len(self.jobs)} videos failed"
            self.stopped = SourceError(reason if len(self.jobs) > 1 else failed[0].error)

    def report(self) -> dict[str, Any]:
        """The summary as data: of all recordings, and of each; `seconds` and `fps` are for those tracked now."""
        runs = []
        for job, location in zip(self.jobs, self._locations, strict=True):
            outcome = self.outcomes.get(job.index) or Outcome("left")
            counts = {key: outcome.summary.get(key, 0) for key in ("frames", "ids", "boxes")}
            outputs = outcome.summary.get("outputs", [])
            told = {"state": outcome.state, "attempts": outcome.attempts, "error": outcome.error}
            runs.append({"input": location, **counts, "outputs": outputs, **told})
        totals = {key: sum(run[key] for run in runs) for key in ("frames", "ids", "boxes")}
        now = sum(run["frames"] for run in runs if run["state"] != FINISHED)
        seconds = round(self._seconds, 4)
        return {**totals, "fps": round(now / max(seconds, 1e-9), 2), "seconds": {"total": seconds}, "runs": runs}

    def summary(self) -> list[str]:
        """The summary line."""
        report = self.report()
        states = [run["state"] for run in report["runs"]]
        counts = [f"{states.count(state)} {state}" for state in (TRACKED, FINISHED, FAILED, "left") if state in states]
        people = report["boxes"] / max(report["frames"], 1)
        frames, ids = counted(report["frames"], "frames"), counted(report["ids"], "ids")
        found = f"{frames}, {people:.1f} people a frame, {ids}"
        rate = f", {report['fps']:.1f} frames/s" if TRACKED in states else ""
        return [f"{counted(len(states), 'videos')}: {', '.join(counts)}; {found}{rate}"]

    def reach(self) -> str:
        """How far an interrupted session came, in words that go on after "interrupted"."""
        done = sum(outcome.state != FAILED for outcome in self.outcomes.values())
        return f" after {done} of {counted(len(self.jobs), 'videos')}; the same command goes on from there"
