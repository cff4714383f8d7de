"""Run(precision=…): which arithmetic a step has, and what it leaves alone."""

from dataclasses import dataclass, replace

import pytest
import torch
from runs import DIGITS, SEEDS, go, regression, run

from dither.errors import DitherError
from dither.lab.data.sets import Data
from dither.lab.figure import Silent
from dither.lab.nets.specs import CNN, Conv
from dither.lab.training.loop import Training, train
from dither.lab.training.optimiser import SGD
from dither.lab.training.watch import Loss
from dither.noise import Additive, Multiplicative, Node, Weight

IMAGES = Data("mnist-5000", train=60, test=40, flat=False)
NET = CNN((Conv(3, kernel=3, norm=True, pool=2), Conv(4, kernel=3)), dense=(8,))
CASES = {
    "plain": run(),
    "regression": regression(),
    "additive": run(noise=Additive(0.1)),
    "node": run(noise={"fc0": Node(3.0)}),
    "weight": run(noise=Weight(0.05), draw="cycle"),
    "explicit": run(noise=Additive(0.1), objective="explicit", watch=(Loss("train"),)),
    "sampled": run(noise=Multiplicative(0.1), objective="sampled", watch=(Loss("train"),)),
    "convolutions": run(data=IMAGES, model=NET, steps=3, optimiser=SGD(0.005)),
    "convolutions, node": run(
        data=IMAGES, model=NET, noise={"conv0": Node(0.1)}, steps=3, optimiser=SGD(0.005)
    ),
}


@dataclass(frozen=True)
class Types:
    """What a look computes in: 1 if all is as wide as it should be."""

    dtype: str
    every: int | None = 1

    def __call__(self, state):
        x, _ = state.examples("test", 4)
        found = [x.dtype, state.model(x).dtype, *(p.dtype for p in state.model.parameters())]
        return {"alike": float(set(found) == {getattr(torch, self.dtype)})}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("precision", "rtol"), [("double", 3e-4), ("bf16", 0.1)])
def test_every_precision_trains_the_same_net(case, precision, rtol, stacked):
    """Differences are of the size of the arithmetic's rounding. (Draws in float64 are others.)"""
    if precision == "double" and case.noise is not None and case.objective == "noise":
        case = replace(case, noise=None)
    seeds = SEEDS if stacked else SEEDS[:1]
    expected, got = go(case, seeds), go(replace(case, precision=precision), seeds)
    for seed in seeds:
        for kind in {q.split("/")[0] for _, q in expected[seed]}:  # all outputs are one vector
            at = sorted(key for key in expected[seed] if key[1].split("/")[0] == kind)
            a, b = (torch.tensor([found[seed][key] for key in at]) for found in (expected, got))
            assert (a - b).norm() <= rtol * a.norm(), (seed, kind, (a - b).norm() / a.norm())


@pytest.mark.parametrize("precision", ["float32", "bf16", "double"])
def test_steps_are_of_the_precision_and_looks_never_narrower_than_float32(precision):
    narrow = {"bf16": torch.bfloat16, "double": torch.float64}.get(precision, torch.float32)
    wide = "float64" if precision == "double" else "float32"
    what = run(precision=precision, watch=(Types(wide),), steps=3, data=IMAGES, model=NET)
    training = Training(what, (0,), False, "cpu")
    seen = []
    layer = training.model.get_submodule("conv1")
    layer.register_forward_hook(lambda m, _, z: seen.append((m.training, z.dtype)))
    for x, y in training.batches():
        training.descend(x, y)
        break
    assert seen == [(True, narrow)]
    alike = [value for _, quantity, value in train(what, [0], Silent())[0] if quantity == "alike"]
    assert alike == [1, 1, 1, 1]


def test_only_another_precision_is_another_run():
    assert run(precision="float32").key == run().key
    assert len({run(precision=p).key for p in ("float32", "bf16", "double")}) == 3


def test_an_unknown_precision_is_one_sentence():
    with pytest.raises(DitherError, match="precision 'fp16' is none of float32, bf16, double"):
        run(precision="fp16")


def test_labels_stay_whole_numbers():
    data = DIGITS.load().double()
    assert data.y_train.dtype == torch.int64
