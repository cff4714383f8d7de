"""R as a whole: invariances, layouts."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, MLP, NOISES
from oracles import LOSSES, close, gradients, half, regulariser, second_order
from torch import nn

import dither
from dither.noise import Additive, Multiplicative, Node, Weight, two_point

CE = LOSSES["cross_entropy"]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def mlp(outputs=3):
    return half(MLP(outputs)), randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])


# ------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "node", "weight", "weight all"])
def test_R_goes_with_sigma_squared_and_is_a_sum_over_sites(noise):
    model, x, y = mlp()
    what, how = NOISES[noise]
    found = []
    for sigma in (0.1, 0.3):
        injected = dither.inject(model, type(what)(sigma=sigma), seed=0, **how)
        found.append(dither.explicit(injected, x, y))
        injected.remove()
    close(found[1].R, 9 * found[0].R)
    close(sum(found[0].by_site.values()), found[0].R)
    assert min(found[0].by_site.values()) >= 0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("noise", ["additive", "weight"])
def test_the_order_of_the_batch_plays_no_part(case, noise):
    model, x, y = case.build("cross_entropy")
    injected = case.inject(model, NOISES[noise][0], x)
    order = torch.tensor([2, 0, 1])
    close(dither.explicit(injected, x[order], y[order]).R, dither.explicit(injected, x, y).R)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("noise", ["additive", "node", "weight", "drop connect"])
def test_R_of_a_batch_is_the_mean_of_batches_of_one(case, noise):
    model, x, y = case.build("cross_entropy")
    injected = case.inject(model, NOISES[noise][0], x)
    alone = [dither.explicit(injected, x[i : i + 1], y[i : i + 1]).R for i in range(3)]
    close(dither.explicit(injected, x, y).R, sum(alone) / 3)


def test_R_plays_no_part_in_the_noises_own_clock_or_mode():
    model, x, y = mlp()
    injected = dither.inject(model, Weight(0.3), seed=4)
    off = dither.explicit(injected, x, y).R
    model.train()
    on = dither.explicit(injected, x, y).R
    close(on, off)
    injected.pause()
    close(dither.explicit(injected, x, y).R, off)
    assert injected.step == 0


def test_other_injections_are_off_meanwhile():
    """On the same model, on a part of it, and on what it is a part of."""
    model, x, y = mlp()
    whole = nn.Sequential(model, nn.Identity())
    injected = dither.inject(model, Additive(0.3), seed=0)
    truth = dither.explicit(injected, x, y)
    e = dither.expected(injected, x, y, draws=50, seed=1)
    others = [
        dither.inject(model, Weight(5.0)),
        dither.inject(model[2], {":in": Additive(5.0)}),
        dither.inject(whole, {"0.2:out": Additive(5.0)}),
    ]
    model.train()
    close(torch.stack(dither.explicit(injected, x, y)[:2]), torch.stack(truth[:2]))
    assert dither.expected(injected, x, y, draws=50, seed=1) == e
    for other in others:
        other.remove()


def test_several_noises_and_sides_add_up():
    model, x, y = mlp()
    what = {"0:in": Multiplicative(0.2), "1:out": Additive(0.3), "2:out": Node(0.5)}
    alone = [dither.inject(model, {k: n}, seed=0) for k, n in what.items()]
    parts = [dither.explicit(n, x, y).R for n in alone]
    [n.remove() for n in alone]
    with dither.inject(model, {"*.weight": Weight(0.1)}, seed=0) as weight:
        parts.append(dither.explicit(weight, x, y).R)
    both = dither.inject(model, what | {"*.weight": Weight(0.1)}, seed=0)
    close(dither.explicit(both, x, y).R, sum(parts))


def test_a_schedule_is_read_at_the_present_step():
    model, x, y = mlp()
    injected = dither.inject(model, Additive(lambda step: 0.1 * (step + 1)), seed=0)
    fixed = dither.inject(model, Additive(0.3), seed=0)
    truth = dither.explicit(fixed, x, y).R
    fixed.remove()
    model.train()
    for _ in range(3):
        model(x)
    close(dither.explicit(injected, x, y).R, truth)


def test_float32_agrees_with_float64():
    model, x, y = mlp()
    injected = dither.inject(model, Additive(0.3), seed=0)
    truth = dither.explicit(injected, x, y).R
    model.float()
    R = dither.explicit(injected, x.float(), y).R
    assert R.dtype == torch.float32
    close(R.double(), truth, 1e-5)


def test_without_gradients_R_holds_no_graph():
    model, x, y = mlp()
    injected = dither.inject(model, Additive(0.3))
    with torch.no_grad():
        loss, R, by_site = dither.explicit(injected, x, y)
    assert not any(t.requires_grad for t in (loss, R, *by_site.values()))


# ---------------------------------------------------------------------------------------- layouts


class Flattening(nn.Module):
    """Positions folded into the batch, sample by sample or position by position."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.fc, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):  # [B, T, 3]
        b, t, _ = x.shape
        h = x if self.first else x.transpose(0, 1)
        h = torch.tanh(self.fc(h.reshape(b * t, 3)))
        h = h.view(b, t, 4).sum(1) if self.first else h.view(t, b, 4).sum(0)
        return self.head(h)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("noise", [Additive(0.3), Multiplicative(0.2), Weight(0.2)])
