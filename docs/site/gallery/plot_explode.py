"""
Will weight noise explode?
==========================

**Question: how much weight noise can this network take?** Noise on all weights at once multiplies
from layer to layer. In a wide network it can ruin training although its regulariser R is small.
``measures.explosion`` tells before training, and gives the largest safe σ.
"""

import itertools
from typing import Any

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither import measures

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
batch = x[:64], y[:64]


def network(width: int) -> nn.Module:
    """Four layers of one width."""
    torch.manual_seed(0)
    sizes = [64, width, width, width]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


# %%
# One network, one σ. The table compares two ways of spending the same σ. "full" puts σ/√M on each
# of the M weight tensors in every step. "layer-wise" puts σ on one of them. Both have the same R.
# The growth G says how much larger the effect of the noise is than its first order. Noise is
# called safe up to G = 1.

print(measures.explosion.explosion(network(256), *batch, sigma=0.1, draws=8))

# %%
# The safe σ of full noise falls with the width. Layer-wise noise has none here: up to the end of
# the search, which the arrows mark, its growth stays below 1.

widths = [16, 64, 256]
full, layerwise = [], []
for width in widths:
    report = measures.explosion.explosion(network(width), *batch, sigma=0.1, draws=8)
    full.append(report.full.safe.value)
    layerwise.append(report.layerwise.searched)
    print(f"width {width:3}: full noise is safe up to {report.full.safe}")
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
axes.loglog(widths, full, "o-", color="#c44e52", label='full noise, draw="all"')
axes.loglog(
    widths, layerwise, "^--", color="#4c72b0", label='layer-wise noise, draw="cycle": at least'
)
axes.set(xlabel="width", ylabel="largest safe σ", ylim=(0.05, 20))
axes.set_xticks(widths, map(str, widths))
axes.set_xticks([], minor=True)
axes.legend(frameon=False)
plt.show()

# %%
# Is the forecast right? Train the wide network with σ far above the safe one of full noise.


def accuracy(draw: Any, sigma: float, steps: int = 150) -> float:
    """Test accuracy after some steps with weight noise."""
    model = network(256)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with dither.inject(model, dither.Weight(sigma), draw=draw, seed=0):
        for step in range(steps):
            some = slice(100 * (step % 12), 100 * (step % 12) + 100)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
            optimiser.step()
    return (model.eval()(x[1200:]).argmax(1) == y[1200:]).double().mean().item()


safe = full[-1]
for share in (0.5, 4.0):
    sigma = share * safe
    found = f"full {accuracy('all', sigma):.3f}, layer-wise {accuracy('cycle', sigma):.3f}"
    print(f"σ {sigma:.3f}, {share} of the safe one: accuracy {found}")

# %%
# **What to take from it.** In a wide network, put weight noise on one tensor at a time:
# ``draw="cycle"``. If you need noise on all weights at once, stay below ``report.full.safe``.
