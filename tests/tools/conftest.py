"""Tools loaded and called in the process of the tests; those of `tools/track.py` fill several files."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.tracker.clips import find_square

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TRACK = TOOLS / "track.py"


@functools.cache
def load_tool(name: str) -> ModuleType:
    """A tool as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TOOLS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"{name}_tool"] = module
    spec.loader.exec_module(module)
    return module


def call_tool(tool: ModuleType, capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Run a tool in this process: its status, and what it prints on stdout and stderr."""
    capfd.readouterr()
    try:
        status = tool.main([str(a) for a in argv])
    except SystemExit as stop:  # argparse's own way to end
        status = int(stop.code or 0)
    return status, *capfd.readouterr()


@pytest.fixture(scope="session")
def track_tool() -> ModuleType:
    return load_tool("track")


@pytest.fixture
def track(track_tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The tool in this process with a detector of bright squares: arguments -> (status, stdout, stderr)."""
    monkeypatch.setattr(track_tool, "load", lambda args, config: (find_square, 2, 1))

    return functools.partial(call_tool, track_tool, capfd)


def failing(outcome: tuple[int, str, str]) -> str:
    """The one line on stderr of a run that failed."""
    status, _, err = outcome
    assert status == 1
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.strip()
