"""One workload in one environment: `python -m benchmarks.worker ENVIRONMENT WORKLOAD ROUNDS` prints
a JSON line.

Each method's number is checked on a few samples first, then all are timed in turn with a plain
step. In a peer's environment dither's way to the same quantity is timed beside it, in the same
turns.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import torch

from benchmarks import clock, oracle
from benchmarks.methods import DITHER, Method, plain
from benchmarks.naive import NAIVE
from benchmarks.noises import BY_HAND, POPULAR
from benchmarks.targets import AGAINST
from benchmarks.workloads import WORKLOADS, Job, job

SPREAD = 32  # values of an estimate that is compared at equal standard error


def methods(environment: str) -> tuple[Method, ...]:
    """What runs there: dither and the naive ways, or a peer and dither beside it."""
    if environment == "dither":
        return DITHER + POPULAR + NAIVE + BY_HAND
    from benchmarks.peers import PEERS

    theirs = {m.quantity for m in PEERS[environment]}
    return tuple(m for m in DITHER if m.quantity in theirs) + PEERS[environment]


def measure(environment: str, work: Job, rounds: int) -> dict[str, Any]:
    """{"plain": seconds, "rows": [one a method]}."""
    few = work.own(oracle.head(work))
    truth = functools.cache(lambda quantity: oracle.truth(quantity, few))
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, clock.Call] = {}
    for m in methods(environment):
        if not m.claims(work.workload):
            continue
        said = {"workload": work.workload.name, "quantity": m.quantity, "who": m.who, "how": m.how}
        rows[m.name] = {**said, "environment": environment}
        try:
            rows[m.name]["check"] = oracle.check(m.build, few, m.exact, truth(m.quantity))
            calls[m.name] = m.build(work.own())
        except Exception as error:  # a peer may refuse in any way; which, is the result
            rows[m.name]["refuses"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    seconds, timings = clock.interleaved(plain(work.own()), calls, rounds)
    compared = [a for a in AGAINST if a.equal_error and a.workload == work.workload.name]
    at_equal_error = tuple(f"{a.quantity} |" for a in compared)
    for name, timing in timings.items():
        while rounds >= 9 and name.startswith(at_equal_error) and len(timing.values) < SPREAD:
            timing.values.append(calls[name]() or 0.0)
        rows[name].update(timing.as_dict())
    if environment == "dither" and "memory" in work.workload.costs:
        rows.update(_memory(work))
    return {"plain": seconds, "threads": torch.get_num_threads(), "rows": list(rows.values())}


def _memory(work: Job) -> dict[str, dict[str, Any]]:
    """Peak of what a call allocates, as a multiple of the plain step's."""
    unit = clock.peak(plain(work.own()))
    rows = {}
    for m in DITHER + NAIVE:
        if m.quantity == "R" and m.claims(work.workload):
            most = clock.peak(m.build(work.own()))
            said = {
                "workload": work.workload.name,
                "quantity": "memory",
                "who": m.who,
                "how": m.how,
            }
            rows["memory " + m.name] = {
                **said,
                "environment": "dither",
                "bytes": most,
                "ratio": most / unit,
            }
    return rows


def main() -> None:
    """Arguments from the command line, one line of JSON out."""
    environment, workload, rounds = sys.argv[1:]
    clock.alone()
    torch.manual_seed(1)
    found = measure(environment, job(WORKLOADS[workload]), int(rounds))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
