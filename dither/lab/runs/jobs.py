"""Jobs for workers, and their outcomes."""

import traceback
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from dither.lab.figure import Run, Task
from dither.lab.wording import whole


@dataclass(frozen=True)
class Job:
    """One call of `execute`: a run and its seeds."""

    run: Run | Task = field(compare=False)
    seeds: tuple[int, ...]
    label: str  # for people; unique in one command
    folder: str = ""  # where its checkpoints are; "": none are kept

    def __str__(self) -> str:
        return f"{self.label} · seed{'s' * (len(self.seeds) > 1)} {whole(self.seeds)}"


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
