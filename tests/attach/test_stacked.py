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
