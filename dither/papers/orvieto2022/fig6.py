"""Figure 6: noise in a residual network with batch normalisation.   Orvieto et al. 2022, Fig. 6, §5

ResNet18, SGD with momentum .9 and weight decay 5e-4, η = .01 with cosine annealing, batches of 128,
random crops and flips; noise on every parameter tensor, BatchNorm's too, until nine tenths of the
150 epochs are over. Test accuracy and the trace of the training loss' Hessian at the end, against
σ, for noise on all tensors (σ/√M each) and on one a step.

A perturbed forward also moves BatchNorm's running statistics. They may be kept from it ("kept"):
then they are learnt in the last tenth, when the noise is off.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dither.lab import SGD, Accuracy, Array, Claim, Data, Figure, Loss, Run, Table, Verdict
from dither.lab.data import needs
from dither.lab.rule import above, below, decide, near, not_below
from dither.noise import Weight
from dither.papers import style
from dither.papers.ends import ACCURACY, LOSS, POINT, at_loss, best, chosen, common_loss, end, gains
from dither.papers.orvieto2022.cnns import CIFAR, FASHION, SAID, sets
from dither.papers.orvieto2022.cnns import Scale as Images
from dither.papers.orvieto2022.nets import ResNet
from dither.papers.orvieto2022.schemes import (
    COLOURS,
    DRAWS,
    FULL,
    GAUSS_NEWTON,
    GD,
    LAYER,
    TEST,
    TRACE,
    Curvature,
    unlearnt,
)
from dither.schedule import Until

WIDTH, QUIET = 64, 0.9  # the paper's width; the share of the steps that has noise
WIDE = 16  # the first stage's channels below which nothing is said of the paper's 64
HEADLINE = 0.0015  # of accuracy: half of what Fig. 6 gains on SGD
TWICE = 2.0
KEPT = "kept"


def noise(net: ResNet, sigma: float, steps: int) -> Any:
    """σ on every tensor until the last tenth. In a thinner net it is √(64/width) as large on
    weights with a smaller fan-in, so that its variance over theirs is the paper's.
    """
    until = max(1, round(QUIET * steps))
    same = Weight(Until(sigma, until))
    if net.width == WIDTH:
        return same
    more = Weight(Until(sigma * (WIDTH / net.width) ** 0.5, until))
    norms = dict.fromkeys(("conv.weight", "*norm*", "*.shortcut.1.*"), same)
    return norms | dict.fromkeys(("*.conv?.weight", "*.shortcut.0.*", "fc.*"), more)


def named(
    data: str, scheme: str = GD, sigma: float = 0.0, statistics: str = "", width: int = WIDTH
) -> str:
    """The label of a run. width: named if it is not the paper's, for SGD's run alone."""
    tail = f"{width} channels" if scheme == GD and width != WIDTH else ""
    words = [scheme.replace(GD, "SGD"), f"σ = {sigma:g}" if sigma else "", statistics, tail]
    return ", ".join(word for word in (*words, SAID[data]) if word)


def sgd(t: Table, data: str) -> str:
    """The label of SGD's run on these data, of any width; "" if there is none."""
    labels = (b for b in t.labels if b.startswith("SGD,") and b.endswith(SAID[data]))
    return next(labels, "")


def channels(label: str) -> int:
    """The channels of the first stage, from SGD's label."""
    words = label.split(", ")
    return next((int(w.split()[0]) for w in words if w.endswith(" channels")), WIDTH)


