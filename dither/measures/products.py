"""Products with a curvature that is never formed: v ↦ A v, A the loss's Hessian or its Gauss–Newton
part.

    ∇²L v = ∂⟨∇L, v⟩/∂W                                  Pearlmutter 1994
    Jᵀ H J v:  J v = ∂⟨Jᵀu, v⟩/∂u,  H = ∂²ℓ/∂z²           Schraudolph 2002

In parameters A is one matrix, of the mean loss over all batches. At an activation h it is a matrix
for each sample, ∇²ℓ_i by h_i; one product serves them all. A batch is recorded once, and a product
is one more backward through its gradient (Gauss–Newton: through gradient, loss and network). Of
several batches each is recorded anew at each product, so that one of them is in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dither.attach.reading import probing, reading
from dither.calling import output, thawed
from dither.engine.batch_axis import Layout
from dither.engine.certificate import fitting
from dither.engine.functions import check_twice, is_doubtful
from dither.errors import DitherError, NotFinite
from dither.loss import AnyLoss
from dither.measures.local import Each
from dither.measures.over import Over
from dither.noise.draw import key
from dither.noise.noises import Additive
from dither.plain import twice
from dither.precision import wide
from dither.torch_internals import functions_behind

MATRICES = ("hessian", "gauss_newton")
Times = Callable[[list[Tensor]], list[Tensor]]


def check_matrix(what: str, matrix: str) -> None:
    """Raises DitherError for a matrix that is none of `MATRICES`."""
    if matrix not in MATRICES:
        raise DitherError(f"{what}: matrix is 'hessian' or 'gauss_newton': got {matrix!r}")


class Matrix:
    """R symmetric matrices [n, n] at once, A v [R, n] of v [R, n]; `products` counts them.

    R is 1 in parameters, whose tensors are `points`; at a site it is the batch, and the only point
    is the site's tensor.
    """

    def __init__(self, points: Sequence[Tensor], rows: int, times: Times) -> None:
        self.points, self.rows, self.times = points, rows, times
        self.sizes = [p.numel() // rows for p in points]
        self.n, self.products = sum(self.sizes), 0
        self.dtype = wide(torch.cat([p.detach().flatten()[:1] for p in points])).dtype

    def __call__(self, v: Tensor) -> Tensor:
        self.products += 1
        parts = [p.to(point.dtype) for p, point in zip(self.split(v), self.points, strict=True)]
        found = [t.detach().reshape(self.rows, -1).to(v.dtype) for t in self.times(parts)]
        if not all(bool(t.isfinite().all()) for t in found):
            raise NotFinite(
                "a product with the curvature is not finite: the network has diverged, or its "
                "numbers leave the range of their type"
            )
        return torch.cat(found, 1)

    def split(self, v: Tensor) -> list[Tensor]:
        """V in the shapes of the points, each where a complex view of pairs may begin."""
        parts = (t.clone() if t.storage_offset() % 2 else t for t in v.split(self.sizes, -1))
        return [part.reshape(p.shape) for part, p in zip(parts, self.points, strict=True)]

    def random(self, draw: Callable[..., Tensor], *words: object) -> Tensor:
        """A draw [R, n] of `draw(like, generator)`."""
        like = torch.empty(self.rows, self.n, dtype=self.dtype, device=self.points[0].device)
        return draw(like, torch.Generator(like.device).manual_seed(key(*words)))


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) in the shape of `like`, and in its memory."""
    return like.normal_(generator=generator)


@contextmanager
def in_parameters(o: Over, matrix: str) -> Iterator[Matrix]:
    """The matrix of the mean loss over the data set; `o.what` asks."""
    points = list(o.parameters.values())

    def recorded(x: Any, y: Tensor) -> Recorded:
        return Recorded(o.what, matrix, output(o.model, x), points, o.loss, y, mean=True)

    def over_batches(v: list[Tensor]) -> list[Tensor]:
        total, count = [torch.zeros_like(part) for part in v], 0
        for x, y in o.batches:
            total = [t + len(y) * p for t, p in zip(total, recorded(x, y)(v), strict=True)]
            count += len(y)
        return [t / count for t in total]

    with torch.enable_grad(), twice(True), thawed([p for p in points if not p.requires_grad]):
        batches = o.batches
        first, one = next(batches), next(batches, None) is None
        yield Matrix(points, 1, recorded(*first) if one else over_batches)


