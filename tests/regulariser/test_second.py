"""What R, the whole second order and the mean change are refused for: the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dither

B = 8
Y = torch.arange(B) % 3


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_what_draws_by_itself_is_told_whatever_is_asked():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 60), nn.Linear(60, 3)

        def forward(self, x):
            return self.b(F.dropout(self.a(x)))

    x = randn(B, 3)
    asks = [
        lambda noise: dither.explicit(noise, x, Y, samples=1),
        lambda noise: dither.explicit(noise, x[:1], Y[:1]),
        lambda noise: dither.expected(noise, x, Y, draws=4),
        lambda noise: dither.balance(noise, x, Y),
        lambda noise: dither.balance(noise, x, Y, samples=1),
    ]
    for ask in asks:
        with (
            dither.inject(Drops().double().eval(), {"a:out": dither.Additive(0.1)}) as noise,
            pytest.raises(dither.DitherError, match="another output when it is called again"),
        ):
            ask(noise)


def test_what_writes_to_its_input_is_told():
    class Writes(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(0.9))

    with (
        dither.inject(Writes(3, 3).double(), dither.Weight(0.1)) as noise,
        pytest.raises(dither.DitherError, match="writes to its input"),
    ):
        dither.expected(noise, randn(B, 3), Y, draws=4)


def test_the_second_order_is_refused_where_R_is():
    def centred(z, y):
        return (z - z.mean(0) - y).square().sum(1)

    model = nn.Linear(3, 3).double()
    with (  # a pair is missed with chance ½, all of 64 with chance 2⁻⁶³
        dither.inject(model, dither.Weight(0.1)) as noise,
        pytest.raises(dither.DitherError, match="depends on the output of another"),
    ):
        dither.explicit(noise, randn(64, 3), randn(64, 3), centred, curvature="full")
    both = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)}).double()
    both.forward = lambda x: both["used"](x)
    for curvature in ("gauss_newton", "full"):
        with (
            dither.inject(both, {"idle:in": dither.Additive(0.1)}) as noise,
            pytest.raises(dither.DitherError, match="was called in this forward"),
        ):
            dither.explicit(noise, randn(B, 3), Y, curvature=curvature)


def test_slopes_of_noise_that_depends_on_its_parameter():
    model, x, y = nn.Linear(3, 2).double(), randn(B, 3), randn(B, 2)
    found = {}
    for curvature in ("gauss_newton", "full"):  # equal: the net is linear, the loss a square
        with dither.inject(model, {"weight": dither.DropConnect(0.3)}) as noise:
            R = dither.explicit(noise, x, y, "half_square", curvature=curvature).R
            found[curvature] = torch.autograd.grad(R, model.weight)[0]
    torch.testing.assert_close(found["full"], found["gauss_newton"])
