"""How the cost of exact R grows with depth, width, batch and classes, beside the floor; and ten
seeds at once.

floor: (C − 1)/3 + 1/3 of a plain step: C − 1 input-gradient passes and a forward
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks import clock, nets
from benchmarks.methods import DITHER, plain
from benchmarks.workloads import Job, Workload

DEPTH, WIDTH, BATCH, CLASSES = 4, 512, 128, 10
AXES: dict[str, tuple[int, ...]] = {
    "depth": (1, 2, 4, 8, 16),
    "width": (64, 128, 256, 512, 1024, 2048),
    "batch": (8, 32, 128, 512, 2048),
    "classes": (2, 3, 5, 10, 20, 50, 100),
}
SEEDS, STEPS = 10, 100


def net(axis: str, n: int) -> Job:
    """The MLP 784-512⁴-10 with B 128 and one of the four changed; random inputs, as costs don't
    depend on them.
    """
    size = {"depth": DEPTH, "width": WIDTH, "batch": BATCH, "classes": CLASSES, axis: n}
    widths = [784, *[size["width"]] * size["depth"], size["classes"]]
    work = Workload(
        "growth", f"{axis} {n}", lambda: nets.mlp(*widths), size["batch"], ("R", "R sampled")
    )
    x, y = torch.randn(size["batch"], 784), torch.randint(size["classes"], (size["batch"],))
    return Job(work, work.net(), x, y)


def floor(classes: int) -> float:
    """What exact R must cost where layers are matrix products."""
    return (classes - 1) / 3 + 1 / 3


def grown(rounds: int) -> list[dict[str, Any]]:
    """One row for each size along each axis."""
    rows = []
    for axis, sizes in AXES.items():
        for n in sizes:
            job = net(axis, n)
            calls = {m.quantity: m.build(job.own()) for m in DITHER if m.claims(job.workload)}
            _, found = clock.interleaved(plain(job), calls, rounds)
            bound = floor(n if axis == "classes" else CLASSES)
            costs = {quantity: timing.as_dict()["cpu"] for quantity, timing in found.items()}
            rows.append({"axis": axis, "n": n, "floor": bound, **costs})
    return rows


def seeds(rounds: int) -> list[dict[str, Any]]:
    """Ten seeds of 2-64-64-1 as one program, against one after another: how many times faster, and
    how far apart they end.
    """
    from dither.lab.data.sets import Data
    from dither.lab.figure import Run, Silent
    from dither.lab.nets.specs import MLP
    from dither.lab.training.loop import train
    from dither.lab.training.optimiser import SGD
    from dither.lab.training.watch import Loss
    from dither.noise import Additive

    wanted = range(SEEDS)

    rows = []
    for how, noise in (("without noise", None), ("with noise", Additive(0.1))):
        run = Run(
            data=Data("planted", features=2, train=128),
            model=MLP((2, 64, 64, 1)),
            noise=noise,
            optimiser=SGD(0.01),
            loss="half_square",
            batch=32,
            steps=STEPS,
            watch=(Loss("train", every=STEPS),),
        )

        def stacked(run: Run = run) -> None:
            train(run, wanted, Silent())

        def serial(run: Run = run) -> None:
            for seed in wanted:
                train(run, [seed], Silent())

        together = train(run, wanted, Silent())
        apart = {seed: train(run, [seed], Silent())[seed] for seed in wanted}
        error = max(abs(a[-1][2] - together[s][-1][2]) / abs(a[-1][2]) for s, a in apart.items())
        _, found = clock.interleaved(stacked, {"serial": serial}, rounds)
        rows.append({"how": how, "faster": found["serial"].as_dict()["cpu"], "apart": error})
    return rows


def main() -> None:
    """Rounds from the command line, one line of JSON out."""
    rounds = int(sys.argv[1])
    clock.alone()
    torch.manual_seed(1)
    sys.stdout.write(json.dumps({"growth": grown(rounds), "seeds": seeds(rounds)}) + "\n")


if __name__ == "__main__":
    main()
