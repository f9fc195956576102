import asyncio
import errno
import http.client
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

pytest.importorskip("aiohttp")
import aiohttp

import tracker.page
import tracker.panel
from tests.tracker.browser import needs_chromium, opened
from tests.tracker.clips import SIZE, find_square, scene
from tracker.draw import TrackDrawer, track_colour
from tracker.page import Page, listen
from tracker.panel import HISTORY_SECONDS, Panel
from tracker.types import FrameResult
from tracker.video import Frame

pytestmark = pytest.mark.usefixtures("no_threads_left")
WEB = Path(tracker.panel.__file__).with_name("web")


def result(frame: int, ids: list[int], box: tuple[float, ...] = (8, 8, 40, 56)) -> FrameResult:
    count = len(ids)
    return FrameResult(
        frame,
        np.array(ids, np.int64),
        np.tile(np.array(box, np.float32), (count, 1)),
        np.full(count, 0.9, np.float32),
        np.zeros(count, np.int64),
    )


def grey(level: int, size: tuple[int, int] = SIZE) -> Frame:
    return np.full((size[1], size[0], 3), level, np.uint8)


def noise(size: tuple[int, int]) -> Frame:
    """A frame whose JPEG is as large as they come."""
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture
def panels() -> list[Panel]:
    return [Panel("door", SIZE), Panel("hall", (64, 48), last_frame=200)]


@pytest.fixture
def page(panels: list[Panel]) -> Iterator[Page]:
    with Page(listen("0"), panels) as page:
        yield page


def get(page: Page, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """A response whose body is still to be read."""
    parts = urlsplit(page.address)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=60)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def next_part(stream: http.client.HTTPResponse) -> Frame | None:
    """The next picture of an MJPEG stream."""
    while (line := stream.readline()) and not line.startswith(b"Content-Length"):
        assert line.strip() in (b"--picture", b"", b"Content-Type: image/jpeg")
    if not line:
        return None
    assert stream.readline() == b"\r\n"
    data = stream.read(int(line.split()[1]))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def viewing(page: Page, visit) -> object:
    """What a coroutine function returns that is given the page's WebSocket."""

    async def run() -> object:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{page.address}live") as socket:
            return await visit(socket)

    return asyncio.run(run())


async def next_counts(socket: aiohttp.ClientWebSocketResponse) -> dict:
    while True:
        message = await socket.receive(timeout=60)
        if message.type is aiohttp.WSMsgType.TEXT:
            return message.json()
        assert message.type is aiohttp.WSMsgType.BINARY


async def next_picture(socket: aiohttp.ClientWebSocketResponse, index: int) -> Frame:
    await socket.send_str(str(index))
    while True:
        message = await socket.receive(timeout=60)
        if message.type is aiohttp.WSMsgType.BINARY:
            assert int.from_bytes(message.data[:2], "big") == index
            return cv2.imdecode(np.frombuffer(message.data[2:], np.uint8), cv2.IMREAD_COLOR)
        assert message.type is aiohttp.WSMsgType.TEXT


# The address


@pytest.mark.parametrize("text", ["", "http", "80a", "-1", "8080:", ":8080", "a:b:80", "::1:80", "[::1]", "٣", "1.5"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected PORT or HOST:PORT, got "):
        listen(text)


@pytest.mark.parametrize("port", ["65536", "999999999999999999999"])
def test_ports_that_are_none(port: str) -> None:
    with pytest.raises(ValueError, match=f"^expected a port from 0 to 65535, got {port}$"):
        listen(port)


def test_a_port_in_use_and_other_places() -> None:
    with listen("0") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"^{port}: the port is in use$"):
            listen(str(port))
    with pytest.raises(ValueError, match=r"^192\.0\.2\.1:0: not an address of this machine$"):
        listen("192.0.2.1:0")  # of documentation; nobody has it
    with pytest.raises(ValueError, match=r"^a\.\.b:80: no such host$"):
        listen("a..b:80")


def test_a_port_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ValueError, match=r"^80: no permission to use this port$"):
        listen("80")


