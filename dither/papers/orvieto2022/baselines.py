"""What weight noise is measured against: noise after the step, and sharpness-aware minimisation.

    noise after     w ← w − η∇L(w) + ξ, a walk (Langevin-like)     dither.langevin
    Anti-PGD        … + ξ_{t+1} − ξ_t: full noise in other variables   dither.anti_pgd
    SAM             w ← w − η∇L(w + ρ∇L/‖∇L‖), two gradients a step    pytorch_optimizer's

Here ξ takes a factor of its own behind the first layer, as weight noise does in narrower nets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dither.attach.after import After, AntiCorrelated
from dither.errors import DitherError
from dither.lab import SGD, Langevin
from dither.noise.laws import gaussian

FIRST = 2  # parameters of the first layer: weight and bias


class Layered(After):
    """Noise ξ after each step, `more` times as large behind the first layer."""

    more = 1.0

    def xi(self, index: int, like: Tensor, step: int) -> Tensor:
        return super().xi(index, like, step) * (self.more if index >= FIRST else 1.0)


class LayeredAntiCorrelated(Layered, AntiCorrelated):
    """The same with anti-correlated increments."""


@dataclass(frozen=True)
class NoiseAfter(Langevin):
    """`Langevin` on a net whose noise is `more` times as large behind the first layer."""

    more: float = 1.0

    def after(self, optimiser: Optimizer, seed: int | Sequence[int]) -> After:
        return self._hung(Layered(optimiser, self.sigma, seed, gaussian))

    def _hung(self, noise: Layered) -> After:
        noise.more = self.more
        return noise


@dataclass(frozen=True)
class AntiNoise(NoiseAfter):
    """`AntiPGD` on a net whose noise is `more` times as large behind the first layer."""

    def after(self, optimiser: Optimizer, seed: int | Sequence[int]) -> After:
        return self._hung(LayeredAntiCorrelated(optimiser, self.sigma, seed, gaussian))


@dataclass(frozen=True)
class SharpnessAware:
    """SGD at the gradient of w + ρ∇L/‖∇L‖.   Foret et al. 2021, eq. 2 and 3"""

    of: SGD
    rho: float = 0.05
    again = True  # a step asks for the gradient once more

    @property
    def lr(self) -> float:
        return self.of.lr

    @staticmethod
    def installed() -> bool:
        return find_spec("pytorch_optimizer") is not None

    def build(self, model: Iterable[Tensor], nodes: Iterable[Tensor] = ()) -> Optimizer:
        if not self.installed():
            raise DitherError("SAM is the package pytorch_optimizer's: pip install 'dither[sam]'")
        from pytorch_optimizer import SAM

        how: Any = {"momentum": self.of.momentum, "weight_decay": self.of.weight_decay}
        return SAM([*model, *nodes], torch.optim.SGD, rho=self.rho, lr=self.lr, **how)
