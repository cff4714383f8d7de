"""Optimisers as frozen specs; .build(parameters, nodes) makes torch's.

Weight decay acts on the network. The trained vectors of noise nodes get `node_decay`, 0 by default.
Langevin and AntiPGD are another optimiser with noise after its steps.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from dither.attach.after import After, anti_pgd, langevin
from dither.errors import DitherError
from dither.noise.noises import Sigma, Weight

# factor on lr at `step` of `steps`
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2,
    "rise": lambda step, steps: 1.0 if step < steps / 5 else 2.0,  # after the catapult
}


def _groups(model: Iterable[Tensor], nodes: Iterable[Tensor], spec: "Spec") -> list[dict]:
    groups = [
        {"params": list(model), "weight_decay": spec.weight_decay},
        {"params": list(nodes), "weight_decay": spec.node_decay},
    ]
    return [group for group in groups if group["params"]]


def _checked(spec: "Spec") -> None:
    if not (math.isfinite(spec.lr) and spec.lr > 0):
        raise DitherError(f"{type(spec).__name__}: lr = {spec.lr!r}; give a number above 0")


@dataclass(frozen=True)
class SGD:
    """v ← μv + g + λθ, θ ← θ − ηv; Nesterov: θ ← θ − η(g + λθ + μv)."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    node_decay: float = 0.0
    __post_init__ = _checked

    def build(self, model: Iterable[Tensor], nodes: Iterable[Tensor] = ()) -> Optimizer:
        kind = {"momentum": self.momentum, "nesterov": self.nesterov}
        return torch.optim.SGD(_groups(model, nodes, self), self.lr, fused=True, **kind)


@dataclass(frozen=True)
class Adam:
    """θ ← θ − η m̂/(√v̂ + ε). Keras adds its ε = 1e-7 before correcting √v for its bias."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    node_decay: float = 0.0
    __post_init__ = _checked

    def build(self, model: Iterable[Tensor], nodes: Iterable[Tensor] = ()) -> Optimizer:
        kind = {"betas": self.betas, "eps": self.eps}
        return torch.optim.Adam(_groups(model, nodes, self), self.lr, fused=True, **kind)


@dataclass(frozen=True)
class RMSprop:
    """v ← ρv + (1−ρ)g², θ ← θ − η g/(√v + ε); inside: η g/√(v + ε). The defaults are Keras'.

    Keras had ε outside the root until 2.10 and has it inside since 2.11. (torch's own ρ is .99.)
    """

    lr: float
    rho: float = 0.9
    eps: float = 1e-7
    weight_decay: float = 0.0
    node_decay: float = 0.0
    root: Literal["outside", "inside"] = "outside"

    def __post_init__(self) -> None:
        _checked(self)
        if self.root not in ("outside", "inside"):
            raise DitherError(
                f"RMSprop: root is 'outside' or 'inside', the place of ε: got {self.root!r}"
            )

    def build(self, model: Iterable[Tensor], nodes: Iterable[Tensor] = ()) -> Optimizer:
        groups = _groups(model, nodes, self)
        if self.root == "inside":
            return _InsideRoot(groups, {"lr": self.lr, "rho": self.rho, "eps": self.eps})
        return torch.optim.RMSprop(groups, self.lr, alpha=self.rho, eps=self.eps, foreach=True)


class _InsideRoot(Optimizer):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for theta in group["params"]:
                g = theta.grad
                if group["weight_decay"]:
                    g = g + group["weight_decay"] * theta
                v = self.state[theta].setdefault("v", torch.zeros_like(theta))
                v.mul_(group["rho"]).addcmul_(g, g, value=1 - group["rho"])
                theta.addcdiv_(g, (v + group["eps"]).sqrt_(), value=-group["lr"])


Spec = SGD | Adam | RMSprop


@dataclass(frozen=True)
class Langevin:
    """Another optimiser with noise after each step, θ ← step(θ) + σ ε   (`dither.langevin`)."""

    of: Spec
    sigma: Sigma

    def __post_init__(self) -> None:
        Weight(self.sigma)  # checks σ
        if isinstance(self.of, Langevin):
            raise DitherError(
                f"{type(self).__name__} of {type(self.of).__name__}: noise can follow a step only "
                "once; give the optimiser inside"
            )

    @property
    def lr(self) -> float:
        return self.of.lr

    def build(self, model: Iterable[Tensor], nodes: Iterable[Tensor] = ()) -> Optimizer:
        return self.of.build(model, nodes)

    def after(self, optimiser: Optimizer, seed: int | Sequence[int]) -> After:
        """Add the noise to an optimiser of `build`. A stack takes a list of seeds."""
        return langevin(optimiser, self.sigma, seed=seed)


@dataclass(frozen=True)
class AntiPGD(Langevin):
    """The same with increments, θ_{t+1} = step(θ_t) + σ_{t+1} ε_{t+1} − σ_t ε_t
    (`dither.anti_pgd`). Watches see weights with the last draw, unless σ has ended at 0.
    """

    def after(self, optimiser: Optimizer, seed: int | Sequence[int]) -> After:
        return anti_pgd(optimiser, self.sigma, seed=seed)
