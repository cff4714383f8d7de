"""What a method is, and dither's way to each quantity.

A method is built on a job of its own, outside the clock, and gives a call; the call returns the
number. R is at σ = 1, traces are of the mean over the batch; noise is timed at σ = .01 for weights
and .1 for activations, forward and backward. A diagonal d is told by ⟨u, d⟩ with fixed weights u,
so that each entry counts; a density by its mean λ².
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clock import Call
from benchmarks.workloads import Job, Workload
from dither import Additive, Weight, explicit, inject
from dither.attach.inject import DrawMode
from dither.measures.curvature import trace
from dither.measures.densities import density
from dither.measures.diagonals import diagonal
from dither.measures.eigen import eigenvalues
from dither.noise import two_point

WEIGHT, ACTIVATION = 0.01, 0.1  # σ
PROBES = 10
RUNS, STEPS = 4, 32  # probes of a density, and products for each
TOLERANCE = 1e-4  # of an eigenvalue's residual, relative


@dataclass(frozen=True)
class Method:
    """`who` computes `quantity` by `how`; `exact` or an estimate; `only` names the workloads it is
    fit for (all: empty).
    """

    quantity: str
    who: str
    how: str
    build: Callable[[Job], Call]
    exact: bool = True
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.quantity} | {self.who}: {self.how}"

    def claims(self, workload: Workload) -> bool:
        """Whether it is to be measured there."""
        return self.quantity in workload.costs and (not self.only or workload.name in self.only)


def plain(job: Job) -> Call:
    """One forward and backward: the unit."""

    def call() -> None:
        clear(job.model)
        F.cross_entropy(job.model(job.x), job.y).backward()

    return call


def clear(model: nn.Module) -> None:
    """No gradients, as an optimiser leaves them."""
    for p in model.parameters():
        p.grad = None


def _value(noise: Any, samples: int | None, scale: float = 1.0) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        sites = inject(job.model, noise, seed=0)

        def call() -> float:
            with torch.no_grad():
                return scale * explicit(sites, job.x, job.y, samples=samples).R.item()

        return call

    return build


def _step(samples: int | None) -> Callable[[Job], Call]:
    """A training step on loss + R."""

    def build(job: Job) -> Call:
        sites = inject(job.model, Additive(1.0), seed=0)

        def call() -> float:
            clear(job.model)
            loss, R, _ = explicit(sites, job.x, job.y, samples=samples)
            (loss + R).backward()
            return R.item()

        return call

    return build


def noisy(noise: Any, draw: DrawMode = "each") -> Callable[[Job], Call]:
    """A plain step with noise."""

    def build(job: Job) -> Call:
        inject(job.model, noise, seed=0, draw=draw, when="always")
        return returning(job)

    return build


def returning(job: Job) -> Call:
    """The plain step, and its loss."""

    def call() -> float:
        clear(job.model)
        loss = F.cross_entropy(job.model(job.x), job.y)
        loss.backward()
        return loss.item()

    return call


def _hessian(job: Job) -> Call:
    seed, sites = itertools.count(), inject(job.model, Weight(1.0))

    def call() -> float:
        return trace(sites, "cross_entropy", (job.x, job.y), probes=PROBES, seed=next(seed)).value

    return call


def spread(job: Job) -> list[Tensor]:
    """U of each parameter, U(0, 1)."""
    rng = torch.Generator().manual_seed(0)
    return [torch.rand(p.shape, generator=rng) for p in job.model.parameters()]


def _diagonal(matrix: str, **how: int) -> Callable[[Job], Call]:
    def build(job: Job) -> Call:
        seed, u, sites = itertools.count(), spread(job), inject(job.model, Weight(1.0))

        def call() -> float:
            now: dict[str, Any] = {"matrix": matrix, "seed": next(seed), **how}
            found = diagonal(sites, "cross_entropy", (job.x, job.y), **now)
            parts = zip(found.value.values(), u, strict=True)
            return sum((d * w).sum().item() for d, w in parts)

        return call

    return build


def _largest(job: Job) -> Call:
    seed = itertools.count()

    def call() -> float:
        how = {"tolerance": TOLERANCE, "seed": next(seed)}
        return eigenvalues(job.model, "cross_entropy", (job.x, job.y), **how).value.item()

    return call


def _density(job: Job) -> Call:
    seed = itertools.count()

    def call() -> float:
        how: dict[str, Any] = {"probes": RUNS, "steps": STEPS, "seed": next(seed)}
        found = density(job.model, "cross_entropy", (job.x, job.y), **how)
        return (found.weights * found.nodes.square()).sum(1).mean().item()

    return call


GN_DIAGONAL, DIAGONAL = "GN diagonal", "Hessian diagonal"
LARGEST, DENSITY = "largest eigenvalue", "density"
DITHER = (
    Method("R", "dither", "explicit", _value(Additive(1.0), None)),
    Method("R sampled", "dither", "explicit, samples=1", _value(Additive(1.0), 1), exact=False),
    Method("GN trace", "dither", "explicit, Weight", _value(Weight(1.0), None, 2.0)),
    Method(
        "GN trace sampled",
        "dither",
        "explicit, Weight, samples=1",
        _value(Weight(1.0), 1, 2.0),
        exact=False,
    ),
    Method("step + R", "dither", "explicit", _step(None)),
    Method("step + R sampled", "dither", "explicit, samples=1", _step(1), exact=False),
    Method(
        "Hessian trace",
        "dither",
        f"trace (exact where it can be, else {PROBES} probes)",
        _hessian,
        exact=False,
    ),
    Method(GN_DIAGONAL, "dither", "diagonal", _diagonal("gauss_newton")),
    Method(
        DIAGONAL,
        "dither",
        f"diagonal, {PROBES} probes",
        _diagonal("hessian", probes=PROBES),
        exact=False,
    ),
    Method(LARGEST, "dither", "eigenvalues", _largest),
    Method(DENSITY, "dither", f"density, {RUNS} × {STEPS} products", _density, exact=False),
    Method("weights", "dither", "Weight", noisy(Weight(WEIGHT)), exact=False),
    Method(
        "weights two-point",
        "dither",
        "Weight, two_point",
        noisy(Weight(WEIGHT, two_point)),
        exact=False,
    ),
    Method(
        "weights cycle",
        "dither",
        "Weight, draw='cycle'",
        noisy(Weight(WEIGHT), "cycle"),
        exact=False,
    ),
    Method("activations", "dither", "Additive", noisy(Additive(ACTIVATION)), exact=False),
)
