"""Two runs are compared row by row: the ratio decides, and only beyond threshold and noise."""

import copy
import json

import pytest

from benchmarks import compare
from benchmarks.compare import BETTER, LOST, NOISE, ONLY_A, ONLY_B, SAME, WORSE
from benchmarks.figures import FORMAT, Row

MACHINE = {"cpu": "some", "cores": 2, "load_average": 0.1, "flags": ["avx2"], "memory_gib": 8.0, "torch": "2.4"}


def row(name, ours, yardstick=(100.0, 100.0), higher=False):
    return Row(name, "ms", ours, yardstick, "other", higher).figures()


def document(*rows, status="done", **more):
    part = {"name": "part", "status": status, "reason": None if status == "done" else "why", "rows": list(rows)}
    return {
        "format": FORMAT,
        "command": "python benchmarks/run.py",
        "commit": "abc",
        "started": "2030-01-01T00:00:00+00:00",
        "quick": False,
        "machine": dict(MACHINE),
        "parts": [part],
        **more,
    }


@pytest.fixture
def files(tmp_path):
    def write(before, after):
        paths = [tmp_path / name for name in ("a.json", "b.json")]
        for path, text in zip(paths, (before, after), strict=True):
            path.write_text(json.dumps(text))
        return [str(path) for path in paths]

    return write


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (row("x", [10.0, 10.0]), SAME),
        (row("x", [10.9, 10.9]), SAME),
        (row("x", [12.0, 12.0]), WORSE),
        (row("x", [8.0, 8.0]), BETTER),
        (row("x", [20.0, 20.0], (200.0, 200.0)), SAME),  # the machine was slower, and everybody with it
        (row("x", [10.0, 10.0], (80.0, 80.0)), WORSE),
        (row("x", [9.0, 15.0]), NOISE),  # 17 % worse, the ratios ±28 %
        (row("x", [12.0]), WORSE),  # without repeats nothing is known of noise
    ],
)
def test_verdicts(after, verdict):
    (change,) = compare.compare(document(row("x", [10.0, 10.0])), document(after), 0.1)
    assert change.verdict == verdict


def test_gains_are_positive_where_it_is_better():
    before = [row("time", [10.0, 10.0]), row("speed", [30.0, 30.0], (10.0, 10.0), higher=True)]
    after = [row("time", [5.0, 5.0], (50.0, 50.0)), row("speed", [60.0, 60.0], (10.0, 10.0), higher=True)]
    time, speed = compare.compare(document(*before), document(*after), 0.1)
    assert (time.gain, time.own_gain, time.noise, time.verdict) == (0, 1, 0, SAME)
    assert (speed.gain, speed.own_gain, speed.verdict) == (1, 1, BETTER)
    noisy = compare.Change("part", row("x", [9.0, 11.0]), row("x", [8.0, 12.0]), SAME)
    spreads = noisy.before["ratio_spread"], noisy.after["ratio_spread"]
    assert noisy.noise == pytest.approx(sum(spreads)) and min(spreads) > 0.09


def test_rows_of_one_run_alone():
    x, y = row("x", [1.0, 1.0]), row("y", [1.0, 1.0])
    gone, new = compare.compare(document(x), document(y), 0.1)
    assert (gone.verdict, new.verdict) == (ONLY_A, ONLY_B)
    assert gone.gain is gone.own_gain is gone.noise is new.gain is None
    assert [change.verdict for change in compare.compare(document(x), document(status="skipped"), 0.1)] == [ONLY_A]
    assert [change.verdict for change in compare.compare(document(x), document(status="failed"), 0.1)] == [LOST]
    other = {**x, "yardstick_name": "another"}
    assert [change.verdict for change in compare.compare(document(x), document(other), 0.1)] == [ONLY_A, ONLY_B]


def test_what_differs_is_said():
    before, after = document(row("x", [1.0])), document(status="failed", quick=True)
    assert compare.warnings(before, copy.deepcopy(before)) == []
    after["machine"] |= {"cpu": "another", "flags": ["avx2", "amx_bf16"], "torch": "2.5", "load_average": 1.5}
    assert compare.warnings(before, after) == [
        "B is a quick run, the other is not",
        "B: the machine was busy, load 1.5 at the start",
        "B: part: failed: why",
        "another machine: cpu: some in A, another in B",
        "another machine: flags: avx2 in A, avx2 amx_bf16 in B",
        "torch: 2.4 in A, 2.5 in B",
    ]


def test_regressions_fail_where_asked_to(files, capsys):
    paths = files(document(row("x", [10.0, 10.0])), document(row("x", [12.0, 12.0])))
    assert compare.main(paths) == 0
    out, err = capsys.readouterr()
    assert "-17%" in out and out.splitlines()[1].endswith("WORSE") and "1 rows, 1 worse or failed" in out and not err
    assert compare.main([*paths, "--fail-on-regression"]) == 1
    assert compare.main([*paths, "--fail-on-regression", "--threshold", "20"]) == 0
    assert compare.main([*reversed(paths), "--fail-on-regression"]) == 0
    paths = files(document(row("x", [10.0, 10.0])), document(status="failed"))
    assert compare.main([*paths, "--fail-on-regression"]) == 1
    assert "note: B: part: failed: why" in capsys.readouterr().err


def test_tables(files, capsys):
    paths = files(document(row("x", [10.0])), document(row("a long name", [12.0, 12.5])))
    assert compare.main(paths) == 0
    head, *rows = capsys.readouterr().out.splitlines()[:3]
    at = head.index("against")
    assert all(line[at:].startswith("other") for line in rows)
    assert rows[0].endswith("only in A") and rows[1].endswith("only in B")
    assert compare.main([*paths, "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()[:4]
    assert len({line.count("|") for line in lines}) == 1 and lines[1].startswith("|---|")
    assert lines[2] == "| x | other | 10 | - | - | ? | 10 | - ms | - | only in A |"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', "\x00"])
def test_other_files_are_one_line(text, files, tmp_path, capsys):
    good, _ = files(document(), document())
    (tmp_path / "other.json").write_text(text)
    assert compare.main([good, str(tmp_path / "other.json")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "other.json: expected results of benchmarks/run.py" in err
    assert compare.main([good, str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["-1", "100", "nan"])
def test_impossible_thresholds(threshold, files, capsys):
    assert compare.main([*files(document(), document()), "--threshold", threshold]) == 2
    assert "--threshold: expected a percentage" in capsys.readouterr().err
