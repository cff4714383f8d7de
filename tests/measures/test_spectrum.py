"""Amplitudes against sums of sines that are known, and against Parseval."""

import math

import pytest
import torch

from dither.errors import DitherError
from dither.measures import spectrum


def grid(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64) / n


@pytest.mark.parametrize("n", [200, 201])
def test_a_sum_of_sines_has_its_own_amplitudes_whatever_the_phases(n):
    t = grid(n)
    size = {3: 0.7, 10: 2.0, 99: 0.25}
    f = sum(a * torch.sin(2 * math.pi * k * t + 1.3 * k) for k, a in size.items())
    found = spectrum.amplitudes(f + 4.0, [0, 3, 5, 10, 99])
    expected = torch.tensor([4.0, 0.7, 0.0, 2.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_it_is_the_sum_that_the_docstring_says():
    f = torch.randn(3, 40, dtype=torch.float64)
    t = grid(40)
    for k in (1, 7, 19):
        wave = torch.exp(-2j * math.pi * k * t)
        torch.testing.assert_close(
            spectrum.amplitudes(f, [k])[:, 0], (2 / 40 * (f * wave).sum(1)).abs()
        )


@pytest.mark.parametrize("n", [40, 41])
def test_parseval(n):
    f = torch.randn(n, dtype=torch.float64)
    a = spectrum.amplitudes(f, range(n // 2 + 1)).square()
    alone = a[0] + (a[-1] if n % 2 == 0 else 0)  # the mean, and the Nyquist frequency
    torch.testing.assert_close(f.square().mean(), alone + (a.sum() - alone) / 2)


@pytest.mark.parametrize("k", [101, -1, 2.5])
def test_frequencies_the_grid_cant_tell_are_refused(k):
    with pytest.raises(DitherError, match=r"grid of 200 points .*0 … 100"):
        spectrum.amplitudes(torch.zeros(200), [5, k])


def test_the_distance_is_euclidean_over_frequencies():
    a = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    torch.testing.assert_close(spectrum.distance(a, torch.zeros(2)), torch.tensor([3.0, 2**0.5]))
