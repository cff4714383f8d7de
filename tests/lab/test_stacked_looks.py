"""Looking at the replicas of a stack one by one leaves the stack as it was."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from runs import assert_same, go, run
from torch import nn

import dither
from dither.lab.nets.specs import ACTIVATIONS, MLP
from dither.lab.training.watch import Loss


@dataclass(frozen=True)
class Alone:
    """A watch that takes a plain model: it looks with the noise on."""

    every: int | None = 2
    stacked: ClassVar[bool] = False

    def __call__(self, state):
        with state.noisy() as noisy, torch.no_grad():
            return {"noisy": float(noisy.model(noisy.examples("train", 10)[0]).square().mean())}


def test_noise_on_activations_stays_what_it_was_after_a_look():
    """Replicas that shared their activations with the stack would leave their noise there."""
    noise = {"input": dither.Additive(0.3), "act*:out": dither.Multiplicative(0.3)}
    plain = run(noise=noise, watch=(Loss("train", 2),))
    looked = run(noise=noise, watch=(Loss("train", 2), Alone()))
    without = go(plain)
    seen = go(looked)
    kept = {s: {k: v for k, v in rows.items() if k[1] != "noisy"} for s, rows in seen.items()}
    assert_same(kept, without, 1e-6)
    serial = {seed: go(looked, (seed,))[seed] for seed in (2, 0)}
    assert_same(serial, {seed: seen[seed] for seed in serial}, 1e-4)


def test_a_replica_shares_no_module_with_its_stack():
    for activation in ACTIVATIONS:
        stack = MLP((3, 4, 2), activation=activation).build_stacked([0, 1])
        alone = stack.unstack(0)
        assert not {id(m) for m in stack.modules()} & {id(m) for m in alone.modules()}
        assert isinstance(alone, nn.Sequential)
        assert type(alone.act0) is type(stack.act0)
