"""The diagonal of the loss's Hessian, or of its Gauss–Newton matrix, weight by weight.

    diag GN_w = E_batch Σ_c (∂⟨S_c, z_i⟩/∂w)²,     S Sᵀ = ∂²ℓ/∂z²
    diag ∇²L_w = ∂²L/∂w² = diag GN_w + E_batch Σ_c ∂ℓ/∂z_c ∂²z_c/∂w²

Both are equal if the network is linear in each parameter tensor away from kinks
(`measures.multilinear`): z is then affine in every single weight. Else the Hessian's is estimated.
Where z = W a is used once, not W is probed but the curvature Φ_i = ∂²ℓ_i/∂z∂z of each sample:

    one position       s∘Φ_i s estimates diag Φ_i,  ∂²ℓ_i/∂W_oj² = (Φ_i)_oo a_ij²
    many               v_t = S a_t,  S∘Σ_t (Φ v)_t a_tᵀ with signs S = diag(s) V diag(r)

Signs s, r are of each sample's own, so that the spread is one sample's over √B. All other
parameters are probed directly, v∘∇²L v (Hutchinson 1989; Bekas, Kokiopoulou & Saad 2007). Proof:
docs/math.md, §20.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dither.attach.inject import Injection
from dither.engine.ghost import Gradient, Use
from dither.engine.kinds import Convolution, Outer, Scale
from dither.errors import DitherError, check_whole
from dither.measures.curvature import unit_noise
from dither.measures.multilinear import multilinear
from dither.measures.over import Over, over
from dither.measures.probes import (
    FOLDED,
    Curved,
    ProbePoint,
    patch_products,
    patch_signs,
    probing,
)
from dither.noise.draw import key
from dither.precision import wide
from dither.regulariser.explicit import explicit_at_unit
from dither.regulariser.pull import Pull, Shares
from dither.signs import signs

__all__ = ["Diagonal", "diagonal"]

MATRICES = ("hessian", "gauss_newton")
PROBES = 16
Reading = Callable[[Tensor], Tensor]  # ∇²L v at a probe → the estimate, in a parameter's shape


class Diagonal(NamedTuple):
    """The diagonal over a data set, {parameter: tensor of its shape}: `value`, and the standard
    error `sem` of each entry over the probes (0 if exact).

    probes: the number of probes, or of sampled columns, of each batch (0 if exact).
    """

    value: dict[str, Tensor]
    sem: dict[str, Tensor]
    probes: int

    @property
    def exact(self) -> bool:
        """Whether nothing was drawn."""
        return self.probes == 0


def diagonal(
    model: nn.Module | Injection,
    loss: Any,
    data: Any,
    *,
    matrix: str = "hessian",
    samples: int | None = None,
    probes: int = PROBES,
    seed: int = 0,
) -> Diagonal:
    """Diagonal of ∇²_W L, or of its Gauss–Newton matrix, of the mean loss over a data set; in eval
    mode, without noise. Its sum is `measures.trace`.

    model      a module, or an Injection of noise on parameters: then those parameters alone. A call
               asks where the samples are, which on a small batch costs more than the rest; of an
               Injection the next call reuses what an exact one found.
    loss       as in `explicit`.
    data       (x, y) or [x, y], or an iterable of such batches that can be read again, as in
               `trace`.
    matrix     "hessian" or "gauss_newton" (never negative for a loss that is convex in the
               outputs). The Hessian's is exact where it is the Gauss–Newton diagonal, as in ReLU
               networks of linear layers, convolutions and max-pooling; else it is estimated.
    samples    of the Gauss–Newton matrix only. None: exact, all columns of √H. n ≥ 2: from n random
               columns Σ_c ±S_c, unbiased, with the standard error over them.
    probes     of a Hessian that is not exact: how many each batch gets, ≥ 2.

    Entries are in the units of loss/parameter², in the parameter's type (half types in single).
    Cost: exact, C − 1 columns (times the positions of a sequence), each about a plain step where
    weights are shared over positions, and much less where they are not; a sampled column about 1.5
    plain steps; a probe about 2. Memory: two tensors for each parameter if exact, six if not.
    Raises DitherError as `trace` does, and for samples of a Hessian.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 1)
    >>> diagonal(net, "half_square", (x, y)).value["weight"]  # E x_j²
    tensor([[5., 2.]])
    """
    _check(matrix, samples, probes)
    with over("diagonal", model, loss, data) as o:
        if matrix == "gauss_newton" or multilinear(o.model, o.first[0]):
            return _gauss_newton(o, samples, seed)
        means = Means(o.parameters)
        for number, (x, y) in enumerate(o.batches):
            with probing("diagonal", o.model, o.parameters, o.loss, x, y) as curved:
                for probe in range(probes):
                    words = (seed, number, probe)
                    generator = torch.Generator(curved.device).manual_seed(key(*words))
                    means.add(_probe(curved, generator))
            means.close(len(y))
    return means.diagonal(probes)


def _check(matrix: str, samples: Any, probes: Any) -> None:
    """Raises DitherError for settings that make no sense."""
    if matrix not in MATRICES:
        raise DitherError(f"diagonal: matrix is 'hessian' or 'gauss_newton': got {matrix!r}")
    if samples is not None and matrix == "hessian":
        raise DitherError(
            f"diagonal: samples are of matrix='gauss_newton': got samples={samples!r} of a "
            "Hessian; give probes"
        )
    for name, n in (("samples", samples), ("probes", probes)):
        if n is not None:
            check_whole(f"diagonal: {name}", n, 2, "one has no spread")


class Means:
    """Means and standard errors over draws, entry by entry, then over batches by their size."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        def zeros() -> dict[str, Tensor]:
            return {n: torch.zeros_like(wide(p.detach())) for n, p in parameters.items()}

        self.zeros = zeros
        self.value, self.variance, self.batches = zeros(), zeros(), 0
        self.mean, self.square, self.draws = zeros(), zeros(), 0

    def add(self, draw: dict[str, Tensor]) -> None:
        """One draw of a batch (Welford's update); what it lacks is 0."""
        self.draws += 1
        for name, mean in self.mean.items():
            found = draw.get(name)
            off = (-mean if found is None else found.to(mean.dtype) - mean).detach()
            mean += off / self.draws
            self.square[name] += off * (off * (1 - 1 / self.draws))

    def close(self, size: int) -> None:
        """A batch of `size` samples has had all its draws."""
        n = self.draws
        self.batches += size
        for name, mean in self.mean.items():
            self.value[name] += size * mean
            self.variance[name] += size**2 * self.square[name] / (n * max(n - 1, 1))
        self.mean, self.square, self.draws = self.zeros(), self.zeros(), 0

    def diagonal(self, probes: int) -> Diagonal:
        value = {n: v / self.batches for n, v in self.value.items()}
        sem = {n: v.sqrt() / self.batches for n, v in self.variance.items()}
        return Diagonal(value, sem, probes)


