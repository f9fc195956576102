"""What an exported file says of itself: which network it holds, and what is baked in."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from detector.checkpoint import build_model
from detector.graph import BoxesGraph, GraphKind, MapsGraph, PeopleGraph
from detector.inference import DetectorConfig

FORMAT = "jdetrack-export"
"""Name of the manifest in a file's metadata."""
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Manifest:
    """What an exported file says of itself."""

    family: str
    """"compact" or "darknet53"."""
    model: dict[str, Any]
    """The network's configuration."""
    graph: GraphKind
    """What the graph returns; "people" can be run by itself."""
    precision: Precision
    """Numbers that the convolutions use."""
    input_size: int
    """Long side of the network input in pixels, unless told otherwise when it is run."""
    score_thresh: float
    """People who score lower are left out, as are those whom the next two settings leave out."""
    nms_thresh: float
    """Of two boxes whose IoU is higher, the one that scores lower is dropped."""
    max_detections: int
    """At most so many people a frame."""
    weights: str
    """Name of the weights file it was made from."""
    weights_sha256: str
    """That file's SHA-256, in hexadecimal digits."""
    device: str = "cpu"
    """Where a program of torch runs, "cpu" or "cuda"."""

    @classmethod
    def parse(cls, path: Path, text: str | bytes | None) -> Manifest:
        """Read the manifest of a file.

        Raises:
            ValueError: there is none, or not one of this version.
        """
        if not text:
            raise ValueError(f"{path}: expected a model that tools/export.py wrote, found no {FORMAT} notes in it")
        try:
            manifest = cls(**json.loads(text))
            for names, kinds in _TYPES.items():
                for name in names:
                    value = getattr(manifest, name)
                    if not isinstance(value, kinds) or isinstance(value, bool):
                        raise ValueError(f"{name}: expected {kinds[-1].__name__}, got {type(value).__name__}")
            for name, allowed in _ALLOWED.items():
                if getattr(manifest, name) not in allowed:
                    raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(manifest, name)!r}")
            DetectorConfig(manifest.input_size, manifest.score_thresh, manifest.nms_thresh, manifest.max_detections)
            _ = manifest.outputs  # which builds the network
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{path}: unreadable {FORMAT} notes ({first_line(error)})") from error
        return manifest

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return json.dumps(asdict(self))

    @functools.cached_property
    def outputs(self) -> list[str]:
        """Names of what the graph returns, in its order."""
        return list(graph_of(self, build_meta(self)).outputs)

    def check_outputs(self, path: Path, found: Sequence[str]) -> None:
        """Refuse a file whose graph returns something else; where no names are kept, "" stands for each.

        Raises:
            ValueError: other names, or another number.
        """
        names = self.outputs if any(found) else [""] * len(self.outputs)
        if list(found) != names:
            got = ", ".join(found) if any(found) else f"{len(found)} of them"
            raise ValueError(
                f"{path}: not the {self.graph} graph that its notes tell of: "
                f"expected {len(names)} outputs, {', '.join(self.outputs)}, got {got}"
            )


_TYPES: dict[tuple[str, ...], tuple[type, ...]] = {
    ("family", "graph", "precision", "weights", "weights_sha256", "device"): (str,),
    ("model",): (dict,),
    ("input_size", "max_detections"): (int,),
    ("score_thresh", "nms_thresh"): (int, float),
}
_ALLOWED = {"graph": get_args(GraphKind), "precision": get_args(Precision), "device": ("cpu", "cuda")}


def build_meta(manifest: Manifest) -> Any:
    """The network of a manifest without its weights: for its canvas and outputs alone."""
    with torch.device("meta"):
        return build_model(manifest.family, manifest.model).eval()


def graph_of(manifest: Manifest, model: Any) -> MapsGraph:
    """The graph that a manifest describes, of a network that is ready for it."""
    if manifest.graph == "people":
        return PeopleGraph(model, manifest.score_thresh, manifest.nms_thresh, manifest.max_detections)
    return (BoxesGraph if manifest.graph == "boxes" else MapsGraph)(model)


def first_line(error: Exception) -> str:
    """What a runtime's error says, without the lines that say where in it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line for line in lines if line and not line.startswith(("Exception from", "Check "))), type(error).__name__
    )
