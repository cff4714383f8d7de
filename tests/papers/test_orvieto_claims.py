"""Orvieto et al. 2022, Figs. 3-12: each claim holds and fails on tables made by hand."""

import numpy as np
import polars as pl
import pytest

from dither.lab.data import needs
from dither.lab.table import Table
from dither.papers.ends import end as final
from dither.papers.orvieto2022 import cnns, fig3, fig4, fig6, fig7, fig8, fig9, mlps, schemes
from dither.papers.orvieto2022.schemes import FULL, GD, LAYER

SEEDS = (0, 1, 2, 3, 4)


def table(values, spread=0.001):
    """{label: {quantity: values over looks}} → a table of five seeds that differ by `spread`."""
    return Table.of(
        {
            label: {
                s: [
                    (k, q, v + spread * ((3 * s + i) % 5))
                    for q, vs in of.items()
                    for k, v in enumerate(vs)
                ]
                for s in SEEDS
            }
            for i, (label, of) in enumerate(values.items())
        }
    )


def course(accuracy, trace, loss=(2.0, 0.5, 0.1), test=(2.0, 1.0, 1.2)):
    """Three looks of a run."""
    return {
        "accuracy/test": (0.1, 0.5, accuracy),
        "trace": (1.0, trace, trace),
        "trace sem": (0, 0, 0),
        "Gauss–Newton": (1.0, trace, trace),
        "loss/train": loss,
        "loss/test": test,
    }


def verdict(figure, claim, t):
    return next(c for c in figure.claims if c.id == claim).check(t)


def mlp(name, units=None, **courses):
    of = mlps.named(name, "cosine", units)
    keys = {"gd": GD, "full": FULL, "layer": LAYER}
    return table(
        {of[keys[k]]: course(*v) if isinstance(v, tuple) else v for k, v in courses.items()}
    )


