"""Training on R goes where training with noise goes.   Camuto et al. 2020, Fig. 3

From the same weights and in the same order of the data: nothing ("baseline"), Gaussian noise of
variance .1 on the input and every hidden activation ("GNI"), or no noise and ℓ + R ("R"). ELU, no
bias, Glorot's normal weights, plain SGD. First row: the test loss (without noise) of CONV (32 and
128 filters of 4 × 4, stride 2), of an MLP of four hidden layers and of one of 2 × 32, for the
paper's 250 epochs (as rate times steps), where no net fits its training images yet. Second row, not
in the paper: 1 000 images and longer, until the baseline fits them and its test loss rises. Third
row, of the 2 × 32 with all images: the trace of the parameters' Hessian; the same in the authors'
convention,

    Σ_l tr(∇²_{W_l} L̃)/n_l          n_l entries in W_l, L̃ under one draw of the noise

and how far the nets have come apart, ‖θ − θ'‖. A net trained with noise also goes where its draws
happen to take it, the further the larger rate/batch; R has no part in that. So each GNI net is
trained with other draws as well, and the distance to GNI's mean path is that of

    E⟨θ − θ_GNI, θ − θ'_GNI⟩ = ‖θ − E θ_GNI‖²

The paper trains on SVHN and, in its appendix, on CIFAR-10: they are here where their files are on
the machine. Fashion-MNIST is here always.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import dither
from dither.lab import (
    CNN,
    MLP,
    SGD,
    Accuracy,
    Array,
    Claim,
    Conv,
    Data,
    Figure,
    Loss,
    Run,
    Table,
    Verdict,
)
from dither.lab.data import needs
from dither.papers import style
from dither.papers.camuto2020 import epochs
from dither.papers.camuto2020.paths import (
    Sketch,
    Traces,
    distance,
    end_lower,
    to_mean,
    together,
    together_in_mean,
)
from dither.papers.paired import judged

SIGMA = math.sqrt(0.1)
FEW, LONGER = 1000, 72  # images, where few are to be fitted, and rate × steps that it takes
FITTED = 0.99  # training accuracy of the baseline up to which C4 is judged
LOOKS = 12
METHODS = {"baseline": style.BLACK, "GNI": style.BLUE, "R": style.ORANGE}
AGAIN = "GNI, other draws"  # from the same weights, in the same order of the data
NETS = ("CONV", "MLP", "2 × 32")
SCARCE = {"MLP, few images": "MLP", "2 × 32, few images": "2 × 32"}
SETS = {"Fashion-MNIST": "fashion-mnist", "SVHN": "svhn", "CIFAR-10": "cifar-10"}
ALWAYS = "Fashion-MNIST"
ENOUGH = 200  # steps below which nothing is judged
SHORT = f"the networks trained for fewer than {ENOUGH} steps"
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"rate": 0.1, "steps": 4, "batches": (16, 16), "train": 64, "test": 64, "width": 16,
              "filters": (2, 4)},
    "quick": {"rate": 0.1, "batches": (64, 256), "train": 20_000,
              "test": 2000, "width": 64, "filters": (8, 32)},
    "paper": {"rate": 1e-3, "batches": (512, 512), "train": None,
              "test": None, "width": 512, "filters": (32, 128)},
}  # fmt: skip


def model(net: str, data: str, width: int, filters: tuple[int, int]) -> MLP | CNN:
    image = (1, 28, 28) if data == "fashion-mnist" else (3, 32, 32)
    if net == "CONV":
        blocks = tuple(Conv(n, kernel=4, stride=2) for n in filters)
        return CNN(blocks, image=image, activation="elu", bias=False, init="glorot")
    hidden = [32] * 2 if net == "2 × 32" else [width] * 4
    return MLP((math.prod(image), *hidden, 10), activation="elu", bias=False, init="glorot")


def trained(
    net: str, data: str, *, rate: float, batches: tuple[int, int], train: int | None,
    test: int | None, width: int, filters: tuple[int, int], few: bool = False,
    steps: int | None = None,
) -> dict[str, Run]:  # fmt: skip
    """{"baseline", "GNI", "R", "GNI, other draws"}; R of the 2 × 32 exact, of the others
    from one random column.

    batches: of CONV and where images are few, and of the MLPs; steps: None for as long as the paper
    trains. By default noise is on the input of every layer: h₀ … h_{L−1}.
    """
    steps = steps or (round(LONGER / rate) if few else epochs.steps(data, rate))
    every = max(1, steps // LOOKS)
    small = net == "2 × 32" and not few
    paths = (Traces(SIGMA, 2 * every), Sketch(2 * every)) if small else ()
    train = min(FEW, train or FEW) if few else train
    base = Run(
        data=Data(data, train=train, test=test, flat=net != "CONV"),
        model=model(net, data, width, filters),
        optimiser=SGD(rate),
        batch=batches[net != "CONV" and not few],
        steps=steps,
        watch=(
            Loss("test", every), Loss("train", every, limit=2000), Accuracy("test", every),
            Accuracy("train", every, limit=2000), *paths,
        ),
    )  # fmt: skip
    plain = tuple(watch for watch in base.watch if not isinstance(watch, Traces))
    noise, penalty = dither.Additive(SIGMA), "explicit" if net == "2 × 32" else "sampled"
    return {
        "baseline": base,
        "GNI": replace(base, noise=noise),
        "R": replace(base, noise=noise, objective=penalty),
        # the same places by other names, which are part of the draws' key
        AGAIN: replace(base, noise={"input": noise, "act*:out": noise}, watch=plain),
    }


def runs(**setting: Any) -> dict[str, Run]:
    cases = [(net, net, False) for net in NETS] + [(c, net, True) for c, net in SCARCE.items()]
    found = {}
    for name, data in SETS.items():
        if name != ALWAYS and not needs.found(data):
            continue
        for case, net, few in cases:
            methods = trained(net, data, few=few, **setting)
            found |= {f"{name} {case} {method}": run for method, run in methods.items()}
    return found


# ------------------------------------------------------------------------------ reading a table


def shown(t: Table) -> list[str]:
    labels = (*t.there, *t.missing)
    return [name for name in SETS if any(label.startswith(name) for label in labels)]


def short(t: Table, label: str) -> bool:
    return t.series(label, "loss/test")[0].max() < ENOUGH


def three(t: Table, net: str, quantity: str) -> tuple[Array, dict[str, Array]]:
    """Steps and {method: [S, T]}, as far as all go; net is "Fashion-MNIST MLP"."""
    labels = {m: f"{net} {m}" for m in (*METHODS, AGAIN)}
    if quantity not in t.quantities(labels[AGAIN]):
        del labels[AGAIN]  # its traces are not looked at
    found = {m: t.series(label, quantity) for m, label in labels.items()}
    n = min(len(steps) for steps, _ in found.values())
    return found["baseline"][0][:n], {m: values[:, :n] for m, (_, values) in found.items()}


def until_fitted(t: Table, label: str) -> int:
    """The first look at which the baseline has fitted its images, or the last of all."""
    fit = three(t, label, "accuracy/train")[1]["baseline"].mean(0)
    return int(np.argmax(fit >= FITTED)) if (fit >= FITTED).any() else len(fit) - 1


def closer(name: str, net: str) -> Callable[[Table], Verdict]:
    """C4: over the looks after the first until the baseline has fitted its images, the mean of
    |ℓ_R − ℓ_GNI| < that of |ℓ_R − ℓ_baseline|.
    """

    def check(t: Table) -> Verdict:
        label = f"{name} {net}"
        if short(t, f"{label} baseline"):
            return None, {"why": SHORT}
        _, loss = three(t, label, "loss/test")
        fit, last = t.last(f"{label} baseline", "accuracy/train"), until_fitted(t, label)
        near, far = (abs(loss["R"] - loss[m])[:, 1:] for m in ("GNI", "baseline"))
        gap, other = (d[:, :last].mean(1) for d in (near, far))
        numbers = {"R to GNI": gap, "R to baseline": other, "seeds": float((gap < other).mean())}
        numbers |= {"R to GNI, whole curve": near.mean(1), "R to baseline, whole": far.mean(1)}
        numbers |= {f"test loss at the end, {m}": loss[m][:, -1] for m in METHODS}
        again = abs(loss["GNI"] - loss[AGAIN])[:, 1 : last + 1].mean(1)
        numbers |= {"GNI to GNI with other draws": again}
        numbers |= {"training accuracy of the baseline at the end": fit}
        return judged([other - gap], numbers)

    return check


def closer_to_mean(name: str, case: str) -> Callable[[Table], Verdict]:
    """C4 without the draws' own wandering: (ℓ_R − ℓ_GNI)(ℓ_R − ℓ'_GNI), averaged over the same
    looks and the seeds, below that of the baseline.
    """

    def check(t: Table) -> Verdict:
        label = f"{name} {case}"
        if short(t, f"{label} baseline"):
            return None, {"why": SHORT}
        loss, last = three(t, label, "loss/test")[1], until_fitted(t, label)
        square = {
            m: ((loss[m] - loss["GNI"]) * (loss[m] - loss[AGAIN]))[:, 1 : last + 1].mean(1)
            for m in ("R", "baseline")
        }
        numbers = {f"square of {m} to GNI's mean": v for m, v in square.items()}
        return judged([square["baseline"] - square["R"]], numbers)

    return check


def lower(name: str, quantity: str) -> Callable[[Table], Verdict]:
    return of_small(name, lambda t, labels, _: end_lower(t, labels, quantity))


def apart_of(name: str, check: Any) -> Callable[[Table], Verdict]:
    return of_small(name, lambda t, labels, again: check(t, labels, "GNI", again))


def of_small(name: str, check: Any) -> Callable[[Table], Verdict]:
    """A check of the 2 × 32, given its labels by method and GNI's with other draws."""

    def said(t: Table) -> Verdict:
        net = f"{name} 2 × 32"
        if short(t, f"{net} baseline"):
            return None, {"why": SHORT}
        return check(t, {m: f"{net} {m}" for m in METHODS}, f"{net} {AGAIN}")

    return said


