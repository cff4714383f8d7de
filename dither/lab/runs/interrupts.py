"""Ctrl-C, SIGTERM and SIGHUP (a terminal that closes) stop a session, also where a library swallows
the exception they raise.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = threading.Event()


@contextmanager
def heard() -> Iterator[None]:
    """Within: the signals raise KeyboardInterrupt, and `heed` raises it again if it was lost. A
    signal that is ignored (`nohup`) stays so. Only the main thread may say so; in another one
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        _asked.set()
        raise KeyboardInterrupt

    numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    asked = [n for n in numbers if n is not None and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in asked}
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
