"""MLP1–4 of Orvieto et al. 2022, App. F.1, with no, full and layer-wise noise: what Figs. 4 and
7–10 share.

ReLU networks in PyTorch's initialisation, full-batch GD with momentum .9 on 1024 Fashion-MNIST
images in [0, 1], tested on others.

At reduced width w′ a layer behind the first gets σ√(w/w′), and the learning rate is η w/w′: the
variance of the noise over that of the weights, R at the start, and what a step does to the function
are then those of the paper's net. What is not: unit directions u and v meet |u·Ev| ~ σ of the noise
E, √(w/w′) times as much, so that a narrow net averages less of a layer's noise away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dither.lab import MLP, SGD, Array, Claim, Data, Figure, Run, Table, Verdict
from dither.lab.figure import SCALES
from dither.lab.rule import Comparison, above, below, decide
from dither.noise import Weight
from dither.papers import style
from dither.papers.ends import ACCURACY, LOSS, PART, POINT, at_loss, common_loss, end, gains
from dither.papers.orvieto2022.schemes import (
    FULL,
    GD,
    LAYER,
    SCHEMES,
    TEST,
    TRACE,
    looks,
    panel,
    report,
    schemes,
    unlearnt,
)

WIDE = 1000  # units below which nothing is said of nets of 5000
WIDER = ("MLP2", "MLP4")
OURS = ("MLP3 at .05, rate .02",)
Name = Literal["MLP1", "MLP2", "MLP3", "MLP3 at .05", "MLP3 at .05, rate .02", "MLP4"]
Rate = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Net:
    """784 → width^depth → 10, and the settings of its training."""

    depth: int
    width: int
    sigma: float
    lr: float

    @property
    def ratio(self) -> float:
        """Var of full noise over Var of a hidden layer's weights, U(±1/√width): 3 width σ²/M."""
        return 3 * self.width * self.sigma**2 / (2 * (self.depth + 1))


NETS: dict[str, Net] = {
    "MLP1": Net(3, 500, 0.05, 0.005),
    "MLP2": Net(3, 5000, 0.1, 0.005),
    "MLP3": Net(5, 1000, 0.1, 0.005),  # App. F.1
    "MLP3 at .05": Net(5, 1000, 0.05, 0.005),  # the main text
    "MLP3 at .05, rate .02": Net(5, 1000, 0.05, 0.02),  # ours
    "MLP4": Net(5, 5000, 0.05, 0.001),
}


@dataclass(frozen=True)
class Scale:
    """The cost of a scale; None: the paper's value. looks: steps between looks. limit: images for
    the trace. sigma: replaces the net's. slower: a further factor on the rate. precision: of the
    training steps.
    """

    width: int | None
    steps: int
    looks: int
    images: int = 1024
    test: int | None = None
    limit: int | None = None
    rates: tuple[Rate, ...] = ("cosine", "constant")
    sigma: float | None = None
    slower: float = 1.0
    precision: str = "float32"


