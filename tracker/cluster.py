"""Functions run in many processes, on this machine or several, by Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tracker.archive import FAILED, Job, Outcome
from tracker.console import hold_signals, say
from tracker.video import available_cores

LOCAL = "local"
"""In place of an address: a Ray of our own on this machine."""
TRIES = 3
# Earlier ones know no token, without which anybody on this machine could give our Ray commands.
_OLDEST_RAY = (2, 52)
# Cores for a worker where nobody says: one decodes and writes while the other detects.
_CORES = 2
# Workers that share a GPU where nobody says.
_GPU_WORKERS = 4
# How long the head of a cluster may take to answer.
_ANSWER_SECONDS = 10.0
# How long processes of our own Ray may take to stop writing.
_REMOVE_SECONDS = 5.0
# Bytes for objects that processes share; what travels here is a few lines.
_OBJECT_STORE = 100 * 2**20


@dataclass(frozen=True)
class Plan:
    """How work is spread.

    Attributes:
        workers: tasks at a time.
        threads: of the network in each.
        cpus: cores that Ray sets aside for each.
        gpus: part of a GPU for each, 0 for none.
    """

    workers: int
    threads: int
    cpus: int
    gpus: float


def plan_work(
    cpus: int, largest: int, gpus: int, jobs: int, workers: int | None = None, threads: int | None = None
) -> Plan:
    """Spread jobs over what there is.

    Args:
        cpus: cores of all machines.
        largest: cores of the largest machine; a worker fits into it.
        gpus: of all machines; 0 where none is to be used.
        jobs: how many there are.
        workers: as many as this, where the user says and there are cores for them.
        threads: for each, where the user says.

    Raises:
        ValueError: there is no core, so that every job would wait for ever.
    """
    if cpus < 1:
        raise ValueError("--ray: the cluster has no CPU")
    if workers is None:
        workers = max(1, cpus // (threads or _CORES))
        workers = min(workers, gpus * _GPU_WORKERS) if gpus else workers
    workers = max(1, min(workers, jobs, cpus))
    share = min(cpus // workers, largest)
    return Plan(workers, threads or share, share, 1 / math.ceil(workers / gpus) if gpus else 0)


class Cluster:
    """A Ray that this process is connected to, see `connected`.

    Attributes:
        cpus: cores of all machines.
        largest: cores of the largest one.
        gpus: GPUs of all machines.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.cpus = int(sum(node.get("CPU", 0) for node in nodes))
        self.largest = int(max((node.get("CPU", 0) for node in nodes), default=0))
        self.gpus = int(sum(node.get("GPU", 0) for node in nodes))

    def scatter(
        self, function: Callable[[Job, int], Outcome], jobs: Sequence[Job], plan: Plan
    ) -> Iterator[tuple[Job, Outcome]]:
        """Run a function for each job, and give what comes of it, in the order in which it comes.

        A job whose process dies, or that failed for a reason which may pass, is tried again, `TRIES` times in all.
        Ray's own retries are not used: those for lack of memory have no limit. What still runs when iteration ends
        early ends with the connection; `ray.cancel` would end this process, too, where it meets the reply of a task.

        Args:
            function: of a job and the number of the attempt, from 1; raises only what every job would meet.
            jobs: what to do.
            plan: how.

        Raises:
            ValueError: the workers cannot be set up, or the function raised.
        """
        ray = self._ray
        errors = ray.exceptions
        task = ray.remote(max_retries=0, num_cpus=plan.cpus, num_gpus=plan.gpus)(function)
        waiting = deque((job, 1) for job in jobs)
        running: dict[Any, tuple[Job, int]] = {}
        while waiting or running:
            while waiting and len(running) < plan.workers:
                job, attempt = waiting.popleft()
                with hold_signals():
                    running[task.remote(job, attempt)] = job, attempt
            (over,), _ = ray.wait(list(running), num_returns=1)
            job, attempt = running[over]
            try:
                outcome = ray.get(over)
            except (errors.RuntimeEnvSetupError, errors.RayTaskError) as error:  # every job would meet it
                raise ValueError(f"--ray: a worker cannot start: {_last_line(error)}") from error
            except errors.RayError as error:
                job.clear()
                outcome = Outcome(FAILED, error=f"{job.video}: {_reason(error)}", passing=True)
            del running[over]
            if outcome.passing and attempt < TRIES:
                say(f"note: {outcome.error}; attempt {attempt + 1} of {TRIES} follows")
                waiting.append((job, attempt + 1))
            else:
                yield job, dataclasses.replace(outcome, attempts=attempt)


