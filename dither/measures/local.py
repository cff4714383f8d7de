"""Local gradient and Hessian of the loss at a noise's site, and the terms R_k.

    g_i = ∇_z ℓ_i,  H = ⟨∇_z ∇_zᵀ ℓ_i⟩     at the site's tensor z; ⟨·⟩: the batch mean   Levi eq. 5
    R_k = ⟨(δ_i·∇_z)^k ℓ_i⟩ / k!,  δ_i = ε_i W_NI                                       Levi eq. 3
    ⟨ℓ(z + δ)⟩ = ⟨ℓ⟩ + Σ_k R_k     if ℓ is analytic; kinks (ReLU) add terms that are in no R_k

H is the Hessian in a displacement that the whole batch shares. It governs the node's weights: E R₂
= ½σ² W_NIᵀ H W_NI, so that gradient descent multiplies W_NI by 1 − ησ²H. H is computed as its
Gauss–Newton part ⟨Σ_c g_c g_cᵀ⟩, which is exact for piecewise linear networks away from kinks, or
in full.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dither import loss as losses
from dither import noise as noises
from dither.attach.inject import Injection
from dither.attach.reading import reading
from dither.attach.site import Site
from dither.calling import evaluating, output
from dither.errors import DitherError, check_whole
from dither.estimate import Estimate
from dither.noise.draw import Source, key
from dither.noise.here import Here, spread
from dither.noise.noises import Node
from dither.plain import thrice, twice

__all__ = ["Local", "Term", "local", "norms", "series", "terms"]


def norms(noise: Injection) -> dict[str, float]:
    """{site: ‖W_NI‖} of each node. Several vectors of a site count as one vector."""
    return {
        site: float(noise.nodes[site.replace(".", "/")].detach().norm())
        for site, s in noise.sites.items()
        if isinstance(s.noise, Node)
    }


@dataclass(frozen=True, eq=False)
class Local:
    """One site and one batch, with d features. Those of a pixel map are all its pixels.

    gradient  ⟨g⟩ [d]
    square    ⟨‖g‖²⟩, in units of loss/z²
    values    the eigenvalues of H, in decreasing order, without those that are 0 by rank
    vectors   their eigenvectors, [d, …]
    top, trace   the largest eigenvalue and the trace of H
    """

    gradient: Tensor
    square: float
    values: Tensor
    vectors: Tensor

    @property
    def top(self) -> float:
        return float(self.values[0]) if len(self.values) else 0.0

    @property
    def trace(self) -> float:
        return float(self.values.sum())

    def along(self, w: Tensor) -> float:
        """wᵀ H w for w [d]."""
        return float((self.values * (self.vectors.mT @ w.flatten()).square()).sum())


def local(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    curvature: str = "gauss_newton",
) -> dict[str, Local]:
    """{site: Local} of the activation sites of a noise. The noise is off, the model in eval mode.

    curvature  "gauss_newton": C − 1 pull-backs and an eigenproblem of min(d, B(C − 1)) rows.
               "full": d double backwards and one of d rows.
    Raises DitherError for an unknown curvature and sites that are parameters.
    """
    if curvature not in ("gauss_newton", "full"):
        raise DitherError(f"curvature is 'gauss_newton' or 'full': got {curvature!r}")
    each, sites = losses.get(loss), _sites(noise)
    probe = _Shared(noise) if curvature == "full" else Each(noise)
    with evaluating(noise.model), torch.enable_grad(), reading(noise, probe), twice(True):
        z = output(noise.model, x)
        if missing := [s.name for s in sites if s.name not in probe.at]:
            raise DitherError(
                f"local: the model never calls {', '.join(map(repr, missing))}; take that site out"
            )
        at = [probe.at[s.name] for s in sites]
        value = each.per_sample(z, y)
        full = curvature == "full"
        slopes = torch.autograd.grad(value.sum(), at, create_graph=full, retain_graph=True)
        if full:
            hessians = [_full(u, g / len(y)) for u, g in zip(at, slopes, strict=True)]
            squares = _squares(noise, sites, x, y, each)
        else:
            hessians = _gauss_newton(z, at, each.columns(z.detach(), y))
            squares = [float(g.flatten(1).square().sum(1).mean()) for g in slopes]
    means = [g.detach() / len(y) if full else g.mean(0) for g in slopes]
    return {
        s.name: Local(g.flatten(), square, *pair)
        for s, g, square, pair in zip(sites, means, squares, hessians, strict=True)
    }


def _gauss_newton(z: Tensor, at: list[Tensor], columns: Any) -> list[tuple[Tensor, Tensor]]:
    """Eigenpairs of ⟨Σ_c ± g_c g_cᵀ⟩ at each site, through the smaller of the two Gram matrices."""
    rows: list[list[Tensor]] = [[] for _ in at]
    for sign, column in columns:
        if sign < 0:
            raise DitherError(
                "local: this loss is not convex in the outputs: pass curvature='full'"
            )
        for mine, g in zip(
            rows, torch.autograd.grad(z, at, column, retain_graph=True), strict=True
        ):
            mine.append(g.flatten(1) / math.sqrt(len(g)))
    return [_principal(torch.cat(mine).double()) for mine in rows]  # [K·B, d]


def _principal(g: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of gᵀg, largest first."""
    if g.shape[0] < g.shape[1]:
        values, left = torch.linalg.eigh(g @ g.mT)
        kept = values > values[-1].clamp(min=1e-300) * 1e-12
        values, left = values[kept].flip(0), left[:, kept].flip(1)
        return values, g.mT @ left / values.sqrt()
    values, vectors = torch.linalg.eigh(g.mT @ g)
    return values.flip(0), vectors.flip(1)


