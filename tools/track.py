"""Track the people in a video, from a camera, or in a folder of images.

    python tools/track.py --video in.mp4
    python tools/track.py --video in.mp4 --out results --start 100 --end 500
    python tools/track.py --video 0 --show                      # first camera; q in the window ends
    python tools/track.py --video rtsp://192.168.1.20/stream --out results
    python tools/track.py --video frames/ --no-video            # a folder of images, or "frames/*.jpg"
    python tools/track.py --video in.mp4 --input-size 960 --score-thresh 0.4 --set tracker.track_buffer=2

Writes <name>.txt, one row a person and frame in MOTChallenge's format (frame,id,left,top,width,height,score,-1,-1,-1 in
pixels of the original image, appended as it goes), and <name>.tracked.mp4 with boxes, ids and trails.
The last line on stdout is a summary. Ctrl-C ends early and leaves both files whole up to that frame.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Lets the tool run from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av.logging
import cv2
from tqdm import tqdm

from configs import load_config
from tracker.draw import TrackDrawer
from tracker.mot import MotWriter
from tracker.pipeline import Pipeline
from tracker.sources import Source, open_source
from tracker.tracker import Tracker, TrackerConfig
from tracker.types import FrameResult
from tracker.video import Frame, available_cores
from tracker.writer import VideoWriter

# Seconds between lines of progress where stderr is no terminal.
LOG_SECONDS = 30.0
# Frames in one call of the detector on a GPU.
GPU_BATCH = 4
# More workers than this wait for the decoder on any machine.
MAX_WORKERS = 4
WINDOW = "track (q ends)"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="track.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--video", required=True, help="video file, camera index, address, folder of images, or glob in quotes")
    add("--weights", type=Path, help="model: .safetensors, or a published JDE .pt (default: the bundled one)")
    add("--config", help="YAML file with sections detector and tracker")
    add("--out", type=Path, help="folder of the results (default: beside the input, or here)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add("--input-size", type=int, metavar="N", help="long side the network sees, in pixels, a multiple of 32")
    add(
        "--score-thresh",
        type=float,
        metavar="S",
        help="lowest score of a person to take up and follow, 0 to 1 (default 0.6 and 0.5; see tracker.sure_thresh)",
    )
    add("--start", type=int, metavar="FRAME", help="first frame, from 1")
    add("--end", type=int, metavar="FRAME", help="last frame, inclusive")
    add("--no-video", action="store_true", help="write the text file only")
    add("--show", action="store_true", help="show the result in a window while it is made")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="any setting")
    add("--json", type=Path, metavar="FILE", help="also write the summary, with all settings, to this file")
    add("--threads", type=int, metavar="N", help="processor cores to use for the network (default: all)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    args = parse_arguments(argv)
    # Libraries' own messages would bury the one line that tells the user what is wrong.
    av.logging.set_level(av.logging.PANIC)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(1)
    with stop_signals():
        try:
            return run(args)
        except (Exception, KeyboardInterrupt) as error:
            return fail(error, args.debug)


def run(args: argparse.Namespace) -> int:
    """Open everything, then track; whatever can be wrong with the input is found before the model is loaded."""
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {args.threads}")
    if args.show and sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise ValueError("--show: no display to open a window on")
    with contextlib.closing(open_source(args.video, args.start, args.end)) as source:
        text, film = output_paths(args, source)
        settings = resolve_settings(args)
        detector, workers, batch_size = load(args, settings["detector"])
        settings["detector"] = getattr(detector, "config", settings["detector"])  # its model's values in place of null
        tracker = Tracker(settings["tracker"], source.frame_rate)
        pipeline = Pipeline(source, detector, tracker, workers=workers, batch_size=batch_size)
        count = f"{source.frame_count} frames" if source.frame_count else "live"
        print(f"{source.location}: {source.size[0]}x{source.size[1]}, {tracker.frame_rate:g} frames/s, {count}")
        print(f"writing {text}" + (f" and {film}" if film else ""))
        if film and (source.size[0] % 2 or source.size[1] % 2):
            print("note: H.264 needs even sides; the video repeats the last row or column once")
        totals = Totals()
        stopped: BaseException | None = None
        try:
            follow(pipeline, totals, text, film, args.show, tracker.frame_rate)
        except (Exception, KeyboardInterrupt) as error:
            stopped = error
        print(totals.summary())
        if args.json:
            report = totals.report() | {
                "video": args.video,
                "outputs": [str(path) for path in (text, film) if path],
                "dropped": pipeline.dropped,
                "error": one_line(stopped) if stopped else None,
                "config": {name: dataclasses.asdict(section) for name, section in settings.items()},
            }
            try:
                args.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
            except OSError as error:
                stopped = stopped or error
        return 0 if stopped is None else fail(stopped, args.debug, totals.last_frame)


def follow(pipeline: Pipeline, totals: Totals, text: Path, film: Path | None, show: bool, frame_rate: float) -> None:
    """The loop: every frame's result to the text file, and drawn to the video and the window."""
    source = pipeline.source
    drawer = TrackDrawer(source.size, frame_rate)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.callback(totals.finish, pipeline, started)  # runs last, when the video is closed
        results = stack.enter_context(contextlib.closing(iter(pipeline)))
        first = next(results)  # what fails before the first result leaves earlier files as they are
        rows = stack.enter_context(MotWriter(text))
        video = stack.enter_context(VideoWriter(film, frame_rate, source.size)) if film else None
        totals.video = video
        for frame, result in progress(itertools.chain([first], results), source):
            began = time.perf_counter()
            rows.write(result)
            if video or show:
                drawer.draw(frame, result)
            totals.add(result, time.perf_counter() - began)
            if video:
                video.write(frame)  # its own thread takes the time
            if show and not show_frame(frame):
                break


