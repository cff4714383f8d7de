"""What cancels is not squared first: norms in float32 where g's elements or positions cancel."""

import pytest
import torch
from torch import nn

from dither import Additive, Weight, explicit, inject
from dither.engine import backward_rules as nodes
from dither.engine import certificate
from dither.engine.certificate import Learnt

SHARED = [1e2, 1e3, 1e4, 1e5]  # times what is a row's own


def shared(k, hidden):
    """(model, x, y) in float32; the rows of the last W have a direction of size k in common, which
    the columns of a softmax cancel. Inputs of W along it are 0: logits stay small, and exact.
    """
    torch.manual_seed(0)
    before = [nn.Linear(6, 50), nn.ReLU()] if hidden else []
    model = nn.Sequential(*before, nn.Linear(50, 10))
    x = torch.randn(64, 6 if hidden else 50)
    with torch.no_grad():
        model[-1].weight.normal_()[:, 25:].add_(k * torch.randn(25))
        if hidden:
            model[0].bias[25:] = -100.0
        else:
            x[:, 25:] = 0.0
    return model, x, torch.randint(10, (64,))


def of_logits(model, x, sigma=0.1):
    """½ σ² E tr(Wᵀ(diag p − p pᵀ)W) for the last W, in float64 from the model's own logits."""
    p, w = model(x).detach().double().softmax(1), model[-1].weight.detach().double()
    mean = p @ w  # [B, in]
    spread = (p.unsqueeze(-1) * (w - mean.unsqueeze(1)).square()).sum((1, 2))
    return sigma**2 / 2 * spread.mean().item()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("k", SHARED)
def test_a_direction_that_all_units_share_cancels(k, hidden, recorded):
    model, x, y = shared(k, hidden)
    true = of_logits(model, x)
    noisy = inject(model, {"2" if hidden else "0": Additive(0.1)})
    with torch.set_grad_enabled(recorded):
        found = explicit(noisy, x, y).R.item()
    assert found > 0
    assert found == pytest.approx(true, rel=max(1e-5, 3e-8 * k))


def test_a_rule_that_fails_for_the_columns_of_the_loss_alone_is_found_out(monkeypatch):
    """A random column does not add up to 0, those of a softmax do."""

    def squared(self):
        return (self.g * (self.g @ (self.r.mT @ self.r).mT)).sum(-1)

    def off(g):
        return squared(g) + 1e-3 * (g.g.sum(-1).abs() < 1e-5)

    monkeypatch.setattr(nodes.Product, "norm2", off)
    model, x, y = shared(0, False)
    true = of_logits(model, x)
    noisy = inject(model, {"0": Additive(0.1)})
    with torch.no_grad():
        found = explicit(noisy, x, y).R
    assert found.item() == pytest.approx(true, rel=1e-5)
    assert [k.replay for k in noisy.layouts.values() if isinstance(k, Learnt)] == [False]


def column_of(monkeypatch, first):
    """The first random column is made one with a sum of `first`; gives the count of columns."""
    drawn, counted = certificate.random_column, []

    def column(z):
        u = drawn(z)
        counted.append(u)
        return u if len(counted) > 1 else u - u.mean(1, keepdim=True) + first

    monkeypatch.setattr(certificate, "random_column", column)
    return counted


def replays(noisy):
    return [k.replay for k in noisy.layouts.values() if isinstance(k, Learnt)]


@pytest.mark.parametrize("repeat", range(5))
def test_a_random_column_that_happens_to_cancel_does_not_refuse_a_right_R(repeat, monkeypatch):
    """One of a thousand: a large W leaves nothing of it but rounding, in which two ways differ."""
    model, x, y = shared(1e5, True)
    true = of_logits(model, x)
    counted = column_of(monkeypatch, 0.0)
    noisy = inject(model, {"2": Additive(0.1)})
    with torch.no_grad():
        found = explicit(noisy, x, y).R
    assert found.item() == pytest.approx(true, rel=3e-3)
    assert len(counted) in (1, 2)  # one if rounding is the same
    assert replays(noisy) == [True]


