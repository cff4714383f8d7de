"""The results of a figure's runs, for claims and pictures: one long table (run, seed, step,
quantity, value).
"""

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dither.errors import DitherError
from dither.lab.wording import whole

Array = NDArray[np.float64]
SCHEMA = {
    "run": pl.String,
    "seed": pl.Int64,
    "step": pl.Float64,
    "quantity": pl.String,
    "value": pl.Float64,
}


class Table:
    """Results by run label, seed, step and quantity. Every label has every seed. The rows of arrays
    are in the order of `seeds`.

    missing: {label: why} of the runs without results. Access to one raises with that reason.
    more: rows of runs at seeds that others lack; `select` alone reads them. lost: {(label, seed):
    why} of seeds without results.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        missing: Mapping[str, str] | None = None,
        more: pl.DataFrame | None = None,
        lost: Mapping[tuple[str, int], str] | None = None,
    ) -> None:
        self.frame, self.more = frame, frame.clear() if more is None else more
        self.lost = dict(lost or {})
        self.missing = dict(missing or {})
        self._whole = False
        self.there: tuple[str, ...] = tuple(frame["run"].unique(maintain_order=True))
        self.seeds: tuple[int, ...] = tuple(sorted(frame["seed"].unique()))

    @classmethod
    def of(
        cls,
        results: Mapping[str, Mapping[int, Iterable[tuple[float, str, float]]]],
        missing: Mapping[str, str] | None = None,
    ) -> "Table":
        """From {label: {seed: [(step, quantity, value), …]}}, the results of `execute` by label."""
        rows = [
            (label, seed, *row)
            for label, seeds in results.items()
            for seed, rows in seeds.items()
            for row in rows
        ]
        return cls(pl.DataFrame(rows, schema=SCHEMA, orient="row"), missing)

    @property
    def known(self) -> tuple[str, ...]:
        """All runs, those without results too."""
        return (*self.there, *self.missing)

    @property
    def labels(self) -> tuple[str, ...]:
        """All runs. In a `whole` table it raises if a run is missing; `there` has those with
        results.
        """
        if self._whole and self.missing:
            label, why = next(iter(self.missing.items()))
            n = len(self.missing) - 1
            more = f", nor have {n} others" if n > 1 else ", nor has one other" if n else ""
            raise DitherError(f"{label!r} has no results{more}: {why}")
        return self.there

    def whole(self) -> "Table":
        """A copy that raises if any run is missing; claims are checked on it."""
        _ = self._parts, self._series  # shared by all copies
        table = copy.copy(self)
        table._whole = True
        return table

    def select(self, labels: Sequence[str], seeds: Sequence[int]) -> "Table":
        """A table of these runs at these seeds. Raises if one of them has no result."""
        rows = pl.concat([self.frame, self.more])
        rows = rows.filter(pl.col("run").is_in(labels), pl.col("seed").is_in(seeds))
        for label in labels:
            absent = sorted(set(seeds) - set(rows.filter(pl.col("run") == label)["seed"]))
            if not absent:
                continue
            whys = dict.fromkeys(self.lost.get((label, n), "it has no results") for n in absent)
            lacks = f"{label!r} lacks {whole(absent)}: {'; '.join(whys)}"
            raise DitherError(f"seeds {whole(seeds)} are asked; {lacks}")
        return Table(rows)

    @cached_property
    def _series(self) -> dict[tuple[str, str], tuple[Array, Array]]:
        return {}  # claims ask for the same ones again and again

    @cached_property
    def _parts(self) -> dict[tuple[str, str], pl.DataFrame]:
        parts = self.frame.partition_by("run", "quantity", as_dict=True, maintain_order=True)
        return {(str(label), str(quantity)): part for (label, quantity), part in parts.items()}

    def _part(self, label: str, quantity: str) -> pl.DataFrame:
        if (part := self._parts.get((label, quantity))) is not None:
            return part
        self._check(label)
        known = self.quantities(label) if label in self.there else list(self.there)
        what, got = ("quantity", quantity) if label in self.there else ("run", label)
        near = difflib.get_close_matches(got, known, n=3, cutoff=0.3) or known[:8]
        there = ", ".join(map(repr, near)) or "nothing in it"
        raise DitherError(f"the table has no {what} {got!r}; there is {there}")

    def _check(self, label: str) -> None:
        if label in self.missing:
            raise DitherError(f"{label!r} has no results: {self.missing[label]}")

    def quantities(self, label: str) -> list[str]:
        """The quantities that a run recorded. Raises for a run without results."""
        self._check(label)
        return [quantity for name, quantity in self._parts if name == label]

    def series(self, label: str, quantity: str) -> tuple[Array, Array]:
        """Steps [T] and values [S, T]; nan if a seed has no value at a step (it stopped early, or
        was not measured there).
        """
        part = self._part(label, quantity)
        if (label, quantity) not in self._series:
            steps, column = np.unique(part["step"].to_numpy(), return_inverse=True)
            values = np.full((len(self.seeds), len(steps)), np.nan)
            row = np.searchsorted(self.seeds, part["seed"].to_numpy())
            values[row, column] = part["value"].to_numpy()
            self._series[label, quantity] = steps, values
        steps, values = self._series[label, quantity]
        return steps.copy(), values.copy()

    def last(self, label: str, quantity: str) -> Array:
        """[S]: every seed's value at its own last step; nan for a seed that never recorded it."""
        return self._end(label, quantity, descending=True)

    def first(self, label: str, quantity: str) -> Array:
        """[S]: every seed's value at its own first step; nan for a seed that never recorded it."""
        return self._end(label, quantity, descending=False)

    def _end(self, label: str, quantity: str, *, descending: bool) -> Array:
        part = self._part(label, quantity).sort("step", descending=descending, maintain_order=True)
        ends = dict(
            part.unique("seed", keep="first", maintain_order=True)
            .select("seed", "value")
            .iter_rows()
        )
        return np.array([ends.get(seed, np.nan) for seed in self.seeds], dtype=np.float64)

    def numbers(self) -> pl.DataFrame:
        """Per run, quantity and step: n seeds, their mean and sd, for pictures."""
        grouped = self.frame.group_by("run", "quantity", "step", maintain_order=True)
        value = pl.col("value")
        return grouped.agg(n=value.count(), mean=value.mean(), sd=value.std())
