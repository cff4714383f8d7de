"""Time and memory of calls, side by side.

Calls are made in turn, A B C A B C …, on one thread; what is taken is the process' CPU time, with
the wall time beside it. A call shorter than `SLOT` is repeated within its turn. Every ratio is to
the plain step of the same round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.autograd.profiler import profile

SLOT = 0.1  # seconds of a turn, at least
Call = Callable[[], float | None]


@dataclass(frozen=True)
class Spread:
    """The median of n rounds, with the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g}–{self.most:.3g})"


@dataclass
class Timing:
    """One call: multiples of the plain step by CPU and wall time, seconds, and what it returned."""

    cpu: Spread
    wall: Spread
    seconds: float
    rounds: int
    values: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        mean = statistics.fmean(self.values) if self.values else None
        sd = statistics.stdev(self.values) if len(self.values) > 1 else None
        return {**asdict(self), "values": len(self.values), "mean": mean, "sd": sd}


def interleaved(
    plain: Call, calls: Mapping[str, Call], rounds: int
) -> tuple[float, dict[str, Timing]]:
    """(CPU seconds of a plain step, {name: its Timing}); each call is warmed up twice before."""
    everyone = {"": plain, **calls}
    repeats = {name: _repeats(call) for name, call in everyone.items()}
    cpu: dict[str, list[float]] = {name: [] for name in everyone}
    wall: dict[str, list[float]] = {name: [] for name in everyone}
    values: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(rounds):
        for name, call in everyone.items():
            c, w, returned = _turn(call, repeats[name])
            cpu[name].append(c)
            wall[name].append(w)
            values[name] += returned
    found = {}
    for name in calls:
        by_cpu = [a / b for a, b in zip(cpu[name], cpu[""], strict=True)]
        by_wall = [a / b for a, b in zip(wall[name], wall[""], strict=True)]
        seconds = statistics.median(cpu[name])
        found[name] = Timing(Spread.of(by_cpu), Spread.of(by_wall), seconds, rounds, values[name])
    return statistics.median(cpu[""]), found


def _repeats(call: Call) -> int:
    call()
    start = time.process_time()
    call()
    return max(1, math.ceil(SLOT / max(time.process_time() - start, 1e-5)))


def _turn(call: Call, repeats: int) -> tuple[float, float, list[float]]:
    """CPU seconds and wall seconds of one call, and the values of all."""
    gc.collect()
    gc.disable()
    returned = []
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        returned.append(call())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gc.enable()
    return cpu / repeats, wall / repeats, [v for v in returned if v is not None]


def peak(call: Call) -> int:
    """Bytes that torch's allocator holds at most during a call, above what it held before; after
    one call to warm up.

    Every allocation and release is in the profiler's trace, those inside an operator (a
    convolution's workspace) too.
    """
    call()
    gc.collect()
    trace: Any
    with profile(profile_memory=True) as trace:
        call()
    held = most = 0
    events = [e for e in trace.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def alone() -> None:
    """One thread for everything in this process."""
    torch.set_num_threads(1)
