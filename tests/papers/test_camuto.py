"""Camuto et al. 2020, Fig. 4 and 5: one set of runs, the noise at its sites, claims can fail."""

import io
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import dither
from dither.lab.data.sets import FREQUENCIES
from dither.lab.figure import Silent
from dither.lab.runs.execute import execute
from dither.lab.table import Table
from dither.papers.camuto2020 import fig4, fig5, multiplicative_spectrum, sinusoids
from dither.papers.camuto2020.sinusoids import NOTEBOOK, SQUARE, TEXT


def verdict(figure, claim: str, table: Table):
    return next(c for c in figure.claims if c.id == claim).check(table)


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_figure_5_looks_at_figure_4s_runs(scale):
    four, five = fig4.figure.at(scale), fig5.figure.at(scale)
    assert set(five) <= set(four)
    assert all(four[label].key == run.key for label, run in five.items())


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_multiplicative_noise_has_figure_4s_baseline(scale):
    four, mine = fig4.figure.at(scale), multiplicative_spectrum.figure.at(scale)
    assert mine["baseline"].key == four["baseline"].key
    for label in set(mine) - {"baseline"}:
        noise = dict(mine[label].noise)
        assert list(noise) == [f"fc{k}:in" for k in range(1, 6)]
        variances = [n.sigma**2 * n.law.variance for n in noise.values()]
        assert variances == pytest.approx([0.25] * 5)
    if scale != "quick":
        assert mine["R"].objective == "explicit"


def test_R_of_multiplicative_noise_is_the_same_for_layers_scaled_against_each_other():
    net = sinusoids.MLP((1, *[8] * 5, 1), init="torch").build(0).double()
    x = torch.rand(20, 1, dtype=torch.float64)
    run, other = (fig.figure.at("smoke")[label] for fig, label in (
        (multiplicative_spectrum, "R"), (fig4, f"R, {NOTEBOOK}")
    ))  # fmt: skip
    found = []
    for c in (1.0, 3.0):
        with torch.no_grad():
            net.fc1.weight.mul_(c), net.fc1.bias.mul_(c), net.fc2.weight.div_(c)
        for noise in (run.noise, other.noise):
            with dither.inject(net, dict(noise)) as injected, torch.no_grad():
                R = dither.explicit(injected, x, torch.zeros_like(x), "half_square").R
            found.append(float(R))
    assert found[0] == pytest.approx(found[2], rel=1e-12)  # eq. 6
    assert found[1] != pytest.approx(found[3], rel=1e-3)  # eq. 5


def test_paper_scale_is_the_papers():
    run = fig4.figure.at("paper")[f"R, {TEXT}"]
    assert run.model.widths == (1, *[256] * 5, 1)
    assert (run.steps, run.batch, run.optimiser.lr, run.objective) == (
        60_000,
        None,
        3e-4,
        "explicit",
    )
    assert fig4.figure.seeds["paper"] == 10


@pytest.mark.parametrize("reading", [TEXT, NOTEBOOK])
def test_R_is_eq_11_at_the_readings_sites(reading):
    net, x = (
        sinusoids.MLP((1, *[8] * 5, 1), init="torch").build(0).double(),
        torch.rand(20, 1).double(),
    )
    noise = dither.inject(net, sinusoids.READINGS[reading], seed=0)
    found = dither.explicit(noise, x, torch.zeros_like(x), "half_square").R
    noise.remove()  # or the modules below would add it
    h, total = x.requires_grad_(), 0.0
    for k in range(6):
        tail = [m for name, m in net.named_children() if int(name[-1]) >= k]
        (g,) = torch.autograd.grad(torch.nn.Sequential(*tail)(h).sum(), h)
        variance = 0.1 if reading == TEXT else 0.01 * (k > 0)
        total += variance / 2 * g.square().sum(1).mean()
        if k < 5:
            h = net.get_submodule(f"act{k}")(net.get_submodule(f"fc{k}")(h)).detach()
            h.requires_grad_()
    torch.testing.assert_close(found, total, rtol=1e-10, atol=0)


def test_smoke_runs_give_pictures_and_no_verdict():
    for figure in (fig4.figure, fig5.figure, multiplicative_spectrum.figure):
        runs = figure.at("smoke")
        table = Table.of({label: execute(run, (0, 1), Silent()) for label, run in runs.items()})
        picture = io.BytesIO()
        figure.plot(table).savefig(picture, format="png")
        assert picture.getvalue().startswith(b"\x89PNG")
        for claim in figure.claims:
            holds, numbers = claim.check(table)
            assert holds is None
            assert "fewer" in numbers["why"]


