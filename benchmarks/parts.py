"""The parts of `benchmarks/run.py`: which script measures what, by which yardstick, and how its report is read.

Each part is a script of this folder that writes a report as JSON. It runs in a process of its own, so that none meets
what another has loaded or set, and one that dies takes nothing with it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import ROOT, Row

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
Report = dict[str, Any]

VIDEO, YOLOX = "video/people.mp4", "weights/yolox_nano.onnx"
RESULTS, IMAGES = "mot_results/LifT_MOT17_train", "det/capston2_unique/train/images"
EAGER = "eager"
"""The contestant of forward.py that is the yardstick."""
LOOP, DENSE, TIDIED = "loop over the queries", "dense, as published", "dense, tidied"


@dataclass(frozen=True)
class Part:
    """A script and what becomes of its report.

    Attributes:
        name: as in `--only`.
        script: a file in `benchmarks/`.
        full, quick: options besides `--json`; `{data}` stands for the folder of data, `{cores}` for their number.
        seconds: that the full and the quick run take on two quiet cores, for the progress.
        rows: reads the report.
        data: files and folders that are needed, below the folder of data.
        packages: that are needed besides the dependencies, with the commands that install them.
    """

    name: str
    script: str
    full: str
    quick: str
    seconds: tuple[float, float]
    rows: Callable[[Report], list[Row]]
    data: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()

    def options(self, quick: bool, data: Path, report: Path) -> list[str]:
        """What the script is called with."""
        words = (self.quick if quick else self.full).split()
        places = {"{data}": str(data), "{cores}": str(CORES)}
        for place, value in places.items():
            words = [word.replace(place, value) for word in words]
        return [*words, "--json", str(report)]

    def missing(self, data: Path) -> str | None:
        """Why this part cannot run here; None where it can."""
        files = (ROOT / "benchmarks" / self.script, *(data / name for name in self.data))
        reasons = [f"{path}: no such file or folder" for path in files if not path.exists()]
        for name, command in self.packages:
            if importlib.util.find_spec(name) is None:
                reasons.append(f"{name} is not installed ({command})")
        return "; ".join(reasons) or None


def forward(report: Report) -> list[Row]:
    """Milliseconds of Darknet-53 JDE by all contestants, beside the eager one."""
    times = {(row["contestant"], row["input"]): row for row in report["rows"]}
    return [
        Row(
            f"forward, Darknet-53 JDE {size}, {contestant}",
            "ms",
            _milliseconds(row),
            _milliseconds(times[EAGER, size]),
            "faithful eager PyTorch, full embedding maps",
        )
        for (contestant, size), row in times.items()
        if contestant != EAGER
    ]


def _milliseconds(row: Report) -> list[float]:
    """Of each repeat where they are there, else the one figure."""
    return row.get("milliseconds_of_runs") or [row["milliseconds"]]


def end_to_end(report: Report) -> list[Row]:
    """Frames a second from file to file, and milliseconds of the network alone."""
    ours, other = report["track"], report["yardstick"]
    height, width = report["network_input"]
    name = "YOLOX-nano in ONNX Runtime, detection only"
    return [
        Row(
            f"end to end, {report['video']}, {ours['frames']} frames to H.264",
            "frames/s",
            ours["fps_runs"],
            other["fps_runs"],
            name,
            higher_is_better=True,
        ),
        Row(f"forward, bundled model {width}x{height}", "ms", [ours["forward_ms"]], [other["forward_ms"]], name),
    ]


def association(report: Report) -> list[Row]:
    """Milliseconds a frame of our default tracker without embeddings, beside trackers that take none."""
    times = {
        (row["tracker"], row["people"]): row["median_ms_of_repeats"] for row in report["rows"] if not row["embeddings"]
    }
    peers = [name for name in dict.fromkeys(name for name, _ in times) if name.startswith("trackers ")]
    if not peers:
        raise ValueError("trackers is installed, but cannot be imported")
    return [
        Row(
            f"association, {people} people, {report['frames']} frames",
            "ms/frame",
            times["ours", people],
            times[peer, people],
            peer,
        )
        for people in dict.fromkeys(people for _, people in times)
        for peer in peers
    ]


def evaluation(report: Report) -> list[Row]:
    """Seconds from files to HOTA, CLEAR and Identity."""
    return [
        Row(
            f"evaluation, {title}, {case['frames']:.0f} frames{engine.removeprefix('ours')}",
            "s",
            row["seconds_of_runs"],
            case["engines"]["trackeval"]["seconds_of_runs"],
            "trackeval",
        )
        for title, case in report["cases"].items()
        for engine, row in case["engines"].items()
        if engine != "trackeval"
    ]


def jaccard(report: Report) -> list[Row]:
    """Seconds and peak memory of the distances of a training set."""
    by_name = {row["contestant"]: row for row in report["rows"]}
    size = f"{by_name['dense']['images']} images, {report['dimension']}-d"
    return _time_and_memory(f"Jaccard distances, {size}", by_name["ours"], by_name["dense"], DENSE)


def re_ranking(report: Report) -> list[Row]:
    """Seconds and peak memory of scoring a gallery, and of re-ranking it first."""
    size = f"{report['queries']} x {report['gallery']}, {report['dimension']}-d"
    rows = report["rows"]
    found = _time_and_memory(f"ranking, {size}", rows["ranking, ours"], rows["ranking, loop"], LOOP)[:1]
    for contestant, yardstick in (("re-ranking, dense", DENSE), ("re-ranking, dense, tidied", TIDIED)):
        found += _time_and_memory(f"re-ranking, {size}", rows["re-ranking, ours"], rows[contestant], yardstick)
    return found


def _time_and_memory(name: str, ours: Report, other: Report, yardstick: str) -> list[Row]:
    seconds = Row(name, "s", ours["seconds_of_runs"], other["seconds_of_runs"], yardstick)
    mebibytes = [[size / 2**20 for size in each["memory_bytes_of_runs"]] for each in (ours, other)]
    return [seconds, Row(f"{name}, memory above the features", "MiB", *mebibytes, yardstick)]


def training(report: Report) -> list[Row]:
    """Seconds of a step: forward, losses, backward and update."""
    rows = report["rows"]
    plain = {row["network"]: row["seconds_of_steps"] for row in rows if row["precision"] == "plain"}
    return [
        Row(
            f"training step, {row['network']} {row['input']}, {row['batch']} images, {row['precision']}",
            "s",
            row["seconds_of_steps"],
            plain[row["network"]],
            "the same, plain eager fp32, NCHW",
        )
        for row in rows
        if row["precision"] != "plain"
    ]


PARTS = (
    Part(
        "forward",
        "forward.py",
        "--sizes 1088x608 576x320 --repeats 5",
        "--sizes 576x320 --repeats 3",
        (120, 10),
        forward,
    ),
    Part(
        "end-to-end",
        "throughput.py",
        f"--video {{data}}/{VIDEO} --onnx {{data}}/{YOLOX} --repeats 3",
        f"--video {{data}}/{VIDEO} --onnx {{data}}/{YOLOX} --repeats 1 --frames 60",
        (85, 12),
        end_to_end,
        data=(VIDEO, YOLOX),
    ),
    Part(
        "association",
        "association_cost.py",
        "--people 30 150 500 --frames 120 --repeats 3",
        "--people 30 --frames 20 --warm 10 --repeats 2",
        (110, 4),
        association,
        packages=(("trackers", "pip install trackers"),),
    ),
    Part(
        "evaluation",
        "evaluation.py",
        f"--data {{data}}/{RESULTS} --repeats 3",
        f"--data {{data}}/{RESULTS} --repeats 1 --sequences 2 --people 50 --frames 100",
        (70, 8),
        evaluation,
        data=(RESULTS,),
        packages=(("trackeval", "pip install trackeval"),),
    ),
    Part(
        "jaccard",
        "jaccard.py",
        "--images 12936 --repeats 3 --threads {cores}",
        "--images 1500 --repeats 1 --threads {cores}",
        (110, 9),
        jaccard,
    ),
    Part(
        "re-ranking",
        "reid_ranking.py",
        "--share 0.5 --repeats 3 --threads {cores}",
        "--share 0.1 --dimension 256 --repeats 1 --threads {cores}",
        (230, 14),
        re_ranking,
    ),
    Part(
        "training",
        "training.py",
        f"--data yolo:{{data}}/{IMAGES} --steps 6 --device cpu",
        f"--data yolo:{{data}}/{IMAGES} --steps 2 --device cpu --networks nano",
        (110, 15),
        training,
        data=(IMAGES,),
    ),
)
