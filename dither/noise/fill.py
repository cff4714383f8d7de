"""Normal, uniform and sign draws from random bits.

On a CPU torch draws one number at a time. That is most of the cost of noise on the weights of a
wide network. Long float32 tensors are filled from the bits of SFC64 (numpy) instead, in pieces that
stay in the cache: normals in .71 of torch's time at half a million elements, in .51 at three
million (medians of 25 with matrix products between, one core of an AMD EPYC, torch 2.13). torch
draws all other tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dither.torch_internals import outside_functorch

LONG = 1 << 19  # elements; for fewer, with cold caches, the setup costs more than it saves
PIECE = 1 << 16  # elements: 256 KiB
BODY, CELLS = 3.0, 1 << 16  # |x| of a normal draw from the table, and the table's length
BEYOND = math.erfc(BODY / math.sqrt(2))  # the probability of |x| > BODY, .0027

Write = Callable[[Tensor, np.random.SFC64], None]


def normal(out: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1): from a table of 2^16 quantiles where |x| < 3, by the inverse of Φ beyond."""
    return _long(out, generator, _quantiles) if _fast(out) else out.normal_(generator=generator)


def uniform(out: Tensor, generator: torch.Generator) -> Tensor:
    """U[0, 1): multiples of 2^−24 in float32."""
    return _long(out, generator, _units) if _fast(out) else out.uniform_(generator=generator)


def sign(out: Tensor, generator: torch.Generator) -> Tensor:
    """±1: a random byte chooses a row of a table of eight."""
    n, device = out.numel(), out.device
    words = torch.empty(-(-n // 32), dtype=torch.int32, device=device)
    rows = words.random_(-(2**31), 2**31, generator=generator).view(torch.uint8).int()
    table = torch.from_numpy(_bits_of_bytes()).to(device, out.dtype)
    return out.copy_(table.index_select(0, rows).view(-1)[:n].view(out.shape))


@cache
def _bits_of_bytes() -> np.ndarray:
    """The eight bits of each byte as ±1 [256, 8]."""
    return (2.0 * (np.arange(256)[:, None] >> np.arange(8) & 1) - 1).astype(np.float32)


def _fast(out: Tensor) -> bool:
    return (
        out.device.type == "cpu"
        and out.dtype == torch.float32
        and out.numel() >= LONG
        and out.is_contiguous()
    )


def _long(out: Tensor, generator: torch.Generator, write: Write) -> Tensor:
    """Fill from a stream whose seed is the generator's seed and state."""
    state = torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)
    bits = np.random.SFC64([generator.initial_seed(), int(state)])
    with torch.no_grad():
        write(out.view(-1), bits)
    return out


def _quantiles(out: Tensor, bits: np.random.SFC64) -> None:
    """A mixture: 16 bits choose a value of the body of the law, and one place in 370 is drawn from
    its tails.

    The variance of the body is too small by 3·10^−9; its distribution function is off by 2^−17 at
    most.
    """
    body = torch.from_numpy(_body())
    for piece in out.split(PIECE):
        cell = bits.random_raw(-(-len(piece) // 4)).view(np.uint16)[: len(piece)]
        torch.index_select(body, 0, torch.from_numpy(cell.astype(np.int32)), out=piece)
    at = _places(len(out), BEYOND, bits)
    p = torch.from_numpy((_units52(len(at), bits) - 0.5) * BEYOND)  # below 0: the left tail
    x = torch.special.ndtri(p.abs())
    out[torch.from_numpy(at)] = torch.where(p < 0, x, -x).float()


@cache
def _body() -> np.ndarray:
    """Means of N(0, 1) in CELLS cells of equal chance between ±BODY: E[x | a < x < b] = (φ(a) −
    φ(b)) / (Φ(b) − Φ(a)).
    """
    p = BEYOND / 2 + (1 - BEYOND) * np.arange(CELLS + 1) / CELLS
    with outside_functorch():
        a = torch.special.ndtri(torch.from_numpy(p)).numpy()
    x = -np.diff(np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)) * CELLS / (1 - BEYOND)
    return ((x - x[::-1]) / 2).astype(np.float32)  # exactly symmetric about 0


def _places(n: int, chance: float, bits: np.random.SFC64) -> np.ndarray:
    """The places in 0 … n − 1 that n trials of a probability choose, by the gaps between them."""
    most = int(n * chance + 10 * math.sqrt(n * chance) + 20)  # more are needed once in 10^20
    gaps = np.log(_units52(most, bits)) / math.log1p(-chance)
    at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    return at[at < n]


def _units52(n: int, bits: np.random.SFC64) -> np.ndarray:
    """U(0, 1) in double precision: odd multiples of 2^−53, never 0, ½ or 1."""
    return ((bits.random_raw(n) >> np.uint64(12)) + 0.5) * 2.0**-52


def _units(out: Tensor, bits: np.random.SFC64) -> None:
    """U[0, 1) from 24 of 32 random bits."""
    for piece in out.split(PIECE):
        words = bits.random_raw(-(-len(piece) // 2)).view(np.int32)
        whole = torch.from_numpy(words).bitwise_and_((1 << 24) - 1)
        piece.copy_(whole[: len(piece)]).mul_(2.0**-24)
