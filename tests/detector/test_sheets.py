from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data import TrainingSet, open_source, read_image
from detector.sheets import _colour, _tile, contact_sheet, training_sheet
from tests.detector.scenes import noise, write_people
from tests.detector.test_layouts import write


def test_a_tile_frames_people_and_stripes_regions() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    boxes = np.array([[20, 40, 60, 200], [100, 40, 140, 200], [200, 40, 280, 120]], float)
    tile = _tile(image, boxes, np.array([0.0, 0, -1]), np.array([7.0, -1, -1]), "a/b/c.jpg").astype(int)
    assert tile.shape == (480 + 26, 640, 3)  # twice the size, and a caption
    assert (tile[300, 40] == _colour(7)).all()
    assert (tile[300, 200] == 255).all()
    assert (tile[300, 300] == 0).all()  # nothing outside
    region = tile[82:238, 402:558]
    assert (region >= 51 - 1).all()
    assert 0.1 < (region == 200).all(2).mean() < 0.3
    assert tile[480:].max() > 200


def test_colours_of_neighbours_differ() -> None:
    colours = np.array([_colour(i) for i in range(12)])
    assert min(np.abs(a - b).sum() for k, a in enumerate(colours) for b in colours[:k]) > 40


@pytest.mark.parametrize("size", [(10, 300), (300, 10), (2000, 1000)])
def test_images_of_all_shapes_fit(size: tuple[int, int]) -> None:
    tile = _tile(noise(*size), np.array([[-50.0, -50, 5000, 5000]]), np.array([-1.0]), np.array([-1.0]), "é")
    assert tile.shape[1] == 640
    assert tile.shape[0] <= 506


def test_sheets_show_all_sources_people_first(tmp_path: Path) -> None:
    """A person's colour of the first source, and the plain second source in turn."""
    people = open_source(f"jde:{write_people(tmp_path / 'a', 9)}")
    people.labels[:8] = [np.zeros((0, 6))] * 8
    plain = open_source(f"yolo:{write(tmp_path / 'y', 'yolo', '')}")
    contact_sheet([people, plain], tmp_path / "new" / "sheet.png", np.random.default_rng(0), count=4)
    sheet = read_image(tmp_path / "new" / "sheet.png")
    assert sheet.shape == (2 * (480 + 26), 3 * 640, 3)
    framed = [(sheet[:506, x : x + 640] == _colour(1)).all(2).any() for x in (0, 640, 1280)]
    assert framed == [True, False, False]
    contact_sheet([plain], tmp_path / "one.png", np.random.default_rng(0))
    assert read_image(tmp_path / "one.png").shape[1] == 1920


def test_the_training_sheet_shows_what_the_network_sees(tmp_path: Path) -> None:
    data = TrainingSet([open_source(f"jde:{write_people(tmp_path / 'a', 4)}")], 0)
    training_sheet(data, tmp_path / "sheet.png", (160, 96), count=5)
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * (384 + 26), 1920, 3)
    assert (sheet == _colour(1)).all(2).any()
    training_sheet(data, tmp_path / "again.png", (160, 96), count=5)
    assert np.array_equal(cv2.imread(str(tmp_path / "again.png")), sheet)
