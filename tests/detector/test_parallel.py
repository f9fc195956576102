"""Several processes that train together do what one does with the joint batch."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from detector import parallel
from tests.detector.scenes import write_people

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "train_detector.py"


def launch(argv: Sequence[object], processes: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script on one thread, by torchrun where it takes several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["-m", "torch.distributed.run", "--nproc-per-node", processes, "--master-port", port]
    command = [sys.executable, *(together if processes > 1 else []), *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.start("cpu") == (0, 1, torch.device("cpu"))
    parallel.wait()
    values = {"box": torch.tensor(0.5, requires_grad=True), "conf": torch.tensor(2.0, dtype=torch.float64)}
    assert parallel.mean(values) == {"box": 0.5, "conf": 2}
    parallel.stop()
    parallel.stop()


MEET = """
import sys, time, torch
from pathlib import Path
from detector import parallel
rank, world, place = parallel.start("cpu")
out = Path(sys.argv[1])
if rank == 0:
    time.sleep(0.3)
    (out / "first").touch()
parallel.wait()
assert (out / "first").exists()
means = parallel.mean({"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)})
(out / f"{rank}.txt").write_text(f"{rank} {world} {place} {means}")
parallel.stop()
parallel.stop()
"""


def test_two_processes_meet(tmp_path: Path) -> None:
    script = tmp_path / "meet.py"
    script.write_text(MEET)
    done = launch([script, tmp_path], 2)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.txt").read_text() == f"{rank} 2 cpu {{'b': 1.5, 'a': 5.0}}"


def curves(folder: Path, *argv: object) -> list[list[dict[str, float]]]:
    """Logs of the same training by one process and by two."""
    logs = []
    for processes in (1, 2):
        out = folder / f"out{processes}"
        done = launch([TOOL, "--device", "cpu", "--workers", 0, "--out", out, *argv], processes)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"steps an epoch", done.stdout)) == 1  # the first process alone speaks
        logs.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()])
    return logs


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", f"train.{value}")]


COMMON = settings("steps=20", "batch_size=4", "warmup=5", "frozen_norm=all", "picture_every=1000")


def assert_same_curves(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, 21))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4), a["step"]
    assert one[0]["total"] != pytest.approx(one[-1]["total"], rel=1e-2)  # something was learned


def test_two_processes_learn_what_one_does_on_darknet(tmp_path: Path) -> None:
    """Statistics kept: of what is computed over a batch the losses' means are left, and they are joint ones."""
    images = write_people(tmp_path / "people", 6, 96)
    family = [*settings("family=darknet53", "sizes=[96]"), "--set", "darknet53.width=0.125"]
    family += ["--set", "darknet53.embedding_dim=16", "--set", "darknet53.input_size=[96,96]"]
    assert_same_curves(*curves(tmp_path, "--data", f"jde:{images}", *COMMON, *family))


@pytest.mark.shared
def test_two_processes_learn_what_one_does_on_nano(tmp_path: Path, shared: Path) -> None:
    """At a low rate: SimOTA chooses cells, and a choice turns over by a last bit; at ten times the rate the curves
    of any two orders of summation part after some ten steps, of one process too."""
    images = write_people(tmp_path / "people", 6, 128)
    init = ["--init", shared / "data" / "weights" / "yolox_nano.onnx", "--set", "model.embedding_dim=16"]
    family = settings("detector_lr=2e-5", "sizes=[128]")
    assert_same_curves(*curves(tmp_path, "--data", f"jde:{images}", *init, *COMMON, *family))


def test_two_processes_take_their_shares_in_parts(tmp_path: Path) -> None:
    """Accumulation on two processes; people in one image alone, so that a process has parts without anybody."""
    images = write_people(tmp_path / "people", 4, 64)
    for label in sorted((tmp_path / "people" / "labels_with_ids").iterdir())[1:]:
        label.write_text("")
    out = tmp_path / "out"
    argv = [
        "--device",
        "cpu",
        "--workers",
        0,
        "--data",
        f"jde:{images}",
        "--out",
        out,
        "--set",
        "model.embedding_dim=8",
    ]
    steps = settings("steps=3", "batch_size=4", "accumulate=2", "sizes=[64]")
    done = launch([TOOL, *argv, *steps], 2)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3]
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in log)
    done = launch([TOOL, *argv, *settings("steps=3", "batch_size=6", "accumulate=2"), "--out", tmp_path / "b"], 2)
    assert done.returncode != 0
    assert "batch_size: expected a multiple of 2 processes times 2 parts, got 6" in done.stderr
