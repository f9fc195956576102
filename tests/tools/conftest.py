"""Fixtures for the tests of `tools/track.py`, which fill several files."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.tracker.clips import find_square

TRACK = Path(__file__).resolve().parents[2] / "tools" / "track.py"


@pytest.fixture(scope="session")
def track_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("track_tool", TRACK)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["track_tool"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def track(track_tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The tool in this process with a detector of bright squares: arguments -> (status, stdout, stderr)."""
    monkeypatch.setattr(track_tool, "load", lambda args, config: (find_square, 2, 1))

    def call(*argv: object) -> tuple[int, str, str]:
        try:
            status = track_tool.main([str(a) for a in argv])
        except SystemExit as stop:  # argparse's own way to end
            status = int(stop.code or 0)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def failing(outcome: tuple[int, str, str]) -> str:
    """The one line on stderr of a run that failed."""
    status, _, err = outcome
    assert status == 1
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    return err.strip()
