"""Track the people in videos, from cameras, in folders of images, or in detections that are there already.

    python tools/track.py --video in.mp4
    python tools/track.py --video in.mp4 --out results --start 100 --end 500
    python tools/track.py --video 0 --show                      # first camera; q in the window ends
    python tools/track.py --video rtsp://192.168.1.20/stream --out results
    python tools/track.py --video frames/ --no-video            # a folder of images, or "frames/*.jpg"
    python tools/track.py --video in.mp4 --input-size 960 --score-thresh 0.4 --set tracker.track_buffer=2

Several at once, by one model, each with ids of its own:

    python tools/track.py --video door.mp4 hall.mp4 rtsp://192.168.1.20/stream --out results
    python tools/track.py --video 0 1 --out results --max-latency 0.1

Detections of another detector, in MOTChallenge's format; without --video no picture is needed:

    python tools/track.py --detections MOT17-02-FRCNN/det/det.txt --out results
    python tools/track.py --detections */det/det.txt --out results --config tracker_byte
    python tools/track.py --detections det.txt --out results --fps 25 --embeddings embeddings.npy --classes 0,2
    python tools/track.py --detections det.txt --out results --video in.mp4     # to draw on, and for camera motion

Refined when all frames are known:

    python tools/track.py --video in.mp4 --relink --fill-gaps --smooth
    python tools/track.py --detections det.txt --out results --fill-gaps 0.5

One id for a person in all inputs, told by embeddings; two whom an input shows in one frame are two people:

    python tools/track.py --video cam1.mp4 cam2.mp4 --global-ids
    python tools/track.py --detections a.txt b.txt --embeddings a.npy b.npy --out results --global-ids

Writes <name>.txt, one row a person and frame in MOTChallenge's format (frame,id,left,top,width,height,score,-1,-1,-1 in
pixels of the original image, appended as it goes; the first -1 is the class where detections have one), and
<name>.tracked.mp4 with boxes, ids and trails. <name> is the input's; for <name>/det/det.txt that of the sequence.
The last line on stdout is a summary. Ctrl-C ends early and leaves both files whole up to that frame.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # while the libraries load, Ctrl-C and termination have nothing to save
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av.logging
import cv2

from configs import load_config
from tracker.console import fail, one_line, say, stop_signals
from tracker.detection_file import DetectionFile, read_detection_file
from tracker.live import LiveConfig, RealTime
from tracker.offline import FILL_SECONDS, OfflineConfig
from tracker.output import Output, choose_places, claim
from tracker.pipeline import Streams
from tracker.runs import Results, Run, Session, refines
from tracker.sources import Source, SourceError, open_source
from tracker.tracker import Tracker, TrackerConfig
from tracker.trajectories import Recorder
from tracker.video import Frame, available_cores, check_range, without_secrets

# Frames in one call of the detector on a GPU.
GPU_BATCH = 4
# More workers than this wait for the decoder on any machine.
MAX_WORKERS = 4
WINDOW = "track (q ends)"
# Sections of the settings that are known before the detector, whose own takes seconds to load.
SECTIONS = {"tracker": TrackerConfig, "live": LiveConfig, "offline": OfflineConfig}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="track.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("input")
    add = group.add_argument
    add("--video", nargs="+", help="video file, camera index, address, folder of images, or glob in quotes; or several")
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
    add("--classes", type=class_list, metavar="N,N", help="classes to follow (default: all)")

    group = parser.add_argument_group("model and settings")
    add = group.add_argument
    add("--weights", type=Path, help="model: .safetensors, or a published JDE .pt (default: the bundled one)")
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

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", type=Path, help="folder of the results (default: beside the input, or here)")
    add("--no-video", action="store_true", help="write the text file only")
    add("--show", action="store_true", help="show the result in a window while it is made")
    add("--json", type=Path, metavar="FILE", help="also write the summary, with all settings, to this file")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if not args.video and not args.detections:
        parser.error("one of the arguments --video --detections is required")
    return args


def class_list(text: str) -> list[int]:
    """`0,2` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv)
    # Libraries' own messages would bury the one line that tells the user what is wrong.
    av.logging.set_level(av.logging.PANIC)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(1)
    with stop_signals():
        try:
            check_options(args)
            return track_videos(args) if args.video else track_files(args)
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that are impossible, or that would do nothing where they are."""

    def refuse(names: Sequence[str], reason: str) -> None:
        for name in names:
            if getattr(args, name) is not None and getattr(args, name) is not False:
                raise ValueError(f"--{name.replace('_', '-')}: {reason}")

    if args.detections:
        refuse(("weights", "device", "input_size", "threads"), "no detector is run with --detections")
        refuse(("realtime",), "with --detections every frame counts")
        if any(text.strip().startswith("detector.") for text in args.overrides):
            raise ValueError("--set: no detector is run with --detections")
    else:
        refuse(("embeddings", "score_range", "classes"), "is for --detections")
    if not args.video:
        refuse(("show",), "there are no pictures to show without --video")
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


def track_videos(args: argparse.Namespace) -> int:
    """Open everything, then track; whatever can be wrong with the input is found before the model is loaded."""
    settings = resolve_settings(args)
    files = read_files(args, settings["offline"].global_ids)
    with contextlib.ExitStack() as stack:
        sources = open_sources(args, settings, stack)
        if files:
            check_match(files[0], sources[0], args.end)
        if args.max_latency is not None and not any(source.live for source in sources):
            raise ValueError("--max-latency: is for live video; --realtime plays a file like a camera")
        names = [item.name for item in files or sources]
        places = output_places(args, args.video, names, film=not args.no_video)
        if files:
            detector, workers, batch_size = files[0].replay(sources[0].first_frame), 1, 1
        else:
            settings["detector"] = detector_settings(args)
            detector, workers, batch_size = load(args, settings["detector"])
            settings["detector"] = getattr(detector, "config", settings["detector"])  # its model's values for null
        trackers = [Tracker(settings["tracker"], choose_rate(args, source, files)) for source in sources]
        runs = []
        for video, source, tracker, place in zip(args.video, sources, trackers, places, strict=True):
            runs.append(start_run(args, settings, video, source, tracker.frame_rate, place))
            runs[-1].output.with_classes = any(file.has_classes for file in files)

        def ended(index: int, error: BaseException | None) -> None:
            runs[index].error = error
            runs[index].output.close()
            if error and len(runs) > 1:
                say(f"error: {one_line(error)}")  # the others go on

        live = settings["live"]
        streams = Streams(sources, detector, trackers, workers=workers, batch_size=batch_size, live=live, on_end=ended)

        stack.pop_all()  # from here on the streams close the sources, and none that a thread still reads

        def results() -> Results:
            yield from streams
            if files and not args.end:
                files[0].check_end(runs[0].output.last_frame, sources[0].location)

        session = Session(runs, streams.seconds, settings["offline"])
        session.go(results(), show_frame if args.show else None)
        for run, dropped in zip(runs, streams.dropped, strict=True):
            run.dropped = dropped
        return finish(args, session, settings)


def open_sources(args: argparse.Namespace, settings: dict[str, Any], stack: contextlib.ExitStack) -> list[Source]:
    """The sources of --video, closed with `stack`."""
    sources: list[Source] = []
    for video in args.video:
        source = open_source(video, args.start, args.end, settings["live"], say)
        stack.callback(source.close)
        sources.append(RealTime(source) if args.realtime else source)
        if sources[-1].live and refines(settings["offline"]) and not args.no_video:
            reason = "is live, and cannot be drawn again with refined results; add --no-video"
            raise ValueError(f"{source.location}: {reason}")
    return sources


def start_run(
    args: argparse.Namespace,
    settings: dict[str, Any],
    video: str,
    source: Source,
    frame_rate: float,
    place: tuple[Path, Path | None],
) -> Run:
    """Say what is going to be made of a source."""
    text, film = place
    later = refines(settings["offline"])
    size = source.size if args.show or (film and not later) else None
    run = Run(source.location, Output(text, None if later else film, size, frame_rate), source.first_frame)
    if later:
        run.recorder, run.film = Recorder(), film
        run.reopen = functools.partial(open_source, video, args.start, args.end)
    run.live = source.live
    if source.frame_count:
        run.last_frame = min(source.frame_count, args.end or source.frame_count)
    count = f"{source.frame_count} frames" if source.frame_count else "live"
    print(f"{source.location}: {source.size[0]}x{source.size[1]}, {frame_rate:g} frames/s, {count}")
    print(f"writing {text}" + (f" and {film}" if film else ""))
    if film and (source.size[0] % 2 or source.size[1] % 2):
        print("note: H.264 needs even sides; the video repeats the last row or column once")
    return run


def track_files(args: argparse.Namespace) -> int:
    """Track what files of detections hold; all of them are read, and found to be good, before anything is written."""
    settings = resolve_settings(args)
    files = read_files(args, settings["offline"].global_ids)
    ranges = [file.frame_range(args.start, args.end) for file in files]
    places = output_places(args, args.detections, [file.name for file in files], film=False)
    trackers = [Tracker(settings["tracker"], args.fps or file.frame_rate) for file in files]
    runs = []
    for file, (first, last), tracker, (text, _) in zip(files, ranges, trackers, places, strict=True):
        output = Output(text, frame_rate=tracker.frame_rate, with_classes=file.has_classes)
        runs.append(Run(str(file.path), output, first, last))
        runs[-1].recorder = Recorder() if refines(settings["offline"]) else None
        print(f"{file.path}: {len(file.frames)} detections, {tracker.frame_rate:g} frames/s, {file.length} frames")
        print(f"writing {text}")
    seconds = {"associate": 0.0}

    def results() -> Results:
        for index, (file, (first, last), tracker) in enumerate(zip(files, ranges, trackers, strict=True)):
            for frame in range(first, last + 1):
                started = time.perf_counter()
                result = dataclasses.replace(tracker.update(file.at(frame)), frame=frame)
                seconds["associate"] += time.perf_counter() - started
                yield index, None, result
            runs[index].output.close()

    session = Session(runs, seconds, settings["offline"])
    session.go(results())
    return finish(args, session, settings)


def read_files(args: argparse.Namespace, global_ids: bool) -> list[DetectionFile]:
    """What --detections names; `global_ids`: all will be compared."""
    files = []
    dimensions = set()
    for path, embeddings in zip(args.detections or [], args.embeddings or itertools.repeat(None), strict=False):
        file = read_detection_file(path, embeddings, score_range=args.score_range, classes=args.classes)
        for note in file.notes:
            print(f"note: {path}: {note}")
        files.append(file)
        if file.detections.embeddings is not None:
            dimensions.add(file.detections.embeddings.shape[1])
    if global_ids and files and len(dimensions) != 1:
        found = f"those of {' and '.join(map(str, sorted(dimensions)))} numbers" if dimensions else "none"
        raise ValueError(f"--global-ids: expected --embeddings that can be compared, got {found}")
    return files


def check_match(file: DetectionFile, source: Source, end: int | None) -> None:
    """Refuse detections that cannot be those of a video."""
    if source.live:
        raise ValueError(f"{source.location}: expected a recording with --detections, got a live source")
    file.frame_range(source.first_frame, end)
    # A video's own count can be off by a few; the exact one is known at the end.
    if source.frame_count and not end and file.last_frame > 1.02 * source.frame_count + 5:
        file.check_end(source.frame_count, source.location)
    if source.frame_count and not end and file.last_frame < 0.9 * source.frame_count:
        say(f"note: the detections end at frame {file.last_frame} of {source.frame_count}")


def output_places(
    args: argparse.Namespace, inputs: Sequence[Any], names: Sequence[str], film: bool
) -> list[tuple[Path, Path | None]]:
    """The text file and the video of each input, none of which overwrites an input or another result."""
    read = [*(args.video or ()), *(args.detections or ()), *(args.embeddings or ()), args.weights, args.config]
    taken = {Path(path).resolve(): "an input" for path in read if path is not None}
    folders = [args.out or beside(str(given)) for given in inputs]
    places = choose_places(folders, names, film, taken)
    if args.json:
        claim(args.json, taken)
    return places


def beside(given: str) -> Path:
    """The folder of an input, or the working folder for cameras, addresses and globs."""
    return Path(given).resolve().parent if Path(given).exists() and not given.isdecimal() else Path()


def choose_rate(args: argparse.Namespace, source: Source, files: Sequence[DetectionFile]) -> float | None:
    """Frames per second: the source's own, else --fps, else that of the detections' sequence."""
    if source.frame_rate and args.fps:
        raise ValueError(f"--fps: {source.location} has a frame rate of its own, {source.frame_rate:g}")
    return source.frame_rate or args.fps or (files[0].frame_rate if files else None)


def finish(args: argparse.Namespace, session: Session, settings: dict[str, Any]) -> int:
    """Print and write the summary, and tell what went wrong."""
    print(*session.summary(), sep="\n")
    stopped = session.stopped
    if stopped is None and not any(run.output.boxes for run in session.runs):
        say(f"note: nobody scored {settings['tracker'].birth_thresh:g} or more and was sure to be a person")
    if args.json:
        report: dict[str, Any] = {}
        for name in ("video", "detections"):
            given = [without_secrets(str(item)) for item in getattr(args, name) or ()]
            if given:
                report[name] = given[0] if len(given) == 1 else given
        report |= session.report()
        report["error"] = one_line(stopped) if stopped else None
        report["config"] = {name: dataclasses.asdict(section) for name, section in settings.items()}
        try:
            args.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            stopped = stopped or error
    if stopped is None:
        return 0
    if isinstance(stopped, SourceError) and len(session.runs) > 1:
        return 1  # each has been told when it happened
    return fail(stopped, args.debug, session.reach())


def resolve_settings(args: argparse.Namespace) -> dict[str, Any]:
    """All sections but the detector's: defaults, then --config, then --set and the options of their own."""
    overrides = list(args.overrides)
    if args.max_latency is not None:
        overrides.append(f"live.max_latency={args.max_latency}")
    if args.fill_gaps is not None:
        overrides.append(f"offline.fill_gaps={args.fill_gaps}")
    overrides += [f"offline.{name}=true" for name in ("relink", "smooth", "global_ids") if getattr(args, name)]
    settings = load_config(args.config, overrides, SECTIONS, others=["detector"])
    if args.score_thresh is not None:
        score = args.score_thresh
        settings["tracker"] = dataclasses.replace(settings["tracker"], score_thresh=score, birth_thresh=score)
    return settings


