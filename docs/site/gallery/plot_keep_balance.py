"""
The balance over a training
===========================

**Question: is σ still right at the end of training?** A network changes while it learns. Its
loss falls, its activations grow, and a σ that was right becomes too large or too small.
``schedule.Balanced`` keeps R at a chosen share of the loss. This script looks at that share
during a whole training, with tools that ``Balanced`` does not use.
"""

import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float().view(-1, 1, 8, 8) / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1000:]
look = train[:200]
WARM, EPOCHS, SITES = 6, 14, ("0:in", "2:in", "6:in", "8:in")


def network() -> nn.Sequential:
    """Two convolutions and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


# %%
# The first epochs are without noise. Then σ is either chosen once, by ``balance``, or it is
# ``Balanced``: the loop calls ``rebalance`` before each forward, and σ is measured anew every 20
# steps, on the batch of that step. The callbacks for Lightning and Transformers do this
# themselves. The learning rate falls to 0 along a cosine.
#
# After each epoch we look at a batch of training examples: at exact R, and at the measured mean
# change of the loss. ``Balanced`` uses neither. It takes R from two random columns.


def run(kept: bool) -> dict[str, list]:
    """Per epoch: R / loss, mean change / loss, and the σ of each site."""
    model, seen = network(), {"R": [], "mean change": [], "σ": [], "loss": []}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, WARM + EPOCHS)
    noise, spent, began = None, 0.0, time.process_time()
    for epoch in range(WARM + EPOCHS):
        if epoch == WARM:
            sigmas = dict.fromkeys(SITES, dither.schedule.Balanced(0.1, every=20))
            if kept:
                with dither.inject(model, dither.Additive(1.0)) as unit:
                    sigmas = dither.balance(unit, x[look], y[look], ratio=0.1)
            what = {site: dither.Additive(sigma) for site, sigma in sigmas.items()}
            noise = dither.inject(model, what, seed=0)
        for some in train[torch.randperm(len(train))].split(50):
            if noise is not None:
                begin = time.process_time()
                dither.rebalance(noise, x[some], y[some])
                spent += time.process_time() - begin
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
            optimiser.step()
        rate.step()
        if noise is not None:
            whole = time.process_time() - began
            with torch.no_grad():
                loss, R, _ = dither.explicit(noise, x[look], y[look])
                change = dither.expected(noise, x[look], y[look], draws=50, antithetic=True)
            seen["loss"].append(loss.item())
            seen["R"].append((R / loss).item())
            seen["mean change"].append(change.value / loss.item())
            seen["σ"].append([noise.noise_at(site).sigma for site in noise.sites.values()])
            began += time.process_time() - began - whole  # looking is not training
    right = model.eval()(x[test]).argmax(1) == y[test]
    share = spent / (time.process_time() - began)
    name, (first, *_, last) = "kept" if kept else "balanced", seen["loss"]
    print(f"{name:8}  test accuracy {right.double().mean():.3f}, ", end="")
    print(f"loss {first:.4f} → {last:.4f}, rebalance {share:.1%} of the time")
    return seen


found = {"kept": run(True), "balanced": run(False)}
for name, seen in found.items():
    low, high = min(seen["R"]), max(seen["R"])
    print(f"{name:8}  R / loss between {low:.3f} and {high:.3f}; asked for 0.1")

# %%
# On the left, the share of R. On the right, the σ that keep it.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
epochs = range(1, EPOCHS + 1)
for name, colour in (("kept", "#c44e52"), ("balanced", "#4c72b0")):
    left.plot(epochs, found[name]["R"], color=colour, label=f"R, σ {name}")
    left.plot(epochs, found[name]["mean change"], ":", color=colour, label=f"measured, σ {name}")
left.axhline(0.1, color="grey", lw=0.8)
left.set(xlabel="epoch after the warm-up", ylabel="share of the loss", yscale="log")
left.legend(frameon=False, fontsize=8)
shades = plt.get_cmap("viridis")([0.0, 0.3, 0.6, 0.85])
over_epochs = zip(*found["balanced"]["σ"], strict=True)
for site, sigma, shade in zip(SITES, over_epochs, shades, strict=True):
    right.plot(epochs, sigma, color=shade, label=site)
right.set(xlabel="epoch after the warm-up", ylabel="σ, balanced", yscale="log")
right.legend(frameon=False, title="site")
plt.show()

# %%
# How far did each σ move?

first, last = (torch.tensor(found["balanced"]["σ"][i]) for i in (0, -1))
for site, a, b in zip(SITES, first.tolist(), last.tolist(), strict=True):
    print(f"{site}: σ from {a:.3f} to {b:.3f}")

# %%
# **What to take from it.** A σ that is chosen once is right for the network that it was chosen
# for. As the loss falls, the same σ becomes a larger and larger share of it. ``Balanced`` follows
# the network. It looks at batches before they are trained on, and averages over its measures. So
# the share on a batch that has just been learnt is somewhat above 0.1. Its price rises as
# ``every`` and the network become smaller; 2 to 4 % is usual with the default of 50 steps.
