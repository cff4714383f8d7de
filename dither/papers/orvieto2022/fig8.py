"""Figure 8: noise in a shallow and wide network.   Orvieto et al. 2022, Fig. 8, App. F.1

MLP2: three hidden layers of 5000, σ = .1, η = .005, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

Full noise has 19 times the weights' variance, and layer-wise noise 8 times that, in one layer.

At the decisive scale the net is trained at several widths with the σ of MLP2 and one rate. At each
width both noises have the same R, so that layer-wise − full shows what full noise has beside R. R
itself, and what GD learns, change along the ladder.
"""

from dataclasses import replace

import numpy as np

from dither.lab import Array, Claim, Run, Table, Verdict
from dither.lab.rule import above, decide
from dither.papers import style
from dither.papers.ends import ACCURACY, POINT, end, gains
from dither.papers.orvieto2022 import mlps
from dither.papers.orvieto2022.mlps import NETS, Scale
from dither.papers.orvieto2022.schemes import (
    COLOURS,
    FULL,
    GD,
    LAYER,
    SCHEMES,
    TITLES,
    TRACE,
    schemes,
    unlearnt,
)

MLP2 = "MLP2"
WIDTHS = (250, 500, 1000, 2000)


def runs(widths: tuple[int, ...] = (), **scales: Scale) -> dict[str, Run]:
    """MLP2=Scale(…). widths: train it at each of them, with its own σ and rate."""
    if not widths:
        return mlps.runs(**scales)
    by_label: dict[str, Run] = {}
    for width in widths:
        net = replace(NETS[MLP2], width=width)
        plain = mlps.plain(net, scales[MLP2], "cosine")
        each, labels = schemes(plain, mlps.noise(net, scales[MLP2])), of_width(width)
        by_label |= {labels[scheme]: run for scheme, run in each.items()}
    return by_label


def of_width(width: int) -> dict[str, str]:
    """{scheme: the label of its run}."""
    return mlps.named(MLP2, "cosine", width)


def ladder(t: Table) -> list[int]:
    """The widths among the runs; none if the net was trained at one width alone."""
    there = [w for w in WIDTHS if of_width(w)[GD] in (*t.there, *t.missing)]
    return there if len(there) > 1 else []


def gain(t: Table, scheme: str, width: int) -> Array:
    """The accuracy of a scheme over GD's, [S]."""
    of = of_width(width)
    return gains(t, ACCURACY, of[scheme], of[GD])


def along(t: Table) -> Verdict:
    """From the narrowest to the widest net layer-wise noise gains a point on full noise, which has
    the same R.
    """
    widths = ladder(t)
    if not widths:
        return None, {"why": "this scale trains one width"}
    first, last = widths[0], widths[-1]
    near, far = (gain(t, LAYER, w) - gain(t, FULL, w) for w in (first, last))
    asked = above(f"layer-wise − full: {last} − {first} units", far, near, by=POINT)
    known = [w for w in widths if {*of_width(w).values()} <= {*t.there}]
    numbers = {f"{s} − GD, {w} units": gain(t, s, w) for s in (FULL, LAYER) for w in known}
    why = unlearnt(t, [*of_width(first).values(), of_width(last)[GD]])
    return decide(asked, unless=why, numbers=numbers)


def plot(t: Table):
    """Along the ladder: accuracy and trace at the end against the width."""
    if not (widths := ladder(t)):
        return mlps.plot(t, MLP2)
    picture, axes = style.grid(1, 2, height=3.6)
    for ax, quantity in zip(axes[0], (ACCURACY, TRACE), strict=True):
        for scheme in SCHEMES:
            known = [w for w in widths if of_width(w)[scheme] in t.there]
            ends = np.stack([end(t, of_width(w)[scheme], quantity) for w in known], 1)
            style.dots(ax, known, ends, COLOURS[scheme], label=scheme, fmt="o-")
        ax.set(xscale="log", xlabel="units of a hidden layer", title=f"{TITLES[quantity]}, the end")
        ax.set_xticks(widths, [str(w) for w in widths])
        ax.set_xticks([], minor=True)
    style.logarithmic(axes[0, 1], "y")
    style.legend(axes[0, 0])
    return picture


base = mlps.figure(MLP2)
figure = replace(
    base,
    runs=runs,
    plot=plot,
    decisive={"widths": WIDTHS, MLP2: Scale(None, 2000, 20, limit=512, precision="bf16", slower=4)},
    claims=[
        *base.claims,
        Claim("O14 ladder", f"from {WIDTHS[0]} to {WIDTHS[-1]} units at one σ layer-wise noise's "
              "lead over full noise grows by more than a point of test accuracy (ours)", along),
    ],
    departures=[
        *base.departures,
        "decisive: widths of 250, 500, 1000 and 2000 at the σ of the net of 5000 and 4 times its "
        "rate, in bf16; O14 and the traces are judged at the largest; traces on 512 of the 1024 "
        "images",
        "changed before any run of the decisive scale: the rate (at the paper's, 2000 steps are "
        "few for a net with noise), and 'O14 ladder', which is of the two noises (had been of each "
        "against GD: R grows along the ladder, and may hurt by itself)",
    ],
    cost={**base.cost, "decisive": 250},
)  # fmt: skip
