"""Models: initialisation against its variances, stacks against their replicas."""

import copy

import pytest
import torch
from torch import nn

from dither.errors import DitherError
from dither.lab.nets import specs as models
from dither.lab.nets.specs import CNN, MLP, Conv, DiagonalNet, LinearNet
from dither.lab.nets.stack import StackedLinear

ALARM = 1e-6  # how often a statistical test here may fail by chance
SEEDS = (3, 1, 4)
SPECS = {
    "mlp": MLP((5, 8, 7, 3)),
    "no bias": MLP((5, 8, 3), activation="elu", bias=False, init="glorot"),
    "torch": MLP((5, 8, 3), init="torch"),
    "linear": LinearNet((5, 6, 2)),
    "one layer": MLP((5, 2)),
    "diagonal": DiagonalNet(5, spread=0.1),
}
PAPERS = {
    "levi_fc": models.levi_fc("full"),
    "levi_cnn": models.levi_cnn(),
    "levi_vgg": models.levi_vgg(),
    "camuto_conv": models.camuto_conv(),
    "orvieto_lenet": models.orvieto_lenet(),
    "orvieto_wide": models.orvieto_wide(),
}


def two_sided(alarm: float) -> float:
    return -torch.special.ndtri(torch.tensor(alarm / 2, dtype=torch.float64)).item()


# ------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("spec", [*SPECS.values(), *PAPERS.values()], ids=[*SPECS, *PAPERS])
def test_parameters_are_a_function_of_the_seed_alone(spec):
    before = torch.get_rng_state()
    a = spec.build(1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    b, c = spec.build(1).state_dict(), spec.build(2).state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


# ------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize(
    ("init", "extra", "variance"),
    [
        ("lecun", 0, 1 / 300),
        ("lecun", 1, 1 / 301),
        ("glorot", 0, 2 / (300 + 200)),
        ("orvieto", 0, 1 / (300 * 200)),
        ("torch", 0, 1 / (3 * 300)),
    ],
)
def test_weights_have_the_papers_variance(init, extra, variance):
    layer = MLP((300, 200, 10), init=init, fan_extra=extra).build(0).get_submodule("fc0")
    w = layer.weight.detach().double().flatten()
    n = w.numel()
    kurtosis = 9 / 5 if init == "torch" else 3.0  # E w⁴ / (E w²)² of a uniform and a normal law
    z = torch.stack(
        [
            w.mean() * (n / variance) ** 0.5,
            (w.square().mean() / variance - 1) * (n / (kurtosis - 1)) ** 0.5,
        ]
    )
    assert z.abs().max() < two_sided(ALARM / 2)
    if init == "torch":
        assert w.abs().max() <= 300**-0.5
        assert layer.bias.abs().max() > 0
    else:
        assert not layer.bias.any()


def test_the_fan_in_of_a_kernel_counts_its_area():
    layer = (
        CNN((Conv(128, kernel=4, stride=2),), image=(32, 28, 28)).build(0).get_submodule("conv0")
    )
    w = layer.weight.detach().double().flatten()
    z = (w.square().mean() * (32 * 16) - 1) * (w.numel() / 2) ** 0.5
    assert abs(z) < two_sided(ALARM)


def test_a_node_can_be_counted_in_every_layer_or_in_the_first():
    plain, first, every = (MLP((3, 3, 3), fan_extra=e).build(0) for e in (0, 1, (1, 1)))
    ratio = (3 / 4) ** 0.5  # of std 1/√4 to 1/√3
    for net, expected in ((first, (ratio, 1.0)), (every, (ratio, ratio))):
        for name, factor in zip(("fc0", "fc1"), expected, strict=True):
            old, new = (n.get_submodule(name).weight for n in (plain, net))
            torch.testing.assert_close(new, factor * old)


# -------------------------------------------------------------------------------- architecture


def test_layers_are_named_in_order_and_nothing_works_in_place():
    net = MLP((4, 3, 3, 2), activation="relu").build(0)
    assert [name for name, _ in net.named_children()] == ["fc0", "act0", "fc1", "act1", "fc2"]
    for spec in PAPERS.values():
        modules = list(spec.build(0).modules())
        assert not any(getattr(module, "inplace", False) for module in modules)


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [
        ("levi_fc", (784,), 784 * 1024 + 1024 + 2 * (1024**2 + 1024) + 10 * 1024 + 10),
        (
            "levi_cnn",  # 28 → 27 → 13 → 12 → 6
            (1, 28, 28),
            4 * 32 + 32 + 64 + 32 * 64 * 4 + 64 + 128 + 64 * 36 * 2048 + 2048 + 20480 + 10,
        ),
        (
            "camuto_conv",  # 32 → 15 → 6, no bias
            (3, 32, 32),
            3 * 32 * 16 + 32 * 128 * 16 + 128 * 36 * 10,
        ),
        (
            "orvieto_lenet",  # eq. 52: 16 × 5 × 5 → 120
            (3, 32, 32),
            3 * 6 * 25 + 6 + 6 * 16 * 25 + 16 + 400 * 120 + 120 + 120 * 84 + 84 + 840 + 10,
        ),
    ],
)
def test_the_papers_networks_have_the_papers_sizes(name, image, parameters):
    net = PAPERS[name].build(0)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.randn(2, *image)).shape == (2, 10)


