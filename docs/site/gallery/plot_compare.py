"""
Compare noises on your own data
===============================

**Question: which noise helps on my problem?** ``dither.compare`` trains the same network with
several noises. For a seed, every method gets the same first weights and the same order of the
data. So differences are taken seed by seed, and their spread is that of the difference.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.lab.compare import Method
from dither.lab.training.optimiser import SGD

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:400], order[400:]
data = x[train].float() / 16, y[train], x[test].float() / 16, y[test]


def make_model() -> nn.Module:
    """The network to train. torch's generator is seeded for it."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


# %%
# A method is ``None``, a noise, a mapping from patterns to noises, or a ``Method`` that says
# more. The first one is what the others are compared with.

methods = {
    "none": None,
    "dropout": {"2:in": dither.Multiplicative(law=dither.dropout(0.5))},
    "weights": Method(dither.Weight(0.1), draw="cycle"),
}
result = dither.compare(
    make_model, data, methods, seeds=3, epochs=100, batch=50, optimiser=SGD(0.2)
)
print(result)

# %%
# The rows "− none" are what to look at: the difference from the first method, seed by seed. As a
# picture, each point is a seed.

figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for ax, quantity, scale in zip(axes, ("accuracy/test", "loss/test"), (100, 1), strict=True):
    for row, method in enumerate(list(methods)[1:]):
        gaps = scale * result.difference(method, quantity)
        ax.plot(gaps, [row] * len(gaps), "o", color="#4c72b0", alpha=0.6)
        ax.plot(gaps.mean(), row, "|", ms=22, mew=2, color="#c44e52")
    ax.axvline(0, color="grey", lw=0.8)
    ax.set(yticks=range(2), yticklabels=list(methods)[1:], ylim=(-0.6, 1.6))
axes[0].set(xlabel="test accuracy − that without noise, points")
axes[1].set(xlabel="test loss − that without noise", yticklabels=[])
plt.show()

# %%
# **What to take from it.** If the points of a row lie on both sides of 0, the data do not tell.
# Then more seeds or more test data are needed, not another look at the mean.
#
# The same on the command line: ``dither compare FILE.py``, where the file defines ``make_model``,
# ``data`` and ``methods``.
