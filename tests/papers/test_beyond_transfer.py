"""beyond/transfer: what is measured, and how it is judged."""

import numpy as np
import pytest
import torch

import dither
from dither.lab import MLP, SGD, Run, Table
from dither.lab.training.watch import State
from dither.papers.beyond import transfer

NETS = {(64, 3): 0.0, (128, 3): 1.0, (256, 3): 2.0, (128, 2): 0.5, (128, 4): 1.5}


def table(share, accuracy=0.9):
    """share(kind, way, width, depth, seed) as the results of runs."""
    rows = {}
    for width, depth in NETS:
        label = f"{width} × {depth}"
        for kind, way in [(k, w) for k in transfer.KINDS for w in transfer.WAYS] + [("none", "")]:
            name = f"{label}, none" if kind == "none" else f"{label}, {kind}, {way}"
            rows[name] = {}
            for seed in range(5):
                rows[name][seed] = [(1, "accuracy/train", accuracy)]
                if way:
                    value = share(kind, way, width, depth, seed)
                    rows[name][seed].append((1, "share", value))
    return Table.of(rows)


def spreading(kind, way, width, depth, seed):
    """With one σ the share doubles from net to net, with one ratio it is .1 and some noise."""
    log = NETS[width, depth] if way == "σ" else 0.0
    return 0.1 * 2**log * np.exp(0.05 * np.random.default_rng([seed, width, depth]).normal())


def test_a_ratio_that_transfers_holds_and_one_that_does_not_fails():
    claims = {claim.id: claim for claim in transfer.figure.claims}
    good = table(spreading)
    assert all(claim.check(good)[0] for claim in claims.values())
    swapped = table(lambda kind, way, *rest: spreading(kind, "ratio" if way == "σ" else "σ", *rest))
    for kind in transfer.KINDS:
        for name in ("widths", "depths"):
            assert claims[f"{kind}, {name}"].check(swapped)[0] is False
    assert claims["asked"].check(swapped)[0] is False


def test_nets_that_have_not_learnt_are_not_judged():
    claims = transfer.figure.claims
    assert [claim.check(table(spreading, accuracy=0.3))[0] for claim in claims] == [None] * 6


def test_the_spread_is_that_of_the_logarithm():
    values = np.array([[0.1, 0.2, 0.4], [1.0, 0.0, 1.0]])
    found = transfer.spread(values)
    assert found[0] == pytest.approx(np.log(2))
    assert np.isnan(found[1])


def test_the_share_is_the_mean_change_over_the_loss():
    """Of a linear net with ½‖z − y‖²: E[Δℓ] = ½σ²‖W‖², whatever the inputs."""
    run = Run(data=None, model=MLP((4, 3)), optimiser=SGD(0.1), noise=dither.Additive(0.3),
              loss="half_square", steps=1)  # fmt: skip
    model = run.model.build(0).eval()
    x, y = torch.randn(200, 4), torch.randn(200, 3)
    noise = dither.inject(model, run.noise, seed=0)

    class Some(State):
        def examples(self, split, limit=None):
            return x[:limit], y[:limit]

    state = Some(run=run, seeds=(0,), step=1, epoch=1, model=model, noise=noise, data=None)
    found = transfer.Share(limit=200, draws=400)(state)
    square = float(model.fc0.weight.detach().square().sum())
    loss = float((model(x) - y).square().sum(1).mean().detach() / 2)
    expected = 0.3**2 / 2 * square / loss
    assert abs(found["share"] - expected) < 5 * found["sem of share"]
