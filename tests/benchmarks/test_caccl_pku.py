"""All rows are planned, measured once, shared between processes, and put into a table."""

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import caccl_pku
from benchmarks.caccl_pku import (
    METHODS,
    OSNET,
    PUBLISHED,
    RESNET,
    SMALL_SET,
    Run,
    add_row,
    key,
    part,
    plan,
    read_rows,
    table,
)


def test_plan_has_the_ablation_for_three_seeds_and_every_weight():
    runs = plan()
    assert len(set(runs)) == len(runs)
    for encoder in (OSNET, RESNET):
        for recipe in (PUBLISHED, SMALL_SET):
            assert {(run.method, run.seed) for run in runs if run.encoder == encoder and run.changed == recipe} == {
                (method, seed) for method in METHODS for seed in range(3)
            }
    weights = {run.changed[-1] for run in runs if run.changed and "camera_weight" in run.changed[-1]}
    assert weights == {f"contrast.camera_weight={value}" for value in (0.2, 0.4, 0.6, 1.0)}
    assert [run.encoder for run in runs[:9]] == [OSNET] * 9


def test_parts_share_the_rows():
    assert part("1/2") == (0, 2) and part("3/3") == (2, 3)
    runs = plan()
    shares = [runs[first::step] for first, step in map(part, ("1/2", "2/2"))]
    assert set(shares[0]) | set(shares[1]) == set(runs) and not set(shares[0]) & set(shares[1])
    for text in ("0/2", "3/2", "1", "a/b", "-1/2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected I/N"):
            part(text)


def row(run, score):
    return {
        **vars(run),
        "changed": list(run.changed),
        "before": {"mAP": 0.2, "rank-1": 0.1},
        "after": {"mAP": score, "rank-1": 0.5},
        "clusters": [
            {"epoch": 1, "clusters": 5, "outliers": 9},
            {"epoch": 2, "clusters": 50, "outliers": 10, "nmi": 0.75},
        ],
        "seconds": 3,
    }


def test_rows_are_added_to_what_another_process_wrote(tmp_path):
    path = tmp_path / "rows.json"
    assert read_rows(path) == []
    for run in plan()[:3]:
        add_row(path, row(run, 0.5), {"machine": {}})
    assert [key(each) for each in read_rows(path)] == plan()[:3]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]


def test_table_is_of_means_over_the_seeds():
    k1 = Run(OSNET, "caccl", 0, ("jaccard.k1=15",))
    rows = [row(Run(OSNET, "caccl", 0), 0.4), row(Run(OSNET, "caccl", 1), 0.6), row(k1, 0.7)]
    lines = table(rows).splitlines()
    assert lines[2] == f"| {OSNET} | caccl | 2 | 0.200 | 0.500 ± 0.141 | 0.100 | 0.500 | 50 | 10 | 0.750 |"
    assert lines[3] == f"| {OSNET} | caccl, jaccard.k1=15 | 1 | 0.200 | 0.700 | 0.100 | 0.500 | 50 | 10 | 0.750 |"


def test_program_goes_on_where_it_was(monkeypatch, tmp_path, capsys):
    """With the training tool replaced: one run fails, is reported, and is the only one that is done again."""
    calls, broken = [], ["self-paced"]

    def train(command, **_):
        method, out = (command[command.index(name) + 1] for name in ("--method", "--out"))
        calls.append((method, "--init" in command))
        if method in broken:
            return subprocess.CompletedProcess(command, 2, "", "train_reid.py: error: no clusters\n")
        figures = {"mAP": 0.3, "rank-1": 0.5}
        for name, lines in {
            "validation": [{"step": 0, **figures}, {"step": 9, **figures}],
            "clusters": [{"epoch": 1, "clusters": 5, "outliers": 9}],
            "log": [{"step": 1, "total": 3.0}, {"step": 9, "total": 1.0}],
        }.items():
            (Path(out) / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(caccl_pku.subprocess, "run", train)
    monkeypatch.setattr(caccl_pku, "machine", dict)
    path = tmp_path / "rows.json"
    argv = ["--data", "somewhere", "--osnet", "weights.pth", "--rows", "3", "--json", str(path)]
    assert caccl_pku.main(argv) == 2
    assert "no clusters" in capsys.readouterr().err
    assert [each["method"] for each in read_rows(path)] == ["cluster", "caccl"]
    broken.clear()
    assert caccl_pku.main(argv) == 0
    assert calls == [(method, True) for method in METHODS] + [("self-paced", True)]
    (first, *_) = read_rows(path)
    assert first["total"] == [3.0, 1.0] and "train.seed=0" in first["settings"] and first["after"]["step"] == 9
    assert f"| {OSNET} | caccl | 1 |" in capsys.readouterr().out
