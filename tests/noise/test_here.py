"""A Node's vectors fit the tensor that comes by, or it is said what to do."""

import pytest
import torch
from torch import nn

import dither
from dither.noise import Node

Y = torch.tensor([0, 2, 1])


class Long(nn.Module):
    """Sequences [B, T, 2] through an Identity."""

    def __init__(self):
        super().__init__()
        self.at = nn.Identity()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.at(x)).sum(1)


@pytest.mark.parametrize(("learnt", "met"), [(1, 5), (5, 1)])
def test_a_node_does_not_broadcast_over_another_length(learnt, met):
    noise = dither.inject(Long(), {"at": Node(1.0)}, example=torch.randn(3, learnt, 2))
    noise.model(torch.randn(3, learnt, 2))
    says = rf"Node at 'at:out' has vectors \[{learnt}, 2\] and gets a tensor \[3, {met}, 2\]"
    x = torch.randn(3, met, 2)
    for call in (lambda: noise.model(x), lambda: dither.explicit(noise, x, Y)):
        with pytest.raises(dither.DitherError, match=says):
            call()


def test_a_node_left_behind_says_how_to_move_it():
    model = nn.Sequential(nn.Linear(4, 3))
    noise = dither.inject(model, Node(1.0), seed=0)
    model.double()
    x = torch.randn(3, 4).double()
    says = r"Node at '0:out' has vectors of torch.float32 on cpu.*torch.float64 on cpu: move the"
    for call in (lambda: model(x), lambda: dither.explicit(noise, x, Y)):
        with pytest.raises(dither.DitherError, match=says):
            call()
    noise.to("cpu", torch.float64)
    assert model(x).dtype == torch.float64
    noise.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("noise", [Node(0.1), dither.DropPath(0.1), dither.Locked(0.1)])
@pytest.mark.parametrize("call", ["forward", "explicit"])
def test_a_dimension_of_samples_that_a_tensor_lacks_is_told(call, noise):
    """A Node's vectors are looked up at once, by the example."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(3, 4)
    says = r"noise at '1:out' looks for the samples in dimension 2 of its tensor, \[3, 5\] \(batch"

    def called():
        found = dither.inject(model, {"1:out": noise}, batch_dim=2, example=x)
        return model(x) if call == "forward" else dither.explicit(found, x, Y)

    with pytest.raises(dither.DitherError, match=says):
        called()


def test_neftune_counts_the_elements_of_a_sample():
    noise = dither.inject(Long(), {"at:out": dither.Neftune(1.0)}, batch_dim=3)
    with pytest.raises(dither.DitherError, match="in dimension 3 of its tensor"):
        noise.model(torch.randn(3, 5, 2))


@pytest.mark.parametrize("batch_dim", [1, 2, 5])
@pytest.mark.parametrize("of", [dither.Additive(0.1), dither.Neftune(1.0)])
def test_a_mask_without_the_dimension_of_samples_is_told(of, batch_dim):
    noise = dither.inject(
        Long(), {"at": dither.Masked(of, mask=lambda x: x[..., 0])}, batch_dim=batch_dim
    )
    says = rf"samples are in dimension {batch_dim} \(batch_dim\): the mask must have its first"
    with pytest.raises(dither.DitherError, match=says):
        noise.model(torch.randn(3, 5, 2))
