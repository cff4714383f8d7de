"""What must be there to measure a noise: an injection still in its model, and a batch."""

import pytest
import torch
from nets import plain
from torch import nn

import dither
from dither import DitherError

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def noise():
    return dither.inject(plain(), dither.Additive(0.1), seed=0)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda: dither.explicit(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.expected(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.balance(plain(), X, Y), "noise that inject gave, not Sequential"),
        (lambda: dither.explicit(noise(), X[:0], Y[:0]), "the batch is empty"),
        (lambda: dither.expected(noise(), X[:0], Y[:0]), "the batch is empty"),
    ],
)
def test_the_first_mistakes_are_told(f, says):
    with pytest.raises(DitherError, match=says):
        f()


def test_a_removed_noise_says_so():
    gone = noise()
    gone.remove()
    for what in (dither.explicit, dither.expected, dither.remainder, dither.balance):
        with pytest.raises(DitherError, match="was removed from its model: inject it again"):
            what(gone, X, Y)


def test_a_parametrisation_after_inject_is_told():
    model = plain()
    noise = dither.inject(model, dither.Weight(0.1), seed=0)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(DitherError, match=r"'0.weight' .* parametrised, after inject"):
        dither.explicit(noise, X, Y)


def test_a_layer_that_was_replaced_is_missed():
    for what in (dither.Additive(0.1), dither.Weight(0.1)):
        model = plain()
        noise = dither.inject(model, what, seed=0)
        model[2] = nn.Linear(8, 8)
        for f in (dither.explicit, dither.expected, dither.balance):
            with pytest.raises(DitherError, match="it was replaced, or parametrised, after inject"):
                f(noise, X, Y)
