"""A live page: pictures with boxes, and counts, in a browser.

    listener = listen("8080")
    panels = [Panel("door", (1280, 720))]
    with Page(listener, panels) as page:
        print(page.address)
        for frame, result in ...:
            panels[0].add(frame, result)  # drawn

`/` is the page. Over the WebSocket `/live` it is told the counts, and asks for each picture when it has shown the one
before, so that a slow viewer sees fewer pictures and no late ones. `/0.mjpeg`, `/1.mjpeg`, ... are the pictures alone,
one after another (multipart/x-mixed-replace), for other players.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from tracker.panel import Panel

_FOLDER = Path(__file__).with_name("web")
_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Without this, any site could put the pictures into a page of its own.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "jdetrack",
}
_BOUNDARY = "picture"
# Seconds between two messages with counts.
_COUNT_SECONDS = 0.25
# A viewer that takes nothing for so long is gone.
_HANG_SECONDS = 20.0
# Viewers are given this long to take the last picture and to say goodbye.
_CLOSE_SECONDS = 1.0
# What the system holds for a viewer, in bytes: more would be pictures of the past.
_SEND_BUFFER = 128 * 1024
_ADDRESS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]]+):)?(?P<port>[0-9]+)")
_REASONS = {
    errno.EADDRINUSE: "the port is in use",
    errno.EACCES: "no permission to use this port",
    errno.EADDRNOTAVAIL: "not an address of this machine",
}
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # a stranger's broken request is nothing to print

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Listener(socket.socket):
    """A socket that listens, and the `host` that was asked for."""

    host = ""


def listen(address: str) -> Listener:
    """Take the port of an address, so that what is wrong with it is known before anything slow begins.

    Args:
        address: `8080`, for this machine alone (127.0.0.1); or `HOST:PORT`: `0.0.0.0:8080` for all its networks,
            `[::1]:8080` in IPv6. Port 0 is any free one.

    Raises:
        ValueError: not an address of this machine, or its port is in use or not allowed.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"expected PORT or HOST:PORT, got {address!r}")
    host, port = (match["host"] or "127.0.0.1").strip("[]"), match["port"]
    if len(port) > 5 or int(port) > 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        # A name such as localhost may stand for two addresses; IPv4 is what people type.
        family, _, _, _, place = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = Listener(fileno=socket.create_server(place[:2], family=family).detach())
    except (socket.gaierror, UnicodeError):
        raise ValueError(f"{address}: no such host") from None
    except OSError as error:
        raise ValueError(f"{address}: {_REASONS.get(error.errno or 0, error.strerror)}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # the viewers' sockets inherit it
    listener.host = host
    return listener


class Page:
    """Serves the page from a thread of its own until it is closed, and then tells the viewers that it is over.

    No viewer can hold up whoever adds to the panels, nor `close` for longer than a second or two. Only requests
    for this machine's own names and addresses, of the loopback interface where it listens there, are answered: a
    website that has its name point to this machine gets nothing.

    Attributes:
        address: where to find it.
        public: whether others than this machine may reach it.

    Args:
        listener: from `listen`; closed in the end.
        panels: one for each input.
    """

    def __init__(self, listener: Listener, panels: Sequence[Panel]) -> None:
        host, port = listener.getsockname()[:2]
        self.public = not ipaddress.ip_address(host).is_loopback
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        self.address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        names = {"localhost", listener.host}
        if self.public:
            names |= {socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn()}
        self._names = {name.lower() for name in names}
        self._listener = listener
        self._panels = tuple(panels)
        self._files = {path: (_FOLDER / name).read_bytes() for path, name in _FILES.items()}
        self._over = asyncio.Event()
        self._answering: set[asyncio.Future[None]] = set()
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve(ready)], name="page", daemon=True)
        self._thread.start()
        self._loop = ready.result()

    def close(self) -> None:
        """Show the last pictures, tell the viewers that it is over, and free the port."""
        if not self._thread.is_alive():
            return
        for panel in self._panels:
            panel.end()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _serve(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        """Body of the thread."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, "page-encode"))
        application = web.Application(middlewares=[self._admit])
        application.on_response_prepare.append(_set_headers)
        for path in self._files:
            application.router.add_get(path, self._file)
        application.router.add_get("/live", self._live, allow_head=False)
        application.router.add_get(r"/{index:[0-9]{1,4}}.mjpeg", self._mjpeg, allow_head=False)
        runner = web.AppRunner(
            application, access_log=None, logger=_LOG, handler_cancellation=True, shutdown_timeout=_CLOSE_SECONDS / 4
        )
        try:
            await runner.setup()
            await web.SockSite(runner, self._listener).start()
        except BaseException as error:
            ready.set_exception(error)
        else:
            ready.set_result(loop)
            await self._over.wait()
            if self._answering:  # from `cleanup` on, nothing that a viewer says is heard
                await asyncio.wait(self._answering, timeout=_CLOSE_SECONDS)
        await runner.cleanup()

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_this_machine(request.headers.get("Host", "")):
            raise web.HTTPForbidden(text="expected the name or an address of this machine as the host\n")
        answered = asyncio.get_running_loop().create_future()
        self._answering.add(answered)
        try:
            return await handler(request)
        finally:
            self._answering.remove(answered)
            answered.set_result(None)

    def _is_this_machine(self, host: str) -> bool:
        """Whether a request's host is a name or an address that no website can have; any port is fine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or ipaddress.ip_address(name).is_loopback or self.public
        except ValueError:
            return False

    async def _file(self, request: web.Request) -> web.Response:
        kind = _KINDS[Path(_FILES[request.path]).suffix]
        return web.Response(body=self._files[request.path], content_type=kind, charset="utf-8")

    async def _mjpeg(self, request: web.Request) -> web.StreamResponse:
        """Pictures of one input, each in place of the one before."""
        index = int(request.match_info["index"])
        if index >= len(self._panels):
            raise web.HTTPNotFound(text=f"expected a number below {len(self._panels)}\n")
        response = web.StreamResponse(headers={"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"})
        await response.prepare(request)
        # The boundary goes with the picture before it: a browser shows nothing of which it has not seen the end.
        await response.write(f"--{_BOUNDARY}\r\n".encode())
        shown = 0
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            while picture := await self._panels[index].picture(shown):
                shown, jpeg = picture
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                part = b"".join((head.encode(), jpeg, f"\r\n--{_BOUNDARY}\r\n".encode()))
                await asyncio.wait_for(response.write(part), _HANG_SECONDS)
            return response
        if request.transport is not None:
            request.transport.abort()  # what waits to be sent would never be
        return response

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        """Counts every now and then, and the pictures asked for: a viewer sends an input's index for its next one."""
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
            raise web.HTTPForbidden(text="expected a request from this page, not from another site\n")
        viewer = web.WebSocketResponse(timeout=_CLOSE_SECONDS, heartbeat=_HANG_SECONDS, compress=False, max_msg_size=64)
        await viewer.prepare(request)
        wanted = [asyncio.Event() for _ in self._panels]
        pictures = [
            asyncio.create_task(_send_pictures(viewer, index, panel, wanted[index]))
            for index, panel in enumerate(self._panels)
        ]
        counts = asyncio.create_task(self._send_counts(viewer, pictures))
        try:
            async for message in viewer:
                if message.type is WSMsgType.TEXT and message.data.isdecimal() and int(message.data) < len(wanted):
                    wanted[int(message.data)].set()
        finally:
            for task in (counts, *pictures):
                task.cancel()
            await asyncio.gather(counts, *pictures, return_exceptions=True)
        return viewer

    async def _send_counts(self, viewer: web.WebSocketResponse, pictures: Sequence[asyncio.Task[None]]) -> None:
        while not self._over.is_set():
            await viewer.send_json({"panels": [panel.counts() for panel in self._panels], "over": False})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._over.wait(), _COUNT_SECONDS)
        await asyncio.wait(pictures, timeout=_CLOSE_SECONDS / 2)
        await viewer.send_json({"panels": [panel.counts() for panel in self._panels], "over": True})
        await viewer.close()


async def _send_pictures(viewer: web.WebSocketResponse, index: int, panel: Panel, wanted: asyncio.Event) -> None:
    """The pictures of one input, each when it is asked for: the index in two bytes, then the JPEG."""
    shown = 0
    while True:
        await wanted.wait()
        wanted.clear()
        picture = await panel.picture(shown)
        if picture is None:
            return
        shown, jpeg = picture
        await viewer.send_bytes(index.to_bytes(2, "big") + jpeg)


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
