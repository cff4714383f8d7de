"""`noise.set`: other σ at the sites of an injection; tables for notebooks."""

import pytest
import torch
from torch import nn

import dither

torch.manual_seed(0)
X, Y = torch.randn(8, 5), torch.arange(8) % 3


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "noise", [dither.Additive(0.1), dither.Weight(0.1), dither.Multiplicative(0.1)]
)
def test_it_is_as_if_injected_with_them(noise):
    from dataclasses import replace

    net, other = model(), model()
    injected = dither.inject(net, noise, seed=0)
    sigmas = dict(zip(injected.sites, (0.2, 0.5, 0.3, 0.7), strict=False))
    injected.set(sigmas)
    expected = dither.inject(other, {n: replace(noise, sigma=s) for n, s in sigmas.items()}, seed=0)
    assert torch.equal(net(X), other(X))
    torch.testing.assert_close(dither.explicit(injected, X, Y).R, dither.explicit(expected, X, Y).R)
    assert repr(injected) == repr(expected)


def test_draws_go_on():
    net, other = model(), model()
    a, b = (dither.inject(m, dither.Additive(0.1), seed=0) for m in (net, other))
    net(X), other(X)
    a.set({"0:in": 0.1})
    assert torch.equal(net(X), other(X))
    assert a.step == b.step == 2


def test_what_balance_found_is_taken_as_it_is():
    net = model()
    noise = dither.inject(net, dither.Additive(1.0))
    with torch.no_grad():
        net[2].weight.mul_(20)
        sigmas = dither.balance(noise, X, net.eval()(X).argmax(1), ratio=0.01)
    noise.set(sigmas)
    assert {n: s.noise.sigma for n, s in noise.sites.items()} == dict(sigmas)


def test_a_placed_noise_stays_taken_over():
    net = nn.Sequential(nn.Linear(5, 8), dither.nn.Additive(0.1, seed=0))
    noise = dither.inject(net, seed=0)
    noise.set({"1:out": 0.0})
    assert torch.equal(net(X), net[0](X))
    noise.remove()
    assert net[1].placed_noise.sigma == 0.0


@pytest.mark.parametrize(
    ("sigmas", "says"),
    [
        ({"1:in": 0.1}, "no site '1:in'; there are '0:in', '2:in'"),
        ({"0:in": -1.0}, "σ of Additive"),
    ],
)
def test_a_wrong_one_changes_nothing(sigmas, says):
    noise = dither.inject(model(), dither.Additive(0.1))
    with pytest.raises(dither.DitherError, match=says):
        noise.set({"2:in": 0.5, **sigmas})
    assert [s.noise.sigma for s in noise.sites.values()] == [0.1, 0.1]


def test_tables_for_notebooks():
    net = model()
    noise = dither.inject(net, {"0": dither.Additive(nn.Parameter(torch.tensor(0.25)))})
    assert "Additive σ 0.25 learnt gaussian" in repr(noise)
    assert "<td>0:in</td>" in noise._repr_html_()
    trace = dither.measures.trace(net.eval(), "cross_entropy", (X, Y), probes=4)
    assert "4 probes" in str(trace)
    assert "<td>0.weight</td>" in trace._repr_html_()
    assert dither.Estimate(1.0, 0.1)._repr_html_() == "1 ± 0.1"
