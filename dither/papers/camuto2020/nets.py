"""The classifiers of App. D, E, F.7 and of eq. 14: trained once, looked at in several ways.

    none     cross-entropy
    GNI      noise of variance 0.1 on the input and every hidden activation
    R        no noise, cross-entropy + R (eq. 9)
    eq. 14   no noise, cross-entropy + what the paper prints as R: the diagonal of H alone

All from the same weights and in the same order of the data; ELU, no bias, Glorot's normal weights,
SGD in batches of 512. Each is trained on all images for as long as the paper does (rate × steps =
29.3), where nothing is fitted yet, and on few images until a net without noise fits them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import dither
from dither import loss as losses
from dither.attach.reading import probing
from dither.lab import (
    CNN,
    MLP,
    SGD,
    Accuracy,
    Array,
    Claim,
    Data,
    Loss,
    Outputs,
    Run,
    State,
    Table,
    Verdict,
    Watch,
    rule,
)
from dither.loss.columns import Columns, diagonal
from dither.measures import calibration, capacity, margins
from dither.papers import style
from dither.papers.camuto2020.epochs import steps
from dither.regulariser.explicit import explicit

Check = Callable[[Table], Verdict]
VARIANCE = 0.1  # σ² of Fig. 3 and 4
OTHERS = (0.25, 1.0)  # of Fig. 2
NOISE = dither.Additive(math.sqrt(VARIANCE))  # by default on the input of every layer: h₀ … h_{L−1}
ALL, FEW = "all images", "few images"
METHODS = {"none": style.BLACK, "GNI": style.BLUE, "R": style.ORANGE}
EQ14 = "eq. 14"
PERCENTS = (1, 5, *range(10, 100, 10), 95, 99)
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # std of input noise, pixels' std is 1
BINS = 15
ANSWERS = 50  # test images whose outputs are kept
SHIFTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
ENOUGH = 300  # steps below which nothing is judged
SHORT = f"the networks trained for fewer than {ENOUGH} steps"
LEARNT = 0.3  # test accuracy, three times chance, below which a network is not compared


@dataclass(frozen=True)
class Diagonal(losses.CrossEntropy):
    """Cross-entropy whose H is eq. 14's: diag(p_i(1 − p_i)), off-diagonal entries left out.

    Camuto et al. 2020, eq. 14: wrong as R (docs/math.md, section 16), here to be compared.
    """

    def columns(self, z: Tensor, y: Tensor) -> Columns:
        p = z.softmax(-1)
        return diagonal((p * (1 - p)).clamp(min=1e-30).sqrt())


@dataclass(frozen=True)
class Margins:
    """Of the first `limit` images of a split: percentiles of the input margin, "γ/test/50"; of the
    output margin, "m/test/50"; and of the first `walked` of them medians of the distance at which
    the answer turns, "distance/test", and of γ, "γ of these/test", over those answered rightly.
    """

    split: str = "test"
    limit: int = 1000
    walked: int = 200
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples(self.split, self.limit)  # type: ignore[arg-type]
        gamma = margins.inputs(state.model, x, y).value
        with torch.no_grad():
            m = margins.outputs(state.model(x), y)
        seen = {}
        for name, values in (("γ", gamma), ("m", m)):
            at = values.double().quantile(torch.tensor(PERCENTS, dtype=torch.float64) / 100)
            keys = [f"{name}/{self.split}/{q}" for q in PERCENTS]
            seen |= dict(zip(keys, at.tolist(), strict=True))
        right = m[: self.walked] > 0
        some = x[: self.walked][right], y[: self.walked][right]
        far = margins.boundary(state.model, *some)
        seen[f"distance/{self.split}"] = float(far.median()) if len(far) else math.nan
        first = gamma[: self.walked][right]
        seen[f"γ of these/{self.split}"] = float(first.median()) if len(far) else math.nan
        return seen


@dataclass(frozen=True)
class Capacity:
    """The capacity measures, "capacity/path", and each over the median output margin of `limit`
    training images, "normalised/path".
    """

    limit: int = 2000
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("train", self.limit)
        measured = capacity.capacity(state.model, x, y, quantile=0.5)
        normalised = measured.normalised()
        return {
            **{f"capacity/{name}": getattr(measured, name) for name in normalised},
            **{f"normalised/{name}": value for name, value in normalised.items()},
        }


@dataclass(frozen=True)
class Calibration:
    """Calibration on a split: "ece", "chance", "overconfidence", and the bins, "share/07",
    "gap/07".
    """

    split: str = "test"
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        z, y = (t[0] for t in state.outputs(self.split))  # type: ignore[arg-type]
        diagram = calibration.reliability(z.softmax(-1), y, bins=BINS)
        bins = {
            f"{name}/{m:02d}": float(values[m])
            for name, values in (("share", diagram.share), ("gap", diagram.gap))
            for m in range(BINS)
        }
        single = {q: float(getattr(diagram, q)) for q in ("error", "chance", "overconfidence")}
        return {"ece": single.pop("error"), **single, **bins}


@dataclass(frozen=True)
class Sensitivity:
    """Loss and accuracy on `limit` test images + s ε, ε ~ N(0, 1), at each level s: "noisy
    loss/0.3", "noisy accuracy/0.3". Each image has one ε, equal at all levels and for all nets.
    """

    limit: int = 2000
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("test", self.limit)
        rng = torch.Generator().manual_seed(state.seed)
        epsilon = torch.randn(x.shape, generator=rng)
        seen = {}
        for s in LEVELS:
            with torch.no_grad():
                z = state.model(x + s * epsilon.to(x))
            seen[f"noisy loss/{s:g}"] = float(torch.nn.functional.cross_entropy(z, y))
            seen[f"noisy accuracy/{s:g}"] = float((z.argmax(1) == y).float().mean())
        return seen


@dataclass(frozen=True)
class Both:
    """R by eq. 9 and by eq. 14 on `limit` test images, with `NOISE` on any net: "eq. 9", "eq. 14",
    and of its input alone, "eq. 9/input". The same of the first 100 images, and the loss, with one
    function s v·h added to all logits (h: the last hidden layer; v: random, as long as a row of the
    last weights is on average): "shifted eq. 14/0.5", "shifted loss/0.5".
    """

    limit: int = 1000
    every: int | None = None

    def __call__(self, state: State) -> dict[str, float]:
        x, y = state.examples("test", self.limit)
        forms = {"eq. 9": "cross_entropy", EQ14: Diagonal()}
        seen = {}
        last = [m for m in state.model.modules() if isinstance(m, torch.nn.Linear)][-1]
        weight = last.weight.detach()
        rng = torch.Generator().manual_seed(state.seed)
        v = torch.randn(weight.shape[1], generator=rng).to(weight)
        v *= weight.norm(dim=1).mean() / v.norm()
        kept = weight.clone()
        with (
            torch.no_grad(),
            probing(state.model, NOISE, seed=0) as noise,
        ):
            for name, form in forms.items():
                _, R, sites = explicit(noise, x, y, form)
                seen |= {name: float(R), f"{name}/input": float(next(iter(sites.values())))}
            for s in SHIFTS:
                try:
                    last.weight.copy_(kept + s * v)
                    for name, form in forms.items():
                        penalised = explicit(noise, x[:100], y[:100], form)
                        seen[f"shifted {name}/{s:g}"] = float(penalised.R)
                        seen[f"shifted loss/{s:g}"] = float(penalised.loss)
                finally:
                    last.weight.copy_(kept)
        return seen


@dataclass(frozen=True)
class Scale:
    """The cost of a scale: the net, the two trainings, whether R is exact, and the divisor of the
    numbers of images that are looked at.
    """

    model: MLP | CNN
    data: Data
    rate: float
    steps: int
    few: int
    few_rate: float
    few_steps: int
    objective: str = "sampled"
    fewer: int = 1


MLP_64 = MLP((784, 64, 64, 64, 10), activation="elu", bias=False, init="glorot")
SMALL = Scale(
    replace(MLP_64, widths=(784, 16, 16, 16, 10)),
    Data("fashion-mnist", train=512, test=100),
    rate=0.02, steps=6, few=200, few_rate=0.02, few_steps=6,
)  # fmt: skip
MEDIUM = Scale(
    MLP_64, Data("fashion-mnist"),
    rate=0.05, steps=steps("fashion-mnist", 0.05), few=1000, few_rate=0.05, few_steps=1500,
    fewer=4,
)  # fmt: skip
WHOLE = Scale(
    replace(MLP_64, widths=(784, 256, 256, 256, 10)), Data("fashion-mnist"),
    rate=1e-3, steps=steps("fashion-mnist"), few=1000, few_rate=0.01, few_steps=7500,
    objective="explicit",
)  # fmt: skip
COLOUR = Scale(
    replace(MLP_64, widths=(3072, 256, 256, 256, 10)), Data("cifar-10"),
    rate=0.02, steps=steps("cifar-10", 0.02), few=2000, few_rate=0.05, few_steps=3000,
)  # fmt: skip
SMOKE, QUICK, PAPER = ({"scale": scale} for scale in (SMALL, MEDIUM, WHOLE))
DECISIVE = {"scale": COLOUR, "variances": (VARIANCE, *OTHERS)}
SEEDS = {"smoke": 2, "quick": 5, "decisive": 5, "paper": 10}
DECIDED = (
    f"decisive: CIFAR-10, an MLP of three hidden layers of 256, noise of variance {VARIANCE:g}, "
    f"{' and '.join(f'{v:g}' for v in OTHERS)}; rate × steps as the paper's, at rate .02; {FEW}: "
    "2000 at a rate of .05; R by random signs; the picture shows variance .1"
)
DEPARTURES = [
    "the appendix is not to be had: its figures are derived and drawn anew",
    "Fashion-MNIST, one MLP of three hidden layers; the paper names neither for these figures",
    "images standardised (the released code: in [0, 1]), so σ² = .1 is in units of their variance",
    f"beside all images ({FEW}): 1000 in batches of 128 at a rate of .01, until they are fitted, "
    "which the paper does not do",
    "quick: width 64 instead of 256; rate × steps as the paper's, 29.3, at rate .05 instead of "
    ".001 (few images: .05), R by random signs, and a quarter of the images looked at",
]


def watches(fewer: int) -> tuple[Watch, ...]:
    return (
        Loss("train", None, 10_000), Accuracy("train", None, 10_000), Loss("test", None),
        Accuracy("test", None), Margins(limit=1000 // fewer, walked=200 // fewer),
        Capacity(2000 // fewer), Calibration(), Sensitivity(2000 // fewer), Both(1000 // fewer),
        Outputs("test", limit=ANSWERS),
    )  # fmt: skip


def nets(
    scale: Scale,
    methods: tuple[str, ...] = tuple(METHODS),
    settings: tuple[str, ...] = (ALL, FEW),
    variances: tuple[float, ...] = (VARIANCE,),
) -> dict[str, Run]:
    """{"none, all images": …, "GNI, few images": …, "GNI, σ² = 0.25, all images": …}: the runs of
    every figure that shows these nets.
    """
    return {
        f"{named(method, sigma2)}, {name}": trained(
            baseline(scale, name), method, scale.objective, sigma2
        )
        for name in settings
        for sigma2 in variances
        for method in methods
    }


def named(method: str, sigma2: float) -> str:
    """A method with noise of this variance; the variance is named where it is not the usual one."""
    return method if method == "none" or sigma2 == VARIANCE else f"{method}, σ² = {sigma2:g}"


def baseline(scale: Scale, setting: str) -> Run:
    """The run without noise."""
    few = setting == FEW
    return Run(
        data=replace(scale.data, train=scale.few) if few else scale.data,
        model=scale.model,
        optimiser=SGD(scale.few_rate if few else scale.rate),
        batch=128 if few else 512,
        steps=scale.few_steps if few else scale.steps,
        watch=watches(scale.fewer),
    )


def trained(base: Run, method: str, objective: str, sigma2: float = VARIANCE) -> Run:
    """`base` as one of the four methods."""
    if method == "none":
        return base
    noise = dither.Additive(math.sqrt(sigma2))
    if method == "GNI":
        return replace(base, noise=noise)
    loss = Diagonal() if method == EQ14 else "cross_entropy"
    return replace(base, noise=noise, objective=objective, loss=loss)


def short(t: Table) -> bool:
    """Whether this is a smoke test, in which nothing is judged."""
    return min(t.series(label, "ece")[0].max() for label in t.there) < ENOUGH


def drawn(t: Table) -> list[str]:
    """The settings of which all methods were run."""
    return [a for a in (ALL, FEW) if all(f"{method}, {a}" in t.there for method in METHODS)]


def both(t: Table, quantity: str, method: str, among: str) -> tuple[Array, Array]:
    """The values of the method and of none, [S] each."""
    return t.last(f"{method}, {among}", quantity), t.last(f"none, {among}", quantity)


def unlearnt(t: Table, labels: Sequence[str]) -> str:
    """A sentence that names the networks that have not learnt; "" if all have."""
    accuracy = {label: t.last(label, "accuracy/test") for label in labels}
    return rule.unlearnt(accuracy, at_least=LEARNT, what="test accuracy")


def unjudged(t: Table, method: str, among: str) -> str:
    """Why nothing can be said of a method; "" if it was trained, and for long enough."""
    if short(t):
        return SHORT
    there = f"{method}, {among}" in (*t.there, *t.missing)
    return "" if there else f"this scale does not train {method}, {among}"


def of_variances(id: str, text: str, check: Callable[[str, str], Check]) -> list[Claim]:
    """The claim at the other variances; check(method, among)."""
    listed = []
    for sigma2 in OTHERS:
        for method, word in (("GNI", "noise"), ("R", "R")):
            for among, fitted in ((ALL, ""), (FEW, ", images fitted")):
                tail = "R, " * (method == "R") + f"σ² = {sigma2:g}" + f", {FEW}" * (among == FEW)
                said = f"{word} of variance {sigma2:g}{fitted}: {text}"
                listed.append(Claim(f"{id} ({tail})", said, check(named(method, sigma2), among)))
    return listed
