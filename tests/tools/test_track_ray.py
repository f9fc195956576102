"""`tools/track.py --ray`: real processes, with a detector that needs no torch."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.tools.conftest import TRACK
from tests.tracker.clips import write_clip

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[2]

# Found before the real packages, here and by the workers: a detector that is slow and certain, and that no process
# survives which shows it a picture 128 pixels wide.
FAKES = {
    "torch.py": "def set_num_threads(count): pass\n",
    "detector/checkpoint.py": "from pathlib import Path\nBUNDLED = Path(__file__)\n",
    "detector/__init__.py": """
import dataclasses, os, signal, time, types
from tests.tracker.clips import find_square

@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    score_thresh: float = 0.1
    max_detections: int = 300

class Detector:
    device = types.SimpleNamespace(type="cpu")
    config = DetectorConfig()

    def __call__(self, frames):
        time.sleep(0.03)
        if frames[0].shape[1] == 128:
            os.kill(os.getpid(), signal.SIGKILL)
        return find_square(frames)

def load_detector(weights, device, config):
    return Detector()
""",
}
# Runs the tool as a script, but with the fakes, which it would look for after its own checkout.
SCRIPT = (
    f"import detector, runpy, sys, torch; sys.argv[0] = {str(TRACK)!r}; runpy.run_path(sys.argv[0], {{}}, '__main__')"
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    fakes = tmp_path_factory.mktemp("fakes")
    for name, text in FAKES.items():
        (fakes / name).parent.mkdir(exist_ok=True)
        (fakes / name).write_text(text)
    mine = {"PYTHONPATH": f"{fakes}{os.pathsep}{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **mine, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts the tool, in a process group of its own as a shell does, in a folder that is not the checkout."""
    started = []

    def call(*argv: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, *map(str, argv)]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path, start_new_session=True
            )
        )
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Status, stdout and stderr, but for the lines of progress that a busy machine takes long enough for."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, re.sub(r"^video \d.* left\n", "", err, flags=re.MULTILINE)


