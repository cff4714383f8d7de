"""Derivatives of torch's functions, up to the third, are those of differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradgradcheck

import dither
from dither import Additive, Node
from dither.measures import local
from dither.plain import thrice, twice

TARGET = torch.tensor([0.2, 0.3, 0.5], dtype=torch.double)
MEAN, VARIANCE = torch.zeros(2, dtype=torch.double), torch.ones(2, dtype=torch.double)
LSTM, GRU = nn.LSTM(2, 2).double(), nn.GRU(2, 2).double()
FUNCTIONS = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (2, 2), w, b), (2, 2, 2), (2, 2), (2, 2)),
    "torch.layer_norm": (lambda x: torch.layer_norm(x, (4,)), (2, 4)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (2, 2, 3), (2,), (2,)),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (4, 2), (2,), (2,)),
    "torch.batch_norm": (
        lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False), (4, 2),
    ),
    "torch.instance_norm": (
        lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False), (2, 2, 3),
    ),
    "batch_norm, eval": (lambda x, w: F.batch_norm(x, MEAN, VARIANCE, w), (4, 2), (2,)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (2, 4), (4,), (4,)),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4,), w), (2, 4), (4,)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (2, 4, 2)),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), (2, 3), (2, 1)),
    "normalize": (F.normalize, (2, 3)),
    "cosine_similarity": (F.cosine_similarity, (2, 3), (2, 3)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (2, 3)),
    "torch.logcumsumexp": (lambda x: torch.logcumsumexp(x, 0), (3, 2)),
    "logsumexp": (lambda x: x.logsumexp(1), (2, 3)),
    "softmax": (lambda x: F.softmax(x, -1), (2, 3)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), (2, 3)),
    "attention": (F.scaled_dot_product_attention, (1, 1, 2, 3), (1, 1, 2, 3), (1, 1, 2, 3)),
    "conv2d": (F.conv2d, (1, 2, 3, 3), (2, 2, 2, 2)),
    "conv_transpose2d": (F.conv_transpose2d, (1, 2, 2, 2), (2, 1, 2, 2)),
    "bilinear": (F.bilinear, (2, 2), (2, 2), (2, 2, 2)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (1, 1, 4, 4)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (1, 1, 3, 3)),
    "grid_sample": (
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (1, 1, 3, 3), (1, 2, 2, 2),
    ),
    "std": (lambda x: x.std(1), (2, 3)),
    "norm": (lambda x: x.norm(dim=1), (2, 3)),
    "cumprod": (lambda x: x.cumprod(1), (2, 3)),
    "det": (torch.linalg.det, (2, 3, 3)),
    "inv": (torch.linalg.inv, (2, 3, 3)),
    "lstm": (lambda x: LSTM(x)[0], (2, 1, 2)),
    "gru": (lambda x: GRU(x)[0], (2, 1, 2)),
    "prelu": (F.prelu, (2, 3), (1,)),
    "glu": (F.glu, (2, 4)),
    **{name: (getattr(F, name), (2, 3)) for name in (
        "gelu", "silu", "softplus", "elu", "mish", "tanh", "sigmoid", "selu", "celu", "logsigmoid",
        "softsign", "hardswish", "tanhshrink",
    )},
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), (2, 3)),
    "kl_div": (lambda x: F.kl_div(x.log_softmax(0), TARGET, reduction="none"), (3,)),
    "bce": (lambda x: F.binary_cross_entropy_with_logits(x, TARGET, reduction="none"), (3,)),
    "huber": (lambda x: F.huber_loss(x, TARGET, reduction="none"), (3,)),
    "soft_margin": (lambda x: F.soft_margin_loss(x, TARGET.sign(), reduction="none"), (3,)),
    "poisson": (lambda x: F.poisson_nll_loss(x, TARGET, reduction="none"), (3,)),
}  # fmt: skip


def drawn(*shapes):
    rng = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(s, generator=rng, dtype=torch.double, requires_grad=True) for s in shapes
    )


def slopes(function):
    """The gradients of a curved sum of a function's values."""

    def f(*xs):
        z = function(*xs)
        weights = torch.linspace(0.3, 1.7, z.numel(), dtype=z.dtype).view_as(z)
        return torch.autograd.grad((z.sin() * weights).sum(), xs, create_graph=True)

    return f


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_differences(name):
    function, *shapes = FUNCTIONS[name]
    with twice(True):
        assert gradgradcheck(function, drawn(*shapes))
    with thrice(True):
        assert gradgradcheck(slopes(function), drawn(*shapes))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_torchs(name):
    function, *shapes = FUNCTIONS[name]
    xs = drawn(*shapes)
    with thrice(True):
        plain = function(*xs)
    torch.testing.assert_close(plain, function(*xs))


