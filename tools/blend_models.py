"""Blend two models of one configuration into one between them, and raise or lower the scores of its levels.

    python tools/blend_models.py --base runs/nano/model.safetensors --other runs/nano_heads/model.safetensors \
        --share 0.5 --out runs/nano_heads/blend.safetensors

A model trained on little data gains there and forgets elsewhere; half-way between the weights it started from and its
own, it keeps most of what either knows (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).

Scores may be at another height afterwards than the thresholds they are compared with. --objectness-shift and
--class-shift add to the logits of the levels of stride 8, 16 and 32 (compact family):

    python tools/blend_models.py ... --objectness-shift -0.7 -0.5 -0.3 --class-shift -0.45 -0.3 -0.2
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from detector import JDE, DarknetJDE, load_model, save_model


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, blend, save; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="model to start from")
    parser.add_argument("--other", required=True, help="model to go towards")
    parser.add_argument("--share", type=float, default=0.5, help="of the other, 0 to 1 (default %(default)g)")
    levels = {"type": float, "nargs": 3, "default": [0.0] * 3, "metavar": ("STRIDE8", "STRIDE16", "STRIDE32")}
    parser.add_argument("--objectness-shift", **levels, help="added to the logits of somebody being there")
    parser.add_argument("--class-shift", **levels, help="added to the logits of it being a person")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    try:
        if args.out.suffix != ".safetensors" or args.out.exists():
            raise ValueError(f"{args.out}: expected the name of a .safetensors file that is not there yet")
        if not all(map(math.isfinite, (*args.objectness_shift, *args.class_shift))):
            raise ValueError("--objectness-shift, --class-shift: expected finite numbers")
        model = blend(args.base, args.other, args.share)
        shift_scores(model, args.objectness_shift, args.class_shift)
        notes = {k: getattr(args, k) for k in ("base", "other", "share", "objectness_shift", "class_shift")}
        save_model(args.out, model, {"blend": notes})
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {1 - args.share:g} of {args.base}, {args.share:g} of {args.other}")
    return 0


def blend(base: str, other: str, share: float) -> JDE | DarknetJDE:
    """The model of `base` with every weight and statistic moved by `share` of the way to that of `other`.

    Raises:
        ValueError: `share` is outside [0, 1], or the models are not of one family and configuration.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    model, second = load_model(base), load_model(other)
    if type(model) is not type(second) or model.config != second.config:
        raise ValueError(f"{other}: expected a model like {base}, {model.config}, got {second.config}")
    for value, goal in zip(model.state_dict().values(), second.state_dict().values(), strict=True):
        if value.is_floating_point():
            value.lerp_(goal, share)
    return model


@torch.no_grad()
def shift_scores(model: JDE | DarknetJDE, objectness: Sequence[float], classes: Sequence[float]) -> None:
    """Add to the biases of the objectness and class logits of each level, finest first.

    Raises:
        ValueError: a shift of a model that has no such logits.
    """
    if not isinstance(model, JDE):
        if any((*objectness, *classes)):
            raise ValueError("objectness_shift, class_shift: expected a model of the compact family")
        return
    for head, up, class_up in zip(model.heads, objectness, classes, strict=True):
        head.objectness.bias += up
        head.class_logits.bias += class_up


if __name__ == "__main__":
    sys.exit(main())
