"""Small models that no single product covers, and the dense trace of their Hessians."""

import torch
import torch.nn.functional as F
from torch import nn

from dither.plain import twice

Z = 4.9  # two-sided chance of a false alarm per number: 1e-6


class Attention(nn.Module):
    """A transformer block, a bare parameter and a head: what no single product covers."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
        self.shift = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(self.block(x + self.shift).mean(1 if self.batch_first else 0))


class Of(nn.Module):
    """A function of x and three parameters: p [5], W [5, 5] and V [5, 5]."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.p = nn.Parameter(1.5 + torch.rand(5))
        self.W, self.V = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return self.f(x, self.p, self.W, self.V)


def own_weight(h, V):
    return F.linear(h, h @ V)


def kernel(x, W, V):
    """A convolution of x with a kernel computed from it: quadratic in W."""
    h = x @ W
    return F.conv1d(h[None], (h @ V)[:, None, :3], groups=5)[0]


OF = {
    "x / p": (lambda x, p, W, V: x / p, False),
    "x / (x W)": (lambda x, p, W, V: x / (5 + x @ W), False),
    "(x W) / the input's norm": (lambda x, p, W, V: (x @ W) / x.norm(dim=-1, keepdim=True), True),
    "its own weight": (lambda x, p, W, V: own_weight(x @ W, V), False),
    "two weights": (lambda x, p, W, V: F.linear(x @ W, x @ V), True),
    "a low-rank weight": (lambda x, p, W, V: F.linear(x, W @ V), True),
    "it twice in a row": (lambda x, p, W, V: (x @ W).relu() @ W.T, False),
    "it twice side by side": (lambda x, p, W, V: x @ W + x.relu() @ W, True),
    "a kernel computed": (lambda x, p, W, V: kernel(x, W, V), False),
    "a sine of the input": (lambda x, p, W, V: x.sin() @ W, True),
    "a product hidden in a list": (lambda x, p, W, V: torch.cat([x @ W, p * x]) * p, False),
    "normed by the batch": (
        lambda x, p, W, V: F.batch_norm(x @ W, None, None, training=True),
        False,
    ),
}


def relu_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def smooth_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def mlp(activation):
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 3))


class Norms(nn.Module):
    """Scales and shifts over channels, over features and over two dimensions at once."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.gn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.both, self.head = nn.LayerNorm((3, 3)), nn.Linear(36, 3)
        self.last = nn.LayerNorm(3)

    def forward(self, x):
        h = self.gn(self.bn(self.conv(x)).tanh()).tanh()
        return self.last(self.head(self.both(h).tanh().flatten(1))).tanh()


CASES = {
    "norms": (Norms, (2, 5, 5), False),
    "relu mlp": (lambda: mlp(nn.ReLU), (5,), True),
    "relu cnn": (relu_cnn, (2, 4, 4), True),
    "tanh mlp": (lambda: mlp(nn.Tanh), (5,), False),
    "smooth cnn": (smooth_cnn, (2, 5, 5), False),
    "attention": (lambda: Attention(True), (6, 4), False),
    "attention, time first": (lambda: Attention(False), (6, 4), False),
}


def case(name, batch=6):
    build, shape, linear = CASES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    return model, torch.randn(batch, *shape).double(), torch.randint(3, (batch,)), linear


def dense(model, x, y, loss_of=F.cross_entropy):
    """{parameter: tr ∇²_W L}, one second derivative at a time."""
    found = {}
    for name, p in model.named_parameters():
        with twice(True):
            loss = loss_of(model(x), y)
        (slope,) = torch.autograd.grad(loss, p, create_graph=True)
        entries = slope.flatten()
        found[name] = 0.0
        for i in range(len(entries) if slope.requires_grad else 0):
            (row,) = torch.autograd.grad(entries[i], p, retain_graph=True)
            found[name] += row.flatten()[i].item()
    return found
