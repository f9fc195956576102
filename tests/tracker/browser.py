"""A headless Chromium, driven over the DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, not found on the PATH")


class Tab:
    """An open tab; `messages` are the errors in its console."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.messages: list[str] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        await self._connection.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._connection.receive_json(timeout=60)
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.messages.append(answer["params"]["entry"]["text"])
            elif answer.get("method") == "Runtime.exceptionThrown":
                self.messages.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Give the tab a size in pixels, and a colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not await self.evaluate(expression):
            if time.monotonic() > deadline:
                seen = await self.evaluate("document.body.innerText")
                pytest.fail(f"{expression}: not within {seconds:g} s; console: {self.messages}; the page: {seen!r}")
            await asyncio.sleep(0.1)

    async def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@contextlib.asynccontextmanager
async def opened(address: str, profile: Path, size: tuple[int, int] = (1280, 800)) -> AsyncIterator[Tab]:
    """A tab that shows an address, in a browser of its own with a fresh profile."""
    import aiohttp

    assert CHROMIUM
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        place = profile / "DevToolsActivePort"  # written when the browser is ready
        deadline = time.monotonic() + 120
        while not (place.is_file() and place.read_text().count("\n")):
            assert process.poll() is None, f"Chromium ended with status {process.returncode}"
            assert time.monotonic() < deadline, "Chromium did not start within two minutes"
            await asyncio.sleep(0.1)
        port = int(place.read_text().split()[0])
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(entry for entry in await answer.json() if entry["type"] == "page")
            url = target["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as connection:
                tab = Tab(connection)
                for domain in ("Log", "Runtime", "Page"):
                    await tab.call(f"{domain}.enable")
                await tab.resize(*size)
                await tab.call("Page.navigate", url=address)
                yield tab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: the browser and its children
        process.wait()
