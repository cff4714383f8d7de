"""Other laws of the noise.   Levi et al. 2022, Fig. 7, App. C.2

As Fig. 2, with ε two-Gaussian (peaks at ± σ) or uniform in (−σ, σ); dashed the nets of Fig. 2, with
Gaussian ε. At equal σ the uniform law has a third of the variance. Claim: the law hardly matters,
but for the two-Gaussian in the catapult phase.
"""

import numpy as np

from dither.lab import Claim, Figure, Run, Table
from dither.noise import two_gaussian, uniform
from dither.papers import style
from dither.papers.levi2022.methods import (
    COLOURS,
    DEPARTURES,
    LEVELS,
    NINR,
    SCALES,
    SCAN,
    Setting,
    curve,
    judged,
    run,
    share_diverged,
)

LAWS = {"two-Gaussian": two_gaussian, "uniform": uniform}
DECAYS = ("in decay", "full decay")
POINTS = 0.03  # "within 3 points"


def runs(fc: Setting, cnn: Setting, catapults: str = "FC CNN") -> dict[str, Run]:
    """`catapults`: the nets whose catapult phase is trained too."""
    found = {}
    for setting in (fc, cnn):
        net = setting.net
        found[f"{net} none"] = run(setting, "none")
        for method in NINR if net in catapults.split() else DECAYS:
            sigma = SCAN[net].get(method)  # None: the paper's
            found[f"{net} {method}, Gaussian"] = run(setting, method, sigma=sigma)
            for name, law in LAWS.items():
                found[f"{net} {method}, {name}"] = run(setting, method, sigma=sigma, law=law)
    return found


def gap(t: Table, net: str, method: str, law: str) -> float:
    """The largest difference of the mean curves over s < 1, where there is something to tell."""
    ours, gaussian = (curve(t, f"{net} {method}, {name}").mean(0) for name in (law, "Gaussian"))
    return float(np.abs(ours - gaussian)[:-1].max())


def same(net: str, methods: tuple[str, ...]):
    def check(t: Table):
        gaps = {f"{m}, {law}: largest gap": gap(t, net, m, law) for m in methods for law in LAWS}
        labels = [f"{net} {m}, {law}" for m in methods for law in (*LAWS, "Gaussian")]
        lost = {
            f"{b}: share diverged": share_diverged(t, b) for b in labels if share_diverged(t, b)
        }
        spread = {
            f"{m}, Gaussian: largest sd over seeds": float(
                curve(t, f"{net} {m}, Gaussian").std(0).max()
            )
            for m in methods
        }
        return max(gaps.values()) <= POINTS, {**gaps, **spread, **lost}

    return judged(net, check)


def plot(t: Table):
    picture, axes = style.grid(2, 2)
    for row, net in zip(axes, ("FC", "CNN"), strict=True):
        for ax, law in zip(row, LAWS, strict=True):
            for m in (m for m in NINR if f"{net} {m}, {law}" in t.labels):
                style.band(ax, LEVELS, curve(t, f"{net} {m}, {law}"), COLOURS[m], label=m)
                gaussian = curve(t, f"{net} {m}, Gaussian").mean(0)
                ax.plot(LEVELS, gaussian, "--", color=COLOURS[m], lw=1)
            ax.set(ylim=(0, 1), title=f"{net}, {law}")
        row[0].set_ylabel("test accuracy")
    for ax in axes[1]:
        ax.set_xlabel("corruption s")
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles += axes[0, 0].plot([], [], "--", color=style.GREY, lw=1)
    style.legend(
        picture, handles=handles, labels=[*names, "Gaussian"], loc="outside upper center", ncols=5
    )
    return picture


CATAPULTS = tuple(m for m in NINR if m not in DECAYS)
figure = Figure(
    runs,
    plot,
    smoke=SCALES["smoke"],
    quick={**SCALES["quick"], "catapults": "FC"},
    paper=SCALES["paper"],
    claims=[
        Claim("L16", "FC: decay curves within 3 points of the Gaussian's", same("FC", DECAYS)),
        Claim("L16 CNN", "CNN: decay curves within 3 points of the Gaussian's",
              same("CNN", DECAYS)),
        Claim("L16 catapult", "FC: the same for the catapult phase (the paper excepts the "
              "two-Gaussian)", same("FC", CATAPULTS)),
    ],
    departures=[
        *DEPARTURES,
        "the two peaks' width is not given: 0.1 σ; the paper calls the law asymmetric, it is not",
        f"FC's in-catapult has the σ = {SCAN['FC']['in catapult']:g} of the scan of phases (on "
        "logits the paper's diverges)",
        "quick: the CNN in the decay phase alone",
        "bands: ± 1 standard deviation; a run that diverged counts as chance, 10 %",
    ],
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 4, "paper": 4000},
)  # fmt: skip
