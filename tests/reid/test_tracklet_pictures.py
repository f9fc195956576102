from pathlib import Path

import cv2
import numpy as np
import pytest

from reid.separation import separation
from reid.tracklet_pictures import draw_clusters, plot_separation
from reid.tracklets import Tracklets
from tests.reid.test_tracklets import crowd


def test_a_row_for_each_person_most_tracklets_first(tmp_path: Path) -> None:
    tracklets = crowd(10, 2)
    shade = 20 + 20 * (tracklets.index % 10)
    pictures = np.broadcast_to(shade[:, None, None, None], (len(tracklets), 16, 8, 3)).astype(np.uint8)
    labels = np.where(tracklets.index == 0, -1, tracklets.index % 3)
    draw_clusters(tmp_path / "people.png", pictures, labels, tracklets, rows=2)
    sheet = cv2.imread(str(tmp_path / "people.png"))
    draw_clusters(tmp_path / "three.png", pictures, labels, tracklets, rows=9)
    three = cv2.imread(str(tmp_path / "three.png"))
    assert three.shape[0] * 2 == sheet.shape[0] * 3
    upper = sheet[: sheet.shape[0] // 2]
    most = np.bincount([labels[tracklets.index == t][0] for t in range(1, len(tracklets.sizes))]).argmax()
    for track in range(1, len(tracklets.sizes)):
        drawn = (upper == 20 + 20 * (track % 10)).all(axis=2).sum() > 2000
        assert drawn or labels[tracklets.index == track][0] != most
    draw_clusters(tmp_path / "none.png", pictures, np.full(len(labels), -1), tracklets)
    assert not (tmp_path / "none.png").exists()


def test_curves_of_what_is_known(tmp_path: Path) -> None:
    tracklets = crowd(20, 2)
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(3):
        figures = separation(rng.normal(size=(len(tracklets), 4)), tracklets).figures()
        rows.append({"epoch": epoch, "all": figures, "held": dict.fromkeys(figures)})  # nobody was held out
    plot_separation(rows, tmp_path / "separation.png", best=1)
    assert cv2.imread(str(tmp_path / "separation.png")).shape[1] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["separation.png"]


COLOURS = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255)]
BLUE = (180, 119, 31)
"""Of the lines of those held out."""


def scene(counts: list[int], frames: int = 6):
    """Clusters of so many tracklets, whose boxes are of one colour each: pictures, labels, tracklets."""
    labels = np.repeat(np.arange(len(counts)), np.array(counts) * frames)
    tracks = np.arange(sum(counts)).repeat(frames)
    pictures = np.array(COLOURS, np.uint8)[labels][:, None, None].repeat(48, axis=1).repeat(24, axis=2)
    return pictures, labels, Tracklets(tracks, np.arange(len(tracks)) / 10, tracks % 2)


def drawn(folder: Path, *given, **how) -> np.ndarray:
    draw_clusters(folder / "people.png", *given, **how)
    assert [file.name for file in folder.iterdir()] == ["people.png"]
    return cv2.imread(str(folder / "people.png"))


def tops(sheet: np.ndarray, count: int) -> list[int | None]:
    """Where each colour begins, None where it is not."""
    rows = [np.flatnonzero((sheet == colour).all(axis=2).any(axis=1)) for colour in COLOURS[:count]]
    return [int(own[0]) if len(own) else None for own in rows]


def tiles(sheet: np.ndarray, colour: int) -> int:
    """How many tiles of a colour there are, each 88 pixels wide."""
    line = (sheet == COLOURS[colour]).all(axis=2)
    return round(line[line.any(axis=1).argmax()].sum() / 88)


def test_rows_are_in_order_and_outliers_are_in_none(tmp_path: Path) -> None:
    pictures, labels, tracklets = scene([2, 4, 1, 3])
    second, first, last, _ = tops(drawn(tmp_path, pictures, labels, tracklets), 4)
    assert first < second < last
    few = tops(drawn(tmp_path, pictures, labels, tracklets, rows=2), 4)
    assert [top is not None for top in few] == [False, True, False, True]
    without = tops(drawn(tmp_path, pictures, np.where(labels == 1, -1, labels), tracklets), 4)
    assert [top is not None for top in without] == [True, False, True, True]


@pytest.mark.parametrize(("most", "wanted"), [(2, (2, 2)), (4, (4, 4)), (8, (6, 8)), (100, (6, 18))])
def test_so_many_boxes_of_a_row_at_most(tmp_path: Path, most: int, wanted: tuple[int, int]) -> None:
    """Of one tracklet of six boxes, and of three of them."""
    sheet = drawn(tmp_path, *scene([1, 3]), tiles=most)
    assert tiles(sheet, 0) == wanted[0]
    assert 1 <= tiles(sheet, 1) <= wanted[1]
    assert most < 100 or tiles(sheet, 1) == wanted[1]


def test_boxes_of_a_tracklet_are_in_order_of_time(tmp_path: Path) -> None:
    nobody = np.zeros(3, np.int64)
    pictures = np.array([40, 80, 120], np.uint8)[:, None, None, None].repeat(48, 1).repeat(24, 2).repeat(3, 3)
    sheet = drawn(tmp_path, pictures, nobody, Tracklets(nobody, np.array([3.0, 1.0, 2.0]), nobody))
    middle = sheet[len(sheet) // 2]
    places = [np.flatnonzero((middle == grey).all(axis=1)).mean() for grey in (80, 120, 40)]
    assert places == sorted(places)


def test_a_line_for_those_held_out_and_a_mark_at_the_kept_epoch(tmp_path: Path) -> None:
    tracklets, rng, rows = crowd(20, 2), np.random.default_rng(0), []
    for epoch in range(4):
        features = rng.normal(size=(len(tracklets), 4))
        parts = {"held": separation(features, tracklets, measured=tracklets.index < 20)}
        parts["all"] = separation(features, tracklets)
        rows.append({"epoch": epoch, **{name: part.figures() for name, part in parts.items()}})
    nobody = [{**row, "held": dict.fromkeys(row["held"])} for row in rows]
    pictures = []
    for given, best in ((rows, 0), (rows, 3), (nobody, 0), (rows[:1], 0)):
        plot_separation(given, tmp_path / "separation.png", best)
        pictures.append(cv2.imread(str(tmp_path / "separation.png")))
    assert (pictures[0] != pictures[1]).any()
    blue = [(picture == BLUE).all(axis=2).sum() for picture in pictures]
    assert blue[2] < 0.7 * blue[0]  # the legend is left
    assert blue[3] > 20  # one epoch is a point
