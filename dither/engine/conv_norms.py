"""‖Σ_t g_t a_tᵀ‖² of a 2-D convolution, a_t the patches, without the patches.

The patches' Gram matrix is the pixels', summed along its diagonals,

    a_t·a_t' = Σ_δ x_{t+δ}·x_{t'+δ},

so the channels are summed over once and not r² times for a kernel of r×r.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = {"cpu": 2**18}  # elements under way at once: what fits in a cache; elsewhere ELEMENTS
ELEMENTS = 2**25


@dataclass(frozen=True)
class Patch:
    """A convolution's geometry, in each direction; `out` is the size of what it gives."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]

    def area(self, x: Tensor) -> int:
        """Pixels of an image of x [B, C, H, W], padding included."""
        return math.prod(n + 2 * p for n, p in zip(x.shape[2:], self.padding, strict=True))

    def padded(self, x: Tensor) -> Tensor:
        """X with its padding."""
        rows, columns = self.padding
        return F.pad(x, (columns, columns, rows, rows)) if rows or columns else x


def pixels(patch: Patch, x: Tensor) -> Tensor:
    """The Gram matrix [B, T, T] of the patches of x [B, I, H, W], in double precision."""

    def block(x: Tensor) -> Tensor:
        x = patch.padded(x).double()
        flat = x.flatten(2)
        p = (flat.mT @ flat).view(len(x), *x.shape[2:], *x.shape[2:])
        for axis in (0, 1):  # along both copies of an axis at once
            p = functools.reduce(torch.add, [
                _strided(_strided(p, patch, axis, 1, d), patch, axis, 3, d)
                for d in range(patch.kernel[axis])
            ])  # fmt: skip
        return p.reshape(len(x), *2 * [patch.out[0] * patch.out[1]])

    return in_blocks(block, (x,), (0,), 0, patch.area(x) ** 2)


def _strided(p: Tensor, patch: Patch, axis: int, first: int, at: int) -> Tensor:
    """The pixels that the kernel's row (or column) `at` meets, along one copy of that axis."""
    start, step = at * patch.dilation[axis], patch.stride[axis]
    where = slice(start, start + step * (patch.out[axis] - 1) + 1, step)
    return p[(slice(None),) * (first + axis) + (where,)]


def norm2(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """‖t‖² over `dims`; where it is recorded, with all its derivatives at 0 too."""
    if t.requires_grad:
        return t.square().sum(dims)
    return torch.linalg.vector_norm(t, dim=dims).square()


def in_blocks(
    work: Callable[..., Tensor], of: Sequence[Tensor], dims: Sequence[int], out: int, size: float
) -> Tensor:
    """`work` on so many samples at a time, in `dims` of its operands and `out` of its result, that
    a block's elements, `size` for each, are under way; one at least.
    """
    batch = of[0].shape[dims[0]]
    step = max(1, int(BLOCK.get(of[0].device.type, ELEMENTS) // max(size, 1)))
    if step >= batch:
        return work(*of)
    parts = [t.split(step, dim) for t, dim in zip(of, dims, strict=True)]
    return torch.cat([work(*part) for part in zip(*parts, strict=True)], out)
