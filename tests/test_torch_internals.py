"""Each private name of torch that dither asks for does what is asked of it."""

import sys

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from dither import torch_internals as internals


def test_backward_passes_are_known():
    seen = []

    def look(g):
        seen.append((internals.in_backward(), internals.backward_task()))

    assert not internals.in_backward()
    for _ in range(2):
        x = torch.ones(2, requires_grad=True)
        x.register_hook(look)
        x.sum().backward()
    assert [inside for inside, _ in seen] == [True, True]
    assert seen[0][1] != seen[1][1]


def test_hooks_for_saved_tensors_are_known():
    assert not internals.saves_elsewhere()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert internals.saves_elsewhere()


def test_a_checkpoint_has_one_record_in_both_forwards():
    for reentrant in (False, True):
        found = []

        def part(x, found=found):
            found.append(internals.stretches())
            return x.sin()

        x = torch.ones(2, requires_grad=True)
        torch.utils.checkpoint.checkpoint(part, x, use_reentrant=reentrant).sum().backward()
        (fresh, none), (_, again) = found
        assert not none
        assert fresh[0] is again[0]


def test_calls_on_the_stack_are_counted():
    class Counts(nn.Module):
        def forward(self, n):
            return internals.calls(self) if n == 0 else self(n - 1)

    assert [Counts()(n) for n in range(3)] == [1, 2, 3]
    assert internals.calls(Counts(), sys._getframe()) == 0


def test_transforms_are_known():
    seen = []

    def look(x):
        seen.append((internals.inside_vmap(), internals.functional(x)))
        return x.sum()

    look(torch.ones(2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 2))
    torch.func.grad(lambda x: torch.func.vmap(look)(x).sum())(torch.ones(2, 2))
    assert seen == [(False, False), (False, True), (True, True), (True, True), (True, True)]


def test_cached_parametrisations_are_forgotten():
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    with parametrize.cached():
        first = layer.weight
        assert layer.weight is first
        internals.forget_parametrised()
        assert layer.weight is not first


def test_a_plain_subclass_of_tensor():
    class Plain(torch.Tensor):
        __torch_function__ = internals.as_plain

    t = torch.ones(2).as_subclass(Plain)
    assert type(t + 1) is torch.Tensor
    assert type(internals.data_of.__get__(t)) is torch.Tensor
