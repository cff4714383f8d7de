"""torch.compile draws what eager code draws, however noise and compilation come together."""

import pytest
import torch
import torch._dynamo.testing
from nets import NOISES, gradients, plain, shadows
from torch import nn
from torch.utils.checkpoint import checkpoint

import dither
from dither.schedule import Linear, Until

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)
three = pytest.mark.parametrize("name", ["multiplicative", "node", "weight"])  # compiling is slow
pytestmark = [
    # PyTorch's own: dynamo looks at .grad of its inputs, inductor loads torch.jit.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]


@pytest.fixture(autouse=True)
def fresh():
    """Each test compiles anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def twins(noise, make=plain, **options):
    """Two equal models with equal noises."""
    one, two = make(), make()
    two.load_state_dict(one.state_dict())
    noises = [dither.inject(m, noise, seed=0, **options) for m in (one, two)]
    return one, two, *noises


def assert_same_steps(eager, compiled, one, two, steps=3, x=X):
    """Outputs and gradients of a few steps, to float rounding."""
    for _ in range(steps):
        for m in (one, two):
            m.zero_grad()
        z, w = eager(x), compiled(x)
        torch.testing.assert_close(z, w, rtol=1e-5, atol=1e-6)
        z.square().sum().backward()
        w.square().sum().backward()
        for a, b in zip(gradients(one), gradients(two), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not shadows(two)


@every_noise
def test_the_same_draws_as_eager(name):
    one, two, a, b = twins(NOISES[name]())
    compiled = torch.compile(two, backend="aot_eager", fullgraph=True)
    assert_same_steps(one, compiled, one, two)
    assert a.step == b.step == 3
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_inductor():
    what = {"0": dither.Node(0.7), "2": dither.Multiplicative(0.3)}
    one, two, *_ = twins(what)
    dither.inject(one, dither.Weight(0.1), seed=1)
    dither.inject(two, dither.Weight(0.1), seed=1)
    assert_same_steps(one, torch.compile(two, fullgraph=True), one, two)


@three
def test_attached_after_the_first_compiled_call_and_removed(name):
    one, two = plain(), plain()
    two.load_state_dict(one.state_dict())
    compiled = torch.compile(two, backend="eager", fullgraph=True)
    clean = compiled(X)
    noises = [dither.inject(m, NOISES[name](), seed=0) for m in (one, two)]
    assert_same_steps(one, compiled, one, two, steps=2)
    for n in noises:
        n.remove()
    assert torch.equal(compiled(X), clean)


@three
def test_pause_resume_and_train_eval(name):
    one, two, a, b = twins(NOISES[name]())
    clean = one.eval()(X)
    compiled = torch.compile(two, backend="eager", fullgraph=True)
    assert torch.equal(compiled.eval()(X), clean)
    for m in (one, two):
        m.train()
    assert_same_steps(one, compiled, one, two, steps=2)
    b.pause()
    assert torch.equal(compiled(X), clean)
    b.resume()
    assert_same_steps(one, compiled, one, two, steps=1)
    two.eval()
    assert torch.equal(compiled(X), clean)
    two.train()
    assert_same_steps(one, compiled, one, two, steps=1)
    assert a.step == b.step == 4


@pytest.mark.parametrize(
    "noise",
    [dither.Weight(Until(0.3, 2)), dither.Node(Linear(0.0, 0.5, 3))],
    ids=["until", "linear"],
)
def test_a_schedule_goes_on_in_compiled_code(noise):
    one, two, *_ = twins(noise)
    counter = torch._dynamo.testing.CompileCounter()
    assert_same_steps(one, torch.compile(two, backend=counter, fullgraph=True), one, two, steps=4)
    assert counter.frame_count == 1  # σ is no constant of the graph


@pytest.mark.parametrize("draw", ["all", "cycle", "random"])
def test_every_way_of_drawing(draw):
    one, two, *_ = twins(dither.Weight(0.3), draw=draw, by="layer")
    counter = torch._dynamo.testing.CompileCounter()
    assert_same_steps(one, torch.compile(two, backend=counter, fullgraph=True), one, two, steps=4)
    assert counter.frame_count == 1


class Repeated(nn.Module):
    """One layer called three times."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.inner(self.inner(self.inner(x).tanh()).tanh()).tanh())


@three
def test_several_calls_of_one_module(name):
    one, two, *_ = twins(NOISES[name](), Repeated)
    assert_same_steps(one, torch.compile(two, backend="eager", fullgraph=True), one, two)


@pytest.mark.parametrize("name", ["additive", "weight"])
def test_compiled_in_place(name):
    one, two, *_ = twins(NOISES[name]())
    two.compile(backend="eager", fullgraph=True)
    assert_same_steps(one, two, one, two)


@three
def test_a_compiled_submodule(name):
    one, two, a, b = twins(NOISES[name](), Repeated)
    two.inner.compile(backend="eager")
    assert_same_steps(one, two, one, two)
    assert a.step == b.step == 3


@pytest.mark.parametrize("name", ["weight"])
def test_inject_into_the_compiled_model(name):
    one, two = plain(), plain()
    two.load_state_dict(one.state_dict())
    compiled = torch.compile(two, backend="eager", fullgraph=True)
    dither.inject(one, NOISES[name](), seed=0)
    noise = dither.inject(compiled, NOISES[name](), seed=0)
    assert noise.model is two
    assert_same_steps(one, compiled, one, two)


@pytest.mark.parametrize("name", ["additive", "weight"])
def test_compiled_code_goes_on_where_eager_code_stopped_and_back(name):
    one, two, a, b = twins(NOISES[name]())
    compiled = torch.compile(two, backend="eager", fullgraph=True)
    for step, model in enumerate((two, compiled, compiled, two, compiled), 1):
        torch.testing.assert_close(one(X), model(X))
        assert a.step == b.step == step


@pytest.mark.parametrize("name", ["additive", "weight"])
def test_hold_in_compiled_code(name):
    one, two, a, b = twins(NOISES[name]())
    compiled = torch.compile(two, backend="eager", fullgraph=True)
    for _ in range(2):
        with a.hold(), b.hold():
            assert_same_steps(one, compiled, one, two, steps=3)
    assert a.step == b.step == 2


class Breaking(nn.Module):
    """Its forward can't be one graph."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.inner(x)
        torch._dynamo.graph_break()
        return self.last(h.tanh())


@three
def test_graph_breaks(name):
    one, two, *_ = twins(NOISES[name](), Breaking)
    assert_same_steps(one, torch.compile(two, backend="eager"), one, two)


class Checkpointed(nn.Module):
    """Two blocks, recomputed in the backward."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x.tanh(), use_reentrant=False)
        return x


@pytest.mark.parametrize("name", ["multiplicative", "weight"])
def test_checkpoints_in_compiled_code(name):
    one, two, *_ = twins(NOISES[name](), Checkpointed)
    assert_same_steps(one, torch.compile(two, backend="aot_eager"), one, two)


def test_a_noise_of_two_laws_says_that_it_cannot_be_compiled():
    class Both(dither.Additive):
        def displace(self, site, rng):
            return rng(self.law, site.h) + rng(dither.uniform, site.h)

    model = plain()
    dither.inject(model, Both(0.1))
    model(X)
    with pytest.raises(Exception, match="Both at '0:in' can't be compiled"):
        torch.compile(model, backend="eager", fullgraph=True)(X)


def test_the_table_of_compiled_sites():
    model = plain()
    noise = dither.inject(model, dither.Additive(0.1))
    assert "not called yet" in str(noise.sites)
    torch.compile(model, backend="eager")(X)
    assert "not called yet" not in str(noise.sites)
