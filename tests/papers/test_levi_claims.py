"""Levi et al. 2022: the claims can fail, and pictures are drawn of what there is."""

import io

import numpy as np
import polars as pl
import pytest
import torch
from levi import EVEN, scores, verdict

import dither
from dither.lab import catalogue
from dither.lab.table import Table
from dither.papers.beyond import nodes
from dither.papers.ends import end
from dither.papers.levi2022 import (
    combined,
    fig2,
    fig6,
    fig7,
    fig8,
    fig9,
    methods,
    phases,
    table1,
    table2,
)
from dither.papers.levi2022.methods import BASELINES, METHODS

LARGE = {
    "L1": {"FC in catapult": 0.7},
    "L2": {"CNN in catapult": 0.7},
    "L1 scan": {"FC in catapult, scan": 0.7},
    "L1 clipped": {"FC in catapult, clipped": 0.7},
    "L3": {"FC in decay": 0.7},
    "L3'": {"FC full decay": 0.7},
    "L3 CNN": {"CNN in decay": 0.7},
    "L3' CNN": {"CNN full decay": 0.7},
    "L4": {"FC CDT .4": 0.5},
    "L4 CNN": {"CNN CDT .4": 0.5},
}


@pytest.mark.parametrize("claim", LARGE)
def test_figure_2s_claims(claim):
    ((label, value),) = LARGE[claim].items()
    assert verdict(fig2.figure, claim, scores(fig2.figure, **{label: value}))[0] is True
    worse = {label: 1.2 - value}
    assert verdict(fig2.figure, claim, scores(fig2.figure, **worse))[0] is False
    few = scores(fig2.figure, seeds=4, **{label: value})
    assert verdict(fig2.figure, claim, few)[0] is None
    if claim.startswith(("L1", "L2")):  # a lead of half a point is none
        half = scores(fig2.figure, spread=0.0002, **{label: EVEN + 0.005})
        assert verdict(fig2.figure, claim, half)[0] is False


def test_a_diverged_run_counts_as_chance_and_is_told():
    table = scores(fig2.figure, **{"FC in catapult": None})
    start = {"FC in catapult": {s: [(0.0, "accuracy/test", 0.13)] for s in table.seeds}}
    early = Table(table.frame.vstack(Table.of(start).frame))  # what was seen before it diverged
    assert (end(early, "FC in catapult") == 0.1).all()
    holds, seen = verdict(fig2.figure, "L1", table)
    assert holds is None
    assert seen["why"].startswith("not learnt in every run: FC in catapult (")
    assert (seen["FC in catapult"] == 0.1).all()
    assert seen["FC in catapult: share diverged"] == 1.0
    picture = io.BytesIO()
    fig2.figure.plot(table).savefig(picture, format="svg")
    assert "in catapult: diverged at step 9" in picture.getvalue().decode()


def test_every_net_that_is_compared_must_have_learnt():
    """One net at chance in one seed, be it a baseline: nothing that compares it is judged."""
    frame = scores(fig2.figure, **{"FC in catapult, scan": 0.7}).frame
    one = (pl.col("run") == "FC dropout") & (pl.col("seed") == 2)
    one &= pl.col("quantity") == "accuracy/train"
    dead = Table(frame.with_columns(value=pl.when(one).then(0.1).otherwise(pl.col("value"))))
    assert "FC dropout" in verdict(fig2.figure, "L1 scan", dead)[1]["why"]
    assert verdict(fig2.figure, "L3", dead)[0] is None
    assert verdict(fig2.figure, "L3 CNN", dead)[0] is not None


def test_nothing_is_judged_where_nothing_is_learnt():
    table = scores(fig2.figure)
    untrained = Table(table.frame.with_columns(value=table.frame["value"] * 0.1))
    for claim in fig2.figure.claims:
        holds, seen = claim.check(untrained)
        assert holds is None
        assert "learnt" in seen["why"]


