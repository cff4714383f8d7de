"""The one rule by which claims are judged.

Each seed gives one value of a quantity, and a claim is a range for its mean μ. Most often the
quantity is a paired difference a − b, of two networks that share their seed, and the claim is μ >
floor. The floor is the smallest difference that matters. It is written into the claim before any
result.

    holds         the 95 % interval of μ (Student's t) lies inside the range
    fails         the interval lies outside the range
    not judged    the interval contains an edge of the range, or n < 5, or a value is not finite

    return decide(
        above("accuracy: noise − none", noise, none, by=0.01),
        not_above("trace: noise/none", noise_trace / none_trace, 1, within=0.05),
        unless=unlearnt({"noise": fitted, "none": fitted_too}, at_least=0.5),
    )

A claim of several comparisons holds if all hold. It fails if one fails by Holm's correction. With
every μ on its edge, a claim is decided in at most 5 % of cases, however many comparisons it has:
in 2.5 % one fails (Holm 1979); in 2.5 % all hold, which needs no correction (Berger 1982).
"In every run" is a share of runs: its exact interval (Clopper & Pearson 1934) is compared with .9.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dither.errors import DitherError

__all__ = [
    "EVERY", "LEAST", "LEVEL", "Comparison", "Finding", "above", "below", "between", "decide",
    "exact", "few", "interval", "near", "nearer", "not_above", "not_below", "power", "share",
    "unlearnt",
]  # fmt: skip

LEVEL = 0.95  # of every interval
TAIL = (1 - LEVEL) / 2
LEAST = 5  # smallest number of random values that is judged
EVERY = 0.9  # share of runs that counts as "in every run"
MANY = 1000  # seeds; a forecast stops there

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A claim's question: does the mean of `values` [n] lie in low < mean < high?

    kind: "mean" (Student's t); "share" (values 0 or 1, Clopper–Pearson; the edges belong to the
    range); or "exact" (no randomness: every value must lie in the range, edges included).
    """

    name: str
    values: Array
    low: float = -math.inf
    high: float = math.inf
    kind: str = "mean"

    def __post_init__(self) -> None:
        if not self.values.size:
            raise DitherError(f"{self.name}: there is no value to judge; give one per seed")
        if not self.low < self.high:
            raise DitherError(
                f"{self.name}: the range {self.low:g} … {self.high:g} is empty; give low < high"
            )

    @property
    def asked(self) -> str:
        """The range in signs: "> 0.01", "within ± 0.05", "0.75 … 1.25"."""
        if self.high == math.inf:
            return f"{'>' if self.kind == 'mean' else '≥'} {self.low:g}"
        if self.low == -math.inf:
            return f"{'<' if self.kind == 'mean' else '≤'} {self.high:g}"
        if self.low == -self.high:
            return f"within ± {self.high:g}"
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Finding:
    """The result of a comparison: mean, 95 % interval, n, the range, the verdict."""

    name: str
    mean: float
    low: float
    high: float
    n: int
    asked: str
    holds: bool | None
    why: str = ""  # of a comparison that is not judged

    def entry(self) -> dict[str, Any]:
        """Plain JSON, as in claims.json."""
        numbers = {key: _plain(getattr(self, key)) for key in ("mean", "low", "high")}
        said = {"n": self.n, "asked": self.asked, "holds": self.holds}
        return {**numbers, **said, "kind": "interval"}


# ------------------------------------------------------------------------------ what can be asked


def above(name: str, a: ArrayLike, b: ArrayLike = 0.0, *, by: float = 0.0) -> Comparison:
    """The mean of a − b is above `by`."""
    return Comparison(name, _paired(name, a, b), low=by)


def below(name: str, a: ArrayLike, b: ArrayLike = 0.0, *, by: float = 0.0) -> Comparison:
    """The mean of a − b is below −`by`."""
    return Comparison(name, _paired(name, a, b), high=0.0 - by)  # 0, and not −0


def not_below(name: str, a: ArrayLike, b: ArrayLike = 0.0, *, within: float) -> Comparison:
    """The mean of a − b is above −`within`: a is not below b by `within` or more."""
    return Comparison(name, _paired(name, a, b), low=-within)


def not_above(name: str, a: ArrayLike, b: ArrayLike = 0.0, *, within: float) -> Comparison:
    """The mean of a − b is below `within`."""
    return Comparison(name, _paired(name, a, b), high=within)


