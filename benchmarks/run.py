"""Speed, measured in one run on this machine: ours beside a named yardstick, part by part.

    python benchmarks/run.py                              # a quarter of an hour on two quiet cores
    python benchmarks/run.py --quick --json quick.json    # a minute; small sizes, good for a first look alone
    python benchmarks/run.py --only forward,jaccard --table results.md
    python benchmarks/run.py --readme                     # puts the table between README's markers, too
    python benchmarks/compare.py before.json after.json   # what has changed

The parts are scripts of this folder (benchmarks/parts.py says which, and with what options), each in a process of its
own. Ours and yardsticks take turns within a part. Results are written after each part: what fails or is interrupted
loses nothing that was measured before. What cannot run here, for want of a package or of data, is reported as skipped.
The exit status is 1 where a part has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from tqdm import tqdm  # noqa: E402

from benchmarks.figures import (  # noqa: E402
    BUSY,
    FORMAT,
    commit,
    is_busy,
    machine_facts,
    markdown,
    put_between_markers,
)
from benchmarks.parts import PARTS, Part  # noqa: E402
from tracker.console import one_line, say, stop_signals  # noqa: E402
from tracker.files import write_text  # noqa: E402

LOOK_SECONDS, GRACE_SECONDS = 0.2, 10.0
"""Between two looks at a part that runs; that it is given to end when it is asked to."""


class Progress:
    """What runs and how long it will take yet, by what the parts take elsewhere and how fast this machine has been."""

    def __init__(self, parts: Sequence[Part], quick: bool) -> None:
        self._expected = {part.name: part.seconds[1 if quick else 0] for part in parts}
        self._waiting = list(self._expected)
        self._spent = self._worth = 0.0
        self._bar = tqdm(bar_format="{desc}", disable=None, leave=False)

    def start(self, name: str) -> None:
        """A part begins."""
        self._waiting.remove(name)
        self._name, self._begun = name, time.monotonic()
        self._label = f"[{len(self._expected) - len(self._waiting)}/{len(self._expected)}] {name}"
        say(f"{self._label}: {self._left(0)}")

    def show(self) -> None:
        """It is still running."""
        elapsed = time.monotonic() - self._begun
        self._bar.set_description_str(f"{self._label}: {elapsed:.0f} s, {self._left(elapsed)}")

    def end(self, done: bool) -> float:
        """It has ended; returns its seconds, from which the machine's pace is learned where it was done."""
        elapsed = time.monotonic() - self._begun
        if done:
            self._spent += elapsed
            self._worth += self._expected[self._name]
        self._bar.set_description_str("")
        return elapsed

    def _left(self, elapsed: float) -> str:
        pace = self._spent / self._worth if self._worth else 1.0
        own = max(self._expected[self._name] * pace - elapsed, 0)
        seconds = own + pace * sum(self._expected[name] for name in self._waiting)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


