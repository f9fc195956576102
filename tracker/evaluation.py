"""MOTChallenge evaluation: files of ground truth and results are read, checked, prepared, and scored."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from tracker.challenge import CLASS_AVERAGED, COMBINED, Task, find_tasks
from tracker.comparison import Compared
from tracker.console import hold_signals
from tracker.metrics import Figures, class_average, combine, sequence_figures
from tracker.mot import MotRows, line_of, read_mot
from tracker.preprocessing import (
    CLASSES,
    PEDESTRIAN,
    Benchmark,
    benchmark_of,
    benchmark_of_name,
    prepare,
    prepare_class,
    renumber,
    within,
)

Answer = TypeVar("Answer")


def evaluate(
    gt_root: str | Path,
    results_root: str | Path,
    sequences: Sequence[str] | None = None,
    benchmark: Benchmark | None = None,
    processes: int = 1,
) -> dict[str, Figures]:
    """Score a folder of result files, a result file of one sequence, or one of ground truth against one of results.

    Args:
        gt_root: ground truth, see `find_tasks`.
        results_root: results, see `find_tasks`.
        sequences: names or patterns of those to score; None: all, and no other result may be there.
        benchmark: whose rules hold; None: see `benchmark_of`.
        processes: how many sequences are scored at the same time.

    Returns:
        Figures of each sequence by its name, and of all together as "COMBINED". For parts of sequences and for classes
        see `Task`, `score` and `combine_tasks`.

    Raises:
        FileNotFoundError: a file of ground truth, a sequence's description or a result is missing.
        ValueError: an unknown sequence or benchmark; with `path:line`, what `read_mot` refuses, a frame beyond the
            sequence, an identity that comes twice in a frame, a class that the benchmark does not know.
    """
    tasks = [dataclasses.replace(task, benchmark=benchmark) for task in find_tasks(gt_root, results_root, sequences)]
    return combine_tasks(tasks, list(map_tasks(score, tasks, processes)))


def score(task: Task) -> Figures:
    """The figures of one task; raises what `compare` raises."""
    return score_in_detail(task)[0]


def score_in_detail(task: Task) -> tuple[Figures, Compared]:
    """The figures of one task, and what they were counted in; raises what `compare` raises."""
    compared = compare(task)
    return sequence_figures(compared.comparison), compared


def map_tasks(function: Callable[[Task], Answer], tasks: Sequence[Task], processes: int = 1) -> Iterator[Answer]:
    """Call a function, one that a module defines, with each task; several at a time, the answers in order."""
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield from map(function, tasks)
        return
    # Neighbours often have the same ground truth, which is then read once: MOT17 has each sequence three times.
    several = max(1, min(3, len(tasks) // (2 * processes)))
    with ProcessPoolExecutor(processes, initializer=_leave_signals) as pool:
        try:
            with hold_signals():  # what is raised while a process forks is lost, and with it a lock
                answers = pool.map(function, tasks, chunksize=several)
            yield from answers
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # they would finish what they are at first
                child.kill()
            raise


def combine_tasks(tasks: Sequence[Task], figures: Sequence[Figures]) -> dict[str, Figures]:
    """Figures by name, with those of all together.

    Returns:
        Those of each sequence by its name, and "COMBINED". Where classes are scored by themselves, also
        `<sequence>/<class>`, "COMBINED/<class>" and "CLASS-AVERAGED"; the names without a class then stand for all
        classes, in which each box counts as much.
    """
    scored = list(zip(tasks, figures, strict=True))
    named: dict[str, Figures] = {}
    for name in dict.fromkeys(task.name for task in tasks):
        own = [(task, one) for task, one in scored if task.name == name]
        named[name] = own[0][1] if own[0][0].class_id is None else combine([one for _, one in own])
        named |= {f"{name}/{task.class_id}": one for task, one in own if task.class_id is not None}
    classes = sorted({task.class_id for task in tasks if task.class_id is not None})
    of_class = {
        f"{COMBINED}/{number}": combine([one for task, one in scored if task.class_id == number]) for number in classes
    }
    if of_class:
        named |= {**of_class, CLASS_AVERAGED: class_average(list(of_class.values()))}
    return named | {COMBINED: combine(figures)}


def compare(task: Task) -> Compared:
    """Read, check, prepare and compare the files of one task.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: with `path:line`, as `evaluate`.
    """
    # Only the ground truth of MOT15 has places in the world; where classes are scored there are none.
    old = (task.benchmark or benchmark_of_name(task.name) or "MOT15") == "MOT15"
    return compare_rows(
        task,
        read_mot(task.truth, world=old and task.class_id is None),
        read_mot(task.results, world=False),
        lambda row: f"{task.truth}:{line_of(task.truth, row)}",
        lambda row: f"{task.results}:{line_of(task.results, row)}",
    )


def check_result(task: Task) -> None:
    """Refuse a result that the benchmarks' server would refuse, without comparing it to anything.

    Raises:
        FileNotFoundError: there is none.
        ValueError: with `path:line`, as `evaluate`.
    """
    assert task.sequence
    _check_results(
        read_mot(task.results, world=False),
        task.sequence.length,
        lambda row: f"{task.results}:{line_of(task.results, row)}",
    )


def compare_rows(
    task: Task,
    truth: MotRows,
    results: MotRows,
    truth_place: Callable[[int], str] = "truth: row {}".format,
    results_place: Callable[[int], str] = "results: row {}".format,
) -> Compared:
    """Check, prepare and compare rows that are read already.

    Args:
        task: what is to be compared of them; its files are not looked at.
        truth: ground truth, in any order of frames.
        results: identities not below 0.
        truth_place: says where a row, counted from 0, of the truth stands.
        results_place: the same of the results.

    Raises:
        ValueError: with the place, as `evaluate`.
    """
    benchmark = task.benchmark or benchmark_of(task.name, truth)
    if benchmark not in get_args(Benchmark):
        raise ValueError(f"benchmark: expected one of {', '.join(get_args(Benchmark))}, got {benchmark!r}")
    shift = task.part[0] - 1 if task.part and task.renumbered else 0
    results = renumber(results, shift)
    length = max(_last_frame(truth), _last_frame(results)) if task.sequence is None else task.sequence.length
    first, last = task.part or (1, length)
    if not 1 <= first <= last <= length:
        raise ValueError(f"{task.name}: expected first and last frame within 1 to {length}, got {first} to {last}")
    # A renumbered result that goes on behind its part has frames that nobody would miss.
    end = last if task.renumbered else length
    if task.class_id is None:
        _check_rows(truth, length, truth_place)
        if benchmark != "MOT15":
            expected = f"{CLASSES[0]} to {CLASSES[-1]} in ground truth of {benchmark}"
            _check_classes(truth, ~np.isin(truth.classes, CLASSES), expected, truth_place)
        _check_results(results, end, results_place, shift)
    else:
        for rows, frames, place, offset in ((truth, length, truth_place, 0), (results, end, results_place, shift)):
            _check_rows(rows, frames, place, offset, by_class=True)
            _check_classes(rows, rows.classes < 0, "a number from 0", place)
    truth, results = within(truth, first, last), within(results, first, last)
    of_part = renumber(truth, 1 - first), renumber(results, 1 - first), last - first + 1
    if task.class_id is None:
        return Compared(task.name, truth, results, first, prepare(*of_part, benchmark))
    name = f"{task.name}/{task.class_id}"
    return Compared(name, truth, results, first, prepare_class(*of_part, task.class_id))


def _check_results(rows: MotRows, frames: int, place: Callable[[int], str], shift: int = 0) -> None:
    _check_rows(rows, frames, place, shift)
    # 0 and -1 are usual, too.
    _check_classes(rows, rows.classes > PEDESTRIAN, f"at most {PEDESTRIAN}", place, "; choose the classes to score")


def _check_rows(
    rows: MotRows, frames: int, place: Callable[[int], str], shift: int = 0, by_class: bool = False
) -> None:
    """Refuse frames beyond the sequence, negative identities, and identities that come twice in a frame.

    Args:
        rows: of one file.
        frames: length of the sequence.
        place: says where a row stands.
        shift: by how much frames are higher than in the file.
        by_class: whether the identities of each class are counted by themselves.
    """
    outside = (rows.frames < 1) | (rows.frames > frames)
    if outside.any():
        row = int(outside.argmax())
        length, number = frames - shift, rows.frames[row] - shift
        raise ValueError(f"{place(row)}: frame: expected 1 to {length}, the sequence's length, got {number}")
    negative = rows.track_ids < 0
    if negative.any():
        row = int(negative.argmax())
        raise ValueError(f"{place(row)}: id: expected a number from 0, got {rows.track_ids[row]}")
    classes = rows.classes if by_class else np.zeros_like(rows.classes)
    order = np.lexsort((rows.track_ids, classes, rows.frames))
    same = [column[order][1:] == column[order][:-1] for column in (rows.frames, classes, rows.track_ids)]
    again = (same[0] & same[1] & same[2]).nonzero()[0] + 1
    if len(again):
        second = int(order[again].min())
        first = int(order[(order == second).argmax() - 1])
        number, frame = rows.track_ids[second], rows.frames[second] - shift
        raise ValueError(f"{place(second)}: id {number} comes twice in frame {frame}, first at {place(first)}")


def _last_frame(rows: MotRows) -> int:
    return int(rows.frames.max(initial=1))


def _check_classes(
    rows: MotRows, unknown: NDArray[np.bool_], expected: str, place: Callable[[int], str], advice: str = ""
) -> None:
    if unknown.any():
        row = int(unknown.argmax())
        raise ValueError(f"{place(row)}: class: expected {expected}, got {rows.classes[row]}{advice}")


def _leave_signals() -> None:
    """Ctrl-C reaches all processes, and the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