def near(name: str, a: ArrayLike, b: ArrayLike = 0.0, *, within: float) -> Comparison:
    """The mean of a − b lies within ± `within`."""
    return Comparison(name, _paired(name, a, b), low=-within, high=within)


def nearer(name: str, near: ArrayLike, far: ArrayLike, *, by: float) -> Comparison:
    """One distance is below another: the mean of (far − near)/⟨far⟩ is above `by`. ⟨far⟩ is the
    mean of the larger distance over seeds. Not judged unless ⟨far⟩ > 0; an unbiased estimate of a
    square may be below 0.
    """
    gap, whole = _paired(name, far, near), np.asarray(far, dtype=np.float64).mean()
    return Comparison(name, gap / whole if whole > 0 else gap * math.nan, low=by)


def between(name: str, values: ArrayLike, low: float, high: float) -> Comparison:
    """The mean of the values lies between low and high."""
    return Comparison(name, _vector(name, values), low=low, high=high)


def share(name: str, happened: ArrayLike, *, least: float = EVERY) -> Comparison:
    """An event happens in at least this share of runs. happened: [n], true or false."""
    return Comparison(name, _vector(name, happened), low=least, kind="share")


def exact(
    name: str, values: ArrayLike, *, low: float = -math.inf, high: float = math.inf
) -> Comparison:
    """Every value lies in low ≤ value ≤ high. For what has no randomness, as an identity."""
    return Comparison(name, _vector(name, values), low=low, high=high, kind="exact")


def unlearnt(
    quality: Mapping[str, ArrayLike],
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    what: str = "training accuracy",
) -> str:
    """A sentence for `unless` that names the networks that have not learnt; "" if all have.

    quality: {network: [S]}. A network has learnt if every seed's value lies within the bounds.
    """
    values_of = {name: _vector(name, values) for name, values in quality.items()}
    bad = [
        f"{name} ({what} {np.mean(values):.3g})"
        for name, values in values_of.items()
        if not ((values >= at_least) & (values <= at_most)).all()
    ]
    bound = f"at least {at_least:g}" if at_most == math.inf else f"at most {at_most:g}"
    return f"not learnt in every run: {', '.join(bad)}; needed is {bound}" if bad else ""


def few(n: int) -> str:
    """A sentence for `unless`: n seeds are too few where data or starts are random; "" if not."""
    return "" if n >= LEAST else f"n = {n}: at least {LEAST} seeds are needed"


# ------------------------------------------------------------------------------------ the verdict


def decide(
    *comparisons: Comparison, unless: str = "", numbers: Mapping[str, Any] | None = None
) -> tuple[bool | None, dict[str, Any]]:
    """(holds, numbers): the verdict of a claim, with a `Finding` under each comparison's name.

    unless: why the claim can't be judged, for example networks that have not learnt; "" if it can.
    numbers: more numbers to show. Without a verdict, "why" says what is missing.
    """
    if not comparisons:
        raise DitherError("a claim without a comparison can't be judged: give one or more")
    results = findings(comparisons, judge=not unless)
    shown: dict[str, Any] = {finding.name: finding for finding in results}
    if len(shown) < len(results):
        raise DitherError("two comparisons of a claim have one name: give each a name of its own")
    verdicts = [finding.holds for finding in results]
    holds = False if False in verdicts else None if None in verdicts else True
    whys = dict.fromkeys(finding.why for finding in results if finding.holds is None)
    why = {} if holds is not None else {"why": unless or "; ".join(whys)}
    return holds, {**why, **shown, **(numbers or {})}


def findings(comparisons: Sequence[Comparison], *, judge: bool = True) -> list[Finding]:
    """The result of each comparison. Random ones fail by Holm's step-down."""
    tested = [i for i, c in enumerate(comparisons) if judge and not _unfit(c)]
    tails = {i: _tail(comparisons[i]) for i in tested}
    chance = sorted((i for i in tested if comparisons[i].kind != "exact"), key=tails.__getitem__)
    failed = {i for i in tested if comparisons[i].kind == "exact" and tails[i] == 0}
    for rank, i in enumerate(chance):
        if tails[i] > TAIL / (len(chance) - rank):
            break
        failed.add(i)
    return [_finding(c, i in tails, i in failed, judge) for i, c in enumerate(comparisons)]


