"""The benchmark runs, and its figures are those of the steps it names."""

import json

import pytest

from benchmarks import offline
from benchmarks.public_detections import load, score_results
from tracker.offline import OfflineConfig, refine


@pytest.mark.shared
def test_every_step_is_measured(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(offline, "LIMITS", {"fill_gaps": (0.5, 1.0)})
    mot, out = shared / "data" / "mot", tmp_path / "offline.json"
    assert offline.main(["--mot", str(mot), "--sequences", "TUD-Campus", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["steps"]) == set(offline.TRACKERS)
    for rows in report["steps"].values():
        assert list(rows) == list(offline.STEPS)
        assert all(set(row) == {"TUD-Campus", offline.MEAN} for row in rows.values())

    sequence = load(mot / "TUD-Campus")
    result = offline.track(sequence, offline.TRACKERS["ours"])
    refined = refine(result, sequence.frame_rate, OfflineConfig(fill_gaps=0.5))
    expected = score_results(sequence.folder, refined.results(last=len(sequence)))
    assert report["limits"]["ours"]["fill_gaps"]["0.5"]["TUD-Campus"]["HOTA"] == round(expected["HOTA"], 4)

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["ours", "TUD-Campus", "mean"]
    assert printed[2].startswith("none ")


def test_a_missing_sequence_is_one_line(tmp_path, capsys):
    assert offline.main(["--mot", str(tmp_path), "--sequences", "nowhere"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("offline: ") and "nowhere" in error
