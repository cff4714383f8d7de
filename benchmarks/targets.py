"""What must be reached, and whether it was: multiples of one plain forward + backward, C = 10, one
thread, CPU time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

AT_MOST: dict[tuple[str, str], float] = {
    ("R", "mlp256"): 3.9,
    ("R", "mlp1024"): 3.2,
    ("R", "cnn"): 3.5,
    ("R", "resnet18"): 3.3,
    ("R", "transformer"): 3.0,
    ("R sampled", "mlp1024"): 0.8,
    ("R sampled", "cnn"): 0.8,
    ("R sampled", "resnet18"): 0.6,
    ("R sampled", "transformer"): 0.75,
    ("GN trace", "mlp1024"): 2.7,
    ("GN trace", "cnn"): 6.0,
    ("GN trace", "resnet18_b8"): 4.8,
    ("GN trace", "transformer"): 5.2,
    ("GN trace sampled", "mlp1024"): 0.8,
    ("GN trace sampled", "cnn"): 1.5,
    ("step + R sampled", "mlp1024"): 2.2,
    ("step + R", "mlp1024"): 10.5,
    ("memory", "cnn"): 2.5,
    ("Hessian trace", "mlp1024"): 3.0,
    ("Hessian trace", "cnn"): 6.5,
    ("weights", "mlp1024"): 1.25,
    ("weights", "cnn"): 1.08,
    ("weights", "resnet18"): 1.10,
    ("weights cycle", "mlp1024"): 1.05,
    ("weights cycle", "cnn"): 1.05,
    ("weights cycle", "resnet18"): 1.05,
    ("activations", "mlp1024"): 1.08,
    ("activations", "cnn"): 1.15,
    ("activations", "resnet18"): 1.15,
}
SEEDS_FASTER = 3.0
OF_HESSIAN = ("PyHessian", "curvlinops")


@dataclass(frozen=True)
class Against:
    """dither's cost over a peer's, in the same turns; `equal_error`: both times variance, the price
    of one standard error.
    """

    quantity: str
    workload: str
    peers: tuple[str, ...]
    most: float
    equal_error: bool = False


AGAINST = (
    Against("GN trace", "mlp1024", ("BackPACK",), 1 / 2),
    Against("GN trace", "cnn", ("BackPACK",), 2 / 5),
    Against("GN trace", "resnet18_b8", ("BackPACK",), 2 / 5),
    Against("GN trace sampled", "mlp1024", ("BackPACK",), 1 / 2),
    Against("GN trace sampled", "cnn", ("BackPACK",), 1 / 2),
    Against("Hessian trace", "mlp1024", OF_HESSIAN, 1 / 10),
    Against("Hessian trace", "cnn", OF_HESSIAN, 1 / 10),
    Against("Hessian trace", "tanh", OF_HESSIAN, 1 / 10, equal_error=True),
    Against("Hessian trace", "block", OF_HESSIAN, 1 / 10, equal_error=True),
)


@dataclass(frozen=True)
class Judged:
    """One target: what was to be, what was; `held` None where it was not measured."""

    what: str
    workload: str
    target: float
    found: float | None

    @property
    def held(self) -> bool | None:
        return None if self.found is None else self.found <= self.target

    @property
    def own(self) -> bool:
        """A cost in plain steps, not in a peer's."""
        return (self.what, self.workload) in AT_MOST and self.what != "memory"

    @property
    def mark(self) -> str:
        return {True: "✔", False: "✗", None: "–"}[self.held]


def cost(row: Row) -> float | None:
    """The median multiple of a plain step; nothing for a method that refused or gave another
    number.
    """
    if "ratio" in row:
        return row["ratio"]
    return row["cpu"]["median"] if "cpu" in row and same(row) else None


def same(row: Row) -> bool:
    """Whether its number was found to be the right one."""
    return row.get("check", {}).get("verdict") == "same"


def judge(rows: Iterable[Row]) -> list[Judged]:
    """Every target whose workload was run."""
    rows = list(rows)
    run = {row["workload"] for row in rows}
    found = []
    for (quantity, workload), most in AT_MOST.items():
        if workload in run:
            mine = [
                r for r in _of(rows, quantity, workload, "dither") if r["environment"] == "dither"
            ]
            found.append(Judged(quantity, workload, most, next(map(cost, mine), None)))
    for a in AGAINST:
        for peer in a.peers if a.workload in run else ():
            what = f"{a.quantity}, of {peer}'s" + (
                " at equal standard error" if a.equal_error else ""
            )
            found.append(Judged(what, a.workload, a.most, _relative(rows, a, peer)))
    return found


def _of(rows: list[Row], quantity: str, workload: str, who: str) -> list[Row]:
    return [
        r for r in rows if (r["quantity"], r["workload"], r["who"]) == (quantity, workload, who)
    ]


def _relative(rows: list[Row], a: Against, peer: str) -> float | None:
    """The least favourable of dither's cost over the peer's ways to the same number."""
    ratios = []
    for theirs in _of(rows, a.quantity, a.workload, peer):
        mine = [
            r
            for r in _of(rows, a.quantity, a.workload, "dither")
            if r["environment"] == theirs["environment"]
        ]
        costs = [price(r, equal_error=a.equal_error) for r in (*mine, theirs)]
        if len(costs) == 2 and None not in costs:
            ratios.append(costs[0] / costs[1])  # type: ignore[operator]
    return max(ratios, default=None)


def price(row: Row, *, equal_error: bool) -> float | None:
    """The cost, or cost times variance."""
    found = cost(row)
    if found is None or not equal_error:
        return found
    return found * row["sd"] ** 2 if row.get("sd") is not None else None
