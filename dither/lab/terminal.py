"""stdout and stderr that never stop a computation: any encoding, closed pipes, full disks."""

import codecs
import contextlib
import os
import sys
from typing import Any, TextIO

ASCII = str.maketrans({  # what dither prints that a narrow encoding lacks
    "−": "-", "–": "-", "—": "-", "…": "...", "·": "*", "×": "x", "±": "+-", "≤": "<=", "≥": ">=",
    "σ": "sigma", "Σ": "sum", "ε": "eps", "η": "eta", "λ": "lambda", "δ": "delta", "∞": "inf",
    "→": "->", "✓": "+", "✗": "x", "○": "o", "²": "^2", "½": "1/2", "√": "sqrt", "′": "'",
    "“": '"', "”": '"', "’": "'",
})  # fmt: skip
GONE = "dither: stdout can't be written any more ({}): {}\n"
DROPPED = "what is said from now on is dropped"
WORKS = "the work goes on, and what it says is dropped; stop it with Ctrl-C"


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """Letters for those that an encoding lacks: − → -, and an escape where none is alike."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    asked = error.object[error.start : error.end]
    near = asked.translate(ASCII).encode("ascii", "backslashreplace").decode()
    return near, error.end


codecs.register_error("dither", _nearest)


class Steady:
    """A stream whose `write` and `flush` never raise. When it can't be written any more, what is
    said is dropped. Once, stderr says so; not if it is a pipe whose reader has enough (`| head`),
    unless the command `works`: then somebody might think that it has stopped.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.works, self.lost, self.failed = stream, False, False, False

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, act: Any) -> None:
        if self.lost:
            return
        try:
            act()
        except (OSError, ValueError) as error:  # a closed pipe, a full disk, a closed file
            self.lost, self.failed = True, not isinstance(error, BrokenPipeError)
            with contextlib.suppress(OSError, ValueError):  # what is buffered goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if self is sys.stdout and sys.stderr and (self.works or self.failed):
                why = getattr(error, "strerror", None) or error
                sys.stderr.write(GONE.format(why, WORKS if self.works else DROPPED))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def steady() -> None:
    """Make this process's stdout and stderr so."""
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Steady):  # None: it was closed before we began
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="dither")
        setattr(sys, name, Steady(stream))


def works() -> None:
    """Say that this command computes, and goes on when nobody reads what it says."""
    if isinstance(sys.stdout, Steady):
        sys.stdout.works = True


def told() -> bool:
    """Whether all that was said could be written, or was more than its reader wanted."""
    if sys.stdout:
        sys.stdout.flush()
    return not getattr(sys.stdout, "failed", False)
