"""Weight noise and the ways in which a forward takes its parameters."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dither

X, Y = torch.randn(6, 3, dtype=torch.double), torch.arange(6) % 3
WAYS = {
    "attribute": lambda m: m.w,
    "getattr": lambda m: getattr(m, "w"),  # noqa: B009
    "parameters": lambda m: next(m.parameters()),
    "named_parameters": lambda m: dict(m.named_parameters())["w"],
    "_parameters": lambda m: m._parameters["w"],
    "state_dict": lambda m: m.state_dict(keep_vars=True)["w"],
    "a list of its own": lambda m: m.held[0],
    "both": lambda m: (m.w + m.held[0]) / 2,
}
SEEN = ("attribute", "getattr")
USES = {
    "matmul of .T": lambda x, w: x @ w.T,
    "matmul of .mT": lambda x, w: x @ w.mT,
    "linear": F.linear,
    "einsum": lambda x, w: torch.einsum("bi,oi->bo", x, w),
    "scaled": lambda x, w: F.linear(x, 0.5 * w),
    "rows": lambda x, w: x @ w[:2].T @ torch.ones(2, 3, dtype=x.dtype).triu(),
    "sum": lambda x, w: (x.unsqueeze(1) * w).sum(2),
}


class Reads(nn.Module):
    def __init__(self, way="attribute", use="matmul of .T", frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 3, dtype=torch.double), requires_grad=not frozen)
        self.held, self.way, self.use = [self.w], WAYS[way], USES[use]

    def forward(self, x):
        return self.use(x, self.way(self))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_noise_reaches_a_parameter_or_says_that_it_does_not(way, frozen):
    net = Reads(way, frozen=frozen)
    with dither.inject(net, {"w": dither.Weight(0.5)}, seed=0) as noise:
        asked = (dither.explicit, dither.expected)
        if way in SEEN:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                moved = net.train()(X) - net.eval()(X)
            assert moved.norm() > 0.1
            for ask in asked:
                ask(noise, X, Y)
            return
        for ask in asked:
            for _ in range(2):
                with pytest.raises(dither.DitherError, match="can't reach 'w': the forward takes"):
                    ask(noise, X, Y)
        if not frozen:
            with pytest.warns(UserWarning, match="noise on 'w' is absent in a part: the for"):
                net.train()(X)
            with warnings.catch_warnings():  # once is enough
                warnings.simplefilter("error")
                net(X)


@pytest.mark.parametrize("use", USES)
def test_a_frozen_parameter_has_the_share_of_one_that_is_trained(use):
    shares = []
    for frozen in (False, True):
        net = Reads(use=use, frozen=frozen)
        with dither.inject(net, {"w": dither.Weight(0.5)}, seed=0) as noise, torch.no_grad():
            shares.append([
                float(dither.explicit(noise, X, Y, **how).R)
                for how in ({}, {"curvature": "full"})
            ])  # fmt: skip
    assert shares[0][0] > 0.01
    assert shares[1] == pytest.approx(shares[0], rel=1e-9)


def test_a_parameter_of_its_own_is_read_through_by_every_other_use():
    """Unused parameters, tied ones, and a noise that is off tell nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.GRU(3, 4, batch_first=True))
    net[1].weight = net[0].weight
    net.unused = nn.Linear(2, 2)
    first = lambda x: net[2](net[1](net[0](x)).unsqueeze(1))[0]  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with dither.inject(net, dither.Weight(0.1)):
            net.forward = first
            net.train()(torch.randn(4, 3)).sum().backward()
            with dither.inject(net, {"0.weight": dither.Weight(0.2)}):
                net(torch.randn(4, 3)).sum().backward()


def test_a_forward_that_differentiates_is_asked_too():
    class Force(Reads):
        def forward(self, x):
            with torch.enable_grad():
                x = x if x.requires_grad else x.requires_grad_()
                energy = torch.tanh(x @ self.way(self).T).sum()
                return torch.autograd.grad(energy, x, create_graph=True)[0]

    with (
        dither.inject(Force("parameters"), {"w": dither.Weight(0.1)}) as noise,
        pytest.raises(dither.DitherError, match="can't reach 'w'"),
    ):
        dither.expected(noise, X.clone(), Y)
    with dither.inject(Force(), {"w": dither.Weight(0.1)}) as noise:
        dither.expected(noise, X.clone(), Y, draws=4)


def test_what_had_no_graph_is_asked_again():
    net = Reads("parameters")
    with dither.inject(net, {"w": dither.Weight(0.5)}, seed=0) as noise:
        for mode in (torch.inference_mode, torch.no_grad):
            with mode(), pytest.raises(dither.DitherError, match="can't reach 'w'"):
                dither.expected(noise, X, Y, draws=4)


def test_a_forward_registers_no_noisy_value():
    """As a layer of one's own does that ties its weights anew in each forward."""

    class Ties(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            self.b.weight = self.a.weight
            return self.b(self.a(x))

    net = Ties().double()
    with (
        dither.inject(net, {"a.weight": dither.Weight(0.5)}, when="always"),
        torch.no_grad(),
        pytest.raises(TypeError, match="cannot assign"),
    ):
        net(X)
    assert all(type(p) is nn.Parameter for p in net.parameters())
