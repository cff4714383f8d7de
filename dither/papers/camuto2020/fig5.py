"""With noise each layer's function is smoother than the one before it.   Camuto et al. 2020, Fig. 5

The networks of Fig. 4. Of the layers with square weights, k = 2 … 5, as training goes on: above,

    ‖W̃_k‖_F,  W̃_k = ∂h_k/∂h_{k−1} = diag(1[a_k > 0]) W_k      mean over the 200 points

(not squared, as the released notebook has it and the claims take it), then its square, Tr(W_k),
and, at the end of training, the spectral norm (the text's axis says ‖W̃_k‖₂²). R holds ‖W̃_k‖² once
for each noisy layer before it, k times (k − 1 where the input has no noise), so with noise the
norms should fall with k.
"""

from collections.abc import Callable

import numpy as np

from dither.lab import Claim, Figure, Run, Table, Verdict
from dither.papers import style
from dither.papers.camuto2020 import sinusoids
from dither.papers.camuto2020.sinusoids import NOTEBOOK, SHORT, SQUARE, TEXT, short
from dither.papers.paired import judged

COLOURS = dict(zip(SQUARE, (style.BLACK, style.BLUE, style.ORANGE, style.RED), strict=True))
DRAWN = {
    "baseline": "baseline",
    f"GNI, {NOTEBOOK}": f"GNI, {NOTEBOOK}",
    f"GNI, {TEXT}": f"GNI, {TEXT}",
}
NORMS = {"norm": "‖W̃$_k$‖$_F$", "square": "‖W̃$_k$‖$_F^2$", "spectral": "‖W̃$_k$‖$_2$"}


def runs(width: int, steps: int, rate: float) -> dict[str, Run]:
    nets = sinusoids.nets(width, steps, rate)
    return {label: nets[label] for label in DRAWN}


def ends(t: Table, label: str, quantity: str) -> np.ndarray:
    """Final values by run and layer, [S, k]."""
    return np.stack([t.last(label, f"{quantity}/{k}") for k in SQUARE], 1)


def falls(values: np.ndarray) -> np.ndarray:
    """Whether each run's row falls strictly with k, [S]."""
    return np.all(np.diff(values, axis=1) < 0, axis=1)


def told(t: Table, label: str, quantity: str) -> dict[str, object]:
    values = ends(t, label, quantity)
    shown = {f"{quantity}, k = {k}": values[:, i] for i, k in enumerate(SQUARE)}
    return {f"share of runs in which {quantity} falls": falls(values).mean(), **shown}


def norms_fall(label: str) -> Callable[[Table], Verdict]:
    """C10."""

    def check(t: Table) -> Verdict:
        if short(t):
            return None, {"why": SHORT}
        numbers = {k: v for q in NORMS for k, v in told(t, label, q).items()}
        return bool(falls(ends(t, label, "norm")).all()), numbers

    return check


def baseline_unordered(t: Table) -> Verdict:
    """C11: C10's sentence is false of the baseline, in half of the runs or more."""
    if short(t):
        return None, {"why": SHORT}
    numbers = {k: v for q in (*NORMS, "trace") for k, v in told(t, "baseline", q).items()}
    if not np.isfinite(ends(t, "baseline", "norm")).all():
        return None, {"why": "a run diverged", **numbers}
    return bool(falls(ends(t, "baseline", "norm")).mean() <= 0.5), numbers


def traces_fall(label: str) -> Callable[[Table], Verdict]:
    """C12: from each layer to the next by more than the standard error over runs."""

    def check(t: Table) -> Verdict:
        if short(t):
            return None, {"why": SHORT}
        steps = -np.diff(ends(t, label, "trace"), axis=1).T
        names = [f"Tr W_{k} − Tr W_{k + 1}" for k in SQUARE[:-1]]
        numbers = dict(zip(names, steps, strict=True))
        return judged(steps, numbers | told(t, label, "trace"))

    return check


def plot(t: Table):
    picture, axes = style.grid(4, 3, width=8.6, height=2.6)
    along = {q: NORMS[q] for q in ("norm", "square")} | {"trace": "Tr(W$_k$)"}
    for row, (quantity, name) in zip(axes, along.items(), strict=False):
        for ax, label in zip(row, DRAWN, strict=True):
            for k, colour in COLOURS.items():
                steps, values = t.series(label, f"{quantity}/{k}")
                style.band(ax, steps / 1000, values, colour, label=f"k = {k}")
            ax.set_title(label)
            ax.set_xlabel("thousand steps")
        row[0].set_ylabel(name)
    for ax, label in zip(axes[-1], DRAWN, strict=True):
        values = ends(t, label, "spectral")
        style.dots(ax, SQUARE, values, style.BLACK)
        for k, colour in COLOURS.items():
            ax.plot(k, values[:, k - SQUARE[0]].mean(), "o", ms=7, color=colour, zorder=3)
        ax.margins(y=0.12)
        ax.set(xlabel="k", xticks=SQUARE, title=label)
    axes[-1, 0].set_ylabel(f"{NORMS['spectral']} at the end")
    for row in axes:
        low = min(ax.get_ylim()[0] for ax in row)
        high = max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(low, high)
    style.legend(axes[0, 1], loc="upper left", ncols=2)
    return picture


figure = Figure(
    runs,
    plot,
    smoke=sinusoids.SMOKE,
    quick=sinusoids.QUICK,
    paper=sinusoids.PAPER,
    claims=[
        *(
            Claim(
                f"C10 ({r})",
                f"noise of {r}: the norms fall strictly with k in every run",
                norms_fall(f"GNI, {r}"),
            )
            for r in (NOTEBOOK, TEXT)
        ),
        Claim("C11", "not so without noise, in half of the runs or more", baseline_unordered),
        *(
            Claim(f"C12 ({r})", f"noise of {r}: Tr(W_k) falls with k", traces_fall(f"GNI, {r}"))
            for r in (NOTEBOOK, TEXT)
        ),
    ],
    departures=[
        *sinusoids.DEPARTURES,
        "changed after first results: C11 asks for half of the runs (had been one), C12 for steps "
        "above their standard error (had been a mean that falls)",
    ],
    seeds=sinusoids.SEEDS,
    cost={"smoke": 0.1, "quick": 2, "paper": 270},
)
