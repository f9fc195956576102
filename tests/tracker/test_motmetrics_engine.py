"""motmetrics as an engine: its published figures, what it says when fed in the plainest way, and where it differs."""

import dataclasses
import math
import warnings

import motmetrics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.comparison import Compared
from tracker.events import clear_events
from tracker.metrics import clear, identity
from tracker.mot import MotRows, read_mot
from tracker.motmetrics_engine import motmetrics_figures
from tracker.preprocessing import benchmark_of, prepare

FRAMES = 6


def mot_rows(rows):
    table = np.array(rows, float).reshape(-1, 6)
    whole, ones = table[:, :2].astype(np.int64), np.ones(len(table))
    return MotRows(whole[:, 0], whole[:, 1], table[:, 2:], ones, ones.astype(np.int64), ones)


def compare(truth, results, name="A", first=1, frames=FRAMES):
    """A sequence, from rows of frame, id, left, top, width, height, whose frames are numbered from `first`."""
    truth, results = mot_rows(truth), mot_rows(results)
    counted = (dataclasses.replace(rows, frames=rows.frames - first + 1) for rows in (truth, results))
    return Compared(name, truth, results, first, prepare(*counted, frames, "MOT17"))


def person(identity, frames, left=0, width=100):
    return [(frame, identity, left, 0, width, 100) for frame in frames]


def both(truth, results):
    """The CLEAR figures of motmetrics and the official ones."""
    compared = compare(truth, results)
    return motmetrics_figures([compared])[0]["A"], clear(compared.comparison)


# --- published figures


@pytest.mark.shared
def test_the_figures_of_its_readme(shared):
    compared = []
    for name in ("TUD-Campus", "TUD-Stadtmitte"):
        folder = shared / "data" / "mot" / name
        truth, results = read_mot(folder / "gt" / "gt.txt"), read_mot(folder / "motmetrics_test.txt")
        rules = benchmark_of(name, truth)
        assert rules == "MOT15"
        frames = int(truth.frames.max())
        compared.append(Compared(name, truth, results, 1, prepare(truth, results, frames, rules)))
    figures, _ = motmetrics_figures(compared)

    ratios = {name: [round(100 * figures[one.name][name], 1) for one in compared] for name in figures["COMBINED"]}
    assert ratios["IDF1"] == [55.8, 64.5]
    assert ratios["IDP"] == [73.0, 82.0]
    assert ratios["IDR"] == [45.1, 53.1]
    assert ratios["CLR_Re"] == [58.2, 60.9]
    assert ratios["CLR_Pr"] == [94.1, 94.0]
    assert ratios["MOTA"] == [52.6, 56.4]
    assert ratios["MOTP"] == [72.3, 65.4]
    names = ("MT", "PT", "ML", "CLR_FP", "CLR_FN", "IDSW", "Frag")
    counts = [[figures[one.name][name] for name in names] for one in compared]
    assert counts == [[1, 6, 1, 13, 150, 7, 7], [5, 4, 1, 45, 452, 7, 6]]
    assert [figures["COMBINED"][name] for name in names] == np.sum(counts, 0).tolist()


# --- random scenes


