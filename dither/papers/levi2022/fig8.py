"""Other optimisers.   Levi et al. 2022, Fig. 8 and Table 3, App. C.3

As Fig. 2, with Adam (η = 0.01) and RMSprop (η = 0.0001 for FC, 0.001 for CNN), both with Keras'
ε = 1e-7, and the σ of Table 3: Fig. 2's times √(0.05/η), as a boundary 2/(ησ²λ) would have it for
plain gradient descent. Optimisers that divide by the gradient's size know no such boundary.
"""

from dataclasses import replace
from typing import Any

from dither.lab import Adam, Claim, Figure, RMSprop, Run, Table, Verdict
from dither.lab.rule import decide, not_below
from dither.papers import style
from dither.papers.ends import POINT
from dither.papers.levi2022.looks import Corrupted
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BASELINES,
    DEPARTURES,
    NINR,
    RULED,
    Setting,
    large,
    lines,
    run,
    shown,
    unlearnt,
)
from dither.papers.levi2022.printed import TABLE3

SHOWN = (*BASELINES, *NINR)
DECAYS = ("in decay", "full decay")
FEWER = {"FC": ("none", *NINR), "CNN": ("none", *DECAYS)}
OPTIMISERS = {
    "Adam": {"FC": Adam(0.01, eps=1e-7), "CNN": Adam(0.01, eps=1e-7)},
    "RMSprop": {"FC": RMSprop(0.0001), "CNN": RMSprop(0.001)},
}


def runs(
    fc: Setting, cnn: Setting, fewer: bool = False, methods: tuple[str, ...] = SHOWN
) -> dict[str, Run]:
    by_label = {}
    for name, chosen in OPTIMISERS.items():
        for setting in (fc, cnn):
            for m in FEWER[setting.net] if fewer else methods:
                how: Any = {"optimiser": chosen[setting.net], "watch": (Corrupted(),)}
                sigma = TABLE3[name][setting.net].get(m)
                by_label[f"{setting.net} {m}, {name}"] = run(setting, m, sigma=sigma, **how)
    return by_label


def above(net: str, name: str, methods: tuple[str, ...]):
    """L17 for one net and one optimiser: the difference to none is above −1 point."""

    def check(t: Table) -> Verdict:
        ours, none = [f"{net} {m}, {name}" for m in methods], f"{net} none, {name}"
        if missing := [label for label in ours if label not in t.there]:
            return None, {"why": f"not trained at this scale: {', '.join(missing)}"}
        plain = large(t, none)
        asked = [not_below(f"{m} − none", large(t, m), plain, within=POINT) for m in ours]
        every = [none, *ours]
        return decide(*asked, unless=unlearnt(t, every), numbers=shown(t, every, large))

    return check


def plot(t: Table):
    picture, axes = style.grid(2, 2)
    for row, net in zip(axes, ("FC", "CNN"), strict=True):
        for ax, name in zip(row, OPTIMISERS, strict=True):
            labels = {f"{net} {m}, {name}": m for m in SHOWN}
            lines(ax, t, {label: m for label, m in labels.items() if label in t.labels})
            ax.set_title(f"{net}, {name}")
        row[0].set_ylabel("test accuracy")
    for ax in axes[1]:
        ax.set_xlabel("corruption s")
    handles, names = axes[0, 0].get_legend_handles_labels()
    style.legend(picture, handles=handles, labels=names, loc="outside upper center", ncols=4)
    return picture


def short(fc: Setting, cnn: Setting) -> dict[str, Any]:
    """Fewer epochs and methods, since no other figure trains these nets."""
    return {"fc": replace(fc, epochs=30), "cnn": replace(cnn, epochs=13), "fewer": True}


def claimed(fc: Setting, cnn: Setting) -> dict[str, Any]:
    """The methods of the claims, for as long as Adam and RMSprop need."""
    methods = ("none", *NINR)
    return {"fc": replace(fc, epochs=100), "cnn": replace(cnn, epochs=40), "methods": methods}


figure = Figure(
    runs,
    plot,
    smoke=AT_SCALE["smoke"],
    quick=short(**AT_SCALE["quick"]),
    decisive=claimed(**AT_SCALE["decisive"]),
    paper=AT_SCALE["paper"],
    claims=[
        *(
            Claim(
                f"L17 {net} {name} {phase}",
                f"{net}, {name}: in- and full-NINR, {phase}, is not 1 point below none at large "
                "corruption",
                above(net, name, tuple(m for m in NINR if m.endswith(phase))),
            )
            for net in ("FC", "CNN")
            for name in OPTIMISERS
            for phase in ("decay", "catapult")
        ),
    ],
    departures=[
        *DEPARTURES,
        RULED,
        "Table 3's σ of FC's full-nodes are unreadable in part: 366.3 and 36.6 are inferred",
        "weight decay is L2 for both optimisers: it is part of the gradient they rescale",
        "decisive: at most 100 epochs (FC) or 40 (CNN), without L2 and dropout",
        "quick: half of Fig. 2's epochs (FC 30), a third less (CNN 13), without L2 and "
        "dropout; the CNN in the decay phase alone",
        "a run that diverged counts as chance, 10 %",
    ],
    seeds={"smoke": 2, "quick": 5, "decisive": 5, "paper": 5},
    needs=("fashion-mnist",),
    cost={"smoke": 0.3, "quick": 1.6, "decisive": 250, "paper": 4000},
)
