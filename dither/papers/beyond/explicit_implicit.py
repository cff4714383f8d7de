"""Is it R, or the draws? The effects of noise, taken apart.   After Camuto et al. 2020, Fig. 4, 5

A step with noise follows the gradient of ℓ, of R, of what R leaves out (higher orders, kinks), and
of what one draw has beside its mean. Networks from the same start follow each:

    none            ℓ
    R               ℓ + R
    E, K draws      the mean of K draws: ℓ + R + what R leaves out, and 1/K of the draws' variance
    noise           one draw
    R + draws       ℓ + R + (one draw − the mean of 16 others): R and the draws, without the rest

Left, the sum of sines of Fig. 4 with noise of standard deviation .1 on the hidden activations: the
high frequencies (mean amplitude, 30 to 50 Hz), the order of the layers (the slope of ln ‖W̃_k‖₂ over
k, Fig. 5) and the Gauss–Newton trace. Right, a CONV on CIFAR-10 with noise of variance .1 on every
layer: test loss, margin, trace. Each bar is a share of noise's own effect, (arm − none) over the
mean of (noise − none). In a ReLU net the residual part of the second order is 0, so that
`curvature="full"` is R.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dither
from dither.calling import output
from dither.lab import (
    CNN,
    SGD,
    Accuracy,
    Amplitudes,
    Array,
    Claim,
    Conv,
    Data,
    Figure,
    Loss,
    Run,
    State,
    Table,
    Verdict,
)
from dither.lab.data import needs
from dither.lab.rule import above, below, decide
from dither.lab.training.loop import Training
from dither.measures import margins
from dither.measures.curvature import trace
from dither.papers import style
from dither.papers.camuto2020 import sinusoids
from dither.papers.camuto2020.sinusoids import NOTEBOOK, READINGS, SQUARE

HIGH = (30, 35, 40, 45, 50)  # Hz
OTHERS = 16  # draws whose mean is taken from one
HALF = 0.5  # of an effect: above it is its cause
WORSE = 0.01  # nats of test loss
LEARNT = 0.3  # test accuracy of the CONV, three times chance
AVERAGED = (4, 16, 64)
COLOURS = {
    "R": style.ORANGE, "E, 4 draws": style.SKY, "E, 16 draws": style.SKY,
    "E, 64 draws": style.BLUE, "noise": style.RED, "R + draws": style.PURPLE,
}  # fmt: skip
SINES = {"high": "high frequencies", "order": "order of the layers", "log trace": "ln of the trace"}
COLOUR = {"loss/test": "test loss", "margin": "median margin", "log trace": "ln of the trace"}


@dataclass(frozen=True, kw_only=True)
class Apart(Run):
    """A run on the mean of `draws` draws, or, with `alone`, on R + (one draw − the mean of 16)."""

    draws: int = 1
    alone: bool = False

    def program(self, seeds: tuple[int, ...]) -> "Program":
        return Program(self, seeds, False, "cpu")

    @property
    def stacked(self) -> bool:
        return False


class Program(Training):
    """The training of an `Apart`."""

    run: Apart

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        total = self.noisy(x, y, 1 if self.run.alone else self.run.draws)
        if self.run.alone:
            assert self.noise is not None
            samples = None if self.run.loss == "half_square" else 1  # one output: exact is cheap
            R = dither.explicit(self.noise, x, y, self.loss, samples=samples)
            total = R.loss + R.R + total - self.noisy(x, y, OTHERS)
        return total, total[None]

    def noisy(self, x: Tensor, y: Tensor, draws: int) -> Tensor:
        """The mean loss of so many draws for each sample, which share a forward."""
        many = x.repeat(draws, *[1] * (x.dim() - 1)), y.repeat(draws, *[1] * (y.dim() - 1))
        return self.loss.per_sample(output(self.model, many[0]), many[1]).mean()


@dataclass(frozen=True)
class Ends:
    """What is compared at the end: "high", "order" and "log trace", or "margin" and "log trace"."""

    every: int | None = None
    probed: int = 128

    def __call__(self, state: State) -> Mapping[str, float]:
        x, y = state.examples("train", self.probed)
        of = trace(state.model, state.run.loss, (x, y), of="gauss_newton").value
        seen = {"log trace": float(np.log(max(of, 1e-12)))}
        if state.run.loss == "half_square":
            heights = Amplitudes(HIGH)(state).values()
            high = float(torch.stack([torch.as_tensor(v).flatten()[0] for v in heights]).mean())
            norms = sinusoids.Spectral()(state)
            logs = [float(torch.as_tensor(norms[f"spectral/{k}"]).log()) for k in SQUARE]
            k = np.array(SQUARE) - np.mean(SQUARE)
            return seen | {"high": high, "order": float(logs @ k / (k @ k))}
        with torch.no_grad():
            x, y = state.examples("test")
            return seen | {"margin": float(margins.outputs(state.model(x), y).median())}


def arms(plain: Run, noise: Any, penalty: str, averaged: tuple[int, ...]) -> dict[str, Run]:
    """{arm: run}."""
    fields = {name: getattr(plain, name) for name in Run.__dataclass_fields__}
    noisy = Apart(**{**fields, "noise": noise})
    return {
        "none": plain,
        "R": replace(plain, noise=noise, objective=penalty),
        **{f"E, {n} draws": replace(noisy, draws=n) for n in averaged},
        "noise": replace(plain, noise=noise),
        "R + draws": replace(noisy, alone=True),
    }


def runs(
    width: int, steps: int, rate: float, averaged: tuple[int, ...],
    images: int = 0, epochs: int = 0, filters: tuple[int, int] = (8, 32),
    tried: tuple[int, ...] = (),
) -> dict[str, Run]:  # fmt: skip
    """The sum of sines; and CIFAR-10 where it is on the machine and images > 0. averaged, tried:
    the numbers of draws of the two.
    """
    sines = replace(
        sinusoids.baseline(width, steps, rate), watch=(Loss("train", max(1, steps // 20)), Ends())
    )
    by_label = arms(sines, READINGS[NOTEBOOK], "explicit", averaged)
    by_label = {f"sines, {arm}": run for arm, run in by_label.items()}
    if images and needs.found("cifar-10"):
        blocks = tuple(Conv(n, kernel=4, stride=2, padding=1) for n in filters)
        plain = Run(
            data=Data("cifar-10", train=images, test=2000, subset_seed=None, flat=False),
            model=CNN(blocks, image=(3, 32, 32), activation="elu"),
            optimiser=SGD(0.02, momentum=0.9),
            batch=128,
            epochs=epochs,
            watch=(Loss("train", 0, limit=2000), Loss("test", 0), Accuracy("test", 0), Ends()),
        )
        of_colour = arms(plain, dither.Additive(0.1**0.5), "sampled", tried)
        by_label |= {f"CIFAR-10, {arm}": run for arm, run in of_colour.items()}
    return by_label


# ------------------------------------------------------------------------------------------ claims


def effect(t: Table, set_: str, arm: str, quantity: str) -> Array:
    """The arm minus none, [S]."""
    return t.last(f"{set_}, {arm}", quantity) - t.last(f"{set_}, none", quantity)


def portion(t: Table, set_: str, arm: str, quantity: str) -> Array:
    """The share of noise's own effect, [S]."""
    return effect(t, set_, arm, quantity) / effect(t, set_, "noise", quantity).mean()


