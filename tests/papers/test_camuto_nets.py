"""Camuto et al. 2020, App. D, E, F.7 and eq. 14: one set of nets, watches, claims that can fail."""

import importlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

import dither
from dither import loss as losses
from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import camuto_conv
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.lab.training.watch import State
from dither.measures import calibration as measured
from dither.measures import margins as gamma
from dither.papers.camuto2020 import (
    calibration,
    capacity,
    eq14,
    margins,
    multiplicative_nets,
    nets,
    sensitivity,
)
from dither.papers.camuto2020.nets import ALL, EQ14, FEW, LEVELS, METHODS, NOISE, SHIFTS

FIGURES = (margins, capacity, calibration, sensitivity, eq14)
LABELS = [f"{m}, {a}" for a in (ALL, FEW) for m in (*METHODS, EQ14)]
LAWS = [f"{m}, {a}" for a in (ALL, FEW) for m in multiplicative_nets.LAWS if m != "R"]


def verdict(module, claim: str, table: Table):
    return next(c for c in module.figure.claims if c.id == claim).check(table)


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_the_figures_share_their_nets(scale):
    all_of_them = {label: run.key for label, run in eq14.figure.at(scale).items()}
    for module in FIGURES:
        mine = {label: run.key for label, run in module.figure.at(scale).items()}
        assert mine.items() <= all_of_them.items()
    assert list(all_of_them) == LABELS
    assert len(set(all_of_them.values())) == len(LABELS)


def test_every_scale_trains_as_long_as_the_paper():
    for scale in (nets.MEDIUM, nets.WHOLE):
        assert scale.rate * scale.steps == pytest.approx(1e-3 * 250 * 60_000 / 512, rel=1e-3)
    run = margins.figure.at("paper")[f"R, {ALL}"]
    assert (run.optimiser.lr, run.batch, run.objective) == (1e-3, 512, "explicit")
    assert run.noise.sigma**2 == pytest.approx(0.1)


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_multiplicative_noise_starts_from_the_same_nets(scale):
    """Without noise they are the other figures'; with it, only the noise and the looks differ."""
    runs, others = multiplicative_nets.figure.at(scale), eq14.figure.at(scale)
    for among in (ALL, FEW):
        none = others[f"none, {among}"]
        assert runs[f"none, {among}"].key == none.key
        for method in multiplicative_nets.LAWS:
            run = runs[f"{method}, {among}"]
            assert replace(run, noise=None, watch=none.watch, objective="noise").key == none.key
            assert run.noise.sigma**2 * run.noise.law.variance == pytest.approx(0.25)
            assert set(run.watch) < set(none.watch)
        assert runs[f"R, {among}"].objective == others[f"R, {among}"].objective
        assert runs[f"dropout, {among}"].noise.law.p == pytest.approx(0.2)


def on_digits(run: Run, **changes) -> Run:
    """A smoke run on the digits that come inside a package."""
    size = {"train": run.data.train, "test": run.data.test, "flat": run.data.flat}
    return replace(run, data=Data("mnist-5000", **size), **changes)


@pytest.fixture(scope="module")
def smoke() -> Table:
    runs = {label: on_digits(run) for label, run in eq14.figure.at("smoke").items()}
    return Table.of({label: execute(run, (0, 1), Silent()) for label, run in runs.items()})


@pytest.mark.parametrize("module", FIGURES, ids=lambda m: m.__name__.split(".")[-1])
def test_smoke_runs_give_pictures_and_no_verdict(module, smoke):
    picture = io.BytesIO()
    module.figure.plot(smoke).savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    for claim in module.figure.claims:
        holds, numbers = claim.check(smoke)
        if claim.id == "eq. 14 ours":  # algebra, trained or not
            assert holds
        else:
            assert holds is None
            assert "fewer" in numbers["why"]


def test_smoke_runs_of_multiplicative_noise_give_a_picture_and_no_verdict():
    figure = multiplicative_nets.figure
    runs = {label: on_digits(run) for label, run in figure.at("smoke").items()}
    t = Table.of({label: execute(run, (0, 1), Silent()) for label, run in runs.items()})
    figure.plot(t).savefig(io.BytesIO(), format="png")
    assert [claim.check(t)[0] for claim in figure.claims] == [None] * 24


def state(method: str = "none") -> State:
    """A moment by hand: 16 units, as drawn."""
    run = on_digits(eq14.figure.at("smoke")[f"{method}, {ALL}"])
    data, model = run.data.load(0), run.model.build(3).eval()
    return State(run=run, seeds=(0,), step=0, epoch=0, model=model, noise=None, data=data)


def test_the_watches_see_what_the_measures_say():
    at = state()
    x, y = at.examples("test")
    with torch.no_grad():
        z = at.model(x)
    seen = nets.Margins()(at)
    assert seen["γ/test/50"] == pytest.approx(
        float(gamma.inputs(at.model, x, y).value.median()), 0.1
    )
    assert seen["m/test/50"] == pytest.approx(float(gamma.outputs(z, y).quantile(0.5)), rel=1e-5)
    assert nets.Calibration()(at)["ece"] == pytest.approx(measured.error(z.softmax(1), y))
    noisy = nets.Sensitivity()(at)
    assert noisy["noisy accuracy/0"] == pytest.approx(float((z.argmax(1) == y).float().mean()))
    assert noisy["noisy loss/2"] != noisy["noisy loss/0"]
    found = nets.Capacity()(at)
    assert found["capacity/spectral"] < found["capacity/frobenius"]


