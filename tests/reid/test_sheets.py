"""Sheets of captioned images."""

import cv2
import numpy as np
import pytest

from reid.sheets import QUERY, WRONG, Tile, draw_sheet


@pytest.mark.parametrize("shape", [(1, 1), (400, 3), (3, 400), (1200, 900)])
def test_images_of_any_shape(tmp_path, shape):
    image = np.full((*shape, 3), 128, np.uint8)
    draw_sheet(tmp_path / "s.png", [("x", [[Tile(image, ("a", "b"), QUERY)], [Tile(image, ("c",))]])])
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert sheet.shape[0] < 300
    assert sheet.shape[1] < 400
    assert (sheet == QUERY).all(axis=2).any()


def test_images_keep_their_proportions_and_order(tmp_path):
    tiles = [Tile(np.full((64, 32, 3), grey, np.uint8), (), colour) for grey, colour in ((90, QUERY), (120, WRONG))]
    draw_sheet(tmp_path / "s.png", [("first", [tiles]), ("second", [tiles[:1], tiles[1:]])])
    sheet = cv2.imread(str(tmp_path / "s.png"))
    height = len(sheet) // 2
    places = []
    for top in (0, height):
        row = sheet[top : top + height]
        for grey in (90, 120):
            y, x = np.nonzero((row == grey).all(axis=2))
            assert (np.ptp(y), np.ptp(x)) == (175, 87)  # scaled to the height of a box, 176 x 88
            places.append(int(x.min()))
    assert places[0] == places[2]
    assert places[0] < places[1] < places[3]  # groups stand further apart


def test_an_older_sheet_stays_where_a_new_one_cannot_be_drawn(tmp_path):
    (tmp_path / "s.png").write_text("old")
    with pytest.raises(ValueError, match="max"):
        draw_sheet(tmp_path / "s.png", [])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("s.png", "old")]
