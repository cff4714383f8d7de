"""Graphs that outlive the noise, of torch.export and torch.jit.trace: clean, or refused."""

import io

import pytest
import torch
from nets import NOISES, plain
from torch import nn

import dither
from dither.schedule import Until

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
every_noise = pytest.mark.parametrize("name", NOISES)
both = pytest.mark.parametrize("strict", [False, True], ids=["export", "strict"])
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own, of torch.jit
]


@pytest.fixture(autouse=True)
def fresh():
    """Each test compiles anew."""
    yield
    torch._dynamo.reset()


@both
@every_noise
def test_noise_that_is_on_is_not_frozen_into_a_program(name, strict):
    model = plain()
    noise = dither.inject(model, NOISES[name](), seed=0)
    with pytest.raises(Exception, match=r"noise at '0.*' can't go into a graph of torch\.export"):
        torch.export.export(model, (X,), strict=strict)
    noise.remove()
    model.eval()
    assert torch.equal(torch.export.export(model, (X,)).module()(X), model(X))


@both
@pytest.mark.parametrize("how", ["eval", "off", "removed"])
def test_a_program_of_a_model_with_its_noise_off_is_the_clean_one(how, strict):
    """Its graph has no draw, and a program that is saved and loaded needs no dither."""
    model = plain()
    clean = model(X)
    noise = dither.inject(model, dither.Weight(0.3), seed=0)
    dither.inject(model.eval(), dither.Additive(0.3), seed=0)
    if how == "off":
        model.train()
        for other in noise.beside:
            other.remove()
        with noise.off():
            program = torch.export.export(model, (X,), strict=strict)
    elif how == "removed":
        for one in (*noise.beside, noise):
            one.remove()
        program = torch.export.export(model.train(), (X,), strict=strict)
    else:
        program = torch.export.export(model, (X,), strict=strict)
    assert not any("dither" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(X), clean)


@every_noise
def test_traces_the_same(name):
    model = plain()
    noise = dither.inject(model, NOISES[name](), seed=0)
    with pytest.raises(dither.DitherError, match=r"'0.*' can't go into a graph of torch\.jit"):
        torch.jit.trace(model, (X,))
    assert torch.equal(torch.jit.trace(model.eval(), (X,))(X), model(X))
    with noise.off():
        assert torch.equal(torch.jit.trace(model.train(), (X,))(X), model(X))


def test_a_part_without_sites_is_exported_while_the_rest_is_noisy():
    model = plain()
    dither.inject(model, {"0": dither.Additive(0.1)}, seed=0)
    h = torch.ones(2, 8)
    assert torch.equal(torch.export.export(model[2], (h,)).module()(h), model[2](h))


PLACED = {
    "export": lambda m, x: torch.export.export(m, (x,)).module(),
    "strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
    "trace": lambda m, x: torch.jit.trace(m, (x,), check_trace=False),
    "compile": lambda m, x: torch.compile(m, backend="eager", fullgraph=True),
}


@pytest.mark.parametrize("how", PLACED)
def test_a_placed_noise_draws_anew_in_every_graph(how):
    """As dropout: N = 20 000, the variance within 5 standard errors, two calls uncorrelated."""
    x, n = torch.zeros(20_000), 20_000
    graph = PLACED[how](nn.Sequential(dither.nn.Additive(0.5, seed=0)), x)
    a, b = graph(x), graph(x)
    assert abs(a.var() / 0.25 - 1) < 5 * (2 / n) ** 0.5
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / n**0.5


@pytest.mark.parametrize("how", PLACED)
def test_a_placed_schedule_would_be_frozen_and_is_told(how):
    model = nn.Sequential(dither.nn.Additive(Until(0.5, 2), seed=0))
    with pytest.raises(Exception, match=r"of dither\.nn is a schedule, and .*call dither\.inject"):
        PLACED[how](model, X)(X)


def test_and_its_advice_follows_the_schedule():
    model = nn.Sequential(dither.nn.Additive(Until(0.5, 2), seed=0))
    dither.inject(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert [bool((compiled(X) != X).any()) for _ in range(4)] == [True, True, False, False]
