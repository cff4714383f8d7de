"""One draw for each word that enters a key, pinned: a change of keys gives all users other runs
under the same seed, and no law of the draws would notice it.
"""

import pytest
import torch
from torch import nn

import dither
from dither.noise import Additive, Node, Weight

SEED = 7
X = torch.zeros(1, 4, dtype=torch.float64)


class Twice(nn.Sequential):
    """Its site `0:in` is called twice in a forward, `1:in` once; both add their noise to 0."""

    def __init__(self):
        super().__init__(nn.Identity(), nn.Identity())

    def forward(self, x):
        return torch.cat([self[0](x), self[0](x), self[1](x)])


def at_activations(injections=1) -> list[torch.Tensor]:
    """The noise [3, 4] of a step, a further one, two forwards of a held one, the last mirrored."""
    model = Twice()
    for _ in range(injections):  # the last one is asked
        noise = dither.inject(model, dict.fromkeys(("0", "1"), Additive(1.0)), seed=SEED)
        noise.pause()
    noise.resume()
    found = [model(X), model(X)]
    with noise.hold():
        found += [model(X), model(X)]
    with noise.mirrored():
        return [*found, model(X)]


def at_weights(**how) -> list[torch.Tensor]:
    """δ of the three weights of a net at two steps; 0 where a step leaves one alone."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3))).double()
    with dither.inject(model, Weight(1.0), seed=SEED, **how) as noise:
        deltas = [(noise.displacement(s, t), s.parameter) for t in (1, 2) for s in noise.ordered]
    return [torch.zeros_like(w) if d is None else d.detach() for d, w in deltas]


def chosen(draw: str) -> list[int]:
    """The weight that each of twelve steps displaces."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
    with dither.inject(model, Weight(1.0), seed=SEED, draw=draw) as noise:
        scales = [[noise.scale(s, t) for s in noise.ordered] for t in range(1, 13)]
    return [row.index(1.0) for row in scales]


def after(hang) -> list[torch.Tensor]:
    """Two parameters after two steps without gradients."""
    weights = [nn.Parameter(torch.zeros(4, dtype=torch.float64)) for _ in range(2)]
    optimiser = torch.optim.SGD(weights, 0.1)
    hang(optimiser, 1.0, seed=SEED)
    for _ in range(2):
        for w in weights:
            w.grad = torch.zeros_like(w)
        optimiser.step()
    return [w.detach() for w in weights]


def a_nodes_vectors() -> list[torch.Tensor]:
    with dither.inject(nn.Sequential(nn.Linear(2, 4).double()), Node(1.0), seed=SEED) as noise:
        return [w.detach() for w in noise.parameters()]


def expected(**how) -> list[torch.Tensor]:
    """The mean and the error of six draws."""
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with dither.inject(model, Weight(1.0), seed=SEED) as noise:
        found = dither.expected(noise, x, y, lambda z, y: z.exp().sum(1), draws=6, seed=3, **how)
    return [torch.tensor(list(found), dtype=torch.float64)]


DRAWS = {
    "activations": lambda: at_activations(),
    "a second injection": lambda: at_activations(injections=2)[:1],
    "weights": lambda: at_weights(),
    "weights, all": lambda: at_weights(draw="all")[:1],
    "a Node's vectors": a_nodes_vectors,
    "langevin": lambda: after(dither.langevin),
    "anti_pgd": lambda: after(dither.anti_pgd),
    "expected": lambda: expected() + expected(antithetic=True),
}
WERE = {  # the numbers in their order, four in a row
    "activations": [
        [0.8080806, 0.8174688, -0.9664433, 0.2530505],
        [-1.474088, 1.128318, -0.8074632, -0.2227211],
        [-0.07023422, -0.8920955, -1.23279, 1.466981],
        [-0.8250551, -0.9412594, 0.7519309, 1.446578],
        [-0.2746273, -0.08543502, -1.545433, 0.008857151],
        [-0.4965543, 0.504848, -0.7178045, 1.057629],
        [-0.9705687, -1.09564, -0.5213657, 0.3294883],
        [-0.6841739, 0.6184842, 0.1880477, -1.923441],
        [0.870837, -1.758912, 1.243925, 0.1995317],
        [-0.8579359, -0.6740537, 0.03269901, -0.7738562],
        [-0.1419728, 0.7230089, -1.60216, -0.6019669],
        [0.4917159, -0.5836848, -1.074612, 0.3192531],
        [0.8579359, 0.6740537, -0.03269901, 0.7738562],
        [0.1419728, -0.7230089, 1.60216, 0.6019669],
        [-0.4917159, 0.5836848, 1.074612, -0.3192531],
    ],
    "a second injection": [
        [-0.1441327, -0.2250973, 0.3539944, -0.03946539],
        [-0.9283013, -0.573572, 0.4338474, -0.352075],
        [1.330146, -0.7982686, -0.3924338, -0.461909],
    ],
    "weights": [
        [-1.750008, -0.3949551, -0.6993236, 0.5166041],
        [0.6396656, -0.7473605, 0.001028248, 1.778993],
        [0.4056704, -0.7785728, 0.4106827, 0.4280088],
        [0.4071916, 0.1515198, -1.506569, 0.1679322],
        [0.360607, 1.390639, 0.08137468, 0.4172498],
        [1.396572, 1.06072, 0.5294857, -1.034512],
    ],
    "weights, all": [
        [-1.010368, -0.2280274, -0.4037546, 0.2982615],
    ],
    "a Node's vectors": [
        [-0.3228881, -0.7869209, 0.2339312, -0.3563994],
    ],
    "langevin": [
        [-1.852693, -1.288077, -0.7056404, -1.925879],
        [0.0008572567, -0.2039253, 2.101639, -1.18603],
    ],
    "anti_pgd": [
        [-1.547209, 0.1019574, -0.492845, -1.723742],
        [0.1302982, -0.8298887, 0.8795771, -0.6782868],
    ],
    "expected": [
        [0.3968501, 0.5783218, 0.2125994, 0.1238147],
    ],
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_what_was_drawn(name):
    found = torch.cat([t.flatten() for t in DRAWS[name]()])
    right = torch.tensor(WERE[name], dtype=torch.float64).flatten()
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("draw", "were"),
    [
        ("cycle", [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]),
        ("random", [0, 0, 2, 0, 0, 0, 0, 2, 0, 2, 0, 0]),
    ],
)
def test_the_weight_of_each_step_is_the_one_it_was(draw, were):
    """By lot one of three is met by no step in twelve, which happens once in forty seeds."""
    assert chosen(draw) == were