def test_the_watches_see_the_layers_of_a_stack_as_of_each():
    run = fig5.figure.at("smoke")["baseline"]
    together, alone = execute(run, (0, 1), Silent()), execute(run, (1,), Silent())
    both = [
        {(step, quantity): value for step, quantity, value in rows[1]} for rows in (together, alone)
    ]
    assert both[0].keys() == both[1].keys()
    assert {f"{q}/{k}" for q in ("norm", "square", "trace") for k in SQUARE} <= {
        q for _, q in both[0]
    }
    for at, value in both[0].items():
        assert value == pytest.approx(both[1][at], rel=1e-3, abs=1e-4), at


def told(base=1.0, gni=None, R=None, middle=None, seeds=range(5), left=0.04, **layers) -> Table:
    """A table with these spectra at the end (and `middle` of GNI before it), and these norms."""
    falling = np.array([1, 0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.08, 0.06, 0.04])
    ends = {"baseline": np.full(10, base)}
    for label, part in (("Gaussian", gni), ("dropout", gni), ("R", R)):
        ends[label] = falling if part is None else np.asarray(part)
    for reading in (TEXT, NOTEBOOK):
        ends[f"GNI, {reading}"] = falling if gni is None else np.asarray(gni)
        ends[f"R, {reading}"] = falling * 0.9 if R is None else np.asarray(R)
    rows = {}
    for label, end in ends.items():
        part = [(2000, f"amplitude/{k}", a) for k, a in zip(FREQUENCIES, end, strict=True)]
        early = end if middle is None else np.asarray(middle)
        part += [(1000, f"amplitude/{k}", a) for k, a in zip(FREQUENCIES, early, strict=True)]
        part += [(0, "loss/train", 2.5), (2000, "loss/train", 2.5 * left)]
        ordered = layers.get("order" if label != "baseline" else "base_order", (4, 3, 2, 1))
        for quantity in ("norm", "square", "spectral", "trace"):
            part += [(2000, f"{quantity}/{k}", v) for k, v in zip(SQUARE, ordered, strict=True)]
        part += [(0, f"trace/{k}", 1.0) for k in SQUARE]
        rows[label] = part
    return Table.of({label: dict.fromkeys(seeds, part) for label, part in rows.items()})


LOUD = [1, 0.9, 0.6, 0.4, 0.3, 0.2, 0.3, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("figure", "claim", "case", "holds"),
    [
        (fig4, "C7", {}, True),
        (fig4, "C7", {"base": 0.7}, False),
        (fig4, "C7", {"base": 0.7, "left": 0.5}, None),
        (fig4, f"C8 ({TEXT})", {}, True),
        (fig4, f"C8 ({TEXT})", {"gni": [0.3] * 9 + [1.1]}, False),
        (fig4, f"C8 ({TEXT})", {"gni": [0.3] * 9 + [0.97]}, False),
        (fig4, f"C8 ({TEXT})", {"gni": np.linspace(0.01, 0.001, 10)}, None),
        (fig4, f"C8 notebook ({TEXT})", {}, True),
        (fig4, f"C8 notebook ({TEXT})", {"gni": [0.3] * 5 + [0.35] * 5}, False),
        (fig4, f"C8 notebook ({TEXT})", {"gni": [0.25] * 6 + [0.16, 0.17, 0.18, 0.19]}, False),
        (fig4, f"C8 notebook ({TEXT})", {"gni": np.linspace(0.01, 0.001, 10)}, None),
        (
            fig4,
            f"C8 notebook ({TEXT})",
            {"gni": np.linspace(0.01, 0.001, 10), "middle": LOUD},
            False,
        ),
        (fig4, f"C8 notebook ({NOTEBOOK})", {"middle": LOUD}, False),
        (fig4, f"C8 ours ({TEXT})", {}, True),
        (fig4, f"C8 ours ({TEXT})", {"gni": np.linspace(0.01, 0.001, 10)}, False),
        (fig4, f"C9 ({NOTEBOOK})", {}, True),
        (fig4, f"C9 ({NOTEBOOK})", {"R": [0.95] * 10}, False),
        (fig4, f"C9 ({TEXT})", {"gni": np.linspace(0.01, 0.001, 10)}, None),
        (multiplicative_spectrum, "M8 dropout", {}, True),
        (multiplicative_spectrum, "M8 dropout", {"gni": [0.3] * 9 + [1.1]}, False),
        (multiplicative_spectrum, "M8 notebook dropout", {"gni": [0.3] * 5 + [0.35] * 5}, False),
        (multiplicative_spectrum, "M8 lowest Gaussian", {"gni": [0.4] * 10}, False),
        (multiplicative_spectrum, "M9 Gaussian", {}, True),
        (multiplicative_spectrum, "M9 Gaussian", {"R": [0.95] * 10}, False),
        (multiplicative_spectrum, "M9 laws", {}, True),
        (multiplicative_spectrum, "M10 dropout", {}, True),
        (multiplicative_spectrum, "M10 dropout", {"order": (4, 3, 3, 1)}, False),
        (fig5, f"C10 ({TEXT})", {}, True),
        (fig5, f"C10 ({TEXT})", {"order": (4, 3, 3, 1)}, False),
        (fig5, f"C10 ({TEXT})", {"gni": np.linspace(0.01, 0.001, 10)}, None),
        (fig5, f"C10 every run ({NOTEBOOK})", {}, None),
        (fig5, f"C10 every run ({NOTEBOOK})", {"seeds": range(36)}, True),
        (fig5, f"C10 every run ({NOTEBOOK})", {"order": (4, 3, 3, 1)}, False),
        (fig5, f"C10 Frobenius ({NOTEBOOK})", {"order": (4, 3, 3, 1)}, False),
        (fig5, f"C10 R ({NOTEBOOK})", {}, True),
        (fig5, "C11", {"base_order": (4, 1, 2, 3)}, True),
        (fig5, "C11", {}, False),
        (fig5, "C11", {"base_order": (4, math.nan, 2, 1)}, None),
        (fig5, f"C12 ({NOTEBOOK})", {}, True),
        (fig5, f"C12 ({NOTEBOOK})", {"order": (1, 3, 4, 2)}, False),
        (fig5, f"C12 ({NOTEBOOK})", {"order": (4, 1, 3, 0)}, True),
        (fig5, f"C12 steps ({NOTEBOOK})", {}, True),
        (fig5, f"C12 steps ({NOTEBOOK})", {"order": (4, 1, 3, 0)}, False),
        (fig5, f"C12 ({NOTEBOOK})", {"seeds": (0,)}, None),
    ],
)
def test_claims_can_fail(figure, claim, case, holds):
    assert verdict(figure.figure, claim, told(**case))[0] is holds


