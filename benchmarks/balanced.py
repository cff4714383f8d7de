"""What `schedule.Balanced` costs: `python -m benchmarks.balanced [--rounds 41]`.

A step of a training with noise (forward, backward, SGD) and a measure of `rebalance` take turns in
one process, so that what else runs on the machine slows both. The number is the median over rounds
of the ratio of their CPU times, with the quartiles, and what that is of the training at `every`
steps. Each fourth measure looks at the sizes of the tensors too, and they are counted as they come.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

import dither
from dither.schedule import Balanced

EVERY = 50
Call = Callable[[], None]
NOISES = {
    "additive": dither.Additive,
    "multiplicative": dither.Multiplicative,
    "weight": dither.Weight,
}


def mlp() -> tuple[nn.Module, Tensor]:
    """784-256²-10, a batch of 128."""
    model = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return model, torch.randn(128, 784)


def cnn() -> tuple[nn.Module, Tensor]:
    """Two convolutions and a head, a batch of 64."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 10),
    )  # fmt: skip
    return model, torch.randn(64, 1, 28, 28)


class Encoder(nn.Module):
    """Two layers of a transformer and a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def encoder() -> tuple[nn.Module, Tensor]:
    """The encoder on 32 positions, a batch of 32."""
    return Encoder(), torch.randn(32, 32, 64)


NETS = {"mlp": mlp, "cnn": cnn, "encoder": encoder}


def pair(make: Callable[[], tuple[nn.Module, Tensor]], noise: Any) -> tuple[Call, Call]:
    """(a step, a measure) of one training."""
    torch.manual_seed(0)
    model, x = make()
    y = x.flatten(1)[:, :10].argmax(1)
    injected = dither.inject(model, noise(Balanced(every=EVERY)), seed=0)
    optimiser = torch.optim.SGD(model.parameters(), 0.01)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    def measure() -> None:
        injected.kept.pop("next", None)  # it is due
        dither.rebalance(injected, x, y)

    for _ in range(10 * EVERY):  # until something is learnt
        dither.rebalance(injected, x, y)
        step()
    assert all(injected.kept["sigma"].values()), "the net has learnt nothing"
    return step, measure


def timed(call: Call) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """The table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=41)
    rounds = options.parse_args().rounds
    print(f"{'net':8} {'noise':15} a measure, in steps   share of a training, every={EVERY}")
    for net, make in NETS.items():
        for name, noise in NOISES.items():
            step, measure = pair(make, noise)
            ratios = []
            for _ in range(rounds):  # four measures: one of them looks at sizes
                steps = sum(timed(step) for _ in range(4))
                ratios.append(sum(timed(measure) for _ in range(4)) / steps)
            low, middle, high = quantiles(ratios, n=4)
            share = f"{100 * middle / EVERY:.1f} %"
            print(f"{net:8} {name:15} {middle:.2f} ({low:.2f}–{high:.2f})      {share}", flush=True)


if __name__ == "__main__":
    main()
