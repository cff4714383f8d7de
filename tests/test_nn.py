"""dither.nn: noises placed by hand, with draws of their seed and step, and R by an injection."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither

KINDS = {
    "additive": lambda **how: dither.nn.Additive(0.3, **how),
    "times": lambda **how: dither.nn.Multiplicative(0.3, **how),
    "dropout": lambda **how: dither.nn.Multiplicative(law=dither.dropout(0.3), **how),
    "path": lambda **how: dither.nn.DropPath(0.5, dither.gaussian, **how),
    "locked": lambda **how: dither.nn.Locked(0.5, **how),
    "node": lambda **how: dither.nn.Node(0.7, 8, nodes=2, **how),
}


def net(placed, **how):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), placed, nn.Tanh(), nn.Linear(8, 3), dither.nn.Additive(0.1, seed=5)
    )


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
each_kind = pytest.mark.parametrize("kind", KINDS)


def plain(model):
    """The same weights without noise."""
    return nn.Sequential(model[0], nn.Identity(), *model[2:4], nn.Identity())


@each_kind
def test_on_in_train_mode_off_in_eval_mode(kind):
    model = net(KINDS[kind](seed=1))
    clean = plain(model)(X)
    assert torch.equal(model.eval()(X), clean)
    one, two = model.train()(X), model(X)
    assert not torch.equal(one, clean)
    assert not torch.equal(one, two)


@each_kind
def test_draws_are_functions_of_seed_and_step(kind):
    model, other = net(KINDS[kind](seed=1)), net(KINDS[kind](seed=2))
    state = copy.deepcopy(model.state_dict())
    first, second = model(X), model(X)
    model.load_state_dict(state)
    assert torch.equal(model(X), first)
    assert torch.equal(model(X), second)
    assert not torch.equal(other(X), first)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded(X), model(X))


def test_torchs_seed_governs_modules_without_a_seed():
    def made():
        torch.manual_seed(3)
        return dither.nn.Additive(1.0), dither.nn.Additive(1.0)

    (a, b), (c, _) = made(), made()
    assert torch.equal(a(X), c(X))
    assert not torch.equal(a(X), b(X))


def test_copies_draw_by_themselves():
    layer = dither.nn.Additive(1.0, seed=0)
    one, two = copy.deepcopy(layer), copy.deepcopy(layer)
    draws = [module(X) for module in (layer, one, two)]
    assert not any(torch.equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = dither.nn.Additive(1.0, seed=0)
    copy.deepcopy(again)
    assert torch.equal(copy.deepcopy(again)(X), draws[2])


@each_kind
def test_an_injection_takes_them_over(kind):
    """Its outputs, R and gradients are those of the same noises injected into a plain model."""
    model = net(KINDS[kind](seed=1))
    what = {"1:out": model[1].placed_noise, "4:out": model[4].placed_noise}
    bare = plain(model)
    noise, expected = dither.inject(model, seed=0), dither.inject(bare, what, seed=0, example=X)
    assert list(noise.sites) == list(expected.sites)
    if kind == "node":
        assert noise.nodes["1:out"] is model[1].w
        with torch.no_grad():
            expected.nodes["1:out"].copy_(model[1].w)
    assert torch.equal(model(X), bare(X))
    assert torch.equal(model(X), bare(X))
    for mode in (model.train(), model.eval()):
        bare.train(mode.training)
        found, other = dither.explicit(noise, X, Y), dither.explicit(expected, X, Y)
        torch.testing.assert_close(found.R, other.R)
    with noise.off():
        assert torch.equal(model.train()(X), plain(model)(X))
    noise.remove()
    expected.remove()
    assert not torch.equal(model(X), plain(model)(X))


def test_a_checkpoint_recomputes_the_same_draw():
    """The gradient of h² for h + σε: 2 (h + σε), with the ε of the forward."""
    for reentrant in (False, True):
        layer = dither.nn.Additive(1.0, seed=0)
        h = torch.randn(5, requires_grad=True)
        out = checkpoint(lambda t, layer=layer: layer(t).square(), h, use_reentrant=reentrant)
        out.sum().backward()
        torch.testing.assert_close(h.grad.square() / 4, out)
        assert layer.step == 1


def test_schedules_count_forwards_in_train_mode():
    layer = dither.nn.Additive(dither.schedule.Until(1.0, 2), seed=0)
    moved = [not torch.equal(layer(X), X) for _ in range(3)]
    assert moved == [True, True, False]


def test_noise_added_to_a_placed_noise_adds_up():
    layer = dither.nn.Additive(1.0, seed=0)
    model = nn.Sequential(layer)
    alone = model(X) - X
    layer.step = 0
    with dither.inject(model, {"0:out": dither.Additive(1.0)}, seed=1):
        both = model(X) - X
    layer.step = 0
    assert not torch.equal(both, alone)
    assert torch.equal(layer(X) - X, alone)


def test_a_nodes_vector_is_trained_with_the_model():
    model = net(dither.nn.Node(0.7, 8, nodes=2, seed=0))
    assert "1.w" in dict(model.named_parameters())
    model(X).sum().backward()
    assert model[1].w.grad.abs().sum() > 0
    assert model[1].w.shape == (2, 8)


def test_compiled_code_has_the_noise():
    torch._dynamo.reset()
    model = torch.compile(nn.Sequential(dither.nn.Additive(0.5)), backend="eager", fullgraph=True)
    h = torch.zeros(20_000)
    one, two = model(h), model(h)
    assert not torch.equal(one, two)
    assert float(one.std()) == pytest.approx(0.5, rel=0.03)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: dither.nn.Additive(-1.0), "σ of Additive must be finite and ≥ 0: got -1.0"),
        (lambda: dither.nn.Additive(dither.schedule.Balanced(0.1)), "can't be Balanced"),
        (lambda: dither.nn.Additive(0.1, seed="a"), "seed is a whole number"),
        (lambda: dither.nn.Additive(0.1)(torch.arange(3)), "needs real numbers: got torch.int64"),
        (lambda: dither.nn.Node(0.1, 4)(torch.ones(2, 5)), r"Node at 'Node' has vectors \[4\]"),
        (lambda: dither.inject(nn.Linear(2, 2)), "none was given, and Linear has no module of"),
    ],
)
def test_bad_input_is_one_sentence(make, says):
    with pytest.raises(dither.DitherError, match=says):
        make()