def write_clips(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    return [write_clip(folder / f"clip{number}.mp4", 20 + number) for number in range(count)]


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> list[tuple[psutil.Process, list[str]]]:
    """All processes below one, with their command lines."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append((child, child.cmdline()))
    return found


def working(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The workers that have a task."""
    return [child for child, words in children(process) if words[:1] == ["ray::work"]]


@contextlib.contextmanager
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray with two cores that somebody else has started."""
    ray = Path(sys.executable).with_name("ray")
    port = 20000 + os.getpid() % 10000
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = ["--head", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2", "--include-dashboard=false"]
        command = [ray, "start", *options, "--object-store-memory=100000000", "--block"]
        log = Path(folder, "log")
        with (
            log.open("w") as file,
            subprocess.Popen(command, env=environment, stdout=file, stderr=file, text=True) as head,
        ):
            wait_for(lambda: "Ray runtime started" in log.read_text(), head)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                head.terminate()


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


def test_a_killed_worker_leaves_no_trace(start: Start, track, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "archive", 8)
    assert track("--video", *clips, "--no-video", "--out", tmp_path / "alone")[0] == 0
    write_clip(tmp_path / "archive" / "deadly.mp4", 5, size=(128, 80))
    out = tmp_path / "out"
    options = ("--video", "archive/*.mp4", "--no-video", "--out", "out", "--ray", "--ray-workers", 2)
    process = start(*options, "--json", "s.json")
    wait_for(lambda: list(out.glob(".clip*.part1/*.txt")) and working(process), process)
    listening = {
        connection.laddr.ip
        for child, _ in children(process)
        for connection in child.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and all(address.removeprefix("::ffff:").startswith("127.") for address in listening)
    working(process)[0].kill()
    status, text, err = ended(process)

    deadly = str(tmp_path / "archive" / "deadly.mp4")
    *notes, last = err.splitlines()
    died = "its process died; attempt"
    assert sorted(notes)[-2:] == [f"note: {deadly}: {died} {attempt} of 3 follows" for attempt in (2, 3)]
    assert len(notes) == 3 and re.fullmatch(rf"note: .*/clip\d.mp4: {died} 2 of 3 follows", sorted(notes)[0])
    assert (status, last) == (1, f"error: {deadly}: its process died")
    assert text.splitlines()[0] == "9 of 9 videos, 2 at a time, 1 thread each"
    assert text.splitlines()[-1].startswith("9 videos: 8 tracked, 1 failed; 188 frames, 1.0 people a frame, 8 ids, ")
    assert texts(out) == texts(tmp_path / "alone")
    names = {f"clip{i}.{ending}" for i in range(8) for ending in ("txt", "done.json")}
    assert {path.name for path in out.iterdir()} == names

    report = json.loads((tmp_path / "s.json").read_text())
    assert report["error"] == "1 of 9 videos failed"
    assert [run["state"] for run in report["runs"]] == ["tracked"] * 8 + ["failed"]
    assert report["runs"][8]["attempts"] == 3
    assert sorted(run["attempts"] for run in report["runs"][:8]) == [1] * 7 + [2]

    (tmp_path / "archive" / "deadly.mp4").unlink()
    status, text, err = ended(start(*options))  # needs no Ray
    assert (status, err) == (0, "")
    assert text == "8 videos: 8 finished before; 188 frames, 1.0 people a frame, 8 ids\n"


def test_interrupt_leaves_what_is_finished(start: Start, tmp_path: Path) -> None:
    write_clips(tmp_path / "archive", 4)
    out = tmp_path / "out"
    process = start("--video", "archive/*.mp4", "--out", "out", "--ray", "--ray-workers", 1)
    wait_for(lambda: list(out.glob("*.done.json")) and list(out.glob(".clip*.part1/*.txt")), process)
    below = children(process)
    folders = set(re.findall(r"/tmp/ray-\w+", " ".join(word for _, words in below for word in words)))
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    status, text, err = ended(process)
    assert status == 130, (status, text, err)
    finished = sorted(path.name.split(".")[0] for path in out.glob("*.done.json"))
    assert 1 <= len(finished) < 4
    known = int(err.split()[2])  # one more may have ended before it could tell
    assert len(finished) - 1 <= known <= len(finished)
    assert err == f"interrupted after {known} of 4 videos; the same command goes on from there\n"
    assert text.splitlines()[-1].startswith(f"4 videos: {known} tracked, {4 - known} left; ")
    endings = ("txt", "tracked.mp4", "done.json")
    assert {path.name for path in out.iterdir()} == {f"{name}.{ending}" for name in finished for ending in endings}
    assert psutil.wait_procs([child for child, _ in below], timeout=60)[1] == []
    assert len(folders) == 1 and not Path(folders.pop()).exists()


def test_interrupt_leaves_a_cluster_free(start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    write_clips(tmp_path / "archive", 4)
    out = tmp_path / "out"
    with cluster(environment) as address:
        process = start("--video", "archive/*.mp4", "--out", "out", "--ray", address, "--ray-workers", 1)
        wait_for(lambda: list(out.glob("*.done.json")) and list(out.glob(".clip*.part1/*.txt")), process)
        workers = [
            child for child in psutil.process_iter(["cmdline"]) if (child.info["cmdline"] or [])[:1] == ["ray::work"]
        ]
        os.killpg(process.pid, signal.SIGINT)
        status, _, err = ended(process)
        assert (status, err[:12]) == (130, "interrupted ")
        assert workers and psutil.wait_procs(workers, timeout=60)[1] == []


def test_on_a_cluster(start: Start, track, environment: dict[str, str], tmp_path: Path) -> None:
    cut = write_clips(tmp_path / "archive", 2)[1].with_name("cut.mp4")
    whole = write_clip(cut, 40, movflags="faststart", g="1").read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    assert track("--video", tmp_path / "archive" / "*.mp4", "--out", tmp_path / "alone")[0] == 1
    frames = len((tmp_path / "alone" / "cut.txt").read_text().splitlines())
    assert 10 < frames < 40
    with cluster(environment) as address:
        options = ("--video", "archive/*.mp4", "--out", "out", "--ray", address)
        status, text, err = ended(start(*options))
        assert status == 1
        assert re.fullmatch(rf"error: {cut}: stopped at frame {frames} of 40: .*\n", err)
        assert text.splitlines()[-1].startswith("3 videos: 2 tracked, 1 failed; ")
        assert texts(tmp_path / "out") == texts(tmp_path / "alone")
        cut.write_bytes(whole)
        status, text, err = ended(start(*options, "--set", "tracker.confirm_frames=5"))
        assert (status, err) == (0, "")
        assert text.splitlines()[-1].startswith("3 videos: 3 tracked; ")
    status, text, err = ended(start(*options))
    assert (status, text) == (1, "3 videos: 3 left; 0 frames, 0.0 people a frame, 0 ids\n")
    assert re.fullmatch(rf"error: --ray: {address}: .*\n", err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_while_ray_starts(start: Start, tmp_path: Path, number: int, status: int) -> None:
    write_clips(tmp_path / "archive", 2)
    process = start("--video", "archive/*.mp4", "--out", "out", "--ray")
    wait_for(lambda: any("gcs_server" in words[0] for _, words in children(process) if words), process)
    process.send_signal(number)
    below = children(process)
    folders = set(re.findall(r"/tmp/ray-\w+", " ".join(word for _, words in below for word in words)))
    assert ended(process) == (
        status,
        "2 videos: 2 left; 0 frames, 0.0 people a frame, 0 ids\n",
        "interrupted after 0 of 2 videos; the same command goes on from there\n",
    )
    assert psutil.wait_procs([child for child, _ in below], timeout=60)[1] == []
    assert folders and not any(Path(folder).exists() for folder in folders)
    assert not list((tmp_path / "out").iterdir())
