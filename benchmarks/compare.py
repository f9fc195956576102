"""Two runs of all benchmarks side by side: what has become faster, what slower, and what is noise.

    python benchmarks/compare.py before.json after.json
    python benchmarks/compare.py before.json after.json --threshold 5 --fail-on-regression
    python benchmarks/compare.py before.json after.json --markdown > changes.md

Both files are written by `benchmarks/run.py`. A row is judged by its ratio, ours against the yardstick of the same run:
what slows the whole machine meets both. "gain" is how much of it was won, and below it was lost where it is negative;
the gain of our figure alone stands beside it and says something on one machine only. The noise is what both runs'
ratios vary by among their repeats. A row is worse, or better, where the gain is beyond the threshold and the noise.
With --fail-on-regression the exit status is 1 where a row is worse, or its part failed in the second run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout measures itself, installed or not

from benchmarks.figures import is_busy, number, read  # noqa: E402
from tracker.console import one_line  # noqa: E402

HEAD = ("", "against", "ratio A", "ratio B", "gain", "noise", "ours A", "ours B", "gain", "")
MACHINE = ("cpu", "cores", "flags", "memory_gib", "OMP_NUM_THREADS")
"""Facts that make it another machine; the others are versions and the load."""
WORSE, BETTER, SAME, NOISE, LOST, ONLY_A, ONLY_B = "WORSE", "better", "", "noise", "FAILED", "only in A", "only in B"


@dataclass(frozen=True)
class Change:
    """What has become of one row.

    Attributes:
        part: where it was measured.
        before, after: the row in both runs; None where it is missing.
        verdict: one of the words above.
    """

    part: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    verdict: str

    @property
    def gain(self) -> float | None:
        """Of the ratio: 0.1 is a tenth better, −0.1 a tenth worse."""
        return self.after["ratio"] / self.before["ratio"] - 1 if self.before and self.after else None

    @property
    def own_gain(self) -> float | None:
        """Of our figure by itself."""
        if not self.before or not self.after:
            return None
        times = self.after["ours"] / self.before["ours"]
        return (times if self.before["better"] == "higher" else 1 / times) - 1

    @property
    def noise(self) -> float | None:
        """By how much the ratios vary among the repeats of both runs; None where a run has no repeats."""
        spreads = [row["ratio_spread"] for row in (self.before, self.after) if row]
        return None if len(spreads) < 2 or None in spreads else sum(spreads)


def compare(before: dict[str, Any], after: dict[str, Any], threshold: float) -> list[Change]:
    """All rows of two documents, in the order of the first; `threshold` is a share."""
    rows = [_rows(document) for document in (before, after)]
    failed = {part["name"] for part in after["parts"] if part["status"] == "failed"}
    changes = []
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        change = Change(key[0], rows[0].get(key), rows[1].get(key), SAME)
        changes.append(Change(change.part, change.before, change.after, _judge(change, threshold, failed)))
    return changes


def _rows(document: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows by part, name and yardstick."""
    return {
        (part["name"], row["name"], row["yardstick_name"]): row for part in document["parts"] for row in part["rows"]
    }


def _judge(change: Change, threshold: float, failed: set[str]) -> str:
    gain = change.gain
    if gain is None:
        if change.before is None:
            return ONLY_B
        return LOST if change.part in failed else ONLY_A
    if abs(gain) <= threshold:
        return SAME
    if abs(gain) <= (change.noise or 0):
        return NOISE
    return BETTER if gain > 0 else WORSE


def warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What keeps the two runs from being compared as they stand, and what else differs."""
    found = []
    if before["quick"] != after["quick"]:
        found.append(f"{'A' if before['quick'] else 'B'} is a quick run, the other is not")
    for name, document in (("A", before), ("B", after)):
        if is_busy(document["machine"]):
            found.append(f"{name}: the machine was busy, load {document['machine']['load_average']:.1f} at the start")
        for part in document["parts"]:
            if part["status"] != "done":
                found.append(f"{name}: {part['name']}: {part['status']}: {part['reason']}")
    first, second = before["machine"], after["machine"]
    for key in dict.fromkeys([*first, *second]):
        if key != "load_average" and first.get(key) != second.get(key):
            other = "another machine: " if key in MACHINE else ""
            found.append(f"{other}{key}: {_text(first.get(key))} in A, {_text(second.get(key))} in B")
    return found


def _text(fact: Any) -> str:
    return " ".join(fact) if isinstance(fact, list) else str(fact)


def cells(change: Change) -> list[str]:
    """One row of the table, see `HEAD`."""
    row = change.before or change.after or {}
    ratios, ours = (
        [number(each[key]) if each else "-" for each in (change.before, change.after)] for key in ("ratio", "ours")
    )
    noise = "?" if change.noise is None else f"±{change.noise:.0%}"
    gains = ["-" if gain is None else f"{gain:+.0%}" for gain in (change.gain, change.own_gain)]
    ours[1] += f" {row['unit']}"
    return [row["name"], row["yardstick_name"], *ratios, gains[0], noise, *ours, gains[1], change.verdict]


def format_table(changes: Sequence[Change], markdown: bool) -> str:
    """All rows, as Markdown or in columns."""
    lines = [list(HEAD), *map(cells, changes)]
    if markdown:
        rows = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([rows[0], "|---" * len(HEAD) + "|", *rows[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (0, 1, len(HEAD) - 1)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--threshold", type=float, default=10, help="percent that count as a change (default: 10)")
    parser.add_argument("--markdown", action="store_true", help="write the table in Markdown")
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit status 1 where a row is worse or failed"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        if not 0 <= args.threshold < 100:
            raise ValueError(f"--threshold: expected a percentage from 0 to below 100, got {args.threshold}")
        before, after = read(args.before), read(args.after)
        changes = compare(before, after, args.threshold / 100)
        for warning in warnings(before, after):
            print(f"note: {warning}", file=sys.stderr)
        print(format_table(changes, args.markdown))
        regressions = sum(change.verdict in (WORSE, LOST) for change in changes)
        words = f"{len(changes)} rows, {regressions} worse or failed"
        print(f"\n{words}; A: {_commit(before)}, B: {_commit(after)}; threshold {args.threshold:g} %")
    except (ValueError, TypeError, OSError, KeyError) as error:
        if args.debug:
            raise
        print(f"compare: {one_line(error)}", file=sys.stderr)
        return 2
    return 1 if regressions and args.fail_on_regression else 0


def _commit(document: dict[str, Any]) -> str:
    return f"{document['commit'] or 'unknown commit'}, {document['started']}"


if __name__ == "__main__":
    sys.exit(main())
