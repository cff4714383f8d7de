"""The noises as modules, to be placed by hand like `nn.Dropout`.

    net = nn.Sequential(nn.Linear(20, 64), dither.nn.Additive(0.1), nn.ReLU(), nn.Linear(64, 3))

A module adds its noise to what passes through it: in train mode, not in eval mode. Its draws are
functions of its seed and of its step, which `state_dict()` holds: a resumed run continues as if it
had never stopped. `inject(net)`, without a noise, takes all placed noises over, so that `explicit`,
`expected` and the rest work on them; until it is removed their draws are the injection's.

Inside `torch.compile`, and in graphs of `torch.export` and `torch.jit.trace`, the draws come from
torch's own generator, as dropout's do, and σ must be a number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dither.attach.hooks import DisplaceOutput, real
from dither.attach.ranks import rank
from dither.attach.recompute import Ledger
from dither.attach.seeds import seeds
from dither.errors import DitherError
from dither.noise.draw import Source, key
from dither.noise.here import Here
from dither.noise.laws import Law, gaussian
from dither.noise.noises import HALF, Sigma, at, describe, plus
from dither.noise.noises import Additive as _Additive
from dither.noise.noises import Multiplicative as _Multiplicative
from dither.noise.noises import Node as _Node
from dither.noise.shared import TENTH
from dither.noise.shared import DropPath as _DropPath
from dither.noise.shared import Locked as _Locked
from dither.schedule import Balanced
from dither.torch_internals import in_backward, traced

__all__ = ["Additive", "DropPath", "Locked", "Multiplicative", "Node"]


class Placed(nn.Module):
    """A noise as a module. seed: of its draws; None takes one from torch's default generator. Two
    modules with one seed draw alike.

    batch_dim: the dimension that counts the samples.
    """

    def __init__(self, noise: Any, seed: int | None, batch_dim: int = 0) -> None:
        super().__init__()
        if isinstance(noise.sigma, Balanced):
            raise DitherError(
                "σ of a placed noise can't be Balanced, which looks at the whole model: inject it"
            )
        self.placed_noise, self.batch_dim = noise, batch_dim
        (self.seed,) = seeds(seed)
        self.step = 0  # forwards in train mode
        self.copies = 0  # taken of this module
        self.ledger = Ledger()

    def forward(self, h: Tensor) -> Tensor:
        """Noise on h in train mode; h itself in eval mode."""
        if not self.training or self.injected:
            return h
        real(self, h)  # type: ignore[arg-type]
        if torch.compiler.is_compiling() or traced():
            self._check_constant()
            return h + at(self.placed_noise, 0).displace(self.here(h), _Torch())
        step = self._step(h)
        noise = at(self.placed_noise, step)
        if noise.sigma == 0:
            return h
        return plus(noise, self.here(h), Source([key(self.seed, "placed", step, rank())]))

    def _check_constant(self) -> None:
        """Raises DitherError for a schedule of σ: a graph would keep its first value for ever."""
        if callable(self.placed_noise.sigma):
            raise DitherError(
                f"σ of {self.name} of dither.nn is a schedule, and compiled or exported code would "
                "stay at its first value: call dither.inject(model), which takes the noise over "
                "and follows the schedule"
            )

    def _step(self, h: Tensor) -> int:
        """The step of this call; in the recomputation of a checkpoint that of the first time."""
        stamp = self.ledger.recall("", h) if in_backward() else None
        if stamp is None:
            stamp = (self.step, 0, 0)
            self.step += 1
        self.ledger.note("", h, stamp)
        return stamp[0]

    @property
    def injected(self) -> bool:
        """Whether an injection draws this noise in place of the module."""
        hooks = self._forward_hooks.values()
        own = (h.site.noise for h in hooks if isinstance(h, DisplaceOutput))
        return any(noise is self.placed_noise for noise in own)

    def here(self, h: Tensor) -> Here:
        """The site as the noise sees it."""
        return Here(h, getattr(self, "w", None), 0, self.batch_dim, self.name)

    @property
    def name(self) -> str:
        """For error messages."""
        return type(self).__name__

    def extra_repr(self) -> str:
        return describe(self.placed_noise)

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed, "step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed, self.step = state["seed"], state["step"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Placed:
        """A copy with a seed of its own: layers that are copies of one layer draw independently."""
        self.copies += 1
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new.seed = key(self.seed, "copy", self.copies)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "ledger": Ledger()})


class _Torch:
    """Draws from torch's own generator."""

    def __call__(self, law: Law, like: Tensor) -> Tensor:
        return law.sample(self, like)  # type: ignore[arg-type]

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand_like(like)

    def sign(self, like: Tensor) -> Tensor:
        return torch.randint_like(like, 2).mul_(2).sub_(1)


class Additive(Placed):
    """h ↦ h + σ ε (`dither.Additive`).

    σ is a number or a schedule, in the units of h.
    """

    def __init__(self, sigma: Sigma, law: Law = gaussian, *, seed: int | None = None) -> None:
        super().__init__(_Additive(sigma, law), seed)


class Multiplicative(Placed):
    """h ↦ h∘(1 + σ ε) (`dither.Multiplicative`). Dropout is Multiplicative(law=dropout(p))."""

    def __init__(self, sigma: Sigma = 1.0, law: Law = gaussian, *, seed: int | None = None) -> None:
        super().__init__(_Multiplicative(sigma, law), seed)


class DropPath(Placed):
    """h ↦ h (1 + σ ε), one ε per sample: stochastic depth on a branch (`dither.DropPath`)."""

    def __init__(
        self, sigma: Sigma = 1.0, law: Law = TENTH, *, seed: int | None = None, batch_dim: int = 0
    ) -> None:
        super().__init__(_DropPath(sigma, law), seed, batch_dim)


class Locked(Placed):
    """h ↦ h∘(1 + σ ε), one ε per sample and feature (`dither.Locked`)."""

    def __init__(
        self,
        sigma: Sigma = 1.0,
        law: Law = HALF,
        features: int = -1,
        *,
        seed: int | None = None,
        batch_dim: int = 0,
    ) -> None:
        super().__init__(_Locked(sigma, law, features), seed, batch_dim)


class Node(Placed):
    """h ↦ h + σ Σ_n ε_n w_n, scalars ε_n per sample, vectors w_n trained (`dither.Node`).

    features: the shape of one vector, the last dimensions of h. `w` [nodes, *features] is a
    parameter of the model; it starts from N(0, std²), std = 1/√(number of features + nodes) by
    default.
    """

    def __init__(
        self,
        sigma: Sigma,
        features: int | Sequence[int],
        law: Law = gaussian,
        nodes: int = 1,
        std: float | None = None,
        *,
        seed: int | None = None,
        batch_dim: int = 0,
    ) -> None:
        super().__init__(_Node(sigma, law, nodes, std), seed, batch_dim)
        shape = (features,) if isinstance(features, int) else tuple(features)
        scale = (math.prod(shape) + nodes) ** -0.5 if std is None else std
        start = Source([key(self.seed, "w")]).normal(torch.empty(nodes, *shape))
        self.w = nn.Parameter(scale * start)
