"""Evaluate re-identification: mAP by both conventions, CMC and mINP of an encoder on a data set, as Market-1501 does.

    python tools/eval_reid.py --data Market-1501 --weights model.safetensors
    python tools/eval_reid.py --data market1501:Market-1501.zip --weights osnet_x0_25_market1501.pth --flip --rerank
    python tools/eval_reid.py --data Market-1501 --weights model.safetensors --scales 1,1.1 --multi-query --json o.json
    python tools/eval_reid.py --data Market-1501 --weights detector             # the tracker's own embedding branch
    python tools/eval_reid.py --data Market-1501 --encoder resnet50 --imagenet  # what ImageNet alone knows

Pictures: whom the worst and the best queries find, and where the encoder looks:

    python tools/eval_reid.py --data Market-1501 --weights model.safetensors --out report --pictures --heat-maps
    python tools/eval_reid.py --data Market-1501 --weights model.safetensors --pictures --queries 0002_c1s1_000451_03
    python tools/eval_reid.py --data Market-1501 --weights model.safetensors --embedding-plot

Features are the slow part. Once kept, they are used again where encoder, settings and images are the same, and refused
where not. Images are told apart by name, label, size and time of change (in an archive, checksum); touching or copying
them counts as a change. Without --weights features are ranked as they are; without --data no images are needed either:

    python tools/eval_reid.py --data Market-1501 --weights model.safetensors --flip --features features.npz
    python tools/eval_reid.py --features features.npz --rerank --set rerank.k1=30

For other programs, checked against the encoder itself:

    python tools/eval_reid.py --weights model.safetensors --export onnx --out exported

--data is [LAYOUT:]PATH[,OPTION], see reid/datasets.py; --weights a file of ours, or a .pth published by torchreid,
layumi's baseline or Cluster Contrast. mAP is the mean precision at each match, as most papers give it; the
trapezoid rule is that of Market-1501's own code and of layumi's baseline, and about a point lower.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs import load_config
from detector import Detector, DetectorConfig, load_model
from detector.checkpoint import BUNDLED
from detector.crops import describe_crops
from reid.check import summary
from reid.datasets import Crops, ReidDataset, load_dataset, parse_source
from reid.distances import Metric
from reid.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder, open_encoder
from reid.evaluation import Ranking, check_queries, evaluate_features, format_table
from reid.export import export_onnx, export_torchscript, fuse
from reid.extraction import Describer, EncoderDescriber, ExtractionConfig, Precision, extract_features
from reid.feature_file import FeatureSet, SavedFeatures, load_features, save_features
from reid.feature_plot import PlotMethod, plot_features
from reid.pages import QUERIES_A_PAGE, draw_heat_pages, draw_rank_pages
from reid.reranking import RerankConfig
from tracker.console import fail, stop_signals
from tracker.files import write_text
from tracker.output import claim
from tracker.video import available_cores

DETECTOR = "detector"
SECTIONS = {"rerank": RerankConfig}
EXPORTS: dict[str, tuple[Callable[[Encoder, Path], float], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torchscript": (export_torchscript, ".torchscript.pt"),
}
# Side of the grey square on which a detector sees a crop, in pixels.
CANVAS = 416


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="eval_reid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is evaluated")
    add = group.add_argument
    add("--data", metavar="SOURCE", help="query and gallery, [LAYOUT:]PATH[,OPTION]")
    add("--weights", metavar="FILE", help=f"an encoder's weights; {DETECTOR}[:FILE] is a detector's embedding branch")
    add("--encoder", choices=ENCODERS, metavar="NAME", help="one without weights of its own; see reid/backbones.py")
    add("--imagenet", action="store_true", help="--encoder starts from ImageNet weights, not from random ones")
    add("--input-size", type=size, metavar="HxW", help="height and width of the input, where a file does not say it")
    add("--last-stride", type=int, choices=(1, 2), help="stride of the last stage, where a file does not say it")

    group = parser.add_argument_group("features")
    add = group.add_argument
    add("--flip", action="store_true", help="average with the mirror image")
    add("--scales", type=numbers(float), metavar="S,S", help="average over sizes relative to the input, such as 1,1.1")
    add("--features", type=Path, metavar="NPZ", help="keep them in this file, or take them from it where they fit")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--precision", choices=get_args(Precision), default="fp32", help="bf16: torch's autocast (default fp32)")
    add("--fuse", action="store_true", help="fold batch norms into convolutions")
    add("--batch-size", type=int, default=64, metavar="N", help="images at once (default 64)")
    add("--workers", type=int, metavar="N", help="threads that read images (default: one for each core)")

    group = parser.add_argument_group("ranking")
    add = group.add_argument
    add("--metric", choices=get_args(Metric), default="cosine", help="distance of features (default cosine)")
    add("--ranks", type=numbers(int), default=[1, 5, 10, 20], metavar="K,K", help="of the CMC (default 1,5,10,20)")
    add("--multi-query", action="store_true", help="also pool all images of a query's person and camera")
    add("--rerank", action="store_true", help="also re-rank by k-reciprocal neighbours")
    add(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="e.g. rerank.k1=30",
    )

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", type=Path, metavar="FILE", help="all figures")
    add("--out", type=Path, metavar="DIR", help="folder of figures.json and all that follows (default eval_reid)")
    count: dict[str, Any] = {"type": int, "nargs": "?", "const": QUERIES_A_PAGE, "default": 0, "metavar": "N"}
    add("--pictures", **count, help=f"whom the N worst and N best queries find (default {QUERIES_A_PAGE})")
    add("--heat-maps", **count, help="where the encoder looks in these")
    add("--queries", nargs="+", metavar="NAME", help="pictures of these queries instead, by their files' names")
    add("--embedding-plot", nargs="?", const="tsne", choices=get_args(PlotMethod), help="features on a plane")
    add("--export", choices=tuple(EXPORTS), help="write the encoder for other programs")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.weights and args.encoder:
        parser.error("expected either --weights or --encoder")
    if not (args.weights or args.encoder or args.features):
        parser.error("expected one of --weights, --encoder, --features")
    return args


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """A reader of numbers with commas between."""

    def read(text: str) -> list[Any]:
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None

    return read


def size(text: str) -> tuple[int, int]:
    """`HxW` as numbers."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, got {text!r}")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv)
    with stop_signals():
        try:
            check_options(args)
            run(args)
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is done; fill in where results go."""
    model = args.weights or args.encoder
    for_model = ("flip", "scales", "fuse", "export", "heat_maps", "input_size", "last_stride")
    for_images = ("pictures", "heat_maps", "queries")
    for needed, given, options in (
        ("--weights or --encoder", model, for_model),
        ("--data", args.data, for_images),
        ("--encoder", args.encoder, ("imagenet",)),
        ("--pictures or --heat-maps", args.pictures or args.heat_maps, ("queries",)),
    ):
        for option in options:
            if getattr(args, option) and not given:
                raise ValueError(f"--{option.replace('_', '-')}: needs {needed}")
    if is_detector(args):
        for option in ("fuse", "export", "heat_maps", "input_size", "last_stride"):
            if getattr(args, option):
                raise ValueError(f"--{option.replace('_', '-')}: is for encoders of crops, not for a detector")
        if args.precision != "fp32":
            raise ValueError(f"--precision: expected fp32 for a detector, got {args.precision}")
    if not args.data and not (args.export or (args.features and not model)):
        raise ValueError("--data: expected a data set to describe by the encoder")
    if min(args.ranks) < 1:
        raise ValueError(f"--ranks: expected numbers from 1, got {min(args.ranks)}")
    for name in ("pictures", "heat_maps"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if args.pictures or args.heat_maps or args.embedding_plot or args.export:
        args.out = args.out or Path("eval_reid")
    claim_places(args)


def claim_places(args: argparse.Namespace) -> None:
    """Make sure that nothing is overwritten that is read, or written twice, and that all can be written.

    Raises:
        ValueError: names the place.
    """
    taken = {path.resolve(): "an input" for path in inputs(args)}
    places = [args.json]
    if args.features and not args.features.exists():
        places.append(args.features)  # what is there is first of all an input; `gather` sees to it
    if args.out:
        place = next(path for path in (args.out, *args.out.resolve().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise ValueError(f"{args.out}: expected a folder that can be written to")
        places.append(args.out / "figures.json")
        places += [plot_path(args)] if args.embedding_plot else []
        places += [export_path(args)] if args.export else []
    for path in filter(None, places):
        if path.is_dir():
            raise ValueError(f"{path}: is a folder")
        if args.out and not args.out.exists() and path.parent == args.out:  # a folder to be
            if path.resolve() in taken:
                raise ValueError(f"{path}: would be written twice; choose another place")
            taken[path.resolve()] = "another result"
        else:
            claim_whole(path, taken)


def inputs(args: argparse.Namespace) -> list[Path]:
    """The files that are read; of a folder of images, what --json names of it."""
    paths = []
    if args.weights:
        paths.append(Path(args.weights.partition(":")[2] or BUNDLED) if is_detector(args) else Path(args.weights))
    if args.data:
        _, source, option = parse_source(args.data)
        paths += [source, source / option, *(parent for parent in source.parents if parent.is_file())]
        below = args.json and args.json.exists() and source.resolve() in args.json.resolve().parents
        if below and args.json.suffix != ".json":  # an image or a list, not an older result
            paths.append(args.json)
    if args.features and args.features.exists():
        paths.append(args.features)
    return paths


def claim_whole(path: Path, taken: dict[Path, str]) -> None:
    """Claim a place, see `claim`, for a file that is written beside it first."""
    claim(path, taken)
    if not os.access(path.resolve().parent, os.W_OK) and (path.is_file() or not path.exists()):
        raise ValueError(f"{path}: cannot be written")


def export_path(args: argparse.Namespace) -> Path:
    """Where the encoder goes that is written for other programs."""
    folder: Path = args.out
    return folder / f"{Path(args.weights or args.encoder).stem}{EXPORTS[args.export][1]}"


def plot_path(args: argparse.Namespace) -> Path:
    """Where the picture of all features goes."""
    folder: Path = args.out
    return folder / "features.png"


def is_detector(args: argparse.Namespace) -> bool:
    """Whether --weights names a detector."""
    return bool(args.weights) and args.weights.partition(":")[0] == DETECTOR


def run(args: argparse.Namespace) -> None:
    """Describe the images, rank, print, write."""
    torch.set_num_threads(available_cores())
    cv2.setNumThreads(1)  # its threads and torch's would fight over the cores
    rerank = load_config(None, args.overrides, SECTIONS, others=["detector"])["rerank"]
    device = choose_device(args.device)
    workers = available_cores() if args.workers is None else args.workers
    config = ExtractionConfig(args.flip, tuple(args.scales or [1.0]), args.batch_size, workers)
    dataset = load_dataset(args.data, ("query", "gallery")) if args.data else None
    if dataset and dataset.query:
        check_queries(dataset.query)
    chosen = find_queries(args.queries or (), dataset)
    saved = load_features(args.features) if args.features and (args.features.exists() or not args.data) else None
    if args.multi_query:
        check_multi_query(dataset.splits if dataset else saved.sets if saved else {})
    model = open_model(args, device) if args.weights or args.encoder else None
    if model:
        print(f"{'weights:':<10} {model.name}\n{'sha256:':<10} {model.sha256}\n{'keys:':<10} {model.keys}")
        print(f"{'features:':<10} " + ", ".join(f"{key} {value}" for key, value in model.settings.items()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    if args.export:
        export(args, model)
        if not dataset:
            return
    if dataset:
        print(f"\n{summary(dataset)}\n")
    sets = gather(args, dataset, model, saved, config)
    rankings = evaluate_features(
        sets["query"],
        sets["gallery"],
        args.metric,
        sets.get("multi_query", sets["query"]) if args.multi_query else None,
        rerank if args.rerank else None,
        device,
    )
    print(format_table(rankings, args.ranks))
    figures = {name: one.result.figures(args.ranks) for name, one in rankings.items()}
    write_figures(args, figures, sets, dataset, model, saved, rerank)
    if args.pictures or args.heat_maps:
        draw(args, dataset, model, list(rankings.values())[1 if args.rerank else 0], chosen)
    if args.embedding_plot:
        plot_features(plot_path(args), sets["query"], sets["gallery"], args.embedding_plot)
        print(f"wrote {plot_path(args)}")


def choose_device(name: str) -> torch.device:
    """`auto` or a device of torch's that is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"--device: expected cpu or one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