@pytest.mark.parametrize("how", [{"training": True}, {"training": False}])
def test_batch_norm_writes_its_statistics_once(how):
    x = torch.randn(5, 2, 3)
    found = []
    for on in (False, True):
        mean, variance = torch.zeros(2), torch.ones(2)
        with thrice(on):
            z = F.batch_norm(x, mean, variance, momentum=0.3, **how)
        found.append((z, mean, variance))
    for plain, torchs in zip(*found, strict=True):
        torch.testing.assert_close(plain, torchs)


def test_instance_norm_writes_its_statistics_once():
    x = torch.randn(5, 2, 3)
    found = []
    for on in (False, True):
        norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        with thrice(on):
            values = [norm(x), norm.eval()(x)]
        found.append((*values, norm.running_mean, norm.running_var))
    for plain, torchs in zip(*found, strict=True):
        torch.testing.assert_close(plain, torchs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay(dtype):
    x, w = torch.randn(4, 6).to(dtype), torch.randn(6).to(dtype)
    with thrice(True):
        plain = F.layer_norm(x, (6,), w)
    assert plain.dtype == dtype
    torch.testing.assert_close(plain, F.layer_norm(x, (6,), w))


def test_logcumsumexp_of_what_is_masked_and_of_large_numbers():
    x = torch.tensor([[-torch.inf, -torch.inf, 1.0], [1000.0, 1001.0, -1e3], [0.0, 500.0, 1e3]])
    with thrice(True):
        plain = x.logcumsumexp(1)
    torch.testing.assert_close(plain, x.logcumsumexp(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 2, 4)).sum(1))


NETS = {
    "layer norm": lambda: nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Linear(8, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten(),
        nn.Tanh(), nn.Linear(6, 3),
    ),
    "encoder": Encoder,
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_of_the_whole_second_order_is_that_of_differences(name):
    torch.manual_seed(0)
    net, x, y = NETS[name]().double().eval(), torch.randn(3, 8).double(), torch.tensor([0, 1, 2])
    with dither.inject(net, Additive(0.5), seed=0) as noise:
        full = lambda: dither.explicit(noise, x, y, curvature="full").R  # noqa: E731
        w = next(p for p in net.parameters() if p.dim() > 1)
        (g,) = torch.autograd.grad(full(), w)
        unit, h = torch.randn_like(w), 1e-5
        with torch.no_grad():
            ends = [(w.add_(step * unit), full())[1] for step in (h, -2 * h)]
            w.add_(h * unit)
        assert (g * unit).sum() == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-5)


def test_the_terms_of_a_node_through_a_layer_norm_are_those_of_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double().eval()
    x, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0])
    with dither.inject(net, {"0:out": Node(0.7)}, seed=0) as noise:
        _, second, _, fourth = local.terms(noise, x, y)
        (w,) = noise.nodes.values()
    h = 0.02
    with torch.no_grad():
        losses = torch.stack([
            F.cross_entropy(net[1:](net[0](x) + k * h * w.reshape(1, -1)), y)
            for k in (-3, -2, -1, 0, 1, 2, 3)
        ])  # fmt: skip
    d2 = torch.tensor([2, -27, 270, -490, 270, -27, 2]).double() / (180 * h**2)
    d4 = torch.tensor([-1, 12, -39, 56, -39, 12, -1]).double() / (6 * h**4)
    assert second.mean == pytest.approx(0.7**2 / 2 * float(d2 @ losses), rel=1e-4)
    assert fourth.mean == pytest.approx(0.7**4 * 3 / 24 * float(d4 @ losses), rel=1e-2)