@contextmanager
def at_site(o: Over, matrix: str, at: str, x: Any, y: Tensor) -> Iterator[Matrix]:
    """The matrices ∇²ℓ_i by the activation that a pattern of `inject` names, one for each sample.

    Raises DitherError unless the pattern names one activation, which is called once and has the
    samples in dimension 0, each by itself.
    """
    with probing(o.model, {at: Additive(1.0)}, seed=0) as noise, torch.enable_grad(), twice(True):
        if len(noise.sites) > 1:
            raise DitherError(
                f"{o.what}: at names one activation: {at!r} names {len(noise.sites)}: "
                f"{', '.join(noise.sites)}"
            )
        with reading(noise, probe := Each(noise)):
            z = output(o.model, x)
        (site,) = noise.sites
        u = probe.at.get(site)
        if u is None:
            raise DitherError(f"{o.what}: the model never calls {site!r}: name another activation")
        apart = u.shape[0] == z.shape[0]
        if apart and len(z) > 1:
            (left,), (seen,) = fitting(z, [u], [[Layout("dim", 0, len(z))]])
            apart = bool(left) or not seen
        if not apart:
            raise DitherError(
                f"{o.what}: at {site!r}, {list(u.shape)}, dimension 0 does not hold the "
                f"{len(z)} samples, each by itself: name another activation"
            )
        yield Matrix([u], len(z), Recorded(o.what, matrix, z, [u], o.loss, y, mean=False))


class Recorded:
    """One batch: v ↦ A v at `points`, of the mean of the samples' losses or of their sum."""

    def __init__(
        self,
        what: str,
        matrix: str,
        z: Tensor,
        points: Sequence[Tensor],
        loss: Any,
        y: Tensor,
        *,
        mean: bool,
    ) -> None:
        check_twice(filter(is_doubtful, functions_behind(z)), what)
        if isinstance(loss, AnyLoss):
            loss.check_apart(wide(z), y)
            loss.check_kinks(wide(z), y)
        self.points, self.z, self.full = points, z, matrix == "hessian"
        self.at = z if self.full else z.detach().requires_grad_()
        each = loss.per_sample(wide(self.at), y)
        value = each.mean() if mean else each.sum()
        if self.full:
            self.slopes = _pulled(value, points, None, create_graph=True)
            return
        (self.slope,) = torch.autograd.grad(value, self.at, create_graph=True)
        if not self.slope.requires_grad:
            raise DitherError(
                f"{what}: the loss is linear in the outputs, so that its Hessian is 0: make the "
                "model give the logits, and pass a loss of logits"
            )
        self.u = torch.zeros_like(z, requires_grad=True)
        self.slopes = _pulled(z, points, self.u, create_graph=True)  # Jᵀu

    def __call__(self, v: list[Tensor]) -> list[Tensor]:
        if self.full:
            return _turned(self.slopes, self.points, v)
        (jv,) = _turned(self.slopes, [self.u], v)
        (hjv,) = _turned([self.slope], [self.at], [jv])
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.points, _pulled(self.z, self.points, hjv), strict=True)
        ]


def _pulled(
    of: Tensor, points: Sequence[Tensor], by: Tensor | None, *, create_graph: bool = False
) -> list[Any]:
    """The gradient of ⟨of, by⟩ by each point; None where it does not depend on it."""
    if not of.requires_grad:
        return [None] * len(points)
    how = {"create_graph": create_graph, "retain_graph": True, "allow_unused": True}
    return list(torch.autograd.grad(of, points, by, **how))


def _turned(slopes: list[Any], points: Sequence[Tensor], v: list[Tensor]) -> list[Tensor]:
    """∂⟨slopes, v⟩ by each point."""
    live = [(s, p) for s, p in zip(slopes, v, strict=True) if s is not None and s.requires_grad]
    if not live:  # what is differentiated is linear here
        return [torch.zeros_like(p) for p in points]
    of, by = zip(*live, strict=True)
    how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(of, points, by, **how))
