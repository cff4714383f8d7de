"""Activation checkpointing recomputes the same draws, whatever happens in between."""

import copy
import gc
import weakref

import pytest
import torch
from nets import NOISES, gradients, plain
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither
from dither.attach import recompute

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
every_noise = pytest.mark.parametrize("name", NOISES)
both_ways = pytest.mark.parametrize("reentrant", [True, False])


class Blocks(nn.Module):
    """4 → 8, three blocks of which one runs twice, 8 → 3; blocks are checkpointed if told so."""

    def __init__(self, how=None):
        super().__init__()
        self.first, self.last, self.how = nn.Linear(4, 8), nn.Linear(8, 3), how
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(2)
        )
        self.double()

    def run(self, block, h):
        if self.how is None:
            return block(h)
        if self.how == "nested":  # the outer one runs the first half again for the second

            def both(h):
                for half in (block[:2], block[2:]):
                    h = checkpoint(half, h, use_reentrant=False)
                return h

            return checkpoint(both, h, use_reentrant=False)
        return checkpoint(block, h, use_reentrant=self.how == "reentrant")

    def forward(self, x):
        h = self.first(x)
        for block in (*self.blocks, self.blocks[0], self.blocks[0]):
            h = h + self.run(block, h.tanh())
        return self.last(h)


def pair(name, how):
    """The same model and noise twice, the second with checkpoints."""
    torch.manual_seed(0)
    one = Blocks()
    two = Blocks(how)
    two.load_state_dict(one.state_dict())
    noises = [dither.inject(m, NOISES[name](), seed=0) for m in (one, two)]
    return one, two, *noises


