"""Tables of runs made by hand: nets that end at a loss, a trace and a place."""

from dither.lab.table import Table
from dither.papers.camuto2020 import paths

STEPS = (0, 400, 800)


def sketched(step: int, at: float) -> list:
    return [(step, "θ/0", at)] + [(step, f"θ/{i}", 0.0) for i in range(1, paths.BUCKETS)]


def path(loss: float, trace: float, at: float, steps=STEPS) -> dict:
    """Rows of five seeds that end at this loss, trace and (one-dimensional) place."""
    found = {}
    for seed in range(5):
        rows = []
        for i, step in enumerate(steps):
            end = i / (len(steps) - 1)
            rows += [(step, "loss/test", 2 + end * (loss - 2) + 1e-3 * seed)]
            rows += [(step, q, 9 + end * (trace - 9)) for q in ("trace", "authors' trace")]
            rows += [(step, q, 0.5) for q in ("accuracy/train", "accuracy/test")]
            rows += [(step, "trace sem", 0.1)]
            rows += sketched(step, end * at)
        found[seed] = rows
    return found


def made_up(methods: dict, nets, prefix: str = "", steps=STEPS) -> Table:
    return Table.of(
        {f"{prefix}{net} {m}": path(*end, steps) for net in nets for m, end in methods.items()}
    )


def verdict(figure, claim: str, t: Table):
    return next(c for c in figure.claims if c.id == claim).check(t)
