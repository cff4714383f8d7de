"""A Node draws one ε for a sample: its samples are found where they are, or it is said."""

import pytest
import torch
from torch import nn

import dither
from dither import DitherError

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


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
