"""The ways to ‖Σ_t g_t a_tᵀ‖², and which costs least.

The sum can be formed, or a [T, I] be made small once for all columns: to its triangular factor R
(aᵀ = Q R, so ‖gᵀ a‖ = ‖R g‖), to its Gram matrix, and for convolutions as in `conv_norms`. Over
positions much can cancel (the gradients of attention's keys add up to 0), and a Gram matrix holds
the square of what is to cancel: so it is in double precision, where a factor is not taken instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dither.engine.conv_norms import Patch, in_blocks, norm2, pixels

# What things cost beside a multiply-add of a product in float32, as measured on a CPU.
DOUBLE = 3  # one in double precision, with what it needs beside
QR = 3  # one of a factor
ROOT = 2  # one of T³ in a Cholesky factor, in double precision
UNFOLD = 75  # a number of the unfolded operand
DIAGONAL = 20  # a number of the patches' Gram matrix, for each row or column of the kernel
KEPT = 2**25  # elements that are kept for the columns to come


class Way(NamedTuple):
    """What is made of the operand (`whole`: of the image itself, else of a [B, T, I]), how this
    and g (`whole`: [K, B, O, H', W'], else [K, B, T, O]) give ‖Σ_t g_t a_tᵀ‖² [K, B], and its cost;
    `numbers` is how many are made for a sample.
    """

    name: str
    cost: float
    small: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor, Tensor], Tensor]
    whole: bool = False
    numbers: float = 0

    def once(self, a: Tensor, g: Tensor) -> Tensor:
        """‖Σ_t g_t a_tᵀ‖² [K, B], with nothing kept: so many samples at a time as fit a block."""
        numbers = max(self.numbers, g[:, 0].numel())
        return in_blocks(lambda a, g: self.norm2(self.small(a), g), (a, g), (0, 1), 1, numbers)


def rows2(g: Tensor) -> Tensor:
    """‖g‖² of each row [K, B, …] → [K, B]."""
    return norm2(g.flatten(2) if g.dim() > 2 else g.unsqueeze(2), (2,))


def factor(a: Tensor) -> Tensor:
    """R [..., T, T], upper triangular, of aᵀ = Q R for a [..., T, I], T ≤ I:  ‖gᵀ a‖ = ‖R g‖."""
    r = torch.linalg.qr(a.mT.to(torch.promote_types(a.dtype, torch.float32)), mode="r")[1]
    return r.to(a.dtype)


def gram(a: Tensor) -> Tensor:
    """The Gram matrix a aᵀ [..., T, T] of a [..., T, I], in double precision."""
    a = a.double()
    return a @ a.mT


def root(aa: Tensor) -> Tensor:
    """R [B, T, T] with Rᵀ R = `aa`, a Gram matrix in double precision: ‖R g‖ to single precision.

    Where `aa` is singular, rounding can make it indefinite. An element is off by some ε‖a_t‖‖a_t'‖,
    so each of the diagonal is raised by T ε of itself: by less than single precision's rounding of
    that row of a.
    """
    fine = aa.isfinite().all(-1).all(-1)[:, None, None]
    aa = aa.where(fine, aa.new_zeros(()))
    diagonal = aa.diagonal(dim1=-2, dim2=-1)
    raised = diagonal * aa.shape[-1] * torch.finfo(aa.dtype).eps
    diagonal += raised.clamp(min=torch.finfo(aa.dtype).tiny)
    r, failed = torch.linalg.cholesky_ex(aa, upper=True)
    if bool(failed.any()):  # a root that is not triangular
        value, vector = torch.linalg.eigh(aa)
        r = value.clamp(min=0).sqrt().unsqueeze(-1) * vector.mT
    return r.where(fine, r.new_full((), torch.nan))


def by_factor(r: Tensor, g: Tensor) -> Tensor:
    """‖R g‖² of a factor [..., T, T] and g [..., T, O]."""
    return norm2(r @ g, (-2, -1))


def by_gram(aa: Tensor, g: Tensor) -> Tensor:
    """Σ (g gᵀ)∘(a aᵀ) of a Gram matrix in double precision and g [..., T, O]."""
    return (gram(g) * aa).sum((-2, -1)).to(g.dtype)


def cheapest(
    n: int, t: int, i: int, o: int, a: Tensor, g: Tensor, patch: Patch | None = None
) -> Way | None:
    """The way to ‖Σ_t g_t a_tᵀ‖² of n columns, a [..., T, I] and g [..., T, O]; None where forming
    the sum costs least. `patch`: of a convolution, whose image is a [B, C, H, W].

    Where it is differentiated by Gram matrices, as a factor has no slope where a's rank is not
    full.
    """
    recorded = a.requires_grad or g.requires_grad
    unfold = UNFOLD * i * t if patch else 0
    found: list[Way] = []
    if not g.is_mps:  # which has neither double precision nor factors
        if recorded:
            found.append(
                Way("gram", DOUBLE * t * t * (i + n * o) + unfold, gram, by_gram, numbers=t * t)
            )
        else:
            found.append(
                Way("factor", t * t * (QR * i + n * o) + unfold, factor, by_factor, numbers=t * t)
            )
        if patch and (recorded or a.dtype is not torch.float64):
            found.append(_by_pixels(n, t, o, a, patch, recorded))
    best = min(found, key=lambda way: way.cost, default=None)
    return best if best and best.cost < n * t * i * o + unfold else None


def _by_pixels(n: int, t: int, o: int, a: Tensor, patch: Patch, recorded: bool) -> Way:
    read = patch.area(a) ** 2
    once = DOUBLE * read * a.shape[1] + DIAGONAL * sum(patch.kernel) * t * t

    def small(x: Tensor) -> Tensor:
        aa = pixels(patch, x)
        return aa if recorded else root(aa).to(x.dtype)

    each = (DOUBLE if recorded else 1) * t * t * o
    cost = once + n * each + (0 if recorded else ROOT * t**3)
    norm2 = _positions_last(by_gram if recorded else by_factor)
    return Way("pixels", cost, small, norm2, True, t * t)


def _positions_last(norm2: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda small, g: norm2(small, g.flatten(3).mT)
