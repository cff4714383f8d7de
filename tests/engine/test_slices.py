"""Several uses of one parameter, in slices that share a number or not: R and its gradient are the
dense ones.
"""

import pytest
import torch
import torch.nn.functional as F
from oracles import LOSSES, close, gradients, half, regulariser
from torch import nn

import dither
from dither.regulariser import pull


class Slices(nn.Module):
    """Slices of one vector that share its third number, and nothing else."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(5)), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(x * self.w[:3]) * torch.tanh(x * self.w[2:]))


class Apart(Slices):
    """Slices of one vector that share nothing."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.head(torch.tanh(x * self.w[:3]) * torch.tanh(x * self.w[3:]))


class Windows(nn.Module):
    """A matrix whose rows share one number of the vector that it is a view of."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(5)), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(torch.tanh(F.linear(x, self.w.unfold(0, 3, 2))))


class Twice(nn.Module):
    """One Linear called twice with one position: ‖G + H‖² is not ‖G‖² + ‖H‖²."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


@pytest.mark.parametrize("make", [Slices, Apart, Windows, Twice])
def test_uses_that_share_a_number_are_summed_before_they_are_squared(make, monkeypatch):
    model = half(make())
    if make is not Windows:  # a view that overlaps itself is met by no rule

        def one_by_one(*args):
            raise AssertionError("a rule should have met every use")

        monkeypatch.setattr(pull, "one_by_one", one_by_one)
    noise = dither.inject(model, dither.Weight(0.2), seed=0)
    for batch in (1, 4):  # a sample by itself is not examined: the rules alone have to be right
        x, y = torch.randn(batch, 3, dtype=torch.float64), torch.arange(batch) % 3
        found = dither.explicit(noise, x, y)
        truth = regulariser(noise, x, y, LOSSES["cross_entropy"])
        close(torch.stack([*found.by_site.values()]), torch.stack([*truth.values()]))
        close(gradients(found.R, noise), gradients(sum(truth.values()), noise))
        with torch.no_grad():
            close(dither.explicit(noise, x, y).R, found.R.detach())
