"""Robustness against random input perturbations.   Levi et al. 2022, Fig. 2, §3.2.1, App. A

Test accuracy against the scale s of x → √(1 − s²) x + s δ (eq. 8) for nets trained on Fashion-MNIST
with nothing, L2, dropout, noise nodes ("in": on the input, "full": on every layer; σ in the decay
and the catapult phase) and on corrupted inputs (CDT). FC: three hidden layers of 1024 ReLU. CNN:
two blocks (conv 2×2, ELU, batch norm, max pool), 2048 ReLU. SGD, η = 0.05, |B| = 128, 500 epochs or
98 % training accuracy; noise off at evaluation.

The text doesn't say which cross-entropy. On logits (top) the σ = 231.6 of FC's in-node lies beyond
the catapult phase; with Keras' clipped softmax (bottom) it doesn't. A third reading keeps the
logits and takes σ from the scan of phases.
"""

from collections.abc import Callable

from dither.lab import Array, Claim, Figure, Run, Table, Verdict
from dither.lab.rule import Comparison, above, decide, not_below
from dither.papers import style
from dither.papers.ends import POINT, diverged, end
from dither.papers.levi2022.methods import (
    AT_SCALE,
    BASELINES,
    CATAPULTS,
    COLOURS,
    DEPARTURES,
    LEVELS,
    METHODS,
    RULED,
    SCAN,
    SEEDS,
    Setting,
    compared,
    curve,
    large,
    lines,
    shown,
    unlearnt,
)

SHOWN = tuple(m for m in METHODS if m != "CDT .2")


def runs(fc: Setting, cnn: Setting) -> dict[str, Run]:
    return compared(fc, SHOWN) | compared(cnn, SHOWN)


def label(net: str, method: str, reading: str) -> str:
    """The label of a method's run in a reading. Only the catapults are also trained with the
    clipped softmax.
    """
    return f"{net} {method}{reading if reading == ', clipped' and method in CATAPULTS else ''}"


Relation = Callable[..., Comparison]


def pairs(ours: list[str], others: list[str], relation: Relation, value=large, **floor: float):
    """Comparisons of each of our methods with each of the others, seed by seed. Every net must have
    learnt.
    """

    def check(t: Table) -> Verdict:
        seen = {m: value(t, m) for m in (*ours, *others)}
        asked = [relation(f"{a} − {b}", seen[a], seen[b], **floor) for a in ours for b in others]
        return decide(
            *asked, unless=unlearnt(t, seen), numbers=shown(t, seen, lambda _, m: seen[m])
        )

    return check


def best(net: str, reading: str):
    """L1, L2: the in-node's catapult is above all other methods, in the same reading if there is
    one.
    """
    others = [label(net, m, reading) for m in SHOWN if m != "in catapult"]
    return pairs([f"{net} in catapult{reading}"], others, above, by=POINT)


def decays(net: str, node: str):
    """L3: the difference is above −1 point."""
    baselines = [f"{net} {m}" for m in BASELINES]
    return pairs([f"{net} {node} decay"], baselines, not_below, within=POINT)


def clean(t: Table, label: str) -> Array:
    return end(t, label)


def cost_of_corruption(net: str):
    """L4: the accuracy on clean images."""
    ours = [f"{net} {m}" for m in ("in decay", "full decay")]
    return pairs(ours, [f"{net} CDT .4"], above, clean, by=POINT)


def drawn(t: Table, net: str, reading: str) -> dict[str, str]:
    """{run: method} of a panel, without missing runs."""
    methods = {label(net, m, reading): m for m in SHOWN}
    return {name: m for name, m in methods.items() if name in t.there}


def curves(ax, t: Table, runs: dict[str, str]) -> None:
    """One line per run. A run that diverged in every seed has a note with the step instead."""
    lost = {name: m for name, m in runs.items() if diverged(t, name).all()}
    lines(ax, t, {name: m for name, m in runs.items() if name not in lost})
    for i, (name, method) in enumerate(lost.items()):
        steps = t.last(name, "diverged")
        at = f"{steps.min():.0f}" + (f" … {steps.max():.0f}" if steps.min() < steps.max() else "")
        ax.text(
            0.03, 0.04 + 0.09 * i, f"{method}: diverged at step {at}", color=COLOURS[method],
            fontsize=9, transform=ax.transAxes,
        )  # fmt: skip


def plot(t: Table):
    """FC left, CNN right, as in the paper. A net without runs has no panel."""
    nets = [net for net in ("FC", "CNN") if any(name.startswith(net) for name in t.there)]
    rows = [r for r in ("", ", clipped") if not r or any(name.endswith(r) for name in t.there)]
    picture, axes = style.grid(len(rows), len(nets), height=3.4)
    for row, reading in zip(axes, rows, strict=True):
        for ax, net in zip(row, nets, strict=True):
            curves(ax, t, drawn(t, net, reading))
            ax.set_title(f"{net}, {'clipped softmax' if reading else 'logits'}")
    scan = "FC in catapult, scan"
    if scan in t.there:
        name = "in catapult, σ of the scan"
        mean = curve(t, scan).mean(0)
        axes[0, 0].plot(LEVELS, mean, ":", color=style.BLUE, lw=2.2, label=name)
    for ax in axes[-1]:
        ax.set_xlabel("corruption s")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    named = {h.get_label(): h for ax in axes.flat for h in ax.get_lines()}
    style.legend(
        picture, handles=[*named.values()], labels=[*named], loc="outside upper center", ncols=3
    )
    return picture


figure = Figure(
    runs,
    plot,
    **AT_SCALE,
    claims=[
        Claim("L1 scan", f"FC: in-NINR catapult (logits, σ = {SCAN['FC']['in catapult']:g}, chosen "
              "from the scan of phases) has the best accuracy at large corruption (mean over s = "
              ".5 … .8), by more than 1 point", best("FC", ", scan")),
        Claim("L1", "the same at the caption's σ = 231.6, which on logits is beyond the catapult "
              "phase", best("FC", "")),
        Claim("L1 clipped", "the same at σ = 231.6 with the clipped softmax",
              best("FC", ", clipped")),
        Claim("L2", "CNN: in-NINR catapult has the best accuracy at large corruption, by more than "
              "1 point", best("CNN", "")),
        Claim("L2 clipped", "the same with the clipped softmax", best("CNN", ", clipped")),
        *(
            Claim(f"L3{prime}{tail}", f"{net}: {node}-NINR decay is not 1 point below L2, dropout "
                  "or none at large corruption", decays(net, node))
            for net, tail in (("FC", ""), ("CNN", " CNN"))
            for node, prime in (("in", ""), ("full", "'"))
        ),
        *(
            Claim(f"L4{tail}", f"{net}: on clean data CDT(.4) is more than 1 point below decay "
                  "NINR, in and full", cost_of_corruption(net))
            for net, tail in (("FC", ""), ("CNN", " CNN"))
        ),
    ],
    departures=[
        *DEPARTURES,
        RULED,
        "L1 is judged at the σ of the scan ('L1 scan'): the caption's diverges on logits, and a "
        "net that has not learnt is not compared",
        "a run that diverged counts as chance, 10 %",
        "the clipped softmax is run for the catapult phases alone, where p_y falls below its 1e-7",
    ],
    seeds=SEEDS,
    needs=("fashion-mnist",),
    cost={"smoke": 0.2, "quick": 4.1, "decisive": 420, "paper": 6000},
)  # fmt: skip
