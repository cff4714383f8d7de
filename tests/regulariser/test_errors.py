"""Bad input to the engine is one sentence: what, where, got, do."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import dither
from dither import schedule
from dither.lab.nets.specs import MLP
from dither.noise import Additive, Multiplicative, Node, Weight, dropout
from dither.noise.noises import at

Y = torch.tensor([0, 2, 1])


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    return dither.inject(model, Additive(0.1)), torch.randn(3, 4)


def explicit(y=Y, loss="cross_entropy", **kwargs):
    noise, x = net()
    return dither.explicit(noise, x, y, loss, **kwargs)


class Gives(nn.Module):
    """A model with a given output."""

    def __init__(self, out):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 3), out

    def forward(self, x):
        return self.out(self.fc(x))


def of(out, y=Y, loss="cross_entropy"):
    return dither.explicit(dither.inject(Gives(out), Additive(0.1)), torch.randn(3, 4), y, loss)


BAD = {
    "negative σ": (lambda: Additive(-0.1), "σ of Additive must be finite and ≥ 0: got -0.1"),
    "nan σ": (lambda: Weight(math.nan), "σ of Weight must be finite and ≥ 0: got nan"),
    "word σ": (
        lambda: Node("0.1"),
        "σ of Node must be a number or a function of the step: got '0.1'",
    ),
    "bool σ": (lambda: Additive(True), "σ of Additive must be a number"),
    "scheduled σ": (
        lambda: at(Additive(lambda _: -1.0), 3),
        "σ of Additive must be finite and ≥ 0: got -1.0",
    ),
    "law class": (
        lambda: Multiplicative(law=dropout),
        "law of Multiplicative .*got the class Dropout: add its arguments",
    ),
    "law word": (
        lambda: Additive(0.1, law="gaussian"),
        "law of Additive .*got 'gaussian'",
    ),
    "dropout": (lambda: dropout(1.0), r"chance p of dropout must lie in \[0, 1\): got 1.0"),
    "nodes": (lambda: Node(1.0, nodes=0), "Node needs a whole number of nodes ≥ 1: got nodes=0"),
    "std": (lambda: Node(1.0, std=-1.0), "std of Node's vectors must be finite and ≥ 0: got -1.0"),
    "steps": (
        lambda: schedule.Linear(0.1, 0.2, 0),
        "Linear needs a whole number of steps ≥ 1: got steps=0",
    ),
    "half steps": (
        lambda: schedule.Cosine(0.1, 0.2, 1.5),
        "Cosine needs a whole number of steps ≥ 1: got steps=1.5",
    ),
    "loss name": (
        lambda: explicit(loss="crossentropy"),
        "no loss named 'crossentropy': it is one of 'cross_entropy'",
    ),
    "loss number": (
        lambda: explicit(loss=3),
        "a loss is a name .* a loss module or a callable: got 3",
    ),
    "loss class": (
        lambda: explicit(loss=nn.CrossEntropyLoss),
        "a loss is a name .*CrossEntropyLoss.*call it",
    ),
    "summed loss": (
        lambda: explicit(loss=nn.CrossEntropyLoss(reduction="sum")),
        "must be the mean over its samples: got .* give one number per sample",
    ),
    "curvature": (
        lambda: explicit(curvature="hessian"),
        "curvature is 'gauss_newton' or 'full': got 'hessian'",
    ),
    "no samples": (
        lambda: explicit(samples=0),
        r"samples is None \(exact\) or a whole number ≥ 1: got 0",
    ),
    "half samples": (lambda: explicit(samples=1.5), "samples is None .* got 1.5"),
    "target above": (
        lambda: explicit(torch.tensor([0, 3, 1])),
        "targets must lie in 0 … 2.*got 3; the model has 3 outputs",
    ),
    "target below": (
        lambda: explicit(torch.tensor([0, -1, 1])),
        "targets must lie in 0 … 2.*ignore_index = -100: got -1",
    ),
    "targets' shape": (
        lambda: explicit(torch.tensor([0, 1])),
        r"targets \(2,\) don't fit outputs \(3, 3\)",
    ),
    "probabilities' shape": (
        lambda: explicit(torch.rand(3, 4)),
        r"probabilities must have the outputs' shape: got y \(3, 4\)",
    ),
    "half_square": (
        lambda: explicit(torch.rand(3, 2), "half_square"),
        r"half_square needs y in the output's shape: got y \(3, 2\)",
    ),
    "half_square transposed": (
        lambda: of(lambda z: z[:, :2], torch.rand(2, 3), "half_square"),
        "half_square needs y in the output's shape",
    ),
    "logistic labels": (
        lambda: of(lambda z: z[:, 0], Y, "logistic"),
        r"labels in \{−1, \+1\} or \{0, 1\}: got others",
    ),
    "logistic shape": (
        lambda: explicit(Y % 2, "logistic"),
        r"logistic needs one label for each output: got y \(3,\) and z \(3, 3\)",
    ),
    "one output": (
        lambda: of(lambda z: z[:, 0]),
        r"cross_entropy needs outputs \[B, C\].*got \(3,\); for one output use 'logistic'",
    ),
    "ambiguous": (
        lambda: of(lambda z: z.unsqueeze(1).expand(-1, 3, -1), Y.expand(3, 3)),
        "can be read with the classes last or second",
    ),
    "callable's shape": (
        lambda: explicit(loss=lambda z, y: z),
        r"one number per sample \[B\] or their mean: got \(3, 3\) for B = 3",
    ),
    "output": (lambda: of(lambda z: "logits"), "the model must give a tensor.*got str"),
    "input": (
        lambda: dither.explicit(net()[0], "x", Y),
        "x must be a tensor, a tuple of arguments or a mapping.*got str",
    ),
    "ratio": (lambda: dither.balance(*net(), Y, ratio=0), "ratio must be a number > 0.*got 0"),
    "ratio of a loss": (
        lambda: dither.balance(*net(), Y, loss=lambda z, y: z.square().sum(1) - 99.0),
        "which must be ≥ 0: got a loss of -9",
    ),
    "draws of balance": (lambda: dither.balance(*net(), Y, draws=3), "≥ 4, .*or 0 .*: got 3"),
    "bound": (lambda: dither.balance(*net(), Y, bound=-1), "bound must be a number > 0.*got -1"),
    "columns": (lambda: dither.balance(*net(), Y, samples=0), "whole number ≥ 1: got 0"),
    "too few draws": (
        lambda: dither.expected(*net(), Y, draws=1),
        "at least 2 draws .*got draws=1",
    ),
    "too few pairs": (
        lambda: dither.expected(*net(), Y, draws=3, antithetic=True),
        "4 in antithetic pairs.*got draws=3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(name):
    call, sentence = BAD[name]
    with pytest.raises(dither.DitherError, match=sentence):
        call()


def test_a_removed_noise_says_so():
    noise, x = net()
    noise.remove()
    for what in (dither.explicit, dither.expected, dither.remainder, dither.balance):
        with pytest.raises(dither.DitherError, match="was removed from its model: inject it again"):
            what(noise, x, Y)


def test_a_batch_on_another_device_says_so():
    noise, x = net()
    with pytest.raises(
        dither.DitherError, match="on one device: got the model on cpu, x on meta, y on cpu"
    ):
        dither.explicit(noise, x.to("meta"), Y)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)])
def test_exact_R_where_samples_are_coupled_says_what_to_do(norm):
    model = nn.Sequential(nn.Linear(4, 3), norm).train()
    noise = dither.inject(model, Additive(0.1))
    x = torch.randn(3, 4)
    for kwargs in ({}, {"curvature": "full"}):
        with pytest.raises(
            dither.DitherError,
            match=r"'1' \(BatchNorm1d\) mixes the batch.*model.eval\(\), or pass samples=1",
        ):
            dither.explicit(noise, x, Y, **kwargs)
    assert dither.explicit(noise, x, Y, samples=1).R > 0


def test_balance_names_the_site_that_has_no_R():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.a(x) + 0 * self.b(x)

    noise = dither.inject(Unused(), Additive(0.1))
    with pytest.raises(dither.DitherError, match=r"no σ gives R at 'b:in'.*leave it out"):
        dither.balance(noise, torch.randn(3, 4), Y)


class Bare:
    """No noise yet."""

    sigma = 0.1

    def displace(self, site, rng):
        return rng(dither.gaussian, site.h)


@dataclass(frozen=True)
class Scalar:
    """Its variance forgets the samples."""

    sigma: float
    side = "in"

    def displace(self, site, rng):
        return self.sigma * rng(dither.gaussian, site.h)

    def variance(self, g, site):
        return g.square().sum()


def test_a_variance_of_the_wrong_shape_is_told():
    with dither.inject(nn.Linear(2, 3), {"input": Scalar(0.1)}) as noise:
        says = r"variance of Scalar must be \[K, B\].*got \[\].*'input'"
        with pytest.raises(dither.DitherError, match=says):
            dither.explicit(noise, torch.ones(4, 2), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (Bare(), r"Bare, .*variance\(g, site\)"),
        ({}, "empty mapping"),
        ({"0:up": dither.Additive(0.1)}, "'0:up': .*'in' or 'out': got 'up'"),
        ({"0.weight": dither.Additive(0.1)}, "names a parameter, and Additive acts on a module"),
        ({"0:in": dither.Weight(0.1)}, "names a module, and Weight acts on parameters.*'0.weight'"),
        ({"0": dither.Weight(0.1)}, "names a module, and Weight acts on parameters.*'0.weight'"),
    ],
)
def test_a_wrong_kind_of_site_is_told_apart(what, says):
    with pytest.raises(dither.DitherError, match=says):
        dither.inject(torch.nn.Sequential(torch.nn.Linear(2, 2)), what)


def test_draws_of_weights_need_weights():
    with pytest.raises(dither.DitherError, match="say how weight noise is drawn"):
        dither.inject(torch.nn.Linear(2, 2), dither.Additive(0.1), draw="cycle")


def test_a_schedule_is_named_by_where_it_starts():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with dither.inject(model, dither.Additive(lambda step: 0.5 - 0.1 * step)) as noise:
        assert "σ 0.5 at first" in str(noise)


class Long(nn.Module):
    """Sequences [B, T, 2] through an Identity."""

    def __init__(self):
        super().__init__()
        self.at = nn.Identity()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.at(x)).sum(1)


@pytest.mark.parametrize(("learnt", "met"), [(1, 5), (5, 1)])
def test_a_node_does_not_broadcast_over_another_length(learnt, met):
    noise = dither.inject(Long(), {"at": Node(1.0)}, example=torch.randn(3, learnt, 2))
    noise.model(torch.randn(3, learnt, 2))
    says = rf"Node at 'at:out' has vectors \[{learnt}, 2\] and gets a tensor \[3, {met}, 2\]"
    x = torch.randn(3, met, 2)
    for call in (lambda: noise.model(x), lambda: dither.explicit(noise, x, Y)):
        with pytest.raises(dither.DitherError, match=says):
            call()


def test_a_node_left_behind_says_how_to_move_it():
    model = nn.Sequential(nn.Linear(4, 3))
    noise = dither.inject(model, Node(1.0), seed=0)
    model.double()
    x = torch.randn(3, 4).double()
    says = r"Node at '0:out' has vectors of torch.float32 on cpu.*torch.float64 on cpu: move the"
    for call in (lambda: model(x), lambda: dither.explicit(noise, x, Y)):
        with pytest.raises(dither.DitherError, match=says):
            call()
    noise.to("cpu", torch.float64)
    assert model(x).dtype == torch.float64
    noise.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda m: dither.inject("m", Additive(0.1)),
            "needs a model, an nn.Module: got 'm'",
        ),
        (lambda m: dither.inject(m, {0: Additive(0.1)}), "a pattern is a string.*got 0"),
        (lambda m: dither.inject(m, Additive(0.1), seed="a"), "seed is a whole number.*got 'a'"),
        (lambda m: dither.inject(m, Additive(0.1), seed=1.5), "seed is a whole number.*got 1.5"),
        (lambda m: dither.inject(m, Additive(0.1), seed=[]), r"seed is a whole number.*got \[\]"),
        (lambda m: dither.inject(m, Additive(0.1), seed=[0, "a"]), "seed is a whole number"),
        (
            lambda m: dither.inject(m, Additive(0.1), seed=[0, 1]),
            r"Sequential .*got seed=\[0, 1\]",
        ),
        (
            lambda m: dither.inject(MLP((4, 3)).build_stacked([0, 1]), Additive(0.1), seed=[0]),
            "a stack of 2 replicas needs 2 seeds: got 1",
        ),
        (
            lambda m: dither.inject(nn.Sequential(nn.LazyLinear(3)), Node(0.1)),
            "Node at '0:out': LazyLinear has no shape yet: run a batch",
        ),
        (
            lambda m: dither.inject(nn.Sequential(nn.LazyLinear(3)), Weight(0.1)),
            "Weight at '0.weight': LazyLinear has no shape yet: run a batch",
        ),
        (
            lambda m: Additive(torch.tensor(-1.0)),
            "of Additive must be finite and ≥ 0: got tensor",
        ),
        (lambda m: Weight(torch.tensor(math.nan)), "σ of Weight must be finite and ≥ 0"),
    ],
)
def test_what_inject_cannot_take_is_a_sentence(call, says):
    with pytest.raises(dither.DitherError, match=says):
        call(nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.parametrize("noise", [Node(0.1), Weight(0.1)])
def test_an_example_gives_a_lazy_layer_its_shape(noise):
    model, x = nn.Sequential(nn.LazyLinear(3)), torch.randn(3, 4)
    assert dither.explicit(dither.inject(model, noise, example=x), x, Y).R > 0
