"""The mechanism of nodes; and beyond: R or the draws, one R, the local Hessian."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from beyond import drawn, table, verdict
from torch.nn.functional import cross_entropy

import dither
from dither.lab import MLP, SGD, Data, Run
from dither.lab.figure import Silent
from dither.lab.rule import below, decide
from dither.lab.table import Table
from dither.lab.training.loop import Training, train
from dither.lab.training.watch import State
from dither.papers.beyond import explicit_implicit, local_hessian, matched, shares
from dither.papers.ends import LOSS
from dither.papers.levi2022 import mechanism
from dither.papers.levi2022.looks import LocalHessian, corrupted
from dither.papers.levi2022.methods import LARGE, METHODS

# ------------------------------------------------------------------------------------ the mechanism


def test_the_local_hessian_is_the_dense_one():
    """At the image and at the pre-activation: autograd's, in a displacement of the whole batch."""
    run = Run(
        data=Data("mnist-5000", train=64, test=16), model=MLP((784, 12, 10)), optimiser=SGD(0.1),
        batch=16, steps=1, noise={"fc0": dither.Node(2.0)},
    )  # fmt: skip
    training = Training(run, (0,), False, "cpu")
    model, data, noise = training.model.double().eval(), training.data.double(), training.noise
    state = State(run, (0,), 0, 0, model, noise, data)
    seen = LocalHessian(16)(state)
    x, y = data.x_train[:16], data.y_train[:16]

    def shifted(u):
        h = torch.relu(model.fc0(x) + u)
        return cross_entropy(model.fc1(h), y)

    H = torch.autograd.functional.hessian(shifted, torch.zeros(12, dtype=x.dtype))
    top = float(torch.linalg.eigvalsh(H)[-1])
    assert seen["top at node"] == pytest.approx(top, rel=1e-6)
    assert seen["trace at node"] == pytest.approx(float(H.trace()), rel=1e-6)
    w = noise.nodes["fc0:out"].detach().flatten().double()
    assert seen["R2"] == pytest.approx(float(0.5 * 4 * w @ H @ w), rel=1e-5)
    W = model.fc0.weight.detach()
    image = W.T @ H @ W
    assert seen["top at input"] == pytest.approx(float(torch.linalg.eigvalsh(image)[-1]), rel=1e-5)


def hessians(**tops):
    labels = mechanism.labels()
    return {
        labels[m]: {
            "accuracy/train": 0.95, "top at input": tops.get(m.replace(" ", "_"), 0.05),
            "top at node": tops.get(m.replace(" ", "_"), 0.05), "R1": [0.05, 0.01],
            "R2": [0.2, 0.012],
        }
        for m in mechanism.SHOWN
    }  # fmt: skip


def test_nodes_must_lower_the_local_hessian():
    low = table(hessians(in_decay=0.01, in_catapult=0.004, full_decay=0.03, CDT_4=0.03))
    assert verdict(mechanism.figure, "L25", low)
    assert verdict(mechanism.figure, "L25 full", low)
    assert verdict(mechanism.figure, "L25 node", low)
    assert verdict(mechanism.figure, "L26", low)
    drawn(mechanism.figure, low)
    high = hessians(in_decay=0.06)
    high["FC in decay"]["R2"] = [0.2, 0.0001]
    assert verdict(mechanism.figure, "L25", table(high)) is False
    assert verdict(mechanism.figure, "L26", table(high)) is False


# ------------------------------------------------------------------------------------ one number


def robustness(accuracy, of=METHODS, at=lambda i, m: 0.1 * 0.6**i):
    """accuracy(ln λ, method) of each method, with λ that falls from method to method."""
    found = {}
    for i, m in enumerate(METHODS):
        if m not in of:
            continue
        top = at(i, m)
        label = local_hessian.names("FC")[i]
        found[label] = {"accuracy/train": 0.95, "top at input": top}
        found[label] |= {corrupted(s): accuracy(math.log(top), m) for s in LARGE}
    return table(found)


def test_accuracy_must_follow_the_local_hessian():
    good = robustness(lambda top, m: 0.5 - 0.05 * top)
    assert [verdict(local_hessian.figure, c, good) for c in ("H1", "H2", "H3")] == [True] * 3
    assert verdict(local_hessian.figure, "H1 CNN", good) is None
    drawn(local_hessian.figure, good)
    against = robustness(lambda top, m: 0.9 + 0.05 * top)
    assert verdict(local_hessian.figure, "H1", against) is False
    off = robustness(lambda top, m: 0.5 - 0.05 * top + 0.1 * (m == "dropout"))
    assert verdict(local_hessian.figure, "H3", off) is False


def test_the_local_hessian_is_judged_of_all_methods_and_inside_their_range():
    line = lambda top, m: 0.5 - 0.05 * top  # noqa: E731
    some = robustness(line, [m for m in METHODS if "catapult" not in m])
    assert [verdict(local_hessian.figure, c, some) for c in ("H1", "H2", "H3")] == [None] * 3
    beyond = robustness(line, at=lambda i, m: 1e-5 if m == "dropout" else 0.1 * 0.6**i)
    assert [verdict(local_hessian.figure, c, beyond) for c in ("H1", "H3")] == [True, None]


