"""The noises' two faces obey one law: the mean of δ is 0, the mean of ⟨g, δ⟩² is Var."""

import math

import pytest
import torch
from cases import NOISES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Axis, close, two_sided, z_scores

from dither.noise import (
    Additive,
    Here,
    Multiplicative,
    Node,
    TwoGaussian,
    Weight,
    dropout,
    gaussian,
    two_gaussian,
    two_point,
    uniform,
)
from dither.noise.draw import Source
from dither.noise.noises import at, describe
from dither.schedule import Constant, Cosine, Linear, Until

LAWS = [gaussian, uniform, two_point, two_gaussian, TwoGaussian(0.5), dropout(0.3), dropout(0.9)]
EACH = pytest.mark.parametrize("noise", [n for n, _ in NOISES.values()], ids=list(NOISES))
N, ALARM = 20_000, 1e-5


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def site(noise, batch, *features, stack=0, batch_dim=0):
    lead = [2] * stack
    h = randn(*lead, *features) if noise.side == "parameter" else randn(*lead, batch, *features)
    w = randn(*lead, noise.nodes, *features[-1:]) if isinstance(noise, Node) else None
    return Here(h.movedim(stack, stack + batch_dim), w, stack, batch_dim)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_laws_have_mean_0_and_their_variance(law):
    draw = law.sample(Source([3]), torch.empty(N, dtype=torch.float64))
    moments = torch.stack([draw, draw.square()], 1)
    z = z_scores(moments, torch.tensor([0, law.variance], dtype=torch.float64))
    assert z.max() < two_sided(ALARM / 2)


@pytest.mark.parametrize("law", [law for law in LAWS if not hasattr(law, "p")], ids=repr)
def test_the_mirror_image_of_a_symmetric_law_is_its_negative(law):
    like = torch.empty(50, dtype=torch.float64)
    close(law.sample(Source([3], reflect=True), like), -law.sample(Source([3]), like))


@EACH
def test_the_faces_agree_over_the_axes_of_the_noise(noise):
    """Σ_k ⟨g, δ_k⟩² = Var exactly, δ_k the axes of δ; columns and samples stay apart."""
    batch = 3
    for shape in ((4,), (2, 4)):
        here = site(noise, batch, *shape)
        g = randn(2, *((batch,) if noise.side == "parameter" else ()), *here.h.shape)
        axis, var, k = Axis(0), torch.zeros(2, batch, dtype=torch.float64), 0
        while k == 0 or k < axis.size:
            axis = Axis(k)
            delta = noise.displace(here, axis).expand_as(here.h)
            inner = (g * delta).flatten(2).sum(2)
            var, k = var + inner.square(), k + 1
        close(noise.variance(g, here), var)


@EACH
def test_the_faces_agree_in_the_mean_of_draws(noise):
    here = site(noise, N, 3)
    if noise.side == "parameter":
        one = Here(randn(3))
        draws = torch.stack([noise.displace(one, Source([i])) for i in range(N // 10)])
        g = randn(3)
        var = noise.variance(g.view(1, 1, 3), one).squeeze()
    else:
        here.h = here.h[:1].expand_as(here.h)
        draws = noise.displace(here, Source([5])).expand_as(here.h)
        g = randn(3)
        var = noise.variance(g.expand_as(here.h).unsqueeze(0), here)[0, 0]
    inner = draws @ g
    truth = torch.cat([torch.zeros(3).double(), var.view(1)])
    z = z_scores(torch.cat([draws, inner.square().unsqueeze(1)], 1), truth)
    assert z.max() < two_sided(ALARM / 4)


def test_the_formulas():
    h, eps, g = randn(2, 3), randn(2, 3), randn(1, 2, 3)

    def rng(law, like):
        return eps[tuple(slice(n) for n in like.shape)]

    close(Additive(0.5).displace(Here(h), rng), 0.5 * eps)
    close(Multiplicative(0.5).displace(Here(h), rng), 0.5 * h * eps)
    close(Weight(0.5).displace(Here(h), rng), 0.5 * eps)
    w = randn(1, 3)
    close(Node(0.5).displace(Here(h, w), rng), 0.5 * eps[:, :1] * w)
    close(Additive(0.5).variance(g, Here(h)), 0.25 * g.square().sum(2))
    close(Multiplicative(0.5).variance(g, Here(h)), 0.25 * (g * h).square().sum(2))
    close(Node(0.5).variance(g, Here(h, w)), 0.25 * (g @ w.T).square().squeeze(2))
    close(Additive(0.5, law=uniform).variance(g, Here(h)), 0.25 / 3 * g.square().sum(2))


@pytest.mark.parametrize("stack", [0, 1])
@pytest.mark.parametrize("batch_dim", [0, 1])
def test_a_node_shares_its_draw_between_the_positions_of_a_sample(stack, batch_dim):
    noise = Node(1.0)
    here = site(noise, 3, 2, 4, stack=stack, batch_dim=batch_dim)
    delta = noise.displace(here, Source([0] * (1 + stack))).expand_as(here.h)
    delta = delta.movedim(stack + batch_dim, stack)  # [*S, B, T, 4]
    assert torch.equal(delta[..., 0, :], delta[..., 1, :])
    eps = (delta[..., 0, :] / here.w).flatten(
        0, -2
    )  # the same for all features, another per sample
    assert (eps - eps[:, :1]).abs().max() < 1e-12
    assert len(eps[:3, 0].unique()) == 3


def test_dropout_is_inverted_dropout():
    p = 0.3
    h = randn(50, 4)
    noisy = h + Multiplicative(law=dropout(p)).displace(Here(h), Source([1]))
    kept = noisy != 0
    close(noisy[kept], h[kept] / (1 - p))
    assert 0 < kept.double().mean() < 1


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.floats(0, 1e3), st.sampled_from(LAWS), st.integers(1, 4), st.integers(0, 10**9))
def test_variance_goes_with_sigma_squared(sigma, law, batch, seed):
    rng = torch.Generator().manual_seed(seed)
    h, g = (torch.randn(*s, generator=rng).double() for s in ((batch, 3), (2, batch, 3)))
    for kind in (Additive, Multiplicative):
        var = kind(sigma, law=law).variance(g, Here(h))
        close(var + 1, sigma**2 * kind(1.0, law=law).variance(g, Here(h)) + 1)
        assert var.shape == (2, batch)
        assert (var >= 0).all()


# -------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.2), {0: 0.2, 99: 0.2}),
        (Until(0.2, 10), {0: 0.2, 9: 0.2, 10: 0.0, 99: 0.0}),
        (Linear(0.2, 0.6, 4), {0: 0.2, 1: 0.3, 2: 0.4, 4: 0.6, 99: 0.6}),
        (Cosine(1.0, 0.2, 10), {0: 1.0, 5: 0.6, 10: 0.2, 99: 0.2}),
        (lambda step: step / 10, {0: 0.0, 3: 0.3}),
    ],
)
def test_schedules(schedule, values):
    for step, sigma in values.items():
        assert math.isclose(at(Additive(schedule), step).sigma, sigma, abs_tol=1e-15)


def test_a_constant_sigma_is_read_as_it_is():
    noise = Additive(0.3)
    assert at(noise, 7) is noise
    assert describe(noise) == "Additive σ 0.3 gaussian"
