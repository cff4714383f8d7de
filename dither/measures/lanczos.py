"""Lanczos' iteration for R symmetric matrices at once: the eigenvalues that a Krylov space knows.

    K_m = span{q, Aq, …, A^(m−1)q} with orthonormal Q,  T = Qᵀ A Q,  T s = θ s
    ‖A Q s − θ Q s‖ = β_m |s_m|,  β_m = ‖what A q_m adds to K_m‖               Lanczos 1950

Each new vector is made orthogonal to the two before it, which is enough in exact arithmetic, then
to all, and once more if that has made it much shorter ("twice is enough", Parlett 1998, §6.9). So T
is a plain Rayleigh quotient: no ghost copies of eigenvalues, and nothing goes wrong where a Krylov
space ends (β_m = 0) and the iteration goes on with a random vector. That is how equal eigenvalues
are found, as the many zeros of a Gauss–Newton matrix: a Krylov space has one vector of each. When
the basis is full it is restarted from its best Ritz vectors (thick restart, Wu & Simon 2000), so
that memory is bounded.
"""
# torch.lobpcg takes a matrix and no function, and needs n ≥ 3k; scipy's eigsh is not in the core,
# leaves the device, and bounds its error by β|s_m| too. These are a hundred lines.

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Times = Callable[[Tensor], Tensor]
SHORTER = 0.7  # a vector that a projection leaves shorter than this share is projected once more


class Basis:
    """Orthonormal Q [size, R, n], of which `m` are there, T [R, size, size] (its upper triangle), β
    [R] = ‖what the last product added‖, and the vector `q` to come. T and β are on the CPU.
    """

    def __init__(
        self, times: Times, start: Tensor, size: int, generator: torch.Generator, floor: float
    ) -> None:
        self.times, self.generator, self.floor = times, generator, floor
        self.size = min(size, start.shape[1])
        self.Q = start.new_empty(self.size, *start.shape)
        self.T = torch.zeros(len(start), self.size, self.size, dtype=torch.float64)
        self.m, self.beta = 0, torch.zeros(len(start), dtype=torch.float64)
        self.q = start / start.norm(dim=1, keepdim=True)

    @property
    def scale(self) -> Tensor:
        """The largest |T| [R], about ‖A‖."""
        return self.T.abs().amax((1, 2))

    @property
    def ended(self) -> Tensor:
        """Whether β was below floor · ‖A‖, so that A leaves Q as it is and q is a random vector."""
        return self.beta == 0

    def grow(self) -> None:
        """One product: q joins Q, its column T; what A q adds is the next q."""
        self.Q[self.m] = self.q
        self.m += 1
        w = self.times(self.q)
        w, size = self._coupled(self._coupled(w, max(self.m - 2, 0))[0])
        beta = w.norm(dim=1)
        if bool((beta < SHORTER * size).any()):
            w, _ = self._coupled(w)
            beta = w.norm(dim=1)
        beta = beta.cpu().double()
        self.beta = torch.where(beta <= self.floor * self.scale, 0.0, beta)
        if bool(self.ended.any()) and self.m < self.q.shape[1]:
            other = torch.empty_like(w).normal_(generator=self.generator)
            for _ in range(2):
                other = self._apart(other)[0]
            w = torch.where(self.ended.to(w.device).unsqueeze(1), other, w)
        self.q = w / w.norm(dim=1, keepdim=True)

    def _coupled(self, w: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """(w without its part in Q from `first` on, which enters T; ‖w‖ before [R])."""
        size = w.norm(dim=1)
        w, found = self._apart(w, first)
        self.T[:, first : self.m, self.m - 1] += found.cpu().double()
        return w, size

    def _apart(self, w: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """(w without its part in Q from `first` on, the coefficients of that part)."""
        Q = self.Q[first : self.m].transpose(0, 1)  # [R, m, n]
        c = (Q @ w.unsqueeze(2)).squeeze(2)
        return w - (c.unsqueeze(1) @ Q).squeeze(1), c

    def ritz(self) -> tuple[Tensor, Tensor]:
        """θ [R, m] in increasing order, and s [R, m, m] in columns."""
        return torch.linalg.eigh(self.T[:, : self.m, : self.m], UPLO="U")

    def vectors(self, s: Tensor) -> Tensor:
        """Q s [k, R, n] of s [R, m, k]."""
        return (s.mT.to(self.Q) @ self.Q[: self.m].transpose(0, 1)).transpose(0, 1)

    def restart(self, theta: Tensor, s: Tensor) -> None:
        """Keep these Ritz pairs; the next product couples q to each of them."""
        kept = self.vectors(s)
        self.m = len(kept)
        self.Q[: self.m] = kept
        self.T.zero_()
        self.T[:, : self.m, : self.m] = torch.diag_embed(theta)


class Pairs(NamedTuple):
    """Eigenvalues [R, k], the largest first, ‖A v − λ v‖ of each, v [k, R, n], and max |θ| [R]."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    scale: Tensor


def largest(
    times: Times, start: Tensor, k: int, *, steps: int, tolerance: float, seed: int
) -> Pairs:
    """The k largest eigenvalues (k ≤ n), to residuals of tolerance · max |θ|, in `steps` products
    at most. The residuals that are given are had by k further products and not from T.
    """
    generator = torch.Generator(start.device).manual_seed(seed)
    basis = Basis(times, start, max(2 * k + 20, 40), generator, tolerance)
    before = torch.full((len(start), k), torch.nan).double()  # θ when a Krylov space ended last
    done = torch.zeros(len(start), dtype=torch.bool)
    theta, s = basis.ritz()
    for _ in range(max(steps, k)):
        basis.grow()
        theta, s = basis.ritz()
        if basis.m < k:
            continue
        best, most = theta[:, -k:], tolerance * theta.abs().amax(1)
        bound = basis.beta * s[:, -1, -k:].abs().amax(1)
        same = (best - before).abs().amax(1) <= most  # a random vector has found no more of them
        before = torch.where(basis.ended.unsqueeze(1), best, before)
        done |= torch.where(basis.ended, same, (bound <= most) & before.isnan().any(1))
        if bool(done.all()) or basis.m == start.shape[1]:
            break
        if basis.m == basis.size:
            keep = k + (basis.size - k) // 2
            basis.restart(theta[:, -keep:], s[:, :, -keep:])
    v = basis.vectors(s[:, :, -k:]).flip(0)
    v = v / v.norm(dim=2, keepdim=True)
    turned = torch.stack([times(one) for one in v])  # [k, R, n]
    values = (v * turned).sum(2, keepdim=True)
    residuals = (turned - values * v).norm(dim=2)
    values, residuals = (t.mT.cpu().double() for t in (values.squeeze(2), residuals))
    return Pairs(values, residuals, v, theta.abs().amax(1))


def quadrature(times: Times, start: Tensor, steps: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Gauss' nodes θ and weights s_1² [R, m] of qᵀ f(A) q, q = start/‖start‖: exact for
    polynomials f of degree up to 2m − 1.   Golub & Meurant 2010, §6
    """
    generator = torch.Generator(start.device).manual_seed(seed)
    basis = Basis(times, start, steps, generator, 16 * torch.finfo(start.dtype).eps)
    for _ in range(basis.size):
        basis.grow()
    theta, s = basis.ritz()
    return theta, s[:, 0].square()
