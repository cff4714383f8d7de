"""Noises in which many elements share one ε: of a sample, or of a feature at all its positions."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from dither.errors import DitherError
from dither.noise.here import Here, norm2
from dither.noise.laws import Law, dropout
from dither.noise.noises import HALF, Sigma, checked

TENTH = dropout(0.1)


@dataclass(frozen=True)
class DropPath:
    """δ = σ h ε, one ε ~ law per sample for all its elements; Var⟨g, δ⟩ = σ²(g·h)².   Huang et al.
    2016 (stochastic depth).

    To be put on the output of a residual branch, `{"blocks.*.mlp:out": DropPath(law=dropout(p))}`:
    a sample's branch is 0 with chance p, else multiplied by 1/(1 − p). σ has no unit.
    """

    sigma: Sigma = 1.0
    law: Law = TENTH
    side = "out"
    per_sample = True
    __post_init__ = checked

    def displace(self, site: Here, rng) -> Tensor:
        own = {*range(site.stack), site.samples}
        shape = [n if d in own else 1 for d, n in enumerate(site.h.shape)]
        return self.sigma * site.h * rng(self.law, site.h.new_empty(shape))

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        gh = (g * site.h).movedim(site.samples + 1, site.stack + 1)
        gh = gh.flatten(site.stack + 2).sum(-1) if gh.dim() > site.stack + 2 else gh
        return self.sigma**2 * self.law.variance * gh.square().flatten(1)  # [K, *S, B]


@dataclass(frozen=True)
class Locked:
    """δ = σ h∘ε, one ε ~ law per sample and feature, the same at all positions; Var⟨g, δ⟩ = σ² Σ_f
    (Σ_t g_tf h_tf)².   Gal & Ghahramani 2016 (variational dropout); Tompson et al. 2015 (spatial).

    `features` is the dimension that counts features: −1, the last, of [B, T, F]; 1 of the maps [B,
    C, H, W] of a convolution. Locked dropout is `Locked(law=dropout(p))`. σ has no unit.
    """

    sigma: Sigma = 1.0
    law: Law = HALF
    features: int = -1
    side = "in"
    per_sample = True

    def __post_init__(self) -> None:
        checked(self)
        if not isinstance(self.features, Integral) or isinstance(self.features, bool):
            raise DitherError(
                "features of Locked is the number of a dimension, −1 for the last: got "
                f"{self.features!r}"
            )

    def displace(self, site: Here, rng) -> Tensor:
        own = {*range(site.stack), site.samples, self._of(site)}
        shape = [n if d in own else 1 for d, n in enumerate(site.h.shape)]
        return self.sigma * site.h * rng(self.law, site.h.new_empty(shape))

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        batch, feature = site.samples, self._of(site)
        shared = [d + 1 for d in range(site.stack, site.h.dim()) if d not in (batch, feature)]
        gh = g * site.h
        gh = gh.sum(shared, keepdim=True) if shared else gh
        return self.sigma**2 * self.law.variance * norm2(gh.movedim(batch + 1, 1))

    def _of(self, site: Here) -> int:
        """The dimension of h that counts features."""
        dims = site.h.dim() - site.stack
        f = self.features % dims if -dims <= self.features < dims else -1
        if f in (-1, site.batch_dim):
            raise DitherError(
                f"Locked at {site.name!r} has its features in dimension {self.features}, and gets "
                f"a tensor {list(site.h.shape)}, whose samples are in dimension {site.batch_dim}: "
                "say which, Locked(features=…)"
            )
        return site.stack + f
