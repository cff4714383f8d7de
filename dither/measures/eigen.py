"""The largest, or the smallest, eigenvalues of the loss's Hessian or Gauss–Newton matrix.

    A v = λ v,     A = ∇²L, or E_batch JᵀHJ;     an eigenvalue of A lies within ‖A v − λ v‖ of λ

in the parameters, or for each sample in an activation. Lanczos' iteration (`lanczos`) on products
with A (`products`). As λ = vᵀAv, its error is of second order in the residual r: r²/gap, with the
distance to the next eigenvalue as the gap (docs/math.md, §21). Gradient descent with step η is
unstable along v where λ > 2/η (Cohen et al. 2021).
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dither.attach.inject import Injection
from dither.errors import DitherError, check_whole, is_number
from dither.measures.lanczos import largest
from dither.measures.over import over
from dither.measures.products import Matrix, at_site, check_matrix, in_parameters, normal
from dither.picture import BLUE, SOFT, panel

__all__ = ["Eigenvalues", "eigenvalues"]

ENDS = ("largest", "smallest")


class Eigenvalues(NamedTuple):
    """Eigenvalues [k], or [N, k] of the samples at a site: the most extreme first, in float64.

    residual  ‖A v − λ v‖ of each, ‖v‖ = 1: an eigenvalue lies within it of λ
    vectors   {parameter: [k, *shape]}, or {site: [N, k, *features]}
    products  how many products A v were taken
    """

    value: Tensor
    residual: Tensor
    vectors: dict[str, Tensor]
    products: int

    def plot(self, ax: Any = None) -> Any:
        """λ in its order with bars of ± its residual; at a site a dot for each sample. As a figure
        of pyplot; or drawn into the axes `ax`. Raises DitherError if matplotlib is missing.
        """
        figure, ax = panel(ax)
        value, residual = (t.reshape(-1, t.shape[-1]).cpu() for t in (self.value, self.residual))
        alone = len(value) == 1
        for row, bar in zip(value, residual, strict=True):
            at = range(1, len(row) + 1)
            ax.errorbar(at, row, bar, fmt="o", color=BLUE, ms=4, lw=1.5, alpha=1 if alone else 0.3)
        ax.axhline(0, color=SOFT, lw=1, zorder=0)
        ax.set(xlabel="number", ylabel="eigenvalue λ" if alone else "eigenvalue λ of each sample")
        ax.xaxis.get_major_locator().set_params(integer=True)
        return figure


def eigenvalues(
    model: nn.Module | Injection,
    loss: Any,
    data: Any,
    *,
    k: int = 1,
    which: str = "largest",
    matrix: str = "hessian",
    at: str | None = None,
    tolerance: float = 1e-4,
    steps: int = 200,
    seed: int = 0,
) -> Eigenvalues:
    """The k largest or smallest eigenvalues (in sign, not in size) of the mean loss's Hessian, or
    of its Gauss–Newton matrix; in eval mode, without noise.

    model, loss, data   as in `trace`: a module means all its parameters, frozen ones too (for a
               step size inject noise on those that are trained); an Injection means its own.
    which      "largest" or "smallest".
    matrix     "hessian" or "gauss_newton".
    at         None: in the parameters. A pattern of `inject` that names one activation ("input",
               "fc1:in"): of each sample's own ∇²_h ℓ_i, all samples at once. `measures.local` has
               another matrix: the batch mean of these, in a displacement that all samples share.
    tolerance  the residual to reach, as a share of the largest |λ|. In single precision not much
               below 1e-6. More products than `steps` are not taken: a warning says so, and the
               residual what was reached.

    Values are in the units of loss/parameter² (loss/activation²). The residual is that of k further
    products and does not trust the iteration. No residual can tell that no larger eigenvalue was
    missed: a random start misses one with chance 0, but of two that are very close one may come
    late.
    Cost: a product is about 2 plain steps (Gauss–Newton 3; one more for each if there are several
    batches); 10 to 60 are usual for k = 1. Memory: 40 vectors of A's size, or 2k + 20.
    Raises DitherError as `trace` does, for k above the size of A, and where a site's samples meet.

    >>> net = nn.Linear(2, 1, bias=False).double()
    >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 1).double()
    >>> found = eigenvalues(net, "half_square", (x, y), k=2)  # of E x xᵀ
    >>> found.value.round(decimals=6)
    tensor([4.5000, 0.5000], dtype=torch.float64)
    """
    check_matrix("eigenvalues", matrix)
    _check(k, which, tolerance, steps)
    sign = 1 if which == "largest" else -1

    def found(a: Matrix, *words: object) -> Eigenvalues:
        if k > a.n:
            raise DitherError(f"eigenvalues: k = {k} of a matrix of size {a.n}: ask for fewer")
        start = a.random(normal, "eigenvalues", seed, *words)
        how = {"steps": steps, "tolerance": tolerance, "seed": seed}
        pairs = largest(lambda v: sign * a(v), start, k, **how)
        _warn(pairs.residuals, tolerance * pairs.scale, steps)
        parts = [a.split(v) for v in pairs.vectors]  # k times, one for each point
        vectors = {str(i): torch.stack(p) for i, p in enumerate(zip(*parts, strict=True))}
        return Eigenvalues(sign * pairs.values, pairs.residuals, vectors, a.products)

    with over("eigenvalues", model, loss, data) as o:
        if at is None:
            with in_parameters(o, matrix) as a:
                one = found(a)
            vectors = dict(zip(o.parameters, one.vectors.values(), strict=True))
            return Eigenvalues(one.value[0], one.residual[0], vectors, one.products)
        rows = []
        for number, (x, y) in enumerate(o.batches):
            with at_site(o, matrix, at, x, y) as a:
                rows.append(found(a, number))
    vectors = torch.cat([r.vectors["0"].transpose(0, 1) for r in rows])
    value, residual = (torch.cat([getattr(r, n) for r in rows]) for n in ("value", "residual"))
    return Eigenvalues(value, residual, {at: vectors}, sum(r.products for r in rows))


def _check(k: Any, which: str, tolerance: float, steps: Any) -> None:
    """Raises DitherError for settings that make no sense."""
    if which not in ENDS:
        raise DitherError(f"eigenvalues: which is 'largest' or 'smallest': got {which!r}")
    for name, n in (("k", k), ("steps", steps)):
        check_whole(f"eigenvalues: {name}", n)
    if not (is_number(tolerance) and 0 < tolerance < 1):
        raise DitherError(
            f"eigenvalues: tolerance is a share of the largest |λ|, in (0, 1): got {tolerance!r}"
        )


def _warn(residuals: Tensor, asked: Tensor, steps: int) -> None:
    """A warning where the iteration has ended before its aim; twice that is let pass, as the stop
    looks at T and the residual is measured.
    """
    worst = float((residuals.amax(1) / asked.clamp(min=torch.finfo(asked.dtype).tiny)).max())
    if worst > 2:
        warnings.warn(
            f"eigenvalues: after {steps} products a residual is {worst:.2g} times what tolerance "
            "asks for: give more steps, or a larger tolerance",
            RuntimeWarning,
            stacklevel=4,
        )
