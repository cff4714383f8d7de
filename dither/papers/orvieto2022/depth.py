"""Figure 1 over depth: full noise explodes at every depth, layer-wise noise at none.

Orvieto et al. 2022, §4, App. E.1.1 and E.2; the paper has no figure of it.

Linear networks of M = 2 … 8 matrices with hidden layers of d units, at initialisation, Fig. 1's
data. All matrices get noise of standard deviation σ ("full"), or one, chosen at random, gets √M σ
("layer-wise"). Both have one R. The mean loss is exact, by the second moments of the layers,

    S_0 = XᵀX,   S_j = W_j S_{j−1} W_jᵀ + σ_j² tr(S_{j−1}) I,
    R_σ = (tr S_M − 2⟨Y, Φ⟩ + ‖Y‖²)/2n,

so nothing is drawn but data and weights. Under full noise R_σ − R_eff is a polynomial in d with
terms up to σ^{2M} d^{M−1} (App. E.1.1): its slope is 1 at least. With noise on one matrix the
network is linear in what is drawn, and R_σ is R_eff.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

import dither
from dither.lab import MLP, Array, Claim, Data, Figure, Progress, Table, Task, Verdict
from dither.lab.rule import decide, exact
from dither.papers import style

SIGMA = 0.1
FROM = 100  # units; as in Fig. 1, slopes are taken from here on
LEAST = 0.9  # of a slope: Fig. 1's 1 ± 0.1, and a greater one explodes too
NEAR = 1e-6  # of R, for what is 0 but for rounding
COLOURS = (style.BLACK, style.BLUE, style.SKY, style.GREEN, style.ORANGE, style.RED, style.PURPLE)


def moment(weights: Sequence[Tensor], X: Tensor, sigmas: Sequence[float]) -> float:
    """E ‖Φ(w + noise)‖² = tr S_M, with noise of σ_j on W_j; X [n, d₀]."""
    S = X.T @ X
    for W, sigma in zip(weights, sigmas, strict=True):
        S = W @ S @ W.T + sigma**2 * S.trace() * torch.eye(len(W), dtype=W.dtype)
    return float(S.trace())


def depths(
    seed: int, progress: Progress, *, matrices: int, widths: tuple[int, ...], sigma: float
) -> Iterator[tuple[float, str, float]]:
    """For each width R, and R_σ − R_eff of both schemes."""
    data = Data("planted", train=40, features=10, planted=2).load(seed)
    X, Y = data.x_train.double(), data.y_train.double()
    for done, d in enumerate(widths):
        layers = (10, *[d] * (matrices - 1), 1)
        net = MLP(layers, activation="linear", bias=False, init="orvieto").build(seed).double()
        weights = [layer.weight.detach() for layer in net if isinstance(layer, nn.Linear)]
        root = math.sqrt(matrices) * sigma  # draw="all" spreads it over the matrices
        with (
            dither.inject(net.train(), dither.Weight(root), draw="all") as noise,
            torch.no_grad(),
        ):
            R = float(dither.explicit(noise, X, Y, "half_square")[1])
        clean = moment(weights, X, [0.0] * matrices)
        full = moment(weights, X, [sigma] * matrices)
        one = np.eye(matrices) * root
        layerwise = float(np.mean([moment(weights, X, row.tolist()) for row in one]))
        yield d, "R", R
        yield d, "full", (full - clean) / (2 * len(X)) - R
        yield d, "layer-wise", (layerwise - clean) / (2 * len(X)) - R
        progress.update(done + 1, len(widths))


def runs(matrices: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, Task]:
    return {f"M = {m}": Task.of(depths, matrices=m, widths=widths, sigma=SIGMA) for m in matrices}


def slopes(t: Table, label: str) -> Array:
    """The log–log slope of R_σ − R_eff under full noise in d, [S]."""
    d, excess = t.series(label, "full")
    wide = d >= FROM
    return np.polyfit(np.log(d[wide]), np.log(excess[:, wide]).T, 1)[0]


def explodes(t: Table) -> Verdict:
    asked = [exact(f"log–log slope, {label}", slopes(t, label), low=LEAST) for label in t.labels]
    last = {f"(R_σ − R_eff)/R at the last d, {label}": t.last(label, "full") / t.last(label, "R")
            for label in t.labels}  # fmt: skip
    return decide(*asked, numbers=last)


def flat(t: Table) -> Verdict:
    asked = [
        exact(f"largest |R_σ − R_eff|/R, {label}",
              abs(t.series(label, "layer-wise")[1] / t.series(label, "R")[1]).max(1), high=NEAR)
        for label in t.labels
    ]  # fmt: skip
    return decide(*asked)


def plot(t: Table):
    picture, axes = style.grid(1, 2, height=3.4)
    left, right = axes[0]
    for label, colour in zip(t.labels, COLOURS, strict=False):
        d, R = t.series(label, "R")
        style.band(left, d, t.series(label, "full")[1] / R, colour, log=True, label=label)
        style.band(right, d, t.series(label, "layer-wise")[1] / R, colour)
    for ax, title in ((left, "noise on all weights"), (right, "layer-wise noise")):
        ax.set(xscale="log", xlabel="hidden units d", title=title)
    left.set(yscale="log", ylabel="(R$_σ$ − R$_{eff}$) / R")
    right.set(ylim=(-0.1, 0.1))
    style.legend(left, fontsize=8, ncols=2)
    return picture


figure = Figure(
    runs,
    plot,
    smoke={"matrices": (2, 3), "widths": (10, 100, 200)},
    quick={"matrices": (2, 3, 4, 6, 8), "widths": (10, 30, 100, 300)},
    paper={"matrices": (2, 3, 4, 5, 6, 7, 8), "widths": (10, 30, 100, 300, 1000)},
    claims=[
        Claim("O8 depth", "App. E: noise on all weights: R_σ − R_eff grows at least as the width "
              "(log–log slope of .9 and more from d = 100 on) at every depth", explodes),
        Claim("O9 depth", "App. E: with layer-wise noise R_σ is R_eff at every depth and width, to "
              "1e-6 of R (a theorem: it cannot fail, and checks the code)", flat, counts=False),
    ],
    departures=[
        "the paper derives this and shows no figure; σ = 0.1 and Fig. 1's data, d₂ = 1",
        "linear networks alone: of ReLU networks App. E has a special case without kinks",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 10},
    cost={"smoke": 0.1, "quick": 0.1, "paper": 3},
)  # fmt: skip
