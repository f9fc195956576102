"""The options of `tools/track.py`, and which of them go together."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tracker.cluster import LOCAL
from tracker.offline import FILL_SECONDS
from tracker.sources import is_recording
from tracker.video import check_range, without_secrets


def parse_arguments(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """Read the command line, None for that of the process; `description` is what --help shows before the options."""
    parser = argparse.ArgumentParser(
        prog="track.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("input")
    add = group.add_argument
    add(
        "--video",
        nargs="+",
        help="video file, camera index, address, folder of images, or quoted glob of images or videos; or several",
    )
    add("--start", type=int, metavar="FRAME", help="first frame, from 1")
    add("--end", type=int, metavar="FRAME", help="last frame, inclusive")
    add(
        "--fps",
        type=float,
        metavar="RATE",
        help="frames per second: of --detections, or where a video does not say (default 30)",
    )
    add("--realtime", action="store_true", help="play files at their own pace, dropping frames like a camera's")
    add("--max-latency", type=float, metavar="S", help="seconds a live frame waits at most for its turn (default 0.2)")

    group = parser.add_argument_group("detections from a file, in place of the model's")
    add = group.add_argument
    add("--detections", nargs="+", type=Path, metavar="FILE", help="MOTChallenge text; or several, without --video")
    add("--embeddings", nargs="+", type=Path, metavar="FILE", help=".npy or .npz, row i for row i; one for each file")
    add("--score-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="scores to become 0 and 1 (default: 0 1)")
    add("--classes", type=_class_list, metavar="N,N", help="classes to follow (default: all)")

    group = parser.add_argument_group("model and settings")
    add = group.add_argument
    add(
        "--weights",
        type=Path,
        help="model: .safetensors, a published JDE .pt, or of tools/export.py (default: the bundled one)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), help="default: a GPU where there is one")
    add("--input-size", type=int, metavar="N", help="long side the network sees, in pixels, a multiple of 32")
    add("--threads", type=int, metavar="N", help="processor cores to use for the network (default: all)")
    add(
        "--score-thresh",
        type=float,
        metavar="S",
        help="lowest score of a person to take up and follow, 0 to 1 (default 0.6; see tracker.sure_thresh)",
    )
    add("--config", help="YAML file with sections detector, tracker, live, offline; or the name of a shipped one")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides", help="any setting")

    group = parser.add_argument_group("refinement, when all frames are known")
    add = group.add_argument
    add("--relink", action="store_true", help="join the pieces of one person's track")
    add(
        "--fill-gaps",
        nargs="?",
        type=float,
        const=FILL_SECONDS,
        metavar="S",
        help=f"add the boxes missing between two sightings, for up to S seconds (default {FILL_SECONDS:g}), scored 0",
    )
    add("--smooth", action="store_true", help="replace boxes by the estimate from all sightings, earlier and later")
    add(
        "--global-ids",
        action="store_true",
        help="one identity space over all inputs: tracks that look alike become one person, unless an input shows both "
        "at once (offline.global_thresh)",
    )

    group = parser.add_argument_group("many recordings, each by itself, in several processes (Ray)")
    add = group.add_argument
    add(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="on this machine, or on the cluster whose head is at HOST:PORT",
    )
    add("--ray-workers", type=int, metavar="N", help="recordings at a time (default: one for every two cores)")
    add("--overwrite", action="store_true", help="track finished recordings again, too")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", type=Path, help="folder of the results (default: beside the input, or here)")
    add("--no-video", action="store_true", help="write the text file only")
    add("--show", action="store_true", help="show the result in a window while it is made")
    add(
        "--serve",
        metavar="[HOST:]PORT",
        help="show it in a browser, too; to this machine alone, or with HOST 0.0.0.0 to whoever can reach it",
    )
    add("--json", type=Path, metavar="FILE", help="also write the summary, with all settings, to this file")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if not args.video and not args.detections:
        parser.error("one of the arguments --video --detections is required")
    return args


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that are impossible, or that would do nothing where they are.

    Raises:
        ValueError: naming the option.
    """

    def refuse(names: Sequence[str], reason: str) -> None:
        for name in names:
            if getattr(args, name) is not None and getattr(args, name) is not False:
                raise ValueError(f"--{name.replace('_', '-')}: {reason}")

    if args.ray is not None:
        refuse(("detections",), "--ray tracks videos")
        refuse(("show", "serve", "realtime", "max_latency"), "with --ray nobody watches")
        refuse(("global_ids",), "with --ray each recording is tracked by itself")
        for live in (video for video in args.video if not is_recording(video)):
            raise ValueError(f"--ray: expected recordings, got {without_secrets(live)!r}")
        if args.ray != LOCAL:
            match = re.fullmatch(r"[^/\s]+:([0-9]{1,5})", args.ray)
            if match is None:
                raise ValueError(f"--ray: expected HOST:PORT, or nothing for this machine, got {args.ray!r}")
            if not 1 <= int(match[1]) <= 65535:
                raise ValueError(f"--ray: expected a port from 1 to 65535, got {match[1]}")
        if args.ray_workers is not None and args.ray_workers < 1:
            raise ValueError(f"--ray-workers: expected at least 1, got {args.ray_workers}")
    else:
        refuse(("ray_workers", "overwrite"), "is for --ray")
    if args.detections:
        refuse(("weights", "device", "input_size", "threads"), "no detector is run with --detections")
        refuse(("realtime",), "with --detections every frame counts")
        if any(text.strip().startswith("detector.") for text in args.overrides):
            raise ValueError("--set: no detector is run with --detections")
    else:
        refuse(("embeddings", "score_range", "classes"), "is for --detections")
    if not args.video:
        refuse(("show", "serve"), "there are no pictures to show without --video")
        refuse(("max_latency",), "is for live video")
    elif "" in args.video:
        raise ValueError("--video: expected a file, camera, address or folder, got nothing")
    elif args.detections and (len(args.detections), len(args.video)) != (1, 1):
        raise ValueError(
            f"--detections: expected one file for one --video, got {len(args.detections)} for {len(args.video)}"
        )
    elif args.show and len(args.video) > 1:
        raise ValueError(f"--show: expected one --video, got {len(args.video)}")
    if args.embeddings and len(args.embeddings) != len(args.detections):
        raise ValueError(
            f"--embeddings: expected one for each of {len(args.detections)} --detections, got {len(args.embeddings)}"
        )
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {args.threads}")
    if args.fps is not None and not 0 < args.fps < math.inf:
        raise ValueError(f"--fps: expected a number above 0, got {args.fps:g}")
    check_range(args.start, args.end)
    if args.show and sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise ValueError("--show: no display to open a window on")


def _class_list(text: str) -> list[int]:
    """`0,2` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
