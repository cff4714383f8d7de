"""What a model is called with, and what it gives: one sentence where that can't be used."""

import pytest
import torch
from nets import plain
from torch import nn

import dither
from dither import measures

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


class Words(nn.Linear):
    """Its output is no tensor."""

    def forward(self, x):
        super().forward(x)
        return "logits"


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (Words(4, 3), X, "the model must give a tensor.*got str"),
        (plain(), "x", "x must be a tensor, a tuple of arguments or a mapping.*got str"),
        (plain(), X.to("meta"), "one device: got the model on cpu, x on meta, y on cpu"),
    ],
    ids=["output", "input", "device"],
)
def test_what_a_model_cannot_be_asked_is_a_sentence(model, x, says):
    noise = dither.inject(model, dither.Additive(0.1))
    with pytest.raises(dither.DitherError, match=says):
        dither.explicit(noise, x, Y)


MEASURED = {
    "margins.inputs": measures.margins.inputs,
    "margins.boundary": measures.margins.boundary,
    "capacity.capacity": measures.capacity.capacity,
    "capacity.layers": lambda net, x, y: measures.capacity.layers(net, x),
    "capacity.path": lambda net, x, y: measures.capacity.path(net, x),
    "corruption": lambda *of: measures.robustness.corruption(*of, levels=[0.1]),
    "attack": lambda *of: measures.robustness.attack(*of, strengths=[0.1], bounds=(-9, 9)),
    "vanishing": measures.robustness.vanishing,
}


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize(
    ("x", "got"),
    [({"x": X}, "dict"), ((X,), "tuple"), (X.long(), "torch.int64"), (X[:0], r"\[0, 4\]")],
    ids=["dict", "tuple", "integers", "empty"],
)
def test_measures_that_move_the_input_need_one_tensor_of_floats(name, x, got):
    with pytest.raises(dither.DitherError, match=f"x must be a tensor of floats.*got .*{got}"):
        MEASURED[name](plain(), x, Y[: len(x)])


@pytest.mark.parametrize("name", [n for n in MEASURED if n not in ("capacity.layers",
                                                                   "capacity.path")])  # fmt: skip
@pytest.mark.parametrize("y", [Y.tolist(), Y[:-1], Y[:, None]], ids=["list", "short", "column"])
def test_and_a_class_for_each_example(name, y):
    with pytest.raises(dither.DitherError, match="y "):
        MEASURED[name](plain(), X, y)
