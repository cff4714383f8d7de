"""Small runs for the tests of training, and their rows as tables."""

import re

import numpy as np

from dither.lab.data.sets import Data
from dither.lab.figure import Run, Silent
from dither.lab.nets.specs import MLP
from dither.lab.training.loop import train
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import Loss, NodeNorms, Objective, Outputs, WeightNorms

SEEDS = (2, 0, 7)
DIGITS = Data("mnist-5000", train=60, test=40)
SINUSOIDS = Data("sinusoids", train=40)
WATCHES = (
    Loss("train", every=5),
    Loss("test", every=5),
    Objective(every=1),
    WeightNorms(every=5),
    NodeNorms(every=5),
    Outputs("test", limit=4),
)


def run(**changes) -> Run:
    base = {
        "data": DIGITS,
        "model": MLP((784, 12, 9, 10), activation="elu"),
        "optimiser": SGD(0.1),
        "batch": 25,
        "steps": 20,
        "watch": WATCHES,
    }
    return Run(**(base | changes))


def regression(**changes) -> Run:
    base = {
        "data": SINUSOIDS,
        "model": MLP((1, 12, 9, 1), activation="tanh"),
        "loss": "half_square",
        "batch": None,
    }
    return run(**(base | changes))


def table(rows) -> dict[tuple[float, str], float]:
    found = {(step, quantity): value for step, quantity, value in rows}
    assert len(found) == len(rows)  # nothing is recorded twice
    return found


def go(what: Run, seeds=SEEDS, progress=None):
    return {s: table(rows) for s, rows in train(what, seeds, progress or Silent()).items()}


def vectors(rows) -> dict[str, dict[float, np.ndarray]]:
    """{quantity: {step: its numbers}}: all outputs are one vector, as their indices are no name."""
    found: dict[str, dict[float, list[float]]] = {}
    for step, quantity in sorted(rows):
        name = re.sub(r"/\d+", "", quantity)
        found.setdefault(name, {}).setdefault(step, []).append(rows[step, quantity])
    return {q: {t: np.array(v) for t, v in at.items()} for q, at in found.items()}


def assert_same(a, b, rtol: float) -> None:
    """‖a_t − b_t‖ ≤ rtol max_t ‖a_t‖ for each quantity's vector, whatever is near 0 in it."""
    assert a.keys() == b.keys()
    for seed in a:
        assert a[seed].keys() == b[seed].keys()
        other = vectors(b[seed])
        for quantity, at in vectors(a[seed]).items():
            size = max(np.linalg.norm(v) for v in at.values())
            for step, v in at.items():
                off = np.linalg.norm(v - other[quantity][step])
                assert off <= rtol * size, (seed, step, quantity, off / size)
