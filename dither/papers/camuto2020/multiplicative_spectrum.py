"""Noise in proportion to the activations: which frequencies are learnt.   Camuto et al. 2020, eq. 6

What Fig. 4 and 5 look at, with h∘(1 + σ ε) in place of h + σ ε on the hidden activations: the sum
of ten sines, five hidden layers of 256 ReLU units, Adam, full batch. ε is Gaussian or dropout's, of
the same variance σ² = .25 (p = .2), so that both have one regulariser,

    R = ½ σ² E_t Σ_k ‖∂f/∂h_k ∘ h_k‖²

on which a fourth network is trained without noise. Unlike eq. 11 it can't be had smaller for the
same function by larger activations and smaller weights after them: a layer scaled by c with the
next one by 1/c leaves it as it is. Above: amplitude of each frequency (across) as training goes on
(down), mean over runs. Middle: the target and the function learnt, of the first run. Below: the
amplitudes at the end, and ‖W̃_k‖_F and Tr(W_k) of the square layers at the end.
"""

from dataclasses import replace
from typing import Any

from dither.lab import Claim, Figure, Run, Table
from dither.papers import style
from dither.papers.camuto2020 import fig4, fig5, sinusoids
from dither.papers.camuto2020.multiplicative import MEANING
from dither.papers.camuto2020.multiplicative_training import TRAINED_AT
from dither.papers.camuto2020.remainders import noise
from dither.papers.camuto2020.sinusoids import FREQUENCIES, SQUARE, spectra

COLOURS = {
    "baseline": style.BLACK,
    "Gaussian": style.BLUE,
    "dropout": style.GREEN,
    "R": style.ORANGE,
}


def runs(width: int, steps: int, rate: float, explicit: bool = True) -> dict[str, Run]:
    """The runs. The baseline is that of Fig. 4. explicit: train on R too."""
    base = sinusoids.baseline(width, steps, rate)
    sites = [f"fc{k}:in" for k in range(1, sinusoids.HIDDEN + 1)]
    by_label = {"baseline": base}
    for of, name in MEANING.items():
        by_label[name] = replace(base, noise=dict.fromkeys(sites, noise(TRAINED_AT, of)))
    if explicit:
        by_label["R"] = replace(by_label["Gaussian"], objective="explicit")
    return by_label


def plot(t: Table) -> Any:
    colours = {label: colour for label, colour in COLOURS.items() if label in t.there}
    style.some(colours, least=3)
    picture, axes = style.grid(3, len(colours), width=2.75 * len(colours), height=2.7)
    for column, (label, colour) in enumerate(colours.items()):
        image = fig4.heat(axes[0, column], t, label)
        fig4.function(axes[1, column], t, label, colour)
    axes[0, 0].set_ylabel("thousand steps")
    axes[1, 0].set_ylabel("f(t)")
    picture.colorbar(image, ax=axes[0, -1], label="amplitude")
    style.legend(
        axes[1, 0], loc="lower left", ncols=2, borderpad=0, columnspacing=1, handlelength=1.2
    )
    place = axes[2, 0].get_gridspec()
    for ax in axes[2, :-2]:
        ax.remove()
    ends = picture.add_subplot(place[2, :-2])
    for i, (label, colour) in enumerate(colours.items()):
        dash = "--" if label == "R" else "-"
        end = spectra(t, label)[1][:, -1]
        style.band(ends, FREQUENCIES, end, colour, label=label, ls=dash, marker="o", ms=3)
        for ax, quantity in zip(axes[2, -2:], ("norm", "trace"), strict=True):
            at = [k + 0.1 * (i - 1.5) for k in SQUARE]
            style.dots(ax, at, fig5.ends(t, label, quantity), colour, ms=5)
    ends.axhline(fig4.FAINT, color=style.GREY, lw=1, ls=":")
    ends.set(ylim=(-0.05, 1.4), xlabel="frequency (Hz)", ylabel="amplitude at the end")
    style.legend(ends, loc="upper right", ncols=1 if len(colours) < 4 else 4, fontsize=9)
    for ax, name in zip(axes[2, -2:], (fig5.NORMS["norm"], "Tr(W$_k$)"), strict=True):
        ax.set(xlabel="k", xticks=SQUARE, title=f"{name} at the end")
    return picture


def of_both(id: str, text: str, check: Any) -> list[Claim]:
    return [Claim(f"{id} {name}", text.format(name), check(name)) for name in MEANING.values()]


figure = Figure(
    runs,
    plot,
    smoke=sinusoids.SMOKE,
    quick=sinusoids.QUICK | {"explicit": False},
    paper=sinusoids.PAPER,
    claims=[
        *of_both(
            "M8",
            "{}: at every frequency above the first the amplitude ends below the baseline's",
            fig4.lower,
        ),
        *of_both(
            "M8 notebook",
            "{}: amplitudes fall with frequency (rank correlation below −.9), those from 35 Hz on "
            "stay below .2",
            fig4.low_pass,
        ),
        *of_both("M8 lowest", "{}: 5 Hz is learnt (amplitude ≥ .5)", fig4.learns_lowest),
        *of_both(
            "M9",
            "R's spectrum is closer to {}'s than to the baseline's",
            lambda name: fig4.closer("R", name),
        ),
        Claim(
            "M9 laws",
            "dropout's spectrum is closer to Gaussian's than to the baseline's",
            fig4.closer("dropout", "Gaussian"),
        ),
        *of_both("M10", "{}: ‖W̃_k‖₂ falls with k, by more than 5 % a layer", fig5.norms_fall),
    ],
    departures=[
        "no figure of the paper: eq. 6 is in its text alone; the claims are those of Fig. 4 and 5, "
        "and changed with them after first results",
        "σ² = .25 (p = .2), as in the other figures of this noise, on the hidden activations only: "
        "in proportion to t it would be none at t = 0",
        *sinusoids.COMMON,
        f"{sinusoids.REDUCED}: the baseline is not trained to its end",
        "quick: R is not trained: after 3000 steps five seeds cannot tell M9 (interval ± .6 about "
        "0)",
    ],
    seeds=sinusoids.SEEDS,
    cost={"smoke": 0.2, "quick": 1.3, "paper": 300},
)
