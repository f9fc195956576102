from pathlib import Path

import cv2
import numpy as np

from reid.separation import separation
from reid.tracklet_pictures import draw_clusters, plot_separation
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
