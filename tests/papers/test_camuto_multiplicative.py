"""Camuto et al., eq. 6: what Fig. 2 and 3 ask, of noise in proportion to the activations."""

import io
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from camuto import made_up, verdict

import dither
from dither.lab.data import needs
from dither.lab.figure import Silent
from dither.lab.nets.specs import MLP
from dither.lab.page.judge import judge
from dither.lab.table import Table
from dither.lab.training.loop import train
from dither.papers.camuto2020 import fig2, multiplicative, multiplicative_training, remainders

NET = MLP((6, 5, 4, 3), activation="elu", bias=False, init="glorot")
METHODS = {
    "baseline": (0.4, 5.0, 0.0), "multiplicative": (0.6, 3.0, 9.0),
    "dropout": (0.6, 3.0, 9.5), "R": (0.55, 2.0, 8.0),
    "multiplicative, other draws": (0.6, 3.0, 9.0), "dropout, other draws": (0.6, 3.0, 9.5),
}  # fmt: skip


def trained(**changed) -> Table:
    """(loss, trace, place) of each method."""
    return made_up(METHODS | changed, multiplicative_training.NETS)


def noises(c: float = -0.4, dropout: float = -0.2, late: float = -0.5, rest: float = -0.3) -> Table:
    """E[C]/R at the start of Gaussian noise (`c`) and of dropout, and of both at step 100; `rest`:
    the residual's share.
    """
    starts = {}
    for problem in remainders.ALWAYS:
        for of, at in (("multiplicative", c), ("dropout", dropout)):
            rows = []
            for v in (*fig2.SMALL, *fig2.VARIANCES):
                ratio = -0.3 if v == fig2.SMALL[0] else at
                parts = {"R": v, "C": ratio * v, "sem": 1e-3 * v, "residual": rest * v}
                rows += [(net, f"{q}/{v:g}", a) for net in range(2) for q, a in parts.items()]
            name = multiplicative.name(problem, of)
            starts[f"{name} start"] = dict.fromkeys(range(18), rows)
            for v in fig2.VARIANCES:
                rows = [
                    (step, q, value)
                    for step, ratio in ((0, at), (100, late))
                    for q, value in {"R": v, "C": ratio * v, "sem": 1e-3 * v}.items()
                ]
                starts[f"{name} σ²={v:g}"] = dict.fromkeys(range(18), rows)
    return Table.of(starts)


@pytest.mark.parametrize("of", ["additive", "multiplicative", "dropout"])
def test_looks_at_a_run_with_the_same_noise_see_one_noise_and_warn_of_none(of):
    run = remainders.training(
        "Boston, sigmoid", 0.1, 0.01, width=8, draws=8, steps=2, every=1, batch=32, train=None,
        of=of,
    )  # fmt: skip
    (rows,) = train(run, [0], Silent()).values()  # a warning is an error here
    (other,) = train(replace(run, noise=None), [0], Silent()).values()
    at_start = [{q: v for step, q, v in seen if step == 0} for seen in (rows, other)]
    assert at_start[0].keys() == at_start[1].keys() == {"R", "C", "sem", "residual", "loss/train"}
    assert at_start[0] == pytest.approx(at_start[1], rel=1e-6)


@pytest.mark.parametrize(
    ("claim", "changed", "holds"),
    [
        ("M1", {}, True),
        ("M1", {"dropout": 1.2}, False),
        ("M2", {}, True),
        ("M2", {"rest": -0.1}, False),
        ("M7", {}, True),
        ("M7", {"late": -1.1}, False),
        ("M3", {}, True),
        ("M3", {"c": -0.2}, False),
    ],
)
def test_the_claims_of_the_multiplicative_noises(claim, changed, holds):
    for problem in ("Boston", "Fashion-MNIST"):
        found, numbers = verdict(multiplicative.figure, f"{claim} {problem}", noises(**changed))
        assert found is holds
        assert numbers


