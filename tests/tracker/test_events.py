"""The event list: its counts are the CLEAR figures, and each event says what a loop over the frames finds."""

import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.comparison import Compared
from tracker.events import KINDS, clear_events, write_events
from tracker.metrics import clear
from tracker.mot import MotRows
from tracker.preprocessing import prepare

FRAMES = 6
BENCHMARKS = ("MOT15", "MOT17", "MOT20")


def mot_rows(rows):
    """Rows of frame, id, left, top, width, height, and score and class where they are not 1."""
    table = np.array([(*row, 1, 1)[:8] for row in rows], float).reshape(-1, 8)
    whole = table[:, [0, 1, 7]].astype(np.int64)
    return MotRows(whole[:, 0], whole[:, 1], table[:, 2:6], table[:, 6], whole[:, 2], np.ones(len(table)))


def compare(truth, results, benchmark="MOT17", first=1):
    """A sequence of `FRAMES` frames that are numbered from `first`."""
    truth, results = mot_rows(truth), mot_rows(results)
    counted = (dataclasses.replace(rows, frames=rows.frames - first + 1) for rows in (truth, results))
    return Compared("A", truth, results, first, prepare(*counted, FRAMES, benchmark))


def person(identity, frames, left=0, width=100):
    return [(frame, identity, left, 0, width, 100) for frame in frames]


def listed(events, *kinds):
    """Frame, kind, person, track and previous track of some events."""
    some = events.of(*kinds) if kinds else events
    columns = (some.frames, some.kinds, some.truth_ids, some.track_ids, some.previous_ids)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def rows(first, classes):
    row = st.tuples(
        st.integers(first, first + FRAMES - 1),
        st.integers(0, 6),
        st.sampled_from([0, 5, 10, 20]),
        st.sampled_from([0, 0, 10]),
        st.sampled_from([10, 20, 20, 40]),
        st.sampled_from([20, 20, 0]),
        st.sampled_from([1, 1, 1, 0]),
        st.sampled_from(classes),
    )
    return st.lists(row, max_size=40, unique_by=lambda row: row[:2])


@st.composite
def sequences(draw):
    first = draw(st.sampled_from([1, 1, 101]))
    truth, results = draw(rows(first, [1, 1, 1, 3, 6, 7])), draw(rows(first, [1]))
    return compare(truth, results, draw(st.sampled_from(BENCHMARKS)), first)


@settings(max_examples=200, deadline=None)
@given(sequences())
def test_counts_are_the_clear_figures(compared):
    figures, events = clear(compared.comparison), clear_events(compared)
    counts = {kind: int((events.kinds == kind).sum()) for kind in KINDS}
    assert counts["MISS"] == figures["CLR_FN"]
    assert counts["FP"] == figures["CLR_FP"]
    assert counts["SWITCH"] == figures["IDSW"]
    assert counts["FRAGMENT"] == figures["Frag"]
    assert counts["MATCH"] + counts["SWITCH"] == figures["CLR_TP"]
    assert events.of("MATCH", "SWITCH").overlaps.sum() == pytest.approx(figures["MOTP_sum"], abs=1e-12)
    assert sum(counts.values()) == len(events)


@settings(max_examples=150, deadline=None)
@given(sequences())
def test_every_box_has_its_event_and_every_event_its_boxes(compared):
    events, c = clear_events(compared), compared.comparison
    once = events.of("MATCH", "SWITCH", "MISS", "FP")
    assert sorted(once.truth_rows[once.truth_rows >= 0]) == sorted(c.truth_rows)
    assert sorted(once.result_rows[once.result_rows >= 0]) == sorted(c.result_rows)
    for place in range(len(events)):
        kind, truth, result = events.kinds[place], events.truth_rows[place], events.result_rows[place]
        assert (truth < 0, result < 0) == (kind == "FP", kind == "MISS")
        for rows, row, ids in (
            (compared.truth, truth, events.truth_ids),
            (compared.results, result, events.track_ids),
        ):
            assert ids[place] == (rows.track_ids[row] if row >= 0 else -1)
            assert row < 0 or events.frames[place] == rows.frames[row]
        box = compared.results.tlwh[result] if kind == "FP" else compared.truth.tlwh[truth]
        assert events.tlwh[place].tolist() == box.tolist()
        assert np.isnan(events.overlaps[place]) == (kind in ("MISS", "FP"))
        assert np.isnan(events.overlaps[place]) or 0.499999 < events.overlaps[place] <= 1
    keys = list(zip(events.frames, map(KINDS.index, events.kinds), events.truth_ids, events.track_ids, strict=True))
    assert keys == sorted(keys)


