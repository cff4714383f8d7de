"""Ctrl-C and SIGTERM stop a session, also where a library swallows the exception they raise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = threading.Event()


@contextmanager
def heard() -> Iterator[None]:
    """Within: both signals raise KeyboardInterrupt, and `heed` raises it again if it was lost. Only
    the main thread may say so; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        _asked.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def heed() -> None:
    """Raises KeyboardInterrupt where a stop was asked for."""
    if _asked.is_set():
        raise KeyboardInterrupt
