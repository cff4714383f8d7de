"""Random signs: the white noise of variance 1 with the least spread in an estimate of a trace."""

from __future__ import annotations

import torch
from torch import Tensor


def signs(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Independent ±1 with equal chances, in the shape, type and device of `like`; without a
    generator from torch's default one.
    """
    bits = torch.empty_like(like, requires_grad=False).random_(0, 2, generator=generator)
    return bits.mul_(2).sub_(1)