@settings(max_examples=150, deadline=None)
@given(sequences())
def test_switches_and_fragments_are_those_of_a_loop(compared):
    c = compared.comparison
    events = clear_events(compared)
    both = sorted(set(c.truth_frames) & set(c.result_frames))
    steps = {frame + compared.first_frame - 1: step for step, frame in enumerate(both)}
    latest, switches, fragments = {}, [], []
    for frame, _, who, track, _ in listed(events, "MATCH", "SWITCH"):
        if who in latest:
            before, last = latest[who]
            if before != track:
                switches.append((frame, "SWITCH", who, track, before))
            if steps[frame] > steps[last] + 1:
                fragments.append((frame, "FRAGMENT", who, track, -1))
        latest[who] = track, frame
    assert sorted(listed(events, "SWITCH")) == sorted(switches)
    assert sorted(listed(events, "FRAGMENT")) == sorted(fragments)
    assert (events.of(*(set(KINDS) - {"SWITCH"})).previous_ids == -1).all()


def test_a_switch_after_an_interruption():
    truth = person(1, range(101, 107)) + person(2, range(101, 107), left=300)
    compared = compare(truth, truth[6:] + person(70, [101, 102]) + person(80, [104, 105, 106]), first=101)
    assert listed(clear_events(compared), *KINDS[1:]) == [
        (103, "MISS", 1, -1, -1),
        (104, "SWITCH", 1, 80, 70),
        (104, "FRAGMENT", 1, 80, -1),
    ]


def test_a_switch_names_the_last_track_and_not_the_first():
    tracks = [(1, 7), (2, 8), (3, 7), (4, 7), (5, 9)]
    events = clear_events(
        compare(person(1, range(1, 6)), [row for frame, track in tracks for row in person(track, [frame])])
    )
    assert listed(events, "SWITCH") == [(2, "SWITCH", 1, 8, 7), (3, "SWITCH", 1, 7, 8), (5, "SWITCH", 1, 9, 7)]


def test_results_on_distractors_and_ignored_persons_are_no_events():
    truth = [*person(1, [1, 2]), (1, 2, 300, 0, 100, 100, 0, 7), (2, 3, 600, 0, 100, 100, 0, 1)]
    compared = compare(truth, person(5, [1, 2]) + person(6, [1], left=300))
    assert listed(clear_events(compared)) == [(1, "MATCH", 1, 5, -1), (2, "MATCH", 1, 5, -1)]


@pytest.mark.parametrize("kind", ["MISS", "FP"])
def test_a_side_without_any_box(kind):
    boxes = person(4, [2, 5])
    events = clear_events(compare(boxes, []) if kind == "MISS" else compare([], boxes))
    assert events.kinds.tolist() == [kind, kind]
    assert events.frames.tolist() == [2, 5]
    assert events.tlwh.tolist() == [[0, 0, 100, 100]] * 2


def test_nothing_at_all():
    assert len(clear_events(compare([], []))) == 0


# --- the file


@pytest.fixture
def events():
    truth = person(1, range(1, 5)) + person(2, [4], left=300)
    return clear_events(compare(truth, person(7, [1], width=50) + person(8, [3, 4]) + person(9, [2], left=500)))


def test_the_file_holds_what_went_wrong(tmp_path, events):
    write_events(tmp_path / "events.csv", {"A": events, 'two, "B"': events.of("FP")})
    assert (tmp_path / "events.csv").read_text() == (
        "sequence,frame,event,gt_id,track_id,previous_track_id,iou,left,top,width,height\n"
        "A,2,MISS,1,,,,0.00,0.00,100.00,100.00\n"
        "A,2,FP,,9,,,500.00,0.00,100.00,100.00\n"
        "A,3,SWITCH,1,8,7,1.0000,0.00,0.00,100.00,100.00\n"
        "A,3,FRAGMENT,1,8,,1.0000,0.00,0.00,100.00,100.00\n"
        "A,4,MISS,2,,,,300.00,0.00,100.00,100.00\n"
        '"two, ""B""",2,FP,,9,,,500.00,0.00,100.00,100.00\n'
    )
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


def test_matches_are_written_on_request(tmp_path, events):
    write_events(tmp_path / "events.csv", {"A": events}, kinds=["MATCH", "SWITCH"])
    with (tmp_path / "events.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["frame"], line["event"], line["iou"]) for line in lines] == [
        ("1", "MATCH", "0.5000"),
        ("3", "SWITCH", "1.0000"),
        ("4", "MATCH", "1.0000"),
    ]


def test_an_unknown_kind_or_a_fault_on_the_way_leaves_the_older_file(tmp_path, events):
    path = tmp_path / "events.csv"
    path.write_text("older")
    with pytest.raises(ValueError, match=r"kinds: expected some of MATCH, SWITCH, .*, got 'SWITCHES'"):
        write_events(path, {"A": events}, kinds=["SWITCHES"])
    broken = dataclasses.replace(events, tlwh=events.tlwh[:, :0].tolist())
    with pytest.raises(TypeError):
        write_events(path, {"A": events, "B": broken})
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="absent"):
        write_events(tmp_path / "absent" / "events.csv", {"A": events})
