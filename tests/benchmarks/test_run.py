"""One command measures all parts; what fails, is missing or is interrupted loses nothing else."""

import dataclasses
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from benchmarks import association_cost, parts, run
from benchmarks.contestants import own
from benchmarks.figures import BEGIN, END, Row, markdown, put_between_markers, read, spread
from benchmarks.parts import PARTS, Part
from benchmarks.reid_yardsticks import best_of
from tracker import TrackerConfig

MACHINE = {
    "cpu": "some",
    "cores": 2,
    "load_average": 0.1,
    "flags": ["avx2"],
    "memory_gib": 8.0,
    "OMP_NUM_THREADS": None,
    **dict.fromkeys(("python", "torch", "onnxruntime", "openvino", "trackers", "trackeval"), "1.0"),
}
WRITES = """
import json, sys
words = sys.argv[1:]
report = {"ours": [1.0, 2.0, 3.0], "words": words}
open(words[words.index("--json") + 1], "w").write(json.dumps(report))
"""
FAILS = "import sys; print('so far so good', file=sys.stderr); sys.exit('tiny: no such luck')"
WAITS = """
import os, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
child.wait()
"""


def rows_of_tiny(report):
    return [Row("tiny", "ms", report["ours"], [2 * ms for ms in report["ours"]], "twice as slow")]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Make parts of small scripts; `install` makes them those of the command."""
    monkeypatch.setattr(run, "machine_facts", lambda: dict(MACHINE))

    def make(name, source, options="", **more):
        script = tmp_path / f"{name}.py"
        script.write_text(source)
        return Part(name, str(script), f"full {options}", f"quick {options}", (60, 1), rows_of_tiny, **more)

    make.install = lambda *made: monkeypatch.setattr(run, "PARTS", made)
    return make


def test_a_part_that_fails_or_is_missing_loses_no_other(tiny, tmp_path, capsys):
    tiny.install(
        tiny("none", WRITES, data=("video/none.mp4",), packages=(("no_such_package", "pip install it"),)),
        tiny("bad", FAILS),
        tiny("mute", "pass"),
        tiny("killed", "import os; os.kill(os.getpid(), 9)"),
        tiny("other", WRITES.replace("ours", "theirs")),
        tiny("good", WRITES, "--data {data}/a --threads {cores}"),
    )
    report, table, data = tmp_path / "out.json", tmp_path / "out.md", tmp_path / "my data"
    options = ["--quick", "--data", str(data), "--json", str(report), "--table", str(table)]
    assert run.main(options) == 1
    document = read(report)
    assert document["quick"] and document["machine"] == MACHINE
    assert document["command"] == f"python benchmarks/run.py --quick --data '{data}' --json {report} --table {table}"
    found = {part["name"]: part for part in document["parts"]}
    assert {name: part["status"] for name, part in found.items()} == {
        "none": "skipped",
        **dict.fromkeys(("bad", "mute", "killed", "other"), "failed"),
        "good": "done",
    }
    assert str(data / "video/none.mp4") in found["none"]["reason"]
    assert "no_such_package is not installed (pip install it)" in found["none"]["reason"]
    assert found["bad"]["reason"].endswith("bad.py: tiny: no such luck")
    assert "expected a report, found none" in found["mute"]["reason"]
    assert "SIGKILL" in found["killed"]["reason"]
    assert "not understood: KeyError: 'ours'" in found["other"]["reason"]
    good = found["good"]
    assert good["report"]["words"][:5] == ["quick", "--data", f"{data}/a", "--threads", str(parts.CORES)]
    assert good["rows"] == [
        {
            "name": "tiny",
            "unit": "ms",
            "better": "lower",
            "ours": 2.0,
            "yardstick": 4.0,
            "yardstick_name": "twice as slow",
            "ratio": 2.0,
            "ours_spread": 0.5,
            "yardstick_spread": 0.5,
            "ratio_spread": 0.0,
            "repeats": 3,
        }
    ]
    out, err = capsys.readouterr()
    assert "| tiny | 2 ms (±50%) | 4 (±50%), twice as slow | 2 (±0%) |" in out and table.read_text() in out
    assert "- bad: failed: " in out and "- none: skipped: " in out
    assert "[5/5] good: about" in err and "good: done after" in err


def test_what_was_measured_stays_when_interrupted(tiny, tmp_path, capsys):
    place, report = tmp_path / "pids", tmp_path / "out.json"
    waits = dataclasses.replace(tiny("waits", WAITS), full=str(place))
    tiny.install(tiny("first", WRITES), waits, tiny("last", WRITES))

    def interrupt():
        for _ in range(300):
            if place.exists() and place.read_text():
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = run.main(["--json", str(report)])
    thread.join()
    assert status == 128 + signal.SIGINT
    statuses = [part["status"] for part in read(report)["parts"]]
    assert statuses == ["done", "interrupted", "not run"]
    for pid in map(int, place.read_text().split()):
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"  # ended, whoever has to take notice
    out, err = capsys.readouterr()
    assert "| tiny |" in out and f"what was measured is in {report}" in err


def test_a_real_part(tmp_path, monkeypatch, capsys):
    """Association by its own script, on little; a preset stands for the yardstick, which may not be installed."""

    def rows(report):
        ours, byte = (next(row for row in report["rows"] if row["tracker"] == name) for name in ("ours", "byte"))
        return [Row("association", "ms/frame", ours["median_ms_of_repeats"], byte["median_ms_of_repeats"], "byte")]

    monkeypatch.setattr(run, "machine_facts", lambda: dict(MACHINE))
    options = "--people 3 --frames 4 --warm 2 --repeats 2"
    part = next(part for part in PARTS if part.name == "association")
    monkeypatch.setattr(run, "PARTS", (dataclasses.replace(part, quick=options, rows=rows, packages=()),))
    report = tmp_path / "out.json"
    assert run.main(["--quick", "--only", "association", "--json", str(report)]) == 0
    (measured,) = read(report)["parts"]
    assert measured["command"] == f"python benchmarks/association_cost.py {options}"
    assert measured["report"]["frames"] == 4 and measured["seconds"] > 0
    (row,) = measured["rows"]
    assert row["ours"] > 0 and row["repeats"] == 2 and row["ratio"] == pytest.approx(row["yardstick"] / row["ours"])
    assert "| association | " in capsys.readouterr().out


def test_parts_are_chosen_in_their_own_order():
    assert [part.name for part in run.choose("training,forward")] == ["forward", "training"]
    assert run.choose(",".join(part.name for part in PARTS)) == list(PARTS)
    assert len({part.name for part in PARTS}) == len(PARTS) == 7
    for part in PARTS:
        for quick in (True, False):
            words = part.options(quick, Path("/d"), Path("/r.json"))
            assert words[-2:] == ["--json", "/r.json"] and not any("{" in word for word in words)
            assert all(any(word.endswith(f"/d/{name}") for word in words) for name in part.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "forward,backward"], "--only: expected some of forward, got backward"),
        (["--only", ""], "--only: expected some of"),
        (["--readme", "--quick"], "--readme: expected a full run"),
        (["--readme"], "README.md: expected one line <!-- benchmarks/run.py: begin -->"),
    ],
)
def test_impossible_options_are_one_line(options, message, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("no markers\n")
    tiny.install(tiny("forward", WRITES))
    assert run.main([*options, "--json", str(tmp_path / "o.json")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert not (tmp_path / "o.json").exists()


def test_readme_gets_the_table(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    good, bad = tiny("good", WRITES), tiny("bad", FAILS)
    tiny.install(good, bad)
    assert run.main(["--readme", "--json", str(tmp_path / "o.json")]) == 1
    assert "old" in (tmp_path / "README.md").read_text()  # a table with holes is none to show
    tiny.install(good)
    assert run.main(["--readme", "--json", str(tmp_path / "o.json")]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text == f"above\n{BEGIN}\n{markdown(read(tmp_path / 'o.json'))}{END}\nbelow\n"
    assert put_between_markers(tmp_path / "README.md", "new\n") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    capsys.readouterr()


def test_time_left_follows_the_pace_of_the_machine(tiny, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    progress = run.Progress([tiny(name, "") for name in "abc"], quick=False)  # a minute each, they say
    progress.start("a")
    clock[0] = 120.0
    assert progress.end(done=True) == 120
    progress.start("b")
    assert progress._left(60) == "about 3 min left"  # half of two minutes, and two more
    assert progress._left(600) == "about 2 min left"
    progress.end(done=False)
    progress.start("c")
    assert progress._left(50) == "about 70 s left"
    progress.close()
    assert "[1/3] a: about 3 min left" in capsys.readouterr().err


def test_figures_of_a_row():
    row = Row("speed", "frames/s", [30, 20, 40], [10, 20], "other", higher_is_better=True).figures()
    assert (row["ours"], row["yardstick"], row["ratio"], row["better"]) == (30, 15, 2, "higher")
    assert row["ratio_spread"] == pytest.approx((3 - 1) / 2 / 2)  # 3 and 1 times, turn by turn
    assert spread([5.0]) is None and spread([8.0, 12.0]) == 0.2


def test_rows_of_association(monkeypatch):
    peers = [own(name, TrackerConfig()) for name in ("trackers SORT", "trackers ByteTrack", "boxmot OcSort")]
    monkeypatch.setattr(association_cost, "peers", lambda: peers)
    args = association_cost.argparse.Namespace(people=[3, 5], frames=4, warm=2, repeats=2)
    report = json.loads(json.dumps(association_cost.measure(args)))
    rows = parts.association(report)
    assert [(row.name, row.yardstick_name) for row in rows] == [
        (f"association, {people} people, 4 frames", f"trackers {peer}")
        for people in (3, 5)
        for peer in ("SORT", "ByteTrack")
    ]
    assert all(len(row.ours) == len(row.yardstick) == 2 and min(row.ours) > 0 for row in rows)
    report["rows"] = [row for row in report["rows"] if not row["tracker"].startswith("trackers")]
    with pytest.raises(ValueError, match="cannot be imported"):
        parts.association(report)


def test_rows_of_forward():
    figures = {("eager", "64x32"): 8.0, ("bf16", "64x32"): 1.0, ("eager", "96x64"): 20.0, ("bf16", "96x64"): 2.0}
    report = [{"contestant": name, "input": size, "milliseconds": ms} for (name, size), ms in figures.items()]
    report[1]["milliseconds_of_runs"] = [2.0, 2.0]
    small, large = (row.figures() for row in parts.forward({"rows": report}))
    assert (small["name"], small["ratio"], small["repeats"]) == ("forward, Darknet-53 JDE 64x32, bf16", 4, 2)
    assert (large["ratio"], large["repeats"]) == (10, 1)


def test_rows_of_recorded_reports():
    """What the scripts wrote when they were last run for the README can be read."""
    folder = run.ROOT / "benchmarks"
    frames, forward = (row.figures() for row in parts.end_to_end(json.loads((folder / "throughput.json").read_text())))
    assert frames["better"] == "higher" and frames["unit"] == "frames/s" and frames["repeats"] > 1
    assert forward["name"].startswith("forward, bundled model ") and forward["ratio"] > 0
    rows = parts.evaluation(json.loads((folder / "evaluation.json").read_text()))
    assert rows[0].name == "evaluation, Lif_T on MOT17 train, 15948 frames"
    assert rows[1].name.endswith(", 2 processes") and all(row.figures()["ratio"] > 1 for row in rows)


def test_rows_of_distances():
    def runs(seconds, mebibytes):
        return best_of([{"seconds": s, "memory_bytes": mebibytes * 2**20} for s in (seconds, 2 * seconds)])

    rows = [{"contestant": "ours", "images": 9, **runs(1, 10)}, {"contestant": "dense", "images": 9, **runs(4, 50)}]
    seconds, memory = (row.figures() for row in parts.jaccard({"rows": rows, "dimension": 8}))
    assert (seconds["ratio"], memory["ratio"], memory["ours"], memory["unit"]) == (4, 5, 10, "MiB")
    assert rows[0]["seconds"] == 1 and seconds["ours"] == 1.5  # the best there, the median here
    named = {
        "ranking, ours": runs(1, 10),
        "ranking, loop": runs(3, 1),
        "re-ranking, ours": runs(2, 10),
        "re-ranking, dense": runs(12, 90),
        "re-ranking, dense, tidied": runs(8, 60),
    }
    found = parts.re_ranking({"rows": named, "queries": 2, "gallery": 7, "dimension": 8})
    assert [row.figures()["ratio"] for row in found] == [3, 6, 9, 4, 6]
    assert found[0].name == "ranking, 2 x 7, 8-d" and found[-1].yardstick_name == parts.TIDIED


def test_rows_of_training():
    def row(network, precision, seconds):
        size = {"input": "416x416", "batch": 8}
        return {"network": network, "precision": precision, **size, "seconds_of_steps": [seconds, seconds]}

    rows = parts.training({"rows": [row("nano", "plain", 3), row("nano", "fp32", 2), row("nano", "bf16", 1.5)]})
    assert [(each.name, each.figures()["ratio"]) for each in rows] == [
        ("training step, nano 416x416, 8 images, fp32", 1.5),
        ("training step, nano 416x416, 8 images, bf16", 2),
    ]


def test_busy_machines_are_named():
    document = {"parts": [], "machine": {**MACHINE, "load_average": 3.0}, "command": "c", "commit": None}
    assert "load 3.0 before the start; the machine was not quiet" in markdown(document)
    document["machine"]["load_average"] = 0.2
    assert "busy" not in markdown(document) and "commit unknown" in markdown(document)
