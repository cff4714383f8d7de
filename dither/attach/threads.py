"""Several threads and one noisy model: one forward at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dither.torch_internals import calls

PAUSE = 0.05  # seconds between two looks at a thread that is waited for


class OneAtATime:
    """A lock on the forwards of one model. A thread waits while another runs one, and enters its
    own again and again.

    A parameter's shadow is an attribute of the model, which all threads read: two forwards at once
    would mix their draws. Ctrl-C runs no hook, so a forward that it ended never releases the lock:
    a waiting thread takes the lock over once the model is on the owner's stack no more.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.changed = threading.Condition()
        self.owner: int | None = None
        self.forwards = self.readings = 0  # of the owner, one inside the other

    def enter(self) -> None:
        """A forward begins."""
        with self.changed:
            self._take()
            self.forwards += 1

    def leave(self) -> None:
        """It ends. Does nothing for a forward that never began."""
        with self.changed:
            if self.owner == threading.get_ident():
                self.forwards = max(self.forwards - 1, 0)
                self._release()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """No forward of another thread inside."""
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