# -------------------------------------------------------------------------------------- picture

PAIRS = {
    ("R", "GNI"): style.PURPLE,
    ("R", "baseline"): style.ORANGE,
    ("GNI", "baseline"): style.BLUE,
}


def curves(ax: Any, t: Table, net: str, quantity: str, title: str, *, first: int = 0) -> None:
    """From the look `first` on: of the losses all but the start, which dwarfs the rest."""
    steps, values = three(t, net, quantity)
    for method, colour in METHODS.items():
        dash = "--" if method == "R" else "-"
        style.band(ax, steps[first:], values[method][:, first:], colour, label=method, ls=dash)
    ax.set(xlabel="step", title=title)


def apart(ax: Any, t: Table, net: str) -> None:
    for (a, b), colour in PAIRS.items():
        steps, d = distance(t, f"{net} {a}", f"{net} {b}")
        style.band(ax, steps, d, colour, label=f"{a} to {b}")
    for method, colour in (("R", style.ORANGE), ("baseline", style.BLACK)):
        steps, square = to_mean(t, f"{net} {method}", f"{net} GNI", f"{net} {AGAIN}")
        mean = np.sqrt(np.clip(square.mean(0), 0, None))
        ax.plot(steps, mean, "--", color=colour, lw=1.4, label=f"{method} to GNI's mean")
    top = ax.get_ylim()[1]
    ax.set(xlabel="step", title="distance ‖θ − θ'‖, 2 × 32", ylim=(0, 1.9 * top))
    style.legend(ax, loc="upper left", fontsize=8)


