"""★ for every noise on every model with every loss: exact R, sampled R, their gradients, E[Δℓ]."""

import itertools

import pytest
import torch
from cases import CASES, NOISES
from oracles import (
    LOSSES,
    close,
    gradients,
    mean_change,
    regulariser,
    second_order,
    two_sided,
    z_scores,
)
from signs import every_sign

import dither
from dither.noise import Additive, Node, Weight, two_point

each = [
    pytest.param(case, *NOISES[noise], loss, id=f"{case.name}-{noise}-{loss}")
    for case, noise, loss in itertools.product(CASES, NOISES, LOSSES)
]


@pytest.mark.parametrize(("case", "noise", "how", "loss"), each)
def test_R_and_its_gradient_are_the_dense_ones(case, noise, how, loss):
    model, x, y = case.build(loss)
    injected = case.inject(model, noise, x, **how)
    value, R, by_site = dither.explicit(injected, x, y, loss)
    truth = regulariser(injected, x, y, LOSSES[loss])
    z = model(x)
    close(value, torch.stack([LOSSES[loss](z[i], y[i]) for i in range(len(y))]).mean())
    assert list(by_site) == list(truth)
    close(torch.stack([*by_site.values()]), torch.stack([*truth.values()]))
    close(R, sum(truth.values()))
    close(gradients(R, injected), gradients(sum(truth.values()), injected))
    with torch.no_grad():
        close(dither.explicit(injected, x, y, loss).R, R.detach())


# -------------------------------------------------------------------------------------- sampled R


two = [
    pytest.param(case, *NOISES[noise], loss, id=f"{case.name}-{noise}-{loss}")
    for case, noise, loss in itertools.product(CASES, NOISES, ("cross_entropy", "logistic"))
]


@pytest.mark.parametrize(("case", "noise", "how", "loss"), two)
def test_the_mean_over_all_signs_is_R_and_its_gradient(case, noise, how, loss, monkeypatch):
    model, x, y = case.build(loss)
    x, y = x[:2], y[:2]
    injected = case.inject(model, noise, x, **how)
    exact = dither.explicit(injected, x, y, loss)
    n = every_sign(monkeypatch, model(x), loss == "cross_entropy")
    sampled = dither.explicit(injected, x, y, loss, samples=n)
    close(torch.stack([*sampled.by_site.values()]), torch.stack([*exact.by_site.values()]))
    close(gradients(sampled.R, injected), gradients(exact.R, injected))


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "node", "weight", "weight all"])
def test_with_batch_norm_in_train_mode_sampled_R_is_that_of_the_coupled_batch(noise, monkeypatch):
    case = next(c for c in CASES if c.name == "resnet")
    model, x, y = case.build("cross_entropy")
    x, y = x[:2], y[:2]
    injected = case.inject(model, NOISES[noise][0], x, **NOISES[noise][1])
    model.train()
    with pytest.raises(
        dither.DitherError, match=r"'bn1' \(BatchNorm2d\) mixes the batch.*samples=1"
    ):
        dither.explicit(injected, x, y)
    n = every_sign(monkeypatch, y.new_empty(2, 3), 1)
    sampled = dither.explicit(injected, x, y, samples=n)
    injected.pause()
    truth = sum(regulariser(injected, x, y, LOSSES["cross_entropy"]).values())
    close(sampled.R, truth)
    close(gradients(sampled.R, injected), gradients(truth, injected))


@pytest.mark.parametrize("noise", ["additive", "node", "weight"])
def test_sampled_R_and_its_gradient_are_unbiased(noise):
    draws, alarm = 500, 1e-5
    case = CASES[0]
    model, x, y = case.build("cross_entropy")
    injected = case.inject(model, NOISES[noise][0], x)
    exact = dither.explicit(injected, x, y).R
    truth = torch.cat([exact.detach().view(1), gradients(exact, injected)])
    found = []
    for _ in range(draws):
        R = dither.explicit(injected, x, y, samples=1).R
        found.append(torch.cat([R.detach().view(1), gradients(R, injected)]))
    z = z_scores(torch.stack(found), truth)
    assert z.max() < two_sided(alarm / z.numel())


