"""Keyed randomness: a draw is a function of (seed, site, step, call, rank) and of nothing else.

A key is a hash of those words. It seeds a generator for each draw. So a new site does not change
the draws of the others, a recomputed forward gets the same draws, and a resumed run continues as if
it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.noise import fill
from dither.signs import signs
from dither.torch_internals import inside_vmap


def key(*words: object) -> int:
    """A 63-bit seed from any words; equal words give equal seeds. torch's generator on a CPU keeps
    32 of the bits, so that among n draws about n²/2³³ pairs are equal.
    """
    digest = blake2b("\x1f".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Source:
    """Standard draws from one key, or from one key per replica of a stacked model (along dimension
    0).

    `reflect=True` draws −normal and 1 − uniform, the other half of an antithetic pair. Half types
    are drawn in float32 and rounded once, at the end: on a grid of half precision uniform numbers
    have another mean.
    """

    def __init__(self, keys: Sequence[int], *, reflect: bool = False) -> None:
        self.keys, self.reflect = tuple(keys), reflect
        self._generators: list[torch.Generator] = []

    def __call__(self, law, like: Tensor) -> Tensor:
        wide = torch.promote_types(like.dtype, torch.float32)
        if wide == like.dtype:
            return law.sample(self, like)
        return law.sample(self, torch.empty_like(like, dtype=wide)).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) in the shape, type and device of `like`."""
        draw = self._fill(like, fill.normal)
        return draw.neg_() if self.reflect else draw

    def uniform(self, like: Tensor) -> Tensor:
        """U(0, 1) in the shape, type and device of `like`."""
        draw = self._fill(like, fill.uniform)
        return draw.neg_().add_(1) if self.reflect else draw

    def sign(self, like: Tensor) -> Tensor:
        """±1 with equal chances, from one random bit each: a quarter of the cost of a number."""
        draw = self._fill(like, fill.sign)
        return draw.neg_() if self.reflect else draw

    def _fill(self, like: Tensor, write: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        if inside_vmap():
            raise DitherError(
                "noise can't be drawn inside torch.func.vmap, where all samples would share one "
                "draw: call the model on the batch, or put `with noise.off():` inside"
            )
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        generators = self._on(like.device)
        if len(generators) == 1:
            write(out, generators[0])
        else:
            for replica, generator in zip(out, generators, strict=True):
                write(replica, generator)
        if like.is_contiguous():
            return out
        return torch.empty_like(like, requires_grad=False).copy_(
            out
        )  # the same draw in any memory layout

    def _on(self, device: torch.device) -> list[torch.Generator]:
        if not self._generators:  # one generator for all parts of a draw, in order
            self._generators = [torch.Generator(device).manual_seed(k) for k in self.keys]
        return self._generators


class Basis:
    """Not random: the k-th axis times √variance, so that Σ_k δ_k δ_kᵀ = Cov δ exactly.

    The first `batch` dimensions of a draw count samples, which all get the same axis. The others
    are the axes.
    """

    def __init__(self, k: int, batch: int) -> None:
        self.k, self.batch, self.size = k, batch, 0

    def __call__(self, law, like: Tensor) -> Tensor:
        self.size = like.shape[self.batch :].numel()
        axis = torch.zeros(self.size, dtype=like.dtype, device=like.device)
        axis[self.k] = law.variance**0.5
        return axis.view(like.shape[self.batch :]).expand(like.shape)


class Signs:
    """±√variance at random, from torch's default generator: the white noise with the least spread
    in an estimate of a trace.
    """

    def __call__(self, law, like: Tensor) -> Tensor:
        return signs(like).mul_(law.variance**0.5)