def check_multi_query(splits: Mapping[str, Crops] | Mapping[str, FeatureSet]) -> None:
    """Refuse --multi-query where it would pool one image each."""
    query = splits.get("query")
    if query is None or "multi_query" in splits:
        return
    if len(set(zip(query.pids.tolist(), query.camids.tolist(), strict=True))) == len(query.pids):
        raise ValueError(
            "--multi-query: expected several images of a query's person and camera, in gt_bbox or among the queries, "
            "found one of each"
        )


def find_queries(names: Sequence[str], dataset: ReidDataset | None) -> list[int]:
    """The places of queries by their files' names."""
    if not names:
        return []
    assert dataset is not None
    assert dataset.query is not None
    try:
        return [dataset.query.find(name) for name in names]
    except ValueError as error:
        raise ValueError(f"--queries: {error}") from None


# --- the model


@dataclass(frozen=True)
class Model:
    """What describes crops."""

    name: str
    sha256: str
    keys: str
    describer: Describer
    settings: dict[str, Any]  # all that features depend on besides the weights


def open_model(args: argparse.Namespace, device: torch.device) -> Model:
    """What --weights or --encoder names, on the device."""
    settings: dict[str, Any] = {"flip": args.flip, "scales": ",".join(f"{s:g}" for s in args.scales or [1])}
    if is_detector(args):
        file = Path(args.weights.partition(":")[2] or BUNDLED)
        config = load_config(None, args.overrides, {"detector": DetectorConfig}, others=list(SECTIONS))["detector"]
        detector = Detector(load_model(file), device, config)
        if not detector.model.config.embedding_dim:
            raise ValueError(f"{file}: expected a detector with an embedding branch, this one has none")
        settings = {"canvas": CANVAS, **dataclasses.asdict(detector.config), **settings}
        return Model(str(file), digest(file), "all loaded", DetectorDescriber(detector), settings)
    if args.weights:
        name, file = args.weights, Path(args.weights)
        loaded = open_encoder(file, input_size=args.input_size, last_stride=args.last_stride)
        encoder, sha256 = loaded.encoder, digest(file)
        left_out = f" ({', '.join(loaded.left_out)})" if loaded.left_out else ""
        keys = f"{len(loaded.loaded)} loaded, {len(loaded.left_out) or 'none'} left out{left_out}"
    else:
        config = EncoderConfig(args.encoder, neck="none", pretrained=args.imagenet)
        config = dataclasses.replace(
            config, input_size=args.input_size or config.input_size, last_stride=args.last_stride or config.last_stride
        )
        encoder = build_encoder(config, seed=0).eval()
        name = f"{args.encoder}, {'ImageNet' if args.imagenet else 'random weights'}"
        weights = [value.numpy().tobytes() for value in encoder.state_dict().values()]
        sha256, keys = hashlib.sha256(b"".join(weights)).hexdigest(), "none"
    if args.fuse:
        encoder, difference = fuse(encoder)
        keys += f"; batch norms folded, features differ by {difference:.1e}"
    describer = EncoderDescriber(encoder, device, args.precision)
    return Model(name, sha256, keys, describer, {**describer.settings, "fuse": args.fuse, **settings})


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class DetectorDescriber:
    """Features by a detector: each crop on grey, described where the person is found, or else as the whole crop."""

    def __init__(self, detector: Detector, canvas: int = CANVAS) -> None:
        self.detector = detector
        self.canvas = canvas

    def prepare(self, image: NDArray[np.uint8], scale: float) -> Tensor:
        """See `Describer`: the crop at its scale."""
        if scale != 1:
            wanted = [max(round(side * scale), 1) for side in image.shape[1::-1]]
            image = np.asarray(cv2.resize(image, wanted, interpolation=cv2.INTER_LINEAR), np.uint8)
        return torch.from_numpy(np.ascontiguousarray(image))

    def describe(self, prepared: Sequence[Tensor]) -> Tensor:
        """See `Describer`."""
        rows, _ = describe_crops(self.detector, [crop.numpy() for crop in prepared], self.canvas)
        return torch.from_numpy(rows)


