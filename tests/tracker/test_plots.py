import sys
import time
from pathlib import Path

import cv2
import matplotlib.figure
import numpy as np
import pytest

from tests.tracker.scored import Row, scored, standing
from tracker.comparison import Compared
from tracker.draw import track_colour
from tracker.events import Events
from tracker.metrics import HOTA_THRESHOLDS, clear, combine, sequence_figures
from tracker.plots import _timeline, plot_hota, plot_timeline

MAGENTA = (192, 0, 224)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The matplotlib figures that are saved, in order; without pyplot, whose global state is not needed."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    saved = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return saved


def story() -> tuple[Compared, Events]:
    """Person 7: track 2, missed in frames 9 to 12, then track 5; person 4 comes in frame 5, and is away for a while."""
    truth = standing(7, range(1, 21)) + standing(4, [*range(5, 11), *range(15, 21)], left=100)
    truth += standing(50, range(1, 21), left=200, score=0)
    results = standing(2, range(1, 9)) + standing(5, range(13, 21)) + standing(9, range(5, 21), left=100)
    return scored(truth, results, 20)


def crowd(people: int, frames: int, seed: int = 0, first: int = 1) -> tuple[Compared, Events]:
    """People side by side, each there for a part of the time, followed by tracks that break, pause and change."""
    rng = np.random.default_rng(seed)
    truth: list[Row] = []
    results: list[Row] = []
    for person in range(people):
        begin, end = np.sort(rng.integers(first, first + frames, 2))
        there = np.arange(begin, end + 1)
        there = there[rng.random(len(there)) > 0.05]
        truth += standing(1000 - person, there, left=50 * person)
        track = rng.integers(0, 3, len(there)) + 3 * person
        seen = rng.random(len(there)) > 0.3
        for one in np.unique(track):
            results += standing(int(one), there[seen & (track == one)], left=50 * person)
    return scored(truth, results, frames, first)


def at(figure, picture, frame: float, row: float) -> list[int]:
    """Colour of the picture (BGR) where a frame of a row is."""
    x, y = figure.axes[0].transData.transform((frame, row))
    return picture[picture.shape[0] - 1 - int(y), int(x)].tolist()


def near(figure, picture, frame: float, row: float, colour: tuple[int, int, int], reach: int = 12) -> int:
    """How many pixels of about this colour there are around a place."""
    x, y = figure.axes[0].transData.transform((frame, row)).astype(int)
    y = picture.shape[0] - 1 - y
    part = picture[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach].astype(int)
    return int((np.abs(part - colour).max(axis=2) < 40).sum())


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_each_frame_has_the_colour_of_the_track_that_covers_the_person(tmp_path, figures):
    compared, events = story()
    assert plot_timeline(compared, events, tmp_path / "a.png") == [tmp_path / "a.png"]
    (figure,), picture = figures, cv2.imread(str(tmp_path / "a.png"))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["7", "4"]
    # Away from the middle of a run, where its id is written, and from the marker of a switch.
    for row, frames, colour in (
        (0.2, (1, 2, 7, 8), track_colour(2)),
        (0.2, (9, 10, 11, 12), (0, 0, 0)),
        (0.2, (14, 19, 20), track_colour(5)),
        (1.2, (1, 4, 11, 12, 13, 14), (255, 255, 255)),
        (1.2, (5, 10, 15, 20), track_colour(9)),
    ):
        for frame in frames:
            assert at(figure, picture, frame + 0.1, row) == list(colour), (frame, row)
    assert {"2", "5", "9"} <= set(texts(figure))
    assert not {"7", "50"} & set(texts(figure))


