"""Small runs for the tests of training, and their rows as tables."""

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


def assert_same(a, b, rtol: float) -> None:
    assert a.keys() == b.keys()
    for seed in a:
        assert a[seed].keys() == b[seed].keys()
        for (step, quantity), value in a[seed].items():
            scale = max(abs(v) for (_, q), v in a[seed].items() if q == quantity)
            difference = abs(value - b[seed][step, quantity])
            assert difference <= rtol * (abs(value) + 0.1 * scale), (seed, step, quantity)
