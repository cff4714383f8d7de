"""
Choose σ
========

**Question: how much noise?** One σ means something different in each layer. ``dither.balance``
gives the σ of each place at which the noise costs a chosen share of the loss.
"""

import textwrap
import warnings

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
train = torch.randperm(len(x))[:400]
look = train[:100]  # the batch on which σ is chosen


def network() -> nn.Module:
    """Two hidden layers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def epoch(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """One pass over the training part."""
    model.train()
    for some in train[torch.randperm(len(train))].split(50):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[some]), y[some]).backward()
        optimiser.step()


# %%
# **Do not choose σ on an untrained network.** Its loss hardly depends on its activations. So a
# tenth of the loss takes enormous noise, which training does not survive. ``balance`` says so.

model = network()
noise = dither.inject(model, dither.Additive(1.0))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    print(dither.balance(noise, x[look], y[look], ratio=0.1))
print(textwrap.fill(str(told[0].message), 90))

# %%
# **Choose it after some epochs.** R proposes the σ, in equal parts. The mean change of the loss,
# E[Δℓ], is then measured. If the two differ by much, the measured one decides. The first line
# ends with which of them it was.

optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
with noise.off():
    for _ in range(15):
        epoch(model, optimiser)
sigmas = dither.balance(noise, x[look], y[look], ratio=0.1)
print(sigmas)
noise.remove()

# %%
# The result is a mapping from places to σ. Its keys are patterns for ``inject``.

with dither.inject(model, {site: dither.Additive(s) for site, s in sigmas.items()}) as noise:
    print(noise)

# %%
# **What one σ for all would do.** R of each place at σ = 0.3 everywhere, and at the σ that were
# chosen. One σ spends nearly everything at one place.

parts = {}
for name, what in (
    ("one σ", dither.Additive(0.3)),
    ("balanced", {site: dither.Additive(sigma) for site, sigma in sigmas.items()}),
):
    with dither.inject(model, what) as noise, torch.no_grad():
        loss, R, by_site = dither.explicit(noise, x[look], y[look])
    parts[name] = [(part / loss).item() for part in by_site.values()]
    share = max(parts[name]) / sum(parts[name])
    print(f"{name:9} R is {(R / loss).item():.3f} of the loss, {share:.0%} of it at one place")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for ax, values, label in (
    (left, [0.3] * len(sigmas), "σ"),
    (right, parts["one σ"], "R of the place / loss"),
):
    rows = torch.arange(len(sigmas))
    ax.barh(rows, values, 0.4, color="#c44e52", label="one σ")
    chosen = list(sigmas.values()) if ax is left else parts["balanced"]
    ax.barh(rows + 0.4, chosen, 0.4, color="#4c72b0", label="balanced")
    ax.set(yticks=rows + 0.2, yticklabels=list(sigmas), xlabel=label)
    ax.invert_yaxis()
right.legend(frameon=False, loc="lower right")
plt.show()

# %%
# **What to take from it.** Warm up without noise. Choose σ with ``balance``, and look at what it
# prints. For a long training, let σ follow the loss: :ref:`sphx_glr_examples_plot_keep_balance.py`.
# One data set does not say which noise is better for you:
# :ref:`sphx_glr_examples_plot_compare.py` shows how to find out.