# ---------------------------------------------------------------------------------- Gauss–Newton


def _gauss_newton(o: Over, samples: int | None, seed: int) -> Diagonal:
    on = {p.device.index for p in o.parameters.values() if p.is_cuda}
    with unit_noise(o) as unit, torch.no_grad():
        if samples is None:
            return _exact(o, unit)
        means = Means(o.parameters)
        with torch.random.fork_rng(on):
            for number, (x, y) in enumerate(o.batches):
                for draw in range(samples):
                    torch.manual_seed(key(seed, number, draw))
                    totals = _squares(o, unit, x, y, 1)
                    means.add({name: total / len(y) for name, total in totals.items()})
                means.close(len(y))
    return means.diagonal(samples)


def _exact(o: Over, unit: Injection) -> Diagonal:
    zeros = {n: torch.zeros_like(wide(p.detach())) for n, p in o.parameters.items()}
    value, count = dict(zeros), 0
    for x, y in o.batches:
        count += len(y)
        for name, total in _squares(o, unit, x, y, None).items():
            total = total.to(zeros[name].dtype)
            value[name] = total if value[name] is zeros[name] else value[name].add_(total)
    value = {n: v if v is zeros[n] else v.div_(count) for n, v in value.items()}
    return Diagonal(value, {n: torch.zeros_like(z) for n, z in zeros.items()}, 0)


