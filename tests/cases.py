"""The table the laws are tested over: models × losses × sites × noises. A new noise is one line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from oracles import half
from torch import Tensor, nn

import dither
from dither.noise import (
    Additive,
    DropConnect,
    DropPath,
    Here,
    Law,
    Locked,
    Multiplicative,
    Neftune,
    Node,
    Relative,
    Sigma,
    Weight,
    dropout,
    gather,
    gaussian,
    spread,
    two_gaussian,
    two_point,
    uniform,
)

# ----------------------------------------------------------------------------------------- models


class MLP(nn.Sequential):
    def __init__(self, outputs):
        super().__init__(
            nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, outputs)
        )


class CNN(nn.Sequential):
    """With in-place activations, and more channels than a site's noise should mix up."""

    def __init__(self, outputs):
        super().__init__(
            nn.Conv2d(1, 3, 3, padding=1, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 2, 2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8, outputs),
        )


class ResNet(nn.Module):
    """A basic block with BatchNorm, everything in place, and a head."""

    def __init__(self, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.down = nn.Conv2d(1, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2, outputs)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        return self.fc(self.relu(out).mean((2, 3)))


class Encoder(nn.Module):
    """nn.TransformerEncoderLayer and a head on the mean over time; x is [B, T, 4] either way."""

    def __init__(self, outputs, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(
            4, 2, 6, dropout=0.1, activation="gelu", batch_first=batch_first
        )
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        h = self.layer(x if self.batch_first else x.transpose(0, 1))
        return self.head(h.mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    """One cell called in a loop."""

    def __init__(self, outputs):
        super().__init__()
        self.cell, self.head = nn.RNNCell(3, 4), nn.Linear(4, outputs)

    def forward(self, x):  # [B, T, 3]
        h = x.new_zeros(x.shape[0], 4)
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return self.head(h)


@dataclass(frozen=True)
class Case:
    """A model, the shape of one sample, and patterns for noises that act on activations."""

    name: str
    make: object
    shape: tuple[int, ...]
    sites: tuple[str, ...] = ()  # none: the default ones
    node_sites: tuple[str, ...] = ()  # where they differ for one ε per sample
    batch_dim: int = 0

    def build(self, loss):
        """(model, x, y) for a loss; the same each time."""
        torch.manual_seed(1)
        model = half(self.make(1 if loss == "logistic" else 3))
        x = torch.randn(BATCH, *self.shape, dtype=torch.float64)
        return model, x, TARGETS[loss]()

    def inject(self, model, noise, x, **kwargs):
        """The noise at this case's sites."""
        if noise.side == "parameter":
            return dither.inject(model, noise, seed=0, **kwargs)
        shared = getattr(noise, "per_sample", False)  # a draw, by the elements of a sample
        sites = (self.node_sites if shared else ()) or self.sites
        what = dict.fromkeys(sites, noise) if sites else noise
        batch_dim = self.batch_dim if shared else 0
        return dither.inject(model, what, seed=0, example=x, batch_dim=batch_dim, **kwargs)


BATCH = 3
TARGETS = {
    "cross_entropy": lambda: torch.tensor([0, 2, 1]),
    "half_square": lambda: torch.randn(BATCH, 3, dtype=torch.float64),
    "logistic": lambda: torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64),
}
ENCODER = ("layer:in", "layer.linear1:in", "layer.linear2:out", "layer.self_attn:out", "head:in")
CASES = (
    Case("mlp", MLP, (4,)),
    Case("cnn", CNN, (1, 5, 5), sites=("input", "0:out", "2:in", "2:out", "5:in")),
    Case("resnet", ResNet, (1, 3, 3), sites=("input", "conv2:in", "bn1:out", "bn2:out", "fc:in")),
    Case("encoder", Encoder, (3, 4), sites=ENCODER),
    Case(
        "encoder seq-first",
        lambda c: Encoder(c, False),
        (3, 4),
        sites=ENCODER,
        node_sites=("layer:in", "layer.linear1:out", "layer.norm1:out"),
        batch_dim=1,
    ),
    Case("rnn", Recurrent, (2, 3), sites=("input", "cell:in", "cell:out", "head:in")),
)

# ----------------------------------------------------------------------------------------- noises


@dataclass(frozen=True)
class Common:
    """A user's noise: δ = σ ε 1, one ε per sample for all its elements; Var⟨g, δ⟩ = σ²(Σ g)²."""

    sigma: Sigma
    law: Law = gaussian
    side = "in"
    per_sample = True

    def displace(self, site: Here, rng):
        eps = rng(self.law, site.h.new_empty(site.h.shape[site.batch_dim]))
        return self.sigma * spread(eps, site.h, site)

    def variance(self, g: Tensor, site: Here):
        return self.sigma**2 * self.law.variance * gather(g, 0, site).square()


NOISES = {
    "additive": (Additive(0.3), {}),
    "additive uniform": (Additive(0.3, law=uniform), {}),
    "multiplicative": (Multiplicative(0.4), {}),
    "dropout": (Multiplicative(law=dropout(0.3)), {}),
    "node": (Node(0.7), {}),
    "two nodes, two Gaussians": (Node(0.7, law=two_gaussian, nodes=2), {}),
    "weight": (Weight(0.2), {}),
    "weight all": (Weight(0.2, law=two_point), {"draw": "all"}),
    "weight cycle by layer": (Weight(0.2), {"draw": "cycle", "by": "layer"}),
    "drop path": (DropPath(law=dropout(0.3)), {}),
    "locked": (Locked(0.4, law=gaussian), {}),
    "neftune": (Neftune(2.0), {}),
    "drop connect": (DropConnect(law=dropout(0.3)), {}),
    "relative": (Relative(0.1), {}),
    "relative by row": (Relative(0.1, law=two_point, per="row"), {}),
    "user's": (Common(0.3), {}),
}
