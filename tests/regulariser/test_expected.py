"""E[Δℓ] by Monte Carlo: its error, its pairs, its independence of the noise's own clock."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, MLP, NOISES
from oracles import close, half, two_sided
from torch import nn

import dither
from dither.estimate import Estimate
from dither.noise import Additive, Multiplicative, Node, Weight, dropout


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def linear(sigma, noise=Additive):
    """A linear model with the half-square loss: E[Δℓ] = R exactly, at any σ."""
    model = half(nn.Linear(4, 3))
    return dither.inject(model, noise(sigma), seed=0), randn(5, 4), randn(5, 3), "half_square"


@pytest.mark.parametrize("noise", [Additive, Multiplicative, Node, Weight])
@pytest.mark.parametrize("antithetic", [False, True])
def test_where_the_loss_is_quadratic_R_is_all_there_is(noise, antithetic):
    alarm = 1e-5
    args = linear(2.0, noise)
    left = dither.remainder(*args, draws=2000, antithetic=antithetic, seed=1)
    assert abs(left.value) / left.sem < two_sided(alarm)
    assert left.sem < 0.1 * dither.explicit(*args).R


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_standard_error_is_that_of_many_repetitions(antithetic):
    """(value − R)/sem has variance 1: log of the ratio is normal, ± √((2 + κ)/n) with κ < 1 the
    excess kurtosis of a mean of 25 pairs or 50 draws. 400 repetitions, a false alarm in 10⁵.
    """
    draws, repetitions, alarm = 50, 400, 1e-5
    args = linear(0.5)
    R = dither.explicit(*args).R.item()
    found = [
        dither.expected(*args, draws=draws, antithetic=antithetic, seed=s)
        for s in range(repetitions)
    ]
    spread = torch.tensor([e.value for e in found]).double().var()
    mean_sem2 = sum(e.sem**2 for e in found) / repetitions
    allowed = two_sided(alarm) * math.sqrt(3 / repetitions)
    assert abs(math.log(spread / mean_sem2)) < allowed
    assert abs(sum(e.value for e in found) / repetitions - R) < two_sided(alarm) * math.sqrt(
        spread / repetitions
    )


def test_antithetic_pairs_cancel_odd_orders():
    """With a linear loss every pair is 0: δ and −δ."""
    noise, x, y, _ = linear(1.0)
    e = dither.expected(noise, x, y, lambda z, y: z.sum(1), draws=20, antithetic=True, seed=0)
    assert abs(e.value) < 1e-13
    assert dither.expected(noise, x, y, lambda z, y: z.sum(1), draws=20, seed=0).sem > 0.01


@pytest.mark.parametrize("noise", NOISES)
def test_same_seed_same_estimate(noise):
    case = CASES[0]
    model, x, y = case.build("cross_entropy")
    injected = case.inject(model, NOISES[noise][0], x, **NOISES[noise][1])
    first = dither.expected(injected, x, y, draws=10, seed=3)
    assert dither.expected(injected, x, y, draws=10, seed=3) == first
    assert dither.expected(injected, x, y, draws=10, seed=4) != first
    torch.manual_seed(5)
    free = dither.expected(injected, x, y, draws=10)
    torch.manual_seed(5)
    assert dither.expected(injected, x, y, draws=10) == free


def test_it_leaves_model_clock_and_mode_alone():
    model, x, y = half(MLP(3)).train(), randn(3, 4), torch.arange(3)
    injected = dither.inject(model, Weight(0.3), seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dither.expected(injected, x, y, draws=10)
    assert model.training
    assert injected.step == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[0].weight is dict(model.named_parameters())["0.weight"]


def test_in_turn_and_all_at_once_share_R_but_not_E():
    """Orvieto: the schemes have one R; what they really cost differs in higher orders."""
    model, x, y = half(MLP(3)), randn(8, 4), torch.arange(8) % 3
    R, E = [], []
    for draw in ("all", "cycle"):
        injected = dither.inject(model, Weight(1.5), draw=draw, seed=0)
        R.append(dither.explicit(injected, x, y).R)
        E.append(dither.expected(injected, x, y, draws=1000, seed=0))
        injected.remove()
    close(R[0], R[1])
    assert abs(E[0].value - E[1].value) > 4 * math.hypot(E[0].sem, E[1].sem)


def test_uneven_draws_in_turn_favour_no_parameter():
    """Three draws of two parameters: in turn, one of them would count twice as often. The loss is
    quadratic, so that E[Δℓ] = R; the mean of 800 calls, a false alarm in 10⁵.
    """
    model = half(nn.Linear(4, 3))
    noise = dither.inject(model, Weight(0.5), draw="cycle", seed=0)
    args = noise, randn(5, 4), randn(5, 3), "half_square"
    found = torch.tensor([dither.expected(*args, draws=3, seed=s).value for s in range(800)])
    off = found.mean() - dither.explicit(*args).R.item()
    assert abs(off) < two_sided(1e-5) * found.std() / 800**0.5


def test_time_first_models_of_as_many_steps_as_samples():
    """Dimension 0 of x is time: draws can't be stacked along it, and equal sizes must not
    mislead.
    """
    alarm = 1e-5

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):  # [T, B, 4]
            return self.fc(x).sum(0)

    model, x, y = half(TimeFirst()), randn(3, 3, 4), randn(3, 3)
    noise = dither.inject(model, Additive(0.5), seed=0)
    left = dither.remainder(noise, x, y, "half_square", draws=800, seed=0)
    assert abs(left.value) / left.sem < two_sided(alarm)


def test_a_stack_draws_for_each_replica():
    alarm = 1e-5
    from dither.lab.nets.specs import LinearNet

    stack = LinearNet((4, 3)).build_stacked([1, 2]).double()
    noise = dither.inject(stack, Additive(0.5), seed=[1, 2])
    left = dither.remainder(noise, randn(5, 4), randn(10, 3), "half_square", draws=800, seed=0)
    assert abs(left.value) / left.sem < two_sided(alarm)


def test_dropout_by_monte_carlo():
    p, alarm = 0.4, 1e-5
    noise, x, y, loss = linear(1.0, lambda s: Multiplicative(s, law=dropout(p)))
    left = dither.remainder(noise, x, y, loss, draws=2000, seed=0)
    assert abs(left.value) / left.sem < two_sided(alarm)


def test_estimates():
    e = Estimate.of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert e.value == 3
    assert math.isclose(e.sem, math.sqrt(14 / 3 / 4))
    assert (e - 1).value == 2
    assert (e - 1).sem == e.sem
    assert str(Estimate(0.12345, 0.01234)) == "0.1235 ± 0.012"


# ------------------------------------------------------------------- several draws in one forward


class OfIndex(nn.Module):
    """What a sample gets depends on its number in the batch, or on the batch, in several ways."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(3, 5), nn.Linear(5, 3), how
        self.sigma = 0.0  # of the oracle's own noise

    def forward(self, x):
        h = torch.tanh(self.a(x))
        z = self.b(h + self.sigma * torch.randn_like(h))
        if self.how == "ramp":
            return z * (1 + torch.arange(len(x)).to(x)[:, None] % 5)
        if self.how == "second quarter":
            return z * (1 + ((torch.arange(len(x)) // 4) % 4 == 1).to(x)[:, None])
        if self.how == "batch written in":
            return z.view(4, 3)
        if self.how == "range checked" and not bool((x.abs() <= 1).all()):
            raise ValueError("inputs lie in [−1, 1]")
        if self.how == "largest of the batch":
            return z / z.abs().max()
        if self.how == "those before it":
            return z + z.cumsum(0)
        return z


WAYS = ("plain", "ramp", "second quarter", "batch written in", "range checked")
MIXED = ("largest of the batch", "those before it")


@pytest.mark.parametrize("how", [*WAYS, *MIXED])
def test_draws_that_share_a_forward_are_as_good_as_one_at_a_time(how, seed):
    """The same noise on the same model, once stacked where that is possible, and once by a loop."""
    torch.manual_seed(seed)
    model = OfIndex(how).double().eval()
    x, y = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    sigma, n = 0.2, 2000
    with dither.inject(model, {"b:in": dither.Additive(sigma)}, seed=0) as noise:
        found = dither.expected(noise, x, y, draws=n, seed=1)
    with torch.no_grad():
        clean, model.sigma = F.cross_entropy(model(x), y), sigma
        loop = torch.stack([F.cross_entropy(model(x), y) for _ in range(n)])
    sem = (found.sem**2 + loop.var().item() / n) ** 0.5
    assert abs(found.value - (loop.mean() - clean).item()) < 4.9 * sem


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"draws": 1}, "draws is a whole number ≥ .*got 1"),
        ({"draws": 3, "antithetic": True}, "draws is a whole number ≥ 4.*got 3"),
        ({"draws": 10.5}, "whole number ≥ 2 .*got 10.5"),
    ],
)
def test_too_few_draws_are_a_sentence(how, says):
    with pytest.raises(dither.DitherError, match=says):
        dither.expected(*linear(0.1), **how)


class Positions(nn.Module):
    """Tokens and positions: the positions' tensor is shared by the samples."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(7, 8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(torch.tanh(self.mix(h)).mean(1))


def test_a_tensor_that_the_samples_share_has_one_draw_a_forward():
    torch.manual_seed(0)
    model = Positions().double().eval()
    x, y = torch.randint(0, 20, (16, 7)), torch.arange(16) % 3
    what = {"positions:out": dither.Additive(0.3)}
    with dither.inject(model, what, seed=0, when="always") as noise:
        found = dither.expected(noise, x, y, draws=300, seed=0)
        with torch.no_grad():
            draws = [nn.functional.cross_entropy(model(x), y) for _ in range(300)]
        with noise.off(), torch.no_grad():
            clean = nn.functional.cross_entropy(model(x), y)
    by_hand = torch.stack(draws) - clean
    assert found.sem == pytest.approx(float(by_hand.std()) / 300**0.5, rel=0.3)
    assert abs(found.value - float(by_hand.mean())) < 5 * found.sem