@pytest.mark.parametrize("name", ["levi_vgg", "orvieto_wide"])
def test_cifar_networks_take_cifar(name):
    assert PAPERS[name].build(0)(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_diagonal_net_is_its_formula():
    net = DiagonalNet(4, start=0.5).build(0)
    assert not net.beta.any()
    with torch.no_grad():
        net.w1.copy_(torch.tensor([1.0, 2.0, 0.0, 3.0]))
        net.w2.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    x = torch.randn(6, 4)
    torch.testing.assert_close(net(x)[:, 0], x @ torch.tensor([1.0, 3.0, -4.0, 0.0]))


# -------------------------------------------------------------------------------------- stacks


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_stack_is_its_replicas(spec):
    stack, nets = spec.build_stacked(SEEDS), [spec.build(seed) for seed in SEEDS]
    shared, own = torch.randn(9, 5), torch.randn(len(SEEDS), 9, 5)
    for s, net in enumerate(nets):
        for name, parameter in net.named_parameters():
            assert torch.equal(stack.get_parameter(name)[s], parameter)
        torch.testing.assert_close(stack(shared).unflatten(0, (3, 9))[s], net(shared))
        torch.testing.assert_close(stack(own).unflatten(0, (3, 9))[s], net(own[s]))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_unstacking_gives_the_plain_model_back(spec):
    stack, net = spec.build_stacked(SEEDS), spec.build(SEEDS[1])
    alone = stack.unstack(1)
    assert [name for name, _ in alone.named_modules()] == [name for name, _ in net.named_modules()]
    assert type(alone) is type(net)
    x = torch.randn(4, 5)
    assert torch.equal(alone(x), net(x))
    with torch.no_grad():
        next(alone.parameters()).zero_()  # copies: the stack keeps its own
    torch.testing.assert_close(stack(x).unflatten(0, (3, 4))[1], net(x))


def test_a_gradient_stays_in_its_replica():
    stack = SPECS["mlp"].build_stacked(SEEDS)
    z = stack(torch.randn(6, 5)).unflatten(0, (3, 6))
    z[1].square().sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_hidden_tensors_of_a_stack_have_a_dimension_per_replica():
    stack, shapes = SPECS["mlp"].build_stacked(SEEDS), {}
    for name, layer in stack.named_children():
        layer.register_forward_hook(lambda m, i, o, name=name: shapes.update({name: i[0].shape}))
    stack(torch.randn(6, 5))
    assert shapes["fc0"] == (3, 6, 5)
    assert shapes["act0"] == shapes["fc1"] == (3, 6, 8)


def test_a_stacked_linear_reads_like_a_linear():
    layer = MLP((5, 8, 3)).build_stacked(SEEDS).get_submodule("fc0")
    assert isinstance(layer, StackedLinear)
    assert (layer.in_features, layer.out_features) == (5, 8)
    assert layer.weight.shape == (3, 8, 5)
    assert layer.bias is not None
    assert layer.bias.shape == (3, 8)
    assert "3 × (5 → 8), bias=True" in repr(layer)
    assert isinstance(layer.unstack(0), nn.Linear)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((784,)), r"widths = \(784,\); give \(inputs, …, outputs\)"),
        (lambda: MLP((4, 0, 2)), "each 1 or more"),
        (lambda: MLP(activation="swish"), "activation = 'swish' is unknown; there are relu"),
        (lambda: MLP(init="xavier"), "init = 'xavier' is unknown; there are lecun"),  # type: ignore
        (lambda: MLP((4, 3, 2), fan_extra=(1,)), "fan_extra has 1 entries for 2 layers"),
        (lambda: CNN((Conv(4, kernel=9, pool=8),) * 2), "shrink to"),
        (lambda: MLP((5, 2)).build_stacked(SEEDS)(torch.randn(4, 6)), r"takes x \[B, 5\] or"),
        (lambda: MLP((5, 2)).build_stacked(SEEDS)(torch.randn(2, 4, 5)), r"not \[2, 4, 5\]"),
    ],
)
def test_bad_specs_say_what_is_wrong(build, message):
    with pytest.raises(DitherError, match=message):
        build()


def test_channels_are_last_and_change_no_number():
    """But for kernels of one pixel, whose backward torch gets wrong on some CPUs."""
    last = torch.channels_last
    spec = CNN((Conv(8, kernel=3, norm=True, pool=2), Conv(6, kernel=2)), dense=(5,))
    net, x = spec.build(3), torch.randn(4, 1, 28, 28)
    assert net.conv1.weight.is_contiguous(memory_format=last)
    assert not net.conv1.weight.is_contiguous()
    assert net.conv1(net.pool0(net.norm0(net.conv0(x)))).is_contiguous(memory_format=last)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    gradients = []
    for model in (net, plain):
        model.double()(x.double()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    pointwise = CNN((Conv(8, kernel=3), Conv(6, kernel=1, stride=2)), dense=()).build(3)
    assert pointwise.conv1.weight.is_contiguous()
