"""The seeds of an injection, and its number among injections that share a seed and a site."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch

from dither.attach.ranks import agreed, ranks
from dither.errors import DitherError


def seeds(seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """The seeds of an injection: as given, or one from torch's default generator."""
    if seed is not None:
        try:
            if isinstance(seed, Sequence) and not isinstance(seed, str) and len(seed):
                return tuple(operator.index(s) for s in seed)
            return (operator.index(seed),)  # pyright: ignore[reportArgumentType]
        except TypeError:
            raise DitherError(
                f"seed is a whole number, or a list of them for a stacked model: got {seed!r}"
            ) from None
    drawn = (int(torch.randint(2**62, ()).item()),)
    return agreed(drawn) if ranks() > 1 else drawn


def ordinals(
    seeds: tuple[int, ...], others: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]
) -> tuple[int, ...]:
    """For each seed the first number that no other injection has with it. So no two injections have
    the same draws.
    """
    taken = {pair for both in others for pair in zip(*both, strict=True)}
    free = (next(n for n in range(len(taken) + 1) if (s, n) not in taken) for s in seeds)
    return tuple(free)
