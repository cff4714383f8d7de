"""The numbers of a comparison: values by method, quantity and seed, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from dither.lab import rule
from dither.lab.compare.quantities import SIGMA, sense

HUGE = 1e6  # above it a number is shown to three digits
LAST = "last epoch"  # the epoch whose weights are measured
PERCENT = ("accuracy", "calibration error", "its chance level")  # shares, shown in %
NO_VERDICT = ("its chance level", SIGMA, "ms/step", LAST, "diverged")


@dataclass(frozen=True)
class Difference:
    """A method's quantity minus that of the first method, paired by seed.

    mean, low, high  the mean over seeds and the ends of its 95 % interval (Student's t)
    verdict          "better", "worse" (for quantities without a better side "higher", "lower"), or
                     "" if the interval does not settle it
    """

    mean: float
    low: float
    high: float
    verdict: str


@dataclass
class Values:
    """The values at the end of training: `values[method][quantity]` is [seeds], nan for a run that
    diverged or failed.

    failures: {"method · seed 0": a sentence}. chosen: whether a validation part chose the epoch.
    """

    values: dict[str, dict[str, np.ndarray]]
    seeds: tuple[int, ...]
    problem: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    chosen: bool = False

    # ----------------------------------------------------------------------------- numbers

    @property
    def quantities(self) -> list[str]:
        """All quantities, in the order of their measures."""
        names = dict.fromkeys(q for values in self.values.values() for q in values)
        if not self.chosen:
            names.pop(LAST, None)
        return sorted(names, key=lambda q: q in NO_VERDICT[1:])

    def difference(self, method: str, quantity: str) -> np.ndarray:
        """The method's values minus those of the first method, seed by seed [seeds]."""
        first = next(iter(self.values.values()))
        return self.values[method][quantity] - first[quantity]

    def differences(self, quantity: str) -> dict[str, Difference]:
        """{method: Difference} from the first method, for the methods that have the quantity.

        A verdict is given from 5 seeds on, by the 95 % interval, with Holm's correction for the
        number of methods: with no effect at all one of them is called different in at most 5 % of
        comparisons.
        """
        first, *others = self.values
        gaps = {
            m: self.difference(m, quantity)
            for m in others
            if quantity in self.values[m] and quantity in self.values[first]
        }
        if not gaps:
            return {}
        words = {"low": ("worse", "better"), "high": ("better", "worse")}
        higher, lower = words.get(sense(quantity), ("higher", "lower"))
        asked = (
            (higher, [rule.not_above(m, gap, within=0.0) for m, gap in gaps.items()]),
            (lower, [rule.not_below(m, gap, within=0.0) for m, gap in gaps.items()]),
        )
        verdicts = dict.fromkeys(gaps, "")
        for word, comparisons in asked if quantity not in NO_VERDICT else ():
            for found in rule.findings(comparisons):
                if found.holds is False:
                    verdicts[found.name] = word
        return {m: Difference(*rule.interval(gap), verdicts[m]) for m, gap in gaps.items()}

    def to_frame(self) -> pl.DataFrame:
        """All values as a long table (method, seed, quantity, value) of polars."""
        rows = [
            (method, seed, quantity, float(value))
            for method, columns in self.values.items()
            for quantity, column in columns.items()
            for seed, value in zip(self.seeds, column, strict=True)
        ]
        schema = {
            "method": pl.String, "seed": pl.Int64, "quantity": pl.String, "value": pl.Float64
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    @staticmethod
    def unit(quantity: str) -> tuple[float, str]:
        """(factor, unit) in which a quantity is shown."""
        return (100.0, ", %") if quantity.startswith(PERCENT) else (1.0, "")

    def rows(self, quantity: str) -> list[tuple[str, str, str, str]]:
        """The cells of a quantity's table: method, mean ± sd, difference and interval, verdict."""
        first, scale, unit = next(iter(self.values)), *self.unit(quantity)
        found = self.differences(quantity)
        versus = f"minus {first} [95 %]" if found else ""
        rows = [(f"{quantity}{unit}", "mean ± sd", versus, "")]
        for method, columns in self.values.items():
            if quantity not in columns:
                continue
            gap = found.get(method)
            ends, word = ("", "") if gap is None else (_interval(gap, scale), gap.verdict)
            rows.append((f"  {method}", _value(quantity, columns[quantity] * scale), ends, word))
        return rows

    def notes(self) -> list[str]:
        """What the table does not say by itself."""
        n = len(self.seeds)
        said = [f"{n} seed{'s' * (n > 1)}, paired: each has the same first weights and order"]
        if n < rule.LEAST:
            said[0] += f"; no verdict below {rule.LEAST} seeds"
        for method, columns in self.values.items():
            if lost := int(columns.get("diverged", np.zeros(1)).sum()):
                said.append(
                    f"{method}: {lost} of {n} runs diverged: take a smaller rate, or inputs and "
                    "targets of unit size"
                )
            sigma = columns.get(SIGMA, np.ones(1))
            if silent := int((sigma == 0).sum()):
                said.append(
                    f"{method}: σ was 0 in {silent} of {n} runs, so they are as without noise. If "
                    "σ was matched, the network had not learnt enough: train it longer"
                )
        alike: dict[str, list[str]] = {}
        for what, why in self.failures.items():
            alike.setdefault(why, []).append(what)
        for why, (first, *others) in alike.items():
            more = f" and {len(others)} more" if others else ""
            said.append(f"{first}{more} failed: {why}")
        return said


def columns(
    by_seed: Mapping[int, Mapping[str, float]], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """{quantity: [seeds]}, nan for a run that failed, diverged or has no such quantity."""
    rows = [by_seed.get(seed, {}) for seed in seeds]
    diverged = np.array(["diverged" in row for row in rows])
    names = dict.fromkeys(q for row in rows for q in row if q != "diverged")
    values = {q: np.array([row.get(q, np.nan) for row in rows]) for q in names}
    values = {q: np.where(diverged, np.nan, v) for q, v in values.items()}
    return {**values, "diverged": diverged.astype(float)} if diverged.any() else values


def _value(quantity: str, values: np.ndarray) -> str:
    """Mean ± standard deviation of the finite values, to two digits of the latter."""
    if quantity == "diverged":
        return f"{int(values.sum())} of {len(values)}"
    left = values[np.isfinite(values)]
    if not len(left):
        return "–"
    spread = left.std(ddof=1) if len(left) > 1 else 0.0
    places = _places(spread or abs(left.mean()) / 100)
    if abs(left.mean()) >= HUGE:
        return f"{left.mean():.3g}"
    said = f"{left.mean():.{places}f}" + (f" ± {spread:.{places}f}" if len(left) > 1 else "")
    return said + (f" ({len(values) - len(left)} missing)" if len(left) < len(values) else "")


def _interval(gap: Difference, scale: float) -> str:
    mean, low, high = (scale * end for end in (gap.mean, gap.low, gap.high))
    if not math.isfinite(mean):
        return "–"
    if abs(mean) >= HUGE:
        return f"{mean:+.3g}"
    if not math.isfinite(high):
        return f"{mean:+.{_places(abs(mean) / 10)}f}"
    places = _places((high - low) / 2)
    return f"{mean:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def _places(size: float) -> int:
    """Decimals that show a size to two digits."""
    return 3 if size == 0 else int(np.clip(1 - math.floor(math.log10(size)), 0, 6))
