"""A phase diagram of noise nodes: σ, learning rate, width.   After Levi et al. 2022, §2.2, App. B

The paper has the boundary of the catapult phase for a linear toy; σ_cat² = 2/(η λ_max), λ_max the
largest eigenvalue of the local Hessian at the node, is that boundary for any net. It is taken here
from the untrained net (solid line; dashed 4/(η λ_max), where the toy diverges; dotted R₂ = R₁,
where decay should begin) and compared with short runs (dots): FC nets with three hidden layers on
Fashion-MNIST, one node on the input, plain SGD. The rule that tells a run's phase is in
`dither.measures.phases`, and so is the finder for other nets.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dither.lab import MLP, Claim, Data, Figure, Progress, Table, Task, Verdict
from dither.lab.rule import above, decide, near, not_above
from dither.measures import phases
from dither.papers import style
from dither.papers.levi2022.keras import ClippedSoftmax

LOSSES = {"logits": "cross_entropy", "clipped": ClippedSoftmax()}
COLOURS = dict(zip(phases.PHASES, (style.GREY, style.SKY, style.ORANGE, style.RED), strict=True))
MARKS = dict(zip(phases.PHASES, "o^sX", strict=True))
ENOUGH = 50  # steps of a short run below which nothing is judged
FAR = 5.0  # powers of 2: what a boundary counts as that no σ of the scan reaches


def scan(
    seed: int,
    progress: Progress,
    *,
    width: int,
    lr: float,
    images: int,
    batch: int,
    steps: int,
    ratios: tuple[float, ...],
    loss: Any,
) -> Iterator[tuple[float, str, float]]:
    """Per ratio σ/σ_cat: σ, the number of the phase, and the curves that give it. The other rows
    are at step 0.
    """
    data = Data("fashion-mnist", train=images, test=1).load(seed)
    net = MLP((784, width, width, width, 10), fan_extra=1).build(seed)
    x, y = data.x_train, data.y_train
    guess, top = phases.predict(net, x[:batch], y[:batch], lr, loss=loss, seed=seed)
    yield 0, "top", max(top.values())
    yield 0, "steps", steps
    told = []
    for done, ratio in enumerate(ratios):
        sigma = ratio * guess.catapult
        run = phases.short(
            net, x, y, lr, phases.nodes(net, None, sigma), loss=loss, batch=batch, steps=steps,
            seed=seed,
        )  # fmt: skip
        told.append((sigma, run.phase))
        yield ratio, "sigma", sigma
        yield ratio, "phase", phases.PHASES.index(run.phase)
        yield ratio, "node peak", min(max(run.node), 1e9)
        yield ratio, "node end", min(run.node[-1], 1e9)
        yield ratio, "loss peak", min(max(run.loss) / run.loss[0], 1e9)
        progress.update(done + 1, len(ratios))
    seen = phases.boundaries(told)
    for name in phases.PHASES[1:]:
        yield 0, f"predicted {name}", getattr(guess, name)
        yield 0, f"measured {name}", getattr(seen, name)


def runs(widths: tuple[int, ...], lrs: tuple[float, ...], **how: Any) -> dict[str, Task]:
    return {
        f"{name}, width {width}, η {lr:g}": Task.of(scan, width=width, lr=lr, loss=loss, **how)
        for name, loss in LOSSES.items()
        for width in (widths if name == "logits" else widths[-1:])
        for lr in lrs
    }


def cells(t: Table, name: str = "logits") -> list[str]:
    return [label for label in t.labels if label.startswith(name)]


def long_enough(check):
    def told(t: Table):
        if t.first(t.labels[0], "steps").max() < ENOUGH:
            return None, {"why": f"it takes {ENOUGH} steps to tell the phases"}
        return check(t)

    return told


def ratio(t: Table, label: str, name: str, to: str | None = None) -> np.ndarray:
    """The measured σ² of a boundary over the predicted one, [S]."""
    predicted = t.first(label, f"predicted {to or name}")
    return (t.first(label, f"measured {name}") / predicted) ** 2


def within(name: str, factor: float, loss: str):
    """The σ² of the measured boundary is within a factor of the predicted one, in each cell."""

    def check(t: Table) -> Verdict:
        seen = {label: ratio(t, label, name) for label in cells(t, loss)}
        asked = [
            near(f"log₂ of σ² measured/predicted, {label}", np.clip(np.log2(v), -FAR, FAR),
                 within=float(np.log2(factor)))
            for label, v in seen.items()
        ]  # fmt: skip
        return decide(*asked, numbers={f"σ² measured/predicted, {b}": v for b, v in seen.items()})

    return long_enough(check)


def between(t: Table) -> Verdict:
    """The share of a seed's runs that decay, among those with σ between the predicted decay and .7
    of the catapult.
    """
    decay, of = np.zeros(len(t.seeds)), np.zeros(len(t.seeds))
    for label in cells(t):
        low = t.first(label, "predicted decay")[:, None]
        _, sigma = t.series(label, "sigma")
        ratios, told = t.series(label, "phase")
        chosen = (sigma > low) & (ratios <= 0.7)
        decay += (chosen & (told == phases.PHASES.index("decay"))).sum(1)
        of += chosen.sum(1)
    return decide(above("share in decay", decay / of, by=0.9), numbers={"runs of a seed": of})


def flat(t: Table) -> Verdict:
    """λ_max against the width, at the smallest learning rate."""
    tops = {label: t.first(label, "top") for label in cells(t)}
    each = np.stack(list(tops.values()))  # [cells, S]
    asked = not_above("largest λ_max over the smallest", each.max(0) / each.min(0), within=1.3)
    return decide(asked, numbers={f"λ_max, {b}": v for b, v in tops.items()})


def plot(t: Table):
    names = dict.fromkeys(", ".join(label.split(", ")[:2]) for label in t.labels)
    picture, axes = style.grid(-(-len(names) // 2), 2, height=3.8)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        mine = [label for label in t.labels if label.startswith(f"{name},")]
        lrs = [float(label.split("η ")[1]) for label in mine]
        for quantity, line in (("catapult", "-"), ("divergent", "--"), ("decay", ":")):
            edge = [t.first(label, f"predicted {quantity}").mean() for label in mine]
            ax.plot(lrs, edge, line, color=style.BLACK, lw=1.2)
        for label, lr in zip(mine, lrs, strict=True):
            sigma, told = (t.series(label, q)[1] for q in ("sigma", "phase"))
            for s in range(len(t.seeds)):
                shift = 1.13 ** (s - (len(t.seeds) - 1) / 2)
                for value, number in zip(sigma[s], told[s], strict=True):
                    which = phases.PHASES[int(number)]
                    ax.plot(lr * shift, value, MARKS[which], color=COLOURS[which], ms=5)
        ax.set(xscale="log", yscale="log", xlabel="learning rate η", title=name)
        ax.margins(x=0.15)
        ax.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        ax.set_xticks([], minor=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("σ of the node")
    handles = [axes[0, 0].plot([], [], MARKS[p], color=c, label=p)[0] for p, c in COLOURS.items()]
    known = {"2/(ηλ)": "-", "4/(ηλ)": "--", "R$_2$ = R$_1$": ":"}
    handles += [axes[0, 0].plot([], [], s, color=style.BLACK, label=n)[0] for n, s in known.items()]
    style.legend(picture, handles=handles, loc="outside upper center", ncols=4)
    return picture


SCAN = (0.01, 0.03, 0.1, 0.3, 0.6, 0.85, 1.15, 1.5, 2.0, 2.7, 3.6, 5.0)
figure = Figure(
    runs,
    plot,
    smoke={"widths": (8,), "lrs": (0.05,), "images": 128, "batch": 64, "steps": 5,
           "ratios": (0.1, 1.0, 5.0)},
    quick={"widths": (64, 256), "lrs": (0.005, 0.05, 0.2), "images": 1000, "batch": 128,
           "steps": 80, "ratios": SCAN},
    paper={"widths": (64, 256, 1024), "lrs": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
           "images": 60_000, "batch": 1000, "steps": 300, "ratios": SCAN},
    claims=[
        Claim("L21 ours", "the catapult phase begins within a factor 2 of σ² = 2/(η λ_max), at "
              "every η and width", within("catapult", 2, "logits")),
        Claim("L21 ours, clipped", "the same with the clipped softmax",
              within("catapult", 2, "clipped")),
        Claim("L22 ours", "the divergent phase begins within a factor 2 of σ² = 4/(η λ_max), as in "
              "the toy", within("divergent", 2, "logits")),
        Claim("L23 ours", "between R₂ = R₁ and .7 of the catapult's σ the node decays (≥ 90 % of "
              "runs)", long_enough(between)),
        Claim("L24 ours", "λ_max of the untrained net differs by less than 30 % between widths",
              long_enough(flat)),
    ],
    departures=[
        "the paper has no such diagram; its Fig. 3 has four points of one",
        "changed after first results: means over seeds with 95 % intervals; L23's share is of each "
        f"seed; a boundary that no σ of the scan reaches counts as a factor {2**FAR:.0f}",
        "quick: 1 000 images, 80 steps of |B| = 128",
        "smoke: a width of 8, 5 steps",
    ],
    seeds={"smoke": 2, "quick": 5, "paper": 5},
    needs=("fashion-mnist",),
    cost={"smoke": 0.05, "quick": 1.4, "paper": 200},
)  # fmt: skip
