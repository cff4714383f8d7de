"""The trace of the loss' Hessian, or of its Gauss–Newton part, in the parameters.

    tr ∇²L = Σ_W tr ∇²_W L,  tr GN = Σ_W E_batch Σ_c ‖∂⟨S_c, z_i⟩/∂W‖²,   S Sᵀ = ∂²ℓ/∂z²

If the network is linear in each parameter tensor away from kinks (`measures.multilinear`), both are
equal, and the trace is exact at the cost of `explicit`. Else it is estimated by probes, if possible
in activation space (`measures.probes`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dither.attach.inject import Injection
from dither.attach.reading import probing
from dither.errors import DitherError, check_whole, is_number
from dither.estimate import Estimate
from dither.measures.multilinear import multilinear
from dither.measures.over import Over, over
from dither.measures.probes import probed
from dither.noise.noises import Weight
from dither.regulariser.explicit import explicit
from dither.text import grid, html

__all__ = ["Trace", "trace"]

PILOT = 16  # probes whose spread says how many are needed; their values are not used
STEIN = (PILOT - 1) / (PILOT - 3)  # E t² of Student's t at the pilot's PILOT − 1 degrees of freedom


class Trace(NamedTuple):
    """The trace over a data set: `value`, and the standard error `sem` over its probes (0 if
    exact).

    by_parameter: {name: Estimate}; probes: the number of probes of each batch (0 if exact).
    """

    value: float
    sem: float
    by_parameter: dict[str, Estimate]
    probes: int

    def __str__(self) -> str:
        error = "exact" if self.exact else f"{self.probes} probes"
        rows = [("parameter", "trace"), *((n, str(e)) for n, e in self.by_parameter.items())]
        return "\n".join([f"trace {Estimate(self.value, self.sem)} ({error})", *grid(rows)])

    def _repr_html_(self) -> str:
        title, _, *_ = str(self).splitlines()
        rows = [(name, str(part)) for name, part in self.by_parameter.items()]
        return html(("parameter", "trace"), rows, title)

    @property
    def exact(self) -> bool:
        """Whether no probe was needed."""
        return self.probes == 0

    @property
    def by_layer(self) -> dict[str, float]:
        """{module name: trace over its own parameters}."""
        sums: dict[str, float] = {}
        for name, part in self.by_parameter.items():
            layer = name.rpartition(".")[0]
            sums[layer] = sums.get(layer, 0.0) + part.value
        return sums


def trace(
    model: nn.Module | Injection,
    loss: Any,
    data: Any,
    *,
    of: str = "hessian",
    precision: float | None = None,
    probes: int | None = None,
    limit: int = 4096,
    seed: int = 0,
) -> Trace:
    """Trace of ∇²_W L of the mean loss over a data set, per parameter; in eval mode, without noise.

    model      a module: over all its parameters, frozen ones too. Or an Injection of noise on
               parameters: over these alone, and the next call reuses what an exact trace found out
               about the network.
    loss       as in `explicit`, and so is the output found that it is of.
    data       (x, y) or [x, y], or an iterable of such batches that can be read twice (a list, a
               DataLoader without shuffling). The weight of a batch is its number of samples, also
               if the loss divides by another count (ignored positions, class weights).
    of         "hessian" or "gauss_newton" (never negative, always exact).
    precision  the root mean square error to reach, in the units of the trace. Two stages (Stein
               1945): the spread s of a pilot of 16 probes gives N = E[t²] s²/precision² ≥ 16, and
               value and sem come from N other probes alone. So N is independent of their values.
               The sem of one call may be somewhat above or below.
    probes     how many probes a batch gets, ≥ 2, in place of a precision (default 16).

    Cost: exact, C − 1 columns of √H, each a third to a half of a plain step; the first call takes
    one step more, to find the batch dimension of each product. A probe: about 1.5 steps.
    Raises DitherError if `limit` probes would not reach the precision, if the data or a batch is
    empty, or if the model was made under torch.inference_mode().
    """
    settings = _settings(of, precision, probes, limit, seed)
    with over("trace", model, loss, data) as o:
        if settings.of == "gauss_newton" or multilinear(o.model, o.first[0]):
            return _exact(o)
        probing = partial(_probed, o, seed=settings.seed)
        values = probing(probes=_plan(settings, probing))  # [P, N]
    parts = {name: Estimate.of(row) for name, row in zip(o.parameters, values, strict=True)}
    total = Estimate.of(values.sum(0))
    return Trace(total.value, total.sem, parts, values.shape[1])


class Settings(NamedTuple):
    """How a trace is estimated."""

    of: str
    precision: float | None
    probes: int
    limit: int
    seed: int


def _settings(
    of: str, precision: float | None, probes: int | None, limit: int, seed: int
) -> Settings:
    """The settings, checked. Raises DitherError for bad ones."""
    if of not in ("hessian", "gauss_newton"):
        raise DitherError(f"trace: of is 'hessian' or 'gauss_newton': got {of!r}")
    if precision is not None and probes is not None:
        raise DitherError(
            f"trace takes a precision or a number of probes: got {precision!r} and {probes!r}; "
            "give one of them"
        )
    good = is_number(precision) and precision > 0 and math.isfinite(precision)
    if precision is not None and not good:
        raise DitherError(f"trace: precision is a standard error > 0: got {precision!r}")
    if probes is not None:
        check_whole("trace: probes", probes, 2, "one has no spread")
    return Settings(of, precision, PILOT if probes is None else probes, limit, seed)


def _plan(settings: Settings, probing: Callable[..., Tensor]) -> range:
    """The numbers of the probes: as many as asked for, or as the precision needs by a pilot."""
    if settings.precision is None:
        return range(settings.probes)
    pilot = probing(probes=range(PILOT)).sum(0)
    need = max(PILOT, math.ceil(STEIN * pilot.var().item() / settings.precision**2))
    if need > settings.limit:
        raise DitherError(
            f"trace: a standard error of {settings.precision:g} needs about {need} probes, and the "
            f"limit is {settings.limit}: ask for a larger error, or raise limit"
        )
    return range(PILOT, PILOT + need)


def _exact(o: Over) -> Trace:
    """Twice R of weight noise at σ = 1."""
    sums: dict[str, float] = {}
    count = 0
    with unit_noise(o) as unit, torch.no_grad():
        for x, y in o.batches:
            count += len(y)
            for name, part in explicit(unit, x, y, o.loss).by_site.items():
                sums[name] = sums.get(name, 0.0) + 2 * len(y) * part.item()
    parts = {name: Estimate(s / count, 0.0) for name, s in sums.items()}
    return Trace(sum(p.value for p in parts.values()), 0.0, parts, 0)


def unit_noise(o: Over) -> AbstractContextManager[Injection]:
    """Weight noise of σ = 1 on the parameters; on those of an injection it is that injection."""
    return probing(o.model, Weight(1.0), seed=0) if o.noise is None else _at_one(o.noise)


@contextmanager
def _at_one(noise: Injection) -> Iterator[Injection]:
    """The injection with Weight(1.0) on each of its parameters at every step."""
    before = [site.noise for site in noise.sites.values()], noise.draws
    noise.draws = replace(noise.draws, draw="each")
    for site in noise.sites.values():
        site.noise = Weight(1.0)
    try:
        yield noise
    finally:
        noise.draws = before[1]
        for site, was in zip(noise.sites.values(), before[0], strict=True):
            site.noise = was


def _probed(o: Over, probes: range, seed: int) -> Tensor:
    """[parameters, probes]: the mean over the data of each probe's estimate."""
    total, count = torch.zeros(()), 0
    for number, (x, y) in enumerate(o.batches):
        found = probed(o.model, o.parameters, o.loss, x, y, probes, (seed, number))
        total, count = total + len(y) * found, count + len(y)
    return total / count
