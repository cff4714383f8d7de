"""Capacity measures against dense operators and a walk over every path."""

import itertools
import math

import pytest
import torch
from nets import Snapshot, hooks
from torch import nn

import dither
from dither.errors import DitherError
from dither.measures import capacity, margins

CONVS = [
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 4, 2, padding=1, dilation=2, groups=2, bias=False),
    nn.Conv2d(2, 1, 1),
    nn.Conv1d(2, 5, 4, stride=3),
    nn.Conv3d(2, 2, 2),
]


def image(conv: nn.Module) -> torch.Tensor:
    dims = int(type(conv).__name__[4])
    return torch.randn(1, 2, *[5] * dims, dtype=torch.float64)


def dense(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The matrix of x ↦ module(x) − module(0)."""
    J = torch.autograd.functional.jacobian(lambda a: module(a[None])[0].flatten(), x[0])
    return J.flatten(1)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_convolutions_norm_is_the_operators(conv):
    conv, x = conv.double(), image(conv)
    found = capacity.layers(conv, x)[""]
    truth = torch.linalg.matrix_norm(dense(conv, x), 2).item()
    assert found.spectral == pytest.approx(truth, rel=1e-6)
    assert found.frobenius == pytest.approx(conv.weight.norm().item())


def test_a_large_convolution_settles():
    """Against many steps of the power method, which comes from below."""
    conv, x = nn.Conv2d(3, 16, 3, padding=1).double(), torch.randn(1, 3, 20, 20).double()
    found = capacity.layers(conv, x)[""].spectral
    v = torch.randn_like(x)
    for _ in range(2000):
        v = nn.functional.conv2d(v, conv.weight, padding=1)
        v = nn.functional.conv_transpose2d(v, conv.weight, padding=1)
        v = v / v.norm()
    below = nn.functional.conv2d(v, conv.weight, padding=1).norm().item()
    assert below * (1 - 1e-9) <= found <= below * (1 + 1e-5)


def mlp(*widths: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), nn.ELU()]
    return nn.Sequential(*layers[:-1]).double()


def test_the_products_of_a_net():
    model, x, y = mlp(4, 6, 5, 3), torch.randn(9, 4).double(), torch.randint(3, (9,))
    weights = [m.weight for m in model[::2]]
    frobenius = math.prod(w.norm().item() for w in weights)
    spectral = math.prod(torch.linalg.matrix_norm(w, 2).item() for w in weights)
    ratios = sum((w.norm() / torch.linalg.matrix_norm(w, 2)).square().item() for w in weights)
    found = capacity.capacity(model, x, y, quantile=0.5)
    assert found.frobenius == pytest.approx(frobenius)
    assert found.spectral == pytest.approx(spectral)
    assert found.complexity == pytest.approx(spectral * ratios**0.5)
    m = margins.outputs(model(x), y)
    assert found.margin == pytest.approx(m.quantile(0.5).item())
    # the chain of inequalities that docs/math.md draws
    J = torch.stack([dense(model, a[None]) for a in x])
    assert (torch.linalg.matrix_norm(J, 2) <= found.spectral).all()
    assert found.spectral <= found.complexity
    assert found.spectral <= found.frobenius


def test_R_on_the_input_is_below_its_bound():
    """R ≤ ½σ² E[1 − Σp²] Π‖A‖₂²: docs/math.md, section 13; equality for one layer of rank 1."""
    model, x, y = mlp(4, 6, 3), torch.randn(9, 4).double(), torch.randint(3, (9,))
    with dither.inject(model, {"input": dither.Additive(1.0)}) as noise, torch.no_grad():
        R = dither.explicit(noise, x, y).R.item()
    spread = (1 - model(x).softmax(1).square().sum(1)).mean().item()
    assert 0 < R <= spread / 2 * capacity.capacity(model, x, y).spectral ** 2


def test_normalising_takes_the_outputs_scale_out():
    model, x = mlp(4, 6, 3), torch.randn(9, 4).double()
    y = model(x).argmax(1)
    before = capacity.capacity(model, x, y, quantile=0.3)
    with torch.no_grad():
        model[2].weight *= 7
        model[2].bias *= 7
    after = capacity.capacity(model, x, y, quantile=0.3)
    assert after.spectral == pytest.approx(7 * before.spectral)
    for name, value in before.normalised().items():
        assert after.normalised()[name] == pytest.approx(value)
    wrong = capacity.capacity(model, x, (y + 1) % 3)
    assert wrong.margin < 0
    assert all(math.isnan(value) for value in wrong.normalised().values())


def test_the_path_norm_is_the_sum_over_paths():
    model = mlp(2, 3, 4, 2)
    w = [m.weight.detach() for m in model[::2]]
    total = sum(
        (w[0][b, a] * w[1][c, b] * w[2][d, c]).square().item()
        for a, b, c, d in itertools.product(range(2), range(3), range(4), range(2))
    )
    assert capacity.path(model, torch.randn(1, 2).double()) == pytest.approx(total**0.5)


def test_the_path_norm_of_a_convolution_is_that_of_its_matrices():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ELU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(27, 4),
    ).double()  # fmt: skip
    x = torch.randn(1, 2, 5, 5).double()
    A, W = dense(model[0], x), model[4].weight
    expected = (W.square() @ A.square()).sum().sqrt().item()
    assert capacity.path(model, x) == pytest.approx(expected)


def test_looking_changes_nothing_and_noise_is_off():
    model, x, y = mlp(4, 6, 3).train(), torch.randn(9, 4).double(), torch.randint(3, (9,))
    before, clean = Snapshot.of(model), capacity.capacity(model, x, y)
    with dither.inject(model, dither.Additive(5.0), when="always", seed=0) as noise:
        assert capacity.capacity(model, x, y) == clean
        assert noise.step == 0
    before.assert_same(model)
    assert all(m.training for m in model.modules())
    assert hooks(model) == 0


def both(model, x):
    capacity.path(model, x)
    capacity.layers(model, x)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2)), r"'1' \(MaxPool2d\) is no Linear"),
        (nn.Conv2d(1, 2, 2, padding=1, padding_mode="circular"), "pads with 'circular'"),
        (nn.Flatten(), "no Linear and no Conv"),
    ],
)
def test_what_has_no_norm_is_named(model, match):
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(DitherError, match=match):
        both(model, x)


class Net(nn.Module):
    """Two layers, called as `forward` says; `act` where it is told to."""

    def __init__(self, forward, act=torch.relu):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), act
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


CHAIN = Net(lambda n, x: n.b(n.act(n.a(x))))
BROKEN = {
    "residual": lambda n, x: n.b(x + n.a(x)),
    "residual at the end": lambda n, x: x + n.b(n.a(x)),
    "branches": lambda n, x: n.b(x) + n.a(x),
    "scaled": lambda n, x: n.b(3 * n.a(x)),
    "input scaled": lambda n, x: n.b(n.a(2 * x)),
    "input squared": lambda n, x: n.b(n.a(x.square())),
    "pooled": lambda n, x: n.b(nn.functional.max_pool1d(n.a(x), 3, 1, 1)),
    "by hand": lambda n, x: nn.functional.linear(n.a(x), n.b.weight),
}


@pytest.mark.parametrize("how", BROKEN.values(), ids=BROKEN)
def test_what_is_no_chain_of_layers_has_no_capacity(how):
    for look in (
        lambda: capacity.path(Net(how), torch.randn(3, 4)),
        lambda: capacity.capacity(Net(how), torch.randn(3, 4), torch.arange(3)),
    ):
        with pytest.raises(DitherError, match="no chain of its layers: something adds"):
            look()


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid, lambda h: h.softmax(-1)])
def test_functions_that_bend_are_no_part_of_a_path(act):
    model = Net(CHAIN.how, act)
    model.a.weight.data *= 1e-3  # where tanh is nearly the identity
    with pytest.raises(DitherError, match=r"input of 'b' is not what 'a' gave.*must be modules"):
        capacity.path(model, torch.randn(3, 4))


def test_calls_by_keyword_reused_activations_and_reshapes_are_a_chain():
    relu = nn.ReLU(inplace=True)
    how = lambda n, x: n.b(input=relu(n.a(input=x)).view(-1, 2, 2).mT.reshape(-1, 4))  # noqa: E731
    model, x = Net(how).double(), torch.randn(3, 4).double()
    W = model.b.weight[:, [0, 2, 1, 3]] ** 2 @ model.a.weight**2
    assert capacity.path(model, x) == pytest.approx(W.sum().sqrt().item())
    assert list(capacity.layers(model, x)) == ["a", "b"]
    act = nn.SiLU(inplace=True)  # writes into what it is given
    chain = nn.Sequential(model.a, act, model.b, act)
    W = model.b.weight**2 @ model.a.weight**2
    assert capacity.path(chain, x) == pytest.approx(W.sum().sqrt().item())


@pytest.mark.parametrize("look", [capacity.layers, capacity.path])
def test_a_layer_called_twice_is_an_error(look):
    layer = nn.Linear(4, 4)
    with pytest.raises(DitherError, match="'0' is called twice"):
        look(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 4))


def test_parameters_of_no_layer_are_an_error():
    model = Net(lambda n, x: n.scale * n.a(x))
    model.scale = nn.Parameter(torch.tensor(10.0))
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    for net, name in ((model, "'' \\(Net\\)"), (normed, "'1' \\(LayerNorm\\)")):
        with pytest.raises(DitherError, match=f"{name} has parameters of its own"):
            capacity.path(net, torch.randn(3, 4))


def test_noise_kept_as_an_attribute_lists_and_parametrisations_are_beside_the_layers():
    model, x = Net(CHAIN.how), torch.randn(3, 4)
    before = capacity.capacity(model, x, torch.arange(3))
    model.noise = dither.inject(model, {"a": dither.Node(0.1)}, seed=0)
    model.rest = nn.ModuleList()
    assert capacity.capacity(model, x, torch.arange(3)) == before
    torch.nn.utils.parametrizations.weight_norm(model.a)
    after = capacity.capacity(model, x, torch.arange(3))
    assert after.path == pytest.approx(before.path, rel=1e-5)
    assert after.spectral == pytest.approx(before.spectral, rel=1e-5)


def test_a_path_norm_beyond_float32():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(15)])
    for layer in model:
        layer.weight.data.normal_()
    found = capacity.path(model, torch.ones(1, 512))
    assert found == pytest.approx(capacity.path(model.double(), torch.ones(1, 512).double()))
    assert 1e19 < found < math.inf


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.zeros(2, 4).long(), [1.0]])
def test_other_inputs_are_sentences(x):
    for look in (capacity.layers, capacity.path):
        with pytest.raises(DitherError, match=r"a tensor of floats .*, one example or more: got"):
            look(CHAIN, x)


def test_classes_that_are_none_are_sentences():
    with pytest.raises(DitherError, match="class numbers"):
        capacity.capacity(CHAIN, torch.randn(3, 4), torch.zeros(3).bool())


def test_a_quantile_is_a_share():
    with pytest.raises(DitherError, match=r"quantile = 10 is not in \[0, 1\]"):
        capacity.capacity(mlp(4, 3), torch.randn(3, 4).double(), torch.zeros(3).long(), quantile=10)
