"""Where the samples are: a tensor of samples' numbers, laid out in every way, is read back."""

import pytest
import torch

from dither.engine.batch_axis import Layout, elementwise_layouts, layouts

B, T, F = 3, 4, 2
NUMBERS = torch.arange(B).view(B, 1, 1).expand(B, T, F)  # which sample an element belongs to
LAID_OUT = {
    ("dim", 0): NUMBERS,
    ("dim", 1): NUMBERS.transpose(0, 1),
    ("major", 0): NUMBERS.reshape(B * T, F),
    ("minor", 0): NUMBERS.transpose(0, 1).reshape(T * B, F),
}


@pytest.mark.parametrize(("way", "at"), LAID_OUT)
def test_each_sample_has_its_own_elements(way, at):
    t = LAID_OUT[way, at]
    layout = Layout(way, at, B)
    assert layout in layouts(t.shape[:-1], B)
    parts = layout(t, 1)  # [B, P, F]
    assert parts.shape == (B, T, F)
    assert torch.equal(parts, NUMBERS)
    for other in set(LAID_OUT) - {(way, at)}:
        wrong = Layout(*other, B)
        if wrong in layouts(t.shape[:-1], B):
            assert not torch.equal(wrong(t, 1), NUMBERS)


def test_replicas_and_samples_in_two_dimensions_count_together():
    t = torch.arange(6).view(2, 3, 1).expand(2, 3, 5)
    both = Layout("both", 0, 6)
    assert both in layouts(t.shape[:-1], 6)
    assert torch.equal(both.first(t), torch.arange(6).view(6, 1).expand(6, 5))


@pytest.mark.parametrize(
    ("out", "shape", "counts"),
    [((3, 4), (4,), [0]), ((3, 3), (3,), [0]), ((4, 3, 5), (4, 1, 5), [1]),
     ((3, 4, 3), (1, 4, 3), [0]), ((3, 4), (3, 4), [])],
)  # fmt: skip
def test_a_parameter_is_broadcast_along_the_samples(out, shape, counts):
    """Only along those dimensions: in one that it has itself, its elements are its own."""
    found = elementwise_layouts(torch.Size(out), torch.Size(shape), 3)
    assert [c.at for c in found if c.way == "dim"] == counts


@pytest.mark.parametrize("shape", [(4,), (1, 4), (5, 1), (1, 1), (5, 4), ()])
def test_unbroadcast_is_the_gradient_of_each_sample_alone(shape):
    p = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x, g = (torch.randn(3, 5, 4, dtype=torch.float64) for _ in range(2))
    found = Layout("dim", 0, 3).unbroadcast(g * x, torch.Size(shape))
    for i in range(3):
        (right,) = torch.autograd.grad((p * x[i] * g[i]).sum(), p)
        torch.testing.assert_close(found[i], right)
