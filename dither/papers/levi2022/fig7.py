"""Other laws of the noise.   Levi et al. 2022, Fig. 7, App. C.2

As Fig. 2, with ε two-Gaussian (peaks at ± σ) or uniform in (−σ, σ); dashed the nets of Fig. 2, with
Gaussian ε. Claim: the law hardly matters, but for the two-Gaussian in the catapult phase.

At equal σ the uniform law has a third of the Gaussian's variance. So what differs may be the law or
the variance. The last column asks which, and is not in the paper: ε is uniform in (−√3 σ, √3 σ),
which has the Gaussian's variance.
"""

import math
from typing import Any

from dither.lab import Claim, Figure, Run, Table, Verdict
from dither.lab.rule import decide, near
from dither.noise import two_gaussian, uniform
from dither.papers import style
from dither.papers.levi2022.looks import Corrupted
from dither.papers.levi2022.methods import (
    AT_SCALE,
    COLOURS,
    DEPARTURES,
    LEVELS,
    NINR,
    RULED,
    SCAN,
    SEEDS,
    SIGMA,
    Setting,
    curve,
    run,
    unlearnt,
)

THEIRS, WIDE = ("two-Gaussian", "uniform"), "uniform of √3 σ"
LAWS = {  # the law, and its σ over the Gaussian's
    "two-Gaussian": (two_gaussian, 1.0),
    "uniform": (uniform, 1.0),
    WIDE: (uniform, math.sqrt(1 / uniform.variance)),
}
DECAYS = ("in decay", "full decay")
POINTS = 0.03  # "within 3 points"
HALVES = {"s ≤ .4": slice(0, 5), "s = .5 … .8": slice(5, 9)}  # of LEVELS


def runs(fc: Setting, cnn: Setting, catapults: str = "FC CNN") -> dict[str, Run]:
    """The runs with each law. catapults: the nets that are trained in the catapult phase too."""
    by_label = {}
    for setting in (fc, cnn):
        net = setting.net
        by_label[f"{net} none"] = run(setting, "none")
        for method in NINR if net in catapults.split() else DECAYS:
            sigma = SCAN[net].get(method, SIGMA[net][method])
            by_label[f"{net} {method}, Gaussian"] = run(setting, method, sigma=sigma)
            for name, (law, times) in LAWS.items():
                how: Any = {"sigma": times * sigma, "law": law, "watch": (Corrupted(),)}
                by_label[f"{net} {method}, {name}"] = run(setting, method, **how)
    return by_label


def same(net: str, methods: tuple[str, ...], laws: tuple[str, ...] = THEIRS):
    """L16: each half of a curve is within 3 points of the Gaussian's, in the mean over its s."""

    def check(t: Table) -> Verdict:
        seen = {(m, x): curve(t, f"{net} {m}, {x}") for m in methods for x in (*laws, "Gaussian")}
        asked = [
            near(f"{m}, {law} − Gaussian, {half}", seen[m, law][:, at].mean(1),
                 seen[m, "Gaussian"][:, at].mean(1), within=POINTS)
            for m in methods for law in laws for half, at in HALVES.items()
        ]  # fmt: skip
        gaps = {
            f"{m}, {law}: largest gap of the mean curves, s < 1":
                abs((seen[m, law] - seen[m, "Gaussian"]).mean(0))[:-1].max()
            for m in methods for law in laws
        }  # fmt: skip
        return decide(
            *asked, unless=unlearnt(t, [f"{net} {m}, {x}" for m, x in seen]), numbers=gaps
        )

    return check


def drawn(t: Table, net: str) -> list[str]:
    """The methods that a net was trained with under every law."""
    laws = (*LAWS, "Gaussian")
    return [m for m in NINR if {f"{net} {m}, {law}" for law in laws} <= set(t.there)]


def plot(t: Table):
    """A row for each net. A net without runs has none."""
    nets = style.some([net for net in ("FC", "CNN") if drawn(t, net)])
    picture, axes = style.grid(len(nets), len(LAWS), width=10.5)
    for row, net in zip(axes, nets, strict=True):
        for ax, law in zip(row, LAWS, strict=True):
            for m in drawn(t, net):
                style.band(ax, LEVELS, curve(t, f"{net} {m}, {law}"), COLOURS[m], label=m)
                gaussian = curve(t, f"{net} {m}, Gaussian").mean(0)
                ax.plot(LEVELS, gaussian, "--", color=COLOURS[m], lw=1)
            ax.set(ylim=(0, 1), title=f"{net}, {law}")
        row[0].set_ylabel("test accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("corruption s")
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles += axes[0, 0].plot([], [], "--", color=style.GREY, lw=1)
    style.legend(
        picture, handles=handles, labels=[*names, "Gaussian"], loc="outside upper center", ncols=5
    )
    return picture


CATAPULTS = tuple(m for m in NINR if m not in DECAYS)
ALIKE = "are within 3 points of the Gaussian's, in the mean over s ≤ .4 and over s = .5 … .8"
figure = Figure(
    runs,
    plot,
    smoke=AT_SCALE["smoke"],
    quick={**AT_SCALE["quick"], "catapults": "FC"},
    decisive={**AT_SCALE["decisive"], "catapults": "FC"},
    paper=AT_SCALE["paper"],
    claims=[
        Claim("L16", f"FC: decay curves {ALIKE}", same("FC", DECAYS)),
        Claim("L16 CNN", f"CNN: decay curves {ALIKE}", same("CNN", DECAYS)),
        Claim("L16 catapult", f"FC: catapult curves {ALIKE}; the uniform law alone, as the paper "
              "excepts the two-Gaussian", same("FC", CATAPULTS, ("uniform",))),
        *(
            Claim(f"L16 variance {net}", f"not in the paper: {net}: with uniform noise of the "
                  f"Gaussian's variance (√3 σ) decay curves {ALIKE}", same(net, DECAYS, (WIDE,)))
            for net in ("FC", "CNN")
        ),
    ],
    departures=[
        *DEPARTURES,
        RULED,
        "changed after first results: L16 takes means over two ranges of s (had been the largest "
        "gap of mean curves, which grows with the number of levels); 'L16 catapult' leaves out the "
        "two-Gaussian law, as the text does",
        "the two peaks' width is not given: 0.1 σ; the paper calls the law asymmetric, it is not",
        f"FC's in-catapult has the σ = {SCAN['FC']['in catapult']:g} of the scan of phases (on "
        "logits the paper's diverges)",
        "not in the paper: the uniform law at √3 σ",
        "decisive: the CNN in the decay phase alone",
        "quick: the CNN in the decay phase alone",
        "a run that diverged counts as chance, 10 %",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 4.3, "decisive": 375, "paper": 4000},
)  # fmt: skip
