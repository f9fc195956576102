"""What one run of all benchmarks says: figures of ours beside yardsticks, where they were measured, as a table.

A document is what `benchmarks/run.py` writes as JSON: `format`, `command`, `commit`, `started`, `quick`, `machine`, and
`parts`, each with its `name`, `status` ("done", "skipped", "failed", "interrupted" or "not run"), `reason` where it is
not done, `rows` and the whole `report` of its script.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.throughput import ROOT, machine

FORMAT = "jdetrack-benchmarks"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
"""Of the processor's, those that decide how fast a network runs."""
FURTHER_LIBRARIES = ("openvino", "scipy", "scikit-learn", "trackers", "trackeval")
THREADS = "OMP_NUM_THREADS"
NAMED = ("python", "torch", "onnxruntime", "openvino", "trackers", "trackeval")
"""Versions that stand below the table."""
BUSY = 0.25
"""Load by the number of cores from which a machine is not quiet."""
BEGIN, END = "<!-- benchmarks/run.py: begin -->", "<!-- benchmarks/run.py: end -->"


@dataclass(frozen=True)
class Row:
    """One figure of ours beside a yardstick's of the same run.

    Attributes:
        name: what was measured, with its size.
        unit: of both figures.
        ours: a figure for each repeat.
        yardstick: likewise.
        yardstick_name: who that is.
        higher_is_better: true of frames/s, false of milliseconds.
    """

    name: str
    unit: str
    ours: Sequence[float]
    yardstick: Sequence[float]
    yardstick_name: str
    higher_is_better: bool = False

    def figures(self) -> dict[str, Any]:
        """The row as it is written: medians over the repeats, their ratio, which is above 1 where ours is better."""
        ours, yardstick = median(self.ours), median(self.yardstick)
        advantage = [self._ratio(*pair) for pair in zip(self.ours, self.yardstick, strict=False)]  # turn by turn
        return {
            "name": self.name,
            "unit": self.unit,
            "better": "higher" if self.higher_is_better else "lower",
            "ours": ours,
            "yardstick": yardstick,
            "yardstick_name": self.yardstick_name,
            "ratio": self._ratio(ours, yardstick),
            "ours_spread": spread(self.ours),
            "yardstick_spread": spread(self.yardstick),
            "ratio_spread": spread(advantage),
            "repeats": len(self.ours),
        }

    def _ratio(self, ours: float, yardstick: float) -> float:
        return ours / yardstick if self.higher_is_better else yardstick / ours


def spread(values: Sequence[float]) -> float | None:
    """Half of what lies between the least and the greatest, by the median; None where there is one value."""
    return (max(values) - min(values)) / 2 / median(values) if len(values) > 1 else None


def machine_facts() -> dict[str, Any]:
    """What the figures depend on: `benchmarks.throughput.machine`, and the processor's abilities, memory, threads."""
    facts = machine()  # first: the load before our own work shows in it
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    facts["flags"] = [flag for flag in FLAGS if flag in words]
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts[THREADS] = os.environ.get(THREADS)
    for name in FURTHER_LIBRARIES:
        facts[name] = version(name)
    return facts


def version(package: str) -> str | None:
    """Of an installed package; None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Of this checkout, "-dirty" behind it where files differ; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def is_busy(facts: dict[str, Any]) -> bool:
    """Whether the machine had other work before the start."""
    return (facts["load_average"] or 0) > BUSY * (facts["cores"] or 1)


def read(path: Path) -> dict[str, Any]:
    """A document as `benchmarks/run.py` writes it.

    Raises:
        ValueError: it is something else, naming `path`.
        OSError: it cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = document["format"] == FORMAT
    except (ValueError, KeyError, TypeError):  # no text, no JSON, no object
        known = False
    if not known:
        raise ValueError(f"{path}: expected results of benchmarks/run.py")
    return document


def markdown(document: dict[str, Any]) -> str:
    """A table of all rows, what it was measured on, and what could not be measured."""
    lines = [
        "| | ours | yardstick | times better |",
        "|---|---|---|---|",
    ]
    for row in (row for part in document["parts"] for row in part["rows"]):
        ours = f"{number(row['ours'])} {row['unit']}{_within(row['ours_spread'])}"
        theirs = f"{number(row['yardstick'])}{_within(row['yardstick_spread'])}, {row['yardstick_name']}"
        lines.append(f"| {row['name']} | {ours} | {theirs} | {number(row['ratio'])}{_within(row['ratio_spread'])} |")
    missing = [part for part in document["parts"] if part["status"] != "done"]
    lines += ["", *(f"- {part['name']}: {part['status']}: {part['reason']}" for part in missing)]
    facts = document["machine"]
    what = [facts["cpu"], f"{facts['cores']} cores", *facts["flags"], f"{facts['memory_gib']:.0f} GiB"]
    what += [f"{name} {facts[name]}" for name in NAMED if facts[name]]
    what += [f"{THREADS} {facts[THREADS]}"] if facts[THREADS] else []
    load = facts["load_average"]
    busy = "; the machine was not quiet" if is_busy(facts) else ""
    lines += [""] if missing else []
    lines.append(
        f"Medians over the repeats, in brackets half of their range. Measured by `{document['command']}` at commit "
        f"{(document['commit'] or 'unknown')[:12]}{'-dirty' if str(document['commit']).endswith('-dirty') else ''} on "
        f"{', '.join(what)}; load {'unknown' if load is None else f'{load:.1f}'} before the start{busy}."
    )
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _within(share: float | None) -> str:
    return "" if share is None else f" (±{share:.0%})"


def put_between_markers(readme: Path, table: str) -> str:
    """The text of a README with the table between `BEGIN` and `END`, each a line of its own.

    Raises:
        ValueError: they are not there, each once and in this order, naming `readme`.
        OSError: it cannot be read.
    """
    before, begin, rest = readme.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{readme}: expected one line {BEGIN} and behind it one line {END}")
    return f"{before}{begin}{table}{end}{after}"
