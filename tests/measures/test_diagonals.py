"""The diagonal of the curvature against dense matrices; estimates over all patterns of signs."""

import oracles
import pytest
import torch
from blocks import CASES, case
from signs import Pattern, every_sign
from torch import nn

import dither
from dither.measures import curvature, diagonals, probes
from dither.measures.diagonals import diagonal

Z = 4.9  # two-sided chance of a false alarm per number: 1e-6


def dense(model, x, y, matrix, loss="cross_entropy"):
    """The dense matrix's diagonal, in one vector."""
    return oracles.curvature(model, x, y, oracles.LOSSES[loss], matrix).diagonal().detach()


def flat(parts):
    return torch.cat([part.flatten() for part in parts.values()])


class Words(nn.Module):
    """An embedding whose matrix is the head's too, a shared layer, a stack of matrices."""

    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(4, 3), nn.Linear(3, 3)
        self.stack = nn.Parameter(torch.randn(2, 3, 3))
        self.deep = nn.Embedding(4, 3)

    def forward(self, x):
        h = self.fc(self.fc(self.words(x)).relu()) + self.deep(x)
        h = h.mean(1) + torch.einsum("btd,tde->be", h, self.stack)
        return h @ self.words.weight[:3].T


class Convolutions(nn.Module):
    """One dimension, groups, strides, a transposed one."""

    def __init__(self):
        super().__init__()
        self.one, self.up = nn.Conv1d(2, 4, 2, groups=2), nn.ConvTranspose1d(4, 2, 2, stride=2)
        self.two = nn.Conv2d(2, 2, (1, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h = self.two(self.up(self.one(x).relu()).unsqueeze(2)).relu()
        return self.head(h.flatten(2).mean(2))


def built(name):
    if name in CASES:
        return case(name, batch=4)[:3]
    torch.manual_seed(0)
    if name == "words":
        return Words().double(), torch.randint(4, (4, 2)), torch.randint(3, (4,))
    model = Convolutions().double()
    return model, torch.randn(4, 2, 4).double(), torch.randint(3, (4,))


@pytest.mark.parametrize("name", ["relu cnn", "norms", "attention, time first", "words", "convs"])
def test_gauss_newton_is_the_dense_matrixs_and_sums_to_the_trace(name):
    model, x, y = built(name)
    found = diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton")
    assert found.exact
    assert not any(part.any() for part in found.sem.values())
    assert {n: v.shape for n, v in found.value.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    oracles.close(flat(found.value), dense(model, x, y, "gauss_newton"))
    trace = curvature.trace(model, "cross_entropy", (x, y), of="gauss_newton").value
    assert float(flat(found.value).sum()) == pytest.approx(trace, rel=1e-10)


def test_what_is_formed_at_once_does_not_matter(monkeypatch):
    model, x, y = built("relu cnn")
    whole = diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton")
    monkeypatch.setattr("dither.engine.kinds.BLOCK", 1)
    small = diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton")
    oracles.close(flat(small.value), flat(whole.value))


@pytest.mark.parametrize("name", ["relu cnn", "relu mlp"])
def test_the_hessians_is_exact_where_the_network_is_linear_in_each_tensor(name):
    model, x, y = built(name)
    found = diagonal(model, "cross_entropy", (x, y))
    assert found.exact
    oracles.close(flat(found.value), dense(model, x, y, "hessian"))


def test_a_loss_that_is_not_convex_has_negative_entries():
    model, x = nn.Linear(2, 1).double(), torch.randn(5, 2).double()
    y = torch.zeros(5, 1).double()
    found = diagonal(model, lambda z, y: -z.square().sum(-1), (x, y), matrix="gauss_newton")
    oracles.close(found.value["weight"], -2 * x.square().mean(0, keepdim=True))
    oracles.close(found.value["bias"], torch.tensor([-2.0]).double())


# ------------------------------------------------------------- estimates, over all their patterns


class Small(nn.Module):
    """A product or a scale, with a curved function behind it, summed over positions."""

    def __init__(self, first, *, positions=(1,), time_first=False):
        super().__init__()
        self.first, self.positions, self.time_first = first, positions, time_first

    def forward(self, x):
        h = self.first(x.transpose(0, 1) if self.time_first else x).tanh()
        h = h.transpose(0, 1) if self.time_first else h
        return h.sum(self.positions) if self.positions else h


class Bare(nn.Linear):
    """A weight that is computed first, so that no product has it."""

    def forward(self, x):
        return x @ self.weight.exp().T + self.bias


CURVED = {  # kind → the model, x, how many signs a probe draws
    "one position": (lambda: Small(nn.Linear(2, 2), positions=()), (2, 2), 2 * 2),
    "positions": (lambda: Small(nn.Linear(2, 1)), (2, 3, 2), 2 + 4 + 2 + 2),  # s, r, V; the bias' s
    "time first": (lambda: Small(nn.Linear(2, 1), time_first=True), (2, 3, 2), 2 + 4 + 2 + 2),
    "kernel": (
        lambda: Small(nn.Conv2d(2, 2, (1, 2), groups=2), positions=(2, 3)),
        (1, 2, 1, 3),
        2 + 4 + 2,
    ),
    "kernel in one dimension": (
        lambda: Small(nn.Conv1d(2, 2, 2, groups=2), positions=(2,)),
        (1, 2, 3),
        2 + 4 + 2,
    ),
    "scale of channels": (
        lambda: Small(oracles.half(nn.BatchNorm2d(2)), positions=(2, 3)),
        (1, 2, 1, 2),
        2 + 2,
    ),
    "scale of features": (
        lambda: Small(oracles.half(nn.LayerNorm(2))),
        (2, 3, 2),
        4 + 4,
    ),
    "no product": (lambda: Small(Bare(2, 1), positions=()), (3, 2), 2 + 1),
}


@pytest.mark.parametrize("kind", CURVED)
def test_a_hessians_probes_are_unbiased(kind, monkeypatch):
    """The mean over all patterns of signs is the dense Hessian's diagonal."""
    build, shape, free = CURVED[kind]
    model, x = build().double().eval(), torch.randn(shape).double()
    y = torch.randn(model(x).shape).double()
    pattern = Pattern(free)
    for module in (diagonals, probes):
        monkeypatch.setattr(module, "signs", pattern)
    found = diagonal(model, "half_square", (x, y), probes=2**free)
    assert pattern.drawn == free * 2**free
    oracles.close(flat(found.value), dense(model, x, y, "hessian", "half_square"))


def test_sampled_columns_are_unbiased(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    x, y = torch.randn(2, 2).double(), torch.tensor([0, 2])
    n = every_sign(monkeypatch, torch.zeros(2, 3), fixed_first=1)
    found = diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton", samples=n)
    assert found.probes == n == 16
    oracles.close(flat(found.value), dense(model, x, y, "gauss_newton"))


@pytest.mark.parametrize("how", [{"probes": 6}, {"matrix": "gauss_newton", "samples": 6}])
def test_the_standard_error_is_that_of_many_repetitions(how):
    """12 calls of two batches. Entries of one call hang together: as if a call were 6 numbers, both
    Σ error² and Σ sem² are χ² of 72 or more, and F(72, 72) lies in (⅓, 3) but once in 200 000.
    """
    model, x, y, _ = case("tanh mlp")
    matrix = how.get("matrix", "hessian")
    true = flat(diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton").value)
    true = true if matrix == "gauss_newton" else dense(model, x, y, matrix)
    data, error, said = [(x[:4], y[:4]), (x[4:], y[4:])], 0.0, 0.0
    for seed in range(12):
        found = diagonal(model, "cross_entropy", data, seed=seed, **how)
        error += float((flat(found.value) - true).square().sum())
        said += float(flat(found.sem).square().sum())
    assert 1 / 3 < error / said < 3


def test_probes_at_the_products_spread_less_than_probes_of_the_weights(monkeypatch):
    """B = 16: the ratio of the variances is near 1/B for the weights of a matrix; F(49, 49) stays
    below 4 but once in a million.
    """
    model, x, y, _ = case("tanh mlp", batch=16)
    ours = diagonal(model, "cross_entropy", (x, y), probes=50)
    monkeypatch.setattr(probes.Places, "settle_in", lambda self, z: None)
    plain = diagonal(model, "cross_entropy", (x, y), probes=50)
    for name in ("0.weight", "2.weight"):
        assert ours.sem[name].square().sum() < plain.sem[name].square().sum() / 4


# ---------------------------------------------------------------------------------- the arguments


def test_batches_count_by_their_size_and_an_injection_names_the_parameters():
    model, x, y, _ = case("relu mlp")
    whole = diagonal(model, "cross_entropy", (x, y))
    parts = diagonal(model, "cross_entropy", [(x[:4], y[:4]), (x[4:], y[4:])])
    oracles.close(flat(parts.value), flat(whole.value))
    noise = dither.inject(model, {"2.*": dither.Weight(0.3)})
    for matrix in diagonals.MATRICES:
        found = diagonal(noise, "cross_entropy", (x, y), matrix=matrix).value
        assert set(found) == {"2.weight", "2.bias"}
        oracles.close(found["2.weight"], whole.value["2.weight"])
    assert noise.sites["2.weight"].noise.sigma == 0.3


def test_looking_changes_nothing():
    model, x, y, _ = case("attention")
    model.train()
    frozen = model.head.weight.requires_grad_(False)
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    diagonal(model, "cross_entropy", (x, y), probes=2)
    diagonal(model, "cross_entropy", (x, y), matrix="gauss_newton", samples=2)
    assert model.training
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_is_summed_in_single():
    model, x, y, _ = case("relu mlp")
    found = diagonal(model.bfloat16(), "cross_entropy", (x.bfloat16(), y))
    again = diagonal(model.double(), "cross_entropy", (x.bfloat16().double(), y))
    for name, value in found.value.items():
        assert value.dtype == torch.float32
        oracles.close(value.double(), again.value[name], rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"matrix": "fisher"}, "'hessian' or 'gauss_newton': got 'fisher'"),
        ({"samples": 4}, "samples=4 of a Hessian; give probes"),
        ({"probes": 1}, "probes is a whole number ≥ 2.*got 1"),
        ({"matrix": "gauss_newton", "samples": 1}, "samples is a whole number ≥ 2.*got 1"),
        ({"matrix": "gauss_newton", "samples": 2.5}, "samples.*got 2.5"),
    ],
)
def test_bad_input_is_told(arguments, says):
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match=says):
        diagonal(model, "cross_entropy", (x, y), **arguments)


def test_data_that_cannot_be_used_are_told():
    model, x, y, _ = case("tanh mlp")
    with pytest.raises(dither.DitherError, match="diagonal needs at least one batch"):
        diagonal(model, "cross_entropy", [])
    with pytest.raises(dither.DitherError, match="diagonal reads the data more than once"):
        diagonal(model, "cross_entropy", iter([(x, y)]))
    with pytest.raises(dither.DitherError, match=r"diagonal takes a model.*'0:in' is an act"):
        diagonal(dither.inject(model, dither.Additive(0.1)), "cross_entropy", (x, y))
    with pytest.raises(dither.DitherError, match="the loss has kinks"):
        diagonal(model, lambda z, y: z.abs().sum(-1), (x, y))
    with pytest.raises(dither.DitherError, match=r"diagonal takes a model.*got None"):
        diagonal(None, "cross_entropy", (x, y))
