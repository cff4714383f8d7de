"""Levi et al. 2022, Table 1's digits and Fig. 9's net."""

import pytest
import torch

import dither
from dither.papers.levi2022 import fig9, table1

# ------------------------------------------------------------------------------- the other digits


def test_digits_are_boxed_and_centred():
    x = torch.ones(1, 1, 8, 8)
    there = table1.boxed(x)[0, 0]
    assert there.shape == (28, 28)
    torch.testing.assert_close(there[4:24, 4:24], torch.ones(20, 20))
    assert float(there.sum()) == pytest.approx(400)


def test_the_target_is_all_of_scikit_learns_digits():
    x, y = table1.digits()
    assert x.shape == (1797, 1, 28, 28)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert y.bincount().min() > 170


# ---------------------------------------------------------------------------------- fig. 9


def test_figure_9s_net_and_node_train():
    images = fig9.figure.smoke["images"]
    model = fig9.model(images.divide).build(0)
    assert fig9.model().dense == (500,)
    assert [c.filters for c in fig9.model().convs] == [32, 32, 64, 64, 128, 128]
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    node = dither.Node(fig9.SIGMA["in decay"], std=fig9.PIXELS**-0.5)
    with dither.inject(model.train(), {"conv0": node}, seed=0, example=x) as noise:
        w = noise.nodes["conv0:in"]
        assert w.shape == (1, 3, 32, 32)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        assert w.grad is not None
        assert w.grad.any()


def test_figure_9_says_what_it_needs():
    assert fig9.figure.needs == ("cifar-10",)
    assert fig9.SIGMA == {"in decay": 17.5, "in catapult": 55.4}
