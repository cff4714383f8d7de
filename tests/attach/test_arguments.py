"""Noise on one of a model's arguments: "input:name", "input[1]"."""

import pytest
import torch
from torch import nn

import dither

torch.manual_seed(0)
U, V, Y = torch.randn(6, 5), torch.randn(6, 4), torch.arange(6) % 3


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(5, 3), nn.Linear(4, 3)
        self.seen = {}

    def forward(self, u, v, *, flag=None):
        self.seen = {"u": u, "v": v}
        return self.a(u) + self.b(v)


CALLS = {
    "by position": lambda m: m(U, V),
    "by name": lambda m: m(u=U, v=V),
    "in another order": lambda m: m(v=V, u=U),
    "mixed": lambda m: m(U, v=V),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("pattern", "noisy"), [("input:u", "u"), ("input:v", "v"), ("input[0]", "u"), ("input[1]", "v")]
)
def test_the_named_argument_gets_the_noise(pattern, noisy, call):
    model = Two().train()
    with dither.inject(model, {pattern: dither.Additive(0.5)}, seed=0) as noise:
        CALLS[call](model)
        clean = {"u": U, "v": V}
        assert [n for n in clean if not torch.equal(model.seen[n], clean[n])] == [noisy]
        assert list(noise.sites) == [pattern]


@pytest.mark.parametrize("x", [(U, V), {"u": U, "v": V}, {"v": V, "u": U}])
def test_R_of_an_argument_is_that_of_the_layer_it_feeds(x):
    model = Two()
    with dither.inject(model, {"b:in": dither.Additive(0.5)}) as noise:
        expected = dither.explicit(noise, x, Y).R
    with dither.inject(model, {"input:v": dither.Additive(0.5)}) as noise:
        torch.testing.assert_close(dither.explicit(noise, x, Y).R, expected)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("input:w", r"'input:w': the forward of Two has the arguments u, v, flag"),
        ("input[3]", r"'input\[3\]': the forward of Two has the arguments u, v, flag"),
    ],
)
def test_an_argument_that_can_not_be_is_told_at_once(pattern, says):
    with pytest.raises(dither.DitherError, match=says):
        dither.inject(Two(), {pattern: dither.Additive(0.5)})


def test_an_argument_that_is_not_given_is_told_in_the_call():
    model = Two().train()
    with (
        dither.inject(model, {"input:flag": dither.Additive(0.5)}),
        pytest.raises(dither.DitherError, match="'input:flag' needs that argument of Two"),
    ):
        model(U, V)


def test_a_module_called_input_keeps_its_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.input = nn.Linear(5, 3)

        def forward(self, u):
            return self.input(u)

    with dither.inject(Odd(), {"input:out": dither.Additive(0.5)}) as noise:
        assert list(noise.sites) == ["input:out"]
