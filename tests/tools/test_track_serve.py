"""`tools/track.py --serve`: what it tracks, in a browser."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

pytest.importorskip("aiohttp")
import aiohttp

from tests.tools.conftest import TRACK, failing
from tests.tools.test_track import BUNDLED
from tests.tracker.browser import needs_chromium, opened
from tests.tracker.clips import SIZE, decoded, repeat_clip, write_clip
from tracker.draw import track_colour
from tracker.mot import read_mot
from tracker.page import Page

# The first run in a process loads torch, with which the port is taken already.
WAITING = 120.0


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


async def watch(address: str, inputs: int, there: threading.Event) -> tuple[list[dict], list[np.ndarray]]:
    """What a viewer is told, and the pictures it sees, to the end."""
    told, pictures = [], []
    async with aiohttp.ClientSession() as session:
        viewer = await session.ws_connect(f"{address}live")
        there.set()
        for index in range(inputs):
            await viewer.send_str(str(index))
        async for message in viewer:
            if message.type is aiohttp.WSMsgType.TEXT:
                told.append(message.json())
            else:
                pictures.append(cv2.imdecode(np.frombuffer(message.data[2:], np.uint8), cv2.IMREAD_COLOR))
                await viewer.send_str(str(int.from_bytes(message.data[:2], "big")))
    return told, pictures


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Has a viewer of so many inputs at the page before the first frame; what it returns gives what was seen."""
    entered = Page.__enter__
    watching = []
    with ThreadPoolExecutor(1) as pool:

        def expect(inputs: int = 1) -> Callable:
            def enter(page: Page) -> Page:
                there = threading.Event()
                seen = asyncio.wait_for(watch(page.address, inputs, there), WAITING)
                watching.append(pool.submit(asyncio.run, seen))
                assert there.wait(WAITING)
                return entered(page)

            monkeypatch.setattr(Page, "__enter__", enter)
            return lambda: watching[0].result()

        yield expect


def colourful(picture: np.ndarray) -> int:
    """How many pixels have a colour, which only what is drawn on these scenes has."""
    smooth = cv2.blur(picture, (3, 3)).astype(int)
    return int((np.ptp(smooth, axis=2) > 100).sum())


def test_a_file_in_real_time(track, viewer, port: int, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "walk.mp4", 50), tmp_path / "out"
    seen = viewer()
    status, text, err = track("--video", clip, "--out", out, "--realtime", "--serve", port)
    assert (status, err) == (0, "")
    assert f"serving http://127.0.0.1:{port}/\n" in text
    assert "note:" not in text
    told, pictures = seen()
    rows = read_mot(out / "walk.txt")
    last = told[-1]["panels"][0]
    assert told[-1]["over"] and not told[0]["over"]
    assert (last["name"], last["state"], last["size"], last["last_frame"]) == ("walk", "over", list(SIZE), 50)
    assert (last["frame"], last["people"], last["ids"]) == (50, 1, len(set(rows.track_ids.tolist())))
    assert last["dropped"] == 50 - len(set(rows.frames.tolist()))
    frames = [message["panels"][0]["frame"] for message in told]
    assert frames == sorted(frames) and len(set(frames)) > 3
    assert len(pictures) > 3
    assert all(picture.shape == (SIZE[1], SIZE[0], 3) for picture in pictures)
    assert colourful(pictures[-1]) > 50 > colourful(decoded(clip)[-1])
    assert len(decoded(out / "walk.tracked.mp4")) == 50
    with socket.create_server(("127.0.0.1", port)):
        pass  # free again


def test_several_without_films(track, viewer, port: int, tmp_path: Path) -> None:
    for folder, size in [("a", SIZE), ("b", (128, 80))]:
        (tmp_path / folder).mkdir()
        write_clip(tmp_path / folder / "cam.mp4", 40, size=size)
    clips, out = [tmp_path / folder / "cam.mp4" for folder in "ab"], tmp_path / "out"
    seen = viewer(2)
    options = ("--out", out, "--no-video", "--realtime", "--serve", f"localhost:{port}")
    assert track("--video", *clips, *options)[0] == 0
    told, pictures = seen()
    assert [panel["name"] for panel in told[-1]["panels"]] == ["cam", "cam-2"]  # as their results
    assert {picture.shape for picture in pictures} == {(64, 96, 3), (80, 128, 3)}
    assert all(colourful(picture) > 50 for picture in pictures[-2:])
    assert sorted(path.name for path in out.iterdir()) == ["cam-2.txt", "cam.txt"]


