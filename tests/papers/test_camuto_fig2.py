"""Camuto et al., Fig. 2: the second order against `explicit`, the claims against made-up tables."""

import io
import math

import matplotlib.pyplot as plt
import polars as pl
import pytest
import torch

import dither
from dither.errors import DitherError
from dither.lab.data import needs
from dither.lab.data.sets import Data
from dither.lab.figure import Silent
from dither.lab.nets.specs import MLP
from dither.lab.page.judge import judge
from dither.lab.table import Table
from dither.papers.camuto2020 import fig2, moments, remainders

# ------------------------------------------------------------------------------ the second order


@pytest.mark.parametrize("activation", ["elu", "sigmoid", "tanh", "relu"])
@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        (dither.Additive(0.3), moments.additive(0.09)),
        (dither.Multiplicative(0.3), moments.multiplicative(0.09)),
        (dither.Multiplicative(1.0, dither.dropout(0.2)), moments.multiplicative(0.25)),
    ],
    ids=["additive", "multiplicative", "dropout"],
)
@pytest.mark.parametrize("loss", ["cross_entropy", "half_square"])
def test_the_forward_pass_gives_explicits_two_parts(activation, noise, variance, loss):
    classes = 4 if loss == "cross_entropy" else 2
    net = MLP((5, 7, 6, classes), activation=activation, init="torch").build(1).double()
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64)
    y = (
        torch.randint(classes, (3,))
        if loss == "cross_entropy"
        else torch.randn(3, classes).double()
    )
    for sites, on_input in (({"act*:out": noise}, False), ({"fc*:in": noise}, True)):
        R, residual = moments.second_order(net, x, y, loss, variance, on_input=on_input)
        with dither.inject(net, sites) as injected, torch.no_grad():
            gauss_newton = dither.explicit(injected, x, y, loss).R.item()
            full = dither.explicit(injected, x, y, loss, curvature="full").R.item()
        assert pytest.approx(gauss_newton, rel=1e-10) == R
        assert R + residual == pytest.approx(full, rel=1e-10)


def test_at_small_sigma_it_is_what_the_noise_costs():
    net = MLP((5, 30, 30, 3), activation="elu").build(0).double()
    torch.manual_seed(0)
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,))
    sigma = 0.02
    with dither.inject(net, {"act*:out": dither.Additive(sigma)}) as noise:
        cost = dither.expected(noise, x, y, draws=16_000, antithetic=True, seed=0)
    R, residual = moments.second_order(net, x, y, "cross_entropy", moments.additive(sigma**2))
    # 5 standard errors: false once in 2 million; R alone is further away
    assert abs(cost.value - R - residual) < 5 * cost.sem
    assert abs(cost.value - R) > 10 * cost.sem


def test_what_is_not_elementwise_is_refused():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Flatten(0))
    with pytest.raises(DitherError, match=r"'1' \(Flatten\) is neither: use explicit"):
        moments.second_order(net, torch.ones(2, 4), torch.zeros(2, 4), "half_square", lambda h: h)


# ------------------------------------------------------------------------------------ the claims

ALL = (*fig2.SMALL, *fig2.VARIANCES)
SEEDS = range(18)  # with two looks each, enough for a share of 9 in 10


def made_up(
    *, c: float = -0.4, residual: float = -0.4, r: float = 2.0, training: float = -0.4,
    early: float = 1.0,
) -> Table:  # fmt: skip
    """Ratios to R, at every σ²; `training`: E[C]/R at the last look; `early`: R at the first."""
    results = {}
    for problem in remainders.ALWAYS:
        rows = []
        for net in range(3):
            for v in ALL:
                parts = {
                    "R": r * v,
                    "C": c * abs(r) * v,
                    "sem": 1e-3 * v,
                    "residual": residual * r * v,
                }
                rows += [(net, f"{q}/{v:g}", value) for q, value in parts.items()]
        results[f"{problem} start"] = dict.fromkeys(SEEDS, rows)
        looks = []
        for step, ratio in ((0, -0.2), (50, training)):
            R = early if step == 0 else 1.0
            parts = {"R": R, "C": ratio, "sem": 0.01, "residual": ratio}
            looks += [(step, q, value) for q, value in parts.items()]
        for v in fig2.VARIANCES:
            results[f"{problem} σ²={v:g}"] = dict.fromkeys(SEEDS, looks)
        for rate in fig2.RATES:
            results[f"{problem} rate {rate:g}"] = dict.fromkeys(SEEDS, looks)
    return Table.of(results)


