"""Four phases of a noise node: decoupled, decay, catapult, divergent.   Levi et al. 2022, Fig. 3

Fashion-MNIST, one hidden layer of 1024 ReLU units, W ~ N(0, 1/fan_in), b = 0, one noise node on the
input (fan_in 785), SGD at η = 0.01 without momentum, |B| = 1000, σ² = {0, 0.1, 1, 1.8} · 785/η
(App. A): the norm of the node's weights W_NI (blue), of the next layer's W⁽¹⁾ (red), and loss and
accuracy, of the training batches with the noise on (violet) and of test images with it off (green),
against steps. What counts is steps: the phases are decided in the first hundred.

The loss decides too. Cross-entropy on logits pushes every example back however large its loss;
Keras' clipped softmax (App. A implies Keras) gives no gradient where p_y < 1e-7. Both are trained.
At quick scale the four phases of the paper appear on logits. Clipped, examples that the noise has
thrown far enough stop pulling: the rise is small, W⁽¹⁾ hardly moves, what should diverge decays.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import dither
from dither.lab import (
    MLP,
    SGD,
    Accuracy,
    Claim,
    Data,
    Figure,
    Loss,
    NodeNorms,
    Objective,
    Run,
    Table,
    Verdict,
    WeightNorms,
    WithNoise,
)
from dither.lab.rule import above, decide, exact, not_above
from dither.papers import style
from dither.papers.ends import CHANCE, diverged
from dither.papers.levi2022.keras import ClippedSoftmax

ETA, D_IN = 0.01, 785
PHASES = {"decoupled": 0.0, "decay": 0.1, "catapult": 1.0, "divergent": 1.8}  # σ² η / d_in
LOSSES = {"logits": "cross_entropy", "clipped": ClippedSoftmax()}
FAINT = 0.1  # σ of a decoupled node that is not off
NODE, NEXT = "node/fc0:out", "norm/fc1.weight"
NOISY, CLEAN = "noisy accuracy/test", "accuracy/test"
WINDOW = 50  # steps of a running mean
DECAYED = 600  # steps L6 gives the node
ENOUGH = 200  # steps below which nothing is judged
MOVED = 0.05  # relative change that counts
LEFT = 0.6  # of the node's norm, after DECAYED steps
MOST = 10.0  # larger ratios count as this, as do runs that diverged

LINEAR = 2.0  # norms over their start up to which the picture's axis is linear


def runs(
    steps: int, batch: int, every: int, looks: int, test: int, images: int | None, decay: int
) -> dict[str, Run]:
    """The runs of the four phases. decay: the steps of that phase, which is the slowest."""

    def run(phase: str, sigma: float, loss: object) -> Run:
        n = decay if phase == "decay" else steps
        slow = max(1, n // looks)
        return Run(
            data=Data("fashion-mnist", train=images),
            model=MLP((784, 1024, 10), fan_extra=1),
            noise={"fc0": dither.Node(sigma)},
            optimiser=SGD(ETA),
            loss=loss,
            batch=batch,
            steps=n,
            watch=(
                Objective(every), NodeNorms(every), WeightNorms(every),
                *(w(split, slow, test) for w in (Loss, Accuracy) for split in ("train", "test")),
                WithNoise(Accuracy("test", slow, test)), WithNoise(Loss("train", slow, test)),
            ),
        )  # fmt: skip

    sigma = {phase: math.sqrt(ratio * D_IN / ETA) for phase, ratio in PHASES.items()}
    nets = {f"{p}, {name}": run(p, sigma[p], loss) for name, loss in LOSSES.items() for p in PHASES}
    return nets | {"faint": run("faint", FAINT, "cross_entropy")}


def judged(check: Callable[[Table, str], Verdict], name: str, least: int = ENOUGH):
    """The check of a claim for one of the losses. Runs must have the length of the decay phase."""

    def told(t: Table) -> Verdict:
        if (n := t.series("decay, logits", NODE)[0].max()) < least:
            return None, {"why": f"it takes {least} steps to tell, and these runs have {n:.0f}"}
        return check(t, name)

    return told


def running(t: Table, label: str, quantity: str) -> np.ndarray:
    """Means over `WINDOW` steps, [S, T′]; inf for runs that diverged."""
    steps, values = t.series(label, quantity)
    n = max(1, round(WINDOW / float(np.median(np.diff(steps)))))
    values = np.where(np.isnan(values), np.inf, values)
    return np.stack([np.convolve(row, np.full(n, 1 / n), "valid") for row in values])


def moves(t: Table, label: str) -> np.ndarray:
    """The largest relative change of ‖W_NI‖, [S]."""
    _, node = t.series(label, NODE)
    return np.abs(node / node[:, :1] - 1).max(1)


def decoupled(t: Table, name: str) -> Verdict:
    """L5. At the figure's σ = 0 it can't fail, so it is also checked at a small σ."""
    drawn = moves(t, f"decoupled, {name}")
    asked = exact("largest change of ‖W_NI‖, σ = 0", drawn, high=MOVED)
    return decide(asked, numbers={f"largest change of ‖W_NI‖, σ = {FAINT}": moves(t, "faint")})


def faint(t: Table, name: str) -> Verdict:
    return decide(not_above("largest change of ‖W_NI‖", moves(t, "faint"), within=MOVED))


def decays(t: Table, name: str) -> Verdict:
    """L6. A fall: the running mean never rises above its minimum so far by 5 % of its start."""
    label = f"decay, {name}"
    steps, node = t.series(label, NODE)
    mean = running(t, label, NODE)
    climb = (mean - np.minimum.accumulate(mean, axis=1)).max(1) / mean[:, 0]
    left = node[:, steps <= DECAYED][:, -1] / node[:, 0]
    falls = (np.diff(mean, axis=1) <= 0).all(1)
    return decide(
        not_above("largest climb of the running mean", climb, within=MOVED),
        not_above("‖W_NI‖ end/start", left, within=LEFT),
        numbers={"share of runs that never climb": falls.mean()},
    )


def course(t: Table, label: str) -> dict[str, np.ndarray]:
    """Start, peak and end of the quantities that a catapult moves. The training loss, with the
    noise on, starts at step 0, before the first update: a few steps later it has risen already.
    Ratios are at most `MOST`, the value of runs that diverged.
    """
    _, loss = t.series(label, "objective")
    start = t.first(label, "noisy loss/train")
    _, clean = t.series(label, "loss/train")
    _, w = t.series(label, NEXT)
    smooth = running(t, label, "objective")

    def ratio(values: np.ndarray, to: np.ndarray) -> np.ndarray:
        return np.fmin(np.where(np.isnan(values), np.inf, values) / to, MOST)

    return {
        "training loss, start": start,
        "training loss, peak/start": ratio(peak(loss), start),
        "training loss, end/start": ratio(smooth[:, -1], start),
        "‖W⁽¹⁾‖ peak/start": ratio(peak(w), w[:, 0]),
        "loss without noise, peak/start": ratio(peak(clean), clean[:, 0]),
        "loss without noise, end/start": ratio(t.last(label, "loss/train"), clean[:, 0]),
        "test accuracy at the end": t.last(label, CLEAN),
        "the same, noise on": t.last(label, NOISY),
        "share of runs that diverged": np.array(diverged(t, label).mean()),
    }


def peak(values: np.ndarray) -> np.ndarray:
    """The maximum over steps, [S]; inf for runs that diverged."""
    return np.where(np.isnan(values), np.inf, values).max(1)


def catapults(t: Table, name: str) -> Verdict:
    """L7: the training loss rises by 20 %, ‖W⁽¹⁾‖ by 5 % (the change that counts in L5)."""
    seen = course(t, f"catapult, {name}")
    loss, w, end = (seen.pop(q) for q in (
        "training loss, peak/start", "‖W⁽¹⁾‖ peak/start", "training loss, end/start"))  # fmt: skip
    return decide(
        above("training loss, peak/start", loss, by=1.2),
        above("‖W⁽¹⁾‖ peak/start", w, by=1 + MOVED),
        not_above("training loss, end/start", end, within=1 - MOVED),
        numbers=seen,
    )


def diverges(t: Table, name: str) -> Verdict:
    """L8: chance means an accuracy below .2 at the end, with the noise on."""
    seen = course(t, f"divergent, {name}")
    end, noisy = (seen.pop(q) for q in ("training loss, end/start", "the same, noise on"))
    return decide(
        above("training loss, end/start", end, by=1),
        not_above(
            "accuracy, noise on", np.where(np.isnan(noisy), CHANCE, noisy), within=2 * CHANCE
        ),
        numbers=seen,
    )


def plot(t: Table, losses: Sequence[str] = tuple(LOSSES)):
    """Two rows of panels per loss."""
    picture, axes = style.grid(2 * len(losses), 4, width=10, height=2.3)
    for half, name in enumerate(losses):
        for column, phase in enumerate(PHASES):
            top, bottom = axes[2 * half, column], axes[2 * half + 1, column]
            norms(top, t, f"{phase}, {name}")
            right = loss_and_accuracy(bottom, t, f"{phase}, {name}")
            top.set_title(f"{phase}, {name}", fontsize=11)
            if column < len(PHASES) - 1:
                right.set_yticks([])
            else:
                right.spines["right"].set_visible(True)
                right.set_ylabel("accuracy (- -)")
            if column:
                bottom.set_yticklabels([])
        axes[2 * half, 0].set_ylabel("norm / start")
        axes[2 * half + 1, 0].set_ylabel("loss (—)")
    colours = {
        "‖W$_{NI}$‖": style.BLUE, "‖W$^{(1)}$‖": style.RED,
        "training, noise on": style.PURPLE, "test, noise off": style.GREEN,
    }  # fmt: skip
    handles = [axes[0, 0].plot([], [], color=c, label=n)[0] for n, c in colours.items()]
    style.legend(picture, handles=handles, loc="outside upper center", ncols=4)
    return picture


def norms(ax: Any, t: Table, label: str) -> None:
    """‖W_NI‖ and ‖W⁽¹⁾‖ over their start. The axis is linear, to show a catapult's rise of 19 %. It
    is logarithmic if a norm leaves `LINEAR` times its start.
    """
    seen = [(*t.series(label, q), c) for q, c in ((NODE, style.BLUE), (NEXT, style.RED))]
    ratios = [(steps, values / values[:, :1], colour) for steps, values, colour in seen]
    with np.errstate(invalid="ignore"):
        wide = any(np.nanmax(r) > LINEAR for _, r, _ in ratios)
    for steps, ratio, colour in ratios:
        style.band(ax, steps, np.where(np.isfinite(ratio), ratio, np.nan), colour, log=wide)
    ax.set(xticklabels=[], yscale="log" if wide else "linear")
    ax.set_ylim((0.02, 50) if wide else (0, LINEAR))
    ax.yaxis.set_minor_formatter("")


def loss_and_accuracy(ax: Any, t: Table, label: str) -> Any:
    """Losses on the left axis, accuracies on the right one. Returns the right axis."""
    steps, loss = t.series(label, "objective")
    steps = np.append(0, steps)
    loss = np.column_stack([t.first(label, "noisy loss/train"), loss])
    style.band(ax, steps, loss, style.PURPLE, log=True, lw=1)
    style.band(ax, *t.series(label, "loss/test"), style.GREEN, log=True)
    ax.set(yscale="log", ylim=(0.3, 3e4), xlabel="step")
    ax.yaxis.set_minor_formatter("")
    right = ax.twinx()
    for quantity, colour in ((NOISY, style.PURPLE), (CLEAN, style.GREEN)):
        style.band(right, *t.series(label, quantity), colour, ls="--", lw=1.2)
    right.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    return right


def both(id: str, text: str, check, least: int = ENOUGH, counts: bool = True) -> list[Claim]:
    return [Claim(f"{id} ({n})", f"{n}: {text}", judged(check, n, least), counts) for n in LOSSES]


figure = Figure(
    runs,
    plot,
    smoke={
        "steps": 4,
        "decay": 4,
        "batch": 50,
        "every": 1,
        "looks": 4,
        "test": 50,
        "images": 1000,
    },
    quick={
        "steps": 300,
        "decay": 600,
        "batch": 150,
        "every": 5,
        "looks": 10,
        "test": 500,
        "images": 20_000,
    },
    paper={
        "steps": 600,
        "decay": 600,
        "batch": 1000,
        "every": 2,
        "looks": 30,
        "test": 10_000,
        "images": None,
    },
    claims=[
        *both(
            "L5",
            "decoupled: ‖W_NI‖ moves < 5 %; at the figure's σ = 0 this cannot fail",
            decoupled,
            counts=False,
        ),
        Claim("L5 ours", f"not in the figure: so does a node of σ = {FAINT}", judged(faint, "")),
        *both(
            "L6",
            "decay: the running mean of ‖W_NI‖ falls (no climb of 5 %), to below .6 in 600 steps",
            decays,
            DECAYED,
        ),
        *both(
            "L7",
            "catapult: loss and ‖W⁽¹⁾‖ rise (by 20 % and 5 %), then the loss recovers to 5 % below "
            "its start",
            catapults,
        ),
        *both("L8", "divergent: the loss never recovers, noisy accuracy stays at chance", diverges),
    ],
    departures=[
        "the figure's σ² = 0 is no noise at all, and its node can't move: one of σ = 0.1 is added",
        "the length of the paper's runs is not given in words: 600 steps, ten epochs",
        "noise is drawn anew for every batch, so once an epoch for each example, as in the paper",
        "changed after first results: means over seeds with 95 % intervals (had been every run); "
        "L6 allows a climb of 5 %; ratios above 10, and those of runs that diverged, count as 10",
        "changed after first results: L7 compares with the loss at step 0 (first: at step 5)",
        "quick: 20 000 images, |B| = 150 instead of 1000, 300 steps (decay: 600), losses and "
        "accuracies on 500 images",
        "smoke: 1000 images, 4 steps of |B| = 50",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 10},
    needs=("fashion-mnist",),
    cost={"smoke": 0.3, "quick": 2.1, "paper": 130},
)
