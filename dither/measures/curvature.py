"""The trace of the loss' Hessian, or of its Gauss–Newton part, in the parameters.

    tr ∇²L = Σ_W tr ∇²_W L,  tr GN = Σ_W E_batch Σ_c ‖∂⟨S_c, z_i⟩/∂W‖²,   S Sᵀ = ∂²ℓ/∂z²

If the network is linear in each parameter tensor away from kinks (`measures.multilinear`), both are
equal, and the trace is exact at the cost of `explicit`. Else it is estimated by probes, if possible
in activation space (`measures.probes`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dither import loss as losses
from dither.attach.inject import Injection, inject
from dither.calling import check_devices, evaluating, tensors
from dither.errors import DitherError
from dither.estimate import Estimate
from dither.measures.multilinear import alone, multilinear
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

    model      a module, or an Injection of noise on parameters. Of an Injection the trace is over
               its parameters alone, and the next call reuses what an exact trace found out about
               the network.
    loss       as in `explicit`.
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
    batches, each = _batches(data), losses.get(loss)
    noise = model if isinstance(model, Injection) else None
    model = model if noise is None else _parameters_only(noise).model
    parameters = {n: p for n, p in model.named_parameters() if noise is None or n in noise.sites}
    with torch.inference_mode(False), evaluating(model), alone(model):
        _check_differentiable(model)
        _check_real(parameters)
        first = next(_ready(batches), None)
        if first is None:
            raise DitherError("trace needs at least one batch (x, y): got none")
        check_devices(model, *first)
        if settings.of == "gauss_newton" or multilinear(model, first[0]):
            return _exact(noise, model, each, batches)
        probing = partial(_probed, model, parameters, each, batches, seed=settings.seed)
        values = probing(probes=_plan(settings, probing))  # [P, N]
    parts = {name: Estimate.of(row) for name, row in zip(parameters, values, strict=True)}
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
    if precision is not None and not (precision > 0 and math.isfinite(precision)):
        raise DitherError(f"trace: precision is a standard error > 0: got {precision!r}")
    if probes is not None and (not isinstance(probes, int) or probes < 2):
        raise DitherError(
            f"trace: probes is a whole number ≥ 2 (one probe has no spread): got {probes!r}"
        )
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


def _parameters_only(noise: Injection) -> Injection:
    """The injection. Raises DitherError if one of its sites is no parameter."""
    others = [name for name, site in noise.sites.items() if site.side != "parameter"]
    if others:
        raise DitherError(
            f"trace takes a model, or an injection of noise on parameters: {others[0]!r} is an "
            "activation; pass the model, or inject Weight"
        )
    return noise


def _batches(data: Any) -> Iterable[tuple[Any, Tensor]]:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor):
        return [(data[0], data[1])]
    if isinstance(data, Iterator):
        raise DitherError(
            "trace reads the data more than once: got an iterator; pass a list of batches"
        )
    return data


def _ready(batches: Iterable[tuple[Any, Tensor]]) -> Iterator[tuple[Any, Tensor]]:
    """The batches as autograd can save them. Raises DitherError for an empty one."""
    for x, y in batches:
        if len(y) == 0:
            raise DitherError("trace needs at least one sample in a batch: got an empty one")
        yield _savable(x), _savable(y)


def _savable(x: Any) -> Any:
    """Inference tensors as plain copies, others as they are."""
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if not any(t.is_inference() for t in tensors(x)):
        return x
    if isinstance(x, Mapping):
        return {name: _savable(t) for name, t in x.items()}
    return tuple(map(_savable, x))


def _check_differentiable(model: nn.Module) -> None:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_inference():
            raise DitherError(
                f"trace differentiates, but {name!r} was made under torch.inference_mode(): make "
                "or load the model under torch.no_grad() instead"
            )


def _check_real(parameters: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        if p.is_complex():
            raise DitherError(
                f"trace is of real parameters, but {name!r} holds {p.dtype} numbers: keep its real "
                "and imaginary parts as one real parameter (torch.view_as_complex in the forward)"
            )


def _exact(
    noise: Injection | None, model: nn.Module, loss: Any, batches: Iterable[tuple[Any, Tensor]]
) -> Trace:
    """Twice R of weight noise at σ = 1."""
    sums: dict[str, float] = {}
    count = 0
    with (
        inject(model, Weight(1.0), seed=0) if noise is None else _at_one(noise) as unit,
        torch.no_grad(),
    ):
        for x, y in _ready(batches):
            count += len(y)
            for name, part in explicit(unit, x, y, loss).by_site.items():
                sums[name] = sums.get(name, 0.0) + 2 * len(y) * part.item()
    parts = {name: Estimate(s / count, 0.0) for name, s in sums.items()}
    return Trace(sum(p.value for p in parts.values()), 0.0, parts, 0)


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


def _probed(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    loss: Any,
    batches: Iterable[tuple[Any, Tensor]],
    probes: range,
    seed: int,
) -> Tensor:
    """[parameters, probes]: the mean over the data of each probe's estimate."""
    total, count = torch.zeros(()), 0
    for number, (x, y) in enumerate(_ready(batches)):
        total = total + len(y) * probed(model, parameters, loss, x, y, probes, (seed, number))
        count += len(y)
    return total / count
