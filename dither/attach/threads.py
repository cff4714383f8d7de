"""Threads that call one noisy model take turns: one forward at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dither.torch_internals import calls

PAUSE = 0.05  # seconds between two checks of the thread that has the lock


class OneAtATime:
    """A reentrant lock on the forwards of one model.

    All threads read a parameter's shadow from the model: two forwards at once would mix their
    draws. Ctrl-C runs no hook, so a forward that it ends never releases the lock. A waiting thread
    takes the lock over when the model is no longer on the owner's stack.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.changed = threading.Condition()
        self.owner: int | None = None
        self.forwards = self.readings = 0  # of the owner, nested

    def enter(self) -> None:
        """A forward begins."""
        with self.changed:
            self._take()
            self.forwards += 1

    def leave(self) -> None:
        """A forward ends. Does nothing if it never began."""
        with self.changed:
            if self.owner == threading.get_ident():
                self.forwards = max(self.forwards - 1, 0)
                self._release()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No other thread runs a forward inside."""
        with self.changed:
            self._take()
            self.readings += 1
        try:
            yield
        finally:
            with self.changed:
                self.readings -= 1
                self._release()

    def _take(self) -> None:
        me = threading.get_ident()
        while self.owner not in (None, me) and self._busy(self.owner):
            self.changed.wait(PAUSE)
        if self.owner != me:
            self.owner, self.forwards, self.readings = me, 0, 0

    def _release(self) -> None:
        if not (self.forwards or self.readings):
            self.owner = None
            self.changed.notify()

    def _busy(self, thread: int) -> bool:
        frame = sys._current_frames().get(thread)
        return frame is not None and (self.readings > 0 or calls(self.model, frame) > 0)
