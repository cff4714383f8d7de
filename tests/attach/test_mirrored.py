"""The other half of an antithetic pair: the same draws, mirrored, and no step of the clock."""

import copy

import pytest
import torch
from nets import NOISES, plain
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither
from dither.errors import DitherError
from dither.measures import robustness

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
SYMMETRIC = [name for name in NOISES if name != "dropout"]


def linear() -> nn.Sequential:
    """In the noise of one site linear whatever the noise; the weights' sites are one layer."""
    return nn.Sequential(nn.Linear(4, 3, bias=False)).double()


def twins(make=plain, name="additive", **options):
    """Two equal models with equal noise."""
    one, two = make(), make()
    two.load_state_dict(one.state_dict())
    return one, two, *(dither.inject(m, NOISES[name](), seed=3, **options) for m in (one, two))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_odd_orders_cancel(name):
    """A network that is linear in δ is at its clean output in the mean of a pair."""
    model, x = linear(), X.double()
    clean = model(x)
    noise = dither.inject(model, NOISES[name](), seed=0)
    for _ in range(3):
        there = model(x)
        with noise.mirrored():
            back = model(x)
        assert (there - clean).abs().max() > 0.01
        torch.testing.assert_close((there + back) / 2, clean, rtol=1e-12, atol=1e-14)


def test_dropout_is_mirrored_in_its_uniform_number():
    """Kept where 1 − u ≥ p: at p = .5 just what was dropped before."""
    model = nn.Sequential(nn.Identity())
    noise = dither.inject(model, {"0": dither.Multiplicative(1.0, dither.dropout(0.5))}, seed=0)
    ones = torch.ones(50, 20)
    there = model(ones)
    with noise.mirrored():
        torch.testing.assert_close(there + model(ones), 2 * ones)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("held", [False, True])
def test_the_clock_stands_still(name, held):
    """After a pair the draws are those of a run without pairs; inside it forwards are alike."""
    one, two, a, b = twins(name=name)
    for _ in range(2):
        with a.hold() if held else a.off(), b.hold() if held else b.off():
            pass  # a hold that is over, or a pause
        for _ in range(3):
            assert torch.equal(one(X), two(X))
            with b.mirrored():
                again = two(X)
                with b.mirrored():  # inside the outer one
                    assert torch.equal(two(X), again)
        assert a.get_extra_state() == b.get_extra_state()


@pytest.mark.parametrize("name", NOISES)
def test_inside_a_hold_each_micro_batch_has_its_mirror_image(name):
    one, two, a, b = twins(name=name)
    with a.hold(), b.hold():
        for x in (X[:3], X[3:]):
            assert torch.equal(one(x), two(x))
            with b.mirrored():
                two(x)
    assert a.step == b.step == 1
    assert torch.equal(one(X), two(X))


@pytest.mark.parametrize("draw", ["all", "cycle", "random"])
def test_a_tensor_by_lot_stays_the_same_one(draw):
    model = plain(dtype=torch.float64)
    noise = dither.inject(model, dither.Weight(0.1), seed=0, draw=draw)
    seen = []
    handles = [
        m.register_forward_hook(lambda m, *_: seen.append(m.weight.detach()))
        for m in model
        if isinstance(m, nn.Linear)
    ]
    for _ in range(7):
        seen.clear()
        model(X.double())
        with noise.mirrored():
            model(X.double())
        for there, back, layer in zip(
            seen[:3], seen[3:], (model[i] for i in (0, 2, 4)), strict=True
        ):
            torch.testing.assert_close((there + back) / 2, layer.weight.detach())
    assert len(handles) == 3