def export(args: argparse.Namespace, model: Model | None) -> None:
    """Write the encoder for other programs."""
    assert model is not None
    assert isinstance(model.describer, EncoderDescriber)
    path = export_path(args)
    encoder = model.describer.encoder.cpu()
    difference = EXPORTS[args.export][0](encoder, path)
    encoder.to(model.describer.device)
    print(f"wrote {path}, features differ by {difference:.1e}")


# --- features


def gather(
    args: argparse.Namespace,
    dataset: ReidDataset | None,
    model: Model | None,
    saved: SavedFeatures | None,
    config: ExtractionConfig,
) -> dict[str, FeatureSet]:
    """Features of each split that is needed: from the file where it has them, else by the encoder, and kept."""
    if saved and model:
        saved.check_origin(model.sha256, model.settings)
    if dataset is None:
        assert saved is not None
        if absent := {"query", "gallery"} - saved.sets.keys():
            raise ValueError(f"{args.features}: no features of {', '.join(sorted(absent))}")
        return saved.sets
    wanted = {split: crops for split, crops in dataset.splits.items() if split != "multi_query" or args.multi_query}
    sets = saved.of(wanted) if saved else {}
    missing = [split for split in wanted if split not in sets]
    if missing and model is None:
        raise ValueError(f"{args.features}: no features of {', '.join(sorted(missing))}; --weights would make them")
    stamps = {}
    if args.features and missing:
        claim_whole(args.features, {})
        stamps = {split: wanted[split].stamps() for split in missing}  # before reading: no change is lost
    for split in missing:
        crops, started = wanted[split], time.perf_counter()
        features = extract_features(model.describer, crops, config, split)
        rate = len(crops) / (time.perf_counter() - started)
        sets[split] = FeatureSet(features, crops.names, crops.pids, crops.camids)
        print(f"described {split}: {len(crops):,} images, {rate:.0f}/s")
    if args.features and missing:
        kept, known = (saved.sets, saved.stamps) if saved else ({}, {})
        save_features(args.features, SavedFeatures(kept | sets, model.sha256, model.settings, known | stamps))
        print(f"wrote {args.features}")
    elif saved:
        print(f"features from {args.features}")
    return sets