@contextlib.contextmanager
def connected(address: str, modules: Sequence[ModuleType], workers: int | None = None) -> Iterator[Cluster]:
    """Start a Ray of our own, or join one; it is silent, and is shut down or left when the block ends.

    One of our own listens on the loopback interface only, takes commands from this process only, and leaves no file.

    Args:
        address: `LOCAL`, or where the head of a cluster is, `host:port`.
        modules: packages sent to the workers of a cluster, which have no checkout.
        workers: of our own Ray, so that it takes as many, however few cores there are.

    Raises:
        ValueError: Ray is not installed or too old, or there is no cluster at the address.
    """
    with contextlib.ExitStack() as stack:
        # Ray prints what its daemons report, whatever it is told about logs.
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        # Handlers of signals that Ray's core would put in the place of ours end the process, or crash it.
        variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}
        options: dict[str, Any] = {"address": address}
        if address == LOCAL:
            # Without a cluster in mind (which the first asks for on Windows and macOS), Ray uses the loopback address.
            variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Names of sockets lie below it and may not be long, as those in a user's temporary folder are.
            short = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108
            folder = tempfile.mkdtemp(prefix="ray-", dir=short)
            stack.callback(_remove, folder)
            options |= {"include_dashboard": False, "num_cpus": max(available_cores(), workers or 1)}
            options |= {"object_store_memory": _OBJECT_STORE, "_temp_dir": folder}
        else:
            _knock(address)
            options["runtime_env"] = {"py_modules": modules}
        stack.enter_context(_environment(variables))
        ray = _ray()
        # Started in another thread, Ray leaves the other handlers alone, too. Its processes end with the thread.
        thread = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(ray.shutdown)
        try:
            with _mute():
                quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL + 1}
                info = thread.submit(ray.init, **quiet, **options).result().address_info
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"--ray: {address}: {reason}") from error
        if address == LOCAL and not ipaddress.ip_address(info["node_ip_address"]).is_loopback:
            raise ValueError(f"--ray: expected Ray to listen on this machine only, got {info['node_ip_address']}")
        yield Cluster(ray)


def _remove(folder: str) -> None:
    """Remove a folder in which processes that are about to end may still write."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    absent = 0  # looks in a row that did not find it: they make it again
    while absent < 5 and time.monotonic() < deadline:
        absent = 0 if Path(folder).exists() else absent + 1
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _knock(address: str) -> None:
    """Ray itself waits a minute and more for a head that is not there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray: {address}: no answer: {error}") from None


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise ValueError('--ray: Ray is not installed: pip install -e ".[ray]"') from None
    if tuple(map(int, ray.__version__.split(".")[:2])) < _OLDEST_RAY:
        raise ValueError(f"--ray: expected Ray {'.'.join(map(str, _OLDEST_RAY))} or later, got {ray.__version__}")
    return ray


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Let nobody write to stderr; Ray's core does, not by Python's, as long as it cannot connect."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    """What ended a task, in a few words; Ray's own fill a page."""
    words = {
        "WorkerCrashedError": "its process died",
        "OutOfMemoryError": "its process was ended for lack of memory",
        "NodeDiedError": "its machine went away",
    }
    return words.get(type(error).__name__) or f"{type(error).__name__}: {_last_line(error)}"


def _last_line(error: Exception) -> str:
    """The end of one of Ray's messages: after the traceback of a worker, the message of what was raised there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].removeprefix("ValueError: ")
