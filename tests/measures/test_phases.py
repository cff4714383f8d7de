"""The phase of a run, and the boundaries predicted and found."""

import math

import pytest
import torch
from torch import nn

from dither.errors import DitherError
from dither.lab.nets.specs import MLP
from dither.measures import phases
from dither.measures.phases import Boundaries, boundaries, find, phase, predict, short
from dither.noise import uniform

FALLING = [2.0, 1.5, 1.0, 0.8, 0.7]


@pytest.mark.parametrize(
    ("node", "loss", "is_"),
    [
        ([1, 1.01, 0.97, 1, 0.99], FALLING, "decoupled"),
        ([1, 0.9, 0.8, 0.7, 0.6], FALLING, "decay"),
        ([1, 1.3, 1.2, 0.9, 0.6], FALLING, "catapult"),
        ([1, 0.9, 0.8, 0.7, 0.6], [2.0, 2.5, 2.3, 1.5, 1.0], "catapult"),
        ([1, 0.9, 0.8, 0.7, 0.6], [2.0, 2.3, 2.3, 1.5, 1.0], "decay"),  # + 15 % is no spike
        ([1, 3, 9, 9, 9], [2.0, 9.0, 50.0, 60.0, 80.0], "divergent"),
        ([1, 1, 1, 1, 1], [2.0, 2.0, 2.0, 2.0, 2.0], "divergent"),  # it never recovers
        ([1, 2, 50, 50, 50], [20.0, 90.0, 5.0, 2.3, 2.3], "divergent"),  # dead, not recovered
        ([1, 2, math.inf], [2.0, 9.0, math.nan], "divergent"),
    ],
)
def test_the_rule(node, loss, is_):
    assert phase(node, loss) == is_


def test_the_end_is_the_mean_of_the_last_fifth():
    loss = [2.0] + [1.0] * 8 + [3.5]
    assert phase([1.0] * 10, loss) == "divergent"  # (1 + 3.5)/2 ≥ 2
    assert phase([1.0] * 10, [2.0] + [1.0] * 8 + [2.3]) == "decoupled"


def test_a_phase_takes_two_values():
    with pytest.raises(DitherError, match=r"phase .*got 1 and 1"):
        phase([1.0], [1.0])


def test_boundaries_tell_the_phase_of_a_sigma():
    edges = Boundaries(1.0, 10.0, 20.0)
    assert [edges.phase(s) for s in (0.5, 1, 5, 10, 20)] == [
        "decoupled", "decay", "decay", "catapult", "divergent",
    ]  # fmt: skip


def test_a_scans_boundaries_are_the_geometric_means_of_neighbours():
    scan = [(1, "decoupled"), (4, "decay"), (9, "decay"), (16, "catapult"), (25, "divergent")]
    assert boundaries(scan[::-1]) == Boundaries(2.0, 12.0, 20.0)


def test_a_phase_that_does_not_last_is_no_boundary():
    scan = [(1, "decoupled"), (4, "catapult"), (9, "decay"), (16, "catapult")]
    assert boundaries(scan) == Boundaries(2.0, 12.0, math.inf)
    assert boundaries([(4, "divergent"), (9, "divergent")]) == Boundaries(4, 4, 4)


def toy(w1: float = 0.8) -> tuple[nn.Sequential, torch.Tensor]:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(0.5)
        net[1].weight.fill_(w1)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return net, x


def test_the_toys_boundaries_are_appendix_bs():
    net, x = toy()
    edges, top = predict(net, x, x, 0.01, loss="half_square")
    assert top == {"0:out": pytest.approx(0.64)}
    assert edges.catapult**2 == pytest.approx(2 / (0.01 * 0.64))
    assert edges.divergent**2 == pytest.approx(4 / (0.01 * 0.64))
    # R₂ = R₁: ½σ²w₁²w² = σ |w w₁ (w₁w₀ − 1)| √(⟨x²⟩/B)
    w = float(phases.inject(net, {"0": phases.Node(1.0)}, seed=0).nodes["0:out"].detach())
    size = abs(w * 0.8 * (0.4 - 1)) * math.sqrt(float(x.square().mean()) / len(x))
    assert edges.decay == pytest.approx(size / (0.5 * (0.8 * w) ** 2))


def test_a_laws_variance_moves_the_boundary():
    net, x = toy()
    gaussian, _ = predict(net, x, x, 0.01, loss="half_square")
    flat, _ = predict(net, x, x, 0.01, loss="half_square", law=uniform)
    assert flat.catapult == pytest.approx(gaussian.catapult * math.sqrt(3))


def test_short_runs_find_the_toys_boundaries():
    net, x = toy()
    before = [p.clone() for p in net.parameters()]
    found = find(net, x, x, 0.01, loss="half_square", batch=4000, steps=60,
                 ratios=(0.3, 0.7, 0.9, 1.1, 1.3, 3.0))  # fmt: skip
    assert [r.phase for r in found.runs] == ["decay"] * 3 + ["catapult"] * 2 + ["divergent"]
    assert found.measured is not None
    assert found.measured.catapult == pytest.approx(found.predicted.catapult, rel=0.05)
    assert "catapult" in str(found)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not net._forward_pre_hooks


def test_a_relu_net_catapults_only_above_the_predicted_boundary():
    net = MLP((6, 32, 32, 3), fan_extra=1).build(0)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, 6, generator=rng)
    y = (x[:, :3] @ torch.eye(3)).argmax(1)
    found = find(net, x, y, 0.05, batch=256, steps=40, ratios=(0.1, 0.2, 3.0, 4.0))
    told = [r.phase for r in found.runs]
    assert set(told[:2]) <= {"decoupled", "decay"}
    assert set(told[2:]) <= {"catapult", "divergent"}


def test_without_short_runs_it_only_predicts():
    net, x = toy()
    found = find(net, x, x, 0.01, loss="half_square", ratios=())
    assert found.measured is None
    assert found.runs == ()
    assert "–" in str(found)


def test_several_nodes_are_told_by_the_first_to_cross():
    net = MLP((6, 16, 16, 3)).build(0)
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    both, top = predict(net, x, y, 0.1, where=("fc0", "fc2"))
    assert list(top) == ["fc0:out", "fc2:out"]
    assert both.catapult == pytest.approx(math.sqrt(2 / (0.1 * max(top.values()))))


def test_a_short_run_ends_where_the_loss_does():
    net, x = toy()
    run = short(net, x, x, 0.01, {"0": phases.Node(1e6)}, loss="half_square", batch=100, steps=50)
    assert run.phase == "divergent"
    assert len(run.loss) < 50
    assert run.node[0] == 1


def test_bad_input_is_a_sentence():
    net, x = toy()
    with pytest.raises(DitherError, match="learning rate"):
        predict(net, x, x, 0.0)
    with torch.no_grad():
        net[1].weight.zero_()
    with pytest.raises(DitherError, match="local Hessian is 0"):
        predict(net, x, x, 0.1, loss="half_square")


@pytest.mark.parametrize("how", [{"steps": 1}, {"batch": 0}])
def test_too_few_steps_or_samples_are_refused(how):
    ((name, got),) = how.items()
    with pytest.raises(DitherError, match=f"{name} is a whole number ≥ .*got {got}"):
        find(nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3, lr=0.1, **how)
