"""Nets with a residual and with a transformer block, to put noise nodes into."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dither.lab import generator, initialise, linear


@dataclass(frozen=True)
class Residual:
    """h ← h + W₂ relu(W₁ h), `blocks` times: 784 → embed → blocks.i.up, blocks.i.down → head."""

    width: int = 64
    blocks: int = 2

    def build(self, seed: int) -> nn.Sequential:
        w = self.width
        net = nn.Sequential(
            OrderedDict(
                embed=linear(784, w, True),
                blocks=nn.Sequential(*(Block(w) for _ in range(self.blocks))),
                head=linear(w, 10, True),
            )
        )
        _initialise(net, seed)
        return net


class Block(nn.Module):
    """h + W₂ relu(W₁ h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = linear(width, width, True), linear(width, width, True)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(torch.relu(self.up(h)))


@dataclass(frozen=True)
class Rows:
    """A transformer block that reads an image's 28 rows as tokens; mean over positions → head."""

    width: int = 32
    heads: int = 4

    def build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():  # MultiheadAttention initialises itself
            torch.manual_seed(seed)
            net = Reader(self.width, self.heads)
        _initialise(net, seed)
        return net


class Reader(nn.Module):
    """embed + place → h + attention(norm h) → h + MLP(norm h) → mean → head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed = skip_init(nn.Linear, 28, width)
        self.place = nn.Parameter(torch.zeros(28, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = linear(width, 2 * width, True), linear(2 * width, width, True)
        self.head = linear(width, 10, True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 28, 28)) + self.place  # [B, T, width]
        a = self.norm1(h)
        h = h + self.attention(a, a, a, need_weights=False)[0]
        h = h + self.down(torch.relu(self.up(self.norm2(h))))
        return self.head(h.mean(1))


def _initialise(net: nn.Module, seed: int) -> None:
    """W ~ N(0, 1/fan_in), b = 0 in every Linear; places ~ N(0, .02²)."""
    rng = generator(seed, "parameters")
    for module in net.modules():
        if isinstance(module, nn.Linear):
            initialise(module, "lecun", rng)
    if isinstance(net, Reader):
        with torch.no_grad():
            net.place.normal_(0, 0.02, generator=rng)
