"""Beyond: where R should be spent, asked of seeds that did not make the question."""

import numpy as np
import polars as pl
import pytest
from beyond import drawn, said, verdict

from dither.lab.page.judge import judge
from dither.lab.table import Table
from dither.papers.beyond import matched, place

FALLS = [2.0, 1.0, 0.5, 0.25]


def table(gap, seeds=15, R=1.0, falls=FALLS):
    """gap(seed): what the input gains on the weights in each quantity; the weights gain .1."""
    rng = np.random.default_rng(0)
    rows = {}
    for label in place.labels("FC", (0.03,)):
        rows[label] = {}
        for seed in range(seeds):
            gain = 0.1 * ("weights" in label) + (0.1 + gap(seed)) * ("input" in label)
            gain += rng.normal(scale=1e-4)
            values = {q: 1 + sign * gain for q, (_, sign) in matched.GAINS.items()}
            values["R"] = R * 0.03 * matched.GUESS
            rows[label][seed] = [
                (float(k), q, v) for k, loss in enumerate(falls)
                for q, v in {"loss/train": loss, **values}.items()
            ]  # fmt: skip
    return Table.of(rows)


@pytest.mark.parametrize("quantity", place.ASKED)
def test_the_seeds_that_made_the_question_do_not_answer_it(quantity):
    claim = f"P FC {quantity}"
    for gap, holds in ((0.3, True), (0.0, False), (-0.3, False)):
        other = table(lambda seed, gap=gap: gap if seed in place.FRESH else -gap)
        assert verdict(place.figure, claim, other) is holds
        numbers = said(place.figure, claim, other)[1]
        made = numbers["input − weights, the seeds that made the question"]
        assert made == pytest.approx([-gap] * len(place.SEEN), abs=2e-3)
        assert len(numbers["input − none"]) == 10
    drawn(place.figure, other)


def test_less_than_the_least_difference_is_none():
    for quantity, by in place.ASKED.items():
        for share, holds in ((0.9, False), (1.1, True)):
            t = table(lambda seed, gap=share * by: gap)
            assert verdict(place.figure, f"P FC {quantity}", t) is holds


def lost(t):
    """Noise on the weights diverges in one new seed after its last look."""
    rows = {matched.named("FC", "weights", 0.03): {7: [(9.0, "diverged", 1.0)]}}
    return Table(t.frame.vstack(Table.of(rows).frame))


def slow(t):
    """Noise on the input keeps the loss of one new seed above that of the others' first look."""
    one = pl.col("run").str.contains("input") & (pl.col("seed") == 7)
    late = one & (pl.col("quantity") == "loss/train") & (pl.col("step") > 0)
    frame = t.frame.with_columns(value=pl.when(late).then(0.99).otherwise(pl.col("value")))
    first = (pl.col("quantity") == "loss/train") & (pl.col("step") == 1) & ~one
    return Table(frame.with_columns(value=pl.when(first).then(0.8).otherwise(pl.col("value"))))


def test_the_seeds_that_made_the_question_are_no_part_of_what_is_asked_for():
    """That R was not held in them, or that they have not learnt, changes nothing."""
    old = pl.col("seed").is_in(place.SEEN)
    lost = old & pl.col("quantity").is_in(["R", "loss/train"])
    t = table(lambda seed: 0.3)
    spoilt = Table(t.frame.with_columns(value=pl.when(lost).then(9.0).otherwise(pl.col("value"))))
    assert verdict(place.figure, "P FC attacked", spoilt) is True


def test_it_is_judged_only_where_R_was_held_and_nets_have_learnt():
    good = lambda seed: 0.3  # noqa: E731
    for t, why in (
        (table(good, R=1.6), "R over what was asked, input: 1.60, weights: 1.60"),
        (table(good, falls=[2.3, 2.2, 2.1, 1.9]), "has not learnt"),
        (table(good, falls=[2.0, 0.5, 0.7, 0.6]), None),
        (slow(table(good)), "before its first look"),
        (lost(table(good)), "diverged: FC, weights, r = 0.03"),
    ):
        holds, numbers = said(place.figure, "P FC attacked", t)
        assert holds is (None if why else True)
        assert (why or "") in numbers.get("why", "")
    assert "cifar-10 is absent" in said(place.figure, "P CNN attacked", table(good))[1]["why"]


@pytest.mark.parametrize(("seeds", "lacks"), [(3, "5–14"), (5, "5–14"), (14, "14")])
def test_all_ten_fresh_seeds_are_asked(seeds, lacks):
    (claim,) = (claim for claim in place.figure.claims if claim.id == "P FC attacked")
    entry, _ = judge(claim, table(lambda seed: 0.3, seeds=seeds), "quick")
    asked = f"seeds 5–14 are asked; 'FC, input, r = 0.03' lacks {lacks}: it has no results"
    assert (entry["holds"], entry["numbers"]["why"]) == (None, f"could not be judged: {asked}")


def test_its_runs_are_those_of_the_figure_that_made_the_question(monkeypatch):
    monkeypatch.setattr("dither.lab.data.needs.found", lambda name: "here")
    ours, theirs = (f.at("decisive") for f in (place.figure, matched.figure))
    assert len(ours) == 6
    assert {k: run.key for k, run in ours.items()}.items() <= {
        k: run.key for k, run in theirs.items()
    }.items()
