"""The decisive scale of the papers' figures: what is trained there, and that claims are judged."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dither.errors import DitherError
from dither.lab import catalogue
from dither.lab.data import needs
from dither.lab.figure import Run
from dither.lab.reproduce import Session
from dither.papers.camuto2020 import calibration_cifar10, capacity, epochs, followed, margins
from dither.papers.levi2022 import fig2, fig7, fig8, fig9, mechanism, table1, table2
from dither.papers.levi2022.looks import Attacks, LocalHessian
from dither.papers.orvieto2022 import fig7 as mlp1
from dither.papers.orvieto2022 import fig8 as mlp2
from dither.papers.orvieto2022 import fig9 as mlp3

FIGURES = [name for name in catalogue.names() if "decisive" in catalogue.find(name).scales]


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: "here")


@pytest.mark.parametrize("name", FIGURES)
def test_it_has_runs_a_cost_and_enough_seeds(name, here):
    figure = catalogue.find(name)
    runs = figure.at("decisive")
    assert len({run.key for run in runs.values()}) == len(runs) > 0
    assert figure.cost["decisive"] > figure.cost["quick"]
    assert figure.seeds_at("decisive") >= 5
    if any(isinstance(run, Run) and run.precision == "bf16" for run in runs.values()):
        assert any("bf16" in text for text in figure.departures_at("decisive"))


def keys(figure):
    return {run.key for run in figure.figure.at("decisive").values()}


def test_what_two_figures_ask_for_is_trained_once(here):
    assert keys(margins) == keys(capacity) == keys(calibration_cifar10)
    assert keys(mechanism) < keys(fig2) < keys(table2)
    assert len(keys(fig7) & keys(fig2)) == 8  # none, and the Gaussian of every method


def test_the_longest_runs_are_the_papers_own(here):
    """So that results at paper scale serve here too."""
    assert keys(mlp1) < {run.key for run in mlp1.figure.at("paper").values()}
    assert mlp1.figure.seeds_at("decisive") == 10


def test_mlp3_is_the_papers_but_for_precision_and_looks(here):
    paper = mlp3.figure.at("paper")
    for label, run in mlp3.figure.at("decisive").items():
        assert run.precision == "bf16"
        papers = paper[label.replace(", rate .02", "")]
        rate = replace(run.optimiser, lr=0.02 if ", rate .02" in label else 0.005)
        assert run.optimiser == rate
        same = replace(run, precision="float32", watch=papers.watch, optimiser=papers.optimiser)
        assert same.key == papers.key


def test_every_width_has_the_sigma_of_the_papers_net_and_four_times_its_rate(here):
    runs = mlp2.figure.at("decisive").values()
    assert {run.model.widths[1] for run in runs} == {250, 500, 1000, 2000}
    assert {run.optimiser.lr for run in runs} == {0.02}
    assert {run.noise.sigma for run in runs if run.noise} == {0.1}


def test_without_the_papers_digits_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(needs, "found", lambda name: None)
    decisive = {run.data.name for run in table1.figure.at("decisive").values()}
    assert (decisive, {r.data.name for r in table1.figure.at("quick").values()}) == (
        {"mnist"},
        {"mnist-5000"},
    )


@pytest.mark.parametrize("scale", ["smoke", "quick", "decisive", "paper"])
def test_other_optimisers_are_looked_at_under_corruption_alone(scale):
    for run in fig8.figure.at(scale).values():
        assert not [watch for watch in run.watch if isinstance(watch, Attacks | LocalHessian)]


def test_the_vgg_is_half(here):
    (net,) = {run.model for run in fig9.figure.at("decisive").values()}
    assert net.dense == (250,)
    assert [2 * c.filters for c in net.convs] == [c.filters for c in fig9.model().convs]


def test_boston_is_trained_as_long_as_the_images(here):
    runs = followed.runs(**followed.AT_SCALE["decisive"])
    assert not [label for label in runs if followed.STANDARDISED in label or "few" in label]
    for label, run in runs.items():
        name = "fashion-mnist" if run.data.name == "boston" else run.data.name
        time = epochs.RATE * epochs.steps(name)
        assert run.steps * run.optimiser.lr == pytest.approx(time, rel=1e-2), label
    house = runs["Boston 2 × 32 R"]
    assert (house.loss, house.batch, house.model.widths) == ("half_square", None, (13, 32, 32, 1))


def test_a_scale_whose_only_set_is_absent_is_not_run(monkeypatch):
    """Margins are of CIFAR-10 at the decisive scale, and of Fashion-MNIST at the others."""

    def bring(name):
        if name == "cifar-10":
            raise DitherError("offline")

    monkeypatch.setattr(needs, "bring", bring)
    session = SimpleNamespace(absent={}, screen=SimpleNamespace(say=lambda _: None))
    for scale, why in (("decisive", "data absent: offline"), ("quick", "")):
        runs = margins.figure.runs(**getattr(margins.figure, scale))
        study = SimpleNamespace(figure=margins.figure, runs=runs)
        assert Session._absent(session, study) == why