def test_a_switch_is_marked_where_the_other_track_takes_over(tmp_path, figures):
    plot_timeline(*story(), tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert near(figures[0], picture, 12.5, -0.4, MAGENTA) > 30
    for frame, row in ((8.5, -0.4), (4.5, 0.6), (14.5, 0.6), (17, -0.4)):
        assert near(figures[0], picture, frame, row, MAGENTA) == 0


def test_a_row_says_how_much_was_found_by_how_many_tracks(tmp_path, figures):
    compared, events = story()
    plot_timeline(compared, events, tmp_path / "a.png", sequence_figures(compared.comparison))
    rows = {row: [t.get_text() for t in figures[0].axes[0].texts if t.get_position()[1] == row][-3:] for row in (0, 1)}
    assert rows == {0: ["80%", "2", "1"], 1: ["100%", "1", "0"]}
    title = figures[0].texts[0].get_text()
    assert title.startswith("A: ")
    assert "IDSW 1" in title
    assert f"MOTA {100 * clear(compared.comparison)['MOTA']:.1f}%" in title


@pytest.mark.parametrize("first", [1, 301])
def test_the_runs_are_what_the_events_say(first):
    compared, events = crowd(12, 60, first=first)
    t = _timeline(compared, events)
    shown = {}
    for row, begin, end, track in zip(t.rows, t.first, t.last, t.ids, strict=True):
        for frame in range(begin, end + 1):
            assert (frame, t.people[row]) not in shown
            shown[frame, t.people[row]] = track
    wanted = {}
    for kind, frame, person, track in zip(events.kinds, events.frames, events.truth_ids, events.track_ids, strict=True):
        if kind in ("MATCH", "SWITCH", "MISS"):
            wanted[frame, person] = track
    assert shown == wanted
    figures = clear(compared.comparison)
    assert sum(t.last[t.ids == -1] - t.first[t.ids == -1] + 1) == figures["CLR_FN"] > 0
    assert t.switches.sum() == len(t.switch_rows) == figures["IDSW"] > 0
    appears = {person: min(frame for frame, one in wanted if one == person) for person in t.people.tolist()}
    assert list(appears) == sorted(appears, key=lambda person: (appears[person], person))
    for row, person in enumerate(t.people.tolist()):
        tracks = [track for (_, one), track in wanted.items() if one == person]
        assert t.found[row] == pytest.approx(np.mean([track >= 0 for track in tracks]))
        assert t.tracks[row] == len(set(tracks) - {-1})


def test_a_single_missed_frame_of_thousands_is_seen(tmp_path, figures):
    frames = 5000
    compared, events = scored(
        standing(1, range(1, frames + 1)), standing(2, [i for i in range(1, frames + 1) if i != 1234]), frames
    )
    plot_timeline(compared, events, tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] < 4000
    assert near(figures[0], picture, 1234, 0, (0, 0, 0), reach=4) >= 8
    assert near(figures[0], picture, 2000, 0, (0, 0, 0), reach=4) == 0


def test_what_does_not_fit_on_a_page_goes_on_the_next(tmp_path, figures):
    compared, events = crowd(130, 30)
    files = plot_timeline(compared, events, tmp_path / "a.b.png")
    assert [path.name for path in files] == ["a.b.png", "a.b-page2.png", "a.b-page3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    people = []
    for page, (figure, path) in enumerate(zip(figures, files, strict=True), start=1):
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert 40 <= len(labels) <= 60
        people += labels
        assert f"page {page} of 3" in figure.texts[0].get_text()
        picture = cv2.imread(str(path))
        assert picture.shape[0] < 2500
        # Rows are as high as those of a short page, so that they are as readable.
        row = np.diff(figure.axes[0].transData.transform([(0, 1), (0, 0)])[:, 1])[0]
        assert row == pytest.approx(33)
    assert sorted(map(int, people)) == sorted(set(compared.truth.track_ids.tolist()))


def test_nobody_to_track_and_nobody_tracked(tmp_path, figures):
    plot_timeline(*scored([], standing(1, [2]), 5), tmp_path / "nobody.png")
    assert texts(figures[0]) == ["person", "found", "tracks", "switches"]
    plot_timeline(*scored(standing(1, range(1, 6)), [], 5), tmp_path / "missed.png")
    picture = cv2.imread(str(tmp_path / "missed.png"))
    assert at(figures[1], picture, 3, 0) == [0, 0, 0]
    assert "0%" in texts(figures[1])


def test_a_great_timeline_takes_little_time(tmp_path):
    compared, events = crowd(170, 300)
    began = time.process_time()
    _timeline(compared, events)
    assert time.process_time() - began < 0.5  # some 0.02 s
    plot_timeline(compared, events, tmp_path / "a.png")
    assert time.process_time() - began < 20  # some 2 s


def of_sequences(count: int) -> dict:
    each = {f"S{i}": sequence_figures(crowd(3, 20, seed=i)[0].comparison) for i in range(count)}
    return each | {"COMBINED": combine(list(each.values()))}


def legend(figure) -> list[str]:
    return [text.get_text().strip() for text in figure.legends[0].get_texts()]


def test_hota_of_one_sequence(tmp_path, figures):
    named = of_sequences(1)
    plot_hota(named, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert axes.get_title() == "HOTA: S0"
    lines = {line.get_label().split()[1].strip(","): line for line in axes.lines}
    assert list(lines) == ["HOTA", "DetA", "AssA", "LocA"]
    for name, line in lines.items():
        np.testing.assert_array_equal(line.get_xdata(), HOTA_THRESHOLDS)
        np.testing.assert_allclose(line.get_ydata(), 100 * named["S0"][name])
        assert line.get_label().startswith(f"{100 * named['S0'][name].mean():5.1f} ")
    assert cv2.imread(str(tmp_path / "a.png")).shape[:2] == (900, 1500)


def test_hota_of_many_sequences_is_ranked(tmp_path, figures):
    named = of_sequences(21)
    classes = {"S1/2": named["S1"], "COMBINED/2": named["S1"], "CLASS-AVERAGED": named["S1"]}
    plot_hota(named | classes, tmp_path / "a.png")
    entries = legend(figures[0])
    assert figures[0].axes[0].get_title() == "HOTA: 21 sequences together"
    assert entries[0] == f"{100 * named['COMBINED']['HOTA'].mean():.1f}  HOTA"
    assert entries[4] == "HOTA of each sequence:"
    means = sorted(
        ((100 * one["HOTA"].mean(), name) for name, one in named.items() if name != "COMBINED"), reverse=True
    )
    assert entries[5:] == [f"{mean:.1f}  {name}" for mean, name in means]
    colours = {line.get_color() for line in figures[0].axes[0].lines[5:]}
    assert len(colours) == 21
    # The legend lies in the picture as a whole.
    assert figures[0].legends[0].get_window_extent().y0 > 0


def test_hota_of_very_many_sequences_names_none(tmp_path, figures):
    few = of_sequences(4)
    many = {f"{name}-{i}": one for name, one in few.items() if name != "COMBINED" for i in range(10)}
    plot_hota(many | {"COMBINED": few["COMBINED"]}, tmp_path / "a.png")
    means = [100 * one["HOTA"].mean() for one in many.values()]
    assert legend(figures[0])[4:] == [f"HOTA of each sequence: {min(means):.1f} to {max(means):.1f}"]
    assert len(figures[0].axes[0].lines) == 4 + 1 + 40


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    named = of_sequences(2)
    del named["COMBINED"]
    with pytest.raises(
        ValueError, match=r"figures: expected one sequence, or several with COMBINED, got \['S0', 'S1'\]"
    ):
        plot_hota(named, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"COMBINED, got none"):
        plot_hota({}, tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"plot_hota: matplotlib is not installed"):
        plot_hota({"S0": named["S0"]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"plot_timeline: matplotlib is not installed"):
        plot_timeline(*story(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_older_picture_is_lost_only_to_a_complete_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(figure, part, **_):
        Path(part).write_text("half")
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    for draw in (lambda: plot_hota(of_sequences(1), path), lambda: plot_timeline(*story(), path)):
        with pytest.raises(OSError, match="No space left"):
            draw()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
