"""The plot of features: what it asks for, and that it is drawn."""

import sys
import types

import cv2
import numpy as np
import pytest

from reid import feature_plot
from reid.feature_file import FeatureSet
from reid.feature_plot import plot_features


def some(count, people, seed=0):
    rng = np.random.default_rng(seed)
    pids = np.arange(count) % people + 1
    centres = np.random.default_rng(9).normal(size=(people, 8))
    rows = (centres[pids - 1] + 0.1 * rng.normal(size=(count, 8))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"{seed}-{i}.jpg" for i in range(count))
    return FeatureSet(rows, names, pids.astype(np.int64), np.arange(count, dtype=np.int64) % 2)


def test_people_have_colours(tmp_path):
    pytest.importorskip("sklearn")
    plot_features(tmp_path / "p.png", some(4, 4), some(40, 4, 1))
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.shape == (960, 1200, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert not list(tmp_path.glob("*.part"))
    plot_features(tmp_path / "q.png", some(4, 4), some(40, 4, 1))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "q.png")), picture)


def test_the_arrangement_keeps_people_together():
    pytest.importorskip("sklearn")
    one = some(60, 3)
    plane = feature_plot._arrange(one.features, "tsne", 0)
    gaps = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    same = one.pids[:, None] == one.pids[None]
    np.fill_diagonal(gaps, np.inf)
    assert same[np.arange(60), gaps.argmin(1)].all()


def test_many_images_are_thinned_but_for_the_coloured(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_plot, "_MOST_POINTS", 50)
    monkeypatch.setattr(feature_plot, "_COLOURED", 2)
    seen = []

    def arrange(features, method, seed):
        seen.append(features)
        return np.random.default_rng(0).normal(size=(len(features), 2))

    monkeypatch.setattr(feature_plot, "_arrange", arrange)
    query, gallery = some(8, 8), some(200, 8, 1)
    gallery.pids[:] = np.where(np.arange(200) < 40, 1 + np.arange(200) % 2, np.arange(200))
    plot_features(tmp_path / "p.png", query, gallery)
    assert seen[0].shape == (50, 8)
    kept = {row.tobytes() for row in seen[0]}
    assert all(row.tobytes() in kept for row in gallery.features[:40])


def test_umap_where_it_is_installed(tmp_path, monkeypatch):
    class Umap:
        def __init__(self, n_neighbors, metric, random_state):
            assert (n_neighbors, metric, random_state) == (11, "cosine", 3)

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    plot_features(tmp_path / "p.png", some(4, 4), some(8, 4, 1), "umap", seed=3)
    assert (tmp_path / "p.png").exists()


def test_what_cannot_be_plotted(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="features: expected at least 4 images to plot, got 3"):
        plot_features(tmp_path / "p.png", some(1, 1), some(2, 1))
    with pytest.raises(ValueError, match="method: expected one of tsne, umap, got 'pca'"):
        plot_features(tmp_path / "p.png", some(2, 1), some(4, 1), "pca")
    for method, module, package in (("umap", "umap", "umap-learn"), ("tsne", "sklearn.manifold", "scikit-learn")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=f"the plot by {method} needs the package {package}"):
            plot_features(tmp_path / "p.png", some(2, 1), some(4, 1), method)