@pytest.mark.parametrize("name", NOISES)
def test_a_backward_after_both_halves_recomputes_each_with_its_own_sign(name):
    class Recomputed(nn.Module):
        def __init__(self, inner, through):
            super().__init__()
            self.inner, self.through = inner, through

        def forward(self, x):
            if self.through:
                return checkpoint(self.inner, x, use_reentrant=False)
            return self.inner(x)

    torch.manual_seed(0)
    one = Recomputed(plain(), False)
    two = Recomputed(plain(), True)
    two.load_state_dict(one.state_dict())
    grads = []
    for model in (one, two):
        noise = dither.inject(model, NOISES[name](), seed=3)
        loss = model(X).square().mean()
        with noise.mirrored():
            loss = loss + model(X).square().mean()
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for p, q in zip(*grads, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["multiplicative", "weight"])
def test_in_compiled_code(name):
    one, two, a, b = twins(name=name)
    compiled = torch.compile(two, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(one(X), compiled(X))
        with a.mirrored(), b.mirrored():
            torch.testing.assert_close(one(X), compiled(X))


@pytest.mark.parametrize("name", ["additive", "weight"])
@pytest.mark.parametrize("what", ["mirrored", "hold"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo's, of W + δ after a broken graph
def test_inside_compiled_code_it_says_so_or_breaks_the_graph(what, name):
    """There the `with` would run when it is traced, and not when the code runs."""

    def two_forwards(x):
        if what == "hold":
            with noise.hold():
                return model(x), model(x)
        a = model(x)
        with noise.mirrored():
            return a, model(x)

    model, x = linear(), X.double()
    clean = model(x)
    noise = dither.inject(model, NOISES[name](), seed=0)
    model(x)
    with pytest.raises(Exception, match="around compiled code, not inside it"):
        torch.compile(two_forwards, backend="eager", fullgraph=True)(x)
    torch._dynamo.reset()
    compiled = torch.compile(two_forwards, backend="eager")
    for step in (2, 3):
        a, b = compiled(x)
        assert noise.step == step
        if what == "mirrored":
            torch.testing.assert_close((a + b) / 2, clean)
        elif name == "weight":
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", NOISES)
def test_what_is_saved_or_loaded_inside_goes_on_as_ever(name):
    one, two, a, b = twins(name=name)
    one(X)
    with a.mirrored():
        one(X)
        state = copy.deepcopy(a.state_dict())
        copied = copy.deepcopy(a)
    b.load_state_dict(state)
    for _ in range(2):
        assert torch.equal(one(X), two(X))
    two(X)
    with b.mirrored():
        b.load_state_dict(a.state_dict())
    assert torch.equal(one(X), two(X))
    assert copied.get_extra_state() == state["_extra_state"]
    assert not copied.mirror


def test_a_branch_that_is_first_taken_inside():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Identity(), nn.Identity()

        def forward(self, x, two=False):
            return self.two(x) if two else self.one(x)

    model = Branch()
    noise = dither.inject(model, {"*": dither.Additive(1.0)}, seed=0)
    x = torch.zeros(4, 3)
    model(x)
    with noise.mirrored():
        model(x, two=True)
    assert noise.step == 1
    assert not torch.equal(model.two(x), model.two(x))


def test_a_part_that_had_no_forward_has_nothing_to_repeat():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    noise = dither.inject(model, {"0": dither.Additive(0.1), "1": dither.Additive(0.1)}, seed=0)
    model[0](X)
    with noise.mirrored(), pytest.raises(DitherError, match="'1:in' had none yet"):
        model[1](X)


def test_draws_of_an_attack_are_independent_inside_a_hold_and_a_pair():
    model = plain()
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    with noise.hold():
        model(X)
        for around in (noise.off(), noise.mirrored()):
            with around, robustness.noisy(model, 2):
                assert not torch.equal(model(X), model(X))
    model(X)
    assert noise.step == 2
    with noise.hold():
        with robustness.noisy(model, 2):
            model(X)
        model(X)  # a step of its own
    assert noise.step == 3


def test_pairs_measure_the_second_order_with_less_spread():
    """Of the mean of a pair's loss only even orders are left."""
    model = plain(dtype=torch.float64)
    x, y = X.double(), torch.zeros(6, 3, dtype=torch.float64)
    clean = (model(x) - y).square().mean().item()
    noise = dither.inject(model, dither.Weight(1e-3), seed=0)
    single, pairs = [], []
    for _ in range(40):
        losses = [(model(x) - y).square().mean().item() - clean]
        with noise.mirrored():
            losses.append((model(x) - y).square().mean().item() - clean)
        single.append(losses[0])
        pairs.append(sum(losses) / 2)
    assert torch.tensor(pairs).std() < 0.05 * torch.tensor(single).std()


def test_before_the_first_forward_there_is_nothing_to_mirror():
    noise = dither.inject(plain(), dither.Additive(0.1))
    with pytest.raises(DitherError, match="last forward: there was none yet"), noise.mirrored():
        pass


def test_an_exception_inside_leaves_the_clock_as_it_was():
    model = plain()
    noise = dither.inject(model, dither.Additive(0.1), seed=0)
    model(X)
    before = noise.get_extra_state()
    with pytest.raises(RuntimeError), noise.mirrored():  # a matrix does not fit
        model(X[:, :2])
    assert noise.get_extra_state() == before
