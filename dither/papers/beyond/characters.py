"""A small transformer that reads characters, and the text it reads: Python's own documentation."""

import math
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dither.lab import generator, initialise, linear


@dataclass(frozen=True)
class Text:
    """Characters as class numbers, in the alphabet of the training topics. Other characters are
    blanks.
    """

    train: Tensor
    test: Tensor
    alphabet: str

    @classmethod
    def of(cls, train: int | None, test: int | None) -> "Text":
        """The first `train` characters of every other topic, `test` of the rest."""
        names = sorted(topics)
        halves = ["\n".join(topics[name] for name in names[i::2]) for i in (0, 1)]
        ours, rest = halves[0][:train], halves[1][:test]
        alphabet = "".join(sorted({*ours, " "}))
        index = {c: i for i, c in enumerate(alphabet)}
        read = [torch.tensor([index.get(c, index[" "]) for c in half]) for half in (ours, rest)]
        return cls(read[0], read[1], alphabet)


def pieces(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Sequences [B, length] from `starts`, and the next character of each of their characters."""
    at = starts[:, None] + torch.arange(length)
    return text[at], text[at + 1]


class Transformer(nn.Module):
    """embed + place → blocks × (h + attention(norm h), h + MLP(norm h)) → norm → characters.

    Each position sees itself and what came before (Vaswani et al. 2017; norms first).
    """

    def __init__(self, seed: int, symbols: int, length: int, width: int, blocks: int) -> None:
        super().__init__()
        rng = generator(seed, "parameters")
        self.embed = nn.Parameter(torch.randn(symbols, width, generator=rng))
        self.place = nn.Parameter(torch.randn(length, width, generator=rng))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), linear(width, symbols, True)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise(module, "torch", rng)

    def forward(self, x: Tensor) -> Tensor:
        h = F.embedding(x, self.embed) + self.place[: x.shape[1]]  # [B, T, width]
        return self.head(self.norm(self.blocks(h)))


class Block(nn.Module):
    """Causal attention of heads of 16, then an MLP four times as wide (GELU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 16)
        self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (linear(width, width, True) for _ in range(4))
        self.up, self.down = linear(width, 4 * width, True), linear(4 * width, width, True)

    def forward(self, h: Tensor) -> Tensor:
        a = self.norm0(h)
        q, k, v = (
            layer(a).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # [B, heads, T, d]
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=h.device).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        h = h + self.mix((weights @ v).transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm1(h))))
