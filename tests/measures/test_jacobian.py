"""Layer-to-layer Jacobians against autograd's, layer by layer and example by example."""

import pytest
import torch
import torch.nn.functional as F
from nets import plain
from torch import nn
from torch.func import jacrev

import dither
from dither.errors import DitherError
from dither.lab.nets.specs import MLP
from dither.measures import jacobian

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
SPEC = MLP((3, 6, 6, 4, 1), activation="elu", init="torch")


def dense(net: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """∂h_k/∂h_{k−1} [B, out, in] of each layer, by autograd."""
    found, h = {}, x
    for k in range(SPEC.depth):
        parts = [net.get_submodule(f"fc{k}")]
        if k < SPEC.depth - 1:
            parts.append(net.get_submodule(f"act{k}"))
        step = nn.Sequential(*parts)
        found[f"fc{k}"] = torch.stack([jacrev(step)(one) for one in h]).detach()
        h = step(h)
    return found


@pytest.mark.parametrize("activation", ["relu", "elu", "tanh", "linear"])
def test_norms_are_those_of_autograds_jacobian(activation):
    global_spec = MLP(SPEC.widths, activation=activation, init="torch")
    net, x = global_spec.build(0).double(), torch.randn(5, 3, dtype=torch.float64)
    oracle, layers = dense(net, x), jacobian.layers(net, x)
    assert list(layers) == list(oracle) == ["fc0", "fc1", "fc2", "fc3"]
    for name, J in oracle.items():
        layer, size = layers[name], J.flatten(1).norm(dim=1)
        assert layer.frobenius().item() == pytest.approx(size.mean().item(), rel=1e-10)
        assert layer.square().item() == pytest.approx((size**2).mean().item(), rel=1e-10)
        top = torch.linalg.svdvals(J)[:, 0]
        torch.testing.assert_close(jacobian.spectral(layer.w, layer.slope, chunk=2), top)
        assert layer.spectral().item() == pytest.approx(top.mean().item(), rel=1e-10)


def test_a_relu_row_counts_where_its_unit_is_active():
    w = torch.tensor([[3.0, 4.0], [5.0, 12.0]])
    slope = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    expected = torch.tensor([5.0, 13.0, 194**0.5, 0.0])
    torch.testing.assert_close(jacobian.frobenius(w, slope), expected)


def test_a_stack_gives_each_replica_its_own():
    seeds = (0, 1, 2)
    x = torch.randn(3, 7, 3)
    stack = jacobian.layers(SPEC.build_stacked(seeds), x)
    for s, seed in enumerate(seeds):
        alone = jacobian.layers(SPEC.build(seed), x[s])
        for name, layer in alone.items():
            for measure in ("frobenius", "square", "spectral"):
                both = getattr(stack[name], measure)()[s], getattr(layer, measure)()
                torch.testing.assert_close(*both)
    torch.testing.assert_close(
        stack["fc1"].trace()[2], jacobian.layers(SPEC.build(2), x[2])["fc1"].trace()
    )


def test_the_trace_is_the_sum_of_the_diagonal():
    w = torch.arange(8.0).view(2, 2, 2)
    assert jacobian.trace(w).tolist() == [3.0, 11.0]
    assert not jacobian.Layer(torch.ones(2, 3), torch.ones(1, 2)).is_square
    with pytest.raises(DitherError, match=r"W is \[2, 3\], and only square weights have a trace"):
        jacobian.trace(torch.ones(2, 3))


def test_looking_leaves_model_noise_and_modes_as_they_were():
    net = SPEC.build(0).train()
    net.fc1.eval()
    x = torch.randn(5, 3)
    clean = jacobian.layers(net, x)["fc2"].frobenius()
    with dither.inject(net, dither.Additive(1.0), seed=0) as noise:
        assert jacobian.layers(net, x)["fc2"].frobenius() == clean
        assert noise.step == 0
    assert [m.training for m in (net, net.fc0, net.fc1)] == [True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_an_unknown_follower_is_named():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    with pytest.raises(DitherError, match=r"'1' \(LayerNorm\) stands between two layers"):
        jacobian.layers(net, torch.randn(2, 3))


def test_a_layer_called_twice_is_named():
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    with pytest.raises(DitherError, match="'0' is called twice"):
        jacobian.layers(net, torch.randn(2, 3))


def test_layer_norms_see_through_no_function():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU()
            self.modular = True

        def forward(self, x):
            h = self.a(x)
            return F.log_softmax(self.b(self.act(h) if self.modular else F.relu(h)), -1)

    net = Net()
    assert set(jacobian.layers(net, X)) == {"a", "b"}
    net.modular = False
    with pytest.raises(DitherError, match=r"the function 'relu' takes the output of 'a'"):
        jacobian.layers(net, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_nor_through_one_inside_a_block_or_in_place(inplace):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.drop = nn.Linear(4, 4), nn.Dropout()

        def forward(self, x):
            return self.drop(F.relu(self.lin(x), inplace=inplace))

    net = nn.Sequential(Block(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(DitherError, match=r"'relu' takes the output of '0.lin'"):
        jacobian.layers(net, X)


def test_but_through_sums_and_views():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b, self.c = (
                nn.Linear(4, 4),
                nn.Tanh(),
                *(nn.Linear(4, 4) for _ in range(2)),
            )

        def forward(self, x):
            return self.c((x + self.b(self.act(self.a(x)))).view(-1, 4))

    assert set(jacobian.layers(Residual(), X)) == {"a", "b", "c"}


def test_layer_norms_are_those_without_noise_that_is_always_on():
    net = plain()
    clean = jacobian.layers(net, X)["0"].frobenius()
    with dither.inject(net, dither.Additive(1.0), when="always") as noise:
        assert jacobian.layers(net, X)["0"].frobenius() == clean
        assert noise.step == 0