def _full(u: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenpairs of ∇²_u ⟨ℓ⟩, one double backward a row."""
    rows = (
        [torch.autograd.grad(entry, u, retain_graph=True)[0].flatten() for entry in slope.flatten()]
        if slope.requires_grad
        else [torch.zeros_like(u).flatten() for _ in range(u.numel())]
    )
    h = torch.stack(rows).double()
    values, vectors = torch.linalg.eigh((h + h.mT) / 2)
    return values.flip(0), vectors.flip(1)


def _squares(noise: Injection, sites: list[Site], x: Any, y: Tensor, each: Any) -> list[float]:
    with reading(noise, probe := Each(noise)):
        value = each.per_sample(output(noise.model, x), y).sum()
    slopes = torch.autograd.grad(value, [probe.at[s.name] for s in sites])
    return [float(g.flatten(1).square().sum(1).mean()) for g in slopes]


# ------------------------------------------------------------------------------------------ R_k


class Term(NamedTuple):
    """R_k of one batch, over draws of ε: the mean, and the standard deviation of one draw."""

    mean: float
    sd: float


def terms(
    noise: Injection, x: Any, y: Tensor, loss: Any = "cross_entropy", *, order: int = 4
) -> list[Term]:
    """[R₁, …, R_order] of a noise with one node, each a `Term`. Exact: no ε is drawn.   Levi eq. 3

    R_k = σ^k E ε^k ⟨(W_NI·∇)^k ℓ⟩/k!; its sd is σ^k √(Var ε^k ⟨((W_NI·∇)^k ℓ)²⟩/B)/k!. The mean of
    R₁ is 0, and its sd ~ σ‖g·W‖/√B is above R₂ in the decoupled phase. Autograd takes k derivatives
    along one line, at the cost of 2^k forwards. Raises DitherError for more than one node; for that
    take `series`, which draws ε.
    """
    sites = _sites(noise)
    law = noise.noise_at(sites[0])
    if len(sites) > 1 or not isinstance(law, Node) or law.nodes > 1:
        raise DitherError(
            f"terms are of one node, and this noise has {len(sites)} sites of "
            f"{type(law).__name__} with {getattr(law, 'nodes', 0)} nodes: take series(…, draws=…)"
        )
    along = _slopes(noise, x, y, losses.get(loss), order, _node_direction(noise))
    orders = []
    for k, d in enumerate(along, 1):  # d [B]
        m, m2 = moment(law.law, k), moment(law.law, 2 * k)
        size = law.sigma**k / math.factorial(k)
        sd = math.sqrt(max(m2 - m * m, 0) * float(d.square().mean()) / len(d))
        orders.append(Term(size * m * float(d.mean()), size * sd))
    return orders


def series(
    noise: Injection,
    x: Any,
    y: Tensor,
    loss: Any = "cross_entropy",
    *,
    order: int = 4,
    draws: int = 100,
    seed: int = 0,
) -> list[Estimate]:
    """[R₁, …, R_order] by Monte Carlo, each an `Estimate` over independent draws. For any
    activation noise at any number of sites; cross terms between sites are included.
    """
    check_whole("series: draws", draws, 2, "one has no standard error")
    each, rows = losses.get(loss), []
    for draw in range(draws):
        slopes = _slopes(noise, x, y, each, order, _drawn_direction(noise, key(seed, draw)))
        rows.append([d.mean() / math.factorial(k) for k, d in enumerate(slopes, 1)])
    return [Estimate.of(column) for column in torch.tensor(rows).unbind(1)]


Direction = Callable[[Site, Tensor], Tensor]


def _node_direction(noise: Injection) -> Direction:
    """W_NI, the same for every sample."""

    def direction(site: Site, h: Tensor) -> Tensor:
        here = noise.here(site, h)
        assert here.w is not None
        return spread(here.w.detach().sum(0).expand(h.shape[0], *here.w.shape[1:]), h, here)

    return direction


def _drawn_direction(noise: Injection, seed: int) -> Direction:
    def direction(site: Site, h: Tensor) -> Tensor:
        source = Source([key(seed, site.name)])
        with torch.no_grad():
            return noise.noise_at(site).displace(noise.here(site, h), source)

    return direction


def _slopes(
    noise: Injection, x: Any, y: Tensor, loss: Any, order: int, direction: Direction
) -> list[Tensor]:
    """d^k/dt^k ℓ_i(z + t δ_i) at t = 0, [B] each, k = 1 … order."""
    if order < 1:
        raise DitherError(f"R_k starts at k = 1: got order = {order}")
    like = next(noise.model.parameters())
    t = torch.zeros(len(y), dtype=like.dtype, device=like.device, requires_grad=True)
    with evaluating(noise.model), torch.enable_grad(), reading(noise, _Line(t, direction)):
        with thrice(True):
            value = loss.per_sample(output(noise.model, x), y)
        derivatives = []
        for _ in range(order):
            slope = None
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), t, create_graph=True, allow_unused=True)
            value = torch.zeros_like(t) if slope is None else slope  # a constant's derivative
            derivatives.append(value)
    return [v.detach() for v in derivatives]


def moment(law: Any, k: int) -> float:
    """E ε^k of a law of `dither.noise`."""
    if isinstance(law, noises.Uniform):
        return 0.0 if k % 2 else 1 / (k + 1)
    if isinstance(law, noises.TwoPoint):
        return 0.0 if k % 2 else 1.0
    if isinstance(law, noises.Dropout):
        return (1 - law.p) * (law.p / (1 - law.p)) ** k + law.p * (-1) ** k
    width = {noises.Gaussian: (0.0, 1.0), noises.TwoGaussian: (1.0, getattr(law, "width", 0.0))}
    if type(law) not in width:
        raise DitherError(f"the moments of {law!r} are not known: take series(…, draws=…)")
    if k % 2:
        return 0.0
    at, sd = width[type(law)]
    return sum(
        math.comb(k, j) * at ** (k - j) * sd**j * math.prod(range(1, j, 2))
        for j in range(0, k + 1, 2)
    )


# ---------------------------------------------------------------------------------------- readers


class _Line:
    """Displaces every site by t_i δ_i."""

    def __init__(self, t: Tensor, direction: Direction) -> None:
        self.t, self.direction, self.at = t, direction, {}

    def activation(self, site: Site, h: Tensor) -> Tensor:
        _once(self.at, site)
        if len(h) != len(self.t):
            raise DitherError(
                f"local: dimension 0 of the tensor at {site.name!r}, {list(h.shape)}, does not "
                f"count the {len(self.t)} samples: put them first"
            )
        self.at[site.name] = h
        delta = self.direction(site, h.detach())
        return h + self.t.view(-1, *[1] * (h.dim() - 1)) * delta


class Each:
    """A zero probe per sample at every site, in the shape of the node's features."""

    def __init__(self, noise: Injection) -> None:
        self.noise, self.at = noise, {}

    def features(self, site: Site, h: Tensor) -> tuple[int, ...]:
        w = self.noise.here(site, h).w
        return tuple(h.shape[1:] if w is None else w.shape[1:])

    def activation(self, site: Site, h: Tensor) -> Tensor:
        _once(self.at, site)
        u = h.new_zeros(len(h), *self.features(site, h), requires_grad=True)
        self.at[site.name] = u
        return h + spread(u, h, Here(h))


class _Shared(Each):
    """One probe for the whole batch."""

    def activation(self, site: Site, h: Tensor) -> Tensor:
        _once(self.at, site)
        u = self.at[site.name] = h.new_zeros(self.features(site, h), requires_grad=True)
        return h + spread(u.expand(len(h), *u.shape), h, Here(h))


def _once(at: dict[str, Tensor], site: Site) -> None:
    if site.name in at:
        raise DitherError(
            f"{site.name!r} is called twice in a forward, and a site must be one tensor: "
            "use a module for each call"
        )


def _sites(noise: Injection) -> list[Site]:
    if noise.removed:
        raise DitherError("local: this noise was removed from its model: inject it again")
    if noise.batch_dim or noise.stack:
        what = f"batch_dim={noise.batch_dim}" if noise.batch_dim else "a stack of replicas"
        raise DitherError(
            f"local gradients and Hessians need samples in dimension 0 of a site: got {what}; put "
            "the samples first, and separate replicas by `unstack`"
        )
    activations = [s for s in noise.sites.values() if s.side != "parameter"]
    if not activations:
        raise DitherError(
            "local gradients and Hessians are those of activations: got noise on parameters; "
            "inject noise on an activation"
        )
    return activations
