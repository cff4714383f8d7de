"""Where a number would be wrong without a word, it is right or refused in one sentence."""

import numpy as np
import pytest
import torch
from torch import nn

import dither
from dither import DitherError
from dither.measures import phases, robustness

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def plain(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))


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


class Layer(nn.Module):
    """A transformer's layer with the samples first or, as is torch's default, second."""

    def __init__(self, first: bool):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first)
        self.head, self.first = nn.Linear(8, 3), first

    def forward(self, x):
        h = self.layer(x if self.first else x.transpose(0, 1))
        return self.head(h.mean(1 if self.first else 0))


@pytest.mark.parametrize("length", [5, 8])  # 8: as many positions as samples
def test_a_node_counts_the_samples_where_they_are_or_says_so(length):
    x = torch.randn(8, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = {}
    for first in (True, False):
        model = Layer(first).double().eval()
        for dim in (0, 1):
            what = {"layer.linear1": dither.Node(1.0)}
            with dither.inject(model, what, seed=0, batch_dim=dim) as noise:
                if first is (dim == 0):
                    found[first] = dither.explicit(noise, x, Y).R.item()
                else:
                    with pytest.raises(DitherError, match="batch_dim= of inject"):
                        dither.explicit(noise, x, Y)
                    with pytest.raises(DitherError, match="batch_dim= of inject"):
                        dither.balance(noise, x, Y)
    assert found[True] == pytest.approx(found[False], rel=1e-10)


class Folded(nn.Module):
    """Samples are elsewhere in the tensor of the Node, but none shares an ε with another."""

    def __init__(self, way: str):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.a, self.head = way, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        if self.way == "twice":
            h, other = self.a(torch.cat([x, -x])).chunk(2)
            return self.head(h + 2 * other)
        if self.way == "sorted":
            order = x[:, 0].argsort()
            return self.head(self.a(x[order])[order.argsort()])
        return self.head(self.a(x.repeat_interleave(3, 0)).view(len(x), 3, 4).mean(1))


@pytest.mark.parametrize("way", ["twice", "sorted", "crops"])
def test_a_node_whose_samples_have_several_indices_or_others_is_exact(way):
    model, x = Folded(way).double().eval(), X.double()
    y = torch.zeros(8, 2, dtype=torch.float64)
    with dither.inject(model, {"a": dither.Node(0.5)}, seed=0) as noise:
        R = dither.explicit(noise, x, y, "half_square").R.item()
        found = dither.expected(noise, x, y, "half_square", draws=4000, antithetic=True, seed=0)
    assert abs(found.value - R) < 4 * found.sem  # linear in ε: R is all there is
    assert found.sem < 0.05 * R


class Flattened(nn.Module):
    """Every position is a sample of the output, in either order; a sequence shares one ε."""

    def __init__(self, first: bool):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.head, self.first = nn.Linear(4, 4), nn.Linear(4, 3), first

    def forward(self, x):
        h = self.head(self.a(x))
        return (h if self.first else h.transpose(0, 1)).flatten(0, 1)


@pytest.mark.parametrize("first", [True, False])
def test_a_node_whose_positions_are_the_outputs_samples_is_refused(first):
    x = torch.randn(4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.arange(20) % 3
    with dither.inject(Flattened(first).double(), {"a": dither.Node(0.5)}, seed=0) as noise:
        with pytest.raises(DitherError, match="or pass samples=1"):
            dither.explicit(noise, x, y)
        assert dither.explicit(noise, x, y, samples=1).R > 0


def test_what_only_looks_wrong_is_taken():
    def weighted(z, y):
        return nn.functional.cross_entropy(z, y[0], reduction="none") * y[1]

    with dither.inject(plain(), dither.Additive(0.1), seed=0) as n, torch.no_grad():
        assert dither.explicit(n, X, (Y, torch.ones(8)), weighted).R > 0
        assert dither.explicit(n, X, None, lambda z, y: z.square().sum(-1)).R > 0
        assert dither.expected(n, X, Y, draws=np.int64(4), seed=0).sem > 0
        p = torch.randn(8, 3).softmax(-1)
        once, twice = (dither.explicit(n, X, k * p).R for k in (1, 2))
        torch.testing.assert_close(twice, 2 * once)
    dither.inject(plain(), dither.Node(1.0), batch_dim=np.int64(0)).remove()


def test_a_parametrisation_after_inject_is_told():
    model = plain()
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(DitherError, match=r"'0.weight' .* parametrised, after inject"):
        dither.explicit(noise, X, Y)


@pytest.mark.parametrize("how", [{}, {"curvature": "full"}, {"samples": 300}])
def test_noise_on_an_embeddings_padding_row_is_in_every_form(how):
    found = []
    for padding in (0, None):
        torch.manual_seed(2)
        embed = nn.Embedding(5, 6, padding_idx=padding)
        with torch.no_grad():
            embed.weight[0] = 0.3
        torch.manual_seed(3)
        model = nn.Sequential(embed, nn.Flatten(), nn.Linear(24, 6), nn.BatchNorm1d(6),
                              nn.Tanh(), nn.Linear(6, 3)).double()  # fmt: skip
        model.train("samples" in how)
        x = torch.arange(32).view(8, 4) % 5
        with dither.inject(model, {"0.weight": dither.Weight(0.1)}, seed=0) as noise:
            torch.manual_seed(4)
            found.append(dither.explicit(noise, x, Y, **how).R.item())
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_layer_that_was_replaced_is_missed():
    for what in (dither.Additive(0.1), dither.Weight(0.1)):
        model = plain()
        noise = dither.inject(model, what, seed=0)
        model[2] = nn.Linear(8, 3)
        for f in (dither.explicit, dither.expected, dither.balance):
            with pytest.raises(DitherError, match="it was replaced, or parametrised, after inject"):
                f(noise, X, Y)


NAN = plain()
with torch.no_grad():
    NAN[0].weight[0, 0] = torch.nan
BOUNDS = (-6.0, 6.0)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda: robustness.corruption(NAN, X, Y, [0.5]), "outputs are not finite"),
        (lambda: robustness.vanishing(NAN, X, Y), "outputs are not finite"),
        (lambda: robustness.attack(NAN, X, Y, strengths=[0.1], bounds=BOUNDS), "not finite"),
        (lambda: robustness.corruption(plain(), X, Y + 3, [0.0]), "from 0 to 2: got torch.int64"),
        (lambda: robustness.corruption(plain(), X, Y, 0.5), "sequence of numbers: got 0.5"),
        (lambda: robustness.corruption(plain(), X, Y, []), "one or more"),
        (lambda: attack(strengths=[-0.5]), "finite numbers ≥ 0"),
        (lambda: attack(strengths=[torch.nan]), "finite numbers ≥ 0"),
        (lambda: attack(steps=0), "steps = 0"),
        (lambda: attack(step=-0.1), "step = -0.1"),
        (lambda: phases.find(plain(), X, Y, lr=0.1, steps=1), "steps = 1"),
        (lambda: phases.find(plain(), X, Y, lr=0.1, batch=0), "batch = 0"),
    ],
)
def test_measures_refuse_what_makes_their_answer_meaningless(f, says):
    with pytest.raises(DitherError, match=says):
        f()