def plain(net: Net, scale: Scale, rate: Rate) -> Run:
    """GD on the images of the run's seed."""
    width = scale.width or net.width
    return Run(
        data=Data(
            "fashion-mnist", train=scale.images, test=scale.test, subset_seed=None,
            standardise=False,
        ),
        model=MLP((784, *[width] * net.depth, 10), init="torch"),
        optimiser=SGD(net.lr * net.width / width * scale.slower, momentum=0.9),
        steps=scale.steps,
        schedule=rate,
        precision=scale.precision,
        watch=looks(max(1, scale.steps // scale.looks), limit=scale.limit),
    )  # fmt: skip


def more(net: Net, scale: Scale) -> float:
    """√(w/w′): the factor on σ behind the first layer."""
    return (net.width / (scale.width or net.width)) ** 0.5


def noise(net: Net, scale: Scale, sigma: float | None = None) -> Any:
    """σ on every tensor. In a narrower net it is √(w/w′) as large behind the first layer."""
    sigma = sigma or scale.sigma or net.sigma
    factor = more(net, scale)
    if factor == 1:
        return Weight(sigma)
    return {"fc0.*": Weight(sigma), "fc[1-9]*": Weight(sigma * factor)}


def named(name: str, rate: str, units: int | None = None) -> dict[str, str]:
    """{scheme: the label of its run}. units: the hidden width, if it is not the paper's."""
    tail = f", {units} units" if units else ""
    return {scheme: f"{name} {scheme}, {rate}{tail}" for scheme in SCHEMES}


def there(t: Table, name: str, rate: str = "cosine") -> dict[str, str]:
    """{scheme: label} of the runs in a table, of the largest width; {} if there is none."""
    start = f"{name} {GD}, {rate}"
    labels = [b for b in (*t.there, *t.missing) if b == start or b.startswith(f"{start}, ")]
    widest = max(labels, key=lambda label: width(label) or NETS[name].width, default=None)
    return named(name, rate, width(widest)) if widest else {}


def width(label: str) -> int | None:
    """The units that a label names; None for the paper's."""
    last = label.rpartition(", ")[2]
    return int(last.removesuffix(" units")) if last.endswith(" units") else None


def thin(name: str, label: str) -> str:
    """Why the claim of a wide net can't be judged on this run; "" if it can."""
    units = width(label) or NETS[name].width
    if units >= WIDE:
        return ""
    return f"{units} units say nothing of a net of {NETS[name].width}: at least {WIDE} are needed"


def runs(**scales: Scale) -> dict[str, Run]:
    """MLP1=Scale(…), …: the schemes on each, at each rate."""
    by_label: dict[str, Run] = {}
    for name, scale in scales.items():
        net = NETS[name]
        for rate in scale.rates:
            each = schemes(plain(net, scale, rate), noise(net, scale))
            labels = named(name, rate, scale.width)
            by_label |= {labels[scheme]: run for scheme, run in each.items()}
    return by_label


# ------------------------------------------------------------------------------------------ claims

Check = Callable[[Table], Verdict]


def judged(
    name: str,
    check: Callable[[Table, dict[str, str]], tuple[list[Comparison], dict[str, Any]]],
    learnt: Sequence[str] = SCHEMES,
) -> Check:
    """The check of a claim with cosine annealing, as in the text. The named schemes must have
    learnt, and a net that the paper calls wide must be wide.
    """

    def said(t: Table) -> Verdict:
        labels = there(t, name)
        if not labels:
            return None, {"why": f"{name} is not trained at this scale"}
        thinner = thin(name, labels[GD]) if name in WIDER else ""
        asked, numbers = check(t, labels)
        why = thinner or unlearnt(t, [labels[scheme] for scheme in learnt])
        return decide(
            *asked, unless=why, numbers={**numbers, **report(t, labels), **constant(t, name)}
        )

    return said


def constant(t: Table, name: str) -> dict[str, Any]:
    """The same check at a constant rate, as in the released code, if it was run."""
    labels = there(t, name, "constant")
    if not labels or labels[GD] not in t.there:
        return {}
    ends = {
        f"constant rate: {q}, {scheme}": end(t, label, q)
        for scheme, label in labels.items()
        for q in (ACCURACY, TRACE)
    }
    return ends | {"constant rate: share of records where layer-wise is lowest": order(t, labels)}


def less(t: Table, quantity: str, ours: str, other: str, of: dict[str, str]) -> Comparison:
    """Our value is below the other's by 5 %, seed by seed."""
    ratio = end(t, of[ours], quantity) / end(t, of[other], quantity)
    return below(f"{quantity}, {ours} / {other}, − 1", ratio, 1, by=PART)


def raised(t: Table, ours: str, other: str, of: dict[str, str]) -> Comparison:
    """Our accuracy is a point higher."""
    return above(f"accuracy: {ours} − {other}", gains(t, ACCURACY, of[ours], of[other]), by=POINT)


def narrow(t: Table, of: dict[str, str]) -> tuple[list[Comparison], dict[str, Any]]:
    """Both noises lower the trace and raise accuracy, layer-wise noise more."""
    pairs = ((FULL, GD), (LAYER, GD), (LAYER, FULL))
    asked = [raised(t, ours, other, of) for ours, other in pairs]
    return [*asked, *(less(t, TRACE, ours, GD, of) for ours in (FULL, LAYER))], {}


def wide(t: Table, of: dict[str, str]) -> tuple[list[Comparison], dict[str, Any]]:
    """Layer-wise noise raises accuracy, full noise lowers it. The other numbers separate
    undertraining from a worse fit.
    """
    level = common_loss(t, (of[GD], of[FULL]))
    undertrained = end(t, of[FULL], LOSS) / end(t, of[GD], LOSS)
    worse = at_loss(t, of[FULL], TEST, level) - at_loss(t, of[GD], TEST, level)
    why = {
        "undertraining: training loss, full / GD": undertrained,
        "generalisation: test loss at equal training loss, full − GD": worse,
    }
    return [raised(t, LAYER, GD, of), raised(t, GD, FULL, of)], why


def lowest(t: Table, of: dict[str, str]) -> tuple[list[Comparison], dict[str, Any]]:
    """At the end layer-wise noise has the lowest trace."""
    asked = [less(t, TRACE, LAYER, other, of) for other in (GD, FULL)]
    return asked, {"share of records where it is lowest": order(t, of)}


def order(t: Table, of: dict[str, str]) -> Array:
    """The share of looks after the first at which layer-wise noise has the lowest trace, [S]."""
    trace = {scheme: t.series(label, TRACE)[1][:, 1:] for scheme, label in of.items()}
    looks = min(values.shape[1] for values in trace.values())  # of a run that diverged fewer
    trace = {scheme: values[:, :looks] for scheme, values in trace.items()}
    if not looks:
        return np.full(len(t.seeds), np.nan)
    return (trace[LAYER] < np.fmin(trace[GD], trace[FULL])).mean(1)


def lowest_at_loss(t: Table, of: dict[str, str]) -> tuple[list[Comparison], dict[str, Any]]:
    """The same when each scheme first reaches the lowest training loss that all reach."""
    level = common_loss(t, of.values())
    trace = {s: at_loss(t, label, TRACE, level) for s, label in of.items()}
    asked = [
        below(f"trace at equal loss, {LAYER} / {s}, − 1", trace[LAYER] / trace[s], 1, by=PART)
        for s in (GD, FULL)
    ]
    return asked, {}


NARROW = "narrow: both noises lower the trace, by 5 %, and raise test accuracy, by a point; "
NARROW += "layer-wise noise raises it by a point more than full noise"
WIDE_TEXT = (
    "wide: layer-wise noise raises test accuracy over GD's, full noise lowers it, by a point"
)


def claims(name: str) -> list[Claim]:
    """O13 is of narrow nets, O14 of wide ones, O15 of the deep ones, MLP3 and MLP4; asked of the
    others it is ours.
    """
    deep = name.startswith("MLP3") or name == "MLP4"
    lower = ("O15", "") if deep else ("trace", ", not in the paper")
    first = (
        Claim(f"O14 ({name})", f"{name}, {WIDE_TEXT}", judged(name, wide, (GD, LAYER)))
        if name in WIDER
        else Claim(f"O13 ({name})", f"{name}, {NARROW}", judged(name, narrow))
    )
    return [
        first,
        Claim(
            f"{lower[0]} end ({name})",
            f"{name}: layer-wise noise ends at the lowest trace, by 5 %{lower[1]}",
            judged(name, lowest),
        ),
        Claim(
            f"{lower[0]} equal loss ({name})",
            f"{name}: at equal training loss layer-wise noise has the lowest trace, by 5 %"
            f"{lower[1]}",
            judged(name, lowest_at_loss),
        ),
    ]


# ---------------------------------------------------------------------------------------- pictures


def plot(t: Table, name: str, other: str = ""):
    """Training loss, test loss, test accuracy, trace; dashed at a constant rate, or those of
    another net.
    """
    picture, axes = style.grid(2, 2, height=3.2)
    rest = there(t, other) if other else there(t, name, "constant")
    also = bool(rest) and rest[GD] in t.labels
    for ax, quantity in zip(axes.flat, (LOSS, TEST, ACCURACY, TRACE), strict=True):
        panel(ax, t, there(t, name), quantity)
        if also:
            panel(ax, t, rest, quantity, ls="--", lw=1)
    handles = axes[0, 0].get_lines()[: len(SCHEMES)]
    if also:
        handles += axes[0, 0].plot(
            [], [], "--", color=style.GREY, lw=1, label=other or "constant rate"
        )
    style.legend(picture, handles=handles, loc="outside upper center", ncols=4)
    return picture


SMOKE = Scale(16, 8, 4, images=64, test=64, limit=16, rates=("cosine",))
QUICK: dict[str, Scale] = {
    "MLP1": Scale(128, 800, 10, images=512, test=2000, limit=256, rates=("cosine",)),
    "MLP2": Scale(128, 200, 6, test=2000, limit=256, rates=("cosine",), sigma=0.025, slower=0.4),
    "MLP3 at .05": Scale(
        128, 600, 8, images=512, test=2000, limit=256, rates=("cosine",), sigma=0.05
    ),
    "MLP4": Scale(128, 300, 6, images=512, test=2000, limit=256, rates=("cosine",)),
}
PAPER = Scale(None, 2000, 40)
COSINE = replace(PAPER, rates=("cosine",))
DECISIVE: dict[str, Scale] = {  # of MLP2: Fig. 8's ladder
    "MLP1": COSINE,
    "MLP3 at .05": Scale(None, 2000, 20, limit=512, rates=("cosine",), precision="bf16"),
}
DECISIVE["MLP3 at .05, rate .02"] = DECISIVE["MLP3 at .05"]
HOUR: dict[str, Scale] = {  # the 5000-wide: as many steps as fit into an hour
    "MLP2": Scale(None, 300, 6, rates=("cosine",)),
    "MLP4": Scale(None, 130, 4, rates=("cosine",)),
}
COST = {  # minutes
    "MLP1": {"smoke": 0.05, "quick": 1, "decisive": 130, "paper": 130},
    "MLP2": {"smoke": 0.05, "quick": 0.3, "paper": 60},
    "MLP3": {"smoke": 0.05, "quick": 0, "decisive": 0, "paper": 750},
    "MLP3 at .05": {"smoke": 0.05, "quick": 1, "decisive": 75, "paper": 750},
    "MLP3 at .05, rate .02": {"smoke": 0.05, "quick": 0, "decisive": 75, "paper": 0},
    "MLP4": {"smoke": 0.05, "quick": 0.5, "paper": 60},
}
DEPARTURES = [
    "momentum .9 and the cyclic order of tensors are the released code's, its weight decay is not",
    "cosine annealing is the text's and judged; the released code's runs are at a constant rate "
    "(dashed)",
    "how long they trained is not given: 2000 steps at paper scale",
    "the trace is the trace (theirs is multiplied by its probes), and exact: the nets are ReLU",
    "decisive: cosine annealing alone; of MLP3 the main text's σ = .05 alone, in bf16, traces on "
    "512 of the 1024 images",
    "quick: hidden width 128, σ and the rate scaled by its rule; 800 (MLP1), 200 (MLP2), 600 "
    "(MLP3) or 300 steps, 2000 test images, traces on 256 of the 512 images (MLP2: 1024), "
    "cosine annealing alone",
    "quick: changed after first results: MLP1 from 500 to 800 steps (at 500 both noises were "
    "behind GD, undertrained, and O13 failed)",
    "quick: MLP2 at σ = .025 (its .1 leaves a net of 128 units at chance, with either noise) and "
    "0.4 of the rule's rate (at all of it the loss jumps, and a seed with layer-wise noise dies)",
    "quick: MLP3 at the main text's σ = .05 alone (at App. F.1's .1 both noises lose accuracy)",
    "changed after first results: paired differences with 95 % intervals against a point of "
    "accuracy and 5 % of a trace (had been one standard error); n ≥ 5; each net compared must have "
    "learnt, but for full noise in O14, which says that it hurts; O13 of MLP3 is asked at both σ",
    "O14 and O15 of the 5000-wide nets are not judged below 1000 units: full noise is averaged "
    "less in a narrow net",
    "smoke: 16 units, 64 images, 8 steps",
]


HOURLY = (
    "paper: of the nets with 5000 units what fits into about an hour on one core (3.6 and 8.1 s a "
    "step, three runs): 300 steps (MLP2), 130 (MLP4) at cosine annealing, one seed"
)


def figure(*names: Name, draw: Callable[[Table], Any] | None = None, more: Sequence[str] = ()):
    """A figure of one net, or of several; `more`: its own departures."""
    known = [s for s in SCALES if all(s in COST[name] for name in names)]
    cost = {s: sum(COST[name][s] for name in names) for s in known}
    hourly, few = set(names) & set(HOUR), set(names) <= set(HOUR)
    decisive = {name: DECISIVE[name] for name in names if name in DECISIVE}
    return Figure(
        runs,
        draw or (lambda t: plot(t, next(name for name in names if there(t, name)))),
        smoke=dict.fromkeys(names, SMOKE),
        quick={name: QUICK[name] for name in names if name in QUICK},
        decisive=decisive if "decisive" in known else None,
        paper={name: HOUR.get(name, PAPER) for name in names if name not in OURS},
        claims=[claim for name in names for claim in claims(name)],
        departures=[*more, *([HOURLY] if hourly else []), *DEPARTURES],
        seeds={
            "smoke": 2,
            "quick": 3 if few else 5,
            "decisive": 10 if names == ("MLP1",) else 5,
            "paper": 1 if few else 5,
        },
        needs=("fashion-mnist",),
        cost=cost,
    )
