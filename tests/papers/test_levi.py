"""Levi et al. 2022, Fig. 2, 6–9 and the tables: settings, sites, looks."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dither
from dither.lab.figure import Silent
from dither.lab.nets.specs import levi_cnn, levi_fc
from dither.lab.table import Table
from dither.lab.training.loop import Training, train
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import State
from dither.papers.beyond import nodes
from dither.papers.ends import CHANCE, end
from dither.papers.levi2022 import (
    fig2,
    fig6,
    fig7,
    fig8,
    methods,
    phases,
    table1,
    table2,
)
from dither.papers.levi2022.looks import LEVELS, STRENGTHS, Attacks, Corrupted, attacked, corrupted
from dither.papers.levi2022.methods import AT_SCALE, METHODS, NINR
from dither.papers.levi2022.printed import TABLE1, TABLE2, TABLE3

PAPER = AT_SCALE["paper"]
SMOKE = AT_SCALE["smoke"]


# ----------------------------------------------------------------------------------- the settings


def test_outputs_that_are_not_finite_count_as_chance():
    """A loss can be finite where an output is not: −∞ for a class that is not the image's."""

    class Lost(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1), -torch.inf * torch.ones(len(x))], 1)

    x = torch.randn(4, 3)
    data = SimpleNamespace(x_test=x, y_test=torch.zeros(4, dtype=torch.long))
    run = SimpleNamespace(loss="cross_entropy")
    state = State(run, (0,), 1, 1, Lost(), None, data)
    assert torch.nn.functional.cross_entropy(Lost()(x), data.y_test).isfinite()
    assert Corrupted()(state) == {} == Attacks()(state)
    rows = {0: [(1.0, corrupted(0.4), 0.7), (1.0, "vanishing", 0.2)], 1: [(1.0, "loss/train", 2.0)]}
    table = Table.of({"run": rows})
    assert end(table, "run", corrupted(0.4), CHANCE).tolist() == [0.7, CHANCE]
    assert end(table, "run", "vanishing", 1.0).tolist() == [0.2, 1.0]


def test_paper_scale_is_the_papers():
    for net, setting in (("FC", PAPER["fc"]), ("CNN", PAPER["cnn"])):
        run = methods.run(setting, "none")
        assert (run.optimiser, run.batch, run.epochs, run.stop) == (SGD(0.05), 128, 500, 0.98)
        assert (run.data.train, run.data.test, run.data.standardise) == (None, None, None)
        assert run.loss == "cross_entropy"
        assert methods.run(setting, "L2").optimiser == SGD(0.05, weight_decay=5e-4)
        assert methods.run(setting, "CDT .4").data.corrupt == 0.4
        assert {m: sorted({n.sigma for _, n in methods.run(setting, m).noise}) for m in NINR} == {
            m: [s] for m, s in methods.SIGMA[net].items()
        }
    assert {
        "FC": dict(zip(NINR, (51.8, 231.6, 16.4, 51.8), strict=True)),
        "CNN": dict(zip(NINR, (2.8, 87.5, 0.9, 62.0), strict=True)),
    } == methods.SIGMA


def test_the_nets_are_the_papers():
    assert PAPER["fc"].model("none") == levi_fc("none")
    assert PAPER["fc"].model("in") == levi_fc("in")
    assert PAPER["fc"].model("full") == levi_fc("full")
    assert PAPER["cnn"].model("full") == levi_cnn()


@pytest.mark.parametrize(
    ("net", "method", "sites"),
    [
        ("fc", "in decay", ["fc0:out"]),
        ("fc", "full decay", ["fc0:out", "fc1:out", "fc2:out", "fc3:out"]),
        ("fc", "dropout", ["act0:out", "act1:out", "act2:out"]),
        ("cnn", "in decay", ["conv0:in"]),
        ("cnn", "full decay", ["conv0:in", "conv1:in", "fc0:out", "fc1:out"]),
        ("cnn", "dropout", ["pool0:out", "pool1:out", "act2:out"]),
    ],
)
def test_where_noise_sits(net, method, sites):
    run = methods.run(SMOKE[net], method)
    model = run.model.build(0)
    x = torch.zeros(2, 784) if net == "fc" else torch.zeros(2, 1, 28, 28)
    noise = dither.inject(model, dict(run.noise), example=x)
    assert sorted(noise.sites) == sorted(sites)


