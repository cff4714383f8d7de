"""Optimisers against their formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dither.errors import DitherError
from dither.lab.training.optimiser import SCHEDULES, SGD, Adam, RMSprop


def by_hand(spec, gradients: list[float], start: float) -> float:
    """Optimisers as their papers write them, for one number."""
    theta, v, m = start, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient + spec.weight_decay * theta
        if isinstance(spec, SGD):
            v = spec.momentum * v + g
            theta -= spec.lr * (g + spec.momentum * v if spec.nesterov else v)
        elif isinstance(spec, Adam):
            b1, b2 = spec.betas
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            theta -= spec.lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + spec.eps)
        else:
            v = spec.rho * v + (1 - spec.rho) * g * g
            outside = spec.root == "outside"
            root = math.sqrt(v) + spec.eps if outside else math.sqrt(v + spec.eps)
            theta -= spec.lr * g / root
    return theta


@pytest.mark.parametrize(
    "spec",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.9, weight_decay=0.3),
        SGD(0.1, momentum=0.9, nesterov=True),
        Adam(0.1, eps=0.01, weight_decay=0.2),
        RMSprop(0.1, eps=0.05, weight_decay=0.2),
        RMSprop(0.1, eps=0.05, weight_decay=0.2, root="inside"),
    ],
    ids=repr,
)
def test_optimisers_are_their_formulas(spec):
    theta = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    node = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    optimiser = spec.build([theta], [node])
    gradients = [0.3, -1.0, 0.02, 2.0, 0.0, -0.4]
    for g in gradients:
        theta.grad, node.grad = torch.full_like(theta, g), torch.full_like(node, g)
        optimiser.step()
    assert theta.item() == pytest.approx(by_hand(spec, gradients, 1.5), rel=1e-12)
    undecayed = replace(spec, weight_decay=0.0)  # nodes take no weight decay unless asked
    assert node.item() == pytest.approx(by_hand(undecayed, gradients, 1.5), rel=1e-12)


def test_node_decay_is_there_for_the_asking():
    node = nn.Parameter(torch.ones(1))
    optimiser = SGD(0.1, weight_decay=9.0, node_decay=0.5).build(
        [nn.Parameter(torch.ones(1))], [node]
    )
    node.grad = torch.zeros(1)
    optimiser.step()
    assert node.item() == pytest.approx(1 - 0.1 * 0.5)


def test_cosine_falls_to_zero():
    assert [SCHEDULES["cosine"](t, 8) for t in (0, 4, 8)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(0.0), "SGD: lr = 0.0; give a number above 0"),
        (lambda: Adam(float("nan")), "Adam: lr = nan"),
        (lambda: RMSprop(0.1, root="under"), "RMSprop: root .*'under'"),  # type: ignore
    ],
)
def test_bad_specs_say_what_is_wrong(build, message):
    with pytest.raises(DitherError, match=message):
        build()