def test_narrow_nets():
    figure = mlps.figure("MLP1")
    good = mlp("MLP1", gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    holds, numbers = verdict(figure, "O13 (MLP1)", good)
    assert holds is True
    gap = numbers[f"accuracy: {LAYER} − {FULL}"]
    assert gap.mean == pytest.approx(0.05)
    assert (gap.n, gap.asked, gap.holds) == (5, "> 0.01", True)
    assert verdict(figure, "trace end (MLP1)", good)[0] is True
    assert verdict(figure, "trace equal loss (MLP1)", good)[0] is True
    worse = mlp("MLP1", gd=(0.7, 50), full=(0.75, 10), layer=(0.74, 20))
    for claim in ("O13", "trace end", "trace equal loss"):
        assert verdict(figure, f"{claim} (MLP1)", worse)[0] is False
    point = mlp("MLP1", gd=(0.7, 50), full=(0.75, 20), layer=(0.755, 10))  # half a point more
    assert verdict(figure, "O13 (MLP1)", point)[0] is not True
    small = mlp("MLP1", 128, gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(figure, "O13 (MLP1)", small)[0] is True


def test_both_strengths_of_the_noise_are_asked_of_mlp3():
    """App. F.1 and the main text; the one that a scale leaves out is not judged."""
    paper, quick = fig9.figure.at("paper"), fig9.figure.at("quick")
    sigma = {s: paper[f"MLP3{s} {FULL}, cosine"].noise.sigma for s in ("", " at .05")}
    assert sigma == {"": 0.1, " at .05": 0.05}
    assert paper[f"MLP3 {GD}, cosine"].key == paper[f"MLP3 at .05 {GD}, cosine"].key
    assert not any(label.startswith("MLP3 GD") for label in quick)
    t = mlp("MLP3 at .05", 128, gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(fig9.figure, "O13 (MLP3 at .05)", t)[0] is True
    holds, numbers = verdict(fig9.figure, "O13 (MLP3)", t)
    assert holds is None
    assert "not trained at this scale" in numbers["why"]


def test_wide_nets():
    good = mlp("MLP4", gd=(0.7, 50), full=course(0.5, 20, (2.0, 1.0, 0.4)), layer=(0.8, 10))
    holds, numbers = verdict(fig4.figure, "O14 (MLP4)", good)
    assert holds is True
    assert numbers["undertraining: training loss, full / GD"] == pytest.approx([4] * 5, rel=0.05)
    both = mlp("MLP4", gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    assert verdict(fig4.figure, "O14 (MLP4)", both)[0] is False


@pytest.mark.parametrize("units", [128, 999])
def test_a_narrow_net_says_nothing_of_a_wide_one(units):
    courses = {"gd": (0.7, 50), "full": course(0.5, 20, (2.0, 1.0, 0.4)), "layer": (0.8, 10)}
    for claim in ("O14", "O15 end", "O15 equal loss"):
        holds, numbers = verdict(fig4.figure, f"{claim} (MLP4)", mlp("MLP4", units, **courses))
        assert holds is None
        assert f"{units} units say nothing" in numbers["why"]
        assert verdict(fig4.figure, f"{claim} (MLP4)", mlp("MLP4", 1000, **courses))[0] is True


def steps(end: float, *, wave: float):
    """A run whose trace falls steadily but for a wave, in its logarithm."""
    looks = np.arange(8)
    curve = dict.fromkeys(("accuracy/test", "loss/test"), np.full(8, 0.8))
    curve |= {"loss/train": np.linspace(2, 0.1, 8), "trace sem": np.zeros(8)}
    trace = np.exp(np.linspace(0, np.log(end), 8) + wave * (-1.0) ** looks)
    return curve | {"trace": trace, "Gauss–Newton": trace}


@pytest.mark.parametrize(("noisy", "holds"), [(0.2, True), (0.49, False), (0.6, False)])
def test_noise_may_damp_the_oscillations_of_the_trace(noisy, holds):
    """A steady fall, however far, is no oscillation; the first look does not count."""
    runs = {"gd": steps(0.5, wave=0.5), "full": steps(0.01, wave=noisy),
            "layer": steps(2.0, wave=noisy)}  # fmt: skip
    t = mlp("MLP1", **runs)
    assert verdict(fig7.figure, "O20 (MLP1)", t)[0] is holds
    of = mlps.named("MLP1", "cosine")
    jump = t.frame.with_columns(value=pl.when(pl.col("step") == 0).then(99.0).otherwise("value"))
    assert schemes.swing(Table(jump), of[GD]) == pytest.approx(schemes.swing(t, of[GD]))
    wide = cnns.named("wide", cnns.FASHION)
    t = table({wide[s]: runs[k] for s, k in ((GD, "gd"), (FULL, "full"), (LAYER, "layer"))})
    assert verdict(cnns.figure("wide"), "O20 on Fashion-MNIST", t)[0] is holds


def on_ladder(full, layer, widths=(250, 1000, 2000)):
    """Accuracies at each width; GD has .7."""
    runs = {}
    for w, a, b in zip(widths, full, layer, strict=False):
        of = fig8.of_width(w)
        runs |= {of[GD]: course(0.7, 50), of[FULL]: course(a, 20), of[LAYER]: course(b, 10)}
    return table(runs)


@pytest.mark.parametrize(
    ("full", "layer", "holds"),
    [
        ((0.75, 0.7, 0.6), (0.75, 0.8, 0.75), True),
        ((0.75, 0.7, 0.75), (0.75, 0.8, 0.75), False),
        ((0.75, 0.7, 0.6), (0.8, 0.7, 0.65), False),
        ((0.75, 0.7, 0.65), (0.8, 0.8, 0.75), True),
        ((0.75,), (0.75,), None),
    ],
)
def test_along_a_ladder_of_widths(full, layer, holds):
    t = on_ladder(full, layer)
    assert verdict(fig8.figure, "O14 ladder", t)[0] is holds
    if holds:  # O14 is judged at the largest width
        assert verdict(fig8.figure, "O14 (MLP2)", t)[0] is True
        assert fig8.plot(t).axes[0].get_xscale() == "log"


def lost(t, label, seed=1):
    """The same, but that a run diverges in one seed after its last look."""
    rows = {label: {seed: [(9.0, "diverged", 1.0)]}}
    return Table(t.frame.vstack(Table.of(rows).frame))


def test_a_run_that_diverged_is_at_chance_however_good_it_was():
    good = sweep((0.7, 0.5), (0.75, 0.6))
    t = lost(good, fig3.label(LAYER, 0.1))
    assert final(t, fig3.label(LAYER, 0.1)).round(2).tolist() == [0.75, 0.1, 0.75, 0.75, 0.75]
    assert np.isnan(final(t, fig3.label(LAYER, 0.1), "trace")).tolist() == [
        False, True, False, False, False
    ]  # fmt: skip
    assert verdict(fig3.figure, "O12", good)[0] is True
    assert verdict(fig3.figure, "O12", t)[0] is not True
    assert "diverged: GD" in verdict(fig3.figure, "O12", lost(good, GD))[1]["why"]
    narrow = mlp("MLP1", gd=(0.7, 50), full=(0.75, 20), layer=(0.8, 10))
    gone = lost(narrow, mlps.named("MLP1", "cosine")[LAYER])
    assert verdict(fig7.figure, "O13 (MLP1)", narrow)[0] is True
    assert "diverged: MLP1" in verdict(fig7.figure, "O13 (MLP1)", gone)[1]["why"]


def test_full_noise_must_have_learnt_where_the_ladder_begins():
    t = on_ladder((0.75, 0.7, 0.6), (0.75, 0.8, 0.75))
    for width, said in ((250, True), (2000, False)):
        numbers = verdict(fig8.figure, "O14 ladder", lost(t, fig8.of_width(width)[FULL]))[1]
        assert ("diverged" in numbers["why"]) is said
    gone = t
    for seed in SEEDS:
        gone = lost(gone, fig8.of_width(2000)[LAYER], seed)
    assert verdict(fig8.figure, "O14 ladder", gone)[0] is False  # layer-wise noise can lose


def test_nothing_is_said_of_what_has_not_learnt():
    dead, fine = course(0.1, 1, (2.3, 2.3, 2.3)), course(0.7, 50)
    for gd, full, layer in ((dead, fine, fine), (fine, dead, fine), (fine, fine, dead)):
        t = mlp("MLP3", gd=gd, full=full, layer=layer)
        for claim in ("O13", "O15 end", "O15 equal loss"):
            holds, numbers = verdict(fig9.figure, f"{claim} (MLP3)", t)
            assert holds is None
            assert "needed is at most 1" in numbers["why"]
    t = mlp("MLP4", gd=fine, full=dead, layer=course(0.8, 10))
    assert verdict(fig4.figure, "O14 (MLP4)", t)[0] is True  # that full noise hurts is the claim


def test_figure_4_and_9_share_their_runs():
    ours, theirs = fig4.figure.at("quick"), fig9.figure.at("quick")
    assert {k: run.key for k, run in theirs.items()}.items() <= {
        k: run.key for k, run in ours.items()
    }.items()


def sweep(full, layer, gd=0.7, units=""):
    runs = {GD + units: course(gd, 50)}
    for scheme, ends in ((FULL, full), (LAYER, layer)):
        runs |= {fig3.label(scheme, s): course(a, 9) for s, a in zip((0.1, 0.2), ends, strict=True)}
    return table(runs)


def test_the_sweep():
    good = sweep((0.7, 0.5), (0.75, 0.6))
    assert verdict(fig3.figure, "O12", good)[0] is True
    assert verdict(fig3.figure, "O12 best", good)[0] is True
    assert verdict(fig3.figure, "O12", sweep((0.72, 0.5), (0.75, 0.6)))[0] is False
    assert verdict(fig3.figure, "O12", sweep((0.6, 0.5), (0.7, 0.6)))[0] is False
    assert verdict(fig3.figure, "O12 best", sweep((0.76, 0.5), (0.75, 0.6)))[0] is False
    thin = sweep((0.7, 0.5), (0.75, 0.6), units=", 128 units")
    for claim in ("O12", "O12 best"):
        assert "128 units say nothing" in verdict(fig3.figure, claim, thin)[1]["why"]
    assert fig3.gd(thin) in fig3.figure.at("quick")


@pytest.mark.parametrize(
    ("cifar", "substitute", "expected"),
    [(True, False, ["cifar-10"]), (True, True, ["cifar-10", "fashion-mnist-rgb"]),
     (False, False, ["fashion-mnist-rgb"]), (False, True, ["fashion-mnist-rgb"])],
)  # fmt: skip
def test_cifar_where_it_is_here(monkeypatch, cifar, substitute, expected):
    monkeypatch.setattr(needs, "found", lambda name: "here" if cifar else None)
    assert cnns.sets(cnns.Scale(1, substitute=substitute)) == expected


def cnn(net, gd, full, layer, thinner=1):
    of = cnns.named(net, cnns.FASHION, thinner)
    losses = dict(zip((GD, FULL, LAYER), (gd, full, layer), strict=True))
    return table({of[s]: course(0.8, 9, test=(2.0, *ends)) for s, ends in losses.items()})


@pytest.mark.usefixtures("no_files")
def test_convolutional_nets():
    toy, wide = cnns.figure("toy"), cnns.figure("wide")
    good = cnn("toy", (0.5, 0.9), (0.5, 0.6), (0.5, 0.55))
    assert verdict(toy, "O16 on Fashion-MNIST", good)[0] is True
    for found, said in ((None, "not run: data absent: put cifar-10"), ("/here", "not among these")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(needs, "found", lambda _, found=found: found)
            assert said in verdict(toy, "O16", good)[1]["why"]
    worse = cnn("toy", (0.5, 0.6), (0.5, 0.9), (0.5, 0.55))
    assert verdict(toy, "O16 on Fashion-MNIST", worse)[0] is False
    for ends, holds in (((0.6, 0.5), True), ((0.5, 0.6), False), ((0.5, 0.49), False)):
        full, layer = ((0.5, end) for end in ends)
        t = cnn("wide", (0.5, 0.9), full, layer)
        assert verdict(wide, "O17 on Fashion-MNIST", t)[0] is holds
    thin = cnn("wide", (0.5, 0.9), (0.5, 0.6), (0.5, 0.5), 4)
    assert "4 times fewer" in verdict(wide, "O17 on Fashion-MNIST", thin)[1]["why"]
    assert set(thin.labels) <= set(wide.at("quick"))


def residual(full, layer, traces=(5, 50), kept=0.0, width=fig6.WIDTH):
    data, sigmas = cnns.FASHION, (0.03, 0.1)
    runs = {fig6.named(data, width=width): course(0.8, 10)}
    for scheme, ends in ((FULL, full), (LAYER, layer)):
        for sigma, end, curved in zip(sigmas, ends, traces, strict=True):
            runs[fig6.named(data, scheme, sigma)] = course(end, curved)
        runs[fig6.named(data, scheme, 0.1, fig6.KEPT)] = course(ends[1] + kept, 9)
    return table(runs, spread=0.0005)


ON = "on Fashion-MNIST"


def test_the_residual_net():
    good = residual((0.8, 0.7), (0.81, 0.82))
    for claim in ("O18", "O18 headline", "O19", "O18 statistics"):
        assert verdict(fig6.figure, f"{claim} {ON}", good)[0] is True
        assert verdict(fig6.figure, claim, good)[0] is None
    worse = residual((0.8, 0.7), (0.79, 0.75), traces=(30, 50), kept=0.05)
    for claim in ("O18", "O18 headline", "O19", "O18 statistics"):
        assert verdict(fig6.figure, f"{claim} {ON}", worse)[0] is False
    fine = residual((0.8, 0.85), (0.81, 0.82))
    assert "none of these" in verdict(fig6.figure, f"O18 {ON}", fine)[1]["why"]
    thin = residual((0.8, 0.7), (0.81, 0.82), width=8)
    for claim in ("O18", "O18 headline", "O19"):
        assert "8 channels say nothing" in verdict(fig6.figure, f"{claim} {ON}", thin)[1]["why"]
    assert verdict(fig6.figure, f"O18 statistics {ON}", thin)[0] is True
    assert verdict(fig6.figure, f"O18 {ON}", residual((0.8, 0.7), (0.81, 0.82), width=16))[0]
    assert fig6.sgd(thin, cnns.FASHION) in fig6.figure.at("quick")