@pytest.mark.parametrize(
    ("figure", "claim", "changed", "holds"),
    [
        (table2, "L11", {"FC in decay": 0.591, "FC full decay": 0.7}, True),
        (table2, "L11", {"FC in decay": 0.58, "FC full decay": 0.7}, False),
        (table2, "L12", {"FC CDT .2": 0.5, "FC CDT .4": 0.5}, True),
        (table2, "L12", {"FC CDT .4": 0.5}, False),
        (table1, "L9", {"CNN in catapult": 0.7, "CNN full catapult": 0.65}, True),
        (table1, "L9", {"CNN in catapult": 0.7, "CNN dropout": 0.65}, False),
        (table1, "L10", {"FC dropout": 0.7}, True),
        (table1, "L10", {"FC in decay": 0.7}, False),
        (table1, "L10 source FC", {}, True),
        (table1, "L10 source FC", {"FC L2": 0.63}, False),
        (fig6, "L13", {"FC dropout": 0.7}, True),
        (fig6, "L13", {"FC none": 0.7}, False),
        (fig6, "L14 CNN", {"CNN full decay": 0.7}, True),
        (fig6, "L14 CNN", {"CNN dropout": 0.7}, False),
        (fig6, "L14 margin", {"FC in catapult, scan": 0.7}, True),
        (fig6, "L14 margin", {"FC in catapult": 0.7}, False),
        (fig6, "L15", {"FC in decay": 0.7, "FC full decay": 0.7}, True),
        (fig6, "L15", {"FC L2": 0.7}, False),
        (fig6, "L13 ours", {}, True),
        (fig7, "L16", {"FC in decay, uniform": 0.62}, True),
        (fig7, "L16", {"FC in decay, uniform": 0.64}, False),
        (fig7, "L16", {"FC in decay, two-Gaussian": 0.54}, False),
        (fig7, "L16 catapult", {"FC in catapult, two-Gaussian": 0.4}, True),
        (fig7, "L16 catapult", {"FC in catapult, uniform": 0.65}, False),
        (fig7, "L16", {"FC in decay, uniform of √3 σ": 0.7}, True),  # not in the paper
        (fig7, "L16 variance FC", {"FC in decay, uniform": 0.7}, True),
        (fig7, "L16 variance FC", {"FC full decay, uniform of √3 σ": 0.64}, False),
        (fig7, "L16 variance CNN", {"CNN in decay, uniform of √3 σ": 0.56}, False),
        (fig8, "L17 CNN Adam decay", {"CNN none, Adam": 0.5}, True),
        (fig8, "L17 CNN Adam decay", {"CNN none, Adam": 0.7}, False),
        (nodes, "N1", {"FC constant": 0.62}, True),
        (nodes, "N1", {"FC constant": 0.64}, False),
    ],
)
def test_the_other_claims(figure, claim, changed, holds):
    assert verdict(figure.figure, claim, scores(figure.figure, **changed))[0] is holds


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"FC in decay": 0.7, "FC in decay + dropout": 0.7}, True),
        ({"FC dropout": 0.7, "FC in decay": 0.65}, False),  # the better of the two counts
        ({"FC dropout": None}, None),
    ],
)
def test_nodes_with_dropout(changed, holds):
    t = scores(combined.figure, **changed)
    assert verdict(combined.figure, "L27 dropout", t)[0] is holds
    assert verdict(combined.figure, "L27 L2 CNN", t)[0] is True
    combined.plot(t).savefig(io.BytesIO(), format="png")


def test_nodes_with_dropout_are_both_on():
    runs = combined.figure.at("smoke")
    for net, sites in (("FC", 4), ("CNN", 4)):
        mixed, node = runs[f"{net} in decay + dropout"], runs[f"{net} in decay"]
        x = torch.zeros(2, 784) if net == "FC" else torch.zeros(2, 1, 28, 28)
        noise = dither.inject(mixed.model.build(0), dict(mixed.noise), example=x)
        assert (len(noise.sites), len(noise.nodes)) == (sites, 1)
        both = runs[f"{net} in decay + L2"]
        assert (both.noise, both.optimiser) == (node.noise, runs[f"{net} L2"].optimiser)


def test_what_a_scale_leaves_out_is_not_judged():
    holds, seen = verdict(fig8.figure, "L17 CNN Adam catapult", scores(fig8.figure, "quick"))
    assert holds is None
    assert "not trained at this scale" in seen["why"]


def test_each_claim_asks_its_own_methods_to_have_learnt():
    """L15 is of the decay nodes, L2 and none alone; L13 of all."""
    frame = scores(fig6.figure, **{"FC in decay": 0.7, "FC full decay": 0.7}).frame
    lost = (pl.col("run") == "FC dropout") & (pl.col("quantity") == "accuracy/train")
    t = Table(frame.with_columns(value=pl.when(lost).then(0.2).otherwise(pl.col("value"))))
    assert verdict(fig6.figure, "L15", t)[0] is True
    assert verdict(fig6.figure, "L13", t)[0] is None


def test_the_in_node_of_table_1_lies_in_its_phase():
    runs = table1.figure.at("decisive")
    noise = dict(runs["FC in catapult, scan"].noise)
    assert [n.sigma for n in noise.values()] == [methods.SCAN["FC"]["in catapult"]]
    off = {"FC dropout": 0.7, "FC in catapult": None}
    assert verdict(table1.figure, "L10", scores(table1.figure, **off))[0] is True
    off = {"FC dropout": 0.7, "FC in catapult, scan": None}
    assert verdict(table1.figure, "L10", scores(table1.figure, **off))[0] is None