def same(one, two, *noises):
    for a, b in zip(gradients(one), gradients(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if noises:
        same(*noises)


@every_noise
@pytest.mark.parametrize("how", ["reentrant", "non-reentrant", "nested"])
def test_gradients_are_those_without_checkpoints(name, how):
    one, two, *noises = pair(name, how)
    for _ in range(3):
        for model in (one, two):
            model(X).square().sum().backward()
        same(one, two, *noises)
    assert noises[0].step == noises[1].step == 3


@every_noise
@both_ways
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_several_steps_outstanding(name, reentrant, order):
    """Three forwards of one batch, then their backwards in any order."""
    one, two, *noises = pair(name, "reentrant" if reentrant else "non-reentrant")
    for model in (one, two):
        losses = [(i + 1) * model(X).square().sum() for i in range(3)]
        for i in order:
            losses[i].backward()
    same(one, two, *noises)


@every_noise
@both_ways
def test_forwards_without_gradient_in_between_are_not_confused(name, reentrant):
    """A teacher's forward of the same batch under no_grad, in train mode."""
    model, other = plain(dtype=torch.float64), plain(dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    noises = [dither.inject(m, NOISES[name](), seed=0) for m in (model, other)]
    x = X.clone().requires_grad_()
    z, w = checkpoint(model, x, use_reentrant=reentrant), other(x)
    for m in (model, other):
        with torch.no_grad():
            m(x)
    z.square().sum().backward()
    w.square().sum().backward()
    same(model, other, *noises)
    assert noises[0].step == noises[1].step == 2


@both_ways
def test_a_site_called_twice_with_equal_input_in_one_stretch(reentrant):
    model = nn.Linear(4, 4).double()
    clean = copy.deepcopy(model)
    noise = dither.inject(model, {"": dither.Multiplicative(0.5)}, seed=0)
    x = X.clone().requires_grad_()

    class Twice(nn.Module):
        def forward(self, x):
            return model(x) - 2 * model(x)

    checkpoint(Twice(), x, use_reentrant=reentrant).square().sum().backward()
    found = x.grad.clone()
    noise.remove()
    again = dither.inject(clean, {"": dither.Multiplicative(0.5)}, seed=0)
    x.grad = None
    (clean(x) - 2 * clean(x)).square().sum().backward()
    assert again.step == noise.step == 2
    torch.testing.assert_close(found, x.grad, rtol=1e-12, atol=1e-12)


@every_noise
def test_retain_graph_and_a_second_backward(name):
    one, two, *noises = pair(name, "non-reentrant")
    for model in (one, two):
        loss = model(X).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    same(one, two, *noises)


class Direct(nn.Module):
    """A checkpointed method that reads parameters of its own, and of a module it does not call."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.inner, self.reentrant = nn.Linear(4, 8), nn.Linear(8, 8), reentrant
        self.gain = nn.Parameter(torch.linspace(0.5, 2, 8))
        self.double()

    def inside(self, h):
        h = nn.functional.linear(h.tanh() * self.gain, self.inner.weight)
        return self.inner(h) * self.gain

    def forward(self, x):
        h = self.first(x)
        for _ in range(2):
            if self.reentrant is None:
                h = self.inside(h)
            else:
                h = checkpoint(self.inside, h, use_reentrant=self.reentrant)
        return h


WEIGHTS = {
    "each": (dither.Weight(0.3), {}),
    "all": (dither.Weight(0.3), {"draw": "all"}),
    "cycle": (dither.Weight(0.3), {"draw": "cycle"}),
    "DropConnect": (dither.DropConnect(0.5), {}),
    "Relative": (dither.Relative(0.3), {}),
    "with activations": ({"*.weight": dither.Weight(0.3), "inner:in": dither.Additive(0.3)}, {}),
}


def alike(found):
    """Two lists of gradients are equal."""
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def direct(reentrant, what, how, seed=0):
    torch.manual_seed(1)
    model = Direct(reentrant)
    return model, dither.inject(model, what, seed=seed, **how)


@pytest.mark.parametrize("name", WEIGHTS)
@both_ways
def test_parameters_that_are_read_without_a_call_are_displaced_again(name, reentrant):
    found = []
    for way in (None, reentrant):
        model, noise = direct(way, *WEIGHTS[name])
        clean, other = direct(way, dither.Weight(0.1), {}, 1)
        for _ in range(3):
            out = model(X)
            clean(X)  # another noisy model in between
            out.square().sum().backward()
        assert not any("weight" in m.__dict__ or "gain" in m.__dict__ for m in model.modules())
        found.append([*gradients(model)])
        assert noise.step == other.step == 3
    alike(found)


@both_ways
@pytest.mark.parametrize("inner", [None, True, False])
def test_two_noises_at_a_site_and_checkpoints_inside(reentrant, inner):
    class Nested(Direct):
        def inside(self, h):
            if inner is None or self.reentrant is None:
                return super().inside(h)
            return checkpoint(super().inside, h, use_reentrant=inner)

    found = []
    for way in (None, reentrant):
        torch.manual_seed(1)
        model = Nested(way)
        for seed, what in enumerate((dither.Weight(0.3), dither.Relative(0.3))):
            dither.inject(model, what, seed=seed)
        for _ in range(2):
            model(X).square().sum().backward()
        found.append([*gradients(model)])
    alike(found)


@pytest.mark.parametrize("called", [True, False])
def test_a_backward_draws_each_parameter_again_once(called):
    class Counted(dither.Weight):
        drawn = 0

        def displace(self, site, rng):
            type(self).drawn += 1
            return super().displace(site, rng)

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(6))

        def forward(self, h):
            for layer in self.layers:
                part = layer if called else lambda h, layer=layer: layer(h)
                h = checkpoint(part, h.tanh(), use_reentrant=False)
            return h

    model = Deep().double()
    dither.inject(model, Counted(0.1), seed=0)
    loss = model(X).square().sum()
    assert Counted.drawn == 6
    loss.backward()
    assert Counted.drawn == 12


def test_an_interrupt_keeps_nothing_alive():
    model, noise = direct(False, dither.Weight(0.1), {})
    handle = model.inner.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(X)
    handle.remove()
    gone = weakref.ref(noise), weakref.ref(model)
    del model, noise, handle
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize("name", WEIGHTS)
@both_ways
def test_a_pause_before_backward_changes_nothing(name, reentrant):
    found = []
    for way in (None, reentrant):
        model, noise = direct(way, *WEIGHTS[name])
        with noise.off():
            quiet = model(X).square().sum()
        loud = model(X).square().sum()
        quiet.backward()  # with the noise on
        noise.pause()
        loud.backward()
        assert noise.paused
        noise.resume()
        found.append([*gradients(model)])
    alike(found)


@pytest.mark.parametrize("change", ["remove", "set", "eval"])
@pytest.mark.parametrize("name", [*NOISES, *WEIGHTS])
@both_ways
def test_a_noise_that_is_gone_before_backward_is_told(name, change, reentrant):
    what, how = WEIGHTS.get(name) or (NOISES[name](), {})
    model, noise = direct(reentrant, what, how)
    loss = model(X).square().sum()
    {
        "remove": noise.remove,
        "set": lambda: noise.set(dict.fromkeys(noise.sites, 0.05)),
        "eval": model.eval,
    }[change]()
    with pytest.raises(dither.DitherError, match="a forward whose noise was changed since"):
        loss.backward()


class Mine(torch.autograd.Function):
    """A checkpoint of a user's own: no record of PyTorch's to go by."""

    @staticmethod
    def forward(ctx, module, x):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(x), g)
        return None, x.grad


@every_noise
def test_a_foreign_checkpoint_is_known_by_its_input(name):
    one, two, *noises = pair(name, None)
    two.run = lambda block, h: Mine.apply(block, h)
    for _ in range(2):
        for model in (one, two):
            model(X).square().sum().backward()
    same(one, two, *noises)


@every_noise
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_foreign_checkpoints_of_two_inputs_in_any_order(name, order):
    one, two, *noises = pair(name, None)
    two.run = lambda block, h: Mine.apply(block, h)
    for model in (one, two):
        losses = [model(x).square().sum() for x in (X, 2 * X)]
        for i in order:
            losses[i].backward()
    same(one, two, *noises)


@pytest.mark.parametrize("name", ["additive", "multiplicative", "dropout", "node"])
def test_foreign_checkpoints_of_equal_inputs_are_recomputed_last_call_first(name):
    """As a backward pass meets them: each call has its own draw again."""
    found = []
    for call in (lambda m, x: m(x), Mine.apply):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
        dither.inject(block, NOISES[name](), seed=0)
        x = X.clone().requires_grad_()
        (call(block, x) - 2 * call(block, x)).square().sum().backward()
        found.append([x.grad, *gradients(block)])
    alike(found)


def test_the_ledger_is_empty_without_checkpoints_and_forgets_with_the_graph():
    one, two, plainly, kept = pair("additive", "non-reentrant")
    for _ in range(3):
        one(X).sum().backward()
    assert not plainly._ledger.stretches
    assert not plainly._ledger.seen
    loss = two(X).sum()
    assert len(kept._ledger.stretches) == 4
    loss.backward()
    del loss
    assert not kept._ledger.stretches


def test_pytorch_still_keeps_the_records_that_the_ledger_goes_by():
    found = []

    class Look(nn.Module):
        def forward(self, x):
            found.append(recompute.stretches())
            return x.sin()

    for reentrant in (True, False):
        found.clear()
        x = torch.ones(3, requires_grad=True)
        checkpoint(Look(), x, use_reentrant=reentrant).sum().backward()
        (fresh, none), (nothing, again) = found
        assert none == nothing == []
        assert len(fresh) == 1
        assert fresh[0] is again[0]
