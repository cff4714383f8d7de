"""Jobs for workers, and their outcomes."""

import traceback
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from dither.lab.figure import Run, Task


@dataclass(frozen=True)
class Job:
    """One call of `execute`: a run and its seeds."""

    run: Run | Task = field(compare=False)
    seeds: tuple[int, ...]
    label: str  # for people; unique in one command
    folder: str = ""  # where its checkpoints are; "": none are kept

    def __str__(self) -> str:
        first, last = self.seeds[0], self.seeds[-1]
        together = len(self.seeds) > 1
        consecutive = self.seeds == tuple(range(first, last + 1))
        which = f"{first}–{last}" if consecutive else ", ".join(map(str, self.seeds))
        return f"{self.label} · {'seeds' if together else 'seed'} {which if together else first}"


@dataclass
class Outcome:
    """The result of a job: rows per seed and their environment, or a sentence that says why there
    are none, with a traceback if the reason is a bug.
    """

    rows: dict[int, pl.DataFrame] | None = None
    env: dict[str, Any] | None = None
    sentence: str = ""
    traceback: str = ""

    @classmethod
    def failed(cls, error: Exception) -> "Outcome":
        """The outcome of a job that raised an error which is no DitherError."""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        return cls(sentence=f"{type(error).__name__}: {error}", traceback="".join(lines))