def runs(net: ResNet, images: Images, sigmas: tuple[float, ...], at: float) -> dict[str, Run]:
    """The runs. at: the σ at which BatchNorm's statistics are also kept from the noise."""
    by_label: dict[str, Run] = {}
    for data in sets(images):
        n = images.train or (50_000 if data == CIFAR else 60_000)
        steps = images.epochs * -(-n // images.batch)
        every = max(1, steps // images.looks)
        plain = Run(
            data=Data(data, train=images.train, test=images.test, subset_seed=None, flat=False),
            model=net,
            optimiser=SGD(0.01 * images.faster, momentum=0.9, weight_decay=5e-4),
            batch=images.batch,
            epochs=images.epochs,
            schedule="cosine",
            precision=images.precision,
            watch=(
                Loss("train", every, images.test), Loss("test", every), Accuracy("test", every),
                Curvature(every, images.limit),
            ),
        )  # fmt: skip
        by_label[named(data, width=net.width)] = plain
        for scheme in (FULL, LAYER):
            for sigma in sigmas:
                noisy = replace(plain, noise=noise(net, sigma, steps), draw=DRAWS[scheme])
                by_label[named(data, scheme, sigma)] = noisy
                if sigma == at:
                    kept = replace(noisy, statistics="keep")
                    by_label[named(data, scheme, sigma, KEPT)] = kept
    return by_label


# ------------------------------------------------------------------------------------------ claims


def sweep(t: Table, data: str, scheme: str) -> dict[float, str]:
    """{σ: label}, in increasing order, without the runs whose statistics were kept."""
    start, end = f"{scheme.replace(GD, 'SGD')}, σ = ", f", {SAID[data]}"
    pairs = [
        (name.removeprefix(start).removesuffix(end), name)
        for name in t.labels
        if name.startswith(start) and name.endswith(end) and KEPT not in name
    ]
    return dict(sorted((float(sigma), name) for sigma, name in pairs))


def ends(t: Table, data: str) -> dict[str, Any]:
    """Of every run: its end, its best record, its trace beside SGD's where both first have the
    lower of the two training losses that both reach, with the largest error of a trace.
    """
    mine = [name for name in t.labels if name.endswith(SAID[data])]
    numbers: dict[str, Any] = {
        f"{q}, {name}": end(t, name, q)
        for q in (ACCURACY, TEST, LOSS, TRACE, GAUSS_NEWTON)
        for name in mine
    }
    for name in mine:
        numbers[f"best {ACCURACY}, {name}"] = best(t, name)
        numbers[f"largest sem of the trace, {name}"] = np.nanmax(t.series(name, f"{TRACE} sem")[1])
        if name != (plain := sgd(t, data)):
            level = common_loss(t, (plain, name))
            gap = at_loss(t, name, TRACE, level) - at_loss(t, plain, TRACE, level)
            numbers[f"trace at equal training loss − SGD's, {name}"] = gap
    return numbers


def judged(data: str, check: Callable[[Table, str, str], Verdict], wide: bool = True):
    """The check of a claim. The data must be here, SGD must have learnt, and the net must be wide
    enough.
    """

    def said(t: Table) -> Verdict:
        if not (plain := sgd(t, data)):
            return None, {"why": needs.unrun(data)}
        why = unlearnt(t, [plain])
        if wide and (n := channels(plain)) < WIDE:
            why = f"{n} channels say nothing of a net of {WIDTH}: at least {WIDE} are needed"
        holds, numbers = check(t, data, why)
        return holds, {**numbers, **ends(t, data)}

    return said


def holds_up(t: Table, data: str, why: str) -> Verdict:
    """O18: at the σ where full noise is a point below SGD, layer-wise noise is not. That a noise
    keeps a net from learning there is an answer, of either.
    """
    numbers: dict[str, Any] = {}
    asked = []
    for sigma, name in sweep(t, data, FULL).items():
        full = gains(t, ACCURACY, name, sgd(t, data))
        layer = gains(t, ACCURACY, named(data, LAYER, sigma), sgd(t, data))
        numbers |= {f"full − SGD, σ = {sigma:g}": full, f"layer-wise − SGD, σ = {sigma:g}": layer}
        if decide(below(f"full − SGD, σ = {sigma:g}", full, by=POINT))[0]:
            asked.append(not_below(f"layer-wise not below SGD, σ = {sigma:g}", layer, within=POINT))
    if not asked:
        lost = f"full noise is at none of these σ a point below SGD, to 95 % (n = {len(t.seeds)})"
        return None, {"why": why or lost, **numbers}
    return decide(*asked, unless=why, numbers=numbers)


def headline(t: Table, data: str, why: str) -> Verdict:
    """At the σ that is best for the other seeds, layer-wise noise is above SGD."""
    by_sigma = sweep(t, data, LAYER)
    top = chosen([end(t, name) for name in by_sigma.values()])
    asked = above("layer-wise at its best σ − SGD", top, end(t, sgd(t, data), ACCURACY),
                  by=HEADLINE)  # fmt: skip
    return decide(asked, unless=why)


def rises(t: Table, data: str, why: str) -> Verdict:
    """O19: from σ = .1 on, the trace of full noise is more than twice SGD's, and more than twice
    its value at the smallest σ.
    """
    traces: Mapping[float, Array] = {
        sigma: end(t, name, TRACE) for sigma, name in sweep(t, data, FULL).items()
    }
    plain, least = end(t, sgd(t, data), TRACE), traces[min(traces)]
    asked = []
    for sigma, trace in traces.items():
        if sigma >= 0.1:
            asked += [
                above(f"trace, full / {other}, σ = {sigma:g}", trace / value, by=TWICE)
                for other, value in (("SGD", plain), (f"full at σ = {min(traces):g}", least))
            ]
    return decide(*asked, unless=why)


def same_end(t: Table, data: str, why: str) -> Verdict:
    """Ours: with and without kept statistics accuracies differ by less than 2 points, since the
    noise stops.
    """
    numbers: dict[str, Any] = {}
    asked, labels = [], []
    for name in t.labels:
        if KEPT in name and name.endswith(SAID[data]):
            other = name.replace(f"{KEPT}, ", "")
            labels += [name, other]
            gap = gains(t, ACCURACY, name, other)
            asked.append(near(f"kept − updated, {other}", gap, within=2 * POINT))
            until = QUIET * t.series(name, ACCURACY)[0][-1]
            seen = [t.series(run, ACCURACY) for run in (name, other)]
            ours, theirs = (values[:, steps <= until][:, -1] for steps, values in seen)
            during = ours - theirs
            numbers[f"kept − updated while the noise is on, {other}"] = during
    return decide(*asked, unless=why or unlearnt(t, labels), numbers=numbers)


TEXTS = [
    ("O18", "at every σ where full noise is a point below SGD, layer-wise noise is not", holds_up,
     True),
    ("O18 headline", "at its best σ layer-wise noise is above SGD (the paper: by .3 points; here: "
     "by more than half of that)", headline, True),
    ("O19", "full noise: from σ = .1 on the trace is more than twice SGD's, and that at the least "
     "σ", rises, True),
    ("O18 statistics", "ours: BatchNorm's statistics, kept from the noise or not, matter less than "
     "2 points at the end", same_end, False),
]  # fmt: skip


def plot(t: Table):
    picture, axes = style.grid(1, 2, height=3.6)
    data = next(d for d in SAID if sgd(t, d))
    for ax, quantity, title in zip(
        axes[0], (ACCURACY, TRACE), ("test accuracy", "trace of Hessian"), strict=True
    ):
        plain = end(t, sgd(t, data), quantity)
        ax.axhspan(
            plain.mean() - style.sd(plain),
            plain.mean() + style.sd(plain),
            color=style.GREY,
            alpha=0.3,
        )
        ax.axhline(plain.mean(), color=style.BLACK, ls="--", label="SGD")
        for scheme, aside in ((FULL, 0.96), (LAYER, 1.04)):
            said, by_sigma = scheme.replace(GD, "SGD"), sweep(t, data, scheme)
            kept = {s: named(data, scheme, s, KEPT) for s in by_sigma}
            kept = {s: name for s, name in kept.items() if name in t.labels}
            marks = {"color": COLOURS[scheme], "capsize": 2}
            errors(ax, t, by_sigma, quantity, aside, fmt="o-", label=said, **marks)
            label = f"{said}, statistics kept"
            errors(ax, t, kept, quantity, aside**2, fmt="D", mfc="white", label=label, **marks)
        ax.set(xscale="log", xlabel="σ", title=f"{title}, {SAID[data]}")
        ticks = list(sweep(t, data, FULL))
        ax.set_xticks(ticks, [f"{s:g}" for s in ticks])
        ax.set_xticks([], minor=True)
    style.logarithmic(axes[0, 1], "y")
    style.legend(axes[0, 0], fontsize=9)
    return picture


def errors(
    ax: Any, t: Table, by_sigma: Mapping[float, str], quantity: str, aside: float, **how: Any
) -> None:
    """Mean ± sd at each σ, with an offset."""
    values = [end(t, name, quantity) for name in by_sigma.values()]
    x = [sigma * aside for sigma in by_sigma]
    ax.errorbar(x, [v.mean() for v in values], [style.sd(v) for v in values], **how)


figure = Figure(
    runs,
    plot,
    smoke={
        "net": ResNet(4, (1, 1)),
        "images": Images(1, 32, 64, 32, 2, 8, substitute=True),
        "sigmas": (0.03, 0.1),
        "at": 0.1,
    },
    quick={
        "net": ResNet(8, (1, 1, 1), augment=False),
        "images": Images(4, 32, 512, 200, 2, 32, faster=5, substitute=True),
        "sigmas": (0.03, 0.1),
        "at": 0.1,
    },
    decisive={
        "net": ResNet(WIDE),
        "images": Images(30, 128, 15_000, None, 15, 512, precision="bf16"),
        "sigmas": (0.05, 0.1, 0.2),
        "at": 0.1,
    },
    paper={
        "net": ResNet(),
        "images": Images(150, 128, None, None, 30, 2000),
        "sigmas": (0.01, 0.03, 0.05, 0.1, 0.2),
        "at": 0.1,
    },
    claims=[
        Claim(
            id if data == CIFAR else f"{id} on Fashion-MNIST",
            f"{text} ({SAID[data]})",
            judged(data, check, wide),
        )
        for id, text, check, wide in TEXTS
        for data in (CIFAR, FASHION)
    ],
    departures=[
        "the σ of the sweep are not given in words",
        "crops leave black where the image ends, as released",
        "the trace is of the first 2000 training images, in eval mode, exact",
        "decisive: a ResNet18 of 16 to 128 channels, in which weights whose fan-in has shrunk get "
        "twice the σ; 15 000 images, 30 epochs, in bf16; three σ; the trace of 512 images",
        "quick: Fashion-MNIST in three channels (CIFAR-10 beside it where it is here), 512 images "
        "of it, 200 for tests, 32 for traces; batches of 32, 4 epochs, η × 5, no crops",
        "changed after first results: paired differences with 95 % intervals against a point of "
        "accuracy (had been one standard error), n ≥ 5; 'O18 headline' was added; fewer than 16 "
        "channels are not judged, as weights of a thin net average less noise away",
        "quick: a ResNet of widths 8, 16, 32 with one block each; σ is the paper's: weights whose "
        "fan-in has shrunk get √8 as much, which keeps the noise's variance over theirs",
        "smoke: one epoch of 64 images",
    ],
    seeds={"smoke": 2, "quick": 2, "decisive": 5, "paper": 5},
    needs=("fashion-mnist",),
    cost={"smoke": 0.1, "quick": 1.1, "decisive": 570, "paper": 400_000},
)
