"""Levi et al. 2022, the phase diagram, and Nodes in other nets: settings; claims can fail."""

import io

import numpy as np
import pytest
import torch

import dither
from dither.lab.figure import Silent, Task
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.beyond import nodes
from dither.papers.beyond.nets import Residual, Rows
from dither.papers.levi2022 import phases


def verdict(claim: str, table: Table):
    return next(c for c in phases.figure.claims if c.id == claim).check(table)


def test_the_phase_diagrams_rows():
    task = phases.figure.at("smoke")["logits, width 8, η 0.05"]
    assert isinstance(task, Task)
    rows = execute(task, [0], Silent())[0]
    found = {(step, q): v for step, q, v in rows}
    assert found[0, "predicted divergent"] == pytest.approx(2**0.5 * found[0, "predicted catapult"])
    assert found[1.0, "sigma"] == found[0, "predicted catapult"]
    assert {q for s, q in found if s == 5.0} >= {"sigma", "phase", "node peak", "loss peak"}


def diagram(measured: float = 1.0, told: int = 1) -> Table:
    rows = {}
    for label in phases.figure.at("quick"):
        one = [(0.0, "top", 0.01), (0.0, "steps", 80.0)]
        for name, at in (("decay", 1.0), ("catapult", 10.0), ("divergent", 14.0)):
            one += [(0.0, f"predicted {name}", at), (0.0, f"measured {name}", measured * at)]
        one += [(r, "sigma", 10 * r) for r in (0.3, 0.6)] + [(r, "phase", told) for r in (0.3, 0.6)]
        rows[label] = dict.fromkeys(range(5), one)
    return Table.of(rows)


@pytest.mark.parametrize("claim", ["L21 ours", "L21 ours, clipped", "L22 ours"])
def test_the_boundaries_claims(claim):
    for measured, holds in ((1.0, True), (1.4, True), (1.5, False), (0.6, False), (np.inf, False)):
        assert verdict(claim, diagram(measured))[0] is holds


def test_the_other_claims_of_the_diagram():
    assert verdict("L23 ours", diagram())[0] is True
    assert verdict("L23 ours", diagram(told=0))[0] is False
    assert verdict("L24 ours", diagram())[0] is True
    phases.figure.plot(diagram()).savefig(io.BytesIO(), format="png")


# ------------------------------------------------------------------------------------- beyond


@pytest.mark.parametrize("spec", [Residual(16), Rows(8, 2)], ids=["residual", "transformer"])
def test_other_nets_are_functions_of_their_seed(spec):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (spec.build(seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(3, 784)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


def test_nodes_sit_in_the_other_nets():
    for spec, where in nodes.OTHERS.values():
        for pattern in where:
            with dither.inject(spec.build(0), {pattern: dither.Node(1.0)}) as noise:
                assert len(noise.sites) == (2 if "*" in pattern else 1)