# --- what is written


def write_figures(
    args: argparse.Namespace,
    figures: Mapping[str, Mapping[str, float | int]],
    sets: Mapping[str, FeatureSet],
    dataset: ReidDataset | None,
    model: Model | None,
    saved: SavedFeatures | None,
    rerank: RerankConfig,
) -> None:
    """All figures, shares of 1, with what they are of."""
    settings = model.settings if model else saved.settings if saved else {}
    content = {
        "weights": model.name if model else None,
        "sha256": model.sha256 if model else saved.encoder if saved else None,
        "keys": model.keys if model else None,
        "data": dataset.name if dataset else str(args.features),
        "layout": dataset.layout if dataset else None,
        "images": {name: len(one.names) for name, one in sets.items()},
        "features": settings,
        "metric": args.metric,
        "rerank": dataclasses.asdict(rerank) if args.rerank else None,
        "figures": figures,
    }
    for path in filter(None, (args.json, args.out / "figures.json" if args.out else None)):
        write_text(path, json.dumps(content, indent=1) + "\n")
        print(f"wrote {path}")


def draw(
    args: argparse.Namespace, dataset: ReidDataset | None, model: Model | None, ranking: Ranking, chosen: list[int]
) -> None:
    """Rank lists and heat maps of the chosen queries, or of the worst and the best."""
    assert dataset is not None
    query, gallery = dataset.query, dataset.gallery
    assert query is not None
    assert gallery is not None
    pages = []
    if args.pictures:
        pages.append(draw_rank_pages(args.out, ranking, query, gallery, args.pictures, chosen))
    if args.heat_maps:
        assert model is not None
        assert isinstance(model.describer, EncoderDescriber)
        pages.append(draw_heat_pages(args.out, model.describer, ranking, query, gallery, args.heat_maps, chosen))
    for path in chain(*pages):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
