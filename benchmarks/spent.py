"""Where a call's time goes: `python -m benchmarks.spent WORKLOAD QUANTITY` prints a JSON line.

The operators of dither's call beside those of a plain step, in multiples of one plain step's time;
what is left is time outside torch's operators: Python, numpy's random bits, the profiler itself.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch.autograd.profiler import profile

from benchmarks import clock
from benchmarks.methods import DITHER, plain
from benchmarks.workloads import WORKLOADS, Job, job

CALLS = 5  # profiled, after two that warm up
SHOWN = 8  # operators, those first that cost most more than in the plain step
OUTSIDE = "outside operators"


def spent(work: Job, quantity: str) -> list[dict[str, Any]]:
    """[{"what", "here", "plain", "calls"}]: own times in plain steps; the last row is the whole."""
    (method,) = (m for m in DITHER if m.quantity == quantity)
    here, unit = (_profiled(call) for call in (method.build(work.own()), plain(work.own())))
    whole = sum(seconds for seconds, _ in unit.values())
    rows = [
        {
            "what": what,
            "here": here.get(what, (0.0, 0))[0] / whole,
            "plain": unit.get(what, (0.0, 0))[0] / whole,
            "calls": here.get(what, (0.0, 0))[1],
        }
        for what in {*here, *unit}
    ]
    rows.sort(key=lambda row: row["plain"] - row["here"])
    calls = sum(n for _, n in here.values())
    total = {"what": "all", "here": sum(r["here"] for r in rows), "plain": 1.0, "calls": calls}
    return [*rows[:SHOWN], total]


def _profiled(call: clock.Call) -> dict[str, tuple[float, int]]:
    """{operator: (seconds of its own in one call, how often it was called)}."""
    call()
    call()
    trace: Any
    with profile() as trace:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        wall = time.perf_counter() - start
    found = {
        e.key: (e.self_cpu_time_total / 1e6 / CALLS, e.count // CALLS)
        for e in trace.key_averages()
        if e.self_cpu_time_total > 0
    }
    rest = wall / CALLS - sum(seconds for seconds, _ in found.values())
    return {**found, OUTSIDE: (max(rest, 0.0), 1)}


def main() -> None:
    """Arguments from the command line, one line of JSON out."""
    workload, quantity = sys.argv[1:]
    clock.alone()
    torch.manual_seed(1)
    found = {"rows": spent(job(WORKLOADS[workload]), quantity)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
