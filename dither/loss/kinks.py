"""Kinks and cuts of a loss: slopes that change where the second derivative is 0, and values that
change where the slope does not say so.

    ∫₀¹ dᵀ ∇²ℓ(z + t d) d dt = dᵀ ∇ℓ(z + d) − dᵀ ∇ℓ(z),     ∫₀¹ dᵀ ∇ℓ(z + t d) dt = ℓ(z + d) − ℓ(z)

hold for a loss with a first derivative that is continuous, and that autograd takes of all of it. A
kink adds to the right side of the first alone. A second-order term does not see it, and it counts
at the same order: E|r + σε| − |r| is σ² times the density of r at 0. A weight that is detached is
in the value, and not in the slope.
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
CUT = 0.005  # of the way that the value goes
PANELS = (1, 8, 64)
REACH = 4.0  # length of a step, in outputs
FAR = 32.0  # outputs beyond which a random step grows no more: softmax curves over a few units


def check_kinks(per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any) -> None:
    """Raises DitherError if on a line through the outputs z [B, …] the slope of the loss changes by
    kinks, or its value otherwise than its slope says: at random, or to the other side of targets in
    the shape of z, as far as a few sizes of the outputs. Where 16 nodes do not add up to the
    change, more of them tell sharp curvature from kinks.
    """
    z = z.detach()
    random = torch.Generator().manual_seed(0)
    reach = REACH * (1 + z.abs())
    steps = [reach.clamp(max=REACH * FAR) * torch.randn(z.shape, generator=random).to(z)]
    if isinstance(y, Tensor) and y.shape == z.shape:
        steps.append((2 * (y.to(z.dtype) - z)).clamp(-reach, reach))
    for d in steps:
        cut = kinked = True
        for panels in PANELS:
            value, slope = _missing(per_sample, z, y, d, panels)
            cut, kinked = cut and value > CUT, kinked and slope > SHARE
            if not (cut or kinked):
                break
        if cut:
            raise DitherError(
                "the gradient of the loss is not that of its value: a part of it is cut from the "
                "outputs (detach, torch.no_grad, a weight that is made of them so), and noise "
                "moves that part too; let gradients through, or use dither.expected"
            )
        if kinked:
            raise DitherError(
                "the loss has kinks (its slope changes where its second derivative is 0, as that "
                "of L1): no second-order term tells what noise does to it; dither.expected does"
            )


def _missing(
    per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any, d: Tensor, panels: int
) -> tuple[float, float]:
    """From z to z + d: the share of the value's way that slopes leave out, and the share of the
    slope's change that curvature leaves out.
    """
    start, end = (_slope(per_sample, at, y, d) for at in (z, z + d))
    risen, curved, way = (torch.zeros_like(start[0]) for _ in range(3))  # [B]
    for panel in range(panels):
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            t, w = (panel + (1 + node) / 2) / panels, weight / 2 / panels
            _, slope, curvature = _slope(per_sample, z + t * d, y, d)
            risen, curved, way = risen + w * slope, curved + w * curvature, way + w * slope.abs()
    values, slopes = end[0] - start[0], end[1] - start[1]
    way = torch.maximum(way, values.abs())
    return _share(values - risen, way), _share(slopes - curved, slopes)


def _share(missing: Tensor, whole: Tensor) -> float:
    """Σ|missing| / Σ|whole|; 0 where nothing is missing but rounding."""
    off = missing.abs().sum()
    return float(off / whole.abs().sum()) if off > 1e-6 * len(missing) else 0.0


def _slope(
    per_sample: Callable[[Tensor, Any], Tensor], z: Tensor, y: Any, d: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(ℓ, dᵀ∇ℓ, dᵀ∇²ℓ d) at z, each [B]."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = per_sample(at, y)
        (g,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        along = (g * d).reshape(len(z), -1).sum(1)
        curved = torch.zeros_like(z)
        if along.requires_grad:
            (found,) = torch.autograd.grad(along.sum(), at, allow_unused=True)
            curved = curved if found is None else found
    return value.detach(), along.detach(), (curved * d).reshape(len(z), -1).sum(1)
