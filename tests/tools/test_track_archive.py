"""`tools/track.py --ray` without processes: which recordings are tracked, tried again, refused and passed over."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tracker.scale_out
from tests.tools.conftest import failing
from tests.tracker.clips import write_clip, write_images
from tracker.archive import Job, Outcome, make, reserved
from tracker.cluster import Cluster, Plan, plan_work


class FakeRay:
    """Runs every task at once, where it is; `kill` names the attempts whose process dies."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

        class RayTaskError(RayError): ...

        class RuntimeEnvSetupError(RayError): ...

        class WorkerCrashedError(RayError): ...

    def __init__(self, kill: Callable[[Job, int], bool] = lambda job, attempt: False) -> None:
        self.kill = kill
        self.tried: list[tuple[str, int]] = []

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"Alive": True, "Resources": {"CPU": cores, "GPU": gpus}} for cores, gpus in ((8.0, 1.0), (4.0, 0))]
        return [*alive, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, **options: object) -> Callable[[Any], Any]:
        assert options == {"max_retries": 0, "num_cpus": options["num_cpus"], "num_gpus": options["num_gpus"]}

        def wrap(function: Callable[[Job, int], Any]) -> Any:
            def call(job: Job, attempt: int) -> "tuple[Any]":
                self.tried.append((Path(job.video).name, attempt))
                try:
                    return (
                        self.exceptions.WorkerCrashedError() if self.kill(job, attempt) else function(job, attempt),
                    )
                except Exception as error:
                    return (self.exceptions.RayTaskError(f"traceback\n{type(error).__name__}: {error}"),)

            return SimpleNamespace(remote=lambda job, attempt: _Reference(*call(job, attempt)))

        return wrap

    def wait(self, references: Sequence[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return list(references[:num_returns]), list(references[num_returns:])

    def get(self, reference: Any) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value


class _Reference:
    def __init__(self, value: object) -> None:
        self.value = value


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()

    @contextlib.contextmanager
    def connected(address: str, modules: object, workers: int | None) -> Iterator[Cluster]:
        yield Cluster(ray)  # type: ignore[arg-type]

    monkeypatch.setattr(tracker.scale_out, "connected", connected)
    return ray


def tracked(fake: FakeRay, outcome: tuple[int, str, str]) -> list[str]:
    """What a run that went well tracked."""
    status, _, err = outcome
    assert (status, err) == (0, "")
    names = [name for name, attempt in fake.tried]
    fake.tried.clear()
    return names


def test_finished_unless_something_changed(track, fake: FakeRay, tmp_path: Path) -> None:
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", 6)
    write_images(tmp_path / "frames", 4)
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    base = ["--video", tmp_path / "*.mp4", tmp_path / "frames", "--ray", "--device", "cpu", "--weights", weights]
    everything = ["a.mp4", "b.mp4", "frames"]

    def run(*options: object) -> list[str]:
        return tracked(fake, track(*base, *options))

    assert run() == everything
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert {path.name for path in first} >= {"a.txt", "a.tracked.mp4", "frames.txt"}
    assert run() == []  # neither are the films, which the glob fits, tracked
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert run("--no-video") == []
    assert run("--set", "tracker.confirm_frames=4") == everything
    assert run("--set", "tracker.confirm_frames=4") == []
    assert run() == everything
    assert run("--start", 2) == everything
    assert run() == everything
    weights.write_bytes(b"two")
    assert run() == everything
    assert run("--overwrite") == everything
    os.utime(tmp_path / "b.mp4", ns=(1, 1))
    assert run() == ["b.mp4"]
    (tmp_path / "frames" / "4.png").unlink()
    assert run() == ["frames"]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.tracked.mp4").write_bytes(b"")
    assert run("--no-video") == ["a.mp4"]
    assert run() == ["a.mp4", "b.mp4"]
    for broken in ("[", "[" * 100_000, "[]", "null"):
        (tmp_path / "b.done.json").write_text(broken)
        assert run() == ["b.mp4"]
    text = (tmp_path / "b.txt").read_text()
    (tmp_path / "b.txt").write_text(text.replace("1,", "2,", 1))  # as long as before
    assert run() == ["b.mp4"]
    assert (tmp_path / "b.txt").read_text() == text
    write_clip(tmp_path / "c.mp4", 3)
    assert run() == ["c.mp4"]


def test_the_same_as_one_at_a_time(track, fake: FakeRay, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_clip(tmp_path / folder / "cam.mp4", 20 if folder == "x" else 9)
    inputs, refined = (tmp_path / "x" / "cam.mp4", tmp_path / "y" / "cam.mp4"), ("--smooth", "--fill-gaps")
    assert track("--video", *inputs, "--out", tmp_path / "alone", *refined)[0] == 0
    report = tmp_path / "s.json"
    status, out, err = track("--video", *inputs, "--out", tmp_path / "ray", "--ray", *refined, "--json", report)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("2 videos: 2 tracked; 29 frames, 1.0 people a frame, 2 ids, ")
    for name in ("cam.txt", "cam-2.txt", "cam.tracked.mp4", "cam-2.tracked.mp4"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    told = json.loads(report.read_text())
    assert (told["frames"], told["ids"], told["boxes"], told["error"]) == (29, 2, 29, None)
    assert told["video"] == [str(path) for path in inputs]
    assert told["runs"][1]["outputs"] == [str(tmp_path / "ray" / f"cam-2.{end}") for end in ("txt", "tracked.mp4")]
    assert told["config"]["offline"]["smooth"] is True
    assert told["config"]["detector"]["score_thresh"] == 0.1


def test_bad_input_is_told_and_tried_once(track, fake: FakeRay, tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mp4", 8)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"to be or not to be" * 99)
    images = write_images(tmp_path / "broken", 9)
    (images / "5.png").write_bytes(b"")
    gone = tmp_path / "gone.mp4"
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken.done.json").write_text("{}")
    options = ("--video", bad, images, gone, good, "--no-video", "--out", out, "--ray")
    for count in (1, 2):  # the good one is finished when it is done again, the others are tried again
        status, text, err = track(*options)
        assert status == 1
        lines = err.splitlines()
        assert [line.startswith(f"error: {path}") for line, path in zip(lines, (bad, images, gone), strict=True)]
        assert "the file is empty" in lines[1] and "no such file" in lines[2]
        state = "1 tracked" if count == 1 else "1 finished before"
        assert text.splitlines()[-1].startswith(f"4 videos: {state}, 3 failed; 12 frames, ")
        assert {path.name for path in out.iterdir()} == {"good.txt", "good.done.json", "broken.txt"}
        assert len((out / "broken.txt").read_text().splitlines()) == 4
    assert fake.tried == [("bad.mp4", 1), ("broken", 1), ("good.mp4", 1), ("bad.mp4", 1), ("broken", 1)]
    assert "not a video" in failing(track("--video", bad, "--ray"))


def test_what_may_pass_is_tried_again(
    track, track_tool: Any, fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", 4)
    inputs = ("--video", tmp_path / "*.mp4", "--no-video")
    fake.kill = lambda job, attempt: job.video.endswith("a.mp4") and attempt < 3
    status, _, err = track(*inputs, "--ray")
    a, b = tmp_path / "a.mp4", tmp_path / "b.mp4"
    died = f"note: {a}: its process died; attempt"
    assert (status, err) == (0, f"{died} 2 of 3 follows\n{died} 3 of 3 follows\n")
    assert fake.tried == [("a.mp4", 1), ("b.mp4", 1), ("a.mp4", 2), ("a.mp4", 3)]

    fake.kill = lambda job, attempt: False
    fake.tried.clear()

    def full(frames: object) -> list[object]:
        raise MemoryError("no room")

    monkeypatch.setattr(track_tool, "load", lambda args, config: (full, 1, 1))
    status, _, err = track(*inputs, "--overwrite", "--ray", "--debug")
    assert status == 1
    assert [f"error: {path}: MemoryError: no room" in err for path in (a, b)] == [True, True]
    assert len(fake.tried) == 6
    assert "in full" in err  # where it was raised
    assert not list(tmp_path.glob(".*"))


def test_a_worker_that_cannot_start_ends_all(
    track, track_tool: Any, fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(args: object, config: object) -> object:
        raise ValueError("weights: no such thing")

    monkeypatch.setattr(track_tool, "load", load)
    clips = [write_clip(tmp_path / f"{name}.mp4", 4) for name in "abc"]
    line = failing(track("--video", *clips, "--ray", "--ray-workers", 2))
    assert line == "error: --ray: a worker cannot start: weights: no such thing"
    assert fake.tried == [("a.mp4", 1), ("b.mp4", 1)]
    assert not list(tmp_path.glob(".*"))


def test_a_result_is_moved_when_it_is_whole(tmp_path: Path) -> None:
    job = Job(0, "/somewhere/a.mp4", tmp_path / "a.b.txt", None, {"settings": [1, 2]})
    job.text.write_text("old")
    left = job.scratch(7)
    left.mkdir()

    def broken(video: str, folder: Path) -> tuple[dict[str, Any], None]:
        assert not left.exists()
        (folder / "a.txt").write_text("half")
        assert job.text.read_text() == "old"
        raise OSError(28, "No space left on device")

    outcome = make(broken, job, 1)
    assert (outcome.state, outcome.error, outcome.passing) == (
        "failed",
        "/somewhere/a.mp4: no space left on device",
        True,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.b.txt"]

    def good(video: str, folder: Path) -> tuple[dict[str, Any], None]:
        (folder / "a.txt").write_text("new")
        return {"frames": 1}, None

    assert make(good, job, 2).state == "tracked"
    assert job.text.read_text() == "new"
    assert job.finished() == {"frames": 1, "outputs": [str(job.text)]}
    assert {path.name for path in tmp_path.iterdir()} == {"a.b.txt", "a.b.done.json"}


def test_what_others_left_stays(tmp_path: Path) -> None:
    jobs = [Job(0, "/a", tmp_path / f"{name}.txt", None, {}) for name in ("a", "a.part2")]
    for job in jobs:
        job.scratch(1).mkdir()
    jobs[0].clear()
    assert [job.scratch(1).exists() for job in jobs] == [False, True]
    jobs[1].clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "device", "place"), [(1, "auto", "auto"), (1, "cuda", "cuda"), (1, "cpu", "cpu"), (0, "auto", "cpu")]
)
def test_device_of_a_worker(
    track, track_tool: Any, fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus, device, place
) -> None:
    def load(args: Any, config: object) -> object:
        raise ValueError(f"asked for {args.device}")

    monkeypatch.setattr(track_tool, "load", load)
    monkeypatch.setattr(fake, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": gpus}}])
    line = failing(track("--video", write_clip(tmp_path / "a.mp4", 2), "--ray", "--device", device))
    assert line.endswith(f"asked for {place}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cpus": 8}, Plan(4, 2, 2, 0)),
        ({"cpus": 1}, Plan(1, 1, 1, 0)),
        ({"cpus": 64, "jobs": 3}, Plan(3, 16, 16, 0)),  # 21, but no machine has as many
        ({"cpus": 8, "workers": 8}, Plan(8, 1, 1, 0)),
        ({"cpus": 2, "workers": 4}, Plan(2, 1, 1, 0)),
        ({"cpus": 8, "threads": 4}, Plan(2, 4, 4, 0)),
        ({"cpus": 8, "threads": 3, "workers": 8}, Plan(8, 3, 1, 0)),
        ({"cpus": 16, "gpus": 1}, Plan(4, 4, 4, 0.25)),
        ({"cpus": 16, "gpus": 2, "workers": 3}, Plan(3, 5, 5, 0.5)),
    ],
)
def test_plan(given: dict[str, int], expected: Plan) -> None:
    assert plan_work(**{"largest": 16, "gpus": 0, "jobs": 100, **given}) == expected


def test_no_plan_without_a_core() -> None:
    with pytest.raises(ValueError, match=r"^--ray: the cluster has no CPU$"):
        plan_work(0, 0, 0, 3)


def test_cluster_counts_what_is_alive() -> None:
    cluster = Cluster(FakeRay())  # type: ignore[arg-type]
    assert (cluster.cpus, cluster.largest, cluster.gpus) == (12, 8, 1)


def test_options_that_do_not_go_with_it(track, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 2)
    for options, message in [
        (("--show",), "--show: with --ray nobody watches"),
        (("--serve", "8080"), "--serve: with --ray nobody watches"),
        (("--realtime",), "--realtime: with --ray nobody watches"),
        (("--max-latency", "1"), "--max-latency: with --ray nobody watches"),
        (("--global-ids",), "--global-ids: with --ray each recording is tracked by itself"),
        (("--set", "offline.global_ids=true"), "offline.global_ids: with --ray each recording is tracked by itself"),
        (("--detections", "det.txt"), "--detections: --ray tracks videos"),
        (("--ray-workers", "0"), "--ray-workers: expected at least 1, got 0"),
        (("--weights", tmp_path / "none.pt"), f"{tmp_path}/none.pt: no such file or directory"),
    ]:
        assert failing(track("--video", clip, "--ray", *options)) == f"error: {message}"
    expected = "error: --ray: expected recordings, got 'rtsp://***@host/x'"
    assert failing(track("--video", clip, "rtsp://me:mine@host/x", "--ray")) == expected
    assert "got '0'" in failing(track("--video", "0", "--ray"))
    for address in ("auto", "ray://host:1", "host", ""):
        line = failing(track("--video", clip, "--ray", address))
        assert line == f"error: --ray: expected HOST:PORT, or nothing for this machine, got {address!r}"
    for port in ("0", "65536", "99999"):
        line = failing(track("--video", clip, "--ray", f"host:{port}"))
        assert line == f"error: --ray: expected a port from 1 to 65535, got {port}"
    assert failing(track("--video", clip, "--overwrite")) == "error: --overwrite: is for --ray"
    assert failing(track("--video", clip, "--ray-workers", 2)) == "error: --ray-workers: is for --ray"


def test_without_ray(track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    line = failing(track("--video", write_clip(tmp_path / "a.mp4", 2), "--ray"))
    assert line == 'error: --ray: Ray is not installed: pip install -e ".[ray]"'
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4"}


def test_a_ray_that_is_too_old(track, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__="2.9.3"))
    line = failing(track("--video", write_clip(tmp_path / "a.mp4", 2), "--ray"))
    assert line == "error: --ray: expected Ray 2.52 or later, got 2.9.3"


def test_two_runs_do_not_share_a_folder(track, fake: FakeRay, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    clip, out = write_clip(tmp_path / "a.mp4", 3), tmp_path / "out"
    out.mkdir()
    with reserved(out):
        line = failing(track("--video", clip, "--out", out, "--ray"))
    assert line == f"error: {out}: another run with --ray writes its results here"
    assert not list(out.iterdir())
    assert tracked(fake, track("--video", clip, "--out", out, "--ray")) == ["a.mp4"]


def test_a_scratch_folder_that_vanishes_is_no_fault_of_the_input(tmp_path: Path) -> None:
    job = Job(0, str(tmp_path / "a.mp4"), tmp_path / "a.txt", None, {})

    def missing(path: Path) -> Outcome:
        def track(video: str, folder: Path) -> tuple[dict[str, Any], None]:
            raise FileNotFoundError(2, "No such file or directory", str(path))

        return make(track, job, 1)

    assert missing(job.scratch(1) / "a.txt").passing
    assert not missing(tmp_path / "a.mp4").passing


def test_no_more_workers_are_asked_for_than_there_is_work(
    track, fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    connected = tracker.scale_out.connected

    def count(address: str, modules: Any, workers: int | None) -> Any:
        asked.append(workers)
        return connected(address, modules, workers)

    monkeypatch.setattr(tracker.scale_out, "connected", count)
    clips = [write_clip(tmp_path / f"{name}.mp4", 2) for name in "ab"]
    for options in ((), ("--ray-workers", 1000), ("--ray-workers", 1)):
        assert track("--video", *clips, "--ray", "--overwrite", *options)[0] == 0
    assert asked == [None, 2, 1]


def test_a_folder_for_results_that_cannot_be(track, tmp_path: Path) -> None:
    clip, file = write_clip(tmp_path / "a.mp4", 2), tmp_path / "file"
    file.touch()
    assert failing(track("--video", clip, "--out", file)) == (
        f"error: {file}: cannot be made a folder for results: file exists"
    )
