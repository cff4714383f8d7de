"""Each private name of torch that dither asks for does what is asked of it."""

import sys

import pytest
import torch
import torch.nn.functional as F
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


def test_functions_behind_a_value_tell_their_types():
    x = torch.ones(2, requires_grad=True)
    half = x.bfloat16()
    z = (half * half).float() + x
    assert len(list(internals.functions_behind(z))) == 5  # +, float, *, bfloat16, x itself
    assert len(list(internals.functions_behind(z, {half.grad_fn}))) == 4
    types = [internals.types_of(node) for node in internals.functions_behind(z)]
    assert set().union(*types) == {torch.float32, torch.bfloat16}


def test_a_weight_norm_is_known_by_its_function():
    met = []

    class Notes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            met.append(func)
            return func(*args, **(kwargs or {}))

    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    with Notes():
        layer(torch.ones(1, 2))
    assert internals.weight_norm in met


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


def test_outside_functorch_new_tensors_are_plain():
    def look(x):
        with internals.outside_functorch():
            table = torch.ones(3).cumsum(0)
            assert table.numpy().tolist() == [1, 2, 3]
        assert not internals.functional(table)
        return (table * x).sum()

    slope = torch.func.grad(look)(torch.zeros(3))
    assert slope.tolist() == [1, 2, 3]


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


def test_versions_count_writes():
    t = torch.zeros(2)
    before = internals.version(t)
    t.add_(1)
    assert internals.version(t) == before + 1
    with torch.inference_mode():
        assert internals.version(torch.zeros(2)) == 0


def test_a_function_without_its_guard_does_not_ask_for_overrides():
    class Seen(torch.overrides.TorchFunctionMode):
        names = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names = (*self.names, func.__name__)
            return func(*args, **(kwargs or {}))

    x, w = torch.zeros(2, dtype=torch.long), torch.ones(3, 4)
    with Seen() as seen:
        internals.unguarded(torch.nn.functional.embedding)(x, w)
    assert "embedding" in seen.names


def test_checkpoints_are_off_in_one_thread_only():
    import threading

    from torch.utils.checkpoint import checkpoint

    def runs(reentrant):
        count = []

        def part(x):
            count.append(1)
            return x.sin()

        checkpoint(
            part, torch.ones(2, requires_grad=True), use_reentrant=reentrant
        ).sum().backward()
        return len(count)

    def elsewhere(reentrant):
        found = []
        thread = threading.Thread(target=lambda: found.append(runs(reentrant)))
        thread.start()
        thread.join()
        return found[0]

    for reentrant in (False, True):
        with internals.without_checkpoints():
            with internals.without_checkpoints():
                assert runs(reentrant) == 1
            assert runs(reentrant) == 1
            assert elsewhere(reentrant) == 2
        assert runs(reentrant) == 2


def test_transforms_of_torch_func_are_known_inside():
    seen = []

    def f(x):
        seen.append(internals.inside_functorch())
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    assert seen == [True]
    assert not internals.inside_functorch()


@pytest.mark.parametrize("name", internals.ONCE)
def test_functions_without_a_second_derivative(name):
    x = torch.randn(3, 2, requires_grad=True)
    d = torch.cdist(x, x + 1) if name == "CdistBackward0" else F.pdist(x)
    assert name in [node.name() for node in internals.functions_behind(d)]
    (slope,) = torch.autograd.grad(d.sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="not implemented"):
        torch.autograd.grad(slope.sum(), x)


def test_a_storage_has_one_that_knows_no_type():
    typed = torch.ones(3)._typed_storage()
    assert internals.untyped(typed).nbytes() == 12
    assert internals.untyped(torch.ones(3).untyped_storage()).nbytes() == 12
