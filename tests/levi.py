"""Tables of Levi et al.'s figures, in which every run scores what a test says."""

from dither.lab.table import Table
from dither.papers.levi2022 import (
    table1,
)
from dither.papers.levi2022.looks import LEVELS, STRENGTHS, attacked, corrupted


def verdict(figure, claim: str, table: Table):
    return next(c for c in figure.claims if c.id == claim).check(table)


EVEN = 0.601  # a share of at least 1 000 images


def scores(figure, scale="smoke", seeds=5, default=EVEN, spread=0.001, **changed) -> Table:
    """A table in which every run scores `default` everywhere; changed {label: accuracy}. Seeds and
    runs differ by a few thousandths.
    """
    names = ["accuracy/train", "accuracy/test", "accuracy/shifted", "vanishing"]
    names += ["accuracy/usps test"] * (figure is table1.figure)
    names += [corrupted(s) for s in LEVELS]
    names += [attacked(m, t, e) for m in ("fgsm", "pgd") for t in ("loss", "margin")
              for e in STRENGTHS]  # fmt: skip
    rows = {}
    fixed = {"accuracy/train": 0.95, "vanishing": 0.1}
    for i, label in enumerate(figure.at(scale)):
        value, rows[label] = changed.get(label, default), {}
        for seed in range(seeds):
            own = 0.0 if value is None else value + spread * ((3 * seed + i) % seeds - seeds // 2)
            one = [(9.0, q, fixed.get(q, own)) for q in names]
            rows[label][seed] = [(9.0, "diverged", 9.0)] if value is None else one
    return Table.of(rows)
