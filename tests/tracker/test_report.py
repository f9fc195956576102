"""Scores as a table, as JSON and as CSV."""

import csv
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.tracker.test_evaluation import add_sequence, run
from tracker.files import replacing, write_text
from tracker.report import format_table, write_csv, write_json


@pytest.fixture
def figures(tmp_path):
    add_sequence(tmp_path, "A")
    add_sequence(tmp_path, "a-long-name", result=[])
    return run(tmp_path)


def test_table(figures):
    lines = format_table(figures).splitlines()
    assert lines[0].split()[:5] == ["%", "HOTA", "DetA", "AssA", "LocA"]
    assert lines[0].split()[10:] == ["IDSW", "FP", "FN", "MT", "PT", "ML", "Frag"]
    assert [line.split()[0] for line in lines if line.strip("-")] == ["%", "A", "a-long-name", "COMBINED"]
    assert len({len(line) for line in lines}) == 1  # aligned
    row = dict(zip(lines[0].split(), lines[2].split(), strict=True))
    assert (row["MOTA"], row["IDF1"], row["FN"]) == ("75.00", "85.71", "1")
    assert set(lines[1]) == set(lines[4]) == {"-"}


def test_table_of_one_sequence_has_no_combined_row(figures):
    table = format_table({"A": figures["A"], "COMBINED": figures["A"]})
    assert "COMBINED" not in table and table.count("\n") == 2


def test_table_leaves_out_what_the_engine_does_not_have():
    one = {"MOTA": -0.5, "IDF1": 0.25, "IDSW": 3}
    assert format_table({"A": one, "B": one, "COMBINED": one}).splitlines()[0].split() == ["%", "MOTA", "IDF1", "IDSW"]


def test_json(figures, tmp_path):
    write_json(tmp_path / "a.json", figures)
    read = json.loads((tmp_path / "a.json").read_text())
    assert list(read) == ["A", "a-long-name", "COMBINED"]
    assert read["A"]["HOTA"] == figures["A"]["HOTA"].mean()
    assert read["COMBINED"]["CLR_FN"] == 5 and isinstance(read["COMBINED"]["CLR_FN"], int)
    assert isinstance(read["A"]["MOTA"], float)


def test_csv(figures, tmp_path):
    write_csv(tmp_path / "a.csv", figures)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sequence"] for row in rows] == ["A", "a-long-name", "COMBINED"]
    curve = [float(rows[0][f"HOTA@{threshold:.2f}"]) for threshold in np.arange(0.05, 0.99, 0.05)]
    np.testing.assert_array_equal(curve, figures["A"]["HOTA"])
    assert float(rows[2]["MOTA"]) == figures["COMBINED"]["MOTA"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_pipes_are_written_to_and_links_followed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        write_text(tmp_path / "pipe", "through")
        assert read.result(timeout=60) == "through"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


def test_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"), replacing(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