@contextlib.contextmanager
def started(command: Sequence[str], scratch: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all that it starts; where the block is left before their end, they are ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C comes to us alone, and the whole family can be ended
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure(part: Part, quick: bool, data: Path, show: Callable[[], None], debug: bool = False) -> dict[str, Any]:
    """Run a part's script; returns its command, rows and report.

    Args:
        part: what is measured.
        quick: with its small sizes.
        data: the folder of data.
        show: called now and then.
        debug: where it fails, say all that it said.

    Raises:
        ValueError: the script failed, or its report is not what was expected.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        report, log = Path(name) / "report.json", Path(name) / "log.txt"
        script, options = str(ROOT / "benchmarks" / part.script), part.options(quick, data, report)
        with started([sys.executable, script, *options], Path(name), log) as process:
            while process.poll() is None:
                show()
                time.sleep(LOOK_SECONDS)
        if process.returncode:
            if debug:
                say(log.read_text(encoding="utf-8", errors="replace"))
            raise ValueError(f"{part.script}: {_ending(process.returncode, log)}")
        if not report.is_file():
            raise ValueError(f"{part.script}: expected a report, found none")
        result = json.loads(report.read_text(encoding="utf-8"))
        try:
            rows = [row.figures() for row in part.rows(result)]
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{part.script}: a report that is not understood: {one_line(error)}") from error
        command = shlex.join(["python", f"benchmarks/{part.script}", *options[:-2]])
        return {"command": command, "rows": rows, "report": result}


def _ending(status: int, log: Path) -> str:
    """How a process ended, and the last that it said."""
    said = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"  # SIGKILL is what comes for want of memory
    return said[-1] if said else f"exit status {status}"


def run(
    parts: Sequence[Part], quick: bool, data: Path, document: dict[str, Any], write: Callable[[], None], debug: bool
) -> None:
    """Measure part after part into `document["parts"]`, writing after each; KeyboardInterrupt passes through."""
    outcomes = [{"name": p.name, "status": "not run", "reason": "interrupted before", "rows": []} for p in parts]
    document["parts"] = outcomes
    skipped = {part.name: reason for part in parts if (reason := part.missing(data))}
    for outcome in outcomes:
        if outcome["name"] in skipped:
            outcome.update(status="skipped", reason=skipped[outcome["name"]])
            say(f"{outcome['name']}: skipped: {outcome['reason']}")
    progress = Progress([part for part in parts if part.name not in skipped], quick)
    try:
        write()
        for part, outcome in zip(parts, outcomes, strict=True):
            if part.name in skipped:
                continue
            progress.start(part.name)
            try:
                outcome.update(measure(part, quick, data, progress.show, debug), status="done", reason=None)
            except (ValueError, OSError) as error:
                if debug:
                    raise
                outcome.update(status="failed", reason=one_line(error))
            except KeyboardInterrupt:
                outcome.update(status="interrupted", reason="interrupted")
                raise
            finally:
                outcome["seconds"] = progress.end(outcome["status"] == "done")
                what = outcome["reason"] or f"{len(outcome['rows'])} rows"
                say(f"{part.name}: {outcome['status']} after {outcome['seconds']:.0f} s: {what}")
                write()
    finally:
        progress.close()


def choose(names: str) -> list[Part]:
    """The parts of a list with commas, in the order of `PARTS`."""
    wanted, known = set(names.split(",")), [part.name for part in PARTS]
    if unknown := sorted(wanted.difference(known)):
        raise ValueError(f"--only: expected some of {','.join(known)}, got {','.join(unknown)}")
    return [part for part in PARTS if part.name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART,PART", help=f"default: {','.join(part.name for part in PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a minute")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="default: ../shared/data")
    parser.add_argument("--json", type=Path, help="default: benchmarks/run.json, with --quick run_quick.json there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table in Markdown, too")
    parser.add_argument("--readme", action="store_true", help="put the table between the markers in README.md, too")
    parser.add_argument("--debug", action="store_true", help="end at the first part that fails, with its traceback")
    args = parser.parse_args(argv)
    facts, readme = machine_facts(), ROOT / "README.md"
    target = args.json or ROOT / "benchmarks" / ("run_quick.json" if args.quick else "run.json")
    document: dict[str, Any] = {
        "format": FORMAT,
        "command": shlex.join(["python", "benchmarks/run.py", *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": args.quick,
        "machine": facts,
    }

    def write() -> None:
        write_text(target, json.dumps(document, indent=1) + "\n")
        if args.table:
            write_text(args.table, markdown(document))

    try:
        parts = list(PARTS) if args.only is None else choose(args.only)
        if args.readme:
            if args.quick:
                raise ValueError("--readme: expected a full run, got --quick")
            put_between_markers(readme, "")  # better found now than after a quarter of an hour
        if is_busy(facts):
            say(f"note: load {facts['load_average']:.1f} on {facts['cores']} cores, above {BUSY:g} for each: not quiet")
        with stop_signals():
            run(parts, args.quick, args.data.resolve(), document, write, args.debug)
        failed = any(outcome["status"] == "failed" for outcome in document["parts"])
        print(markdown(document))
        if args.readme and not failed:
            write_text(readme, put_between_markers(readme, markdown(document)))
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"run: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(markdown(document))
        print(f"run: interrupted; what was measured is in {target}", file=sys.stderr)
        return int(128 + (error.args[0] if error.args else signal.SIGINT))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
