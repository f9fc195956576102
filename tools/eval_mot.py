"""Score tracking results against MOTChallenge ground truth: HOTA, CLEAR and Identity, as the official evaluation does.

    python tools/eval_mot.py --gt MOT17/train --results results --json scores.json
    python tools/eval_mot.py --gt MOT17/train --results results --sequences 'MOT17-*-FRCNN' --half val
    python tools/eval_mot.py --gt MOT17/train --results results --seqmap MOT17-val.txt --out report
    python tools/eval_mot.py --gt MOT17/train --results results --out report --video    # what is wrong, on the frames
    python tools/eval_mot.py --gt gt.txt --results out.txt --events                     # one pair; prints the switches
    python tools/eval_mot.py --gt MOT17/train --results results --engine motmetrics
    python tools/eval_mot.py --gt classes/train --results results --classes all         # each class by itself

Tracks first, then scores; what follows `--` goes to tools/track.py:

    python tools/eval_mot.py --gt MOT17/train --weights model.safetensors --out report
    python tools/eval_mot.py --gt MOT17/train --detections public --out report -- --config tracker_byte --smooth

An archive for the benchmarks' server, of sequences with or without ground truth:

    python tools/eval_mot.py --gt MOT17/test --results results --submission MOT17.zip

--gt: a folder of sequences (each with gt/gt.txt and seqinfo.ini), one sequence, or one gt.txt. --results: a folder of
<sequence>.txt, or a file. Every sequence needs a result; what is wrong with a file is said as path:line.

--out DIR holds scores.json, scores.csv, events.csv, run.json (the settings), plots/ (HOTA over its thresholds, and in
timelines/ which track covered each person when), and of a run of the tracker results/. Ratios in files are 0 to 1, on
the screen per cent.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__":  # while the libraries load, Ctrl-C and termination have nothing to save
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from tracker.challenge import (
    Half,
    Task,
    describe,
    find_sequences,
    find_tasks,
    half_of,
    read_seqmap,
    same_pictures,
    write_submission,
)
from tracker.comparison import Compared
from tracker.console import fail, meter, say, stop_signals
from tracker.evaluation import check_result, combine_tasks, compare, map_tasks, score, score_in_detail
from tracker.events import Events, clear_events
from tracker.images import list_images
from tracker.metrics import Figures
from tracker.mot import MotSequence, read_mot
from tracker.preprocessing import Benchmark, benchmark_of, benchmark_of_name, classes_of
from tracker.report import Places, format_table, list_switches, write_films, write_report
from tracker.video import available_cores

PUBLIC = "public"
BUNDLED = "bundled"
# What --events, and --plots and --video stand for without a value.
PRINT, HERE = "-", "."
# Options of track.py that this tool sets itself.
OWN_OPTIONS = ("--video", "--detections", "--weights", "--out", "--json", "--start", "--end", "--no-video", "--show")


class TrackerFailedError(Exception):
    """The tracker ended early, and has said why; its exit status is the argument."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    behind = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="eval_mot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is scored")
    add = group.add_argument
    add("--gt", type=Path, required=True, metavar="PATH", help="ground truth: sequences, one sequence, or one file")
    add("--results", type=Path, metavar="PATH", help="results: a folder of <sequence>.txt, or one file")
    add("--sequences", nargs="+", metavar="NAME", help="these only; patterns in quotes (default: all)")
    add("--seqmap", type=Path, metavar="FILE", help="these only: a file with one name a line")
    add("--half", choices=get_args(Half), help="a half of each sequence, as ByteTrack divides MOT17")
    add("--frames", type=frame_range, metavar="A:B", help="frames A to B of each sequence, from 1, both included")
    add("--renumbered", action="store_true", help="results count from the first frame that is scored")
    add(
        "--benchmark",
        choices=get_args(Benchmark),
        help="whose rules hold (default: by the name, else by gt)",
    )
    add("--classes", metavar="N,N", help="score each of these classes by itself, without distractors; or: all")
    add("--engine", choices=("official", "motmetrics"), default="official", help="motmetrics: its figures and events")

    group = parser.add_argument_group("the tracker, run first")
    add = group.add_argument
    add("--weights", nargs="?", const=BUNDLED, metavar="FILE", help="detect and follow (no file: the bundled model)")
    add("--detections", metavar=PUBLIC, help=f"follow {PUBLIC} detections (det/det.txt), or a folder of <sequence>.txt")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of all the following but films and archive",
    )
    add("--json", type=Path, metavar="FILE", help="all figures by sequence and COMBINED")
    add("--csv", type=Path, metavar="FILE", help="the same as a table")
    add(
        "--events",
        nargs="?",
        const=PRINT,
        metavar="FILE",
        help="every miss, false positive and switch; no FILE: print the switches",
    )
    add("--plots", nargs="?", const=HERE, metavar="DIR", help="pictures: HOTA, timelines")
    add("--video", nargs="?", const=HERE, metavar="DIR", help="videos of what is wrong, where there are pictures")
    add("--submission", type=Path, metavar="ZIP", help="archive of the results for the benchmarks' server")
    add("--processes", type=int, metavar="N", help="sequences scored at the same time (default: one for each core)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv[:behind])
    args.track = argv[behind + 1 :]
    if sum(item is not None for item in (args.results, args.weights, args.detections)) != 1:
        parser.error("expected one of --results, --weights, --detections")
    return args


def frame_range(text: str) -> tuple[int, int]:
    """`A:B` as numbers."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST, got {text!r}")
    return int(first), int(last)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv)
    with stop_signals():
        try:
            check_options(args)
            run(args)
        except TrackerFailedError as error:
            return int(error.args[0])
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is done."""
    part = args.half or args.frames
    if "" in (args.weights, args.detections, args.classes):
        raise ValueError("--weights, --detections, --classes: expected a value, got nothing")
    if args.sequences and args.seqmap:
        raise ValueError("--seqmap: expected either --sequences or --seqmap")
    if args.half and args.frames:
        raise ValueError("--frames: expected either --half or --frames")
    if args.renumbered and not part:
        raise ValueError("--renumbered: is for a part of each sequence, --half or --frames")
    if args.renumbered and not args.results:
        raise ValueError("--renumbered: is for --results; the tracker keeps the numbers")
    if args.submission and part:
        raise ValueError("--submission: the server expects whole sequences, without --half and --frames")
    if args.classes and args.benchmark:
        raise ValueError("--classes: a class by itself follows no benchmark's rules")
    if args.classes and args.engine == "motmetrics":
        raise ValueError("--classes: is not for --engine motmetrics")
    if args.processes is not None and args.processes < 1:
        raise ValueError(f"--processes: expected at least 1, got {args.processes}")
    if args.results and args.track:
        raise ValueError(f"{args.track[0]}: what follows -- is for the tracker, and --results runs none")
    for option in args.track:
        if option.split("=")[0] in OWN_OPTIONS:
            raise ValueError(f"{option}: is set by this tool; it cannot follow --")
    if not args.results and args.gt.is_file():
        raise ValueError(f"{args.gt}: expected a folder of sequences for the tracker, got a file")


def run(args: argparse.Namespace) -> None:
    """Track where that is asked for, score, and write."""
    names = read_seqmap(args.seqmap) if args.seqmap else args.sequences
    settings: dict[str, Any] = {}
    if args.results:
        tasks = find_tasks(args.gt, args.results, names, need_truth=not args.submission)
        places = choose_places(args, [path for task in tasks for path in (task.truth, task.results)])
    else:
        sequences = [describe(folder) for folder in find_sequences(args.gt, names)]
        for sequence in sequences:
            truth = sequence.folder / "gt" / "gt.txt"
            if not (truth.is_file() or args.submission):
                raise FileNotFoundError(f"{truth}: no such file; there is nothing to score")
        inputs = [tracker_input(args, sequence) for sequence in sequences]
        args.out = args.out or Path("eval_mot")
        args.results = args.out / "results"
        args.results.mkdir(parents=True, exist_ok=True)
        places = choose_places(args, [*inputs, *(sequence.folder / "gt" / "gt.txt" for sequence in sequences)])
        settings = run_tracker(args, sequences, inputs)
        # Whatever else lies there is of an earlier run.
        names = [sequence.folder.name for sequence in sequences]
        tasks = find_tasks(args.gt, args.results, names, need_truth=not args.submission)
    if args.submission and not any(task.truth.is_file() for task in tasks):
        if places != Places():
            raise ValueError(f"{args.gt}: without ground truth there is nothing to write but --submission")
        for task in tasks:
            check_result(task)
        submit(args.submission, tasks)
        return
    for task in tasks:
        if not task.truth.is_file():
            raise FileNotFoundError(f"{task.truth}: no such file, though other sequences have theirs")
    tasks = choose(args, tasks)
    if places.films:
        check_pictures(tasks)
    settings = {"gt": str(args.gt), "results": str(args.results), **describe_rules(args, tasks), **settings}
    figures, compared, events = score_all(args, tasks, places.details or args.events == PRINT)
    written = write_report(places, figures, settings, compared, events)  # before anything can go wrong with a terminal
    print_settings(settings)
    print(format_table(figures))
    for path in written:
        print(f"wrote {path}")
    if args.events == PRINT:
        print(*list_switches(events), sep="\n")
    if args.submission:
        submit(args.submission, tasks)
    if places.films:
        pictures = [task.sequence for task in tasks if task.sequence]
        for path in write_films(places.films, compared, events, pictures):
            print(f"wrote {path}")


def choose_places(args: argparse.Namespace, inputs: Sequence[Path]) -> Places:
    """Where everything goes, none of it over what is read."""
    out = args.out
    if out:
        out.mkdir(parents=True, exist_ok=True)

    def place(given: Any, name: str) -> Path | None:
        return Path(given) if given else out / name if out else None

    places = Places(
        scores=place(args.json, "scores.json"),
        table=place(args.csv, "scores.csv"),
        events=None if args.events == PRINT else place(args.events, "events.csv"),
        settings=out / "run.json" if out else None,
        plots=place(args.plots, "plots") if args.plots != HERE else (out or Path()) / "plots",
        films=None if args.video is None else (out or Path()) / "video" if args.video == HERE else Path(args.video),
    )
    lists = [path for path in (args.seqmap, args.weights if args.weights != BUNDLED else None) if path]
    places.claim([*inputs, *map(Path, lists)], [args.submission] if args.submission else [])
    return places


def choose(args: argparse.Namespace, tasks: list[Task]) -> list[Task]:
    """The tasks with their parts, rules and classes."""
    chosen = []
    for task in tasks:
        if args.half and task.sequence is None:
            raise ValueError(f"{task.name}: --half needs the sequence's seqinfo.ini")
        part = part_of(args, task.sequence)
        chosen.append(dataclasses.replace(task, part=part, renumbered=args.renumbered, benchmark=args.benchmark))
    if not args.classes:
        return chosen
    # A class that nobody has in the ground truth is a class of false positives.
    present: set[int] = set()
    for task in tasks:
        truth, results = (read_mot(path, world=False) for path in (task.truth, task.results))
        present |= {int(number) for number in (*classes_of(truth), *results.classes) if number >= 1}
    if args.classes == "all":
        classes = present
    else:
        try:
            classes = {int(number) for number in args.classes.split(",")}
        except ValueError:
            raise ValueError(f"--classes: expected numbers with commas between, or all, got {args.classes!r}") from None
    if not classes or classes - present - {0}:
        there = ", ".join(map(str, sorted(present))) or "none"
        raise ValueError(f"--classes: expected some of those in ground truth and results, {there}, got {args.classes}")
    return [dataclasses.replace(task, class_id=number) for task in chosen for number in sorted(classes)]


def part_of(args: argparse.Namespace, sequence: MotSequence | None) -> tuple[int, int] | None:
    """First and last frame that are scored of a sequence; None for all."""
    if args.half:
        assert sequence
        return half_of(sequence.length, args.half)
    part: tuple[int, int] | None = args.frames
    return part


# --- the tracker


def run_tracker(args: argparse.Namespace, sequences: Sequence[MotSequence], inputs: Sequence[Path]) -> dict[str, Any]:
    """Track the sequences by tools/track.py into --results; returns what it was set to."""
    given = {sequence.folder.name: path for sequence, path in zip(sequences, inputs, strict=True)}
    # Without public detections, sequences of the same pictures have the same result.
    groups = same_pictures(sequences) if args.weights else [[sequence] for sequence in sequences]
    config: dict[str, Any] = {}
    for number, (first, *copies) in enumerate(groups, start=1):
        name = first.folder.name
        say(f"tracking {name}, {number} of {len(groups)}")
        config = track(args, first, given[name])
        for copy in copies:
            shutil.copyfile(args.results / f"{name}.txt", args.results / f"{copy.folder.name}.txt")
    if args.detections:
        return {"detections": args.detections, "config": config}
    from detector.checkpoint import BUNDLED as BUNDLED_FILE

    file = BUNDLED_FILE if args.weights == BUNDLED else Path(args.weights)
    return {"weights": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "config": config}


def tracker_input(args: argparse.Namespace, sequence: MotSequence) -> Path:
    """What the tracker reads of a sequence; refuses a sequence of which it would see a part only."""
    if args.weights:
        pictures = len(list_images(sequence.image_dir)) if sequence.image_dir.is_dir() else 0
        if pictures != sequence.length:
            raise ValueError(f"{sequence.image_dir}: expected {sequence.length} pictures, found {pictures}")
        return sequence.folder
    name = sequence.folder.name
    public = args.detections == PUBLIC
    path = sequence.folder / "det" / "det.txt" if public else Path(args.detections) / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the detections of {name}")
    return path


def track(args: argparse.Namespace, sequence: MotSequence, given: Path) -> dict[str, Any]:
    """Track one sequence; returns what the tracker was set to."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import track as tool

    summary = args.results / f"{sequence.folder.name}.json"
    argv = ["--out", str(args.results), "--json", str(summary), *args.track]
    if args.weights:
        argv += ["--video", str(given), "--no-video"]
        argv += ["--weights", args.weights] if args.weights != BUNDLED else []
    else:
        argv += ["--detections", str(given)]
        argv += ["--fps", f"{sequence.frame_rate:g}"] if args.detections != PUBLIC else []
    part = part_of(args, sequence)
    argv += ["--start", str(part[0]), "--end", str(part[1])] if part else []
    status = tool.main(argv)
    if status:
        raise TrackerFailedError(status)
    config: dict[str, Any] = json.loads(summary.read_text())["config"]
    return config


# --- scores


def score_all(
    args: argparse.Namespace, tasks: Sequence[Task], details: bool
) -> tuple[dict[str, Figures], dict[str, Compared], dict[str, Events]]:
    """Figures by name; and where something is drawn or listed of them, what was compared and the events."""
    # After the detector's threads this process must not be copied, and the time to score is nothing beside theirs.
    processes = args.processes or (1 if args.weights else available_cores())
    compared: dict[str, Compared] = {}
    events: dict[str, Events] = {}
    with meter("scoring", "sequences") as show:
        if args.engine == "motmetrics":
            from tracker.motmetrics_engine import motmetrics_figures  # pandas takes a second to load

            compared = {one.name: one for one in map_tasks(compare, tasks, processes)}
            figures, events = motmetrics_figures(list(compared.values()), show)
            return figures, compared, events
        parts: list[Figures] = []
        for answer in map_tasks(score_in_detail if details else score, tasks, processes):
            if details:
                answer, one = answer
                compared[one.name], events[one.name] = one, clear_events(one)
            parts.append(answer)
            show(len(parts), len(tasks))
    return combine_tasks(tasks, parts), compared, events


def describe_rules(args: argparse.Namespace, tasks: Sequence[Task]) -> dict[str, Any]:
    """Which engine scores which frames by whose rules."""
    rules = set()
    for task in tasks:
        if task.class_id is not None:
            rules.add("each class by itself")
        else:
            named = task.benchmark or benchmark_of_name(task.name)
            rules.add(named or benchmark_of(task.name, read_mot(task.truth)))
    frames = f"{args.half} half" if args.half else f"{args.frames[0]} to {args.frames[1]}" if args.frames else "all"
    names = list(dict.fromkeys(task.name for task in tasks))
    return {"engine": args.engine, "rules": sorted(map(str, rules)), "frames": frames, "sequences": names}


def print_settings(settings: dict[str, Any]) -> None:
    """What the scores are of."""
    shown = dict(settings)
    config = shown.pop("config", None)
    shown["sequences"] = len(shown["sequences"])
    for name, value in shown.items():
        print(f"{name + ':':<12} {', '.join(value) if isinstance(value, list) else value}")
    if config:
        print(yaml.safe_dump(config, default_flow_style=None, sort_keys=False, width=120).rstrip())
    print()


def check_pictures(tasks: Sequence[Task]) -> None:
    """Refuse --video where there is nothing to draw on."""
    for task in tasks:
        if task.sequence is None:
            raise ValueError(f"{task.name}: --video needs the sequence's seqinfo.ini and pictures")
        folder, needed = task.sequence.image_dir, task.sequence.length
        there = len(list_images(folder)) if folder.is_dir() else 0
        if there != needed:  # were some missing, the others would be taken for them
            raise ValueError(f"{folder}: --video needs {needed} pictures, found {there}")


def submit(path: Path, tasks: Sequence[Task]) -> None:
    """Write the archive for the server."""
    results = {task.name: task.results for task in tasks}
    write_submission(path, results)
    print(f"wrote {path}: {len(results)} sequences")


if __name__ == "__main__":
    sys.exit(main())