@st.composite
def crowds(draw):
    """People who wander, with boxes that are sometimes missed, invented, shifted, or called by another's name."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    people, seen = draw(st.integers(0, 8)), draw(st.sampled_from([0, 0.5, 0.9]))
    first = draw(st.sampled_from([1, 51]))
    places, names = rng.uniform(0, 150, (people, 2)), rng.permutation(people + 3)
    truth, results = [], []
    for frame in range(first, first + FRAMES):
        places = places + rng.normal(0, 6, places.shape)
        swap = rng.integers(0, len(names), 2)
        names[swap] = names[swap[::-1]]
        for who, place in enumerate(places):
            box = np.append(place, [40, 80])
            if rng.random() < 0.9:
                truth.append((frame, 10 * who, *box))
            if rng.random() < seen:
                results.append((frame, names[who], *(box + rng.normal(0, 5, 4))))
        if rng.random() < seen / 3:
            results.append((frame, names[-1], *rng.uniform(0, 150, 2), 40, 80))
    return [truth[row] for row in rng.permutation(len(truth))], results, first


@settings(max_examples=60, deadline=None)
@given(crowds())
def test_identity_is_ours_and_the_events_add_up(crowd):
    compared = compare(*crowd[:2], first=crowd[2])
    figures, events = (answer["A"] for answer in motmetrics_figures([compared]))
    for name, value in identity(compared.comparison).items():
        assert figures[name] == pytest.approx(value, abs=1e-12), name
    assert figures["CLR_Frames"] == FRAMES
    counts = {"MISS": "CLR_FN", "FP": "CLR_FP", "SWITCH": "IDSW", "FRAGMENT": "Frag"}
    counts |= {kind.upper(): kind for kind in ("Transfer", "Ascend", "Migrate")}
    for kind, name in counts.items():
        assert len(events.of(kind)) == figures[name], kind
    found = events.of("MATCH", "SWITCH")
    assert len(found) == figures["CLR_TP"] == len(compared.truth) - figures["CLR_FN"]
    assert found.overlaps.sum() == pytest.approx(figures["MOTP"] * figures["CLR_TP"])
    latest = {}
    for kind, who, track, before in zip(found.kinds, found.truth_ids, found.track_ids, found.previous_ids, strict=True):
        assert before == (latest[who] if kind == "SWITCH" else -1)
        assert latest.get(who, track) == track or kind == "SWITCH"
        latest[who] = track


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def plainly_fed(truth, results, first):
    """motmetrics' accumulator, fed frame by frame with the ids and overlaps of the rows."""
    accumulator = motmetrics.MOTAccumulator()
    for frame in range(first, first + FRAMES):
        persons, tracks = ([row for row in rows if row[0] == frame] for rows in (truth, results))
        distances = [[1 - overlap(a[2:], b[2:]) for b in tracks] for a in persons]
        distances = np.array(distances, float).reshape(len(persons), len(tracks))
        distances[distances > 0.5] = np.nan
        accumulator.update([row[1] for row in persons], [row[1] for row in tracks], distances, frameid=frame)
    return accumulator


@settings(max_examples=40, deadline=None)
@given(st.lists(crowds(), min_size=1, max_size=2))
def test_the_figures_are_those_of_motmetrics_fed_plainly(sequences):
    compared = [
        compare(truth, results, name=f"S{number}", first=first)
        for number, (truth, results, first) in enumerate(sequences)
    ]
    figures, _ = motmetrics_figures(compared)
    accumulators = [plainly_fed(*sequence) for sequence in sequences]
    asked = [*motmetrics.metrics.motchallenge_metrics, "num_detections", "num_objects", "num_predictions"]
    theirs = motmetrics.metrics.create().compute_many(accumulators, metrics=asked, generate_overall=True)
    names = {"IDF1": "idf1", "IDP": "idp", "IDR": "idr", "CLR_Re": "recall", "CLR_Pr": "precision", "MOTA": "mota"}
    names |= {"IDSW": "num_switches", "Frag": "num_fragmentations", "CLR_FN": "num_misses", "MT": "mostly_tracked"}
    names |= {"PT": "partially_tracked", "ML": "mostly_lost", "CLR_FP": "num_false_positives"}
    names |= {"CLR_TP": "num_detections", "Transfer": "num_transfer", "Ascend": "num_ascend", "Migrate": "num_migrate"}
    for ours, (_, row) in zip(figures.values(), theirs.iterrows(), strict=True):
        for name, their_name in names.items():
            expected = row[their_name] if math.isfinite(row[their_name]) else 0
            assert ours[name] == pytest.approx(expected, abs=1e-12), name
        if math.isfinite(row["motp"]):  # one empty sequence makes their combined one undefined
            assert ours["MOTP"] == pytest.approx(1 - row["motp"], abs=1e-12)


# --- sequences without boxes