def detector_settings(args: argparse.Namespace) -> Any:
    """The detector's section; it takes seconds to load, so this comes after the input is known to be good."""
    from detector import DetectorConfig

    overrides = list(args.overrides)
    if args.input_size is not None:
        overrides.append(f"detector.input_size={args.input_size}")
    config = load_config(args.config, overrides, {"detector": DetectorConfig}, others=list(SECTIONS))["detector"]
    if args.score_thresh is not None:
        config = dataclasses.replace(config, score_thresh=min(config.score_thresh, args.score_thresh))
    return config


def load(args: argparse.Namespace, config: Any) -> tuple[Any, int, int]:
    """The detector, and how many threads call it with how many frames each."""
    import torch

    from detector import load_detector

    cores = args.threads or available_cores()
    # Frames side by side use the cores better than one frame spread over all of them. The detector asks torch how many
    # threads a frame gets, so that is settled first.
    workers = min(cores, MAX_WORKERS)
    torch.set_num_threads(max(1, cores // workers))
    detector = load_detector(args.weights, args.device or "auto", config)
    if detector.device.type != "cpu":
        return detector, 1, GPU_BATCH
    return detector, workers, 1


def show_frame(frame: Frame) -> bool:
    """Show a frame; False when the user pressed q or Escape."""
    try:
        cv2.imshow(WINDOW, frame)
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)
    except cv2.error:
        raise ValueError("--show: this build of OpenCV cannot open windows") from None


if __name__ == "__main__":
    sys.exit(main())
