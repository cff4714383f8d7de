"""Recurrent layers and embedding bags as the products and look-ups they are: torch's outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dither.engine.bags import bag
from dither.engine.uses import Uses

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}
HOW = [
    {},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_an_unrolled_layer_gives_what_torch_gives(kind, how):
    torch.manual_seed(0)
    extra = {"nonlinearity": kind} if KINDS[kind] is nn.RNN else {}
    layer = KINDS[kind](3, 4, **how, **extra).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    true, states = layer(x)
    uses = Uses(dict(layer.named_parameters()), lambda out, uses: out)
    with uses:
        out, ends = layer(x)
    torch.testing.assert_close(out, true, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends, states, rtol=1e-12, atol=1e-12)
    assert {use.name for use in uses.uses} == set(uses.names.values())
    uses.settle(5 if how.get("batch_first") else 6)
    assert not uses.walk(out.sum().reshape(1)).stray


BAGS = {
    "rows": lambda: ((torch.randint(9, (4, 5)),), {}),
    "offsets": lambda: ((torch.randint(9, (7,)), torch.tensor([0, 2, 2, 5])), {}),
    "last offset": lambda: (
        (torch.randint(9, (7,)), torch.tensor([0, 3, 7])),
        {"include_last_offset": True},
    ),
    "padding": lambda: ((torch.randint(3, (4, 5)),), {"padding_idx": 1}),
    "padding from the end": lambda: ((torch.randint(9, (4, 5)),), {"padding_idx": -1}),
    "padded offsets": lambda: (
        (torch.randint(3, (7,)), torch.tensor([0, 2, 5])),
        {"padding_idx": 1},
    ),
}


@pytest.mark.parametrize("case", BAGS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_gives_what_torch_gives(case, mode):
    torch.manual_seed(0)
    (x, *offsets), how = BAGS[case]()
    w = torch.randn(9, 3, dtype=torch.float64)
    true = F.embedding_bag(x, w, *offsets, mode=mode, **how)
    torch.testing.assert_close(bag(x, w, *offsets, mode=mode, **how), true)


@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 2, 5])])
def test_a_weighed_bag(offsets):
    torch.manual_seed(0)
    x = torch.randint(9, (4, 5) if offsets is None else (7,))
    w, s = torch.randn(9, 3).double(), torch.rand(x.shape).double()
    how = {"mode": "sum", "per_sample_weights": s}
    torch.testing.assert_close(bag(x, w, offsets, **how), F.embedding_bag(x, w, offsets, **how))