# ------------------------------------------------------------------------- the whole second order

SECOND = ("additive", "multiplicative", "node", "weight", "weight all", "user's")
full = [
    pytest.param(case, *NOISES[noise], id=f"{case.name}-{noise}")
    for case, noise in itertools.product(CASES, SECOND)
]


@pytest.mark.parametrize(("case", "noise", "how"), full)
def test_the_full_curvature_is_the_dense_hessian(case, noise, how):
    model, x, y = case.build("cross_entropy")
    injected = case.inject(model, noise, x, **how)
    truth = second_order(injected, x, y, LOSSES["cross_entropy"])
    with torch.no_grad():
        _, _, by_site = dither.explicit(injected, x, y, curvature="full")
    close(torch.stack([*by_site.values()]), torch.stack([*truth.values()]))


def test_the_full_curvature_differentiates():
    case = CASES[0]
    model, x, y = case.build("logistic")
    injected = case.inject(model, NOISES["multiplicative"][0], x)
    R = dither.explicit(injected, x, y, "logistic", curvature="full").R
    truth = sum(second_order(injected, x, y, LOSSES["logistic"]).values())
    close(gradients(R, injected), gradients(truth, injected))


SMALL = {
    "additive": (lambda s: Additive(s, law=two_point), {"0:in": 2, "2:in": 2}),
    "node": (lambda s: Node(s, law=two_point), {"0:out": 1, "2:out": 1}),
    "weight": (
        lambda s: {"0.weight": Weight(s, law=two_point), "2.bias": Weight(s, law=two_point)},
        {"0.weight": 4, "2.bias": 3},
    ),
}


def small(noise, sigma):
    torch.manual_seed(3)
    model = (
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
        .double()
        .eval()
    )
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 2])
    make, numbers = SMALL[noise]
    return dither.inject(model, make(sigma), seed=0), x, y, numbers


@pytest.mark.parametrize("noise", SMALL)
def test_what_the_full_curvature_leaves_of_E_is_of_fourth_order(noise):
    left, without_residual = [], []
    for sigma in (0.1, 0.05):
        injected, x, y, numbers = small(noise, sigma)
        true = mean_change(injected, x, y, LOSSES["cross_entropy"], numbers)
        with torch.no_grad():
            left.append(true - dither.explicit(injected, x, y, curvature="full").R)
            without_residual.append(true - dither.explicit(injected, x, y).R)
    assert 14 < left[0] / left[1] < 18
    assert 3 < without_residual[0] / without_residual[1] < 5  # R alone is not the whole O(σ²)


@pytest.mark.parametrize("noise", SMALL)
def test_expected_is_unbiased(noise):
    alarm = 1e-5
    injected, x, y, numbers = small(noise, 0.8)
    true = mean_change(injected, x, y, LOSSES["cross_entropy"], numbers)
    for antithetic in (False, True):
        e = dither.expected(injected, x, y, draws=1500, antithetic=antithetic, seed=5)
        assert abs(e.value - true) / e.sem < two_sided(alarm)


@pytest.mark.parametrize(
    "noise", ["additive", "multiplicative", "node", "weight", "weight cycle by layer"]
)
def test_monte_carlo_agrees_with_the_full_curvature_at_small_sigma(noise):
    alarm = 1e-5
    case = next(c for c in CASES if c.name == "rnn")
    model, x, y = case.build("half_square")
    noise, how = NOISES[noise]
    injected = case.inject(model, type(noise)(sigma=1e-3), x, **how)
    with torch.no_grad():
        R = dither.explicit(injected, x, y, "half_square", curvature="full").R
    e = dither.expected(injected, x, y, "half_square", draws=600, antithetic=True, seed=2)
    assert abs(e.value - R) / e.sem < two_sided(alarm)
    assert e.sem < 0.2 * abs(R)  # sharp enough to see a lost ½
