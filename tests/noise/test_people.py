"""The noises that other libraries have, held against what those compute."""

import pytest
import torch
from torch import nn

import dither
from dither.noise import (
    DropConnect,
    DropPath,
    Here,
    Locked,
    Neftune,
    Relative,
    dropout,
    two_point,
    uniform,
)
from dither.noise.draw import Source


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_drop_path_takes_a_samples_whole_branch_or_none_of_it(batch_dim):
    h, p = randn(200, 4, 3), 0.3
    here = Here(h.movedim(0, batch_dim), batch_dim=batch_dim)
    out = here.h + DropPath(law=dropout(p)).displace(here, Source([1]))
    factor = (out.movedim(batch_dim, 0) / h).flatten(1)
    assert (factor - factor[:, :1]).abs().max() < 1e-9
    dropped = factor[:, 0].abs() < 1e-9
    torch.testing.assert_close(factor[~dropped], torch.full_like(factor[~dropped], 1 / (1 - p)))
    assert 0.15 < dropped.double().mean() < 0.45


@pytest.mark.parametrize(("shape", "features"), [((5, 7, 3), -1), ((5, 3, 4, 4), 1)])
def test_locked_has_one_draw_for_all_positions_of_a_feature(shape, features):
    h = randn(*shape)
    factor = Locked(0.5, uniform, features).displace(Here(h), Source([1])) / h
    factor = factor.movedim(features, 1).flatten(2)  # [B, F, positions]
    assert (factor - factor[..., :1]).abs().max() < 1e-9
    assert len(factor[..., 0].flatten().round(decimals=6).unique()) == 15


def test_locked_on_maps_is_torchs_dropout2d_in_its_moments():
    h, p, n = torch.ones(4000, 3, 2, 2), 0.4, 4000
    ours = h + Locked(law=dropout(p), features=1).displace(Here(h), Source([1]))
    torch.manual_seed(0)
    theirs = nn.functional.dropout2d(h, p)
    for out in (ours, theirs):
        assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        assert torch.equal(out.amax((2, 3)), out.amin((2, 3)))
        assert abs(out.mean() - 1) < 5 * (p / (1 - p) / (3 * n)) ** 0.5


def test_neftune_is_the_papers_uniform_noise():
    """As transformers writes it: ±α/√(T d), α = 5."""
    embedding, tokens = nn.Embedding(11, 6), torch.randint(11, (64, 9))
    with dither.inject(embedding, {"output": Neftune(5.0)}, seed=0):
        delta = embedding.train()(tokens) - embedding.weight[tokens]
    size = 5.0 / (9 * 6) ** 0.5
    assert 0.99 * size < delta.abs().max() <= size * (1 + 1e-5)
    assert delta.square().mean().item() == pytest.approx(size**2 / 3, rel=0.05)


def test_relative_noise_is_as_large_as_the_largest_weight():
    w = randn(4, 3)
    for per, largest in (("tensor", w.abs().max()), ("row", w.abs().amax(1, keepdim=True))):
        delta = Relative(0.2, two_point, per).displace(Here(w), Source([1]))
        torch.testing.assert_close(delta.abs(), (0.2 * largest).expand(4, 3))
    bias = Relative(0.2, two_point, "row").displace(Here(w[0]), Source([1]))
    torch.testing.assert_close(bias.abs(), (0.2 * w[0].abs().max()).expand(3))


def test_drop_connect_sets_weights_to_zero():
    model, seen = nn.Linear(40, 30), []
    with dither.inject(model, {"weight": DropConnect(law=dropout(0.25))}, seed=0):
        model.register_forward_pre_hook(lambda m, a: seen.append(m.weight.detach().clone()))
        model.train()(torch.randn(2, 40))
    ratio = seen[0] / model.weight
    dropped = ratio.abs() < 1e-6
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 4 / 3))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Relative(0.1, per="column"), "'tensor' or 'row': got 'column'"),
        (lambda: Locked(features="last"), "number of a dimension, −1 for the last: got 'last'"),
        (lambda: Locked(features=0).displace(Here(randn(3, 4)), Source([1])), r"dimension 0, and"),
        (lambda: Locked(features=5).displace(Here(randn(3, 4)), Source([1])), r"dimension 5, and"),
    ],
)
def test_bad_arguments_are_told(call, says):
    with pytest.raises(dither.DitherError, match=says):
        call()