def test_sequences_without_boxes_have_figures_too():
    boxes = person(1, range(1, 7))
    compared = [
        compare(boxes, person(5, [1, 2], width=80), "good"),
        compare(boxes, [], "no result"),
        compare([], boxes, "no truth"),
        compare([], [], "nothing"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures, events = motmetrics_figures(compared)
    assert list(figures) == ["good", "no result", "no truth", "nothing", "COMBINED"]
    assert all(math.isfinite(value) for one in figures.values() for value in one.values())
    assert [one["CLR_Frames"] for one in figures.values()] == [6, 6, 6, 6, 24]
    assert [one["MOTP"] for one in figures.values()] == pytest.approx([0.8, 0, 0, 0, 0.8])
    assert [one["MOTA"] for one in figures.values()] == pytest.approx([2 / 6, 0, 0, 0, 1 - 16 / 12])
    assert [one["ML"] for one in figures.values()] == [0, 1, 0, 0, 1]
    assert [len(one) for one in events.values()] == [6, 6, 6, 0]


def test_frames_have_the_numbers_of_the_file_and_progress_is_shown():
    seen = []
    two = [compare(person(3, [101, 103]), person(8, [103]), name, first=101) for name in "AB"]
    _, events = motmetrics_figures(two, show=lambda done, total: seen.append((done, total)))
    assert events["A"].frames.tolist() == [101, 103]
    assert events["A"].kinds.tolist() == ["MISS", "MATCH"]
    assert (events["A"].truth_ids.tolist(), events["A"].track_ids.tolist()) == ([3, 3], [-1, 8])
    assert seen == [(1, 2), (2, 2)]


# --- where it differs from the official evaluation


def test_a_track_is_taken_up_again_after_a_gap_though_another_fits_better():
    truth = person(1, [1, 2, 3]) + person(2, [1, 2, 3], left=500)
    others = person(9, [1, 2, 3], left=500)
    compared = compare(truth, others + person(7, [1, 3], left=20) + person(8, [3], left=1))
    figures, events = (answer["A"] for answer in motmetrics_figures([compared]))
    official = clear(compared.comparison)
    assert (figures["IDSW"], official["IDSW"]) == (0, 1)
    assert figures["CLR_TP"] == official["CLR_TP"] == 5
    assert len(events.of("SWITCH")) == 0
    (switch,) = clear_events(compared).of("SWITCH").track_ids.tolist()
    assert switch == 8


def test_two_persons_who_had_the_same_track():
    # Track 7 goes over from 1 to 2; then 1 is back near it.
    truth = person(1, [1, 3], left=10) + person(2, [2, 3])
    compared = compare(truth, person(7, [1], left=10) + person(7, [2, 3]))
    last = {
        "motmetrics": motmetrics_figures([compared])[1]["A"].of("MATCH").truth_ids[-1],
        "official": clear_events(compared).of("MATCH").truth_ids[-1],
    }
    assert last == {"motmetrics": 1, "official": 2}


def test_three_poor_pairs_or_two_good_ones():
    truth = person(1, [1], left=0) + person(2, [1], left=34) + person(3, [1], left=68)
    results = person(7, [1], left=29) + person(8, [1], left=63) + person(9, [1], left=97)
    ours, official = both(truth, results)
    assert (ours["CLR_TP"], official["CLR_TP"]) == (3, 2)
    assert ours["MOTA"] > official["MOTA"]


def test_what_interrupts_a_person():
    truth, everywhere = person(1, [1, 2, 4, 5, 6]), person(2, range(1, 7), left=500)
    ours, official = both(truth + everywhere, truth + everywhere)  # in frame 3 there is nobody to be found
    assert (ours["Frag"], official["Frag"]) == (0, 1)
    ours, official = both(person(1, range(1, 7)), truth)  # in frame 3 there is no result
    assert (ours["Frag"], official["Frag"]) == (1, 0)


def test_a_person_found_in_exactly_four_fifths():
    ours, official = both(person(1, range(1, 6)), person(1, range(1, 5)))
    assert (ours["MT"], ours["PT"]) == (1, 0)
    assert (official["MT"], official["PT"]) == (0, 1)