def test_unrefined_results_are_shown(track, viewer, port: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 30)
    seen = viewer()
    options = ("--smooth", "--no-video", "--realtime", "--serve", port)
    assert track("--video", clip, "--out", tmp_path, *options)[0] == 0
    told, pictures = seen()
    assert told[-1]["panels"][0]["frame"] == 30
    assert colourful(pictures[-1]) > 50


def test_refined_films_are_drawn_on_clean_pictures(track, port: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 10)
    assert track("--video", clip, "--out", tmp_path / "a", "--smooth")[0] == 0
    assert track("--video", clip, "--out", tmp_path / "b", "--smooth", "--serve", port)[0] == 0
    films = [decoded(tmp_path / folder / "walk.tracked.mp4") for folder in "ab"]
    assert np.array_equal(*films)


def test_detections_on_their_video(track, viewer, port: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 400)
    assert track("--video", clip, "--out", tmp_path / "a", "--no-video")[0] == 0
    seen = viewer()
    options = ("--video", clip, "--out", tmp_path / "b", "--serve", port)
    assert track("--detections", tmp_path / "a" / "walk.txt", *options)[0] == 0
    told, _ = seen()
    assert (told[-1]["panels"][0]["frame"], told[-1]["panels"][0]["people"]) == (400, 1)


def test_in_a_window_too(track, track_tool: ModuleType, viewer, port: int, tmp_path: Path, monkeypatch) -> None:
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(track_tool, "show_frame", lambda frame: shown.append(frame) or len(shown) < 25)
    clip = write_clip(tmp_path / "walk.mp4", 100)
    seen = viewer()
    assert track("--video", clip, "--out", tmp_path, "--realtime", "--show", "--serve", port)[0] == 0
    assert len(shown) == 25  # then q was pressed
    told, _ = seen()
    assert told[-1]["over"]
    assert told[-1]["panels"][0]["state"] == "over"
    assert told[-1]["panels"][0]["frame"] < 100


def test_one_that_breaks_off(track, viewer, port: int, tmp_path: Path) -> None:
    whole, cut = write_clip(tmp_path / "whole.mp4", 50), tmp_path / "cut.mp4"
    write_clip(cut, 400, movflags="frag_keyframe+empty_moov", g="10")
    cut.write_bytes(cut.read_bytes()[:20_000])
    seen = viewer(2)
    status, _, err = track("--video", whole, cut, "--out", tmp_path / "out", "--realtime", "--serve", port)
    told, _ = seen()
    assert status == 1 and str(cut) in err
    assert [panel["state"] for panel in told[-1]["panels"]] == ["over", "failed"]
    assert str(tmp_path) not in str(told)  # paths are nobody's business


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http", "--serve: expected PORT or HOST:PORT, got 'http'"),
        ("", "--serve: expected PORT or HOST:PORT, got ''"),
        ("70000", "--serve: expected a port from 0 to 65535, got 70000"),
        ("192.0.2.1:0", "--serve: 192.0.2.1:0: not an address of this machine"),
    ],
)
def test_what_cannot_be_served(track, track_tool: ModuleType, tmp_path: Path, monkeypatch, address, message) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 3)
    monkeypatch.setattr(track_tool, "load", lambda *_: pytest.fail("the model was loaded"))
    assert failing(track("--video", clip, "--out", tmp_path / "out", "--serve", address)) == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_a_port_in_use(track, port: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 3)
    with socket.create_server(("127.0.0.1", port)):
        line = failing(track("--video", clip, "--out", tmp_path, "--serve", port))
    assert line == f"error: --serve: {port}: the port is in use"