@dataclasses.dataclass
class Totals:
    """What the summary counts."""

    frames: int = 0
    boxes: int = 0
    ids: set[int] = dataclasses.field(default_factory=set)
    last_frame: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    writing: float = 0.0
    video: VideoWriter | None = None

    def add(self, result: FrameResult, writing: float) -> None:
        """Count a frame; `writing` is the seconds that drawing it and writing its rows took."""
        self.frames += 1
        self.boxes += len(result)
        self.ids.update(result.track_ids.tolist())
        self.last_frame = result.frame
        self.writing += writing

    def finish(self, pipeline: Pipeline, started: float) -> None:
        """Take the seconds of all stages, in the order of the work."""
        write = self.writing + (self.video.seconds if self.video else 0.0)
        self.seconds = {"total": time.perf_counter() - started, **pipeline.seconds, "write": write}

    def report(self) -> dict[str, Any]:
        """The summary as data."""
        fps = self.frames / self.seconds["total"]
        rounded = {stage: round(value, 4) for stage, value in self.seconds.items()}
        return {
            "frames": self.frames,
            "ids": len(self.ids),
            "boxes": self.boxes,
            "fps": round(fps, 2),
            "seconds": rounded,
        }

    def summary(self) -> str:
        """The summary as a line."""
        frames = max(self.frames, 1)
        split = ", ".join(f"{k} {v * 1000 / frames:.1f}" for k, v in self.seconds.items() if k != "total")
        return (
            f"{self.frames} frames, {self.boxes / frames:.1f} people a frame, {len(self.ids)} ids, "
            f"{self.frames / self.seconds['total']:.1f} frames/s (ms a frame, overlapping: {split})"
        )


def output_paths(args: argparse.Namespace, source: Source) -> tuple[Path, Path | None]:
    """The text file and the video; creates their folder, and refuses to overwrite the input."""
    given = Path(args.video)
    folder = args.out or (given.resolve().parent if given.exists() and not args.video.isdecimal() else Path())
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"{source.name}.txt"
    film = None if args.no_video else folder / f"{source.name}.tracked.mp4"
    taken = {Path(name).resolve(): "an input" for name in (args.video, args.weights, args.config) if name is not None}
    for path in (text, film, args.json):
        if path is None:
            continue
        if path.resolve() in taken:
            raise ValueError(f"{path}: the result would overwrite {taken[path.resolve()]}; choose another place")
        taken[path.resolve()] = "another result"
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent}: no such folder")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path}: cannot be written")
    return text, film


def resolve_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Sections `detector` and `tracker`: defaults, then --config, then --set and the options of their own."""
    from detector import DetectorConfig  # takes seconds: after the input is known to be good

    overrides = list(args.overrides)
    if args.input_size is not None:
        overrides.append(f"detector.input_size={args.input_size}")
    settings = load_config(args.config, overrides, {"detector": DetectorConfig, "tracker": TrackerConfig})
    score = args.score_thresh
    if score is not None:
        tracker, detector = settings["tracker"], settings["detector"]
        settings["tracker"] = dataclasses.replace(tracker, score_thresh=score, birth_thresh=score)
        settings["detector"] = dataclasses.replace(detector, score_thresh=min(detector.score_thresh, score))
    return settings


def load(args: argparse.Namespace, config: Any) -> tuple[Any, int, int]:
    """The detector, and how many threads call it with how many frames each."""
    import torch

    from detector import load_detector

    cores = args.threads or available_cores()
    # Frames side by side use the cores better than one frame spread over all of them. The detector asks torch how many
    # threads a frame gets, so that is settled first.
    workers = min(cores, MAX_WORKERS)
    torch.set_num_threads(max(1, cores // workers))
    detector = load_detector(args.weights, args.device, config)
    if detector.device.type != "cpu":
        return detector, 1, GPU_BATCH
    return detector, workers, 1


def progress(results: Iterator[tuple[Frame, FrameResult]], source: Source) -> Iterator[tuple[Frame, FrameResult]]:
    """Pass results through, with a bar on a terminal and a line now and then elsewhere."""
    total = source.frame_count
    started = logged = time.monotonic()
    with tqdm(total=total, initial=source.first_frame - 1, unit=" frames", disable=None, leave=False) as bar:
        for done, item in enumerate(results, start=1):
            yield item
            bar.update()
            now = time.monotonic()
            if bar.disable and now - logged >= LOG_SECONDS:
                logged = now
                rate = done / (now - started)
                print(f"frame {item[1].frame}/{total or '?'}, {rate:.1f} frames/s", file=sys.stderr)


def show_frame(frame: Frame) -> bool:
    """Show a frame; False when the user pressed q or Escape."""
    try:
        cv2.imshow(WINDOW, frame)
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)
    except cv2.error:
        raise ValueError("--show: this build of OpenCV cannot open windows") from None


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """The first Ctrl-C or termination raises KeyboardInterrupt; later ones wait until the files are closed."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def fail(error: BaseException, debug: bool, last_frame: int | None = None) -> int:
    """Tell what went wrong in one line, and return the exit status."""
    sys.stdout.flush()
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        reach = "" if last_frame is None else f" after frame {last_frame}; the results are complete up to there"
        print(f"interrupted{reach}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 1


def one_line(error: BaseException) -> str:
    """An error's message on one line, starting with the file it concerns."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
