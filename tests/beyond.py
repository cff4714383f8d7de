"""Tables of results for the figures beyond the papers, and their verdicts."""

import io

from dither.lab import Table

SEEDS = range(5)


def table(values) -> Table:
    """{run: {quantity: value, [values along training] or value(seed)}}; seeds differ a little."""
    rows = {}
    for i, (label, quantities) in enumerate(values.items()):
        rows[label] = {seed: [] for seed in SEEDS}
        for seed in SEEDS:
            for q, v in quantities.items():
                path = v(seed) if callable(v) else v
                path = path if isinstance(path, list) else [path]
                wiggle = 1 + 1e-3 * ((3 * seed + i) % 5 - 2)
                rows[label][seed] += [(float(k), q, x * wiggle) for k, x in enumerate(path)]
    return Table.of(rows)


def verdict(figure, claim, t):
    return said(figure, claim, t)[0]


def said(figure, claim, t):
    return next(c for c in figure.claims if c.id == claim).check(t)


def drawn(figure, t):
    figure.plot(t).savefig(io.BytesIO(), format="png")
