"""Halves of a batch: masks that set some samples to 0, to test whether others depend on them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def random_half(batch: int) -> Tensor:
    """A mask [B] ∈ {0, 1} with probabilities ½, not all equal. The randomness is the operating
    system's, so that a check changes no generator of a run.
    """
    while True:
        random = np.frombuffer(secrets.token_bytes(-(-batch // 8)), np.uint8)
        half = torch.from_numpy(np.unpackbits(random)[:batch].astype(bool))
        if half.any() and not half.all():
            return half


def halves(batch: int) -> Iterable[Tensor]:
    """⌈log₂ B⌉ masks [B], one per bit of a sample's number. Any two samples differ in one."""
    numbers = torch.arange(batch)
    for bit in range((batch - 1).bit_length()):
        yield (numbers >> bit & 1).bool()


def silence(column: Tensor, half: Tensor) -> Tensor:
    """u∘m."""
    return column * half.to(column.dtype).view(-1, *[1] * (column.dim() - 1))