def test_without_the_library(track, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "tracker.page", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    clip = write_clip(tmp_path / "walk.mp4", 3)
    line = failing(track("--video", clip, "--out", tmp_path, "--serve", "0"))
    assert line.startswith("error: --serve: needs the package aiohttp") and '".[serve]"' in line
    assert track("--video", clip, "--out", tmp_path)[0] == 0


def test_only_pictures_are_served(track, tmp_path: Path) -> None:
    (tmp_path / "det.txt").write_text("1,-1,10,10,20,40,0.9\n")
    line = failing(track("--detections", tmp_path / "det.txt", "--serve", "0"))
    assert line == "error: --serve: there are no pictures to show without --video"


def test_others_may_see_it_where_told_so(track, port: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "walk.mp4", 3)
    status, out, _ = track("--video", clip, "--out", tmp_path, "--serve", f"0.0.0.0:{port}")
    assert status == 0
    assert (
        f"serving http://{socket.gethostname()}:{port}/\nnote: whoever can reach this address sees the pictures\n"
        in out
    )


@pytest.fixture
def served(shared: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The tool itself on a hall full of people, black and white, in real time; and the address it serves.

    The film takes longer (5 minutes) than the slowest browser to start.
    """
    if not BUNDLED:
        pytest.skip("needs the bundled model")
    film = repeat_clip(shared / "data" / "video" / "people.mp4", tmp_path / "people.mp4", times=24)
    command = [sys.executable, str(TRACK), "--video", str(film), "--serve", "0", "--out", str(tmp_path)]
    command += ["--realtime", "--no-video", "--input-size", "416"]
    environment = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        address = next((line.split()[1] for line in lines if line.startswith("serving ")), None)
        assert address, process.communicate()
        yield process, address
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen, address: str) -> None:
    """Ctrl-C, and all that should follow."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted after frame \d+; the results are complete up to there\n", err)
    with socket.create_server(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))):
        pass  # the port is free


@pytest.mark.shared
def test_interrupted(served: tuple[subprocess.Popen, str], tmp_path: Path) -> None:
    process, address = served
    with urllib.request.urlopen(f"{address}0.mjpeg", timeout=WAITING) as stream:
        assert stream.headers.get_content_type() == "multipart/x-mixed-replace"
        data = b""
        while data.count(b"\xff\xd9\r\n--picture\r\n") < 5:
            data += stream.read1()
        interrupt(process, address)  # while somebody watches
    start = data.index(b"\xff\xd8")
    picture = cv2.imdecode(np.frombuffer(data[start : data.index(b"\r\n--picture", start)], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (720, 1280, 3)
    assert len(read_mot(tmp_path / "people.txt").frames) > 0


@pytest.mark.shared
@needs_chromium
def test_in_a_browser(served: tuple[subprocess.Popen, str], tmp_path: Path) -> None:
    process, address = served

    async def visit() -> tuple[np.ndarray, list[int], int]:
        number = "Number(document.querySelector('[data-figure=frame]').firstChild.data.replace(',', ''))"
        figure = "Number(document.querySelector('.panel [data-figure={}]').innerText)"
        async with opened(address, tmp_path / "profile", size=(1640, 900)) as tab:
            await tab.wait_for("document.querySelector('canvas') !== null")
            await tab.wait_for(f"{figure.format('people')} > 2")
            before = await tab.evaluate(number)
            await tab.wait_for(f"{number} > {before} + 10")  # they move
            counts = [await tab.evaluate(figure.format(name)) for name in ("people", "ids", "rate")]
            assert (await tab.evaluate("document.querySelector('.line').getAttribute('d')")).count("L") >= 1
            corners = await tab.evaluate(
                "JSON.parse(JSON.stringify(document.querySelector('canvas').getBoundingClientRect()))"
            )
            picture = cv2.imdecode(np.frombuffer(await tab.screenshot(), np.uint8), cv2.IMREAD_COLOR)
            ids = await tab.evaluate(figure.format("ids"))
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, interrupt, process, address)
            await tab.wait_for("document.querySelector('#status').innerText.startsWith('The run is over')")
            assert not [message for message in tab.messages if "ERR_CONNECTION_REFUSED" not in message]
        left, top, right, bottom = (round(corners[side]) for side in ("left", "top", "right", "bottom"))
        return picture[top:bottom, left:right], counts, int(ids)

    picture, (people, seen, rate), ids = asyncio.run(visit())
    assert 2 < people <= seen
    assert rate > 0
    colours = [track_colour(number) for number in range(1, ids + 1)]
    found = sum(bool((np.abs(picture.astype(int) - colour).max(axis=2) < 40).sum() > 20) for colour in colours)
    assert found >= 3  # the film is black and white: these are boxes with their labels
