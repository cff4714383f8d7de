"""Local gradients and Hessians against autograd's, R_k against closed forms and the real loss."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian

import dither
from dither.errors import DitherError
from dither.measures.local import local, moment, norms, series, terms
from dither.noise import Dropout, Gaussian, TwoGaussian, TwoPoint, Uniform

CE = nn.functional.cross_entropy


def chain(activation=nn.Tanh) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)
    ).double()
    return net.eval(), torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))


def behind(net: nn.Sequential, site: int, x):
    """The net's tensor at the output of layer `site`, and the rest of the net."""
    return net[: site + 1](x).detach(), net[site + 1 :]


@pytest.mark.parametrize("site", [0, 2, 4])
def test_the_full_hessian_is_the_mean_of_each_samples(site):
    net, x, y = chain()
    noise = dither.inject(net, {str(site): dither.Node(1.0)}, seed=0)
    found = local(noise, x, y, curvature="full")[f"{site}:out"]
    z, rest = behind(net, site, x)
    H = torch.stack(
        [hessian(lambda t, b=b: CE(rest(t)[None], b), z[i]) for i, b in enumerate(y[:, None])]
    ).mean(0)
    w = torch.randn(len(H), dtype=torch.float64)
    values = torch.linalg.eigvalsh(H).flip(0)
    torch.testing.assert_close(found.values, values, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(
        found.vectors @ found.values.diag() @ found.vectors.T, H, atol=1e-12, rtol=1e-9
    )
    assert found.top == pytest.approx(float(values[0]), rel=1e-9)
    assert found.trace == pytest.approx(float(H.trace()), rel=1e-9)
    assert found.along(w) == pytest.approx(float(w @ H @ w), rel=1e-9)


@pytest.mark.parametrize("site", [0, 2])
def test_the_gauss_newton_part_and_the_gradient(site):
    net, x, y = chain()
    noise = dither.inject(net, {str(site): dither.Node(1.0)}, seed=0)
    found = local(noise, x, y)[f"{site}:out"]
    z, rest = behind(net, site, x)
    H, G = 0, []
    for t, b in zip(z, y[:, None], strict=True):
        J = jacobian(lambda t: rest(t)[None], t)[0]
        p = torch.softmax(rest(t), 0)
        H = H + J.T @ (p.diag() - p.outer(p)) @ J / len(y)
        G.append(jacobian(lambda t, b=b: CE(rest(t)[None], b), t))
    G = torch.stack(G)
    back = found.vectors @ found.values.diag() @ found.vectors.mT
    torch.testing.assert_close(back, H, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found.gradient, G.mean(0), atol=1e-12, rtol=1e-9)
    assert found.square == pytest.approx(float(G.square().sum(1).mean()), rel=1e-9)


def test_on_a_relu_net_the_two_are_one():
    net, x, y = chain(nn.ReLU)
    noise = dither.inject(net, dither.Node(1.0), seed=0)
    a, b = local(noise, x, y), local(noise, x, y, curvature="full")
    assert list(a) == ["0:out", "2:out", "4:out"] == list(b)
    for site in a:
        assert a[site].top == pytest.approx(b[site].top, rel=1e-9)
        assert a[site].trace == pytest.approx(b[site].trace, rel=1e-9)
        assert a[site].square == pytest.approx(b[site].square, rel=1e-9)
        torch.testing.assert_close(a[site].gradient, b[site].gradient)


def test_fewer_samples_than_features_take_the_other_gram_matrix():
    net, x, y = chain(nn.ReLU)
    noise = dither.inject(net, {"0": dither.Node(1.0)}, seed=0)
    few, full = local(noise, x[:2], y[:2]), local(noise, x[:2], y[:2], curvature="full")
    assert len(few["0:out"].values) <= 4 < len(full["0:out"].values)
    assert few["0:out"].top == pytest.approx(full["0:out"].top, rel=1e-9)
    torch.testing.assert_close(
        few["0:out"].vectors[:, 0].abs(), full["0:out"].vectors[:, 0].abs(), atol=1e-7, rtol=1e-7
    )


def test_an_images_node_has_all_its_pixels():
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).double().eval()
    )
    x, y = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    noise = dither.inject(net, {"0": dither.Node(1.0)}, seed=0, example=x)
    found = local(noise, x, y)["0:in"]
    H = hessian(lambda u: CE(net(x + u), y), torch.zeros(1, 4, 4, dtype=torch.float64))
    values = torch.linalg.eigvalsh(H.reshape(16, 16))
    assert found.top == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-9)


def test_a_sequences_node_is_shared_by_its_positions():
    torch.manual_seed(0)

    class Mean(nn.Module):
        def forward(self, h):
            return h.relu().mean(1)

    net = nn.Sequential(nn.Linear(3, 4), Mean(), nn.Linear(4, 3)).double().eval()
    x, y = torch.randn(6, 5, 3, dtype=torch.float64), torch.randint(0, 3, (6,))
    noise = dither.inject(net, {"0": dither.Node(1.0)}, seed=0)
    H = hessian(lambda u: CE(net[2](net[1](net[0](x) + u)), y), torch.zeros(4, dtype=torch.float64))
    assert local(noise, x, y)["0:out"].trace == pytest.approx(float(H.trace()), rel=1e-9)


def test_what_local_does_not_take():
    net, x, y = chain()
    with pytest.raises(DitherError, match="'gauss_newton' or 'full'"):
        local(dither.inject(net, dither.Node(1.0)), x, y, curvature="fisher")
    with pytest.raises(DitherError, match="got noise on parameters"):
        local(dither.inject(net, dither.Weight(1.0)), x, y)


# ------------------------------------------------------------------------------------------- R_k