def test_an_images_node_starts_at_one_over_its_pixels_and_itself():
    nodes = PAPER["cnn"].nodes("full", 1.0)
    model = PAPER["cnn"].model("full").build(0)
    noise = dither.inject(model, nodes, example=torch.zeros(2, 1, 28, 28), seed=0)
    w = noise.nodes["conv0:in"].detach()
    assert w.shape == (1, 1, 28, 28)
    assert nodes["conv0"].std == pytest.approx(785**-0.5)
    assert float(w.std()) == pytest.approx(785**-0.5, rel=0.1)
    inner = noise.nodes["conv1:in"]
    assert nodes["conv1"].std == pytest.approx((inner.numel() + 1) ** -0.5)


def test_figures_share_their_runs():
    for scale in ("smoke", "quick", "paper"):
        two = {run.key for run in fig2.figure.at(scale).values()}
        clean = {run.key for run in table2.figure.at(scale).values()}
        attacks = {run.key for run in fig6.figure.at(scale).values()}
        assert attacks < two < clean
        seven = fig7.figure.at(scale)
        assert seven["FC in decay, Gaussian"].key in two
        assert seven["FC in catapult, Gaussian"].key in two  # the scan's


@pytest.mark.parametrize("scale", ["quick", "decisive", "paper"])
def test_the_wider_uniform_law_has_the_variance_of_the_gaussian(scale):
    runs = fig7.figure.at(scale)
    pairs = [(run, runs[b.replace(fig7.WIDE, "Gaussian")]) for b, run in runs.items()
             if b.endswith(fig7.WIDE)]  # fmt: skip
    assert len(pairs) == {"quick": 6, "decisive": 6, "paper": 8}[scale]
    for run, twin in pairs:
        spread, theirs = ({name: node.sigma**2 * node.law.variance for name, node in r.noise}
                          for r in (run, twin))  # fmt: skip
        assert spread == pytest.approx(theirs)


def test_every_run_is_another_one():
    for figure in (fig2, table1, table2, fig6, fig7, fig8, phases, nodes):
        runs = figure.figure.at("paper")
        assert len({run.key for run in runs.values()}) == len(runs)


def test_table_3_is_figure_2_rescaled_to_the_learning_rate():
    rates = {"RMSprop": {"FC": 1e-4, "CNN": 1e-3}, "Adam": {"FC": 0.01, "CNN": 0.01}}
    for name, nets in TABLE3.items():
        for net, sigmas in nets.items():
            assert fig8.OPTIMISERS[name][net].lr == rates[name][net]
            for method, sigma in sigmas.items():
                scaled = methods.SIGMA[net][method] * (0.05 / rates[name][net]) ** 0.5
                assert sigma == pytest.approx(scaled, rel=0.05), (name, net, method)


def test_the_printed_tables():
    for printed, n in ((TABLE1, 7), (TABLE2, 9)):
        assert all(list(row) == list(METHODS[:n]) for row in printed.values())
    assert TABLE1["CNN"]["full catapult"] == (89.7, 2.0)
    assert TABLE1["FC"]["dropout"] == (87.5, 1.2)
    assert TABLE2["FC"]["CDT .4"] == (85.5, 3.8)
    assert TABLE2["CNN"]["L2"] == (92.2, 0.7)


# ------------------------------------------------------------------------------------- the looks


def test_the_looks_are_the_measures():
    run = replace(
        methods.run(SMOKE["fc"], "none"),
        watch=(Corrupted(levels=(0.0, 0.5)), Attacks(limit=20, strengths=(0.0, 0.1), steps=2)),
    )
    rows = dict((q, v) for _, q, v in train(run, [0], Silent())[0] if q != "stopped")
    training = Training(run, (0,), False, "cpu")  # untrained, but of the same shapes
    assert set(rows) == {"corrupted/0", "corrupted/0.5", "vanishing"} | {
        f"{m} on the {t}/{e}" for m in ("fgsm", "pgd") for t in ("loss", "margin")
        for e in ("0", "0.1")
    }  # fmt: skip
    zero = [v for q, v in rows.items() if re.search(r"on the .*/0$", q)]
    assert len(set(zero)) == 1
    assert all(rows[f"{m} on the margin/0.1"] <= zero[0] for m in ("fgsm", "pgd"))
    assert training.data.x_test.min() < -0.5  # pixel 0; its bounds are the pixels'


def test_a_smoke_run_of_each_method_has_all_its_figures_ask_for():
    runs = fig2.figure.at("smoke")
    for label in ("FC in catapult, scan", "CNN full decay"):
        (rows,) = train(runs[label], [0], Silent()).values()
        names = {q for _, q, _ in rows}
        assert {corrupted(s) for s in LEVELS} | {"accuracy/test", "vanishing"} <= names
        assert attacked("pgd", "margin", STRENGTHS[-1]) in names
