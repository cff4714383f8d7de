"""Exact R and stacked draws presume samples that go their own ways; otherwise it is said."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dither

EXPECTED = importlib.import_module("dither.regulariser.expected")  # the module behind the function
X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3


class Centred(nn.Module):
    """Mixes the batch by hand."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x).tanh()
        return self.b(h - h.mean(0))


class Functional(Centred):
    """BatchNorm as a function, which no type check sees."""

    def forward(self, x):
        return self.b(F.batch_norm(self.a(x), None, None, training=True))


class Late(Centred):
    """Mixes only batches that are larger than those it is tried on."""

    def forward(self, x):
        h = self.a(x).tanh()
        return self.b(h - h.mean(0) if len(x) > 12 else h)


class TimeFirst(nn.Module):
    """[T, B, d] all the way: dimension 0 of the output is time."""

    def __init__(self):
        super().__init__()
        self.rnn, self.b = nn.RNN(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(self.rnn(x)[0])


def build(make):
    torch.manual_seed(0)
    return make().double()


@pytest.mark.parametrize("make", [Centred, Functional])
def test_exact_refuses_what_mixes_the_batch(make):
    with dither.inject(build(make), dither.Additive(0.1)) as noise:
        with pytest.raises(dither.DitherError, match=r"mixes the batch.*samples=1"):
            dither.explicit(noise, X, Y)
        assert dither.explicit(noise, X, Y, samples=1).R > 0


def test_exact_refuses_time_in_the_place_of_samples():
    x, y = torch.randn(5, 2, 4).double(), torch.zeros(5, 2, dtype=torch.long)
    with (
        dither.inject(build(TimeFirst), {"input": dither.Additive(0.1)}) as noise,
        pytest.raises(dither.DitherError, match="independent samples in dimension 0"),
    ):
        dither.explicit(noise, x, y)


@pytest.mark.parametrize("make", [Centred, Functional, Late])
def test_draws_are_stacked_only_where_samples_are_independent(make, monkeypatch):
    """With one draw a forward the numbers are the same: mixing models are not stacked."""
    with dither.inject(build(make), dither.Additive(0.3)) as noise:
        one = dither.expected(noise, X, Y, draws=64, seed=1)
        monkeypatch.setattr(EXPECTED, "ROWS", 1)
        assert dither.expected(noise, X, Y, draws=64, seed=1) == one


def test_a_stacked_forward_is_bounded_by_its_largest_site(monkeypatch):
    rows = []
    model = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    monkeypatch.setattr(EXPECTED, "ELEMENTS", 1000)  # 3 draws of 6 samples × 50 units
    with dither.inject(model, dither.Additive(0.1)) as noise:
        dither.expected(noise, X, Y, draws=40, seed=0)
    assert max(rows[2:]) == 18  # after the clean forward and the trial


def test_inference_mode_changes_no_number():
    with dither.inject(build(Centred), {"b": dither.Additive(0.1)}) as noise:
        with torch.no_grad():
            plain = dither.explicit(noise, X, Y)
        with torch.inference_mode():
            inside = dither.explicit(noise, X.clone(), Y)
            full = dither.explicit(noise, X.clone(), Y, curvature="full")
    assert inside.R == plain.R > 0
    assert full.R != 0


class Overwrites(nn.Module):
    """Scales what it is given, in place."""

    def forward(self, h):
        return h.mul_(0.1)


def test_variance_reads_what_the_site_was_given():
    """Multiplicative noise weighs by h as it came, not as a module left it."""
    model = nn.Sequential(nn.Linear(4, 5), Overwrites(), nn.Linear(5, 3)).double()
    clean = nn.Sequential(model[0], nn.Identity(), model[2])

    class Scaled(nn.Module):
        def forward(self, h):
            return 0.1 * h

    clean[1] = Scaled()
    noise = {"1:in": dither.Multiplicative(0.1)}
    with dither.inject(model, noise) as one, dither.inject(clean, noise) as two, torch.no_grad():
        R, expected = dither.explicit(one, X, Y).R, dither.explicit(two, X, Y).R
    torch.testing.assert_close(R, expected, rtol=1e-12, atol=0)


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, batch):
        return self.a(batch["x"])


def test_a_site_without_a_tensor_is_told():
    model = Dictionary()
    with dither.inject(model, {"input": dither.Additive(0.1)}):
        with pytest.raises(dither.DitherError, match="no tensor at 'input': Dictionary takes dict"):
            model({"x": X.float()})
        model.eval()({"x": X.float()})  # off is off


def test_sites_that_are_gone_are_told():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with dither.inject(model, {"2": dither.Additive(0.1)}) as noise:
        model[2] = nn.Linear(5, 3).double()
        with pytest.raises(dither.DitherError, match="at '2:in' is no longer in the model"):
            dither.explicit(noise, X, Y)
