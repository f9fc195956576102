"""Track the people in videos, from cameras, in folders of images, or in detections that are there already.

    python tools/track.py --video in.mp4
    python tools/track.py --video in.mp4 --out results --start 100 --end 500
    python tools/track.py --video 0 --show                      # first camera; q in the window ends
    python tools/track.py --video 0 --serve 8080                # shown in a browser, at http://127.0.0.1:8080
    python tools/track.py --video rtsp://192.168.1.20/stream --out results
    python tools/track.py --video frames/ --no-video            # a folder of images, or "frames/*.jpg"
    python tools/track.py --video in.mp4 --input-size 960 --score-thresh 0.4 --set tracker.track_buffer=2

Several at once, by one model, each with ids of its own:

    python tools/track.py --video door.mp4 hall.mp4 rtsp://192.168.1.20/stream --out results
    python tools/track.py --video 0 1 --out results --max-latency 0.1

A glob of videos stands for all of them. Many recordings, each by itself in one of several processes, on this machine or
a cluster; those that are finished are passed over when the command is given again:

    python tools/track.py --video 'archive/*.mp4' --out results --ray
    python tools/track.py --video 'archive/*.mp4' --out results --ray 10.0.0.5:6379 --ray-workers 16

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
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tracker.offline import OfflineConfig
from tracker.options import check_options, parse_arguments
from tracker.output import Output, choose_places, claim
from tracker.pipeline import Streams
from tracker.runs import Results, Run, Session, refines
from tracker.sources import Source, SourceError, expand, open_source, recording_name
from tracker.tracker import Tracker, TrackerConfig
from tracker.trajectories import Recorder
from tracker.types import FrameResult
from tracker.video import Frame, available_cores, without_secrets

if TYPE_CHECKING:
    from tracker.archive import Track
    from tracker.panel import Panel
    from tracker.scale_out import ArchiveSession

# A detector, how many threads call it, and with how many frames.
Model = tuple[Any, int, int]

# Frames in one call of the detector on a GPU.
GPU_BATCH = 4
# More workers than this wait for the decoder on any machine.
MAX_WORKERS = 4
WINDOW = "track (q ends)"
# Sections of the settings that are known before the detector, whose own takes seconds to load.
SECTIONS = {"tracker": TrackerConfig, "live": LiveConfig, "offline": OfflineConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv, __doc__)
    quieten()
    with stop_signals():
        try:
            args.video = args.video and expand(args.video)
            check_options(args)
            if args.ray:
                session, settings = track_archive(args)
            else:
                session, settings = track_videos(args) if args.video else track_files(args)
            return finish(args, session, settings)
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)


def quieten() -> None:
    """Libraries' own messages would bury the one line that tells the user what is wrong."""
    av.logging.set_level(av.logging.PANIC)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(1)


def track_archive(args: argparse.Namespace) -> tuple[ArchiveSession, dict[str, Any]]:
    """Track recordings in processes of Ray's, each by the functions that track one here."""
    import configs
    import detector
    import tracker
    from detector.checkpoint import BUNDLED
    from tracker.archive import sha256
    from tracker.scale_out import ArchiveSession

    settings = resolve_settings(args)
    if settings["offline"].global_ids:
        raise ValueError("offline.global_ids: with --ray each recording is tracked by itself")
    settings["detector"] = detector_settings(args)
    names = [recording_name(video) for video in args.video]
    places = output_places(args, args.video, names, film=not args.no_video)
    made_from = {**settings, **{name: getattr(args, name) for name in ("start", "end", "fps", "device")}}
    made_from["weights"] = sha256(args.weights or BUNDLED)
    session = ArchiveSession(args.video, places, made_from, args.debug)
    shared = vars(args) | {"weights": args.weights and args.weights.absolute(), "json": None}

    def start(threads: int, device: str) -> Track:
        quieten()
        mine = shared | {"threads": threads, "device": device}
        model = load(argparse.Namespace(**mine), settings["detector"])

        def track(video: str, folder: Path) -> tuple[dict[str, Any], BaseException | None]:
            one, _ = track_videos(argparse.Namespace(**mine | {"video": [video], "out": folder}), dict(settings), model)
            return one.report(), one.stopped

        return track

    modules = [configs, detector, tracker]
    session.go(start, args.ray, modules, args.ray_workers, args.threads, args.device or "auto", args.overwrite)
    return session, settings


