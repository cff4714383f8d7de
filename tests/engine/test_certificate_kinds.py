"""What a certificate could miss or take amiss: each kind against brute force, or a sentence."""

import pytest
import torch
from oracles import LOSSES, close
from torch import nn

import dither

B = 8
Y = torch.arange(B) % 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def stray(noise):
    """Parameters that are met sample by sample."""
    return set().union(*(v for mark, v in noise.layouts.items() if mark[0] == "stray"))


@pytest.mark.parametrize("recorded", [False, True])
def test_rows_that_reach_two_samples_behind_a_wide_product(recorded):
    """The gradient of a wide input is known by its norm alone, as a product that is not formed."""

    class Fold(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(256, 6)

        def forward(self, x):
            return self.a(x).reshape(-1, 3)

    x, y = randn(64, 256), torch.randint(3, (128,))
    with (
        dither.inject(Fold().double().eval(), {"a:in": dither.Additive(1.0)}) as noise,
        torch.set_grad_enabled(recorded),
        pytest.raises(dither.DitherError, match="depend on the same elements at 'a:in'"),
    ):
        dither.explicit(noise, x, y)


class TimeFirst(nn.Module):
    """As many steps as samples, behind a head that starts from 0; output 0 goes another way."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.b = nn.Linear(5, 4), nn.Linear(5, 1), nn.Linear(4, 3)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):  # [B, T, 5]
        h = self.a(x.transpose(0, 1)).tanh()
        weights = torch.arange(1.0, 1 + x.shape[1], dtype=x.dtype)[:, None, None]
        return torch.cat([self.c(x.mean(1)), self.b((h * weights).sum(0))], 1)


KEPT = ("stray", "repeats", "gradients", "reads")  # what is no certificate


def test_a_gradient_of_0_teaches_nothing():
    model, x, y = TimeFirst().double().eval(), randn(6, 6, 5), randn(6, 4)
    noise = dither.inject(model, {"a.weight": dither.Weight(1.0)})
    dither.explicit(noise, x, y, "half_square")
    assert not [mark for mark in noise.layouts if mark[0] not in KEPT]
    nn.init.normal_(model.b.weight)
    z, w, total = model(x), model.a.weight, 0.0
    for i in range(len(z)):
        for c in range(z.shape[1]):
            (g,) = torch.autograd.grad(z[i, c], w, retain_graph=True, allow_unused=True)
            total += 0.0 if g is None else g.square().sum().item() / 2 / len(z)
    assert dither.explicit(noise, x, y, "half_square").R.item() == pytest.approx(total, rel=1e-10)
    assert not stray(noise)


class Late(nn.Module):
    """Begins to mix samples, in one output, when it is told to."""

    def __init__(self):
        super().__init__()
        self.a, self.mix = nn.Linear(5, 4), 0.0

    def forward(self, x):
        z = self.a(x)
        late = torch.cat([torch.zeros_like(z[:, :3]), z[:, 3:].roll(1, 0)], 1)
        return z + self.mix * late


@pytest.mark.parametrize("recorded", [False, True])
def test_what_begins_to_mix_in_a_late_output_is_seen(recorded):
    """With the half-square loss a column is one output; all of them are in the mixture. A shift by
    one sample is missed where all neighbours are silenced alike: with chance 2^(1 − 64) at most.
    """
    model, x, y = Late().double(), randn(64, 5), randn(64, 4)
    noise = dither.inject(model, {"a:in": dither.Additive(1.0)})
    with torch.set_grad_enabled(recorded):
        dither.explicit(noise, x, y, "half_square")
        model.mix = 1.0
        for _ in range(10):
            with pytest.raises(dither.DitherError, match="depend on the same elements"):
                dither.explicit(noise, x, y, "half_square")


def test_weights_of_what_begins_to_mix_are_right_from_then_on():
    """Each call misses the shift with chance 2^(1 − B); a call that finds it does so for good."""
    model, x, y = Late().double(), randn(B, 5), randn(B, 4)
    noise = dither.inject(model, {"a.weight": dither.Weight(1.0)})
    with torch.no_grad():
        dither.explicit(noise, x, y, "half_square")
        model.mix = 1.0
        found = [dither.explicit(noise, x, y, "half_square").R.item() for _ in range(5)]
    z, total = model(x), 0.0
    for out in z.flatten():
        (g,) = torch.autograd.grad(out, model.a.weight, retain_graph=True)
        total += g.square().sum().item() / 2 / B
    assert found[-1] == pytest.approx(total, rel=1e-10)


def test_what_a_sampled_call_may_ignore_an_exact_one_may_not():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x).tanh()
            return self.b(torch.cat([h[:1] + h[1:2], h[1:]]))

    model, x = Mixed().double().eval(), randn(B, 5)
    noise = dither.inject(model, {"a:in": dither.Additive(1.0), "b.weight": dither.Weight(0.1)})
    dither.explicit(noise, x, Y, samples=2)
    for _ in range(10):
        with pytest.raises(dither.DitherError, match="depend on the same elements"):
            dither.explicit(noise, x, Y)


def test_masked_classes_are_no_other_output():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 4)

        def forward(self, x):
            return self.a(x).masked_fill(torch.tensor([0, 0, 0, 1]).bool(), float("-inf"))

    model, x = Masked().double(), randn(B, 5)
    shares = []
    for mode in (True, False):
        with dither.inject(model.train(mode), {"a:in": dither.Additive(1.0)}) as noise:
            shares.append(dither.explicit(noise, x, Y).R.detach())
    assert shares[0] > 0
    close(shares[0], shares[1])


def test_a_single_sample_in_a_layout_that_is_not_known():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.rand(4))
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):  # [B, T, 5]
            h = self.a(x.reshape(-1, 5)) * self.g
            return self.b(h.view(*x.shape[:2], -1).mean(1))

    model, x = Flat().double(), randn(3, 4, 5)
    noise = dither.inject(model, {"g": dither.Weight(1.0)})
    alone = [dither.explicit(noise, x[i : i + 1], Y[i : i + 1]).R.detach() for i in range(3)]
    close(torch.stack(alone).mean(), dither.explicit(noise, x, Y[:3]).R.detach())


def test_half_precision_under_single_precision_logits_has_its_rules():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.b = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 50)

        def forward(self, x):
            return self.b(self.n(self.a(x.to(self.a.weight.dtype)).relu())).float()

    model = Half().bfloat16().eval()
    noise = dither.inject(model, dither.Weight(0.1))
    for _ in range(5):  # another random sample each time
        dither.explicit(noise, torch.randn(32, 16), torch.randint(50, (32,)))
        noise.layouts.clear()
        assert not stray(noise)


RULED = {
    "embedding bag, sum": lambda: (nn.EmbeddingBag(9, 4, mode="sum"), torch.randint(9, (B, 5))),
    "embedding bag, mean": lambda: (nn.EmbeddingBag(9, 4), torch.randint(9, (B, 5))),
    "embedding bag, max": lambda: (nn.EmbeddingBag(9, 4, mode="max"), torch.randint(9, (B, 5))),
    "prelu": lambda: (nn.Sequential(nn.Linear(5, 4), nn.PReLU(4)), randn(B, 5)),
    "one prelu": lambda: (nn.Sequential(nn.Linear(5, 4), nn.PReLU()), randn(B, 5)),
    "lstm": lambda: (Last(nn.LSTM(5, 4, batch_first=True)), randn(B, 3, 5)),
    "gru": lambda: (Last(nn.GRU(5, 4, batch_first=True)), randn(B, 3, 5)),
    "rnn": lambda: (Last(nn.RNN(5, 4, batch_first=True)), randn(B, 3, 5)),
    "x − p": lambda: (Own(lambda x, p, w: (x - p) @ w), randn(B, 5)),
    "p − x": lambda: (Own(lambda x, p, w: (p - x) @ w), randn(B, 5)),
    "einsum": lambda: (Own(lambda x, p, w: torch.einsum("bi,io->bo", x + p, w)), randn(B, 5)),
}


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Own(nn.Module):
    """A function of x and bare parameters."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.p, self.w = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return self.function(x, self.p, self.w)


@pytest.mark.parametrize("what", RULED)
def test_rules_meet_what_they_are_for(what):
    """No parameter is left to the slow way, and R is the dense one."""
    body, x = RULED[what]()
    model = nn.Sequential(body, nn.Tanh(), nn.Linear(4, 3)).double().eval()
    noise = dither.inject(model, dither.Weight(0.3), seed=0)
    found = dither.explicit(noise, x, Y).by_site
    assert not stray(noise)
    z = model(x)
    for name, p in model.named_parameters():
        truth = 0.0
        for i in range(B):
            H = torch.autograd.functional.hessian(
                lambda o, i=i: LOSSES["cross_entropy"](o, Y[i]), z[i].detach()
            )
            rows = [torch.autograd.grad(o, p, retain_graph=True)[0].flatten() for o in z[i]]
            J = torch.stack(rows)
            truth = truth + 0.3**2 / 2 / B * torch.trace(J.T @ H @ J)
        close(found[name].detach(), truth)


class Writes(nn.Module):
    """Halves its input in place."""

    def __init__(self):
        super().__init__()
        self.a, self.s = nn.Linear(5, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        x.mul_(0.5)
        return self.a(x) * torch.exp(self.s)


def test_a_forward_that_writes_to_its_input():
    """Once it is right; where it must be run again it is refused, not run on what was changed."""
    model, x = Writes().double().eval(), randn(B, 5)
    clean = dither.inject(model, {"a.*": dither.Weight(0.1)})
    once = dither.explicit(clean, x.clone(), Y).R.detach()
    close(once, dither.explicit(clean, x.clone(), Y).R.detach())
    clean.remove()
    with (
        dither.inject(model, {"s": dither.Weight(0.1)}) as noise,
        pytest.raises(dither.DitherError, match=r"writes to its input in place.*x\.clone"),
    ):
        dither.explicit(noise, x.clone(), Y)
