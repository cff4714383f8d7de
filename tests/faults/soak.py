"""Random operations for a given time: each episode replays to the same numbers, nothing is left on
the model, and memory stays flat.

python tests/faults/soak.py --minutes 15 --seed 0
"""

import argparse
import copy
import gc
import os
import pickle
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dither
from dither import measures
from dither.errors import DitherError

GROWTH = 1.05  # resident memory at the end over that after a tenth of the time
B, C = 6, 3
Lots = random.Random


class Kept(nn.Module):
    """A part under an activation checkpoint."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=False)  # type: ignore[return-value]


def network(lots: Lots) -> tuple[nn.Module, Tensor]:
    """A small network and its inputs."""
    width = lots.choice((4, 8))
    hidden = nn.Sequential(nn.Linear(5, width), nn.Tanh())
    which = lots.randrange(4)
    if which == 0:
        return nn.Sequential(hidden, nn.Linear(width, C)), torch.randn(B, 5)
    if which == 1:
        return nn.Sequential(Kept(hidden), nn.Linear(width, C)), torch.randn(B, 5)
    if which == 2:
        conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
        return nn.Sequential(conv, nn.Linear(18, C)), torch.randn(B, 1, 5, 5)
    norm = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.GELU())
    return nn.Sequential(norm, nn.Linear(width, C)), torch.randn(B, 5)


def noises(lots: Lots) -> dict[str, object]:
    """Arguments of inject."""
    sigma = lots.choice((0.1, 0.3, lambda step: 0.1 / (1 + step)))
    kinds = [
        {"what": dither.Additive(sigma)},
        {"what": dither.Multiplicative(law=dither.dropout(0.2))},
        {"what": {"1": dither.Node(0.5)}},
        {"what": dither.Weight(0.05), "draw": lots.choice(("each", "all", "cycle", "random"))},
        {"what": {"1": dither.Additive(0.1), "input": dither.Additive(0.2)}},
    ]
    return lots.choice(kinds)


class Episode:
    """One model with noise on and off it, and what came out, as numbers."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.lots, self.told, self.done = Lots(seed), [], Counter()
        self.model, self.x = network(self.lots)
        self.y = torch.randint(C, (B,))
        self.noise: dither.Injection | None = None

    def tell(self, value: Tensor | float) -> None:
        self.told.append(torch.as_tensor(value, dtype=torch.float64).detach().sum().item())

    def inject(self) -> None:
        if self.noise is not None:
            self.noise.remove()
        given = dict(noises(self.lots))
        what = given.pop("what")
        self.noise = dither.inject(self.model, what, example=self.x, **given)  # type: ignore

    def remove(self) -> None:
        if self.noise is not None:
            self.noise.remove()
            self.noise = None
        self.tell(self.model(self.x))

    def train(self) -> None:
        more = list(self.noise.parameters()) if self.noise else []
        optimiser = torch.optim.SGD([*self.model.parameters(), *more], 0.01)
        for _ in range(3):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(self.model(self.x), self.y)
            loss.backward()
            optimiser.step()
            self.tell(loss)

    def hold(self) -> None:
        if self.noise:
            with self.noise.hold():
                self.tell(self.model(self.x))
                self.tell(self.model(self.x))

    def mirrored(self) -> None:
        if self.noise:
            self.tell(self.model(self.x))
            with self.noise.mirrored():
                self.tell(self.model(self.x))

    def off(self) -> None:
        if self.noise:
            with self.noise.off():
                self.tell(self.model(self.x))

    def copied(self) -> None:
        self.tell(copy.deepcopy(self.model)(self.x))

    def pickled(self) -> None:
        self.tell(pickle.loads(pickle.dumps(self.model))(self.x))

    def saved(self) -> None:
        if self.noise:
            self.noise.load_state_dict(copy.deepcopy(self.noise.state_dict()))
        self.model.load_state_dict(copy.deepcopy(self.model.state_dict()))
        self.tell(self.model(self.x))

    def explicit(self) -> None:
        if self.noise:
            samples = self.lots.choice((None, 1))
            loss, r, _ = dither.explicit(self.noise, self.x, self.y, samples=samples)
            (loss + r).backward()
            self.tell(r)

    def full(self) -> None:
        if self.noise:
            with torch.no_grad():
                self.tell(dither.explicit(self.noise, self.x, self.y, curvature="full")[1])

    def expected(self) -> None:
        if self.noise:
            with torch.no_grad():
                self.tell(dither.expected(self.noise, self.x, self.y, draws=4, seed=1).value)

    def trace(self) -> None:
        torch.manual_seed(1)
        self.tell(measures.trace(self.model, "cross_entropy", (self.x, self.y)).value)

    def raises(self) -> None:
        """A forward that raises half-way."""
        try:
            self.model(self.x[..., :2])
        except (RuntimeError, ValueError):
            return
        raise AssertionError("inputs of another width were taken")

    def run(self) -> list[float]:
        for name in self.lots.choices(OPERATIONS, k=self.lots.randint(20, 80)):
            try:
                getattr(self, name)()
            except DitherError:
                self.done[f"{name}, refused"] += 1
            self.done[name] += 1
        self.remove()
        for module in self.model.modules():
            left = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            assert not any(left), f"a hook is left: {left}"
            assert "forward" not in vars(module), "a forward is left"
        return self.told


OPERATIONS = (
    "inject", "remove", "train", "hold", "mirrored", "off", "copied", "pickled", "saved",
    "explicit", "full", "expected", "trace", "raises",
)  # fmt: skip


def resident() -> float:
    """MB of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--minutes", type=float, default=15)
    ask.add_argument("--seed", type=int, default=0)
    said = ask.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed, first, wrong, done = said.seed, None, 0, Counter()
    begun = time.monotonic()
    while (share := (time.monotonic() - begun) / (60 * said.minutes)) < 1:
        told = []
        for _ in range(2):
            episode = Episode(seed)
            told.append(episode.run())
            done += episode.done
        if str(told[0]) != str(told[1]):  # nan is nan
            wrong += 1
            print(f"episode {seed} does not replay", flush=True)
        if first is None and share > 0.1:
            first = resident()
        seed += 1
    last, first = resident(), first or resident()
    operations = sum(done[name] for name in OPERATIONS)
    print(", ".join(f"{name} {n}" for name, n in sorted(done.items())))
    print(
        f"{operations} operations, {seed - said.seed} episodes, {wrong} not replayed; "
        f"{first:.1f} → {last:.1f} MB"
    )
    return int(wrong > 0 or last > GROWTH * first)


if __name__ == "__main__":
    sys.exit(main())