def test_both_forms_are_the_sums_over_logits_that_the_paper_prints():
    """Eq. 9 and eq. 14 of the input's noise from dense Jacobians, and nothing is changed."""
    at = state()
    before = [p.detach().clone() for p in at.model.parameters()]
    seen = nets.Both(limit=4)(at)
    x, _ = at.examples("test", 4)
    right = printed = 0.0
    for a in x:
        J = torch.autograd.functional.jacobian(at.model, a[None])[0, :, 0]
        p = at.model(a[None])[0].softmax(0).detach()
        square, mean = J.square().sum(1), p @ J
        right += float(p @ square - mean.square().sum()) / 2 * nets.VARIANCE / len(x)
        printed += float(p * (1 - p) @ square) / 2 * nets.VARIANCE / len(x)
    assert seen["eq. 9/input"] == pytest.approx(right, rel=1e-4)
    assert seen["eq. 14/input"] == pytest.approx(printed, rel=1e-4)
    for p, q in zip(at.model.parameters(), before, strict=True):
        assert torch.equal(p, q)


def test_eq_14_as_a_loss_is_the_same_loss_with_another_R():
    z, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(4, (5,))
    diagonal, whole = nets.Diagonal(), losses.CrossEntropy()
    assert torch.equal(diagonal.per_sample(z, y), whole.per_sample(z, y))
    S = torch.stack([s for _, s in diagonal.columns(z, y)], -1)  # [B, C, K]
    p = z.softmax(-1)
    H = p.diag_embed() - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(S @ S.mT, H.diagonal(dim1=1, dim2=2).diag_embed())


def test_noise_stands_before_every_layer_and_not_on_the_logits():
    net = nets.SMALL.model.build(0)
    with dither.inject(net, NOISE, seed=0) as noise:
        assert list(noise.sites) == ["fc0:in", "fc1:in", "fc2:in", "fc3:in"]


# ---------------------------------------------------------------- tables made by hand


def told(steps=1000, seeds=range(5), **changes) -> Table:
    """`changes` {quantity with _ for punctuation: {label: value}} on a table where all is equal."""
    base = {"ece": 0.05, "chance": 0.01, "overconfidence": 0.05, "loss/test": 1.0}
    base |= {"accuracy/test": 0.8, "distance/test": 1.0, "γ of these/test": 1.0}
    base |= {f"{m}/test/{q}": 1.0 for m in "γm" for q in nets.PERCENTS}
    base |= {f"{f}/{m}": 1.0 for f in capacity.FORMS for m in capacity.MEASURES}
    base |= {f"noisy accuracy/{s:g}": 0.8 - 0.2 * s for s in LEVELS}
    base |= {"eq. 9": 1.0, EQ14: 1.0}
    base |= {f"shifted {form}/{s:g}": 1.0 for form in ("loss", "eq. 9") for s in SHIFTS}
    base |= {f"shifted {EQ14}/{s:g}": 1.0 + s**2 for s in SHIFTS}
    base |= {f"output/{i}/{c}": 0.0 for i in range(nets.ANSWERS) for c in range(10)}
    rows = {
        label: {
            seed: [(steps, q, changes.get(label, {}).get(q, v)) for q, v in base.items()]
            for seed in seeds
        }
        for label in (*LABELS, *LAWS)
    }
    return Table.of(rows)


MORE = {f"{m}, {a}": {"γ/test/50": 1.2} for m in ("GNI", "R") for a in (ALL, FEW)}
LESS = {"capacity/path": 0.9, "capacity/spectral": 0.9, "capacity/complexity": 0.9}
WHOLE = {**LESS, "capacity/frobenius": 0.9}
STEADY = {f"noisy accuracy/{s:g}": 0.7 - 0.1 * s for s in LEVELS}
LOW = {f"GNI, {ALL}": {"ece": 0.04}}