def unclear(t: Table, set_: str, quantity: str) -> str:
    """Why shares can't be taken: noise's own effect is not told from 0; "" if it is."""
    own = effect(t, set_, "noise", quantity)
    error = own.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.inf
    return "" if abs(own.mean()) > 4 * error else "noise's own effect is not above 4 of its errors"


def cause(arm: str, quantity: str, relation=above, *, set_: str = "sines", beside: str = ""):
    """The arm makes more than half of noise's effect (or, with `below`, less); with `beside`, also
    what it has beside that arm does, which both share.
    """

    def check(t: Table) -> Verdict:
        if f"{set_}, {arm}" not in t.known:
            return None, {"why": f"{set_}, {arm} is not run at this scale, or its data are absent"}
        names = [b.removeprefix(f"{set_}, ") for b in t.there if b.startswith(f"{set_}, ")]
        names += [a for a in (arm, beside) if a and a not in names]  # said to be missing
        shown = {a: portion(t, set_, a, quantity) for a in names if a != "none"}
        half = HALF * shown["noise"]  # paired: noise's own effect has an error, too
        asked = [relation(f"share of the effect, {arm}, − ½", shown[arm], half)]
        if beside:
            name = f"share of the effect, {arm} − {beside}, − ½"
            asked.append(relation(name, shown[arm] - shown[beside], half))
        numbers = {f"share, {a}": values for a, values in shown.items()}
        return decide(*asked, unless=unclear(t, set_, quantity), numbers=numbers)

    return check


