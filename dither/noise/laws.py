"""The laws of one element of a noise, with mean 0 and a known variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dither.errors import DitherError


class Law(Protocol):
    """A law of mean 0 for one element. `variance` is that of the draw; it need not be 1."""

    @property
    def variance(self) -> float: ...
    def sample(self, source, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """N(0, 1): variance 1."""

    variance = 1.0

    def sample(self, source, like):
        return source.normal(like)


@dataclass(frozen=True)
class Uniform:
    """U(−1, 1): variance ⅓, so that σ is half the width."""

    variance = 1 / 3

    def sample(self, source, like):
        return source.uniform(like).mul_(2).sub_(1)


@dataclass(frozen=True)
class TwoPoint:
    """±1 with equal chances: variance 1; the cheapest law with the regulariser of the Gaussian."""

    variance = 1.0

    def sample(self, source, like):
        return source.sign(like)


@dataclass(frozen=True)
class TwoGaussian:
    """N(±1, width²) with equal chances: variance 1 + width².   Levi et al. 2022, App. C.2 (width
    not given there).
    """

    width: float = 0.1

    @property
    def variance(self) -> float:
        return 1 + self.width**2

    def sample(self, source, like):
        return source.sign(like) + self.width * source.normal(like)


@dataclass(frozen=True)
class Dropout:
    """p/(1−p) with chance 1−p, −1 with chance p: variance p/(1−p); h(1 + ε) is inverted dropout.

    Raises DitherError unless 0 ≤ p < 1.
    """

    p: float = 0.5

    def __post_init__(self):
        if not 0 <= self.p < 1:
            raise DitherError(f"the chance p of dropout must lie in [0, 1): got {self.p!r}")

    @property
    def variance(self) -> float:
        return self.p / (1 - self.p)

    def sample(self, source, like):
        kept = source.uniform(like) >= self.p
        return kept.to(like.dtype).div_(1 - self.p).sub_(1)


gaussian, uniform, two_point = Gaussian(), Uniform(), TwoPoint()
two_gaussian, dropout = TwoGaussian(), Dropout