def test_the_trend_is_what_training_makes_of_it():
    """Traces that fall with k from the start on, and stay, have no trend."""
    frame = told().frame
    start = (pl.col("step") == 0) & pl.col("quantity").str.starts_with("trace/")
    at_end = 6.0 - pl.col("quantity").str.slice(-1).cast(pl.Float64, strict=False)
    same = frame.with_columns(value=pl.when(start).then(at_end).otherwise(pl.col("value")))
    assert verdict(fig5.figure, f"C12 ({NOTEBOOK})", told())[0] is True
    assert verdict(fig5.figure, f"C12 ({NOTEBOOK})", Table(same))[0] is False


def test_the_readings_are_a_variance_and_a_standard_deviation():
    text, notebook = sinusoids.READINGS[TEXT], sinusoids.READINGS[NOTEBOOK]
    assert text["fc0:in"].sigma == math.sqrt(0.1)
    assert "fc0:in" not in notebook
    assert {noise.sigma for noise in notebook.values()} == {0.1}


def test_a_scale_may_leave_out_a_network():
    missing = f"R, {TEXT}"
    for figure in (fig4.figure, fig5.figure):
        assert missing in figure.at("paper")
        assert missing not in figure.at("quick")
    left_out = Table(told().frame.filter(pl.col("run") != missing))
    holds, numbers = verdict(fig4.figure, f"C9 ({TEXT})", left_out)
    assert holds is None
    assert numbers["why"] == f"this scale does not train {missing}"
    assert verdict(fig4.figure, f"C9 ({NOTEBOOK})", left_out)[0] is True


def test_what_failed_is_not_said_to_be_left_out():
    """The reason of a run without a result is its own."""
    frame = told().frame.filter(pl.col("run") != f"R, {NOTEBOOK}")
    t = Table(frame, missing={f"R, {NOTEBOOK}": "out of memory"})
    with pytest.raises(dither.DitherError, match="out of memory"):
        verdict(fig4.figure, f"C9 ({NOTEBOOK})", t)


@pytest.mark.parametrize("keep", [["baseline"], [f"GNI, {TEXT}", f"R, {TEXT}"]])
def test_a_picture_of_few_networks(keep):
    runs = sinusoids.nets(width=8, steps=5, rate=1e-3)
    table = Table.of({label: execute(runs[label], (0, 1), Silent()) for label in keep})
    for module in (fig4, fig5):
        module.figure.plot(table).savefig(io.BytesIO(), format="png")
    with pytest.raises(dither.DitherError, match="no picture"):
        multiplicative_spectrum.figure.plot(table)


@pytest.mark.parametrize("module", [fig4, fig5, multiplicative_spectrum])
def test_a_picture_of_the_networks_there_are(module):
    short = {"width": 8, "steps": 5}
    some = replace(module.figure, quick=module.figure.quick | short).at("quick")
    table = Table.of({label: execute(run, (0, 1), Silent()) for label, run in some.items()})
    picture = module.figure.plot(table)
    shown = {f"{ax.get_title()}{ax.get_ylabel()}".replace("\n", ", ") for ax in picture.axes}
    assert all(any(label in words for words in shown) for label in some)
    assert not shown & {"R", f"R, {TEXT}"}
