"""The crowd that everything is timed on, and the arithmetic of the table of costs."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import association_cost, soak
from benchmarks.association_cost import WITH_CHECKS, Row, growth, ratios
from benchmarks.contestants import DEFAULT, presets
from benchmarks.crowd import FRAME_RATE, HIDDEN_IOU, Crowd, CrowdConfig
from tracker import Tracker
from tracker.boxes import iou


def frames(config, count):
    return list(itertools.islice(Crowd(config), count))


def test_crowd_follows_from_its_seed():
    one, same, other = (frames(CrowdConfig(20, 16, seed), 10) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.xyxy, b.xyxy)
        np.testing.assert_array_equal(a.embeddings, b.embeddings)
    assert one[0].xyxy.shape != other[0].xyxy.shape or (one[0].xyxy != other[0].xyxy).any()


def test_crowd_is_what_a_detector_would_report():
    crowd = Crowd(CrowdConfig(100, 32))
    found = list(itertools.islice(crowd, 200))
    assert 90 < np.mean([len(each) for each in found]) < 100  # 7 of 100 missed, a few hidden, 3 false
    scores = np.concatenate([each.scores for each in found])
    assert 0.1 < np.mean(scores < 0.5) < 0.2
    assert all((np.diff(each.scores) <= 0).all() for each in found)
    assert 130 < crowd.born < 300  # people come and go
    alike = iou(found[0].xyxy, found[0].xyxy)[~np.eye(len(found[0]), dtype=bool)]
    assert 0.2 < alike.max() < HIDDEN_IOU + 0.15  # they overlap, and never coincide


def test_crowd_can_be_followed():
    """The tracker, whose task this is, finds about as many people as there are."""
    crowd, tracker = Crowd(CrowdConfig(30, 128)), Tracker(frame_rate=FRAME_RATE)
    results = [tracker.update(each) for each in itertools.islice(crowd, 300)]
    assert 0.85 * 30 < np.mean([len(result) for result in results[10:]]) < 30
    assert 0.6 * crowd.born < max(result.track_ids.max() for result in results) < 1.6 * crowd.born


def row(tracker, people, ms, embeddings=False):
    return Row(tracker, people, embeddings, ms, ms, people, people)


def test_ratios_and_growth():
    rows = [row(DEFAULT, 100, 2.0), row(DEFAULT, 300, 8.0), row(DEFAULT, 100, 3.0, True), row(DEFAULT, 300, 6.0, True)]
    rows += [row("peer", 100, 10.0), row("peer", 300, 80.0)]
    assert ratios(rows) == {100: {"peer": 5.0}, 300: {"peer": 10.0}}
    assert growth(rows) == {"quadratic": 9.0, DEFAULT: 4.0, f"{DEFAULT}, 128-d": 2.0, "peer": 8.0}
    assert growth(rows[:1]) == {}


def test_costs_of_all_presets(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(association_cost, "peers", list)
    report = tmp_path / "cost.json"
    options = ["--people", "4", "8", "--frames", "12", "--warm", "5", "--repeats", "2", "--json", str(report)]
    assert association_cost.main(options) == 0
    rows = json.loads(report.read_text())["rows"]
    assert {each["tracker"] for each in rows} == {*presets(), WITH_CHECKS}
    assert len(rows) == 2 * 2 * (len(presets()) + 1)
    assert all(0 < each["median_ms"] < 100 and 2 < each["reported"] <= 8 and each["ids"] >= 3 for each in rows)
    assert "4 people" in capsys.readouterr().out


def test_profile_names_the_functions(tmp_path):
    target = tmp_path / "profile.txt"
    assert association_cost.main(["--people", "5", "--frames", "5", "--profile", str(target)]) == 0
    text = target.read_text()
    assert "5 people, no embeddings" in text and "5 people, 128-d embeddings" in text and "(update)" in text
    assert str(association_cost.ROOT) not in text  # file names without their folders


@pytest.mark.parametrize("options", [["--frames", "0"], ["--repeats", "0"], ["--people", "0"], ["--warm", "-1"]])
def test_impossible_numbers_are_one_line(options, tmp_path, capsys):
    assert association_cost.main([*options, "--json", str(tmp_path / "o.json")]) == 2
    assert "expected" in capsys.readouterr().err


def test_soak_reports_memory_and_time(tmp_path, capsys):
    report = tmp_path / "soak.json"
    options = ["--frames", "2000", "--people", "5", "--dimension", "8", "--json", str(report)]
    assert soak.main(options) in (0, 1)  # a busy machine may be slower at the end
    figures = json.loads(report.read_text())
    assert figures["growth_mb"] < 5 and len(figures["median_ms_by_tenth"]) == 10 and figures["last_id"] > 5
    assert "2000 frames of 5 people" in capsys.readouterr().out
    assert soak.main(["--frames", "100", "--json", str(report)]) == 2
