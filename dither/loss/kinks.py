"""Kinks of a loss: slopes that change where the second derivative is 0.

    ∫₀¹ dᵀ ∇²ℓ(z + t d) d dt = dᵀ ∇ℓ(z + d) − dᵀ ∇ℓ(z)

holds for a loss with a first derivative that is continuous. A kink adds to the right side alone. A
second-order term does not see it, and it counts at the same order: E|r + σε| − |r| is σ² times the
density of r at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dither.errors import DitherError

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
SHARE = 0.25  # of the change of slope; a curvature that jumps, as Huber's, costs less at 16 nodes
PANELS = (1, 8, 64)
REACH = 4.0  # length of a step, in outputs


def check_kinks(per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any) -> None:
    """Raises DitherError if on a line through the outputs z [B, …] the slope of the loss changes by
    kinks: at random, or to the other side of targets in the shape of z, as far as a few sizes of
    the outputs. Where 16 nodes do not add up to the change of slope, more of them tell sharp
    curvature from kinks.
    """
    z = z.detach()
    random = torch.Generator().manual_seed(0)
    reach = REACH * (1 + z.abs())
    steps = [reach * torch.randn(z.shape, generator=random).to(z)]
    if isinstance(y, Tensor) and y.shape == z.shape:
        steps.append((2 * (y.to(z.dtype) - z)).clamp(-reach, reach))
    for d in steps:
        if all(_share(per_sample, z, y, d, panels) > SHARE for panels in PANELS):
            raise DitherError(
                "the loss has kinks (its slope changes where its second derivative is 0, as that "
                "of L1): no second-order term tells what noise does to it; dither.expected does"
            )


def _share(
    per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any, d: Tensor, panels: int
) -> float:
    """The share of the change of slope from z to z + d that curvature leaves out."""
    whole = _slope(per_sample, z + d, y, d)[0] - _slope(per_sample, z, y, d)[0]  # [B]
    curved = torch.zeros_like(whole)
    for panel in range(panels):
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            t = (panel + (1 + node) / 2) / panels
            curved += weight / 2 / panels * _slope(per_sample, z + t * d, y, d)[1]
    missing, total = (whole - curved).abs().sum(), whole.abs().sum()
    return float(missing / total) if missing > 1e-6 * len(z) else 0.0


def _slope(
    per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any, d: Tensor
) -> tuple[Tensor, Tensor]:
    """(dᵀ∇ℓ, dᵀ∇²ℓ d) at z, each [B]."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(per_sample(at, y).sum(), at, create_graph=True)
        along = (g * d).reshape(len(z), -1).sum(1)
        curved = torch.zeros_like(z)
        if along.requires_grad:
            (found,) = torch.autograd.grad(along.sum(), at, allow_unused=True)
            curved = curved if found is None else found
    return along.detach(), (curved * d).reshape(len(z), -1).sum(1)
