"""What figures cost at a scale, and how long W workers take for it: list scheduling.

A worker that is free takes the next job of the list. For jobs of p_1 … p_n hours, in any order,

    max(p_1, p_W + p_{W+1}, Σp / W)  ≤  hours  ≤  Σp / W + (1 − 1/W) p_1,        p_1 ≥ p_2 ≥ …

and so at most 2 − 1/W times the best schedule; 4/3 − 1/(3W) times with the longest first. The
second term: of the W + 1 longest two are on one worker.   Graham 1966, 1969
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dither.lab.figure import Figure, Run, Task
from dither.lab.reproduce import parts
from dither.lab.runs.jobs import Job
from dither.lab.runs.store import Store


@dataclass(frozen=True)
class Schedule:
    """When W workers have finished jobs of `total` hours together. bounds: {why: hours}; no order
    takes less than any of them.
    """

    workers: int
    total: float
    hours: float
    bounds: dict[str, float]

    @property
    def idle(self) -> float:
        """The share of the workers' time in which they have nothing to do."""
        return 1 - self.total / (self.workers * self.hours) if self.hours else 0.0


def schedule(hours: Sequence[float], workers: int) -> Schedule:
    """List scheduling of jobs in this order."""
    free = [0.0] * min(workers, len(hours))  # when each worker is free; a heap
    for job in hours:
        heapq.heapreplace(free, free[0] + job)
    total, longest = sum(hours), [*sorted(hours, reverse=True), 0.0]
    bounds = {"the work": total / workers, "the longest run": longest[0]}
    if workers < len(hours):
        bounds[f"two of the {workers + 1} longest"] = longest[workers - 1] + longest[workers]
    return Schedule(workers, total, max(free, default=0.0), bounds)


@dataclass(frozen=True)
class Cost:
    """The jobs of a figure at a scale that no figure before it has.

    hours: of each job on one core; nan where neither the figure nor the folder tells. shared: how
    many of its runs are an earlier figure's.
    """

    figure: Figure
    jobs: list[Job]
    hours: list[float]
    shared: int

    @property
    def runs(self) -> int:
        return sum(len(job.seeds) for job in self.jobs)


def costs(figures: Sequence[Figure], scale: str, store: Store) -> list[Cost]:
    """The cost of each figure, in the order in which `reproduce` takes them: the cheapest first.

    A run that the folder has takes the time it took. Others take their part of what the figure
    declares: in proportion to the quick scale's times if the folder has them all, else equal parts.
    """
    found: list[Cost] = []
    seen: dict[str, set[int]] = {}
    for figure in sorted(figures, key=lambda figure: figure.cost.get(scale, math.inf)):
        runs, shared = figure.at(scale), 0
        each = _hours(figure, scale, runs, store)
        jobs: list[Job] = []
        for label, run in runs.items():
            seeds, before = figure.seeds_of(label, scale), seen.setdefault(run.key, set())
            new = tuple(seed for seed in seeds if seed not in before)
            shared += len(seeds) - len(new)
            before.update(new)
            jobs += parts(Job(run, new, label)) if new else []
        hours = [len(job.seeds) * each[job.label] for job in jobs]
        found.append(Cost(figure, jobs, hours, shared))
    return found


def _hours(
    figure: Figure, scale: str, runs: dict[str, Run | Task], store: Store
) -> dict[str, float]:
    """{label: hours of one seed}."""
    quick = figure.at("quick") if "quick" in figure.scales else {}
    shares = {label: _measured(quick[label], store) for label in runs if label in quick}
    if len(shares) < len(runs) or not all(shares.values()):
        shares = dict.fromkeys(runs, 1.0)
    whole = sum(shares[label] * len(figure.seeds_of(label, scale)) for label in runs)
    declared = figure.cost.get(scale, math.nan) / 60
    return {
        label: _measured(run, store) or declared * shares[label] / whole
        for label, run in runs.items()
    }


def _measured(run: Run | Task, store: Store) -> float:
    """The mean hours of a seed of this run in the folder; 0 if it has none."""
    seconds = [
        env["seconds"] for env in map(store.env_of, _folders(run, store)) if "seconds" in env
    ]
    return sum(seconds) / len(seconds) / 3600 if seconds else 0.0


def _folders(run: Run | Task, store: Store) -> Iterator[Path]:
    return (path.parent for path in (store.root / "runs" / run.key).glob("[0-9]*/env.json"))