def verdict(figure, claim: str, t: Table):
    return next(c for c in figure.claims if c.id == claim).check(t)


@pytest.mark.parametrize(
    ("claim", "changed", "holds"),
    [
        ("C1", {}, True),
        ("C1", {"c": 1.1}, False),
        ("C1 norm", {}, True),
        ("C1 norm", {"c": -1.1}, False),
        ("C2", {}, True),
        ("C2", {"r": -2.0}, False),
        ("C1 norm", {"r": -2.0}, False),
        ("C2", {"early": math.nan}, False),
        ("C3", {}, True),
        ("C3", {"training": -1.2}, False),
        ("C3", {"training": 1.2}, False),
        ("C3", {"training": math.nan}, None),
        ("C3 rates", {"training": 0.9}, True),
        ("C3 rates", {"training": 1.1}, False),
        ("C1 ours", {}, True),
        ("C1 ours", {"residual": -0.2}, False),
        ("C1 ours", {"c": 0.0, "residual": 0.0}, False),
    ],
)
def test_the_claims_can_hold_and_fail(claim, changed, holds):
    for problem in ("Boston", "Fashion-MNIST"):
        found, numbers = verdict(fig2.figure, f"{claim} {problem}", made_up(**changed))
        assert found is holds
        assert numbers


def test_a_set_is_judged_by_itself():
    """One set's failure is not another's."""
    frame = made_up().frame
    theirs = pl.col("run").str.starts_with("Boston") & (pl.col("quantity") == "C/1")
    t = Table(frame.with_columns(value=pl.when(theirs).then(9.0).otherwise(pl.col("value"))))
    assert verdict(fig2.figure, "C1 Boston", t)[0] is False
    assert verdict(fig2.figure, "C1 Fashion-MNIST", t)[0] is True


def test_a_run_that_failed_takes_no_other_set_with_it(monkeypatch):
    """As the laboratory judges: claims and picture of the sets whose runs are there."""
    monkeypatch.setattr(needs, "found", lambda name: "here" if name == "cifar-10" else None)
    gone = "Fashion-MNIST, ELU rate 0.1"
    t = Table(made_up().frame.filter(pl.col("run") != gone), {gone: "it failed"})
    found = {claim.id: judge(claim, t, "quick")[0] for claim in fig2.figure.claims}
    assert all(found[f"{id} Boston"]["holds"] is True for id in fig2.CHECKS)
    assert found["C1 Fashion-MNIST"]["holds"] is True
    assert found["C3 rates Fashion-MNIST"]["holds"] is None
    assert "it failed" in found["C3 rates Fashion-MNIST"]["numbers"]["why"]
    assert found["C1 CIFAR-10"]["numbers"]["why"] == "not among these runs"
    axes = fig2.plot(t).axes
    assert [ax.axison for ax in axes] == [True] * 7 + [False]
    assert "it failed" in axes[-1].texts[0].get_text()
    lacking = {label: "left out" for label in t.there if not label.endswith("start")}
    starts = Table(t.frame.filter(pl.col("run").str.ends_with("start")), lacking)
    assert [ax.axison for ax in fig2.plot(starts).axes] == [True, True] * 2  # no blank panel
    assert verdict(fig2.figure, "C1 Boston", starts)[0] is True


