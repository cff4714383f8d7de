"""R in half precision: sums in single, so that many small terms still count."""

import pytest
import torch
from torch import nn

import dither
from dither.measures import curvature

HALF = [torch.bfloat16, torch.float16]
X, Y = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
NOISES = {
    "Additive": dither.Additive(0.1),
    "Multiplicative": dither.Multiplicative(0.2),
    "Node": {"0": dither.Node(1.0)},
    "Weight": dither.Weight(0.05),
}


class Attention(nn.Module):
    """Linear maps over positions, behind a LayerNorm, which autocast leaves in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.norm(self.inner(x))).mean(1)


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 40), nn.ELU(),
                         nn.Linear(40, 10)).eval()  # fmt: skip


def R(model: nn.Module, what, x: torch.Tensor, **how) -> dither.Explicit:
    with dither.inject(model, what, seed=0) as noise:
        for w in noise.parameters():  # which are drawn in the model's own precision
            w.data.copy_(torch.linspace(-1, 1, w.numel()).view(w.shape))
        return dither.explicit(noise, x, Y[: len(x)], **how)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", HALF)
def test_R_is_that_of_single_precision_but_for_rounding(dtype, noise, grad):
    half = mlp().to(dtype)
    single = mlp()
    single.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    x = X.to(dtype)
    with torch.set_grad_enabled(grad):
        wanted, found = (R(m, NOISES[noise], t) for m, t in ((single, x.float()), (half, x)))
    assert found.R.item() == pytest.approx(wanted.R.item(), rel=0.02)
    if grad:
        (found.loss + found.R).backward()
        a, b = half[2].weight.grad.float(), single[2].weight
        (wanted.loss + wanted.R).backward()
        assert (a - b.grad).norm() < 0.05 * b.grad.norm()


class OneByOne(nn.Module):
    """A net whose columns are pulled back one by one: a hook of its own stands in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 1000)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            h.register_hook(lambda g: None)
        return self.b(h)


@pytest.mark.parametrize("noise", [dither.Additive(1.0), dither.Weight(0.1)])
def test_a_thousand_small_terms_are_not_lost(noise):
    """A sum in half precision stands still once a term is less than half its last digit."""
    torch.manual_seed(0)
    net, single = OneByOne().bfloat16(), OneByOne()
    single.load_state_dict({k: v.float() for k, v in net.state_dict().items()})
    x, y, values = torch.randn(16, 16).bfloat16(), torch.arange(16), []
    for model, t in ((single, x.float()), (net, x)):
        with dither.inject(model, noise) as on, torch.no_grad():
            values.append(dither.explicit(on, t, y).R.item())
    assert values[1] == pytest.approx(values[0], rel=5e-3)


def test_weights_of_classes_in_half_precision():
    weight = torch.linspace(0.5, 2, 10)
    values = [
        R(m, NOISES["Additive"], x, loss=nn.CrossEntropyLoss(weight=w)).R.item()
        for m, x, w in ((mlp(), X, weight), (mlp().bfloat16(), X.bfloat16(), weight.bfloat16()))
    ]
    assert values[1] == pytest.approx(values[0], rel=0.03)


@pytest.mark.parametrize("inside", [False, True], ids=["around", "in the forward"])
@pytest.mark.parametrize("noise", ["Additive", "Weight"])
def test_under_autocast(noise, inside, monkeypatch):
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(4, 5, 8)
    with torch.no_grad():
        wanted = R(model, NOISES[noise], x).R.item()
    cast = torch.autocast("cpu", torch.bfloat16)
    if inside:
        monkeypatch.setattr(model, "forward", cast(model.forward))
        with torch.no_grad():
            found = R(model, NOISES[noise], x).R.item()
    else:
        with torch.no_grad(), cast:
            found = R(model, NOISES[noise], x).R.item()
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.filterwarnings("ignore:balance. the net is too young")
def test_a_trace_and_a_balance_and_what_monte_carlo_says():
    net = mlp().bfloat16()
    single = mlp()
    single.load_state_dict({k: v.float() for k, v in net.state_dict().items()})
    traces = [
        curvature.trace(m, "cross_entropy", (x, Y)).value
        for m, x in ((net, X.bfloat16()), (single, X.bfloat16().float()))
    ]
    assert traces[0] == pytest.approx(traces[1], rel=0.02)
    sigmas, estimates = [], []
    for m, x in ((net, X.bfloat16()), (single, X.bfloat16().float())):
        with dither.inject(m, dither.Additive(0.5), seed=0) as noise:
            sigmas.append(dither.balance(noise, x, Y, ratio=0.001))
            estimates.append(dither.expected(noise, x, Y, draws=400, antithetic=True, seed=1))
    for name, sigma in sigmas[1].items():
        assert sigmas[0][name] == pytest.approx(sigma, rel=0.02)
    a, b = estimates
    assert abs(a.value - b.value) < 5 * (a.sem**2 + b.sem**2) ** 0.5 + 0.02 * abs(b.value)