def note(picture: Any, absent: Mapping[str, str]) -> None:
    """What was not run, and which file is missing, at the foot."""
    lines = [f"{name}: {needs.absent(data)}" for name, data in absent.items()]
    if lines:
        picture.supxlabel("\n".join(lines), fontsize=7, x=0.01, ha="left")


def plot(t: Table) -> Any:
    lacking = tuple(t.missing)
    whole = [n for n in shown(t) if not any(label.startswith(n) for label in lacking)]
    names = whole or shown(t)
    picture, axes = style.grid(3 * len(names), 3, width=10, height=2.7)
    for i, name in enumerate(names):
        above, middle, below = axes[3 * i : 3 * i + 3]
        for ax, net in zip(above, NETS, strict=True):
            curves(ax, t, f"{name} {net}", "loss/test", f"{name}, {net}", first=1)
        for ax, case in zip(middle, SCARCE, strict=False):
            curves(ax, t, f"{name} {case}", "loss/test", case, first=1)
        small, case = f"{name} 2 × 32", list(SCARCE)[-1]
        curves(middle[2], t, f"{name} {case}", "accuracy/train", f"training accuracy, {case}")
        for ax in (above[0], middle[0]):
            ax.set_ylabel("test loss")
        curves(below[0], t, small, "trace", "tr ∇²L, 2 × 32")
        curves(below[1], t, small, "authors' trace", "authors' convention, 2 × 32")
        apart(below[2], t, small)
    style.legend(axes[0, 0])
    note(picture, {name: data for name, data in SETS.items() if name not in names})
    return picture


