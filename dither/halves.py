"""Halves of a batch: masks that silence some of the samples, to see whether others notice."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def random_half(batch: int) -> Tensor:
    """M [B] ∈ {0, 1}, of chances ½, not all alike. Of the system's own randomness: a check draws
    from no generator that a run depends on.
    """
    while True:
        random = np.frombuffer(secrets.token_bytes(-(-batch // 8)), np.uint8)
        half = torch.from_numpy(np.unpackbits(random)[:batch].astype(bool))
        if half.any() and not half.all():
            return half


def halves(batch: int) -> Iterable[Tensor]:
    """⌈log₂ B⌉ masks [B], a bit of the samples' numbers each: any two samples differ in one."""
    numbers = torch.arange(batch)
    for bit in range((batch - 1).bit_length()):
        yield (numbers >> bit & 1).bool()


def silence(column: Tensor, half: Tensor) -> Tensor:
    """u∘m."""
    return column * half.to(column.dtype).view(-1, *[1] * (column.dim() - 1))
