"""Noise on an embedding reaches its padding row too."""

import pytest
import torch
from torch import nn

import dither

Y = torch.arange(8) % 3


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