def draws_hurt(t: Table) -> Verdict:
    """The test loss of noise is above that of the mean of its draws."""
    arms = ("noise", "E, 16 draws")
    if any(f"CIFAR-10, {arm}" not in t.known for arm in arms):
        return None, {"why": "CIFAR-10 is absent, or not run at this scale"}
    ours, other = (t.last(f"CIFAR-10, {arm}", "loss/test") for arm in arms)
    low = t.last("CIFAR-10, none", "accuracy/test").mean() < LEARNT
    why = f"the CONV's test accuracy is below {LEARNT:g}" if low else ""
    return decide(above("test loss, noise − mean of 16 draws", ours, other, by=WORSE), unless=why)


def plot(t: Table):
    sets = style.some([s for s in ("sines", "CIFAR-10") if f"{s}, none" in t.there])
    picture, axes = style.grid(1, len(sets), width=6.0 * len(sets), height=4.0)
    for ax, set_ in zip(axes[0], sets, strict=True):
        quantities = SINES if set_ == "sines" else COLOUR
        arms = [arm for arm in COLOURS if f"{set_}, {arm}" in t.there]
        for i, quantity in enumerate(quantities):
            for j, arm in enumerate(arms):
                shares = portion(t, set_, arm, quantity)
                at = i + (j - (len(arms) - 1) / 2) * 0.8 / len(arms)
                ax.bar(at, shares.mean(), 0.8 / len(arms), yerr=style.sd(shares), capsize=2,
                       color=COLOURS[arm], alpha=0.6 if arm in ("E, 4 draws",) else 1,
                       label=arm if i == 0 else None)  # fmt: skip
        ax.axhline(1, color=style.GREY, lw=0.8, ls=":")
        ax.axhline(0, color=style.GREY, lw=0.8)
        ax.set(title="sum of sines" if set_ == "sines" else "CONV, CIFAR-10")
        ax.set_xticks(range(len(quantities)), quantities.values())
    axes[0, 0].set_ylabel("share of the effect of noise")
    bars = dict[str, Any]()
    for ax in axes[0]:  # a set may have arms that the other has not
        bars |= {name: bar for bar, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [arm for arm in COLOURS if arm in bars]
    style.legend(
        picture, handles=[bars[arm] for arm in shown], labels=shown,
        loc="outside upper center", ncols=6,
    )  # fmt: skip
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"width": 16, "steps": 20, "rate": 3e-3, "averaged": (4,), "images": 128, "epochs": 1,
           "filters": (2, 4), "tried": (4,)},
    quick={"width": 64, "steps": 500, "rate": 5e-3, "averaged": ()},
    decisive={"width": 128, "steps": 15_000, "rate": 1e-3, "averaged": AVERAGED, "images": 5000,
              "epochs": 30, "tried": (16,)},
    paper={"width": 256, "steps": 60_000, "rate": 3e-4, "averaged": AVERAGED, "images": 50_000,
           "epochs": 60, "filters": (32, 128), "tried": (16,)},
    claims=[
        Claim("A1", "R makes more than half of what noise does to the high frequencies",
              cause("R", "high")),
        Claim("A2", "R makes less than half of the order of the layers",
              cause("R", "order", below)),
        Claim("A3", "the mean of 64 draws makes more than half of the order, and does so beside R: "
              "what R leaves out, such as kinks, makes it",
              cause("E, 64 draws", "order", beside="R")),
        Claim("A4", "R and the draws without what R leaves out make more than half of the order, "
              "and do so beside R: the draws make it", cause("R + draws", "order", beside="R")),
        Claim("A5", "R makes more than half of what noise does to the trace",
              cause("R", "log trace")),
        Claim("A6", "CIFAR-10: R makes more than half of what noise does to the margin",
              cause("R", "margin", set_="CIFAR-10")),
        Claim("A7", "CIFAR-10: the draws raise the test loss (noise above the mean of 16 draws by "
              ".01), as Camuto et al. 2021 say of the implicit effect", draws_hurt),
    ],
    departures=[
        "no paper has this figure; a lead was that nets trained on R show Fig. 4's spectrum and "
        "not Fig. 5's order; the bounds were written before any run",
        "arms are compared after as many steps, not at equal training loss",
        "R of the CONV is from one random column",
        "quick: width 64, 500 steps, without the means of many draws, no CIFAR-10",
    ],
    seeds={"smoke": 2, "quick": 5, "decisive": 5, "paper": 5},
    cost={"smoke": 0.2, "quick": 0.6, "decisive": 300, "paper": 20_000},
)  # fmt: skip