# ----------------------------------------------------------------------------------- one R for all


def traded(gain, R=1.0):
    """gain(kind, r) in every quantity, at a training loss that falls equally for all."""
    falls = [2.0, 1.0, 0.5, 0.25]
    plain = {"loss/train": falls} | {q: [1.0] * 4 for q in matched.GAINS}
    found = {"FC, none": plain}
    for r in (0.01, 0.03):
        for kind in (*matched.KINDS, matched.ITSELF):
            values = {q: [1 + s * gain(kind, r)] * 4 for q, (_, s) in matched.GAINS.items()}
            asked = R * r * matched.GUESS
            found[matched.named("FC", kind, r)] = {"loss/train": falls, "R": [asked] * 4, **values}
    return table(found)


def test_the_kind_of_noise_matters_or_not():
    same = traded(lambda kind, r: r)
    assert verdict(matched.figure, "B FC test", same)
    drawn(matched.figure, same)
    of_kind = traded(lambda kind, r: 0.1 * len(kind))
    assert verdict(matched.figure, "B FC test", of_kind) is False
    assert verdict(matched.figure, "B FC test", traded(lambda kind, r: r, R=3.0)) is None
    assert verdict(matched.figure, "B CNN test", same) is None


def test_gains_are_read_at_what_was_seen_of_every_net():
    """A noise that keeps the loss high at one r takes that r from the picture, and from the claim:
    the others had that loss before their first look.
    """
    slow = traded(lambda kind, r: r)
    high = (pl.col("run") == matched.named("FC", "node", 0.03)) & (pl.col("quantity") == LOSS)
    t = Table(slow.frame.with_columns(value=pl.when(high).then(1.4).otherwise(pl.col("value"))))
    assert matched.comparable(slow, "FC", [0.01, 0.03]) == [0.01, 0.03]
    assert matched.comparable(t, "FC", [0.01, 0.03]) == [0.01]
    gain = matched.gains(t, "FC", "test", matched.ALL, [0.01, 0.03])
    assert "learnt before its first look" in shares.kinds_share(gain)[1]
    lines = [ax.lines[0].get_xdata() for ax in matched.plot(t).axes]
    assert all(len(x) == 1 for x in lines)


def judged(gain):
    share, why = shares.kinds_share(gain)
    return decide(below("share − ¼", share), unless=why)[0]


def test_gains_that_do_not_differ_are_not_judged():
    """A share of nothing is decided in at most 5 % of cases."""
    rng = np.random.default_rng(0)
    found = [judged(rng.normal(size=(5, 8, 2))) for _ in range(200)]
    assert sum(f is not None for f in found) <= 10
    said = [shares.kinds_share(rng.normal(size=(5, 8, 2)))[1] for _ in range(50)]
    assert sum("not shown that the gains differ" in why for why in said) > 40


def test_a_gain_that_is_not_finite_says_so():
    gain = np.random.default_rng(0).normal(size=(5, 8, 2))
    gain[0, 0, 0] = np.nan
    assert "not finite" in shares.kinds_share(gain)[1]
    assert "n = 2" in shares.kinds_share(gain[1:3])[1]


@pytest.mark.parametrize("share", [0.0, shares.QUARTER, 0.9])
def test_the_share_of_the_kind_is_judged_as_it_is(share):
    """At the edge it is decided in at most 5 % of cases, far from it the right way in most."""
    rng = np.random.default_rng(1)
    r = np.array([-1.0, 1.0, -1.0, 1.0])
    found = []
    for _ in range(200):
        kind = rng.normal(size=(7, 1))
        kind = (kind - kind.mean()) / kind.std()
        mean = (1 - share) ** 0.5 * r + share**0.5 * kind
        found.append(judged(mean + rng.normal(size=(5, 7, 4)) + 2 * rng.normal(size=(5, 1, 1))))
    right = {0.0: True, 0.9: False}.get(share)
    if right is None:
        assert sum(f is not None for f in found) <= 20  # 10 are meant: 3 standard errors above
    else:
        assert sum(f is right for f in found) > 100
        assert sum(f is (not right) for f in found) <= 2


def test_R_itself_is_kept_at_what_is_asked():
    size = matched.Size((16, 16), 256, 64, 10, looks=2, limit=32, batch=32, levels=(0.1,))
    run = matched.runs(FC=size)[matched.named("FC", matched.ITSELF, 0.1)]
    R = [value for _, quantity, value in train(run, (0,), Silent())[0] if quantity == "R"]
    assert R[-1] == pytest.approx(0.1 * matched.GUESS, rel=0.6)


