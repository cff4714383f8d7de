"""What a call has recorded is let go at its end, not when Python's collector of cycles comes by: a
training on R would hold thousands of graphs by then.
"""

import gc
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import dither
from dither.measures import curvature, explosion, margins, phases
from dither.noise import norm2

X, Y = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
NOISES = {
    "additive": (dither.Additive(0.1), {}),
    "multiplicative": (dither.Multiplicative(0.1), {}),
    "node": (dither.Node(0.1), {"example": X}),
    "weight": (dither.Weight(0.1), {}),
    "all at once": (dither.Weight(0.1), {"draw": "all"}),
}


def cnn(activation):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 5), activation(), nn.Linear(5, 3),
    ).eval()  # fmt: skip


def alive():
    """How many tensors and objects of ours there are."""
    kinds = (type(o) for o in gc.get_objects())
    ours = (k for k in kinds if issubclass(k, Tensor) or str(k.__module__).startswith("dither"))
    return Counter(k.__name__ for k in ours)


def left(call):
    """What three calls leave behind, once they have learnt what they keep."""
    call()
    call()
    before = alive()
    for _ in range(3):
        call()
    return alive() - before


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def training(samples):
    def step(noise, model):
        loss, R, _ = dither.explicit(noise, X, Y, samples=samples)
        (loss + R).backward()

    return step


def penalised(noise, model):
    """A user's own backward through R, whose gradient has a graph of its own."""
    loss, R, _ = dither.explicit(noise, X, Y)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss + R, parameters, create_graph=True, allow_unused=True)
    sum(s.square().sum() for s in slopes if s is not None).backward()
    for p in parameters:
        p.grad = None


def value(**more):
    def call(noise, model):
        with torch.no_grad():
            dither.explicit(noise, X, Y, **more)

    return call


CALLS = {
    "training on exact R": training(None),
    "training on sampled R": training(1),
    "training on two samples": training(2),
    "a penalty on the gradient of R": penalised,
    "exact R": value(),
    "sampled R": value(samples=1),
    "a graph that nobody differentiates": lambda noise, model: (
        dither.explicit(noise, X, Y) and None
    ),
    "balance": lambda noise, model: dither.balance(noise, X, Y, draws=4) and None,
    "expected": lambda noise, model: dither.expected(noise, X, Y, draws=4) and None,
    "remainder": lambda noise, model: dither.remainder(noise, X, Y, draws=4) and None,
    "a noisy step": lambda noise, model: nn.functional.cross_entropy(model(X), Y).backward(),
}


@pytest.mark.usefixtures("without_collector")
@pytest.mark.filterwarnings("ignore:balance")
@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_held_after_a_call(call, name):
    model = cnn(nn.ReLU)
    what, more = NOISES[name]
    noise = dither.inject(model, what, seed=0, when="always", **more)
    assert not left(lambda: CALLS[call](noise, model))


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("name", ["additive", "weight"])
def test_nothing_is_held_after_all_of_second_order(name):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(6, 3)
    noise = dither.inject(model, NOISES[name][0], seed=0)
    assert not left(lambda: dither.explicit(noise, x, Y, curvature="full").R.backward())


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("samples", [None, 1])
def test_nothing_is_held_of_a_sum_or_an_attention(samples):
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model, x, y = nn.Sequential(block, nn.Linear(4, 3)), torch.randn(2, 5, 4), Y.new_zeros(2, 5)
    for what in (dither.Additive(0.1), dither.Weight(0.1)):
        with dither.inject(model, what, seed=0) as noise:
            for mode in (torch.enable_grad, torch.no_grad):
                with mode():
                    assert not left(lambda: dither.explicit(noise, x, y, samples=samples) and None)


MEASURES = {
    "exact trace": (nn.ReLU, lambda m: curvature.trace(m, "cross_entropy", (X, Y))),
    "probed trace": (nn.Tanh, lambda m: curvature.trace(m, "cross_entropy", (X, Y))),
    "explosion": (nn.ReLU, lambda m: explosion.explosion(m, X, Y, sigma=0.1, draws=4)),
    "margins": (nn.ReLU, lambda m: margins.inputs(m, X, Y)),
    "phases": (nn.ReLU, lambda m: phases.predict(m, X, Y, lr=0.1)),
}


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_is_held_after_a_measure(name):
    activation, measure = MEASURES[name]
    model = cnn(activation)
    assert not left(lambda: measure(model) and None)


class Broken(dither.Weight):
    """Fails in its second face, when the columns are under way."""

    def variance(self, g, site):
        norm2(g)
        raise MemoryError("no room")


class BrokenAdditive(dither.Additive):
    def variance(self, g, site):
        if site.name.startswith("0"):  # the last one the columns come to
            raise KeyboardInterrupt
        return super().variance(g, site)


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("noise", [Broken(0.1), BrokenAdditive(0.1)], ids=["weight", "additive"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_nothing_is_held_after_an_exception(noise, mode):
    model = cnn(nn.ReLU)
    injected = dither.inject(model, noise, seed=0)

    def call():
        with pytest.raises((MemoryError, KeyboardInterrupt)), mode():
            dither.explicit(injected, X, Y)

    assert not left(call)