def test_positions_folded_into_the_batch(first, steps, noise):
    model, x, y = half(Flattening(first)), randn(3, steps, 3), torch.arange(3)
    injected = dither.inject(model, noise)
    truth = regulariser(injected, x, y, CE)
    found = dither.explicit(injected, x, y)
    close(torch.stack([*found.by_site.values()]), torch.stack([*truth.values()]))
    full = dither.explicit(injected, x, y, curvature="full").by_site
    truth = second_order(injected, x, y, CE)
    close(torch.stack([*full.values()]), torch.stack([*truth.values()]))


class PerToken(nn.Module):
    """[B, T, 3] → [B, T, 3], or torch's order [B, 3, T]."""

    def __init__(self, classes_second=False):
        super().__init__()
        self.fc, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.classes_second = classes_second

    def forward(self, x):
        h = torch.tanh(self.fc(x))
        z = self.head(h + h.roll(1, 1))
        return z.mT if self.classes_second else z


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "node", "weight"])
@pytest.mark.parametrize("steps", [2, 4])
def test_a_loss_at_every_token(noise, steps):
    model, x, y = half(PerToken()), randn(2, steps, 3), torch.randint(3, (2, steps))
    injected = dither.inject(model, NOISES[noise][0], seed=0)
    found = dither.explicit(injected, x, y)
    truth = sum(regulariser(injected, x, y, CE).values())
    close(found.R, truth)
    close(gradients(found.R, injected), gradients(truth, injected))
    model.classes_second = True
    close(dither.explicit(injected, x, y, nn.CrossEntropyLoss()).R, truth)


def test_a_model_of_several_inputs_and_named_outputs():
    class Out(dict):
        logits = property(lambda self: self["logits"])

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)
            self.slope = nn.PReLU()

        def forward(self, x, extra):
            return Out(logits=self.slope(self.a(x) * torch.tanh(self.b(extra))))

    model, x, extra, y = half(Pair()), randn(3, 4), randn(3, 2), torch.arange(3)
    injected = dither.inject(model, Weight(0.2))
    truth = sum(regulariser(injected, {"x": x, "extra": extra}, y, CE).values())
    close(dither.explicit(injected, {"x": x, "extra": extra}, y).R, truth)
    close(dither.explicit(injected, (x, extra), y).R, truth)


def test_dropout_in_train_mode_keeps_its_draw_for_what_no_rule_meets():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.PReLU(), nn.Linear(4, 3)).double()
    x, y = randn(3, 4), torch.arange(3)
    injected = dither.inject(model, Weight(0.2))
    dither.explicit(injected, x, y)  # learns what no rule meets
    torch.manual_seed(3)
    R = dither.explicit(injected, x, y).R
    injected.pause()

    class Fixed(nn.Module):
        def forward(self, x):
            torch.manual_seed(3)
            return F.dropout(x, 0.5)

    model[1] = Fixed()
    close(R, sum(regulariser(injected, x, y, CE).values()))