@pytest.mark.parametrize(
    ("module", "claim", "changes", "holds"),
    [
        (margins, "C13", MORE, True),
        (margins, "C13", {}, False),
        (margins, f"C13 (R, {FEW})", MORE, True),
        (margins, "C13 ours", {}, True),
        (margins, "C13 ours", {f"R, {ALL}": {"distance/test": 0.7}}, False),
        (capacity, "C15", {f"GNI, {ALL}": WHOLE}, True),
        (capacity, "C15", {f"GNI, {ALL}": LESS}, False),
        (capacity, "C15 (margin)", {f"GNI, {ALL}": {"normalised/path": np.nan}}, None),
        (calibration, "C14", LOW, True),
        (calibration, "C14", {f"R, {ALL}": {"ece": 0.04}}, False),
        (sensitivity, "sensitivity", {f"GNI, {ALL}": STEADY}, True),
        (sensitivity, "sensitivity", {f"GNI, {FEW}": STEADY}, False),
        (multiplicative_nets, "M13 dropout", {f"dropout, {ALL}": {"γ/test/50": 1.2}}, True),
        (multiplicative_nets, "M13 Gaussian", {f"dropout, {ALL}": {"γ/test/50": 1.2}}, False),
        (multiplicative_nets, f"M14 R, {FEW}", {f"R, {FEW}": {"ece": 0.04}}, True),
        (multiplicative_nets, "M14 R", {f"R, {FEW}": {"ece": 0.04}}, False),
        (multiplicative_nets, "M15 Gaussian", {f"Gaussian, {ALL}": WHOLE}, True),
        (multiplicative_nets, "M15 Gaussian", {f"Gaussian, {ALL}": LESS}, False),
        (multiplicative_nets, "M16 R", {f"R, {ALL}": STEADY}, True),
        (multiplicative_nets, "M16 R", {f"none, {ALL}": STEADY}, False),
        (eq14, "eq. 14", {}, True),
        (eq14, "eq. 14", {f"none, {ALL}": {EQ14: 1.06}}, False),
        (eq14, "eq. 14 ours", {}, True),
        (eq14, "eq. 14 ours", {f"R, {FEW}": {"shifted eq. 9/1": 1.002}}, False),
        (eq14, "eq. 14 ours", {f"R, {FEW}": {f"shifted {EQ14}/1": 1.05}}, False),
        (eq14, "eq. 14 training", {f"none, {ALL}": {"loss/test": 2.0}}, True),
        (
            eq14,
            "eq. 14 training",
            {f"R, {ALL}": {"loss/test": 2.0}, f"none, {ALL}": {"loss/test": 1.1}},
            False,
        ),
        (eq14, "eq. 14 noise", {f"{EQ14}, {ALL}": {"output/3/1": 2.0}}, True),
        (
            eq14,
            "eq. 14 noise",
            {f"R, {ALL}": {"output/3/1": 2.0}, f"{EQ14}, {ALL}": {"output/3/1": 1.0}},
            False,
        ),
    ],
)
def test_claims_can_hold_and_fail(module, claim, changes, holds):
    assert verdict(module, claim, told(**changes))[0] is holds


def test_networks_that_have_not_learnt_are_not_compared():
    chance = {f"GNI, {ALL}": {"γ/test/50": 1.2, "accuracy/test": 0.1}}
    assert verdict(margins, "C13", told(**MORE))[0] is True
    holds, numbers = verdict(margins, "C13", told(**chance))
    assert holds is None
    assert "GNI, all images (test accuracy 0.1)" in numbers["why"]


def test_a_calibration_as_good_as_chance_cannot_improve():
    holds, numbers = verdict(calibration, "C14", told(**LOW, **{f"none, {ALL}": {"chance": 0.048}}))
    assert holds is None
    assert "what chance gives" in numbers["why"]


def test_the_distance_between_answers_is_total_variation():
    sure = {f"output/{i}/0": 100.0 for i in range(nets.ANSWERS)}
    found = eq14.distance(told(**{f"R, {ALL}": sure}), f"R, {ALL}", f"none, {ALL}")
    assert found == pytest.approx([0.9] * 5)  # from one class to ten alike


def test_other_variances_are_judged_where_they_are_trained():
    runs = margins.figure.at("decisive")
    label = f"{nets.named('GNI', 0.25)}, {FEW}"
    assert runs[label].noise.sigma ** 2 == pytest.approx(0.25)
    assert (
        f"this scale does not train {label}"
        in verdict(margins, f"C13 (σ² = 0.25, {FEW})", told())[1]["why"]
    )


@pytest.mark.parametrize("name", ["svhn", "cifar-10"])
def test_colour_images_are_asked_for_and_not_replaced(name):
    module = importlib.import_module(
        f"dither.papers.camuto2020.calibration_{name.replace('-', '')}"
    )
    assert module.figure.needs == (name,)
    for scale in ("smoke", "quick", "paper"):
        runs = module.figure.at(scale)
        assert {run.data.name for run in runs.values()} == {name}
        assert list(runs) == [f"{m}, {ALL}" for m in METHODS]
    assert verdict(module, "C14", told(**LOW))[0]


def test_every_watch_looks_at_a_convolutional_net_trained_on_exact_R():
    run = nets.nets(nets.SMALL)[f"R, {ALL}"]
    few = replace(run.data, train=32, test=60, flat=False)
    conv = camuto_conv((1, 28, 28))
    conv = replace(conv, convs=tuple(replace(c, filters=4) for c in conv.convs))
    changes = {"model": conv, "objective": "explicit", "steps": 2}
    rows = execute(on_digits(replace(run, data=few), **changes), (0,), Silent())[0]
    seen = {q: value for _, q, value in rows}
    assert {"ece", "γ/test/50", "capacity/path", "noisy loss/1", "eq. 9", EQ14} <= set(seen)
    assert np.isfinite([seen["γ/test/50"], seen["capacity/spectral"], seen["eq. 9"]]).all()
    assert seen["capacity/spectral"] > 0