def _finding(c: Comparison, tested: bool, failed: bool, judge: bool) -> Finding:
    mean, low, high = interval(c.values, kind=c.kind)
    said = (c.name, mean, low, high, len(c.values), c.asked)
    if not tested:
        return Finding(*said, None, _unfit(c) if judge else "")
    if failed:
        return Finding(*said, False)
    edges = c.kind != "mean"
    if (c.low < low or (edges and c.low == low)) and (high < c.high or (edges and high == c.high)):
        return Finding(*said, True)
    return Finding(*said, None, _missing(c, mean, low, high))


def interval(values: ArrayLike, *, kind: str = "mean") -> tuple[float, float, float]:
    """Mean of [n] and the ends of its 95 % interval: Student's t, Clopper and Pearson's for
    "share", the extremes for "exact"; nan if there is none.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if not np.isfinite(x).all():
        return mean, math.nan, math.nan
    if kind == "exact":
        return mean, float(x.min()), float(x.max())
    if kind == "share":
        return mean, *_exact_share(round(x.sum()), n)
    if n < 2:
        return mean, math.nan, math.nan
    half = float(special.stdtrit(n - 1, 1 - TAIL) * x.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def power(effect: float, n: int) -> float:
    """The probability that "μ > floor" holds if μ − floor is `effect` standard deviations of the
    values.

    n < 5 is never judged; for it this is the probability by the interval alone.
    """
    edge = special.stdtrit(n - 1, 1 - TAIL)
    return 1 - float(special.nctdtr(n - 1, effect * math.sqrt(n), edge))


# ---------------------------------------------------------------------------------------- details


def _unfit(c: Comparison) -> str:
    """Why these values can't be judged; "" if they can."""
    if bad := int((~np.isfinite(c.values)).sum()):
        why = "a run diverged, or a distance is 0"
        return f"{c.name}: {bad} of {len(c.values)} values are not finite ({why})"
    return "" if c.kind == "exact" else few(len(c.values))


def _tail(c: Comparison) -> float:
    """The p-value against "the mean lies in the range", one-sided; exact: 0 if a value is out."""
    x, n = c.values, len(c.values)
    if c.kind == "exact":
        return float(((x >= c.low) & (x <= c.high)).all())
    if c.kind == "share":
        return float(special.bdtr(round(x.sum()), n, c.low))
    mean, error = x.mean(), x.std(ddof=1) / math.sqrt(n)
    beyond = max(c.low - mean, mean - c.high)
    if error == 0:
        return float(beyond <= 0)
    return float(special.stdtr(n - 1, -beyond / error))


def _missing(c: Comparison, mean: float, low: float, high: float) -> str:
    """Why an interval that contains an edge settles nothing, and how many seeds would."""
    where = f"{c.name}: {mean:.3g} [{low:.3g}, {high:.3g}] does not settle {c.asked}"
    if not (c.low < high and low < c.high):
        return f"{where} by Holm's correction"
    n = _needed(c, mean)
    seeds = f"about n = {n}" if n <= MANY else f"more than n = {MANY}"
    return f"{where} (n = {len(c.values)}; {seeds} would, if mean and spread stay)"


def _needed(c: Comparison, mean: float) -> int:
    """The n at which the interval would exclude the nearest edge, with mean and spread as now."""
    start = len(c.values) + 1
    if c.kind == "share":
        ends = ((n, *_exact_share(round(mean * n), n)) for n in range(start, MANY + 1))
        return next((n for n, low, high in ends if low >= c.low or high < c.low), MANY + 1)
    spread, gap = c.values.std(ddof=1), min(abs(mean - c.low), abs(mean - c.high))
    ns = range(start, MANY + 1)
    return start + bisect_left(
        ns, True, key=lambda n: special.stdtrit(n - 1, 1 - TAIL) * spread / math.sqrt(n) < gap
    )


def _exact_share(k: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share, k of n."""
    low = special.betaincinv(k, n - k + 1, TAIL) if k else 0.0
    high = special.betaincinv(k + 1, n - k, 1 - TAIL) if k < n else 1.0
    return float(low), float(high)


def _paired(name: str, a: ArrayLike, b: ArrayLike) -> Array:
    """The differences a − b [S], seed by seed. Either may be one number for all seeds."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.ndim > 1 or (second.ndim and first.shape != second.shape):
        raise DitherError(
            f"{name}: values of shape {first.shape} and {second.shape} are not paired; give one "
            "value per seed on both sides"
        )
    return _vector(name, first - second)


def _vector(name: str, values: ArrayLike) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DitherError(f"{name}: values of shape {vector.shape}; give one value per seed [S]")
    return vector


def _plain(x: float) -> float | str:
    return float(x) if math.isfinite(x) else str(float(x))
