"""Graphs for other runtimes: bytes of letterboxed frames in; maps, boxes or people out; any batch, any size.

What a detector does between letterbox and frame pixels (detector/inference.py), as modules without a branch that
depends on numbers, so that they can be traced. The result of `PeopleGraph` is that of `postprocess`, in one table for
the whole batch.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.postprocess import MAX_CANDIDATES
from detector.priors import STRIDES, Network, Picks, decode_boxes, writes_onnx

ONNX_OPSET = 17
"""From 16 on RoiAlign has the half-pixel shift that `sample_boxes` samples with."""
INPUT = "frames"
GraphKind = Literal["people", "boxes", "maps"]
EXAMPLE = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)
"""What graphs are traced with: more rows and columns than one cell, and no two sides alike."""
_EXPORTER = threading.Lock()
"""torch's exporter has one state for all threads."""


class MapsGraph(nn.Module):
    """The dense part: frames -> raw maps, then feature maps, as the model's `forward` returns them, flat.

    Args:
        model: of either family, in evaluation mode.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 BGR, H and W multiples of 32 -> maps."""
        raw, features = self._dense(frames)
        return (*raw, *features)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names of what `forward` returns, and of the axes that vary."""
        maps = [f"raw{i}" for i in range(len(STRIDES))] + self._features()
        return {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in maps}

    @property
    def example(self) -> Tensor:
        """Frames to be traced with, on the model's device."""
        return EXAMPLE.to(next(self.parameters()).device)

    def _dense(self, frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        # In memory these planes are channels-last already.
        return self.model(frames.permute(0, 3, 1, 2).float())

    def _features(self) -> list[str]:
        with torch.inference_mode():
            return [f"feature{i}" for i in range(len(self._dense(self.example)[1]))]


class BoxesGraph(MapsGraph):
    """All boxes, decoded, before suppression; then the feature maps."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 BGR -> boxes (B, A, 4) xyxy in input pixels, scores (B, A), labels (B, A), maps."""
        raw, features = self._dense(frames)
        flat = self.model.flatten(raw)
        return (decode_boxes(flat[..., :4], self.model.priors(raw)), *self.model.scores(flat), *features)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names of what `forward` returns, and of the axes that vary."""
        features = {name: axes for name, axes in super().outputs.items() if name.startswith("feature")}
        return {name: {0: "batch", 1: "priors"} for name in ("boxes", "scores", "labels")} | features


class PeopleGraph(MapsGraph):
    """People with their embeddings: suppression and embedding head are inside.

    Args:
        model: of either family, in evaluation mode.
        score_thresh: boxes that score lower are left out.
        nms_thresh: of two boxes of a class whose IoU is higher, the one that scores lower is left out.
        max_detections: at most so many people an image, the best.
    """

    def __init__(self, model: Network, score_thresh: float, nms_thresh: float, max_detections: int) -> None:
        super().__init__(model)
        self.score_thresh, self.nms_thresh, self.max_detections = score_thresh, nms_thresh, max_detections
        self.classes = getattr(model.config, "num_classes", 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3) uint8 BGR -> one row a person, image by image, by falling score.

        Returns:
            image (N,) int64, the row of the batch; boxes (N, 4) xyxy in input pixels; scores (N,); labels (N,) int64;
            and embeddings (N, D), unit rows, where the model has an embedding head.
        """
        raw, features = self._dense(frames)
        flat, priors = self.model.flatten(raw), self.model.priors(raw)
        scores, labels = self.model.scores(flat)  # (B, A)
        batch, count = scores.shape
        # A small input has fewer priors than candidates: padding stands in, below any threshold.
        scores, rows = functional.pad(scores, (0, MAX_CANDIDATES), value=-1.0).topk(MAX_CANDIDATES)  # (B, K) falling
        rows = rows.clamp(max=count - 1)
        in_batch = rows + count * torch.arange(batch, device=rows.device)[:, None]
        labels = labels.flatten()[in_batch]
        boxes = decode_boxes(flat[..., :4].flatten(0, 1)[in_batch], priors[rows])
        kept = self._kept(boxes, scores, labels)
        image, k = ((kept > 0) & (kept.cumsum(1) <= self.max_detections)).nonzero().unbind(1)
        people = image, boxes[image, k], scores[image, k], labels[image, k]
        if not self.model.config.embedding_dim:
            return people
        picks = Picks.of(priors, rows[image, k], image, people[1])
        coarse, fine, order = self.model.patches(features, picks)
        embeddings = self.model.embed_patches(coarse, fine)
        return (*people, torch.zeros_like(embeddings).index_put((order,), embeddings))

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Names of what `forward` returns, and of the axes that vary."""
        embeddings = ["embeddings"] if self.model.config.embedding_dim else []
        return {name: {0: "people"} for name in ("image", "boxes", "scores", "labels", *embeddings)}

    def _kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Candidates that survive suppression: (B, K) float32, 1 or 0: not every runtime adds up integers."""
        if writes_onnx():
            by_class = scores[:, None].where(
                labels[:, None] == torch.arange(self.classes, device=labels.device)[:, None], -1.0
            )
            limits = self.max_detections, self.nms_thresh, self.score_thresh
            image, _, k = _OnnxSuppression.apply(boxes, by_class, *limits).unbind(1)
        else:
            from torchvision.ops import nms  # takes as long to import as torch

            image, k = (scores >= self.score_thresh).nonzero().unbind(1)
            # Images and classes are laid side by side, in double precision, in which that moves no box.
            group = (image * self.classes + labels[image, k])[:, None]
            keep = nms(
                boxes[image, k] + group * (2.0 * boxes.abs().max().double()), scores[image, k].double(), self.nms_thresh
            )
            image, k = image[keep], k[keep]
        return torch.zeros_like(scores).index_put((image, k), torch.ones_like(scores[image, k]))


class _OnnxSuppression(torch.autograd.Function):
    """ONNX's own suppression: boxes (B, K, 4) and scores (B, C, K) -> (M, 3) int64 of image, class, candidate."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, *limits: float) -> Tensor:
        """One person as an example; what is exported is `symbolic`."""
        return boxes.new_zeros((1, 3), dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, max_detections: int, nms_thresh: float, score_thresh: float) -> Any:
        """The node; a score equal to the threshold passes here, where ONNX asks for more than it."""
        below = np.nextafter(np.float32(score_thresh), np.float32(-1))
        limits = torch.tensor([max_detections]), torch.tensor([nms_thresh]), torch.tensor([float(below)])
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=limit) for limit in limits))


def to_onnx(graph: MapsGraph, file: Path | IO[bytes]) -> None:
    """Write a graph as ONNX: input `frames`, outputs by the names in `graph.outputs`, batch and sizes free."""
    with _EXPORTER, torch.inference_mode(), warnings.catch_warnings():
        # About shapes that tracing might keep, which tests exclude, and of the exporter that needs no further packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval(),
            (graph.example,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=[INPUT],
            output_names=list(graph.outputs),
            dynamic_axes={INPUT: {0: "batch", 1: "height", 2: "width"}} | graph.outputs,
        )
