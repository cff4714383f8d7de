"""A user's autograd.Function: second derivatives are right, or refused in a sentence."""

import numpy as np
import pytest
import torch
from oracles import close
from torch import nn
from torch.autograd.function import once_differentiable

import dither
from dither.errors import DitherError

Y = torch.tensor([0, 2, 1, 1])


class Whole(torch.autograd.Function):
    """tanh with a backward of torch's own functions."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh().square())


class Once(Whole):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return Whole.backward(ctx, g)


class ByNumpy(Whole):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(1 - np.tanh(x.detach().numpy()) ** 2)


class KeepsAnArray(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 - np.tanh(x.detach().numpy()) ** 2
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * torch.from_numpy(ctx.slope)


class Reversed(torch.autograd.Function):
    """Gradient reversal: its backward is constant, and saves nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Scaled(torch.autograd.Function):
    """A product that saves x, though its gradient does not depend on it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * torch.ones_like(x.detach())


class Detached(Reversed):
    @staticmethod
    def backward(ctx, g):
        return -g.detach()


class Net(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.a, self.b, self.f = nn.Linear(3, 4), nn.Linear(4, 3), f

    def forward(self, x):
        return self.b(self.f(self.a(x)))


def net(f):
    torch.manual_seed(0)
    return Net(f).double().eval(), torch.randn(4, 3).double()


def second(f):
    """[R, ∂R/∂a, the whole second order, a trace], whose draws are the same for each f."""
    model, x = net(f)
    with dither.inject(model, dither.Weight(0.1), seed=0) as noise:
        R = dither.explicit(noise, x, Y).R
        (slope,) = torch.autograd.grad(R, model.a.weight)
        full = dither.explicit(noise, x, Y, curvature="full").R.detach()
    trace = dither.measures.trace(model, "cross_entropy", (x, Y), probes=4).value
    return R.detach(), slope, full, torch.tensor(trace, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mine", "torchs"),
    [
        (Whole.apply, torch.tanh),
        (lambda h: Reversed.apply(h).tanh(), torch.tanh),
        (lambda h: Scaled.apply(h).tanh(), lambda h: (2 * h).tanh()),
    ],
    ids=["whole", "reversed", "scaled"],
)
def test_what_can_be_differentiated_is_right(mine, torchs):
    found, right = second(mine), second(torchs)
    turned = "Reversed" in mine.__code__.co_names if hasattr(mine, "__code__") else False
    for k in (0, 2) if turned else range(4):  # reversal turns what crosses it once
        close(found[k], right[k])


@pytest.mark.parametrize("f", [Once, ByNumpy, KeepsAnArray, Detached])
def test_what_cannot_is_refused(f):
    model, x = net(f.apply)
    before = [p.detach().clone() for p in model.parameters()]
    with dither.inject(model, dither.Weight(0.1)) as noise:
        with torch.no_grad():
            value = dither.explicit(noise, x, Y).R
        with pytest.raises(DitherError, match=f"{f.__name__}.*no_grad"):
            dither.explicit(noise, x, Y)
        with pytest.raises(DitherError, match=f.__name__):
            dither.explicit(noise, x, Y, curvature="full")
    with pytest.raises(DitherError, match=f.__name__):
        dither.measures.trace(model, "cross_entropy", (x, Y))
    close(value, second(torch.tanh if f is not Detached else lambda h: h)[0])
    assert all(map(torch.equal, before, model.parameters()))


def test_what_it_saved_is_as_it_was():
    model, x = net(Once.apply)
    with dither.inject(model, {"a:out": dither.Additive(0.1)}) as noise, torch.no_grad():
        before = dither.explicit(noise, x, Y).R
    kept = x.clone()
    with dither.inject(model, {"a:out": dither.Additive(0.1)}) as noise:
        with pytest.raises(DitherError, match="Once"):
            dither.explicit(noise, x, Y)
        with torch.no_grad():
            assert torch.equal(dither.explicit(noise, x, Y).R, before)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_second_derivatives_of_weight_norm(dim):
    """torch's own are wrong; the plain form's are those of differences."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4), dim=dim)
    model, x = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3)).double().eval(), torch.randn(4, 3)
    x, loss, right = x.double(), nn.CrossEntropyLoss(), {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            w, right[name] = p.view(-1), 0.0
            for k in range(len(w)):
                for step in (1e-3, -1e-3):
                    before = w[k].clone()
                    right[name] += float(loss(model(x), Y)) / 1e-6
                    w[k] += step
                    right[name] += float(loss(model(x), Y)) / 1e-6
                    w[k] = before
                    right[name] -= 2 * float(loss(model(x), Y)) / 1e-6
    with dither.inject(model, dither.Weight(1.0)) as noise:
        found = dither.explicit(noise, x, Y, curvature="full").by_site
    for name, whole in right.items():
        torch.testing.assert_close(2 * found[name].item(), whole, rtol=1e-3, atol=1e-5)


def test_functions_of_torch_without_a_second_derivative():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 3)
            self.centres = nn.Buffer(torch.randn(5, 4))

        def forward(self, x):
            return self.b(torch.cdist(self.a(x), self.centres))

    model, x = Distances().double().eval(), torch.randn(4, 3).double()
    with dither.inject(model, dither.Weight(1.0)) as noise:
        with torch.no_grad():
            assert dither.explicit(noise, x, Y).R > 0
        for ask in ({}, {"curvature": "full"}):
            with pytest.raises(DitherError, match=r"torch\.cdist"):
                dither.explicit(noise, x, Y, **ask)
