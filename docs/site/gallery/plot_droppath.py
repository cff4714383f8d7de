"""
Stochastic depth, and the blocks that a network can do without
==============================================================

**Question: what does DropPath penalise?** Stochastic depth leaves out a residual branch, at
random for each sample. Its R is σ²(g·h)²: the square of what the loss would change by if the
branch were scaled. So R tells, before anything is left out, on which blocks the network depends.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:600], order[600:]
BLOCKS, SEEDS = 8, 3


class Block(nn.Module):
    """h + branch(h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, h):
        return h + self.branch(h)


def network(seed: int) -> nn.Module:
    """Eight residual blocks."""
    torch.manual_seed(seed)
    blocks = nn.Sequential(*(Block(32) for _ in range(BLOCKS)))
    return nn.Sequential(nn.Linear(64, 32), blocks, nn.LayerNorm(32), nn.Linear(32, 10))


# %%
# The usual rule: the chance of being left out grows with the depth, here from 1/16 to 1/2. A
# pattern names the output of each branch. ``dropout(p)`` is the law: 0 with chance p, else
# 1/(1 − p).

depth = {
    f"1.{i}.branch:out": dither.DropPath(law=dither.dropout(0.5 * (i + 1) / BLOCKS))
    for i in range(BLOCKS)
}
print(dither.inject(network(0), depth))


def trained(seed: int, what: Any) -> Any:
    """With a noise, or without."""
    model = network(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    noise = dither.inject(model, what, seed=seed) if what else None
    for _ in range(20):
        for some in train[torch.randperm(len(train))].split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
            optimiser.step()
    if noise:
        noise.remove()
    return model.eval()


# %%
# Two numbers for each block. The first is R of ``DropPath`` on it, at σ = 1 and a law of variance
# 1, without leaving anything out. The second is what really happens to the test loss when the
# block is taken out of the network.

unit = {"1.*.branch:out": dither.DropPath(law=dither.two_point)}


@torch.no_grad()
def without(model: Any, block: int | None) -> tuple[float, float]:
    """(loss, accuracy) on the test part when a block is taken out."""
    kept = [b for i, b in enumerate(model[1]) if i != block]
    z = model[3](model[2](nn.Sequential(*kept)(model[0](x[test]))))
    right = (z.argmax(1) == y[test]).double().mean()
    return nn.functional.cross_entropy(z, y[test]).item(), right.item()


ways = {"plain": None, "DropPath": depth}
R, worse, accuracy, whole = {}, {}, {}, {}
for way, what in ways.items():
    models = [trained(seed, what) for seed in range(SEEDS)]
    whole[way] = [without(model, None) for model in models]
    R[way], worse[way], accuracy[way] = [], [], []
    for model, (loss, _) in zip(models, whole[way], strict=True):
        with dither.inject(model, unit) as noise, torch.no_grad():
            by_block = dither.explicit(noise, x[test], y[test]).by_site
        R[way].append([part.item() for part in by_block.values()])
        taken = [without(model, block) for block in range(BLOCKS)]
        worse[way].append([left - loss for left, _ in taken])
        accuracy[way].append([right for _, right in taken])
    clean = np.array(whole[way])[:, 1]
    less = np.array(accuracy[way])
    print(f"{way:9} accuracy {clean.mean():.3f} ± {clean.std(ddof=1):.3f}; one block out: "
          f"{less.mean():.3f} in the mean, {less.min(1).mean():.3f} for the worst")  # fmt: skip

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for way, colour in (("plain", "#c44e52"), ("DropPath", "#4c72b0")):
    left.plot(np.ravel(R[way]), np.ravel(worse[way]), "o", color=colour, alpha=0.7, label=way)
    right.plot(range(1, BLOCKS + 1), 100 * np.mean(accuracy[way], 0), "o-", color=colour, label=way)
left.set(xlabel="R of DropPath on the block", ylabel="loss without the block − loss")
left.set_xscale("log")
right.set(xlabel="block that is taken out", ylabel="test accuracy, %")
left.legend(frameon=False, title="trained")
right.legend(frameon=False, title="trained")
plt.show()

# %%
# Does R put the blocks into the right order? The rank correlation of the two numbers over the
# blocks of a network, for each seed.


def ranks(values: list[float]) -> np.ndarray:
    """0 for the smallest."""
    return np.argsort(np.argsort(values))


for way in ways:
    found = [np.corrcoef(ranks(a), ranks(b))[0, 1] for a, b in zip(R[way], worse[way], strict=True)]
    print(f"{way:9} rank correlation", [f"{r:.2f}" for r in found])

# %%
# **What to take from it.** In a plain network, R of ``DropPath`` finds the blocks that matter, and
# takes none of them out. A network that was trained with DropPath depends on no block: R is
# small, a missing block costs little, and hardly any order is left to find.
