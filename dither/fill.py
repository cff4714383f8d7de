"""Memory filled with random numbers: how bits become normal, uniform and sign draws.

torch draws one number at a time on a CPU, which is what noise on the weights of a wide network
costs. Long float32 tensors there are filled by SFC64 (numpy) and vector arithmetic instead, in
pieces that stay in the cache: about two thirds of the time for a million normals, two fifths for
uniform numbers. All else is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

LONG = 1 << 17  # elements; below, setting up costs more than it saves
PIECE = 1 << 16  # elements: 256 KiB

Write = Callable[[Tensor, np.ndarray, Tensor], None]


def normal(out: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1), by Box and Muller's pairs √(−2 ln u)·(cos θ, sin θ); tails reach to 6.5."""
    return _long(out, generator, _pairs, 3) if _fast(out) else out.normal_(generator=generator)


def uniform(out: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1): multiples of 2^−24 in float32."""
    return _long(out, generator, _units, 4) if _fast(out) else out.uniform_(generator=generator)


def signs(out: Tensor, generator: torch.Generator) -> Tensor:
    """±1: a random byte chooses a row of a table of eight."""
    n, device = out.numel(), out.device
    words = torch.empty(-(-n // 32), dtype=torch.int32, device=device)
    rows = words.random_(-(2**31), 2**31, generator=generator).view(torch.uint8).int()
    table = torch.from_numpy(_table()).to(device, out.dtype)
    return out.copy_(table.index_select(0, rows).view(-1)[:n].view(out.shape))


@cache
def _table() -> np.ndarray:
    """The eight bits of each byte as ±1 [256, 8]."""
    return (2.0 * (np.arange(256)[:, None] >> np.arange(8) & 1) - 1).astype(np.float32)


def _fast(out: Tensor) -> bool:
    return (
        out.device.type == "cpu"
        and out.dtype == torch.float32
        and out.numel() >= LONG
        and out.is_contiguous()
    )


def _long(out: Tensor, generator: torch.Generator, write: Write, words: int) -> Tensor:
    """Fill piece by piece from a stream that the generator's seed and state seed: `words` of 64
    bits per eight elements.
    """
    state = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    bits = np.random.SFC64([generator.initial_seed(), int(state)])
    scratch = torch.empty(2, PIECE // 2, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for piece in out.view(-1).split(PIECE):
            write(piece, bits.random_raw(-(-len(piece) // 8) * words), scratch)
    return out


def _pairs(out: Tensor, words: np.ndarray, scratch: Tensor) -> None:
    """48 bits make a pair: u is an odd multiple of 2^−31; θ one of 2^16 directions, evenly spread,
    over which a mean is the integral to rounding.
    """
    n, pairs = len(out), len(words) * 4 // 3
    odd = torch.from_numpy(words[: pairs // 2].view(np.int32)).bitwise_or_(1)
    angle = torch.from_numpy(words[pairs // 2 :].view(np.int16))
    r, theta = scratch[:, :pairs]
    r.copy_(odd).mul_(2.0**-31).abs_().log_().mul_(-2).sqrt_()
    theta.copy_(angle).add_(0.5).mul_(math.pi / 2**15)
    half = (n + 1) // 2
    torch.cos(theta[:half], out=out[:half]).mul_(r[:half])
    torch.sin(theta[: n - half], out=out[half:]).mul_(r[: n - half])


def _units(out: Tensor, words: np.ndarray, scratch: Tensor) -> None:
    """32 bits make a number, of which 24 count."""
    whole = torch.from_numpy(words.view(np.int32)).bitwise_and_((1 << 24) - 1)
    out.copy_(whole[: len(out)]).mul_(2.0**-24)
