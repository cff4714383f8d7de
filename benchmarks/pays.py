"""Does each complexity pay? `python -m benchmarks.pays [--only cnn,mlp1024] [--rounds 7]`.

Each row is one call of dither as it is, beside the same call without one of its parts: the replay
of the graph (autograd takes its place: all columns batched, or one after another), the fast fill of
long draws, the certificate. All take turns in one process; a number is the ratio of the medians to
the call as it is. Written to `.bench/pays.md`.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import clock
from benchmarks.environments import BENCH
from benchmarks.methods import DITHER, plain
from benchmarks.workloads import WORKLOADS, Job, Workload, job, trained
from dither.engine import recording
from dither.lab.runs import provenance
from dither.noise import fill
from dither.regulariser.pull import Pull

ASKED = ("R", "R sampled", "GN trace", "GN trace sampled", "step + R", "weights")
SMALL = Workload(
    "mlp64_b32", "MLP 784-64²-10, B 32", lambda: _small(), 32, ("R", "GN trace", "step + R")
)

inside_vmap: Any = torch._remove_batch_dim  # pyright: ignore


class Batched:
    """All columns by `is_grads_batched=True`, in the place of a replay."""

    fits = True

    def __init__(self, z: Tensor, total: int, *, recorded: bool) -> None:
        self.z, self.chunk, self.recorded = z, total, recorded
        self.anchor: Any = None

    def __call__(self, columns: Tensor) -> None:
        keep = {"retain_graph": True, "create_graph": self.recorded, "allow_unused": True}
        torch.autograd.grad(self.z, self.anchor, columns, is_grads_batched=True, **keep)


@contextmanager
def batched() -> Iterator[None]:
    """Autograd's own vmap; the taps tell what it has inside."""
    plan, hear = recording.Graph.plan, recording.Graph._listen

    def planned(self: Any, total: int) -> None:
        plan(self, total)
        if self.replay is not None:
            self.replay.anchor = self.anchor

    def listen(self: Any, columns: Tensor, listener: Any, *, replay: Any, **options: Any) -> None:
        def inside(n: int, g: Any) -> None:  # [1, …] of every column → [K, …]
            if replay is not None and isinstance(g, Tensor):
                g = inside_vmap(g, 1, len(columns), 0).squeeze(1)
            listener(n, g)

        hear(self, columns, inside, replay=replay, **options)

    with (
        mock.patch.object(recording, "Replay", Batched),
        mock.patch.object(recording.Graph, "plan", planned),
        mock.patch.object(recording.Graph, "_listen", listen),
    ):
        yield


def without(where: Any, name: str, value: Any) -> Callable[[], Any]:
    """A part taken away while a call is made."""
    return lambda: mock.patch.object(where, name, value)


VARIANTS: dict[str, Callable[[], Any]] = {
    "autograd, batched": batched,
    "autograd, a loop": without(recording.Graph, "plan", lambda self, total: None),
    "torch's draws": without(fill, "LONG", float("inf")),
    "no certificate": without(Pull, "certify", lambda self, graph, x: None),
}


def row(work: Job, quantity: str, rounds: int) -> dict[str, Any]:
    """{variant: ratio to dither as it is}, with dither's own cost in plain steps."""
    (method,) = (m for m in DITHER if m.quantity == quantity)
    unit = plain(work.own())
    calls = {"as it is": method.build(work.own())}
    for name, change in VARIANTS.items():
        if _touches(name, quantity):
            calls[name] = _within(change, method.build(work.own()))
    found: dict[str, Any] = {}
    working, true = {}, math.nan
    for name, call in calls.items():
        torch.manual_seed(0)
        try:
            value = call()
        except (RuntimeError, ValueError, TypeError) as error:
            found[name] = f"refused: {str(error).splitlines()[0][:60]}"
            continue
        true = value if name == "as it is" and value is not None else true
        if quantity == "weights" or value is None or math.isclose(value, true, rel_tol=1e-3):
            working[name] = call
        else:
            found[name] = f"another number: {value:.4g} instead of {true:.4g}"
    _, timings = clock.interleaved(unit, working, rounds)
    own = timings["as it is"]
    return {
        "as it is": own.cpu.median,
        **found,
        **{n: t.cpu.median / own.cpu.median for n, t in timings.items() if n != "as it is"},
    }


def _touches(variant: str, quantity: str) -> bool:
    return (variant == "torch's draws") == (quantity == "weights")


def _within(change: Callable[[], Any], call: clock.Call) -> clock.Call:
    def changed() -> float | None:
        with change():
            return call()

    return changed


def _small() -> Any:
    from benchmarks import nets

    return nets.mlp(784, 64, 64, 10)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pays", description=__doc__)
    parser.add_argument("--only", help="workloads, by commas", default="")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    clock.alone()
    env = provenance.environment(0.0)
    WORKLOADS.setdefault(SMALL.name, SMALL)
    wanted = [w for w in args.only.split(",") if w] or [SMALL.name, *WORKLOADS]
    lines = [
        f"{env['machine']}; {provenance.versions_line(env)}; one thread; {args.rounds} rounds",
        "",
        "| network | quantity | as it is, plain steps | " + " | ".join(VARIANTS) + " |",
        "|---|---|---|" + "---|" * len(VARIANTS),
    ]
    ratios: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name in dict.fromkeys(wanted):
        workload = WORKLOADS[name]
        trained(workload)
        work = job(workload)
        for quantity in (q for q in workload.costs if q in ASKED):
            found = row(work, quantity, args.rounds)
            for variant in VARIANTS:
                if isinstance(found.get(variant), float):
                    ratios[variant].append(found[variant])
            own = f"{found['as it is']:.3g}"
            told = " | ".join(_told(found.get(variant)) for variant in VARIANTS)
            lines.append(f"| {workload.title} | {quantity} | {own} | {told} |")
            print(lines[-1], flush=True)
    medians = (statistics.median(r) if r else None for r in ratios.values())
    lines.append("| median row | | | " + " | ".join(map(_told, medians)) + " |")
    print(lines[-1])
    path = BENCH / "pays.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _told(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.2f}"


if __name__ == "__main__":
    main()