def _squares(o: Over, unit: Injection, x: Any, y: Tensor, samples: int | None) -> dict[str, Tensor]:
    """{parameter: Σ_i Σ_c g_ci∘g_ci} of a batch; those without a gradient are left out."""
    of: dict[str, Tensor] = {}
    explicit_at_unit(unit, x, y, o.loss, samples, kind=partial(Squares, of))
    return of


class Squares(Pull):
    """The pull of R with `of`, {parameter: Σ_c ± Σ_i g_ci∘g_ci}, weight by weight."""

    def __init__(self, of: dict[str, Tensor], *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        self.of = of

    def summed(self, *given: Any) -> Any:
        self.of.clear()  # an attempt before may have been given up half way
        return super().summed(*given)

    @torch.no_grad()
    def add_parameter(
        self, shares: Shares, name: str, g: Any, leaf: dict[str, Tensor], sign: list[float]
    ) -> None:
        if isinstance(g, Gradient):
            found = g.squares(sign)
        else:  # [K, B, *shape]
            found = torch.tensordot(g.new_tensor(sign), wide(g).square().sum(1), 1)
        self.of[name] = self.of[name].add_(found) if name in self.of else found


# --------------------------------------------------------------------------------------- Hessian


def _probe(curved: Curved, generator: torch.Generator) -> dict[str, Tensor]:
    """One estimate of each parameter's diagonal."""
    v: dict[int, Tensor] = {}
    readings: dict[int, dict[str, Reading]] = {}
    for point in curved.places.kept:
        v[id(point.probe)], readings[id(point.probe)] = _drawn(point, generator)
    for name, p in curved.bare.items():
        v[id(p)] = signs(p, generator)
        readings[id(p)] = {name: partial(torch.mul, v[id(p)])}
    return {
        name: read(hv.detach())
        for at, hv in curved.times(v).items()
        for name, read in readings[at].items()
    }


def _drawn(point: ProbePoint, generator: torch.Generator) -> tuple[Tensor, dict[str, Reading]]:
    """(v, how each parameter's diagonal is read from Φ v) behind a product."""
    layout = point.layouts[0]
    probe = layout.first(point.probe.detach())
    draw = _channels if point.features > 1 else _one if _positions(probe) == 1 else _many
    v, readings = draw(point, probe, generator)
    whole = {name: _composed(read, layout.first) for name, read in readings.items()}
    if layout.way in FOLDED:
        return (v if layout.way == "major" else v.transpose(0, 1)).flatten(0, 1), whole
    return v.movedim(0, layout.at), whole


def _composed(read: Reading, first: Reading) -> Reading:
    return lambda hv: read(first(hv))


def _positions(t: Tensor) -> int:
    """T of [B, …, O]."""
    return math.prod(t.shape[1:-1])


def _one(point: ProbePoint, probe: Tensor, generator: torch.Generator) -> Any:
    """One position: diag Φ_i, which all parameters there share, times (∂z/∂w)²."""
    s = signs(probe, generator)

    def read(use: Use, hv: Tensor) -> Tensor:
        phi = (s * hv).flatten(1)  # [B, O]
        if isinstance(use.kind, Outer):
            w = phi.mT @ _operand(point, use).flatten(1).square()
            return (w.mT if use.kind.transposed else w).reshape(use.shape)
        if isinstance(use.kind, Scale):
            phi = phi * _operand(point, use).flatten(1).square()
        return phi.sum(0).reshape(use.shape)

    return s, {use.name: partial(read, use) for use in point.uses}


def _many(point: ProbePoint, probe: Tensor, generator: torch.Generator) -> Any:
    """Positions t: v_t = S a_t for a matrix, s for a bias, s∘a_t for a scale."""
    v, readings = torch.zeros_like(probe), {}
    for use in point.uses:
        s = signs(probe.new_empty(len(probe), *[1] * (probe.dim() - 2), probe.shape[-1]), generator)
        if isinstance(use.kind, Outer):
            a = _operand(point, use)
            r = signs(a.new_empty(len(a), *[1] * (a.dim() - 2), a.shape[-1]), generator)
            V = signs(a.new_empty(probe.shape[-1], a.shape[-1]), generator)
            v = v + s * F.linear(r * a, V)
            readings[use.name] = partial(_matrix, use, V, s, r * a)
        else:
            part = s * _operand(point, use) if isinstance(use.kind, Scale) else s.expand_as(probe)
            v = v + part
            readings[use.name] = partial(_vector, use, part, -1)
    return v, readings


def _matrix(use: Use, V: Tensor, s: Tensor, ra: Tensor, hv: Tensor) -> Tensor:
    """S∘Σ_t (Φ v)_t a_tᵀ, summed over samples."""
    w = V * ((s * hv).flatten(0, -2).mT @ ra.flatten(0, -2))
    return (w.mT if use.kind.transposed else w).reshape(use.shape)  # pyright: ignore


def _vector(use: Use, v: Tensor, along: int, hv: Tensor) -> Tensor:
    """v∘Φ v, summed over all but the parameter's dimension."""
    return (v * hv).movedim(along, -1).flatten(0, -2).sum(0).reshape(use.shape)


def _channels(point: ProbePoint, probe: Tensor, generator: torch.Generator) -> Any:
    """[B, O, positions…]: v_t = s ⟨patch_t, r⟩ for a kernel."""
    v, readings = torch.zeros_like(probe), {}
    for use in point.uses:
        s = signs(probe.new_empty(*probe.shape[:2], *[1] * (probe.dim() - 2)), generator)
        if isinstance(use.kind, Convolution):
            r = patch_signs(use, generator)
            products = patch_products(use.kind, r)
            part = s * products.repeat_interleave(probe.shape[1] // products.shape[1], 1)
            readings[use.name] = partial(_kernel, point, use, s, r)
        else:
            part = s * use.kind.a if isinstance(use.kind, Scale) else s.expand_as(probe)
            readings[use.name] = partial(_vector, use, part, 1)
        v = v + part
    return v, readings


def _kernel(point: ProbePoint, use: Use, s: Tensor, r: Tensor, hv: Tensor) -> Tensor:
    """Σ_i S_i∘Σ_t (Φ v)_it patch_itᵀ: the signs r are put on the patches where these are had."""
    layout, kind = point.layouts[0], use.kind
    pair = kind.pairs(s * hv, layout, use.shape)
    if pair is not None:
        a, g = pair  # [B, groups, T, I], [B, groups, T, O]
        a = a * r.view(len(a), a.shape[1], 1, -1)
        g, a = (t.transpose(0, 1).flatten(1, 2) for t in (g, a))  # [groups, B·T, …]
        return (g.mT @ a).reshape(use.shape)
    w = kind.dense(s * hv, layout, use.shape)  # [B, O, I/groups, …]
    r = r.view(len(w), -1, *r.shape[1:])
    return (w * r.repeat_interleave(w.shape[1] // r.shape[1], 1)).sum(0)


def _operand(point: ProbePoint, use: Use) -> Tensor:
    """A [B, …] of a product or a scale."""
    return point.layouts[0].first(use.kind.a)