def test_numbers_of_the_claims_can_be_written(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: None)
    for claim in fig2.figure.claims:
        entry, trace = judge(claim, made_up(), "quick")
        assert not trace, trace
        there, ladder = "CIFAR-10" not in claim.id, claim.id.startswith("C1 width")
        assert entry["holds"] is (True if there and not ladder else None)
        assert there or "data absent" in entry["numbers"]["why"]


def ladder(ratios) -> Table:
    """|E[C]|/R of each width, three nets a seed."""
    results = {}
    for width, ratio in ratios.items():
        parts = {"R": 2.0, "C": -2.0 * ratio, "sem": 0.01, "residual": 0.0}
        results[fig2.at_width("Boston, sigmoid", width)] = {
            seed: [(net, f"{q}/{v:g}", value * (1 + 0.01 * seed)) for net in range(3)
                   for v in fig2.WIDTHS_AT for q, value in parts.items()]
            for seed in SEEDS
        }  # fmt: skip
    return Table.of(results)


@pytest.mark.parametrize(
    ("ratios", "holds"),
    [
        ({16: 0.5, 256: 0.6, 1024: 0.4}, True),
        ({16: 0.5, 256: 0.4, 1024: 0.48}, False),
        ({256: 0.4}, None),
        ({}, None),
    ],
)
def test_wider_nets_leave_less_out(ratios, holds):
    assert fig2.falls(ladder(ratios), "Boston, sigmoid")[0] is holds


def test_the_ladder_is_drawn():
    _, axes = plt.subplots()
    fig2.widths(axes, ladder({16: 0.5, 1024: 0.4}), "Boston, sigmoid")
    assert axes.get_lines()[0].get_xdata().tolist() == [16, 1024]


@pytest.mark.usefixtures("no_files")
def test_the_picture_says_which_files_are_missing():
    picture = fig2.plot(made_up())
    said = picture.get_supxlabel()
    assert "CIFAR-10, ELU: not run: data absent: put cifar-10-python.tar.gz into" in said
    picture.savefig(io.BytesIO(), format="png")


def test_what_is_here_is_run(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: name == "cifar-10" or None)
    labels = list(fig2.figure.at("paper"))
    assert "CIFAR-10, ELU start" in labels
    assert len(labels) == 3 * (1 + len(fig2.VARIANCES) + len(fig2.RATES))


def test_the_smallest_scale_measures_what_it_says():
    """One net at the start, by hand."""
    small = {"problem": "Boston, sigmoid", "nets": 1, "draws": 8, "width": 16, "variances": (0.25,)}
    rows = {q: v for _, q, v in remainders.at_initialisation(3, Silent(), **small)}
    data = Data("boston", test=1).load()
    x, y = remainders.batch_of(data, 3)
    assert len(data.y_train) == 405
    assert abs(float(data.x_train.mean())) < 1e-6  # standardised by all houses, not by the 32
    assert float(x.mean(0).abs().max()) > 0.05
    assert not torch.equal(x, remainders.batch_of(data, 4)[0])  # a batch for each net
    net = remainders.PROBLEMS["Boston, sigmoid"].model(16).build(3)
    assert [m.in_features for m in net if isinstance(m, torch.nn.Linear)] == [13, *[16] * 6]
    assert all(m.bias is None for m in net if isinstance(m, torch.nn.Linear))
    with dither.inject(net, {"act*:out": dither.Additive(0.5)}) as noise, torch.no_grad():
        assert len(noise.sites) == 6
        R = dither.explicit(noise, x, y, "half_square").R.item()
    assert rows["R/0.25"] == pytest.approx(R, rel=1e-5)
    assert {q for q in rows} == {f"{q}/0.25" for q in remainders.QUANTITIES}


def test_noises_of_one_variance():
    assert remainders.noise(0.25, "additive").sigma == 0.5
    for of in ("multiplicative", "dropout"):
        law = remainders.noise(0.25, of)
        assert law.sigma**2 * law.law.variance == pytest.approx(0.25)
    assert remainders.noise(0.25, "dropout").law.p == pytest.approx(0.2)