def test_a_rule_that_fails_for_some_columns_is_not_asked_twice(monkeypatch):
    """Another column that it passes does not clear it."""
    norm2 = nodes.Product.norm2
    monkeypatch.setattr(nodes.Product, "norm2", lambda g: norm2(g) * (1 + (g.g.sum(-1) < -0.5)))
    model, x, y = shared(1.0, False)
    counted = column_of(monkeypatch, -1.0)
    noisy = inject(model, {"0": Additive(0.1)})
    with torch.no_grad():
        explicit(noisy, x, y)
    assert len(counted) == 1
    assert replays(noisy) == [False]


def test_slopes_of_the_norm_of_a_product():
    """Where W's rank is not full, too: two of its units are the same."""
    model, x, y = shared(1.0, False)
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[7]
    model, x = model.double(), x.double()
    noisy = inject(model, {"0": Additive(0.1)})
    (slope,) = torch.autograd.grad(explicit(noisy, x, y).R, model[0].weight)
    w, b = (p.detach().clone().requires_grad_() for p in model[0].parameters())
    p = (x @ w.mT + b).softmax(1)
    spread = (p @ w.square()).sum(1) - (p @ w).square().sum(1)
    (true,) = torch.autograd.grad(0.1**2 / 2 * spread.mean(), w)
    torch.testing.assert_close(slope, true, rtol=1e-9, atol=1e-13)


class Keys(nn.Module):
    """Attention from 6 inputs to 6 others: the gradients of its keys add up to 0."""

    def __init__(self, k, d=48):
        super().__init__()
        self.q, self.v = nn.Linear(d, d), nn.Linear(d, d)
        self.k, self.last = nn.Linear(d, d, bias=False), nn.Linear(d, 10)
        self.mean = nn.Buffer(k * torch.randn(d))

    def forward(self, x):
        weights = self.q(x) @ self.k(x + self.mean).mT / 300
        return self.last((weights.softmax(-1) @ self.v(x)).mean(1))


class Tokens(nn.Module):
    """One token at two places, weighed k + 1 and −k."""

    def __init__(self, k):
        super().__init__()
        self.table, self.last = nn.Embedding(7, 16), nn.Linear(16, 10)
        self.weights = nn.Buffer(torch.tensor([[k + 1.0], [-k], [0.5]]))

    def forward(self, i):
        return self.last((self.table(i) * self.weights).sum(1))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("k", SHARED[:3])
@pytest.mark.parametrize("kind", [Keys, Tokens])
def test_positions_cancel(kind, k, recorded):
    torch.manual_seed(0)
    model, y = kind(k), torch.randint(10, (16,))
    x = torch.randn(16, 6, 48) if kind is Keys else torch.randint(3, (16, 1)).repeat(1, 3)
    noisy = inject(model, {"k.weight" if kind is Keys else "table.weight": Weight(0.1)})

    def found(x):
        with torch.set_grad_enabled(recorded):
            return explicit(noisy, x, y).R.item()

    single = found(x)
    model.double()
    true = found(x.double() if kind is Keys else x)
    assert single == pytest.approx(true, rel=max(1e-5, 1e-7 * k))


def test_columns_with_and_without_a_slope_take_their_own_way():
    """The one by which a replay is verified has none where nothing but the loss is curved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40)).double()
    x, y = torch.randn(8, 3, 30).double(), torch.randint(40, (8, 3))
    p = model(x).detach().softmax(-1)
    noisy = inject(model, {"0.weight": Weight(0.1)})
    R = explicit(noisy, x, y).R
    h = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)  # [B, T, C, C]
    trace = h.diagonal(dim1=-2, dim2=-1).sum(-1) * x.square().sum(-1)  # positions apart
    assert R.item() == pytest.approx(0.1**2 / 2 * trace.sum(1).mean().item() / 3, rel=1e-10)
    assert [k.replay for k in noisy.layouts.values() if isinstance(k, Learnt)] == [True]