def attack(**how):
    how = {"strengths": [0.1], "method": "pgd", "bounds": BOUNDS} | how
    return robustness.attack(plain(), X, Y, **how)


def noise(outputs: int = 3):
    return dither.inject(plain(outputs), dither.Additive(0.1), seed=0)


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(plain().parameters(), 0.1)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda: dither.explicit(noise(1), X, torch.zeros(8).long()), r"\(8, 1\).*'logistic'"),
        (lambda: dither.explicit(noise(1), X, torch.randn(8, 1)), "'half_square'"),
        (
            lambda: dither.explicit(noise(), X, torch.randn(8, 3)),
            "sum to 1 over the classes; for numbers",
        ),
        (lambda: dither.explicit(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.expected(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.balance(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.explicit(noise(), X, Y.tolist()), r"got list; torch.as_tensor\(y\)"),
        (lambda: dither.explicit(noise(), X[:0], Y[:0]), "the batch is empty"),
        (lambda: dither.expected(noise(), X[:0], Y[:0]), "the batch is empty"),
        (lambda: dither.expected(noise(), X, Y, draws=10.5), "whole number: got 10.5"),
        (lambda: dither.balance(noise(), X * torch.nan, Y), "not finite on this batch"),
        (lambda: dither.measures.trace(plain(), X, Y), r"trace takes \(model, loss, data\)"),
        (lambda: dither.langevin(plain(), 0.1), "optimiser .*got Sequential"),
        (lambda: dither.langevin(sgd(), 0.1, seed="a"), "^seed is a whole number"),
        (lambda: dither.inject(plain(), dither.Node(1.0), batch_dim=-1), "batch_dim is a whole"),
        (lambda: dither.Additive(torch.tensor([0.1, 0.2])), r"one number: got \[2\]"),
    ],
)
def test_the_first_mistakes_are_told(f, says):
    with pytest.raises(DitherError, match=says):
        f()
