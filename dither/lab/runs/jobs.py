"""Jobs for workers, and what comes of them."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from dither.lab.figure import Run, Task


@dataclass(frozen=True)
class Job:
    """One call of execute: a run, and the seeds it is to be run with."""

    run: Run | Task = field(compare=False)
    seeds: tuple[int, ...]
    label: str  # for people; no two runs of one command share it
    folder: str = ""  # where its checkpoints are; "": none are kept

    def __str__(self) -> str:
        first, last = self.seeds[0], self.seeds[-1]
        together = len(self.seeds) > 1
        consecutive = self.seeds == tuple(range(first, last + 1))
        which = f"{first}–{last}" if consecutive else ", ".join(map(str, self.seeds))
        return f"{self.label} · {'seeds' if together else 'seed'} {which if together else first}"


@dataclass
class Outcome:
    """What came of a job: rows per seed and where they come from, or a sentence (and a traceback,
    if it is a bug).
    """

    rows: dict[int, pl.DataFrame] | None = None
    env: dict[str, Any] | None = None
    sentence: str = ""
    trace: str = ""
