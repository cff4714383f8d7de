"""What Orvieto et al. 2022 compare in their networks (§5, App. F), as runs, and how it is read.

    GD, SGD             no noise
    + noise             every parameter tensor gets σ/√M, M of them
    + noise (layer)     one tensor per step gets σ, in turn: the same R = σ²/2M Σ_W ‖∂z/∂W‖²

M counts parameter tensors, biases and BatchNorm's too, and the order is cyclic: so does their code.
Their recorded trace is multiplied by the number of probes; here it is the trace. A ReLU network is
linear in each tensor but for kinks: the Hessian's trace is the Gauss–Newton part's, exactly.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dither.lab import Accuracy, Array, Loss, Run, State, Table, rule
from dither.measures.curvature import trace
from dither.papers import style
from dither.papers.ends import ACCURACY, LOSS, at_loss, best, common_loss, diverged, end

GD, FULL, LAYER = "GD", "GD + noise", "GD + noise (layer)"
DRAWS = {GD: None, FULL: "all", LAYER: "cycle"}
SCHEMES = tuple(DRAWS)
COLOURS = {GD: style.BLACK, FULL: style.RED, LAYER: style.BLUE}
LEARNT = 1.0  # a training loss of less than half of ln 10: above it a network is not compared
CALMER = 0.1  # of the oscillation without noise
SWING = "sd of the differences of ln trace"
TRACE, TEST = "trace", "loss/test"
GAUSS_NEWTON = "Gauss–Newton"


@dataclass(frozen=True)
class Curvature:
    """Traces of the training loss' Hessian and of its Gauss–Newton part, noise off, per step.

    "trace", "Gauss–Newton", and "… sem": the standard error of the probes, 0 where exact.
    limit: the first training images; probes: where the trace is not exact.
    """

    every: int | None = 0
    limit: int | None = None
    probes: int = 16

    def __call__(self, state: State) -> dict[str, float]:
        data = state.examples("train", self.limit)
        hessian = trace(state.model, state.run.loss, data, probes=self.probes)
        part = hessian  # where it is exact they are equal
        if not hessian.exact:
            part = trace(state.model, state.run.loss, data, of="gauss_newton")
        traces = {TRACE: hessian, GAUSS_NEWTON: part}
        return {q: t.value for q, t in traces.items()} | {
            f"{q} sem": t.sem for q, t in traces.items()
        }


def looks(every: int | None, test: int | None = None, limit: int | None = None) -> tuple[Any, ...]:
    """Training loss, test loss, test accuracy and trace at the same steps, so that they can be
    compared.
    """
    return (
        Loss("train", every), Loss("test", every, test), Accuracy("test", every, test),
        Curvature(every, limit),
    )  # fmt: skip


def schemes(plain: Run, noise: Any) -> dict[str, Run]:
    """{scheme: run}: a run without noise, one with noise on all tensors at once, one with noise on
    one tensor per step.
    """
    return {
        scheme: replace(plain, noise=noise, draw=draw) if draw else plain
        for scheme, draw in DRAWS.items()
    }


# ------------------------------------------------------------------------------- reading a table


def swing(t: Table, label: str) -> Array:
    """How much the trace oscillates along training, [S]: the standard deviation of its logarithm's
    differences from look to look, without the first look. A steady fall has 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.diff(np.log(t.series(label, TRACE)[1][:, 1:]), axis=1)
    return steps.std(1)


def steadier(t: Table, of: Mapping[str, str]) -> list[rule.Comparison]:
    """With either noise the trace oscillates less than without, by `CALMER` of that."""
    swings = {scheme: swing(t, label) for scheme, label in of.items()}
    return [
        rule.nearer(f"{SWING}, {s} less than without", swings[s], swings[GD], by=CALMER)
        for s in (FULL, LAYER)
    ]


def unlearnt(t: Table, labels: Iterable[str]) -> str:
    """A sentence that names the runs that diverged, or whose training loss was never below
    `LEARNT`; "" if there are none.
    """
    labels = list(labels)
    if lost := [label for label in labels if diverged(t, label).any()]:
        return f"diverged: {', '.join(lost)}"
    low = {label: np.nanmin(t.series(label, LOSS)[1], 1) for label in labels}
    return rule.unlearnt(low, at_most=LEARNT, what="lowest training loss")


def report(t: Table, labels: Mapping[str, str]) -> dict[str, Any]:
    """What every claim about schemes shows; labels {scheme: label of its run}.

    Ends, the baseline's best record, what was paid in training loss, and all at equal training
    loss.
    """
    numbers: dict[str, Any] = {}
    level = common_loss(t, labels.values())
    for scheme, label in labels.items():
        ends = (ACCURACY, TEST, LOSS, TRACE, GAUSS_NEWTON)
        numbers |= {f"{q}, {scheme}": end(t, label, q) for q in ends}
        numbers[f"largest sem of the trace, {scheme}"] = np.nanmax(
            t.series(label, f"{TRACE} sem")[1]
        )
        numbers[f"best {ACCURACY}, {scheme}"] = best(t, label)
        if diverged(t, label).any():
            numbers[f"diverged, {scheme}"] = diverged(t, label).astype(float)
    numbers["equal training loss"] = level
    for quantity in (ACCURACY, TEST, TRACE):
        for scheme, label in labels.items():
            numbers[f"{quantity} at equal training loss, {scheme}"] = at_loss(
                t, label, quantity, level
            )
    return numbers


# ----------------------------------------------------------------------------------------- drawing

TITLES = {
    LOSS: "training loss", TEST: "test loss", ACCURACY: "test accuracy", TRACE: "trace of Hessian"
}  # fmt: skip
LOGARITHMIC = (LOSS, TRACE)


def panel(ax: Any, t: Table, labels: Mapping[str, str], quantity: str, **how: Any) -> None:
    """Mean ± sd over seeds against steps, one line per scheme. Lines of runs that diverged end
    there.
    """
    for scheme, label in labels.items():
        steps, values = t.series(label, quantity)
        log = quantity in LOGARITHMIC
        values = np.where(values > 0, values, np.nan) if log else values
        style.band(ax, steps, values, COLOURS[scheme], log=log, label=scheme, **how)
    ax.set(title=TITLES[quantity], xlabel="step")
    if quantity in LOGARITHMIC:
        style.logarithmic(ax, "y")
    if quantity == ACCURACY:
        to_the_ends(ax, t, labels.values())


def to_the_ends(ax: Any, t: Table, labels: Iterable[str]) -> None:
    """Test accuracy with the ends in full, the start as far as there is room."""
    labels = list(labels)
    ends = np.concatenate([t.last(label, ACCURACY) for label in labels])
    tops = [best(t, label).max() for label in labels]
    ax.set_ylim(max(0.0, float(np.nanmin(ends)) - 0.1), max(tops) + 0.02)
