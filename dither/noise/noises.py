"""The noises. Each has two faces:

    displace(site, rng) → δ          what is added to a tensor in training
    variance(g, site)   → Var⟨g, δ⟩  what that penalises:  R = ½ E_batch Σ_sites Σ_c Var⟨g_c, δ⟩
                        (★)

They belong together: the mean of δ is 0, and the mean of ⟨g, δ⟩² is Var. A new noise is one class
with these two methods, a σ and a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dither.errors import DitherError, check_whole
from dither.noise.here import Here, fitting, gather, norm2, spread
from dither.noise.laws import (
    Dropout,
    Gaussian,
    Law,
    TwoGaussian,
    TwoPoint,
    Uniform,
    gaussian,
    uniform,
)
from dither.schedule import Balanced
from dither.torch_internals import functional

Sigma = Any  # a number ≥ 0, or a schedule, Callable[[int], float] of the step

HALF = Dropout(0.5)


class Noise(Protocol):
    """What every noise has: a σ, a side, and two faces."""

    @property
    def sigma(self) -> Any: ...
    @property
    def side(self) -> Any: ...
    def displace(self, site: Here, rng: Any) -> Tensor: ...
    def variance(self, g: Any, site: Here) -> Tensor: ...


def checked(self) -> None:
    """Raises DitherError unless σ is a number ≥ 0 or a function of the step, and law a law."""
    name, sigma, law = type(self).__name__, self.sigma, getattr(self, "law", gaussian)
    if isinstance(law, type) or not (hasattr(law, "sample") and hasattr(law, "variance")):
        is_class = isinstance(law, type)
        got = f"the class {law.__name__}: add its arguments" if is_class else repr(law)
        raise DitherError(
            f"the law of {name} must be an instance such as gaussian or dropout(0.5): got {got}"
        )
    if isinstance(sigma, Tensor):
        if sigma.numel() != 1:
            raise DitherError(
                f"σ of {name} is one number: got {list(sigma.shape)}; give each site a noise of "
                "its own in a mapping"
            )
        if not bool((torch.isfinite(sigma) & (sigma >= 0)).all()):
            raise DitherError(f"σ of {name} must be finite and ≥ 0: got {sigma!r}")
        return
    if callable(sigma):
        return
    if isinstance(sigma, bool) or not isinstance(sigma, Real):
        raise DitherError(f"σ of {name} must be a number or a function of the step: got {sigma!r}")
    if not (math.isfinite(sigma) and float(sigma) >= 0):
        raise DitherError(f"σ of {name} must be finite and ≥ 0: got {sigma!r}")


def at(noise: Any, step: int) -> Any:
    """The noise with σ of its schedule at `step`. A noise with constant σ is returned as it is."""
    if not callable(noise.sigma):
        return noise
    value: Any = noise.sigma(step)
    try:
        sigma = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise DitherError(
            f"σ of {type(noise).__name__} at step {step} must be a number: its function gave "
            f"{value!r}"
        ) from None
    return replace(noise, sigma=sigma)  # pyright: ignore


def plus(noise: Any, site: Here, rng: Any, scale: float = 1) -> Tensor:
    """H + scale·δ."""
    h = site.h
    if _plain(noise, h):  # memory is half the cost of noise on a wide network
        size, eps = noise.size(site), rng(noise.law, h)
        if size is None:
            return eps.mul_(scale * noise.sigma).add_(h)
        return torch.addcmul(h, size, eps, value=scale * noise.sigma)
    delta = noise.displace(site, rng)
    return h + (delta if scale == 1 else scale * delta)


def _plain(noise: Any, h: Tensor) -> bool:
    """Whether H + δ needs no tensor for δ: it is `Sized`, of a law whose draws are new memory."""
    return (
        getattr(type(noise), "displace", None) is Sized.displace  # a subclass may have another
        and type(noise.law) in (Gaussian, Uniform, TwoPoint, TwoGaussian, Dropout)
        and isinstance(noise.sigma, float | int)
        and h.dtype in (torch.float32, torch.float64)
        and not functional(h)
    )


class Sized:
    """δ = σ s∘ε, one ε ~ law per element, s its size; Var⟨g, δ⟩ = σ²‖g∘s‖²."""

    sigma: Any
    law: Any

    def size(self, site: Here) -> Tensor | None:
        """s, which broadcasts with the tensor; None is 1."""
        return None

    def displace(self, site: Here, rng) -> Tensor:
        size, eps = self.size(site), rng(self.law, site.h)
        return self.sigma * eps if size is None else self.sigma * size * eps

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        size = self.size(site)
        return self.sigma**2 * self.law.variance * norm2(g if size is None else g * size)


@dataclass(frozen=True)
class Additive(Sized):
    """δ = σ ε, one ε ~ law per element; Var⟨g, δ⟩ = σ²‖g‖².   Camuto et al. 2020, eq. 5 and 9.

    On the model's input this is Bishop's Tikhonov term. σ is in the units of the activation.
    """

    sigma: Sigma
    law: Law = gaussian
    side = "in"
    __post_init__ = checked


@dataclass(frozen=True)
class Multiplicative(Sized):
    """δ = σ h∘ε, one ε ~ law per element; Var⟨g, δ⟩ = σ²‖g∘h‖².   Camuto et al. 2020, eq. 6.

    Dropout is `Multiplicative(law=dropout(p))`. σ has no unit.
    """

    sigma: Sigma = 1.0
    law: Law = gaussian
    side = "in"
    __post_init__ = checked

    def size(self, site: Here) -> Tensor:
        return site.h


@dataclass(frozen=True)
class Node:
    """δ = σ Σ_n ε_n w_n, scalars ε_n ~ law per sample, vectors w_n trained; Var⟨g, δ⟩ = σ² Σ_n
    (g·w_n)².

    Levi et al. 2022, eq. 1 and 4. On a Linear's pre-activation it is the paper's extra input
    unit; on a convolution's input it is added pixel by pixel. w starts from N(0, std²);
    `std=None` is the paper's 1/√fan_in, where the fan-in counts the nodes. ε is drawn at each call.
    All positions of a sequence share the ε of their sample.
    """

    sigma: Sigma
    law: Law = gaussian
    nodes: int = 1
    std: float | None = None
    per_sample = True  # one draw for a sample: batch_dim of inject says where they are

    def __post_init__(self) -> None:
        checked(self)
        check_whole("Node: nodes", self.nodes)
        if self.std is not None and not (math.isfinite(self.std) and self.std >= 0):
            raise DitherError(f"std of Node's vectors must be finite and ≥ 0: got {self.std!r}")

    @staticmethod
    def side(module: nn.Module) -> str:
        return "in" if isinstance(module, nn.modules.conv._ConvNd) else "out"

    def displace(self, site: Here, rng) -> Tensor:
        fitting(site)
        h, w, s = site.h, site.w, site.stack
        batch = h.shape[site.samples]
        eps = rng(self.law, h.new_empty(*h.shape[:s], batch, self.nodes))
        delta = (eps @ w.flatten(s + 1)).unflatten(-1, w.shape[s + 1 :])  # [*S, B, *features]
        return self.sigma * spread(delta, h, site)

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        fitting(site)
        w, s = site.w, site.stack
        g = gather(g, w.dim() - s - 1, site)  # [K, *S, B, *features]
        gw = g.flatten(s + 2) @ w.flatten(s + 1).mT  # [K, *S, B, n]
        return self.sigma**2 * self.law.variance * gw.square().sum(-1).flatten(1)


@dataclass(frozen=True)
class Weight(Sized):
    """δ = σ E on a parameter, E ~ law per element, shared by the batch; Var⟨g, δ⟩ = σ²‖∂⟨S_c,
    z_i⟩/∂W‖² per sample i.

    Orvieto et al. 2022, eq. 6 and 11. σ is in the units of the parameter. The argument `draw` of
    `inject` says how a step spends σ over several tensors.
    """

    sigma: Sigma
    law: Law = gaussian
    side = "parameter"
    __post_init__ = checked


@dataclass(frozen=True)
class DropConnect(Multiplicative):
    """δ = σ W∘E on a parameter, E ~ law per element, shared by the batch; Var⟨g, δ⟩ = σ²‖g∘W‖² per
    sample.   Wan et al. 2013.

    With the law dropout(p) a weight is 0 with chance p, else W/(1 − p); DropConnect(0.1, gaussian)
    is noise in proportion to each weight. σ has no unit.
    """

    law: Law = HALF
    side = "parameter"


@dataclass(frozen=True)
class Relative(Sized):
    """δ = σ m∘E on a parameter, E ~ law per element, m the largest |W| of its row, or of the whole
    tensor; Var⟨g, δ⟩ = σ²‖g∘m‖² per sample.   Joshi et al. 2020 (analogue hardware).

    A row is what feeds one output, all but dimension 0; a vector (a bias) is one row. σ has no
    unit.
    """

    sigma: Sigma
    law: Law = gaussian
    per: str = "tensor"
    side = "parameter"

    def __post_init__(self) -> None:
        checked(self)
        if self.per not in ("tensor", "row"):
            raise DitherError(f"per of Relative is 'tensor' or 'row': got {self.per!r}")

    def size(self, site: Here) -> Tensor:
        """The largest |W| of each row or of the tensor, which broadcasts with W [*S, rows, …]."""
        first = site.stack + (self.per == "row" and site.h.dim() > site.stack + 1)
        rest = site.h.dim() - first
        if not rest:
            return site.h.abs()
        return site.h.abs().flatten(first).amax(-1, keepdim=True).unflatten(-1, (1,) * rest)


@dataclass(frozen=True)
class Neftune:
    """δ = α ε/√(T d) on the output of an embedding [B, T, d], one ε ~ law per element; Var⟨g, δ⟩ =
    α²‖g‖²/(T d).   Jain et al. 2023, algorithm 1, where ε ~ U(−1, 1) and α (here σ) is 5 to 15.

    Name the embedding, `{"embed_tokens": Neftune(5)}`. T counts all positions; under a mask
    (`Masked`) those of the sample that get noise. σ is in the units of the embedding.
    """

    sigma: Sigma
    law: Law = uniform
    side = "out"
    __post_init__ = checked

    def displace(self, site: Here, rng) -> Tensor:
        size = self._size(site)
        if isinstance(size, Tensor):  # one for each sample
            shape = [1] * site.h.dim()
            shape[site.samples] = -1
            size = size.view(shape)
        return self.sigma * size**-0.5 * rng(self.law, site.h)

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        return self.sigma**2 * self.law.variance / self._size(site) * norm2(g)

    @staticmethod
    def _size(site: Here) -> Any:
        """T d: the elements of a sample; [B] under a mask."""
        sizes = list(site.h.shape[site.stack :])
        del sizes[site.samples - site.stack]
        if site.mask is None:
            return max(math.prod(sizes), 1)
        m = site.mask != 0  # [B, T…]
        rest = math.prod(sizes[m.dim() - 1 :])
        return (m.flatten(1).sum(1) * rest).clamp_min(1).to(site.h.dtype)


def describe(noise: Any) -> str:
    """One short phrase for tables: `Additive σ 0.1 gaussian`."""
    words = [type(noise).__name__]
    for field in fields(noise):
        value = getattr(noise, field.name)
        if isinstance(value, Balanced):
            words.append(f"σ {value}")
        elif field.name == "sigma":
            sigma, more = at(noise, 0).sigma, " at first" if callable(value) else ""
            if isinstance(sigma, Tensor):
                sigma, more = float(sigma.detach()), " learnt"
            words.append(f"σ {sigma:.4g}{more}")
        elif field.name == "law":
            plain = not getattr(value, "__dataclass_fields__", {}) or value == TwoGaussian()
            words.append(type(value).__name__.lower() if plain else repr(value))
        elif value != field.default:
            words.append(f"{field.name} {value}")
    if hasattr(noise, "of"):  # under a mask
        mask = noise.mask if isinstance(noise.mask, str) else "its mask"
        return f"{describe(replace(noise.of, sigma=noise.sigma))} where {mask}"
    return " ".join(words)


FACES = {"displace": "displace(site, rng)", "variance": "variance(g, site)", "side": "side"}


def lacks(what: object) -> str | None:
    """The part of a noise that is missing; None if all are there."""
    if isinstance(what, type) or not hasattr(what, "sigma"):
        return "sigma"
    return next((said for name, said in FACES.items() if not hasattr(what, name)), None)


def is_noise(what: object) -> bool:
    """Whether it has the two faces, a σ and a side."""
    return lacks(what) is None


def side_of(noise: Any, module: nn.Module) -> str:
    """The side on which a noise acts if the pattern names none: "in", "out" or "parameter"."""
    return noise.side(module) if callable(noise.side) else noise.side  # pyright: ignore
