"""What the numbers are: slow, obviously right, in float64; and whether a method's number is that
one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks.clock import Call
from benchmarks.methods import DENSITY, DIAGONAL, GN_DIAGONAL, LARGEST, spread
from benchmarks.naive import NAIVE, inputs
from benchmarks.noises import BY_HAND
from benchmarks.workloads import Job

CLOSE = 1e-3  # relative, of a float32 computation of many sums
FAR = 4.0  # standard errors
DRAWS, SECONDS = 64, 4.0  # of an estimate that is checked: so many, or so long
PROBES = 400


@dataclass(frozen=True)
class Number:
    """A value and its standard error."""

    value: float
    sem: float = 0.0


def head(job: Job) -> int:
    """How many samples the check is made on."""
    return 8 if job.workload.classes <= 10 else 2


def truth(quantity: str, job: Job) -> Number:
    """R and Gauss–Newton traces exactly, other Hessians' by probes, noise by its naive form."""
    if quantity.startswith(("R", "step")):
        return Number(columns(job, weights=False) / 2)
    if quantity == GN_DIAGONAL:
        return Number(columns(job, weights=True, by=spread(job)))
    if quantity == DIAGONAL:
        return probed(job, spread(job))
    if quantity == LARGEST:
        return Number(largest(job))
    if quantity == DENSITY:
        return squared(job)
    if quantity.startswith("GN") or (quantity == "Hessian trace" and piecewise_linear(job.model)):
        return Number(columns(job, weights=True))
    if quantity == "Hessian trace":
        return probed(job)
    same = "weights" if quantity == "weights two-point" else quantity
    naive = next(m for m in NAIVE + BY_HAND if m.quantity == same)
    return drawn(naive.build(job.own()))


def piecewise_linear(model: nn.Module) -> bool:
    """Whether the trace of the Hessian is that of the Gauss–Newton matrix.   docs/math.md"""
    return not any(isinstance(m, nn.Tanh | nn.GELU | nn.LayerNorm) for m in model.modules())


def columns(job: Job, *, weights: bool, by: list[Tensor] | None = None) -> float:
    """mean_B Σ_c ‖∂⟨S_c, z_i⟩/∂t‖², S_c = √p_c (e_c − p): B·C backward passes of batch 1. `by`: the
    weight of each element's square.
    """
    job = job.own()
    model = job.model.double()
    _, taken = inputs(model)
    total = 0.0
    for x in job.x.split(1):
        z = model(x.double() if x.is_floating_point() else x)
        at = taken()
        p = z[0].detach().softmax(0)
        for c in range(len(p)):
            e = torch.zeros_like(p)
            e[c] = 1
            to = list(model.parameters()) if weights else at
            column = (p[c].sqrt() * (e - p)).unsqueeze(0)
            found = torch.autograd.grad(z, to, column, retain_graph=True, allow_unused=True)
            of = by or [torch.ones(()) for _ in found]
            pairs = [(g, u) for g, u in zip(found, of, strict=True) if g is not None]
            total += sum((g.square() * u).sum().item() for g, u in pairs)
    return total / len(job.y)


def probed(job: Job, by: list[Tensor] | None = None) -> Number:
    """The Hessian's trace by random signs v: mean of vᵀ∇²L v; `by` weighs its diagonal."""
    times, parameters = product(job)
    of = by or [torch.ones(()) for _ in parameters]

    def one() -> float:
        v = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]
        triples = zip(times(v), v, of, strict=True)
        return sum((h * s * u).sum().item() for h, s, u in triples)

    return mean_of([one() for _ in range(PROBES)])


def squared(job: Job) -> Number:
    """The mean λ² of the Hessian by random signs: mean of ‖∇²L v‖²/n."""
    times, parameters = product(job)
    n = sum(p.numel() for p in parameters)

    def one() -> float:
        v = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]
        return sum(h.square().sum().item() for h in times(v)) / n

    return mean_of([one() for _ in range(PROBES)])


def largest(job: Job) -> float:
    """The Hessian's largest eigenvalue, by ARPACK to 10⁻⁸."""
    times, parameters = product(job)
    sizes = [p.numel() for p in parameters]

    def flat(v: Any) -> Any:
        parts = torch.as_tensor(v).flatten().split(sizes)
        shaped = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
        return torch.cat([h.flatten() for h in times(shaped)]).numpy()

    n = sum(sizes)
    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A: Any = LinearOperator((n, n), matvec=flat, dtype="float64")  # pyright: ignore
    how: Any = {"which": "LA", "v0": start.numpy(), "tol": 1e-8, "return_eigenvectors": False}
    return float(eigsh(A, 1, **how)[0])


def product(job: Job) -> tuple[Callable[[list[Tensor]], tuple[Tensor, ...]], list[Tensor]]:
    """(v ↦ ∇²L v, the parameters), in float64."""
    job = job.own()
    model = job.model.double()
    parameters: list[Tensor] = list(model.parameters())
    loss = F.cross_entropy(model(job.x.double()), job.y)
    slope = torch.autograd.grad(loss, parameters, create_graph=True)

    def times(v: list[Tensor]) -> tuple[Tensor, ...]:
        along = torch.stack([(g * s).sum() for g, s in zip(slope, v, strict=True)]).sum()
        return torch.autograd.grad(along, parameters, retain_graph=True)

    return times, parameters


def drawn(call: Call) -> Number:
    """The mean of what an estimate returns."""
    start, values = time.perf_counter(), []
    while len(values) < DRAWS and (len(values) < 8 or time.perf_counter() - start < SECONDS):
        values.append(_told(call))
    return mean_of(values)


def _told(call: Call) -> float:
    value = call()
    assert value is not None, "only a plain step has no number"
    return value


def mean_of(values: list[float]) -> Number:
    """Their mean and its standard error."""
    return Number(statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5)


def verdict(found: Number, true: Number) -> dict[str, float | str]:
    """How far a number is from the true one: relative, or in standard errors of both."""
    error = abs(found.value - true.value) / abs(true.value)
    said: dict[str, float | str] = {"found": found.value, "true": true.value, "error": error}
    sem = math.hypot(found.sem, true.sem)
    if not math.isfinite(found.value):
        return {**said, "verdict": "another number: not finite"}
    if sem > CLOSE * abs(true.value):
        said["z"] = z = abs(found.value - true.value) / sem
        agrees = z < FAR
    else:
        agrees = error < CLOSE
    if agrees:
        return {**said, "verdict": "same"}
    return {**said, "verdict": f"another number: {found.value:.4g} instead of {true.value:.4g}"}


def check(
    build: Callable[[Job], Call], job: Job, exact: bool, true: Number
) -> dict[str, float | str]:
    """A method's number on a few samples against the true one."""
    call = build(job.own())
    return verdict(Number(_told(call)) if exact else drawn(call), true)