@pytest.mark.parametrize(("module", "panels"), [(fig6, 3), (fig7, 3), (table1, 1), (table2, 1)])
def test_a_picture_has_the_nets_that_are_there(module, panels):
    def drawn(keep):
        frame = scores(module.figure).frame
        return module.figure.plot(Table(frame.filter(keep(pl.col("run")))))

    assert len(drawn(lambda run: run.str.contains("FC|CNN")).axes) == 2 * panels
    picture = drawn(lambda run: run.str.starts_with("FC"))
    assert len(picture.axes) == panels
    assert all("CNN" not in ax.get_title() for ax in picture.axes)
    with pytest.raises(dither.DitherError, match="no picture"):
        drawn(lambda run: run.str.contains("nothing of it"))


@pytest.mark.parametrize("module", [table1, table2])
def test_a_table_has_the_methods_that_are_there(module):
    """Each has its row of the paper's numbers; of ours, what was trained."""
    frame = scores(module.figure).frame
    t = Table(frame.filter(pl.col("run").is_in(["FC none", "CNN none", "CNN L2"])))
    rows = len(set(module.figure.at("decisive")) & {f"FC {m}" for m in METHODS})
    filled = [
        sum(len(bars.lines) > 0 for bars in ax.containers) for ax in module.figure.plot(t).axes
    ]
    assert filled == [rows + 1, rows + 2]


@pytest.mark.parametrize("n", [60, 200, 500, 999])
def test_few_attacked_images_are_counted_and_not_judged(n):
    """Accuracies are whole numbers of images: how many there are can be read off them."""
    rng = np.random.default_rng(n)
    frame = scores(fig6.figure, **{"FC dropout": 0.7}).frame
    whole = (rng.random(len(frame)) * n).round() / n
    t = Table(frame.with_columns(value=np.where(frame["quantity"] == "accuracy/train", 1, whole)))
    assert fig6.images(t, ["FC none", "FC dropout"]) == n
    holds, seen = verdict(fig6.figure, "L13", t)
    assert holds is None
    assert seen["why"].startswith(f"{n} test images were attacked")


def test_the_best_of_several_is_chosen_on_the_other_seeds():
    """Else the best of many equal ones would be above them by chance."""
    values = {"a": np.array([0.0, 1.0, 0.0]), "b": np.array([0.0, 0.0, 2.0])}
    assert fig6.best_of(values).tolist() == [0.0, 0.0, 0.0]
    assert fig6.best_of({"a": np.array([3.0, 1.0])}).tolist() == [3.0, 1.0]


def test_table_1_judges_the_papers_pair_alone():
    t = scores(table1.figure, **{"CNN in catapult": 0.7, "CNN full catapult": 0.65})
    ours = Table(t.frame.filter(~pl.col("quantity").str.starts_with("accuracy/usps")))
    every = Table(
        t.frame.with_columns(pl.col("quantity").replace("accuracy/usps test", "accuracy/usps"))
    )
    assert verdict(table1.figure, "L9", t)[0] is True
    assert "not MNIST → USPS" in verdict(table1.figure, "L9", ours)[1]["why"]
    assert "9 298" in verdict(table1.figure, "L9", every)[1]["why"]
    assert verdict(table1.figure, "L10 source CNN", ours)[0] is not None


def test_masking_fails_its_claim():
    frame = scores(fig6.figure).frame
    loss = pl.col("quantity").str.starts_with("fgsm on the loss") & (pl.col("run") == "FC dropout")
    masked = Table(frame.with_columns(value=pl.when(loss).then(0.9).otherwise(pl.col("value"))))
    assert verdict(fig6.figure, "L13 ours", masked)[0] is False


@pytest.mark.parametrize(
    "module", [fig2, fig6, fig7, fig8, table1, table2], ids=lambda m: m.__name__
)
def test_pictures_are_drawn_also_of_what_diverged(module):
    lost = next(label for label in module.figure.at("smoke") if "in catapult" in label)
    module.figure.plot(scores(module.figure, **{lost: None})).savefig(io.BytesIO(), format="png")


def test_all_are_found_by_name():
    modules = (fig2, fig6, fig7, fig8, fig9, table1, table2, phases, nodes)
    assert {m.figure.name for m in modules} <= set(catalogue.names())
    assert set(BASELINES) < set(METHODS)
