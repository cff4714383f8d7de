"""‖Σ_t g_t a_tᵀ‖² of a 2-D convolution, a_t the patches, without the patches.

Two ways, beside unfolding. By tiles: the gradient of an r×r kernel is a correlation of g with the
image; over a tile of m×m positions it is, in each direction, a product of polynomials of m and r
coefficients read at n = r + m − 1 points (Toom, Cook; Winograd), so n² products for a pair of
channels in place of r²m², and n²/m² numbers for a position in place of r². By pixels: the patches'
Gram matrix is the pixels', summed along its diagonals,

    a_t·a_t' = Σ_δ x_{t+δ}·x_{t'+δ},

so the channels are summed over once and not r² times.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)  # and ∞
READ = len(POINTS) + 1  # n, the pixels a tile reads in each direction
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

    @property
    def tile(self) -> tuple[int, ...]:
        """Positions of a tile, m."""
        return tuple(READ + 1 - r for r in self.kernel)

    @property
    def tiles(self) -> tuple[int, ...]:
        """How many cover what comes out."""
        return tuple(-(-size // m) for size, m in zip(self.out, self.tile, strict=True))

    @property
    def products(self) -> float:
        """Products for a position and a pair of channels, by tiles."""
        return READ**2 / math.prod(self.tile)

    @property
    def can_tile(self) -> bool:
        """Whether there are fewer products by tiles."""
        dense = set(self.stride) == set(self.dilation) == {1}
        return dense and all(1 < r < READ for r in self.kernel)

    def area(self, x: Tensor) -> int:
        """Pixels of an image of x [B, C, H, W], padding included."""
        return math.prod(n + 2 * p for n, p in zip(x.shape[2:], self.padding, strict=True))

    def padded(self, x: Tensor, more: tuple[int, ...] = (0, 0)) -> Tensor:
        """X with its padding, and `more` behind it."""
        (top, left), (below, right) = self.padding, more
        if not any((top, left, below, right)):
            return x
        return F.pad(x, (left, left + right, top, top + below))


@functools.cache
def toom(r: int) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """(of the kernel [n, r], of g [n, m], of the pixels [n, n]): y = Aᵀ(G g ∘ B d) is the valid
    correlation y_j = Σ_i g_i d_{i+j}.

    C reads a polynomial of n coefficients at the points, so its inverse makes a product of two
    from their values: u * g = C⁻¹(A u ∘ G g). What u ↦ u * g is transposed to is y, hence B = C⁻ᵀ.
    """

    def reads(count: int) -> Tensor:
        rows = [[p**j for j in range(count)] for p in POINTS]
        return torch.tensor([*rows, [0.0] * (count - 1) + [1.0]], dtype=torch.float64, device="cpu")

    b = torch.linalg.inv(reads(READ)).mT
    return reads(r).tolist(), reads(READ + 1 - r).tolist(), b.tolist()


def _both(patch: Patch, which: int, like: Tensor) -> Tensor:
    """One of the three transforms for both directions at once: its Kronecker product."""
    rows, columns = (like.new_tensor(toom(r)[which]) for r in patch.kernel)
    return torch.kron(rows, columns)


def tiled(patch: Patch, x: Tensor) -> Tensor:
    """What the tiles of x [B, I, H, W] read, transformed: [n², B, I, tiles]."""
    need = [m * n + r - 1 for m, n, r in zip(patch.tile, patch.tiles, patch.kernel, strict=True)]
    have = [size + 2 * p for size, p in zip(x.shape[2:], patch.padding, strict=True)]
    rows, columns = (max(n - h, 0) for n, h in zip(need, have, strict=True))
    b = _both(patch, 2, x)

    def block(x: Tensor) -> Tensor:
        d = patch.padded(x, (rows, columns))
        for dim, m, n in zip((2, 3), patch.tile, patch.tiles, strict=True):
            d = d.unfold(dim, READ, m).narrow(dim, 0, n)
        d = d.permute(4, 5, 0, 1, 2, 3)  # [n, n, B, I, tiles…]
        return (b @ d.reshape(READ**2, -1)).view(READ**2, *x.shape[:2], -1)

    return in_blocks(block, (x,), (0,), 1, patch.products * x[0].numel())


def by_tiles(patch: Patch, u: Tensor, g: Tensor) -> Tensor:
    """‖Σ_t g_t a_tᵀ‖² [K, B] of u = `tiled` x and g [K, B, O, H', W']."""
    forward, back = _both(patch, 1, g), _both(patch, 0, g).mT.contiguous()
    (my, mx), (ny, nx) = patch.tile, patch.tiles
    beyond = (0, nx * mx - patch.out[1], 0, ny * my - patch.out[0])

    def block(u: Tensor, g: Tensor) -> Tensor:
        k, b, o = g.shape[:3]
        g = F.pad(g, beyond) if any(beyond) else g
        g = g.transpose(0, 1).reshape(b * k * o, ny, my, nx, mx).permute(2, 4, 0, 1, 3)
        v = (forward @ g.reshape(my * mx, -1)).view(READ**2, b, k * o, ny * nx)
        w = back @ (v @ u.mT).view(READ**2, -1)  # [r², B·K·O·I]
        return norm2(w.view(len(back), b, k, -1), (3,)).sum(0).mT

    o, i = g.shape[2], u.shape[2]
    one = max(READ**2 * o * i, patch.products * g[0, 0].numel())  # of one sample's one column
    columns = max(1, int(ELEMENTS // one))
    parts = [in_blocks(block, (u, part), (1, 1), 1, one * len(part)) for part in g.split(columns)]
    return torch.cat(parts)


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
