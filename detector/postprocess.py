"""From raw maps to people: decode, non-maximum suppression, embeddings at the cells kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detector.patches import cut_patches, embed_patches
from detector.priors import Network, Picks, decode_boxes

MAX_CANDIDATES = 1000


@torch.no_grad()
def postprocess(
    model: Network,
    raw: Sequence[Tensor],
    features: Sequence[Tensor],
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
    *,
    embed: bool = True,
    patches: bool = False,
) -> list[dict[str, Any]]:
    """People in each image of a batch, in network pixels.

    Embeddings are computed only for the boxes that survive non-maximum suppression.

    Returns:
        One dictionary an image, rows by falling score: `boxes` (N, 4) xyxy, `scores` (N,), `labels` (N,),
        and `embeddings` (N, D) unit rows where the model has an embedding head, unless `embed` is false. With
        `patches` there are also the `patches` that these were computed from, see `detector.patches`.
    """
    from torchvision.ops import batched_nms  # takes as long to import as torch

    flat, priors = model.flatten(raw), model.priors(raw)
    scores, labels = model.scores(flat)  # (B, A)
    kept: list[dict[str, Any]] = []
    picked, image_index = [], []
    for i in range(len(flat)):
        rows = (scores[i] >= score_thresh).nonzero()[:, 0]
        if len(rows) > MAX_CANDIDATES:
            rows = rows[scores[i, rows].topk(MAX_CANDIDATES).indices]
        boxes = decode_boxes(flat[i, rows, :4], priors[rows])
        keep = batched_nms(boxes, scores[i, rows], labels[i, rows], nms_thresh)[:max_detections]
        rows = rows[keep]
        kept.append({"boxes": boxes[keep], "scores": scores[i, rows], "labels": labels[i, rows]})
        picked.append(rows)
        image_index.append(torch.full_like(rows, i))
    if embed and model.config.embedding_dim:
        boxes = torch.cat([k["boxes"] for k in kept])
        cut = cut_patches(model, features, Picks.of(priors, torch.cat(picked), torch.cat(image_index), boxes))
        embeddings = embed_patches(model, cut)
        for i, prediction in enumerate(kept):
            own = (cut.picks.image == i).nonzero()[:, 0]
            prediction["embeddings"] = embeddings[own]
            if patches:
                prediction["patches"] = cut[own]
    return kept
