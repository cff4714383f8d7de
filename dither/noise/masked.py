"""A noise at some positions only: none on padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dither.errors import DitherError
from dither.noise.here import Here
from dither.noise.noises import Node, Sigma, is_noise


@dataclass(frozen=True)
class Masked:
    """δ = m∘δ₀ with another noise's δ₀ and a mask m of 0 and 1; Var⟨g, δ⟩ = Var⟨m∘g, δ₀⟩.

    of    the noise, on an activation.
    mask  which positions get noise, [B, T]: the name of an argument of the model, such as
          "attention_mask", or a function of the model's arguments, f(*args, **kwargs) → mask.
          Nonzero and True get noise. Its dimensions are the first ones of the site's tensor
          [B, T, …].
    sigma None: σ of the other noise.

    A `Neftune` under a mask counts the positions of a sample that get noise as its T.
    """

    of: Any
    mask: str | Callable[..., Tensor] = "attention_mask"
    sigma: Sigma = None

    def __post_init__(self) -> None:
        if not is_noise(self.of) or self.of.side == "parameter" or isinstance(self.of, Node):
            raise DitherError(
                "Masked takes a noise of activations without trained vectors, such as "
                f"Additive(0.1): got {self.of!r}"
            )
        if isinstance(self.of, Masked):
            raise DitherError("Masked of Masked: multiply the masks into one")
        if not (isinstance(self.mask, str) or callable(self.mask)):
            raise DitherError(
                "the mask of Masked is the name of an argument of the model, or a function of its "
                f"arguments: got {self.mask!r}"
            )
        if self.sigma is None:
            object.__setattr__(self, "sigma", self.of.sigma)
        else:
            replace(self.of, sigma=self.sigma)  # checks σ

    @property
    def side(self) -> Any:
        return self.of.side

    @property
    def law(self) -> Any:
        return self.of.law

    @property
    def per_sample(self) -> bool:
        return getattr(self.of, "per_sample", False)

    def displace(self, site: Here, rng) -> Tensor:
        m = spread(site)
        return m * replace(self.of, sigma=self.sigma).displace(site, rng)

    def variance(self, g, site: Here) -> Tensor:  # [K, B]
        return replace(self.of, sigma=self.sigma).variance(g * spread(site), site)


def spread(site: Here) -> Tensor:
    """The mask [B, T] as 0 and 1 in a shape that broadcasts with h [B, T, …] (with [T, B, …] if
    batch_dim is 1).
    """
    h, m = site.h, site.mask
    if m is None:
        raise DitherError(
            f"noise at {site.name!r} has a mask, which is an argument of the whole model: call the "
            "model, not a part of it"
        )
    fits = site.batch_dim < m.dim()
    m = m.movedim(0, site.batch_dim) if fits else m
    if not fits or m.shape != h.shape[site.stack : site.stack + m.dim()]:
        raise DitherError(
            f"noise at {site.name!r} has a mask {list(m.shape)} and gets a tensor {list(h.shape)}, "
            f"whose samples are in dimension {site.batch_dim} (batch_dim): the mask must have its "
            "first dimensions"
        )
    return (m != 0).to(h.dtype).reshape(*m.shape, *[1] * (h.dim() - m.dim()))
