"""Estimate: a Monte-Carlo mean together with its standard error; Estimates: many of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dither.precision import double


class Estimate(NamedTuple):
    """`value` ± `sem`: a mean over independent draws and the standard error of that mean, in the
    same units.
    """

    value: float
    sem: float

    @classmethod
    def of(cls, draws: Tensor) -> Estimate:
        """From independent draws [N], N ≥ 2."""
        draws = double(draws)
        return cls(draws.mean().item(), (draws.std() / draws.numel() ** 0.5).item())

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.sem:.2g}"

    def _repr_html_(self) -> str:
        return str(self)

    def __sub__(self, other: float) -> Estimate:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shifted by an exact number; the error stays."""
        return Estimate(self.value - float(other), self.sem)


class Estimates(NamedTuple):
    """Tensors of values and of their standard errors, in one shape and the same units."""

    value: Tensor
    sem: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> Estimates:
        """From independent draws [N, …], N ≥ 2."""
        return cls(draws.mean(0), draws.std(0) / len(draws) ** 0.5)
