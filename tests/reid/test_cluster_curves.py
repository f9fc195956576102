"""The picture of pseudo-labels over the epochs."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reid.cluster_curves import plot_clusters
from reid.pseudo_labels import describe_labels

LABELS = np.array([0, 0, 1, 1, 2, -1])


def rows(epochs: int, pids: NDArray[np.int64] | None = None) -> list[dict[str, Any]]:
    return [{"epoch": epoch, **describe_labels(LABELS, pids).figures()} for epoch in range(1, epochs + 1)]


def picture(path: Path, *args: Any) -> NDArray[np.uint8]:
    plot_clusters(args[0], path / "clusters.png", *args[1:])
    assert [file.name for file in path.iterdir()] == ["clusters.png"]
    return cv2.imread(str(path / "clusters.png"))


@pytest.mark.parametrize("epochs", [1, 3, 60])
def test_known_identities_have_a_picture_of_their_own(tmp_path: Path, epochs: int) -> None:
    unknown = picture(tmp_path, rows(epochs))
    known = picture(tmp_path, rows(epochs, np.array([1, 1, 2, 3, 3, 3])))
    assert known.shape[0] == unknown.shape[0]
    assert known.shape[1] > 1.3 * unknown.shape[1]
    green = np.array([44, 160, 44])  # the third line, purity
    assert (known == green).all(axis=2).any()
    assert not (unknown == green).all(axis=2).any()


def test_the_true_number_is_drawn(tmp_path: Path) -> None:
    without, with_it = (picture(tmp_path, rows(5), *more) for more in ((), (62,)))
    assert (without != with_it).any()


def test_epochs_without_clusters_leave_a_gap(tmp_path: Path) -> None:
    pids = np.array([1, 1, 2, 3, 3, 3])
    failed = {"epoch": 4, **describe_labels(np.full(6, -1), pids).figures()}
    as_none = failed | {"nmi": None, "ari": None, "purity": None}
    picture_of = [picture(tmp_path, [*rows(3, pids), last]) for last in (failed, as_none)]
    assert np.array_equal(*picture_of)


def test_no_epoch_is_no_picture(tmp_path: Path) -> None:
    plot_clusters([], tmp_path / "clusters.png")
    assert not list(tmp_path.iterdir())
