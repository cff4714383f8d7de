"""Losses whose slope jumps are refused; those that only curve sharply are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dither
from dither.loss import get

torch.manual_seed(0)
X, REAL, CLASS = torch.randn(64, 5), torch.randn(64, 3), torch.randint(3, (64,))
SIGN = (REAL > 0).float()


def hinge(z, y):
    return (1 - z * (2 * y - 1)).clamp_min(0)


def pinball(z, y):
    return torch.maximum(0.9 * (y - z), -0.1 * (y - z)).sum(1)


KINKED = {
    "L1": (nn.L1Loss(), REAL),
    "L1 as a function": (lambda z, y: (z - y).abs().mean(1), REAL),
    "pinball": (pinball, REAL),
    "hinge": (lambda z, y: hinge(z, y).sum(1), SIGN),
    "elastic": (lambda z, y: ((z - y).abs() + 0.5 * (z - y) ** 2).sum(1), REAL),
    "log of |r|": (lambda z, y: torch.log1p((z - y).abs()).sum(1), REAL),
}
SMOOTH = {
    "huber": (nn.HuberLoss(), REAL),
    "narrow huber": (nn.HuberLoss(delta=0.05), REAL),
    "squared hinge": (lambda z, y: hinge(z, y).square().sum(1), SIGN),
    "cross-entropy": (lambda z, y: F.cross_entropy(z, y, reduction="none"), CLASS),
    "sharp logistic": (lambda z, y: F.softplus(30 * z * (1 - 2 * y)).sum(1), SIGN),
    "log cosh": (lambda z, y: (z - y).cosh().log().sum(1), REAL),
    "student": (lambda z, y: torch.log1p((z - y) ** 2).sum(1), REAL),
    "poisson": (lambda z, y: (z.exp() - y * z).sum(1), REAL.abs().round()),
    "linear": (lambda z, y: (z * y).sum(1), REAL),
}


def injected():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return dither.inject(model, dither.Additive(0.1))


@pytest.mark.parametrize("curvature", ["gauss_newton", "full"])
@pytest.mark.parametrize("loss", KINKED)
def test_kinks_are_refused(loss, curvature):
    function, y = KINKED[loss]
    with pytest.raises(dither.DitherError, match=r"kinks .*dither.expected does"):
        dither.explicit(injected(), X, y, function, curvature=curvature)


@pytest.mark.parametrize("loss", SMOOTH)
def test_the_second_order_of_others_is_the_mean_change(loss):
    function, y = SMOOTH[loss]
    noise = injected()
    for site in noise.sites:  # small, so that the fourth order is out of the way
        assert noise.sites[site].noise.sigma == 0.1
    with torch.no_grad():
        full = float(dither.explicit(noise, X, y, function, curvature="full").R)
    change = dither.expected(noise, X, y, function, draws=1000, antithetic=True)
    assert abs(change.value - full) < 5 * change.sem + 0.15 * abs(change.value)


def sure(z, y):
    return F.softmax(z, 1).gather(1, y[:, None])[:, 0]


def each(z, y):
    return F.cross_entropy(z, y, reduction="none")


CUTS = {
    "a weight that falls": lambda z, y: (1.5 - sure(z, y)).detach() * each(z, y),
    "a weight that rises": lambda z, y: (1 + 0.5 * sure(z, y)).detach() * each(z, y),
    "a part": lambda z, y: 0.95 * each(z, y) + 0.05 * each(F.softmax(z, 1).detach(), y),
    "focal": lambda z, y: (1 - sure(z, y)).detach() ** 2 * each(z, y),
    "scaled to 1": lambda z, y: each(z, y) / each(z, y).detach(),
}
WHOLE = {
    "focal": lambda z, y: (1 - sure(z, y)) ** 2 * each(z, y),
    "a maximum that cancels": lambda z, y: each(z - z.amax(1, keepdim=True).detach(), y),
    "a constant": lambda z, y: each(z, y) + sure(z, y).detach() * 0 + 1,
}


@pytest.mark.parametrize("curvature", ["gauss_newton", "full"])
@pytest.mark.parametrize("loss", CUTS)
def test_cuts_are_refused(loss, curvature):
    with pytest.raises(dither.DitherError, match=r"not that of its value.* dither.expected$"):
        dither.explicit(injected(), X, CLASS, CUTS[loss], curvature=curvature)


@pytest.mark.parametrize("loss", WHOLE)
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1000.0])
def test_what_is_cut_nowhere_or_cancels_is_let_pass(loss, size):
    """At logits of any size."""
    torch.manual_seed(0)
    get(WHOLE[loss]).check_kinks(size * torch.randn(64, 3), CLASS)


def test_a_kink_out_of_reach_does_not_matter():
    loss, far = get(nn.L1Loss()), torch.full((64, 3), 1e3)
    noise = injected()
    with torch.no_grad():
        full = float(dither.explicit(noise, X, far, loss, curvature="full").R)
    change = dither.expected(noise, X, far, loss, draws=1000, antithetic=True)
    assert abs(change.value - full) < 5 * change.sem + 0.15 * abs(change.value)


def test_a_loss_that_torch_differentiates_once_is_told():
    with pytest.raises(dither.DitherError, match="no second derivative in torch"):
        dither.explicit(injected(), X, CLASS, nn.MultiMarginLoss())


def test_the_random_state_stays():
    state = torch.get_rng_state()
    get(SMOOTH["huber"][0]).check_kinks(REAL, REAL + 1)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------- modules and their means


@pytest.mark.parametrize(
    "module",
    [
        nn.HuberLoss(), nn.SmoothL1Loss(), nn.PoissonNLLLoss(), nn.SoftMarginLoss(),
        nn.HuberLoss(reduction="none"), nn.BCEWithLogitsLoss(weight=torch.rand(64, 1) + 0.5),
        nn.MSELoss(reduction="none"),
    ],
)  # fmt: skip
def test_a_module_is_asked_for_all_samples_at_once(module):
    z, y = REAL.double(), SIGN.double()
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    each = get(module).per_sample(z, y)
    module._forward_hooks.clear()
    assert len(calls) <= 2
    assert each.shape == (64,)
    torch.testing.assert_close(each.mean(), module(z, y).mean())
    if getattr(module, "weight", None) is None:
        for i in (0, 40):
            torch.testing.assert_close(each[i], module(z[i : i + 1], y[i : i + 1]).mean())


def test_a_mean_of_ones_own_is_asked_for_all_samples_at_once():
    calls = []

    def loss(z, y):
        calls.append(1)
        return F.smooth_l1_loss(z, y)

    each = get(loss).per_sample(REAL, SIGN)
    assert len(calls) == 2
    torch.testing.assert_close(each, F.smooth_l1_loss(REAL, SIGN, reduction="none").mean(1))


def test_one_number_for_each_sample_may_have_more_dimensions():
    each = get(lambda z, y: (z - y).square().sum(1, keepdim=True)).per_sample(REAL, SIGN)
    torch.testing.assert_close(each, (REAL - SIGN).square().sum(1))