def toy(w1=0.7, w0=1.3, wn=0.4):
    """f = w₁(w₀x + w_NI ε), half square: App. B, where R_k = 0 for k > 2."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = torch.randn(9, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.fill_(w0)
        net[1].weight.fill_(w1)
    noise = dither.inject(net, {"0": dither.Node(2.0)}, seed=0)
    with torch.no_grad():
        noise.nodes["0:out"].fill_(wn)
    return net, noise, x, (w1, w0, wn)


def test_the_toys_terms_are_equation_12():
    _, noise, x, (w1, w0, wn) = toy()
    first, second, third, fourth = terms(noise, x, x, "half_square")
    error = (w1 * w0 - 1) * x
    size = 2.0 * abs(wn * w1) * math.sqrt(float(error.square().mean()) / len(x))
    assert first.mean == 0
    assert first.sd == pytest.approx(size, rel=1e-12)
    assert second.mean == pytest.approx(0.5 * (2.0 * w1 * wn) ** 2, rel=1e-12)
    assert second.sd == pytest.approx(second.mean * math.sqrt(2 / len(x)), rel=1e-12)
    assert third == fourth == (0, 0)


def test_its_local_hessian_is_w1_squared():
    _, noise, x, (w1, _, _) = toy()
    assert local(noise, x, x, "half_square")["0:out"].top == pytest.approx(w1**2, rel=1e-12)


def test_R2_is_what_explicit_calls_the_full_second_order():
    net, x, y = chain()
    noise = dither.inject(net, {"2": dither.Node(0.3)}, seed=0)
    R = dither.explicit(noise, x, y, curvature="full").R.item()
    assert terms(noise, x, y, order=2)[1].mean == pytest.approx(R, rel=1e-9)


def test_the_terms_add_up_to_the_noisy_loss():
    net, x, y = chain()
    rest, missing = [], []
    for sigma in (0.2, 0.1):
        noise = dither.inject(net, {"0": dither.Node(sigma, dither.two_point)}, seed=0)
        w = noise.nodes["0:out"].detach()[0]
        z, after = behind(net, 0, x)
        both = [CE(after(z + s * sigma * w), y).item() for s in (-1, 1)]
        change = sum(both) / 2 - CE(net.eval()(x), y).item()  # every sample's ε is ±1
        found = terms(noise, x, y, order=4)
        rest.append(abs(change - sum(t.mean for t in found)))
        missing.append(abs(change - found[1].mean))
        noise.remove()
    assert rest[1] < 0.2 * missing[1]  # R₄ explains most of what R₂ leaves
    assert rest[1] < rest[0] / 32  # of order σ⁶


def test_drawn_and_exact_terms_agree():
    net, x, y = chain()
    noise = dither.inject(net, {"2": dither.Node(0.5)}, seed=0)
    exact, drawn = terms(noise, x, y, order=4), series(noise, x, y, order=4, draws=400)
    for term, estimate in zip(exact, drawn, strict=True):
        assert abs(estimate.value - term.mean) < 4.5 * estimate.sem
        assert estimate.sem == pytest.approx(term.sd / 20, rel=0.35)


def test_several_sites_are_drawn_together():
    net, x, y = chain(nn.Identity)
    noise = dither.inject(net, dither.Node(0.3), seed=0)
    R = dither.explicit(noise, x, y, curvature="full").R.item()
    found = series(noise, x, y, order=2, draws=400)
    assert abs(found[1].value - R) < 4.5 * found[1].sem
    with pytest.raises(DitherError, match=r"series\(…, draws=…\)"):
        terms(noise, x, y)


@pytest.mark.parametrize(
    "law", [Gaussian(), Uniform(), TwoPoint(), TwoGaussian(0.3), Dropout(0.4)], ids=repr
)
def test_moments(law):
    assert moment(law, 0) == pytest.approx(1)
    assert moment(law, 1) == pytest.approx(0)
    assert moment(law, 2) == pytest.approx(law.variance)


def test_higher_moments():
    assert [moment(Gaussian(), k) for k in (4, 6)] == [3, 15]
    assert moment(Uniform(), 4) == pytest.approx(0.2)
    assert moment(TwoGaussian(0.5), 4) == pytest.approx(1 + 6 * 0.25 + 3 * 0.0625)
    assert moment(Dropout(0.5), 3) == 0
    with pytest.raises(DitherError, match="moments"):
        moment(object(), 2)


def test_norms_are_the_nodes_vectors():
    net, _, _ = chain()
    noise = dither.inject(net, {"0": dither.Node(1.0, nodes=3), "2:in": dither.Node(1.0)}, seed=0)
    found = norms(noise)
    assert list(found) == ["0:out", "2:in"]
    assert found["0:out"] == pytest.approx(float(noise.nodes["0:out"].detach().norm()))


def test_what_terms_do_not_take():
    net, x, y = chain()
    noise = dither.inject(net, {"0": dither.Node(1.0)})
    with pytest.raises(DitherError, match="k = 1"):
        terms(noise, x, y, order=0)
    with pytest.raises(DitherError, match="draws is a whole number ≥ 2"):
        series(noise, x, y, draws=1)


def test_local_asks_for_samples_in_front_and_one_call():
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    rnn = nn.Sequential(nn.Linear(4, 3))
    with (
        dither.inject(rnn, {"0": dither.Node(1.0)}, batch_dim=1) as noise,
        pytest.raises(DitherError, match="batch_dim=1"),
    ):
        local(noise, torch.randn(5, 6, 4), y)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(torch.tanh(self.a(x))))

    with dither.inject(Twice(), {"a": dither.Node(1.0)}) as noise:
        for look in (local, terms):
            with pytest.raises(DitherError, match="'a:out' is called twice"):
                look(noise, x, y)
