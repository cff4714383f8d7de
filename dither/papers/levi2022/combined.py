"""Nodes together with other regularisation.   After Levi et al. 2022, App. C.1

The text leaves open whether noise nodes combine with other schemes. Here are the nets of Fig. 2
with in-nodes in the decay phase alone, with dropout .5 or L2 alone, and with both at once: test
accuracy against the corruption s of eq. 8.
"""

from dataclasses import replace

from dither.lab import Claim, Figure, Run, Table, Verdict
from dither.lab.rule import decide, not_below
from dither.papers import style
from dither.papers.ends import POINT
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BASELINES,
    COLOURS,
    DEPARTURES,
    LEVELS,
    SEEDS,
    Setting,
    curve,
    large,
    run,
    shown,
    unlearnt,
)

NODE = "in decay"
WITH = ("dropout", "L2")


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    by_label = {}
    for setting in (fc, cnn):
        each = {m: run(setting, m) for m in (*BASELINES, NODE)}
        nodes, noise = each[NODE], setting.dropout()
        each[both("dropout")] = replace(nodes, noise=(*nodes.noise, *noise.items()))
        each[both("L2")] = replace(nodes, optimiser=each["L2"].optimiser)
        by_label |= {f"{setting.net} {m}": one for m, one in each.items()}
    return by_label


def both(other: str) -> str:
    return f"{NODE} + {other}"


def as_good(net: str, other: str):
    """The combination is not a point below the node or the other scheme, hence not below the better
    of the two.
    """

    def check(t: Table) -> Verdict:
        ours, parts = f"{net} {both(other)}", [f"{net} {m}" for m in (NODE, other)]
        asked = [
            not_below(f"{both(other)} − {m}", large(t, ours), large(t, m), within=POINT)
            for m in parts
        ]
        every = [ours, *parts, f"{net} none"]
        return decide(*asked, unless=unlearnt(t, every), numbers=shown(t, every, large))

    return check


def plot(t: Table):
    """A column for each net, a row for each scheme: dashed the two alone, full together."""
    picture, axes = style.grid(2, 2)
    for row, other in zip(axes, WITH, strict=True):
        for ax, net in zip(row, ("FC", "CNN"), strict=True):
            looks = {"none": (style.BLACK, ":"), other: (style.GREY, "--"),
                     NODE: (COLOURS[NODE], "--"), both(other): (style.RED, "-")}  # fmt: skip
            for m, (colour, dash) in looks.items():
                style.band(ax, LEVELS, curve(t, f"{net} {m}"), colour, ls=dash, label=m)
            ax.set(ylim=(0, 1), title=f"{net}, {other}")
        row[0].set_ylabel("test accuracy")
        style.legend(row[0])
    for ax in axes[1]:
        ax.set_xlabel("corruption s")
    return picture


figure = Figure(
    runs,
    plot,
    **AT_SCALE,
    claims=[
        Claim(f"L27 {other}{tail}", f"{net}: in-NINR decay with {other} is not 1 point below the "
              "better of the two alone at large corruption (mean over s = .5 … .8)",
              as_good(net, other))
        for net, tail in (("FC", ""), ("CNN", " CNN")) for other in WITH
    ],
    departures=[
        *DEPARTURES,
        "the paper leaves this open and shows no figure; the claims are ours, written before any "
        "run",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.1, "quick": 2.5, "decisive": 230, "paper": 3000},
)  # fmt: skip