@pytest.mark.parametrize(
    ("claim", "changed", "holds"),
    [
        ("M4 MLP Gaussian", {}, True),
        ("M4 CONV dropout", {"R": (0.45, 2.0, 8.0)}, False),
        ("M5", {}, True),
        ("M5", {"R": (0.5, 6.0, 8.0)}, False),
        ("M6 Gaussian", {}, True),
        ("M6 dropout", {"R": (0.5, 2.0, 1.0)}, False),
        ("M6 dropout, mean", {}, True),
        ("M6 Gaussian, mean", {"R": (0.5, 2.0, -1.0)}, False),
    ],
)
def test_the_claims_of_training_with_multiplicative_noise(claim, changed, holds):
    found, numbers = verdict(multiplicative_training.figure, claim, trained(**changed))
    assert found is holds
    assert numbers


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_the_runs_have_the_noise_that_they_are_named_by(scale, monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: None)
    for label, run in multiplicative.figure.at(scale).items():
        of = "dropout" if "dropout" in label else "multiplicative"
        if label.endswith("start"):
            assert dict(run.kwargs)["of"] == of
            continue
        (law,) = {noise for _, noise in run.noise}
        assert law == remainders.noise(float(label.partition("σ²=")[2]), of)
        assert all(w.of == of for w in run.watch if isinstance(w, remainders.Remainder))


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_training_starts_alike_and_differs_by_the_noise(scale):
    runs = multiplicative_training.figure.at(scale)
    assert len(runs) == 14
    for net in multiplicative_training.NETS:
        base = runs[f"{net} baseline"]
        assert base.noise is None
        for method in ("multiplicative", "dropout", "R"):
            run = runs[f"{net} {method}"]
            assert replace(run, noise=None, objective="noise").key == base.key
            assert run.noise == remainders.noise(0.25, method.replace("R", "multiplicative"))
            with dither.inject(run.model.build(0), run.noise) as noise:
                assert len(noise.sites) == {"CONV": 3, "MLP": 5, "2 × 32": 3}[net]
        assert runs[f"{net} R"].objective == ("explicit" if net == "2 × 32" else "sampled")


def test_a_panel_says_which_run_is_missing():
    t, gone = noises(), "Boston, sigmoid, Gaussian start"
    lacking = Table(t.frame.filter(pl.col("run") != gone), {gone: "it failed"})
    axes = multiplicative.plot(lacking).axes
    assert [ax.axison for ax in axes] == [False, True, True, True, False] + [True] * 5
    assert "it failed" in axes[0].texts[0].get_text()


def test_one_law_is_enough_to_fail():
    late = noises()
    worse = pl.col("run").str.contains("dropout σ²") & (pl.col("quantity") == "C")
    t = Table(late.frame.with_columns(value=pl.when(worse).then(9.0).otherwise(pl.col("value"))))
    assert verdict(multiplicative.figure, "M7 Boston", late)[0] is True
    assert verdict(multiplicative.figure, "M7 Boston", t)[0] is False


@pytest.mark.parametrize(
    ("figure", "t"), [(multiplicative, noises()), (multiplicative_training, trained())]
)
def test_pictures_and_numbers(figure, t, monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: None)
    figure.plot(t).savefig(io.BytesIO(), format="png")
    for claim in figure.figure.claims:
        entry, trace = judge(claim, t, "quick")
        assert not trace, trace
        assert entry["holds"] is (None if "CIFAR-10" in claim.id else True)


def test_gaussian_and_dropout_have_one_R():
    torch.manual_seed(0)
    x, y = torch.randn(7, 6), torch.randint(3, (7,))
    found = []
    for of in multiplicative.LAWS:
        model = NET.build(0)
        noise = {"fc*:in": remainders.noise(multiplicative_training.TRAINED_AT, of)}
        with dither.inject(model, noise) as injected, torch.no_grad():
            found.append(float(dither.explicit(injected, x, y).R))
    np.testing.assert_allclose(*found, rtol=1e-6)
