"""Noise in proportion to the activations, which the paper leaves aside: its eq. 6, and dropout.

What Fig. 2 and 3 look at, with h∘(1 + σ ε) in place of h + σ ε. The regulariser weighs each
gradient with its activation,

    R = ½ σ² E_batch Σ_k Σ_c ‖g_kc ∘ h_k‖²

for any law of variance 1: Gaussian ε, or dropout with σ² = p/(1 − p), the two-point case. So both
have one second order and differ only in what comes after it.

Above, as in Fig. 2: R and E[C]/R at initialisation, six layers of 256, σ² = .1, .25, 1 (p = .5)
and 4 (p = .8), and |E[C]|/R in the first 100 steps of SGD; below, E[C]/R as σ → 0 (dashed: the rest
of the second order). Then, on Fashion-MNIST at σ² = .25 (p = .2), an MLP trained with Gaussian
noise, with dropout and without noise but with R, from the same weights: its test loss; and one of
2 × 32: the trace of the parameters' Hessian and the distances between them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dither.data import Data
from dither.figure import Claim, Figure, Run, Task
from dither.models import MLP
from dither.papers import style
from dither.papers.camuto2020 import fig2
from dither.papers.camuto2020.paths import Sketch, Traces, distance, to_mean
from dither.papers.camuto2020.remainders import QUANTITIES, noise, start, training
from dither.table import Array, Table
from dither.train import SGD, Accuracy, Loss

PROBLEM = "Fashion-MNIST, ELU"
VARIANCES, SMALL = (0.1, 0.25, 1.0, 4.0), (0.001, 0.01)
TRAINED_AT = 0.25  # p = .2
AGAIN = ", other draws"
LAWS = ("multiplicative", "dropout")
MEANING = {"multiplicative": "Gaussian", "dropout": "dropout"}
METHODS = {
    "baseline": style.BLACK, "multiplicative": style.BLUE, "dropout": style.GREEN, "R": style.ORANGE
}  # fmt: skip
NETS = ("MLP", "2 × 32")
COLOURS = dict(zip(VARIANCES, (style.BLUE, style.GREEN, style.ORANGE, style.RED), strict=True))
ENOUGH, SHORT = 300, "the networks trained for fewer than 300 steps"
LOOKS = 12
EARLY = 100  # Fig. 2's first steps
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"nets": 2, "draws": 8, "wide": 16, "rate": 0.05, "steps": 4, "batches": (16, 16),
              "train": 64, "test": 64, "width": 16, "early": fig2.SCALES["smoke"]},
    "quick": {"nets": 3, "draws": 200, "wide": 256, "rate": 0.1, "steps": 360, "batches": (64, 256),
              "train": 20_000, "test": 2000, "width": 64, "early": fig2.SCALES["quick"]},
    "paper": {"nets": 25, "draws": 1000, "wide": 256, "rate": 1e-3, "steps": 36_000,
              "batches": (512, 512), "train": None, "test": None, "width": 512,
              "early": fig2.SCALES["paper"]},
}  # fmt: skip
Verdict = tuple[bool | None, Mapping[str, Any]]


def runs(
    nets: int, draws: int, wide: int, early: Mapping[str, Any], **setting: Any
) -> dict[str, Run | Task]:
    """`nets` initialisations a seed at width `wide`; Fig. 2's first steps (`early`: what it affords
    there); then training.
    """
    found: dict[str, Run | Task] = {
        f"{of} start": Task.of(
            start, problem=PROBLEM, nets=nets, draws=draws, width=wide,
            variances=(*SMALL, *VARIANCES), of=of,
        )
        for of in LAWS
    }  # fmt: skip
    first = {name: value for name, value in early.items() if name != "nets"}
    for of in LAWS:
        for v in VARIANCES:
            found[f"{MEANING[of]} σ²={v:g}"] = training(PROBLEM, v, fig2.RATE, of=of, **first)
    return found | {f"{net} {m}": run for net in NETS for m, run in trained(net, **setting).items()}


def trained(
    net: str, *, rate: float, steps: int, batches: tuple[int, int], train: int | None,
    test: int | None, width: int,
) -> dict[str, Run]:  # fmt: skip
    """{"baseline", "multiplicative", "dropout", "R"} of the same weights and order of the data, and
    for the 2 × 32 both noises with other draws. batches: of the MLP, and of the 2 × 32.
    """
    hidden, every = [32] * 2 if net == "2 × 32" else [width] * 4, max(1, steps // LOOKS)
    small = net == "2 × 32"
    sites = ("fc*:in",)  # the input and every hidden activation
    # the authors' trace is not asked for: with σ = 0 it is that of the plain loss
    paths = (Traces(0.0, 2 * every), Sketch(2 * every)) if net == "2 × 32" else ()
    base = Run(
        data=Data("fashion-mnist", train=train, test=test),
        model=MLP((784, *hidden, 10), activation="elu", bias=False, init="glorot"),
        optimiser=SGD(rate),
        batch=batches[small],
        steps=steps,
        watch=(
            Loss("test", every), Accuracy("test", every),
            Accuracy("train", every, limit=2000), *paths,
        ),
    )  # fmt: skip

    def noisy(of: str, places: tuple[str, ...], objective: str = "noise") -> Run:
        what = dict.fromkeys(places, noise(TRAINED_AT, of))
        return replace(base, noise=what, objective=objective)

    found = {
        "baseline": base,
        **{of: noisy(of, sites) for of in LAWS},
        "R": noisy("multiplicative", sites, "explicit" if small else "sampled"),
    }
    if small:  # the same places by other names, which are part of the draws' key
        plain = tuple(watch for watch in base.watch if not isinstance(watch, Traces))
        again = {of + AGAIN: noisy(of, ("input", "act*:out")) for of in LAWS}
        found |= {label: replace(run, watch=plain) for label, run in again.items()}
    return found


# ------------------------------------------------------------------------------ reading a table


def at_start(t: Table, of: str, sigma2: float) -> dict[str, Array]:
    return {q: t.series(f"{of} start", f"{q}/{sigma2:g}")[1].ravel() for q in QUANTITIES}


def above(t: Table) -> Verdict:
    holds, numbers = True, {}
    for of in LAWS:
        for v in VARIANCES:
            a = at_start(t, of, v)
            ratio, where = abs(a["C"]) / a["R"], f"{MEANING[of]}, σ² = {v:g}"
            holds &= bool((a["R"] > abs(a["C"])).all() and a["R"].min() > 0)
            numbers[f"|E[C]|/R, {where}"] = ratio.mean(), ratio.std()
            numbers[f"its largest, {where}"] = ratio.max()
            numbers[f"share with E[C] > 0, {where}"] = (a["C"] > 0).mean()
    return holds, numbers


def first_steps(t: Table) -> Verdict:
    """As C3."""
    if t.series(f"{MEANING[LAWS[0]]} σ²={VARIANCES[0]:g}", "C")[0].max() < EARLY:
        return None, {"why": f"the networks were looked at for fewer than {EARLY} steps"}
    return fig2.early(t, [f"{name} σ²={v:g}" for name in MEANING.values() for v in VARIANCES])


def second(t: Table) -> Verdict:
    """At σ² = .001 E[C] is the residual, of both laws: within 5 standard errors or 2 % of R."""
    holds, numbers = True, {}
    for of in LAWS:
        a = at_start(t, of, SMALL[0])
        gap = (a["C"] - a["residual"]) / a["R"]
        error = np.sqrt(((a["sem"] / a["R"]) ** 2).sum()) / len(gap)
        holds &= bool(abs(gap.mean()) < max(5 * error, 0.02))
        numbers[f"E[C]/R, {MEANING[of]}"] = (a["C"] / a["R"]).mean(), (a["C"] / a["R"]).std()
        numbers[f"residual/R, {MEANING[of]}"] = (a["residual"] / a["R"]).mean()
        numbers[f"their difference, {MEANING[of]}"] = gap.mean(), error
    return holds, numbers


def part(t: Table) -> Verdict:
    """Dropout's E[C]/R at p = .5 differs from the Gaussian's by more than 3 standard errors."""
    a, b = (at_start(t, of, 1.0) for of in LAWS)
    gap = (b["C"] - a["C"]) / a["R"]
    error = np.sqrt(((a["sem"] ** 2 + b["sem"] ** 2) / a["R"] ** 2).sum()) / len(gap)
    numbers = {
        f"E[C]/R, {MEANING[of]}": (c["C"] / c["R"]).mean()
        for of, c in zip(LAWS, (a, b), strict=True)
    }
    return bool(abs(gap.mean()) > 3 * error), numbers | {"difference": (gap.mean(), error)}


def closer(net: str, of: str) -> Callable[[Table], Verdict]:
    """As C4: the mean over looks of |ℓ_R − ℓ_noise| < |ℓ_R − ℓ_baseline|, in test loss."""

    def check(t: Table) -> Verdict:
        steps, loss = curves(t, net, "loss/test")
        if steps[-1] < ENOUGH:
            return None, {"why": SHORT}
        near, far = (np.nanmean(abs(loss["R"] - loss[m])[:, 1:], 1) for m in (of, "baseline"))
        ends = {f"test loss at the end, {m}": values[:, -1] for m, values in loss.items()}
        return bool(near.mean() < far.mean()), {"R to it": near, "R to baseline": far, **ends}

    return check


def lower(t: Table) -> Verdict:
    """As C5."""
    steps, traces = curves(t, "2 × 32", "trace")
    if steps[-1] < ENOUGH:
        return None, {"why": SHORT}
    end = {m: values[:, -1] for m, values in traces.items()}
    errors = {
        f"Monte-Carlo error, {m}": values[:, -1]
        for m, values in curves(t, "2 × 32", "trace sem")[1].items()
    }
    noisy = max(v.mean() for m, v in end.items() if m != "baseline")
    return bool(noisy < end["baseline"].mean()), end | errors


def together(of: str) -> Callable[[Table], Verdict]:
    """As C6."""

    def check(t: Table) -> Verdict:
        if curves(t, "2 × 32", "trace")[0][-1] < ENOUGH:
            return None, {"why": SHORT}
        pairs = [("R", of), ("R", "baseline"), (of, "baseline")]
        end = {f"{a} to {b}": distance(t, f"2 × 32 {a}", f"2 × 32 {b}")[1][:, -1] for a, b in pairs}
        near, *far = (d.mean() for d in end.values())
        again = distance(t, f"2 × 32 {of}", f"2 × 32 {of}{AGAIN}")[1][:, -1]
        return bool(near < min(far)), end | {"it to itself with other draws": again}

    return check


def together_in_mean(of: str) -> Callable[[Table], Verdict]:
    """M6 without the draws' own wandering: at the end ‖θ_R − E θ_noise‖² below the baseline's."""

    def check(t: Table) -> Verdict:
        if curves(t, "2 × 32", "trace")[0][-1] < ENOUGH:
            return None, {"why": SHORT}
        square = {
            m: to_mean(t, f"2 × 32 {m}", f"2 × 32 {of}", f"2 × 32 {of}{AGAIN}")[1][:, -1]
            for m in ("R", "baseline")
        }
        numbers = {f"square of {m} to its mean": v for m, v in square.items()}
        return bool(square["R"].mean() < square["baseline"].mean()), numbers

    return check


def curves(t: Table, net: str, quantity: str) -> tuple[Array, dict[str, Array]]:
    """Steps and {method: [S, T]}, as far as all go."""
    found = {m: t.series(f"{net} {m}", quantity) for m in METHODS}
    n = min(len(steps) for steps, _ in found.values())
    return found["baseline"][0][:n], {m: values[:, :n] for m, (_, values) in found.items()}


# -------------------------------------------------------------------------------------- picture


def scatter(ax: Any, t: Table, of: str) -> None:
    for v, colour in COLOURS.items():
        a = at_start(t, of, v)
        ax.plot(a["C"] / a["R"], a["R"], "o", ms=4, color=colour, alpha=0.7, label=f"σ² = {v:g}")
    for edge, dash in ((0, "-"), (1, ":"), (-1, ":")):
        ax.axvline(edge, color=style.RED if edge else style.GREY, ls=dash, lw=1)
    ax.set(yscale="log", xlabel="E[C]/R", ylabel="R", title=f"{MEANING[of]}, at the start")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks([-1, 0, 1, 10], ["−1", "0", "1", "10"])


def small_sigma(ax: Any, t: Table) -> None:
    variances = (*SMALL, *VARIANCES)
    for of, colour, shift in zip(LAWS, (style.BLUE, style.GREEN), (0.93, 1.07), strict=True):
        both = [at_start(t, of, v) for v in variances]
        ratio = np.stack([a["C"] / a["R"] for a in both], 1)
        style.dots(ax, shift * np.array(variances), ratio, colour, label=MEANING[of])
    line = (both[0]["residual"] / both[0]["R"]).mean()
    ax.axhline(line, color=style.RED, ls="--", lw=1.2, label="second order, of which R is 1")
    ax.axhline(0, color=style.GREY, lw=0.6)
    ax.set(xscale="log", xlabel="σ²", ylabel="E[C]/R", title="as σ → 0")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_yticks([-1, 0, 1, 10], ["−1", "0", "1", "10"])


def trained_curves(ax: Any, t: Table, net: str, quantity: str, first: int = 0) -> None:
    """From the look `first` on."""
    steps, values = curves(t, net, quantity)
    for method, colour in METHODS.items():
        name, dash = MEANING.get(method, method), "--" if method == "R" else "-"
        style.band(ax, steps[first:], values[method][:, first:], colour, label=name, ls=dash)
    ax.set_xlabel("step")


def apart(ax: Any, t: Table) -> None:
    pairs = [("R", "multiplicative"), ("R", "dropout"), ("R", "baseline"),
             ("multiplicative", "dropout"), ("multiplicative", "baseline")]  # fmt: skip
    colours = (style.PURPLE, style.GREEN, style.ORANGE, style.SKY, style.BLUE)
    for (a, b), colour in zip(pairs, colours, strict=True):
        steps, d = distance(t, f"2 × 32 {a}", f"2 × 32 {b}")
        label = f"{MEANING.get(a, a)} to {MEANING.get(b, b)}"
        style.band(ax, steps, d, colour, label=label)
    top = ax.get_ylim()[1]
    ax.set(xlabel="step", title="distance ‖θ − θ'‖, 2 × 32", ylim=(0, 1.7 * top))
    style.legend(ax, loc="upper left", fontsize=8)


def plot(t: Table) -> Any:
    picture, axes = style.grid(2, 4, width=13, height=3.2)
    for of, column in zip(LAWS, (0, 2), strict=True):
        scatter(axes[0, column], t, of)
        fig2.first_steps(axes[0, column + 1], t, MEANING[of], log=True)
        axes[0, column + 1].set_title(f"{MEANING[of]}, rate {fig2.RATE:g}")
    style.legend(axes[0, 0], fontsize=8)
    small_sigma(axes[1, 0], t)
    style.legend(axes[1, 0], fontsize=8)
    trained_curves(axes[1, 1], t, "MLP", "loss/test", first=1)
    axes[1, 1].set(ylabel="test loss", title="MLP, σ² = .25")
    style.legend(axes[1, 1])
    trained_curves(axes[1, 2], t, "2 × 32", "trace")
    axes[1, 2].set(ylabel="trace", title="tr ∇²L, 2 × 32")
    apart(axes[1, 3], t)
    return picture


figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick=SCALES["quick"],
    paper=SCALES["paper"],
    claims=[
        Claim("M1", "at initialisation R > |E[C]| and R > 0, with both laws", above),
        Claim(
            "M2", "as σ → 0, E[C] is the residual part of the second order, of both laws", second
        ),
        Claim(
            "M7",
            "in the first 100 steps the mean over networks of |E[C]|/R is below 1",
            first_steps,
        ),
        Claim("M3", "past the second order they differ: dropout's E[C] at p = .5 is another", part),
        *(
            Claim(
                f"M4 {net} {MEANING[of]}",
                f"{net}: R's curve of test loss is closer to {MEANING[of]}'s than to the "
                "baseline's",
                closer(net, of),
            )
            for net in NETS
            for of in LAWS
        ),
        Claim("M5", "noise, dropout and R end with a lower trace than the baseline", lower),
        *(
            Claim(
                f"M6 {MEANING[of]}",
                f"R and {MEANING[of]} end closer to each other than to the baseline",
                together(of),
            )
            for of in LAWS
        ),
        *(
            Claim(
                f"M6 {MEANING[of]}, mean",
                f"R ends closer to the mean of {MEANING[of]} over its draws than the baseline does",
                together_in_mean(of),
            )
            for of in LAWS
        ),
    ],
    departures=[
        "no figure of the paper: eq. 6 is in its text alone, and dropout in its related work",
        "the claims are written as those of Fig. 2 and 3",
        "M1 and M7 fail where σ² ≥ 1: through L sites a signal's square grows by (1 + σ²)^L, of "
        "which R has 1 + Lσ²; for six sites at σ² = 1 that is 64 and 7 (cross-entropy, which grows "
        "like the signal and not its square, tempers it)",
        "R of the 2 × 32 is exact, of the MLP from one random column",
        "quick: 9 networks, 200 draws; M7 at steps 0, 25, … 100 of 3 networks, batches of 64 (of "
        "6 000 images); training at rate .1 for 360 steps on 20 000 images, batches of 64 (2 × 32: "
        "of 256), the MLP of width 64",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.1, "quick": 2, "paper": 6000},
)
