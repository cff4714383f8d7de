"""Watches see the right thing at the right time, and change nothing."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from runs import SEEDS, assert_same, go, regression, run
from torch import nn

from dither.errors import DitherError
from dither.lab.data.sets import Data
from dither.lab.figure import Run
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import (
    Accuracy,
    Amplitudes,
    Loss,
    NodeNorms,
    Outputs,
    State,
    WeightNorms,
    WithNoise,
)
from dither.noise import Additive, Node, Weight


@dataclass(frozen=True)
class Probe:
    """A watch of one replica: it gets a plain model with the right noise."""

    every: int | None = 10

    def __call__(self, state: State):
        assert type(state.model) is nn.Sequential
        assert not state.model.training
        z, y = state.outputs("train")
        assert z.shape == (1, 60, 10)
        assert y.shape == (1, 60)
        assert state.noise is not None
        x = state.data.x_train
        quiet = state.model(x)
        with state.noisy():
            loud = state.model(x)
        assert torch.equal(state.model(x), quiet)
        node = state.noise.nodes["fc0:out"].norm()
        return {"seed": state.seed, "apart": (loud - quiet).norm(), "node": node}


def test_a_watch_of_one_replica_sees_it_as_if_alone(monkeypatch):
    case = run(noise={"fc0": Node(3.0)}, watch=(Probe(), NodeNorms(every=10)))
    together = go(case)
    for seed, rows in together.items():
        assert rows[20, "seed"] == seed
        assert rows[20, "apart"] > 0.1
        assert rows[20, "node"] == pytest.approx(rows[20, "node/fc0:out"], rel=1e-6)
    monkeypatch.setattr(Run, "stacked", property(lambda self: False))
    assert_same(together, go(case), rtol=1e-3)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("objective", ["noise", "explicit"])
def test_looking_changes_nothing(objective, stacked, monkeypatch):
    monkeypatch.setattr(Run, "stacked", property(lambda self: stacked))
    noise = {"input": Additive(0.2), "fc0": Node(3.0), "fc1": Additive(0.1)}
    watch = (WeightNorms(every=None), Outputs("test"))
    curious = (WithNoise(Accuracy("test", every=3), draws=2), Probe(every=4), Loss(every=1), *watch)
    blind, seeing = (go(run(noise=noise, objective=objective, watch=w)) for w in (watch, curious))
    for seed in SEEDS:
        assert blind[seed].items() <= seeing[seed].items()


def test_each_watch_keeps_its_rhythm():
    def steps(every, **changes):
        what = run(watch=(Loss("train", every=every),), **changes)
        return [step for step, _ in go(what, seeds=(0,))[0]]

    assert steps(7) == [0, 7, 14, 20]
    assert steps(0) == [0, 3, 6, 9, 12, 15, 18, 20]  # three batches an epoch
    assert steps(None) == [20]
    assert steps(0, steps=None, epochs=2) == [0, 3, 6]
    assert steps(4, batch=None, steps=10) == [0, 4, 8, 10]
    assert steps(0, batch=None, steps=3) == [0, 1, 2, 3]


def test_noise_is_off_where_accuracy_is_measured_and_on_where_it_says_so():
    watch = (Accuracy("train"), WithNoise(Accuracy("train")), Loss(), WithNoise(Loss(), draws=5))
    quiet = run(optimiser=SGD(0.05), epochs=30, steps=None, watch=watch)
    rows = go(quiet)[2]
    assert rows[90, "accuracy/train"] == rows[90, "noisy accuracy/train"] > 0.9
    loud = go(replace(quiet, noise=(("fc2", Additive(30.0)),), optimiser=SGD(1e-9)))[2]
    assert loud[90, "loss/train"] < 5 < loud[90, "noisy loss/train"]


def test_amplitudes_of_the_target_are_one():
    class Target(nn.Module):
        def forward(self, x):
            return SINE.y_train + 0.5 * torch.cos(2 * math.pi * 7 * x)

    data = Data("sinusoids")
    SINE = data.load(3)
    state = State(
        run=regression(data=data),
        seeds=(3,),
        step=0,
        epoch=0,
        model=Target(),
        noise=None,
        data=SINE,
    )
    seen = Amplitudes((5, 7, 8, 50))(state)
    found = [seen[f"amplitude/{k}"].item() for k in (5, 7, 8, 50)]
    assert found == pytest.approx([1, 0.5, 0, 1], abs=1e-5)


def test_accuracy_of_one_output_is_its_sign():
    class Sign(nn.Module):
        def forward(self, x):
            return x[:, :1]

    data = Data("planted", features=1, planted=1)
    tensors = data.load(0)
    x = tensors.x_train
    for y, expected in ((x.sign()[:, 0], 1.0), ((x > 0).float(), 1.0), (-x.sign(), 0.0)):
        state = State(
            run=run(data=data, loss="logistic"),
            seeds=(0,),
            step=0,
            epoch=0,
            model=Sign(),
            noise=None,
            data=replace(tensors, y_train=y),
        )
        assert Accuracy("train")(state)["accuracy/train"].item() == expected


def test_a_regression_has_no_accuracy():
    with pytest.raises(DitherError, match="accuracy needs labels, and 'sinusoids'"):
        go(regression(watch=(Accuracy(),)))


@dataclass(frozen=True)
class Clock:
    """Which (step, micro) of the noise each forward of a noisy look has."""

    every: int | None = None

    def __call__(self, state: State):
        seen = []
        handle = state.model.register_forward_hook(
            lambda *_: seen.append((state.noise.step, state.noise.micro))
        )
        WithNoise(Loss("test"), draws=2)(state)
        handle.remove()
        first = seen[0][0]
        return {f"{n}": 10 * (step - first) + micro for n, (step, micro) in enumerate(seen)}


def test_a_noisy_draw_is_one_for_all_parts_of_a_split(monkeypatch):
    monkeypatch.setattr("dither.lab.training.watch.CHUNK", 15)  # 40 test examples in three parts
    rows = go(run(noise=Weight(0.1), watch=(Clock(),)), seeds=(0,))[0]
    assert [rows[20, str(n)] for n in range(6)] == [0, 1, 2, 10, 11, 12]
