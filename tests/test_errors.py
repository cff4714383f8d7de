"""Every number that says how many is asked by one mechanism."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither import measures, schedule
from dither.errors import check_whole, is_number
from dither.measures.capacity import capacity
from dither.measures.explosion import explosion, growth
from dither.measures.local import series
from dither.measures.robustness import attack, corruption


def parts() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return net, torch.rand(6, 4), torch.arange(6) % 3


def noise() -> tuple[dither.Injection, torch.Tensor, torch.Tensor]:
    net, x, y = parts()
    return dither.inject(net, dither.Additive(0.1)), x, y


def smooth(net: nn.Module, x: torch.Tensor, _y: Any, draws: Any) -> Any:
    return measures.certificate(net, x, sigma=0.1, draws=draws)


def data(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
    return net, "cross_entropy", (x, y)


PIXELS = {"bounds": (0, 1), "strengths": [0.1]}
COUNTS: dict[str, tuple[int, Callable[[Any], Any]]] = {  # the least, and a call
    "Node": (1, lambda n: dither.Node(0.1, nodes=n)),
    "Linear": (1, lambda n: schedule.Linear(0.1, 0.2, n)),
    "Balanced": (1, lambda n: schedule.Balanced(every=n)),
    "batch_dim": (0, lambda n: dither.inject(parts()[0], dither.Node(0.1), batch_dim=n)),
    "samples": (1, lambda n: dither.explicit(*noise(), samples=n)),
    "expected": (2, lambda n: dither.expected(*noise(), draws=n)),
    "pairs": (4, lambda n: dither.expected(*noise(), draws=n, antithetic=True)),
    "balance": (4, lambda n: dither.balance(*noise(), draws=n)),
    "series": (2, lambda n: series(*noise(), draws=n)),
    "trace": (2, lambda n: measures.trace(*data(*parts()), probes=n)),
    "diagonal": (2, lambda n: measures.diagonal(*data(*parts()), probes=n)),
    "eigenvalues": (1, lambda n: measures.eigenvalues(*data(*parts()), k=n)),
    "density": (1, lambda n: measures.density(*data(*parts()), steps=n)),
    "attack": (1, lambda n: attack(*parts(), draws=n, loss="cross_entropy", **PIXELS)),
    "attack steps": (1, lambda n: attack(*parts(), steps=n, method="pgd", **PIXELS)),
    "corruption": (1, lambda n: corruption(*parts(), levels=[0.1], draws=n)),
    "certificate": (1, lambda n: smooth(*parts(), draws=(n, 10))),
    "certificate n": (1, lambda n: smooth(*parts(), draws=(10, n))),
    "explosion": (4, lambda n: explosion(*parts(), sigma=0.1, draws=n)),
    "growth": (4, lambda n: growth(*parts()[:2], sigma=0.1, draws=n)),
}


@pytest.mark.parametrize("call", COUNTS)
def test_what_counts_is_a_whole_number(call):
    least, made = COUNTS[call]
    for wrong in (least - 1, least + 0.5, True, "a", None if call == "Node" else [least]):
        with pytest.raises(dither.DitherError, match=r"is a whole number ≥ \d.*: got "):
            made(wrong)


@pytest.mark.parametrize("bounds", [(0, 1), [0.0, 1.0], np.array([0.0, 1.0]), torch.arange(2)])
def test_bounds_are_any_two_numbers(bounds):
    torch.manual_seed(0)
    assert attack(*parts(), bounds=bounds, strengths=[0.1])


@pytest.mark.parametrize("draws", [0.0, torch.tensor(0), np.array([4, 5]), torch.tensor([0, 1])])
def test_no_draws_are_the_whole_number_0(draws):
    with pytest.raises(dither.DitherError, match="draws is a whole number ≥ 4"):
        dither.balance(*noise(), draws=draws)


@pytest.mark.parametrize("n", [3, np.int64(3), torch.tensor(3).item()])
def test_whole_numbers_of_any_library_count(n):
    check_whole("n", n, 3)
    with pytest.raises(dither.DitherError, match=r"n is a whole number ≥ 4 \(two pairs\): got .*3"):
        check_whole("n", n, 4, "two pairs")


def test_numbers():
    assert all(map(is_number, (0, -1.5, np.float32(2), np.int8(3), float("nan"), torch.ones(()))))
    none = (True, "1", None, 1j, [1], torch.ones(1), torch.ones(()) > 0, torch.ones(()) * 1j)
    assert not any(map(is_number, none))


@pytest.mark.parametrize(
    "call",
    [
        lambda v: capacity(*parts(), quantile=v),
        lambda v: measures.certificate(*parts()[:2], sigma=0.1, alpha=v),
        lambda v: attack(*parts(), bounds=v, strengths=[0.1]),
        lambda v: attack(*parts(), step=v, method="pgd", **PIXELS),
        lambda v: explosion(*parts(), sigma=v),
        lambda v: explosion(*parts(), sigma=0.1, limit=v),
        lambda v: measures.trace(*data(*parts()), precision=v),
        lambda v: measures.density(*data(*parts()), width=v),
        lambda v: measures.eigenvalues(*data(*parts()), tolerance=v),
    ],
)
def test_numbers_that_are_none_are_told(call):
    for wrong in ("a", True, [1], (None, 1), torch.ones(3)):
        with pytest.raises(dither.DitherError, match=r"got |bounds = |quantile = "):
            call(wrong)
