"""OpenVINO: imported where it is needed, quiet on the network, and harmless to signals."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread the signal stack back that it had before the block.

    OpenVINO's CPU plugin puts one of its own in its place, once for every `Core`. Where two of these end in the order
    in which they were made, what is left is memory that was given back, and the next signal ends the process.
    """
    try:
        exchange = ctypes.CDLL(None).sigaltstack
    except (AttributeError, OSError, TypeError):  # no such thing on this system
        yield
        return
    before = ctypes.create_string_buffer(64)  # a stack_t; its 24 bytes are more elsewhere
    exchange(None, before)
    try:
        yield
    finally:
        exchange(before, None)


def import_openvino() -> Any:
    """OpenVINO, which is not needed otherwise; its tools and NNCF would report their use over the network."""
    try:
        telemetry = importlib.import_module("openvino_telemetry").Telemetry
    except ImportError:
        pass
    else:
        for name in ("start_session", "end_session", "send_event", "send_error", "send_stack_trace"):
            setattr(telemetry, name, lambda *_, **__: None)
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ValueError(f'OpenVINO is not installed ({error}): pip install -e ".[export]"') from None