def test_a_two_point_node_moves_the_loss_by_its_half_curvature():
    """δ = ±σw exactly: ½(ℓ(+) + ℓ(−)) − ℓ = R + O(σ⁴) on a linear softmax model, which has no
    residual part.
    """
    model, x, y = half(nn.Linear(4, 3)), randn(5, 4), torch.arange(5) % 3
    left = []
    for sigma in (0.1, 0.05):
        noise = dither.inject(model, Node(sigma, law=two_point), seed=0)
        (w,) = noise.parameters()
        plus, minus = (F.cross_entropy(model(x) + s * sigma * w, y) for s in (1, -1))
        left.append(
            (plus + minus) / 2 - F.cross_entropy(model(x), y) - dither.explicit(noise, x, y).R
        )
        noise.remove()
    assert 15 < left[0] / left[1] < 17


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda *of: dither.explicit(*of, curvature="hessian"), "'full': got 'hessian'"),
        (lambda *of: dither.explicit(*of, samples=0), "samples is a whole number ≥ 1 .*got 0"),
        (lambda *of: dither.explicit(*of, samples=1.5), "samples is a whole number ≥ 1 .*got 1.5"),
        (lambda *of: dither.balance(*of, ratio=0), "ratio must be a number > 0.*got 0"),
        (
            lambda *of: dither.balance(*of, loss=lambda z, y: z.square().sum(1) - 99.0),
            "which must be ≥ 0: got a loss of -9",
        ),
        (lambda *of: dither.balance(*of, draws=3), "≥ 4 .*or 0 .*: got 3"),
        (lambda *of: dither.balance(*of, bound=-1), "bound must be a number > 0.*got -1"),
        (lambda *of: dither.balance(*of, samples=0), "whole number ≥ 1 .*got 0"),
        (lambda n, x, y: dither.balance(n, x * torch.nan, y), "not finite on this batch"),
    ],
)
def test_what_R_and_balance_cannot_take_is_a_sentence(call, says):
    model, x, y = mlp()
    with pytest.raises(dither.DitherError, match=says):
        call(dither.inject(model, Additive(0.1)), x, y)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)])
def test_exact_R_where_samples_are_coupled_says_what_to_do(norm):
    model = nn.Sequential(nn.Linear(4, 3), norm).train()
    noise = dither.inject(model, Additive(0.1))
    x, y = torch.randn(3, 4), torch.tensor([0, 2, 1])
    for kwargs in ({}, {"curvature": "full"}):
        with pytest.raises(
            dither.DitherError,
            match=r"'1' \(BatchNorm1d\) mixes the batch.*model.eval\(\), or pass samples=1",
        ):
            dither.explicit(noise, x, y, **kwargs)
    assert dither.explicit(noise, x, y, samples=1).R > 0


def test_balance_names_the_site_that_has_no_R():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x) + 0 * self.b(x)

    noise = dither.inject(Unused(), Additive(0.1))
    with pytest.raises(dither.DitherError, match=r"no σ gives R at 'b:in'.*leave it out"):
        dither.balance(noise, torch.randn(3, 4), torch.tensor([0, 2, 1]))


@dataclass(frozen=True)
class Scalar:
    """Its variance forgets the samples."""

    sigma: float
    side = "in"

    def displace(self, site, rng):
        return self.sigma * rng(dither.gaussian, site.h)

    def variance(self, g, site):
        return g.square().sum()


def test_a_variance_of_the_wrong_shape_is_told():
    with dither.inject(nn.Linear(2, 3), {"input": Scalar(0.1)}) as noise:
        says = r"variance of Scalar must be \[K, B\].*got \[\].*'input'"
        with pytest.raises(dither.DitherError, match=says):
            dither.explicit(noise, torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
