"""
Choose σ, and keep it right
===========================

**Question: how much noise?** One σ means something different in each layer. ``dither.balance``
gives the σ of each place at which the noise costs a chosen share of the loss.
``schedule.Balanced`` keeps it so while the network changes.
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
order = torch.randperm(len(x))
train, test = order[:400], order[400:]
look = train[:100]  # the batch on which σ is chosen


def network() -> nn.Module:
    """Two hidden layers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def epoch(model: nn.Module, optimiser: torch.optim.Optimizer, noise=None) -> None:
    """One pass over the training part."""
    model.train()
    for some in train[torch.randperm(len(train))].split(50):
        if noise is not None:
            dither.rebalance(noise, x[some], y[some])  # only a Balanced σ is changed
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
# **Keep it right.** As the network fits its data, the loss falls, and the same σ becomes a larger
# and larger share of it. A σ that is ``Balanced`` is measured again from time to time: call
# ``rebalance`` before each forward. The callbacks for Lightning and Transformers do it themselves.


def run(sigma: object, epochs: int = 40, warm: int = 15) -> tuple[list[float], list[float], float]:
    """(R/loss, mean σ after each epoch, test accuracy): with a noise, or without for None."""
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(warm):
        epoch(model, optimiser)
    sigma = sigma if isinstance(sigma, dict) else dict.fromkeys(sigmas, sigma)
    shares, means = [], []
    what = {site: dither.Additive(0.0 if s is None else s) for site, s in sigma.items()}
    with dither.inject(model, what, seed=0) as noise:
        for _ in range(epochs):
            epoch(model, optimiser, noise)
            with torch.no_grad():
                loss, R, _ = dither.explicit(noise, x[look], y[look])
            shares.append((R / loss).item())
            means.append(sum(noise.noise_at(site).sigma for site in noise.sites.values()) / 3)
    right = model.eval()(x[test]).argmax(1) == y[test]
    return shares, means, right.double().mean().item()


kinds = {"none": None, "kept": sigmas, "balanced": dither.schedule.Balanced(0.1, every=8)}
runs = {name: run(sigma) for name, sigma in kinds.items()}
for name, (_, _, accuracy) in runs.items():
    print(f"{name:9} test accuracy {accuracy:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, colour in (("kept", "#c44e52"), ("balanced", "#4c72b0")):
    left.plot(runs[name][1], color=colour, label=f"σ {name}")
    right.plot(runs[name][0], color=colour, label=f"σ {name}")
left.set(xlabel="epoch after the warm-up", ylabel="mean σ", ylim=(0, None))
right.set(xlabel="epoch after the warm-up", ylabel="R / loss", yscale="log")
right.axhline(0.1, color="grey", lw=0.8)
left.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** Warm up without noise. Choose σ with ``balance`` and look at what it
# prints. For a long training, let ``Balanced`` follow the loss. One seed and one small data set do
# not say which is better for you: :ref:`sphx_glr_examples_plot_compare.py` shows how to find out.
