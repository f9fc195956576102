"""Features on a plane: how people lie in feature space, and how far cameras pull them apart."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from reid.feature_file import FeatureSet
from reid.files import replacing

PlotMethod = Literal["tsne", "umap"]

# People with a colour of their own, cameras with a shape of their own, and points that t-SNE arranges in a minute.
_COLOURED = 20
_SHAPES = "os^Dvp"
_MOST_POINTS = 4000


def plot_features(
    path: str | Path, query: FeatureSet, gallery: FeatureSet, method: PlotMethod = "tsne", seed: int = 0
) -> None:
    """Write a PNG of features on a plane, near each other where they are similar.

    The people with the most images have a colour each, all others are grey; of very many images some are drawn, but all
    of the coloured people. A shape stands for a camera, and the coloured people's queries are large.

    Args:
        path: file to write.
        query: features that are looked for.
        gallery: where they are looked for.
        method: t-SNE (van der Maaten and Hinton, JMLR 2008) by scikit-learn, or UMAP (McInnes et al., 2018).
        seed: of what is random.

    Raises:
        ValueError: fewer than 4 images, or the library is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to load
    from matplotlib.colors import hsv_to_rgb
    from matplotlib.figure import Figure

    pids, camids = np.concatenate((query.pids, gallery.pids)), np.concatenate((query.camids, gallery.camids))
    people, counts = np.unique(pids[pids > 0], return_counts=True)
    coloured = np.sort(people[np.argsort(-counts, kind="stable")[:_COLOURED]])
    shuffled = np.random.default_rng(seed).permutation(len(pids))
    chosen = shuffled[np.argsort(~np.isin(pids[shuffled], coloured), kind="stable")][:_MOST_POINTS]
    plane = _arrange(np.concatenate((query.features, gallery.features))[chosen], method, seed)
    pids, camids, is_query = pids[chosen], camids[chosen], chosen < len(query.pids)

    figure = Figure(figsize=(10, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cameras = np.unique(camids).tolist()
    shapes = dict(zip(cameras, _SHAPES, strict=False)) if len(cameras) <= len(_SHAPES) else dict.fromkeys(cameras, "o")

    def dots(points: Any, colour: Any, shape: str = "o", asked: bool = False, front: int = 3, label: str = "") -> None:
        x, y = np.reshape(points, (-1, 2)).T
        edge = {"edgecolors": "black", "linewidths": 1.2} if asked else {"linewidths": 0}
        size = 110 if asked else 30
        axes.scatter(x, y, s=size, color=[colour], marker=shape, zorder=front + asked, label=label or None, **edge)

    # Hues go round once; light and dark alternate, so that neighbours differ.
    hues = [(i / len(coloured), 0.85, (0.95, 0.6)[i % 2]) for i in range(len(coloured))]
    colours = {pid: hsv_to_rgb(hue) for pid, hue in zip(coloured.tolist(), hues, strict=True)}
    others = ~np.isin(pids, coloured)
    for members, colour, front in [(others, "0.8", 1), *((pids == pid, colours[pid], 3) for pid in colours)]:
        for camid, shape in shapes.items():
            mine = members & (camids == camid)
            dots(plane[mine & ~is_query], colour, shape, front=front)
            dots(plane[mine & is_query], colour, shape, asked=front > 1, front=front)
    for pid, colour in colours.items():
        dots([], colour, label=f"id {pid}")
    if others.any():
        dots([], "0.8", label="all others")
    for camid, shape in shapes.items() if len(set(shapes.values())) > 1 else ():
        dots([], "0.4", shape, label=f"camera {camid}")
    dots([], "white", asked=True, label="query")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    images = len(query.pids) + len(gallery.pids)
    some = f"{len(chosen):,} of " if len(chosen) < images else ""
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    axes.set_title(f"{some}{images:,} images of {len(people):,} people, arranged by {name}")
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", "datalim")
    with replacing(path) as part:
        figure.savefig(part, format="png")


def _arrange(features: NDArray[np.floating[Any]], method: PlotMethod, seed: int) -> NDArray[np.floating[Any]]:
    """(N, D) -> (N, 2)."""
    if method not in get_args(PlotMethod):
        raise ValueError(f"method: expected one of {', '.join(get_args(PlotMethod))}, got {method!r}")
    if len(features) < 4:
        raise ValueError(f"features: expected at least 4 images to plot, got {len(features)}")
    module, package = {"tsne": ("sklearn.manifold", "scikit-learn"), "umap": ("umap", "umap-learn")}[method]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"the plot by {method} needs the package {package} (pip install {package})") from error
    if method == "umap":
        fit = library.UMAP(n_neighbors=min(15, len(features) - 1), metric="cosine", random_state=seed)
    else:
        perplexity = min(30.0, (len(features) - 1) / 3)
        fit = library.TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed)
    return np.asarray(fit.fit_transform(features))
