"""BatchNorm's running statistics under noise: updated as always, or kept."""

import copy
import pickle

import pytest
import torch
from nets import NOISES, Snapshot, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither
from dither.schedule import Until

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num" in k}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@every_noise
def test_a_noisy_forward_updates_them_unless_they_are_kept(name):
    for kept in ("update", "keep"):
        model = mlp()
        before = statistics(model)
        noise = dither.inject(model, NOISES[name](), seed=0, statistics=kept)
        model(X).square().sum().backward()
        assert same(before, statistics(model)) == (kept == "keep")
        noise.remove()


@every_noise
def test_what_is_kept_changes_neither_output_nor_gradient(name):
    found = []
    for kept in ("update", "keep"):
        torch.manual_seed(3)
        model = mlp()
        dither.inject(model, NOISES[name](), seed=0, statistics=kept)
        z = model(X)
        z.square().sum().backward()
        found.append([z.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_buffers_are_never_touched_or_replaced():
    model = mlp()
    norm = model[1]
    before = Snapshot.of(model)
    version = norm.running_mean._version
    inside = []
    norm.register_forward_hook(lambda *_: inside.append(before.assert_same(model)))
    buffer = norm.running_mean
    dither.inject(model, dither.Weight(0.1), seed=0, statistics="keep")
    model(X)
    assert len(inside) == 1
    assert norm.running_mean is buffer
    assert buffer._version == version
    assert "running_mean" not in norm.__dict__


@pytest.mark.parametrize("draw", ["all", "cycle", "random"])
def test_a_forward_without_noise_updates_them(draw):
    model, clean = mlp(), mlp()
    clean.load_state_dict(model.state_dict())
    clean(X)
    noise = dither.inject(model, dither.Weight(0.1), seed=0, draw=draw, statistics="keep")
    model(X)
    noise.pause()
    model(X)
    noise.resume()
    model(X)
    assert same(statistics(model), statistics(clean))


def test_they_are_updated_once_the_schedule_has_ended():
    model, clean = mlp(), mlp()
    clean.load_state_dict(model.state_dict())
    before = statistics(model)
    dither.inject(model, dither.Weight(Until(0.1, 2)), seed=0, statistics="keep")
    model(X)
    model(X)
    assert same(statistics(model), before)
    clean(X)
    model(X)
    assert same(statistics(model), statistics(clean))


def test_a_submodule_called_alone_keeps_them_too():
    model = nn.Sequential(mlp(), nn.Linear(3, 2))
    before = statistics(model)
    dither.inject(model, dither.Weight(0.1), seed=0, statistics="keep")
    model[0](X)
    assert same(statistics(model), before)


def test_exceptions_and_ctrl_c_leave_them_as_they_were():
    for error in (ValueError, KeyboardInterrupt):
        model = mlp()
        before = statistics(model)
        dither.inject(model, dither.Weight(0.1), seed=0, statistics="keep")

        def broken(*_, error=error):
            raise error("broken")

        handle = model[4].register_forward_hook(broken)
        with pytest.raises(error):
            model(X)
        handle.remove()
        model(X)
        assert same(statistics(model), before)
        assert "running_mean" not in model[1].__dict__


def test_a_recomputed_forward_keeps_them():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    for noise in (dither.Weight(0.1), {"inner.0": dither.Additive(0.1)}):
        model = Checkpointed()
        before = statistics(model)
        dither.inject(model, noise, seed=0, statistics="keep")
        model(X.clone().requires_grad_()).square().sum().backward()
        assert same(statistics(model), before)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_taken_inside_a_forward_has_statistics_of_its_own(how):
    model = mlp()
    copies = []
    dither.inject(model, dither.Weight(0.1), seed=0, statistics="keep")

    real = model[4].forward

    def forward(x):
        del model[4].forward  # what is copied has no local function
        copies.append(how(model))
        return real(x)

    model[4].forward = forward
    model(X)
    (copied,) = copies
    before = statistics(copied)
    copied.train()(X)
    assert not same(before, statistics(copied))
    assert same(statistics(model), before)


def test_compiled_code_keeps_them():
    model = mlp()
    before = statistics(model)
    noise = dither.inject(model, dither.Weight(0.1), seed=0, statistics="keep")
    compiled = torch.compile(model, backend="aot_eager")
    compiled(X).square().sum().backward()
    assert same(statistics(model), before)
    noise.pause()
    compiled(X)
    assert not same(statistics(model), before)


def test_other_words_are_an_error():
    with pytest.raises(dither.DitherError, match="statistics is one of update, keep: got 'freeze'"):
        dither.inject(mlp(), dither.Weight(0.1), statistics="freeze")


def test_one_injection_does_not_give_back_what_another_keeps():
    """The inner one is at σ = 0 and called twice in a forward of the outer one."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))

        def forward(self, x):
            return self.inner(self.inner(x))

    model = Twice()
    with (
        dither.inject(model, {"inner.1": dither.Additive(0.1)}, statistics="keep"),
        dither.inject(model.inner, {"1": dither.Additive(0.0)}, statistics="keep"),
    ):
        model(torch.randn(8, 3) + 5)
    assert (model.inner[0].running_mean == 0).all()


def test_statistics_that_are_not_there_yet_can_not_be_kept():
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(3, 3))
    with pytest.raises(dither.DitherError, match="run one forward first"):
        dither.inject(model, {"1": dither.Additive(0.1)}, statistics="keep")
