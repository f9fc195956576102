"""The tables of association: what is run, on what, and what is refused."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import association, contestants
from benchmarks.contestants import DEFAULT, own, presets
from benchmarks.crowd import Crowd, CrowdConfig
from tracker import TrackerConfig
from tracker.mot import read_mot


@pytest.fixture
def mot(tmp_path):
    """A folder with one sequence: two people who walk past each other, found in every frame."""
    folder = tmp_path / "mot" / "MOT17-99-FRCNN"
    truth, found = [], []
    for frame in range(1, 31):
        for person, left in enumerate((100 + 8 * frame, 500 - 8 * frame), start=1):
            top = 100 + 60 * person
            truth.append(f"{frame},{person},{left},{top},40,100,1,1,1")
            found.append(f"{frame},-1,{left},{top},40,100,0.9")
    for name, rows in (("gt", truth), ("det", found)):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (folder / "seqinfo.ini").write_text("[Sequence]\nname=MOT17-99-FRCNN\nframeRate=10\nseqLength=30\n")
    return tmp_path / "mot"


def test_tables_have_every_tracker_and_every_row(mot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(association, "peers", lambda: [own("boxmot Somebody", TrackerConfig())])
    monkeypatch.setattr(association, "ABLATION", {"without low scores": ("tracker.low_score_thresh=null",)})
    report = tmp_path / "out.json"
    assert association.main(["--mot", str(mot), "--sequences", "MOT17-99-FRCNN", "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    groups = result["scores"]["MOT17-99-FRCNN"]
    assert list(groups["presets"]) == list(presets())
    assert list(groups["ablation"]) == ["without low scores"] and list(groups["peers"]) == ["boxmot Somebody"]
    assert groups["presets"][DEFAULT]["HOTA"] == pytest.approx(1, abs=0.01)
    assert groups["presets"][DEFAULT]["IDSW"] == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in [*presets(), "without low scores", "boxmot Somebody"])


def test_a_missing_sequence_is_one_line(mot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(association, "ABLATION", {})
    assert association.main(["--mot", str(mot), "--sequences", "Nowhere", "--json", str(tmp_path / "o.json")]) == 2
    assert "Nowhere" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_every_row_of_the_ablation_differs_from_the_default():
    configs = association.ablation(association.ABLATION)
    assert TrackerConfig() not in configs.values()
    assert len(set(map(str, configs.values()))) == len(configs)


def test_an_override_that_changes_nothing_is_refused():
    low = TrackerConfig().score_thresh
    with pytest.raises(ValueError, match=r"ablation 'same': tracker.score_thresh=.* is the default already"):
        association.ablation({"same": (f"tracker.score_thresh={low}",)})


def test_absent_peers_are_said(monkeypatch):
    monkeypatch.setattr(contestants, "_imported", lambda package: None)
    assert contestants.peers() == []


def test_peers_that_are_installed_track():
    found = contestants.peers()
    if not found:
        pytest.skip("needs trackers or boxmot, which are not installed")
    crowd = list(itertools.islice(Crowd(CrowdConfig(10)), 30))
    for peer in found:
        update = peer.start(30.0)
        results = [peer.read(update(peer.convert(each)), frame) for frame, each in enumerate(crowd, start=1)]
        assert results[-1].frame == 30 and sum(map(len, results)) > 60  # some report only after three hits in a row
        for result in results:
            assert (result.track_ids > 0).all() and len(set(result.track_ids.tolist())) == len(result)
            assert np.isfinite(result.xyxy).all()


@pytest.mark.parametrize(("name", "expected"), [("SORT", (0.338, 0.322, 0.384)), ("ByteTrack", (0.343, 0.325, 0.394))])
def test_peers_reach_their_recorded_figures(shared, name, expected):
    """HOTA, MOTA and IDF1 on MOT17-02-FRCNN as the shared data's page has them for version 2.6.1."""
    if contestants.peer_versions()["trackers"] != "2.6.1":
        pytest.skip("needs trackers 2.6.1")
    sequence = association.load(shared / "data" / "mot" / "MOT17-02-FRCNN", shared)
    peer = next(each for each in contestants.peers() if each.name == f"trackers {name}")
    results, _ = association.track(peer, sequence)
    figures = association.public_detections.score_results(sequence.folder, results)
    assert (figures["HOTA"], figures["MOTA"], figures["IDF1"]) == pytest.approx(expected, abs=6e-4)
    assert len(results) == len(sequence) == read_mot(sequence.folder / "gt" / "gt.txt").frames.max()
