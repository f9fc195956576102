"""What a tool says on the terminal, and what it hears from there: progress, signals, errors in one line."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# Seconds between lines of progress where stderr is no terminal.
_LOG_SECONDS = 30.0


def progress(
    items: Iterable[Item], total: int | None, done: int = 0, doing: str = "", unit: str = "frames"
) -> Iterator[Item]:
    """Pass items through, with a bar on a terminal and a line now and then elsewhere, both on stderr.

    Args:
        items: one for each frame, or whatever `unit` is.
        total: number of them with `done`; None where nobody knows.
        done: how many count as done from the start.
        doing: what is being done, said before the numbers.
        unit: what is counted, in the plural.
    """
    started = logged = time.monotonic()
    first = done
    with tqdm(desc=doing or None, total=total, initial=done, unit=f" {unit}", disable=None, leave=False) as bar:
        for done, item in enumerate(items, start=first + 1):
            yield item
            bar.update()
            now = time.monotonic()
            if bar.disable and now - logged >= _LOG_SECONDS:
                logged = now
                rate = (done - first) / (now - started)
                left = f", {tqdm.format_interval((total - done) / rate)} left" if total and rate else ""
                print(f"{doing or unit[:-1]} {done}/{total or '?'}, {rate:.3g} {unit}/s{left}", file=sys.stderr)


@contextlib.contextmanager
def meter(doing: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of progress on a terminal, for work that tells how many of how many units are done."""
    with tqdm(desc=doing, unit=f" {unit}", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def counted(number: int, units: str) -> str:
    """`1 frame`, `2 frames`; `units` are in the plural."""
    return f"{number} {units[:-1] if number == 1 else units}"


def say(message: str) -> None:
    """Print a line on stderr without breaking a bar of progress there."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class _Signals:
    """Depth of blocks, whether a signal has to wait, the one that does, and the one raised as KeyboardInterrupt."""

    depth = 0
    held = False
    waiting: int | None = None
    raised: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """The first Ctrl-C or termination raises KeyboardInterrupt; later ones wait until the files are closed.

    Blocks may be nested, where a library puts its own handlers in the place of these.
    """

    def stop(number: int, _: Any) -> None:
        if _Signals.held:
            _Signals.waiting = _Signals.waiting or number
        else:
            _interrupt(number)

    before = [signal.signal(number, stop) for number in _NUMBERS]
    _Signals.depth += 1
    try:
        yield
    finally:
        _Signals.depth -= 1
        # After a signal the outer block, if any, goes on ignoring more of them, and its `fail` knows of it.
        if not _Signals.depth or _Signals.raised is None:
            _Signals.raised = None
            for number, handler in zip(_NUMBERS, before, strict=True):
                signal.signal(number, handler)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let a signal wait for the end of the block: an exception inside a queue's lock would leave it locked.

    Where one came before, and a library has swallowed the KeyboardInterrupt, it is raised again here.
    """
    if _Signals.raised is not None:
        raise KeyboardInterrupt(_Signals.raised)
    _Signals.held = True
    try:
        yield
    finally:
        _Signals.held = False
        number, _Signals.waiting = _Signals.waiting, None
    if number is not None:  # not where the block failed: its own error tells more
        _interrupt(number)


def _interrupt(number: int) -> NoReturn:
    """Raise the first signal, and ignore later ones."""
    for each in _NUMBERS:
        signal.signal(each, signal.SIG_IGN)
    _Signals.raised = number
    raise KeyboardInterrupt(number)


def fail(error: BaseException, debug: bool, reach: str = "") -> int:
    """Tell what went wrong in one line, and return the exit status: 1, or 128 + signal when interrupted.

    Args:
        error: what was raised. After a signal that is an interruption, too: where it arrives inside a library, the
            KeyboardInterrupt may be taken for another error there.
        debug: print the traceback, too.
        reach: how far the work had come when it was interrupted.
    """
    sys.stdout.flush()
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) or _Signals.raised is not None:
        print(f"interrupted{reach}", file=sys.stderr)
        number = error.args[0] if isinstance(error, KeyboardInterrupt) and error.args else _Signals.raised
        return int(128 + (number or signal.SIGINT))
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1


def one_line(error: BaseException) -> str:
    """An error's message on one line, starting with the file it concerns."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"
