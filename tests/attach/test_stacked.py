"""Replicas in one program: their R is the mean of those of serial runs."""

import pytest
import torch
from cases import NOISES
from oracles import close

import dither
from dither.lab.nets.specs import MLP, DiagonalNet
from dither.noise import Weight

B = 3


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "noise",
    [
        "additive",
        "node",
        "weight",
        "weight all",
        "drop connect",
        "relative by row",
        "drop path",
        "locked",
    ],
)
def test_a_stack_has_the_mean_of_its_replicas_R(noise):
    spec, seeds = MLP((4, 5, 3), activation="tanh"), [3, 8]
    x, y = randn(B, 4), torch.tensor([0, 2, 1])
    noise, how = NOISES[noise]
    stack = spec.build_stacked(seeds).double()
    stacked = dither.inject(stack, noise, seed=seeds, **how)
    R = dither.explicit(stacked, x, y.repeat(2)).R
    serial = []
    for seed in seeds:
        one = dither.inject(spec.build(seed).double(), noise, seed=seed, **how)
        with torch.no_grad():
            for name, w in one.nodes.items():
                w.copy_(stacked.nodes[name][seeds.index(seed)])
        serial.append(dither.explicit(one, x, y).R.detach())
    close(R, torch.stack(serial).mean(), 1e-10)
    each = torch.stack([x, x.roll(1, 0)])
    close(dither.explicit(stacked, each[:1].expand(2, -1, -1), y.repeat(2)).R, R)


def test_a_stack_of_diagonal_nets():
    spec, seeds = DiagonalNet(4, spread=0.3), [1, 2, 3]
    x, y = randn(5, 4), randn(5, 1)
    stacked = dither.inject(spec.build_stacked(seeds).double(), Weight(0.3), seed=seeds)
    serial = [dither.inject(spec.build(s).double(), Weight(0.3), seed=s) for s in seeds]
    R = [dither.explicit(n, x, y, "half_square").R for n in serial]
    close(dither.explicit(stacked, x, y.repeat(3, 1), "half_square").R, sum(R) / 3)


def test_each_replica_draws_what_it_drew():
    """Pinned, as the draws in test_golden are: a key for each replica's own seed."""
    model = MLP((2, 2), bias=False).build_stacked([0, 1]).double()
    with dither.inject(model, Weight(1.0), seed=[7, 8]) as noise:
        found = noise.displacement(noise.ordered[0], 1).detach().flatten()
    right = [0.2780944, -0.5726115, -1.062704, -0.01180796]
    right += [0.7312603, 0.5878658, 0.5684193, 0.7302158]
    right = torch.tensor(right, dtype=torch.float64)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)


def test_a_stack_taken_one_by_one_has_the_R_it_has_at_once():
    """The i-th samples of all replicas go together where no rule meets a parameter."""
    model = MLP((3, 4, 2)).build_stacked([0, 1]).double().eval()
    x, y = randn(B, 3), torch.arange(2 * B) % 2
    with dither.inject(model, Weight(0.2), seed=[7, 8]) as noise, torch.no_grad():
        at_once = dither.explicit(noise, x, y).by_site
        noise.layouts["stray", False] = set(noise.sites)
        one_by_one = dither.explicit(noise, x, y).by_site
    for name, R in at_once.items():
        assert one_by_one[name].item() == pytest.approx(R.item(), rel=1e-10)
