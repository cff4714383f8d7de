"""How nodes make a net robust: the local Hessian along training.   After Levi et al. 2022, §2.1

R₂ = ½ W_NIᵀ ⟨ε² H⟩ W_NI "works to reduce the eigenvalues" of the local Hessian H, and a corrupted
image meets the same H (eq. 7): this is the paper's explanation of Fig. 2, and it shows no picture
of it. Here are λ_max and tr H at the image and at the first layer's pre-activation, of the FC nets
of Fig. 2, on training images with the noise off; and of the in-nodes the sizes of R₁ (its standard
deviation on a batch) and of R₂ (its mean). The text says that in the decay phase W_NI falls until
R₂ ~ R₁ and then follows R₁, a random walk.
"""

import numpy as np

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import above, below, decide, near
from dither.papers import style
from dither.papers.ends import diverged
from dither.papers.levi2022.methods import (
    COLOURS,
    DASHED,
    DEPARTURES,
    SEEDS,
    SEEN,
    Setting,
    compared,
    in_phase,
    unlearnt,
)

SHOWN = ("none", "L2", "dropout", "in decay", "in catapult", "full decay", "CDT .4")
LOWER = -float(np.log(0.9))  # the logarithm of a ratio that counts: 10 % less
ALIKE = 3.0  # the factor within which two sizes are "~"
LOOKED = {
    "top at input": "$\\lambda_{max}$ of the local Hessian at the image",
    "top at node": "$\\lambda_{max}$ at the first layer's pre-activation",
}


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return {label: run for label, run in compared(fc, SHOWN).items() if label in labels().values()}


def labels() -> dict[str, str]:
    return {m: in_phase("FC", m) for m in SHOWN}


def log_ratio(t: Table, method: str, quantity: str) -> Array:
    """The logarithm of a method's last value over that of none, [S]."""
    ours, none = (np.log(t.last(labels()[m], quantity)) for m in (method, "none"))
    return ours - none


def lowers(methods: tuple[str, ...], quantity: str):
    """The quantity ends below none's, by more than `LOWER` of its logarithm."""

    def check(t: Table) -> Verdict:
        asked = [
            below(f"ln of {quantity}, {m} over none", log_ratio(t, m, quantity), by=LOWER)
            for m in methods
        ]
        return decide(*asked, unless=unlearnt(t, [labels()[m] for m in (*methods, "none")]))

    return check


def balance(t: Table, label: str) -> tuple[Array, Array]:
    """log₁₀ of R₂/R₁ at the first and at the last look, [S] each."""
    first, last = (np.log10(read(label, "R2") / read(label, "R1")) for read in (t.first, t.last))
    return first, last


def decays_to_the_walk(t: Table) -> Verdict:
    label = "FC in decay"
    first, last = balance(t, label)
    return decide(
        above("log₁₀ of R₂/R₁ at the start", first),
        near("log₁₀ of R₂/R₁ at the end", last, within=float(np.log10(ALIKE))),
        unless=unlearnt(t, [label]),
    )


def drawn(ax, t: Table, label: str, quantity: str, look: dict, name: str) -> None:
    """A line for each seed, as they end at different steps."""
    steps, values = t.series(label, quantity)
    for i, row in enumerate(values):
        there = np.isfinite(row) & (row > 0)
        ax.plot(
            steps[there],
            row[there],
            lw=1,
            marker=".",
            ms=3,
            alpha=0.8,
            label=name if i == 0 else None,
            **look,
        )


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.4)
    runs = {m: label for m, label in labels().items() if label in t.there}
    for ax, (quantity, title) in zip(axes[0], LOOKED.items(), strict=True):
        for m, label in runs.items():
            if not diverged(t, label).all():
                look = {"color": COLOURS[m], "ls": "--" if m in DASHED else "-"}
                drawn(ax, t, label, quantity, look, m)
        ax.set(yscale="log", title=title)
    for ax, m in zip(axes[1], ("in decay", "in catapult"), strict=True):
        label = labels()[m]
        if label not in t.there:
            ax.axis("off")
            continue
        for quantity, how in (("R1", "--"), ("R2", "-")):
            drawn(ax, t, label, quantity, {"color": COLOURS[m], "ls": how}, quantity)
        ax.set(yscale="log", title=f"{m}: R$_1$ dashed, R$_2$ full", xlabel="step")
    handles, names = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=names, loc="outside upper center", ncols=4)
    return picture


figure = Figure(
    runs,
    plot,
    **SEEN,
    claims=[
        Claim("L25", "nodes on the input (decay; catapult at the σ of the scan) lower λ_max of the "
              "local Hessian at the image, by more than 10 %",
              lowers(("in decay", "in catapult"), "top at input")),
        Claim("L25 full", "so do nodes on every layer in the decay phase",
              lowers(("full decay",), "top at input")),
        Claim("L25 CDT", "so does training on corrupted images",
              lowers(("CDT .4",), "top at input")),
        Claim("L25 node", "nodes on the input lower λ_max at their own place, the first "
              "pre-activation, by more than 10 %",
              lowers(("in decay", "in catapult"), "top at node")),
        Claim("L26", "decay phase: R₂ is above R₁ at the start, and within a factor 3 of it at the "
              "end", decays_to_the_walk),
    ],
    departures=[
        *DEPARTURES,
        "the paper says this and shows no figure; λ_max is of the Gauss–Newton part of the local "
        "Hessian, which is all of it in a ReLU net away from kinks",
        "512 training images are looked at, every 5 epochs",
        "quick: 128 training images are looked at, every 10 epochs",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.1, "quick": 1.3, "decisive": 240, "paper": 3000},
)  # fmt: skip
