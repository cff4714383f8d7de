"""Amplitudes of a function of one variable, sampled on the grid t = 0, 1/n, … < 1.

    a_k = |2/n Σ_t f(t) exp(−2πikt)|          a_k = A for f(t) = A sin(2πkt + φ), 0 < k < n/2

Rahaman et al. 2019, §3 (their |f̃(k)|, in units of a sine's own amplitude); Camuto et al. 2020,
Fig. 4. A function that is not periodic on [0, 1) leaks into all k: a ramp t ↦ ct has a_k ≈ c/(πk).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dither.errors import DitherError


def amplitudes(f: Tensor, frequencies: Sequence[int]) -> Tensor:
    """a_k of real samples f [..., n] at whole frequencies k (in cycles over the grid), [..., K].

    k = 0 gives |mean|, k = n/2 (n even) |A sin φ|: there phase and amplitude of a sine can't be
    separated. One FFT, O(n log n). Raises DitherError for k outside 0 … n/2.

    >>> t = torch.arange(200) / 200
    >>> amplitudes(0.5 * torch.sin(2 * torch.pi * 15 * t + 1), [10, 15]).round(decimals=3)
    tensor([0.0000, 0.5000])
    """
    n = f.shape[-1]
    wrong = [k for k in frequencies if not (k == int(k) and 0 <= k <= n / 2)]
    if wrong:
        raise DitherError(
            f"amplitudes: a grid of {n} points has whole frequencies 0 … {n // 2}: got {wrong[0]}"
        )
    k = torch.tensor([int(k) for k in frequencies], device=f.device)
    once = (k == 0) | (2 * k == n)  # they have no partner at −k
    return torch.fft.rfft(f, norm="forward").abs()[..., k] * torch.where(once, 1.0, 2.0).to(f)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """√(Σ_k (a_k − b_k)²) of two spectra [..., K], [...]."""
    return (a - b).norm(dim=-1)