def test_a_net_has_its_own_levels_and_ways():
    small = matched.Size((4, 4), 64, 64, 2, looks=2, limit=32, probed=8, levels=(0.1,))
    other = replace(small, levels=(0.2, 0.3), precision="bf16", schedule="cosine", between=7)
    found = matched.runs(FC=replace(other, strength=0.5))
    assert {label.split("r = ")[1] for label in found if "r = " in label} == {"0.2", "0.3"}
    run = found["FC, every layer, r = 0.2"]
    assert (run.precision, run.schedule, run.noise.sigma.every) == ("bf16", "cosine", 7)
    look = run.watch[1]
    assert (look.limit, look.probed, look.strength) == (32, 8, 0.5)
    assert matched.runs(FC=small)["FC, none"].schedule == "constant"


def test_the_shares_of_the_variance_sum_to_one():
    rng, rs = np.random.default_rng(0), np.array([0.0, 1.0, 2.0])
    gain = rng.normal(size=(5, 4, 3)) + 3 * rs
    parts = shares.shares(gain)
    assert sum(part.value for part in parts.values()) == pytest.approx(1)
    assert parts["share of r"].value > 0.7
    exact = shares.shares(np.broadcast_to(rs, (5, 4, 3)))["share of r"]
    assert exact == (pytest.approx(1), pytest.approx(0))
    assert matched.per_nat(gain * 0 + rs * matched.GUESS, [0.0, 1.0, 2.0]) == pytest.approx(1)


def test_the_error_of_a_share_is_its_scatter():
    rng, r = np.random.default_rng(2), np.array([-1.0, 1.0, -1.0, 1.0])
    mean = r + 0.7 * np.linspace(-1, 1, 7)[:, None]
    found = [
        shares.shares(mean + 0.5 * rng.normal(size=(5, 7, 4)))["share of kind"] for _ in range(200)
    ]
    errors = np.sqrt(np.mean([e.sem**2 for e in found]))
    assert errors == pytest.approx(np.std([e.value for e in found]), rel=0.3)
    part = (mean - mean.mean(1, keepdims=True).mean(0)).mean(1)
    truth = 4 * (part**2).sum() / ((mean - mean.mean()) ** 2).sum()
    assert np.mean([e.value for e in found]) == pytest.approx(truth, abs=0.02)


# ---------------------------------------------------------------------------------- R or the draws


def apart(shares):
    """Effects of the arms on the sum of sines, as shares of noise's."""
    found = {"sines, none": {"high": 1.0, "order": 0.0, "log trace": 5.0}}
    for arm, (high, order) in {**shares, "noise": (1.0, 1.0)}.items():
        found[f"sines, {arm}"] = {
            "high": 1 - 0.9 * high, "order": -0.2 * order, "log trace": 5 - 3 * high
        }  # fmt: skip
    return table(found)


def test_effects_are_shared_out():
    t = apart({"R": (0.9, 0.1), "E, 64 draws": (1.0, 0.9), "R + draws": (1.0, 0.2)})
    said = {c: verdict(explicit_implicit.figure, c, t) for c in ("A1", "A2", "A3", "A4", "A5")}
    assert said == {"A1": True, "A2": True, "A3": True, "A4": False, "A5": True}
    assert verdict(explicit_implicit.figure, "A6", t) is None
    all_of_it = apart({"R": (1.0, 1.0), "E, 64 draws": (1.0, 1.0), "R + draws": (1.0, 1.0)})
    for claim in ("A2", "A3", "A4"):  # R makes the order, so neither its rest nor the draws do
        assert verdict(explicit_implicit.figure, claim, all_of_it) is False
    drawn(explicit_implicit.figure, t)


def arms():
    """Of a linear net, in which R is all that noise costs."""
    plain = explicit_implicit.sinusoids.baseline(8, 3, 1e-2)
    linear = replace(plain, watch=(), model=replace(plain.model, activation="linear"))
    return explicit_implicit.arms(linear, {"fc1:in": dither.Additive(0.3)}, "explicit", (4000,))


def gradient(run):
    training = Training(run, (0,), False, "cpu") if type(run) is Run else run.program((0,))
    torch.manual_seed(0)
    training.slopes(*next(training.batches()))
    return torch.cat([p.grad.flatten() for p in training.model.parameters()])


def test_the_mean_of_many_draws_follows_the_mean_change():
    """Of a linear net it is ℓ + R; one draw is far from it."""
    found = arms()
    g = {arm: gradient(run) for arm, run in found.items()}
    off = {arm: float((g[arm] - g["R"]).norm() / (g["R"] - g["none"]).norm()) for arm in g}
    assert off["E, 4000 draws"] < 0.05 * off["noise"]
    assert off["R + draws"] > 0.2 * off["noise"]


def test_a_run_apart_goes_on_from_a_checkpoint():
    run = arms()["R + draws"]
    whole = train(replace(run, watch=explicit_implicit.runs(8, 3, 1e-2, ())["sines, none"].watch),
                  (0,), Silent())  # fmt: skip
    assert len(whole[0]) > 3
    first, again = run.program((0,)), run.program((0,))
    x, y = next(first.batches())
    first.descend(x, y)
    first.step += 1
    again.restore(first.state())
    assert torch.equal(first.descend(x, y), again.descend(x, y))
