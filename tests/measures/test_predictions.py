"""Predictions under noise: means over all draws of a law by hand, entropies, their errors."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import oracles
import pytest
import torch
from torch import nn

import dither
from dither.measures.predictions import predictive

Z = 4.9  # two-sided chance of a false alarm per number: 1e-6


@dataclass(frozen=True)
class EveryPattern:
    """Signs, all patterns of two in turn, a row each."""

    variance = 1.0
    turn: Any = field(
        default_factory=lambda: itertools.cycle(itertools.product((-1.0, 1.0), repeat=2)),
        compare=False,
    )

    def sample(self, source, like):
        return torch.tensor(list(itertools.islice(self.turn, len(like))), dtype=like.dtype)


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def every(model, read):
    """(noise, x, the predictions of each pattern by hand [4, …])."""
    x = torch.randn(1, 2).double()
    noise = dither.inject(model, {"input": dither.Additive(0.7, EveryPattern())})
    patterns = itertools.product((-1.0, 1.0), repeat=2)
    rows = [read(model(x + 0.7 * torch.tensor(s).double()))[0].detach() for s in patterns]
    return noise, x, torch.stack(rows)


def test_over_all_draws_it_is_what_is_summed_by_hand():
    """Entropies: H of the mean and mean KL, plus what a mean of 4 draws lacks."""
    model = net().eval()
    noise, x, p = every(model, lambda z: z.softmax(-1))
    found = predictive(noise, x, draws=4, seed=0)
    mean = p.mean(0)
    oracles.close(found.mean.value[0], mean)
    oracles.close(found.spread[0], p.std(0))
    oracles.close(found.mean.sem[0], p.std(0) / 2)
    lost = sum(p[:, c].var() / (8 * mean[c]) for c in range(3))
    entropy = -sum(mean[c] * mean[c].log() for c in range(3))
    kl = torch.stack([sum(row[c] * (row[c] / mean[c]).log() for c in range(3)) for row in p])
    oracles.close(found.entropy.value[0], entropy + lost)
    oracles.close(found.information.value[0], kl.mean() + lost)
    oracles.close(found.information.sem[0], kl.std() / 2)


def test_outputs_are_read_as_the_loss_reads_them():
    model = net(outputs=2).eval()
    noise, x, p = every(model, torch.sigmoid)
    found = predictive(noise, x, draws=4, seed=0, loss="logistic")
    mean = p.mean(0)
    oracles.close(found.mean.value[0], mean)
    lost = (p.var(0) / 8) * (1 / mean + 1 / (1 - mean))
    entropy = -(mean * mean.log() + (1 - mean) * (1 - mean).log())
    oracles.close(found.entropy.value[0], entropy + lost)
    numbers = predictive(noise, x, draws=4, seed=0, loss=nn.MSELoss())
    oracles.close(numbers.mean.value[0], p.logit().mean(0))
    assert numbers.entropy is numbers.information is None


def test_without_noise_there_is_no_information():
    model, x = net().eval(), torch.randn(5, 2).double()
    model[2].bias.data[0] = -1000  # a class without any chance
    with dither.inject(model, dither.Additive(0.0)) as noise:
        found = predictive(noise, x, draws=3)
    p = model(x).softmax(-1)
    oracles.close(found.mean.value, p)
    oracles.close(found.entropy.value, -torch.special.xlogy(p, p).sum(-1), rtol=1e-9)
    assert found.information.value.abs().max() < 1e-12
    assert found.spread.max() < 1e-12


def test_eight_draws_are_about_right_in_the_mean_and_know_their_error():
    """150 calls of 8 draws against one of 20 000. What is left of the bias is O(1/N²): the mean's
    error is below a third of what the uncorrected entropy lacks, up to Z standard errors.
    Σ error²/Σ sem² is F(149, 149·7)-like and lies in (½, 2) but once in 10⁶.
    """
    model, x = net().eval(), torch.tensor([[0.3, -0.2]]).double()
    with dither.inject(model, dither.Additive(0.6)) as sites:
        true = predictive(sites, x, draws=20_000, seed=1)
        calls = [predictive(sites, x, draws=8, seed=100 + i) for i in range(150)]
    p, spread = true.mean.value[0], true.spread[0]
    lacks = (spread.square() / (16 * p)).sum()
    for which in ("entropy", "information"):
        value = torch.stack([getattr(c, which).value[0] for c in calls])
        sem = torch.stack([getattr(c, which).sem[0] for c in calls])
        wanted = getattr(true, which)
        off = (value.mean() - wanted.value[0]).abs()
        noise_of_it = math.hypot(value.std() / 150**0.5, wanted.sem[0])
        assert off < lacks / 3 + Z * noise_of_it
        assert 0.5 < value.var() / sem.square().mean() < 2


def test_looking_changes_nothing():
    model, x = net(), torch.randn(3, 2).double()
    noise = dither.inject(model, dither.Weight(0.3), seed=0)
    model(x)
    step, state = noise.step, torch.get_rng_state()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    found, again = (predictive(noise, x, draws=4, seed=3) for _ in range(2))
    assert torch.equal(found.mean.value, again.mean.value)
    assert model.training
    assert noise.step == step
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not found.mean.value.requires_grad


def test_sequences_have_a_prediction_at_each_position():
    model, x = nn.Sequential(nn.Linear(2, 4)).double(), torch.randn(3, 5, 2).double()
    with dither.inject(model, dither.Additive(0.1)) as noise:
        found = predictive(noise, x, draws=4)
    assert found.mean.value.shape == found.spread.shape == (3, 5, 4)
    assert found.entropy.value.shape == found.information.sem.shape == (3, 5)


def test_bad_input_is_told():
    model, x = net(), torch.randn(3, 2).double()
    noise = dither.inject(model, dither.Additive(0.1))
    for draws in (1, 2.5):
        with pytest.raises(dither.DitherError, match=f"draws is a whole number ≥ 2: got {draws}"):
            predictive(noise, x, draws=draws)
    with pytest.raises(dither.DitherError, match="first argument is the noise that inject gave"):
        predictive(model, x)
    with pytest.raises(dither.DitherError, match="'cross_entropy', 'logistic' or 'half_square'"):
        predictive(noise, x, loss=lambda z, y: z.sum(-1))
    with pytest.raises(dither.errors.NotFinite, match="outputs under noise are not finite"):
        predictive(noise, x * torch.nan)
    one = dither.inject(nn.Linear(2, 1).double(), dither.Additive(0.1))
    with pytest.raises(dither.DitherError, match="two outputs or more"):
        predictive(one, x)
