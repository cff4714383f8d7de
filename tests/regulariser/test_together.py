"""Several noises on one model, models inside models, and submodules called by themselves."""

import pytest
import torch
from nets import NOISES, hooks, plain, shadows
from torch import nn

import dither

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)


def delta(noise, name):
    """δ of a parameter in the first step."""
    return noise.displacement(noise.sites[name], 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_activation_and_weight_noise_at_once(order):
    model = plain()
    clean = model(X)
    alone = []
    for what in (dither.Additive(0.3), dither.Weight(0.1)):
        with dither.inject(model, what, seed=0):
            alone.append(model(X))
    noises = [
        dither.inject(model, what, seed=0) for what in (dither.Additive(0.3), dither.Weight(0.1))
    ]
    both = model(X)
    assert all(not torch.equal(both, z) for z in (*alone, clean))
    noises[order[0]].remove()
    fresh = noises[order[1]]
    fresh.step = 0
    assert torch.equal(model(X), alone[order[1]])
    fresh.remove()
    assert torch.equal(model(X), clean)
    assert hooks(model) == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_weight_noises_add_up(order):
    model, seen = plain(), []
    clean = model(X)
    noises = [dither.inject(model, dither.Weight(s), seed=i) for i, s in enumerate((0.1, 0.2))]
    expected = model[2].weight + sum(delta(n, "2.weight") for n in noises)
    handle = model[2].register_forward_hook(lambda m, *_: seen.append(m.weight))
    model(X).sum().backward()
    torch.testing.assert_close(seen[0], expected)
    assert not shadows(model)
    handle.remove()
    for i in order:
        noises[i].remove()
    assert torch.equal(model(X), clean)
    assert hooks(model) == 0


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_removed_inside_a_forward_leaves_the_others_noise_and_no_shadow(which):
    """The running forward keeps the draws that it began with."""
    model, seen = plain(), []
    clean = model(X)
    noises = [dither.inject(model, dither.Weight(s), seed=i) for i, s in enumerate((0.1, 0.2))]
    own = model[4].weight + delta(noises[1 - which], "4.weight")
    both = own + delta(noises[which], "4.weight")
    model[2].register_forward_hook(lambda *_: noises[which].remove())
    model[4].register_forward_hook(lambda m, *_: seen.append(m.weight))
    model(X)
    assert any(torch.allclose(seen[0], w) for w in (own, both))
    assert not shadows(model)
    noises[1 - which].remove()
    assert torch.equal(model(X), clean)


def test_weight_noise_on_a_part_and_on_the_whole():
    model = plain()
    seen = []
    whole = dither.inject(model, dither.Weight(0.1), seed=0)
    part = dither.inject(model[2], dither.Weight(0.1), seed=1)
    expected = model[2].weight + delta(whole, "2.weight") + delta(part, "weight")
    model[2].register_forward_pre_hook(lambda m, *_: seen.append(m.weight))
    model(X)
    torch.testing.assert_close(seen[0], expected)
    assert not shadows(model)


@every_noise
def test_inside_a_bigger_module(name):
    inner = plain()
    outer = nn.Sequential(inner, nn.Linear(3, 2))
    noise = dither.inject(inner, NOISES[name](), seed=0)
    a, b = outer(X), outer(X)
    assert not torch.equal(a, b)
    assert noise.step == 2
    a.sum().backward()
    assert not shadows(outer)


@every_noise
def test_a_submodule_called_directly(name):
    model = plain()
    clean = model[0](X)
    noise = dither.inject(model, NOISES[name](), seed=0)
    a, b = model[0](X), model[0](X)
    assert not torch.equal(a, clean)
    assert not torch.equal(a, b)
    assert not shadows(model)
    before = noise.step
    model(X)
    assert noise.step == before + 1


def test_a_module_that_calls_itself():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, depth=2):
            seen.append(self.fc.weight)
            h = self.fc(x)
            return h if depth == 0 else self(h, depth=depth - 1) + self.fc(h)

    seen = []
    model = Nested()
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    model(X)
    assert noise.step == 1
    assert all(w is seen[0] for w in seen)
    assert not shadows(model)