NEARER = "R's curve of test loss is closer to GNI's than to the baseline's"
LOWER = "R and GNI end with a lower trace of the Hessian than the baseline"
APART = "R and GNI end closer to each other than to the baseline"


def where_run(name: str, check: Callable[[Table], Verdict]) -> Callable[[Table], Verdict]:
    """A check on a set that need not be on the machine."""

    def said(t: Table) -> Verdict:
        if name in shown(t):
            return check(t)
        return None, {"why": needs.unrun(SETS[name])}

    return said


def of_others() -> list[Claim]:
    """The paper's three claims on its own sets."""
    found = []
    for name in SETS:
        if name == ALWAYS:
            continue
        checks = {f"C4 {net}": (f"{net}: {NEARER}", closer(name, net)) for net in NETS}
        checks |= {"C5": (LOWER, lower(name, "trace")), "C6": (APART, apart_of(name, together))}
        for id, (text, check) in checks.items():
            found.append(Claim(f"{id}, {name}", f"{name}: {text}", where_run(name, check)))
    return found


def claims() -> list[Claim]:
    """Of Fashion-MNIST, and last of the paper's sets."""
    found = []
    for case in (*NETS, *SCARCE):
        text = f"{case}: {NEARER}"
        text += ", until the baseline fits its images" if case in SCARCE else ""
        found.append(Claim(f"C4 {case}", text, closer(ALWAYS, case)))
    return [
        *found,
        Claim("C5", LOWER, lower(ALWAYS, "trace")),
        Claim("C5 theirs", f"{LOWER}, in the authors' convention", lower(ALWAYS, "authors' trace")),
        Claim("C6", APART, apart_of(ALWAYS, together)),
        *(
            Claim(
                f"C4 {case}, mean",
                f"{case}: so is it to GNI's mean over draws (ours)",
                closer_to_mean(ALWAYS, case),
            )
            for case in (*NETS, *SCARCE)
        ),
        Claim(
            "C6, mean",
            "R ends closer to GNI's mean over draws than the baseline does (ours)",
            apart_of(ALWAYS, together_in_mean),
        ),
        *of_others(),
    ]


figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick=SCALES["quick"],
    paper=SCALES["paper"],
    claims=claims(),
    departures=[
        "changed after first results: C4 is judged until the baseline fits its images; few images, "
        "'C4 …, mean' and 'C6, mean' were added; quick's rate and batches; later a difference "
        "within its standard error was no longer judged, and C6 looks halfway too",
        "quick: C4 asks for a difference hardly there: where nothing is fitted, variance .1 moves "
        'the test loss on Fashion-MNIST less than its own draws do ("GNI to GNI with other draws")',
        "quick: C5 in the authors' convention comes out the other way round: the mean over each "
        "matrix weighs the last one's 320 entries like the first one's 25 088, and noise, which "
        "keeps the outputs unsure, raises the curvature there",
        "SVHN and CIFAR-10 are run, drawn and judged where their files are on the machine",
        "images standardised (the released code: in [0, 1], a count of noise added)",
        "CONV without biases and padding",
        "R of the 2 × 32 is exact, of the others from one random column: right in value and "
        "gradient",
        "the width of the MLP of four hidden layers is not given: 512, the released code's default",
        "the Hessian is that of 512 training images, by 16 probes",
        "quick: rate .1 instead of .001 and a hundredth of the steps, 20 000 images in batches of "
        "256 (CONV, and where images are few: 64): the draws move a GNI net √(100 · 512/256) = 14 "
        "times as far as at the paper's rate and batch; CONV of 8 and 32 filters, the MLP of width "
        "64",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 3.5, "paper": 40_000},
)
