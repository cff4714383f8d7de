"""An `inject` that raises leaves nothing on the model, whatever raises, and a module of TorchScript
is served or refused in a sentence.
"""

import pytest
import torch
from nets import NOISES, Snapshot, hooks, mlp, shadows
from torch import nn

import dither
from dither.attach import inject as module

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
REGISTER = ("register_forward_pre_hook", "register_forward_hook")
jit = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
STEPS = ("Statistics", "_check_stack", "_check_lazy", "_vectors", "_attach", "call")


class Refused(Exception):
    """What a step of inject raises here."""


def untouched(model, attempt, error=Refused):
    """An attempt that raises changes neither the model nor what it gives in train mode."""
    model.train()
    before, clean = Snapshot.of(model), model(X)
    model.load_state_dict(before.state)
    modes = [m.training for m in model.modules()]
    with pytest.raises(error):
        attempt()
    assert hooks(model) == 0
    assert not shadows(model)
    assert [m.training for m in model.modules()] == modes
    before.assert_same(model)
    assert torch.equal(model(X), clean)


@pytest.mark.parametrize("error", [Refused, KeyboardInterrupt])
@pytest.mark.parametrize("name", NOISES)
def test_every_hook_in_turn_may_be_refused(name, error, monkeypatch):
    """The k-th registration raises, for every k until there is none left."""
    left, real = 0, {name: getattr(nn.Module, name) for name in REGISTER}

    def refusing(name):
        def register(self, *args, **how):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            return real[name](self, *args, **how)

        return register

    for k in range(100):
        model = mlp()
        for n in REGISTER:
            monkeypatch.setattr(nn.Module, n, refusing(n))

        def attempt(model=model, k=k):
            nonlocal left
            left = k
            how = {"statistics": "keep"} if k % 2 else {}
            dither.inject(model, NOISES[name](), seed=0, example=X, **how).remove()

        try:
            untouched(model, attempt, error)
        except pytest.fail.Exception:  # all were let through: nothing was raised
            break
    assert 4 < k < 99


@pytest.mark.parametrize("step", STEPS)
def test_every_step_may_raise(step, monkeypatch):
    def raises(*_, **__):
        raise Refused

    model = mlp()
    monkeypatch.setattr(module, step, raises)
    noise = {"0": dither.Node(1.0), "3": dither.Node(1.0)}
    untouched(
        model, lambda: dither.inject(model, noise, seed=0, statistics="keep", example=X), Refused
    )


def test_a_forward_of_the_example_may_raise():
    model = mlp()
    shaped = dither.Node(1.0)
    untouched(
        model,
        lambda: dither.inject(model, {"2:in": shaped}, example=torch.ones(2, 9)),
        RuntimeError,
    )


# ------------------------------------------------------------------------------------- TorchScript


@jit
def test_scripted_parts_without_a_site_are_no_obstacle():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    mixed = nn.Sequential(plain[0], torch.jit.script(plain[1]), plain[2])
    with dither.inject(plain, dither.Weight(0.3), seed=0):
        right = plain(X)
    with dither.inject(mixed, dither.Weight(0.3), seed=0):
        assert torch.equal(mixed(X), right)
    assert hooks(plain) == 0
    assert torch.equal(mixed(X), plain(X))


@jit
@pytest.mark.parametrize(
    ("what", "site", "compiled"),
    [
        (dither.Weight(0.1), "1.0.weight", "1"),
        ({"1.0:in": dither.Additive(0.1)}, "1.0:in", "1"),
        ({"1:out": dither.Additive(0.1)}, "1:out", "1"),
    ],
)
@pytest.mark.parametrize("compile", ["script", "trace"])
def test_sites_inside_torchscript_are_refused(what, site, compiled, compile):
    part = nn.Sequential(nn.Linear(8, 3), nn.Tanh())
    part = (
        torch.jit.script(part) if compile == "script" else torch.jit.trace(part, torch.ones(2, 8))
    )
    model = nn.Sequential(nn.Linear(4, 8), part)
    if isinstance(what, dither.Weight):
        what = {"1.*": what}
    with pytest.raises(dither.DitherError, match=rf"{site}.*'{compiled}' is compiled by Torch"):
        dither.inject(model, what)
    assert hooks(model) == 0


@jit
def test_a_traced_model_is_refused_as_a_whole():
    traced = torch.jit.trace(nn.Linear(4, 3), X)
    with pytest.raises(dither.DitherError, match=r"'weight'.*'the model' is compiled by Torch"):
        dither.inject(traced, dither.Weight(0.1))