def track_videos(
    args: argparse.Namespace, settings: dict[str, Any] | None = None, model: Model | None = None
) -> tuple[Session, dict[str, Any]]:
    """Open everything, then track; whatever can be wrong with the input is found before the model is loaded.

    Whoever tracks several one after the other gives `settings` and the `model` that `load` gave.
    """
    settings = settings or resolve_settings(args)
    files = read_files(args, settings["offline"].global_ids)
    with take_port(args) as port, contextlib.ExitStack() as stack:
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
            detector, workers, batch_size = model or load(args, settings["detector"])
            settings["detector"] = getattr(detector, "config", settings["detector"])  # its model's values for null
        trackers = [Tracker(settings["tracker"], choose_rate(args, source, files)) for source in sources]
        runs = []
        for video, source, tracker, place in zip(args.video, sources, trackers, places, strict=True):
            runs.append(start_run(args, settings, video, source, tracker.frame_rate, place))
            runs[-1].output.with_classes = any(file.has_classes for file in files)

        def ended(index: int, error: BaseException | None) -> None:
            runs[index].error = error
            runs[index].output.close()
            if panels:
                panels[index].end("failed" if error else "over")
            if error and len(runs) > 1:
                say(f"error: {one_line(error)}")  # the others go on

        live = settings["live"]
        streams = Streams(sources, detector, trackers, workers=workers, batch_size=batch_size, live=live, on_end=ended)

        stack.pop_all()  # from here on the streams close the sources, and none that a thread still reads
        panels = serve(port, runs, sources, stack) if port else []

        def show(index: int, frame: Frame, result: FrameResult) -> bool:
            if panels:
                panels[index].add(frame, result, streams.dropped[index])
            return show_frame(frame) if args.show else True

        def results() -> Results:
            yield from streams
            if files and not args.end:
                files[0].check_end(runs[0].output.last_frame, sources[0].location)

        session = Session(runs, streams.seconds, settings["offline"])
        session.go(results(), show)
        for run, dropped in zip(runs, streams.dropped, strict=True):
            run.dropped = dropped
        return session, settings


def take_port(args: argparse.Namespace) -> contextlib.AbstractContextManager[socket.socket | None]:
    """The port of --serve, if it is given."""
    if args.serve is None:
        return contextlib.nullcontext()
    try:
        from tracker.page import listen

        return listen(args.serve)
    except ImportError as error:
        raise ValueError(f'--serve: needs the package aiohttp ({error}); pip install -e ".[serve]"') from None
    except ValueError as error:
        raise ValueError(f"--serve: {error}") from None


def serve(
    port: socket.socket, runs: Sequence[Run], sources: Sequence[Source], stack: contextlib.ExitStack
) -> list[Panel]:
    """Show the runs in a browser until `stack` is closed; returns what to add their results to."""
    from tracker.page import Page
    from tracker.panel import Panel

    panels = [
        Panel(run.output.text.stem, source.size, run.last_frame) for run, source in zip(runs, sources, strict=True)
    ]
    page = stack.enter_context(Page(port, panels))
    print(f"serving {page.address}", flush=True)  # whoever waits for the line reads it now
    if page.public:
        print("note: whoever can reach this address sees the pictures")
    return panels


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
    shown = args.show or args.serve is not None
    size = source.size if shown or (film and not later) else None
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


def track_files(args: argparse.Namespace) -> tuple[Session, dict[str, Any]]:
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
    return session, settings


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


def finish(args: argparse.Namespace, session: Session | ArchiveSession, settings: dict[str, Any]) -> int:
    """Print and write the summary, and tell what went wrong."""
    print(*session.summary(), sep="\n")
    stopped = session.stopped
    summary = session.report()
    if stopped is None and not summary["boxes"]:
        say(f"note: nobody scored {settings['tracker'].birth_thresh:g} or more and was sure to be a person")
    if args.json:
        report: dict[str, Any] = {}
        for name in ("video", "detections"):
            given = [without_secrets(str(item)) for item in getattr(args, name) or ()]
            if given:
                report[name] = given[0] if len(given) == 1 else given
        report |= summary
        report["error"] = one_line(stopped) if stopped else None
        report["config"] = {name: dataclasses.asdict(section) for name, section in settings.items()}
        try:
            args.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            stopped = stopped or error
    if stopped is None:
        return 0
    if isinstance(stopped, SourceError) and len(summary.get("runs", ())) > 1:
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


def load(args: argparse.Namespace, config: Any) -> Model:
    """The detector, and how many threads call it with how many frames each."""
    import torch

    from detector import load_detector

    cores = args.threads or available_cores()
    # Frames side by side use the cores better than one frame spread over all of them. The detector asks torch how many
    # threads a frame gets, so that is settled first.
    workers = min(cores, MAX_WORKERS)
    torch.set_num_threads(max(1, cores // workers))
    detector = load_detector(args.weights, args.device or "auto", config)
    lowest = detector.config.score_thresh
    if args.score_thresh is not None and args.score_thresh < lowest:
        raise ValueError(
            f"--score-thresh: {args.weights} was exported to report people from {lowest:g} on, got "
            f"{args.score_thresh:g}: export it again with a lower --score-thresh"
        )
    if config.score_thresh < lowest:
        say(f"note: {args.weights} was exported to report people from {lowest:g} on, not {config.score_thresh:g}")
    if config.max_detections > (most := detector.config.max_detections):
        say(f"note: {args.weights} was exported to report {most} people a frame at most, not {config.max_detections}")
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