def own_address() -> str:
    """The address under which other machines see this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # chooses a route, and sends nothing
        except OSError:
            pytest.skip("needs a network")
        address = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("needs a network")
    return address


def test_only_this_machine_unless_told_otherwise(panels: list[Panel]) -> None:
    address = own_address()
    with Page(listen("0"), panels) as page:
        port = urlsplit(page.address).port
        assert page.address == f"http://127.0.0.1:{port}/"
        assert not page.public
        assert get(page).status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)
    with Page(listen("0.0.0.0:0"), [Panel("door", SIZE)]) as page:
        assert page.public
        port = urlsplit(page.address).port
        connection = http.client.HTTPConnection(address, port, timeout=5)
        connection.request("GET", "/", headers={"Host": f"{address}:{port}"})
        assert connection.getresponse().status == 200


# What is served


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    kinds = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"}
    for path, kind in kinds.items():
        response = get(page, path)
        assert response.status == 200
        assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
        text = response.read().decode()
        assert set(re.findall(r"\w+://[\w./]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert sorted(path.name for path in WEB.iterdir()) == ["icon.svg", "page.css", "page.html", "page.js"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/live", "/0.mjpeg"])
def test_headers(page: Page, panels: list[Panel], path: str) -> None:
    panels[0].add(grey(0), result(1, []))
    headers = get(page, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert headers["Server"] == "jdetrack"


@pytest.mark.parametrize(
    "path", ["/page.py", "/../panel.py", "/%2e%2e/panel.py", "/web/page.js", "//etc/passwd", "/2.mjpeg", "/-1.mjpeg"]
)
def test_nothing_else_is_served(page: Page, path: str) -> None:
    assert get(page, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(page: Page, method: str) -> None:
    assert get(page, "/", method).status == 405


@pytest.mark.parametrize("path", ["/live", "/0.mjpeg"])
def test_what_has_no_end_has_no_head(page: Page, path: str) -> None:
    assert get(page, path, "HEAD").status == 405


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "127.9.9.9", "[::1]:8080"])
def test_names_of_this_machine(page: Page, host: str) -> None:
    assert get(page, Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[", "", "x@y", "0x7f.1"]
)
def test_other_hosts_get_nothing(page: Page, host: str) -> None:
    for path in ("/", "/0.mjpeg", "/live", "/nothing"):
        assert get(page, path, Host=host).status == 403


def test_names_where_others_may_see_it(monkeypatch: pytest.MonkeyPatch, panels: list[Panel]) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Camera")
    monkeypatch.setattr(socket, "getfqdn", lambda: "camera.example")
    with Page(listen("0.0.0.0:0"), panels) as page:
        for host in ("camera:80", "CAMERA.local", "camera.example", "localhost", "10.0.0.1:9", "[fe80::1]:80"):
            assert get(page, Host=host).status == 200
        for host in ("example", "other.example", "camera.example.com", "10.0.0.1.example.com", ""):
            assert get(page, Host=host).status == 403


def test_the_name_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, panels: list[Panel]) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listen("Door.example:0") as listener:
        monkeypatch.undo()
        with Page(listener, panels) as page:
            assert [get(page, Host=host).status for host in ("door.example:1", "hall.example")] == [200, 403]


def test_other_sites_hear_nothing(page: Page) -> None:
    async def visit(origin: str) -> None:
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(f"{page.address}live", origin=origin)

    for origin in ("http://example.com", "null", "http://127.0.0.1:1", "http://["):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            asyncio.run(visit(origin))
        assert refused.value.status == 403
    asyncio.run(visit(page.address.rstrip("/")))


def test_broken_requests_are_nobodys_business(page: Page, capfd: pytest.CaptureFixture[str]) -> None:
    port = urlsplit(page.address).port
    for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"GET /" + b"a" * 20_000):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert answer == b"" or re.match(rb"HTTP/1\.[01] 4", answer)
    assert get(page).status == 200
    assert capfd.readouterr() == ("", "")


# Pictures


def test_pictures_have_boxes_and_come_in_order(page: Page, panels: list[Panel]) -> None:
    drawer = TrackDrawer(SIZE)
    stream = None
    for number in (1, 2, 3):
        frame = scene(number)
        detected = find_square([frame])[0].xyxy[0]
        drawn = drawer.draw(frame.copy(), result(number, [7], tuple(detected)))
        panels[0].add(drawn, result(number, [7]))
        stream = stream or get(page, "/0.mjpeg")
        picture = next_part(stream)
        assert picture.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(picture.astype(int) - drawn).mean() < 20  # noise, and JPEG
        label = np.all(drawn == track_colour(7), axis=2)
        assert label.sum() > 100
        assert np.abs(picture[label].astype(int).mean(axis=0) - track_colour(7)).max() < 60
        assert np.abs(frame[label].astype(int).mean(axis=0) - track_colour(7)).max() > 100
    assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=picture"
    panels[0].end()
    assert next_part(stream) is None


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (5000, 1)])
def test_large_pictures_are_scaled_down(size: tuple[int, int]) -> None:
    scale = 1280 / max(size)
    expected = [max(1, round(side * scale)) for side in size]
    panel = Panel("street", size)
    with Page(listen("0"), [panel]) as page:
        panel.add(grey(100, size), result(1, []))
        picture = next_part(get(page, "/0.mjpeg"))
    assert [picture.shape[1], picture.shape[0]] == expected == list(panel.counts()["size"])
    assert picture.mean() == pytest.approx(100, abs=2)


def test_pictures_are_encoded_for_those_who_ask(
    page: Page, panels: list[Panel], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = cv2.imencode

    def watched(kind: str, frame: Frame, options: tuple) -> object:
        encoded.append((int(frame.mean()), threading.current_thread().name))
        return encode(kind, frame, options)

    monkeypatch.setattr(tracker.panel.cv2, "imencode", watched)

    async def visit(socket: aiohttp.ClientWebSocketResponse) -> None:
        for level in range(0, 100):
            panels[0].add(grey(level), result(level + 1, []))
        await next_counts(socket)
        assert encoded == []
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{page.address}live") as second:
            for level in (99, 150, 200):
                panels[0].add(grey(level - 1), result(level, []))
                panels[0].add(grey(level), result(level + 1, []))
                pictures = await asyncio.gather(next_picture(socket, 0), next_picture(second, 0))
                assert [picture.mean() for picture in pictures] == pytest.approx([level, level], abs=2)

    viewing(page, visit)
    assert [level for level, _ in encoded] == [99, 150, 200]
    assert {name for _, name in encoded} == {"page-encode_0"}


def test_a_picture_is_waited_for(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> None:
        for level in (50, 60):
            asking = asyncio.create_task(next_picture(socket, 1))
            done, _ = await asyncio.wait([asking], timeout=0.1)
            assert not done
            panels[1].add(grey(level, (64, 48)), result(level, []))
            assert (await asking).mean() == pytest.approx(level, abs=2)

    viewing(page, visit)


def test_at_most_so_many_pictures_a_second(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> float:
        started = time.monotonic()
        for level in range(11):
            panels[0].add(grey(level), result(level + 1, []))
            await next_picture(socket, 0)
        return time.monotonic() - started

    assert viewing(page, visit) >= 10 / 25 - 0.01


def test_who_hangs_holds_up_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    panel = Panel("street", (1280, 720))
    frame = noise((1280, 720))
    with Page(listen("0"), [panel]) as page:
        port = urlsplit(page.address).port
        hung = []
        for path, extra in [
            ("/0.mjpeg", ""),
            ("/live", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"),
        ]:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" if extra else ""
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{extra}{key}\r\n".encode())
            hung.append(connection)  # and never reads
        hung[1].sendall(b"\x81\x81\0\0\0\0" + b"0")  # asks for a picture
        panel.add(frame, result(1, []))
        stream = get(page, "/0.mjpeg")
        slowest = 0.0
        for number in range(2, 30):
            began = time.perf_counter()
            panel.add(frame, result(number, []))
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.01)
            assert next_part(stream) is not None  # others see all they can
        assert slowest < 0.5
        began = time.perf_counter()
        page.close()
        assert time.perf_counter() - began < 5
        for connection in hung:
            connection.close()
    with socket.create_server(("127.0.0.1", port)):
        pass  # free again
    assert capfd.readouterr() == ("", "")


def test_who_hangs_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker.page, "_HANG_SECONDS", 0.2)
    panel = Panel("street", (1280, 720))
    with Page(listen("0"), [panel]) as page, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", urlsplit(page.address).port))
        connection.sendall(b"GET /0.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 20
        number, gone = 0, False
        while not gone and time.monotonic() < deadline:
            number += 1
            panel.add(noise((1280, 720)), result(number, []))
            gone = not page._answering and number > 10
        assert gone


def test_who_is_slow_sees_the_newest(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> None:
        for first in range(0, 200, 50):
            for level in range(first, first + 50):
                panels[0].add(grey(level), result(level + 1, []))
            assert (await next_picture(socket, 0)).mean() == pytest.approx(first + 49, abs=2)

    viewing(page, visit)


def test_nonsense_from_a_viewer(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> object:
        for text in ("2", "99999999999", "-1", "x", "", "٢"):
            await socket.send_str(text)
        panels[0].add(grey(33), result(1, []))
        assert (await next_picture(socket, 0)).mean() == pytest.approx(33, abs=2)
        await socket.send_str("0" * 100)  # longer than any message
        while (message := await socket.receive(timeout=60)).type is aiohttp.WSMsgType.TEXT:
            pass
        return message.type

    assert viewing(page, visit) in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert get(page).status == 200


# Counts


def test_counts_are_told_and_the_end(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> list[dict]:
        told = [await next_counts(socket)]
        panels[0].add(grey(1), result(1, [1, 2, 3]))
        panels[0].add(grey(2), result(5, [3, 4]), dropped=3)
        panels[1].end("failed")
        told.append(await next_counts(socket))
        closing = asyncio.get_running_loop().run_in_executor(None, page.close)
        while not told[-1]["over"]:
            told.append(await next_counts(socket))
        await closing
        return told

    told = viewing(page, visit)
    assert [panel["name"] for panel in told[0]["panels"]] == ["door", "hall"]
    assert [panel["state"] for panel in told[0]["panels"]] == ["waiting", "waiting"]
    door, hall = told[1]["panels"]
    assert (door["frame"], door["people"], door["ids"], door["dropped"]) == (5, 2, 4, 3)
    assert (door["state"], door["last_frame"], door["size"]) == ("running", None, list(SIZE))
    assert (hall["state"], hall["last_frame"], hall["frame"]) == ("failed", 200, 0)
    assert [panel["state"] for panel in told[-1]["panels"]] == ["over", "failed"]
    with pytest.raises(OSError):
        get(page)


def test_the_last_picture_is_seen_before_the_end(page: Page, panels: list[Panel]) -> None:
    async def visit(socket: aiohttp.ClientWebSocketResponse) -> float:
        panels[0].add(grey(10), result(1, []))
        await next_picture(socket, 0)
        panels[0].add(grey(200), result(2, []))
        closing = asyncio.get_running_loop().run_in_executor(None, page.close)
        picture = await next_picture(socket, 0)
        await closing
        return picture.mean()

    assert viewing(page, visit) == pytest.approx(200, abs=2)


def test_rate_and_history(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    now = 1000.0
    monkeypatch.setattr(tracker.panel.time, "monotonic", lambda: now)
    panel = Panel("door", SIZE)
    assert panel.counts()["history"] == []
    assert panel.counts()["rate"] == 0
    for people, wait in [(1, 0.5), (3, 0.5), (2, 0.5), (0, 3.0), (4, 0.0)]:
        panel.add(grey(0), result(next(clock) + 1, list(range(1, people + 1))))
        now += wait
    assert panel.counts()["history"] == [3, 2, None, None, 4]  # in the first second there were 1 and 3
    assert panel.counts()["rate"] == pytest.approx(2 / 3, abs=0.05)
    now += 2.25
    assert panel.counts()["quiet"] == 2.2
    assert panel.counts()["history"][-3:] == [4, None, None]
    now += 1e6
    assert panel.counts()["history"] == [None] * HISTORY_SECONDS
    assert panel.counts()["rate"] == 0
    panel.end()
    before = panel.counts()
    now += 5
    assert panel.counts() == before


def test_the_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(tracker.panel.time, "monotonic", lambda: now)
    panel = Panel("door", SIZE)
    for rate in (100, 20):
        for number in range(5 * rate):
            now += 1 / rate
            panel.add(grey(0), result(number + 1, []))
        assert panel.counts()["rate"] == pytest.approx(rate, rel=0.02)


def test_the_time_of_a_frame_is_taken_when_nobody_else_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Panel("door", SIZE)
    free: list[bool] = []
    monkeypatch.setattr(tracker.panel.time, "monotonic", lambda: free.append(not panel._lock.locked()) or 5.0)
    panel.add(grey(0), result(1, []))
    panel.counts()
    assert free == [False, False]


# In a browser


@needs_chromium
@pytest.mark.parametrize("count", [1, 9])  # browsers allow a host six connections
def test_in_a_browser(tmp_path: Path, count: int) -> None:
    panels = [Panel(f"<b>camera</b> {number}", SIZE) for number in range(count)]

    async def visit(page: Page) -> None:
        async with opened(page.address, tmp_path / "profile") as tab:
            await tab.wait_for(f"document.querySelectorAll('canvas').length === {count}")
            assert (
                await tab.evaluate("document.querySelector('.panel .state').innerText")
                == "Waiting for the first picture"
            )
            for step in (1, 2):
                for index, panel in enumerate(panels):
                    panel.add(grey(100 * step + index), result(step, list(range(index + step))))
                for index in range(count):
                    canvas = f"document.querySelectorAll('canvas')[{index}]"
                    level = f"{canvas}.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
                    await tab.wait_for(f"Math.abs({level} - {100 * step + index}) < 3")
                    figure = f"document.querySelectorAll('.panel .main dd')[{index}].innerText"
                    await tab.wait_for(f"{figure} === '{index + step}'")
            titles = await tab.evaluate("[...document.querySelectorAll('h2')].map(title => title.textContent)")
            assert titles == [panel.name for panel in panels]
            panels[0].end("failed")
            await tab.wait_for("document.querySelector('.panel .state').innerText === 'Broke off'")
            await asyncio.get_running_loop().run_in_executor(None, page.close)
            await tab.wait_for("document.querySelector('#status').innerText.startsWith('The run is over')")
            assert not [message for message in tab.messages if "ERR_CONNECTION_REFUSED" not in message]

    with Page(listen("0"), panels) as page:
        asyncio.run(visit(page))


@needs_chromium
def test_a_broken_picture_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Panel("door", SIZE)

    async def visit(page: Page) -> None:
        async with opened(page.address, tmp_path / "profile") as tab:
            with monkeypatch.context() as patch:
                patch.setattr(panel, "_jpeg", lambda frame: b"no picture")
                panel.add(grey(10), result(1, []))
                deadline = time.monotonic() + 30
                while not tab.messages:
                    assert time.monotonic() < deadline
                    await tab.evaluate("0")  # also reads what the console says
            panel.add(grey(100), result(2, []))
            level = "document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data[0]"
            await tab.wait_for(f"Math.abs({level} - 100) < 3")

    with Page(listen("0"), [panel]) as page:
        asyncio.run(visit(page))
