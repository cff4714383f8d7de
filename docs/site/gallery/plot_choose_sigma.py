"""
Choose σ, and keep it right
===========================

**Question: how much noise?** One σ means something different in each layer. ``dither.balance``
gives the σ of each place at which R is a chosen share of the loss, in equal parts. This script
uses it, checks it, and keeps it right while the network changes.
"""

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

# %%
# **Do not choose σ on an untrained network.** At initialisation the loss hardly depends on the
# activations, so a tenth of the loss takes enormous noise. The σ of an untrained network and
# those after a warm-up without noise:


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


def balanced(model: nn.Module, ratio: float = 0.1) -> dict[str, float]:
    """The σ of each site at which R is `ratio` of the loss, in equal parts."""
    with dither.inject(model, dither.Additive(1.0)) as noise:
        return dither.balance(noise, x[look], y[look], ratio=ratio)


model = network()
optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
print("untrained:    ", {site: round(sigma, 2) for site, sigma in balanced(model).items()})
for _ in range(6):
    epoch(model, optimiser)
sigmas = balanced(model)
print("after warm-up:", {site: round(sigma, 2) for site, sigma in sigmas.items()})

# %%
# **Check them.** R is second order, and only a part of that. ``dither.expected`` measures what
# the noise really does. Where the two differ, scale σ until the measured change is what you want:
# it grows about as σ².


def measured(sigmas: dict[str, float]) -> float:
    """The measured mean change of the loss, as a share of the loss."""
    with dither.inject(model, {site: dither.Additive(s) for site, s in sigmas.items()}) as noise:
        loss = nn.functional.cross_entropy(model.eval()(x[look]), y[look]).item()
        change = dither.expected(noise, x[look], y[look], draws=200, antithetic=True, seed=0)
    return change.value / loss


for _ in range(3):
    share = measured(sigmas)
    print("measured:", round(share, 3), {site: round(sigma, 3) for site, sigma in sigmas.items()})
    sigmas = {site: sigma * (0.1 / share) ** 0.5 for site, sigma in sigmas.items()}

# %%
# **Keep them right.** As the network fits its data, the loss falls, and the same σ becomes a
# larger and larger share of it. Here σ is chosen anew before each epoch. For comparison, the same
# network without noise, and with the first σ kept.


def accuracy(model: nn.Module) -> float:
    """On the test part, without noise."""
    return (model.eval()(x[test]).argmax(1) == y[test]).double().mean().item()


def run(choose: str, epochs: int = 40, warm: int = 6) -> tuple[list[float], list[float], float]:
    """(R/loss after each epoch, mean σ in each epoch, test accuracy)."""
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(warm):
        epoch(model, optimiser)
    shares, means, sigmas = [], [], balanced(model)
    for _ in range(epochs):
        if choose == "anew":
            sigmas = balanced(model)
        what = {site: dither.Additive(sigma) for site, sigma in sigmas.items()}
        with dither.inject(model, what) as noise:
            if choose != "none":
                epoch(model, optimiser)
            with torch.no_grad():
                loss, R, _ = dither.explicit(noise, x[look], y[look])
        if choose == "none":
            epoch(model, optimiser)
        shares.append((R / loss).item())
        means.append(sum(sigmas.values()) / len(sigmas))
    return shares, means, accuracy(model)


runs = {name: run(name) for name in ("none", "kept", "anew")}
for name, (_, _, right) in runs.items():
    print(f"{name:5} test accuracy {right:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, colour in (("kept", "#c44e52"), ("anew", "#4c72b0")):
    left.plot(runs[name][1], color=colour, label=f"σ {name}")
    right.plot(runs[name][0], color=colour, label=f"σ {name}")
left.set(xlabel="epoch after the warm-up", ylabel="mean σ", ylim=(0, None))
right.set(xlabel="epoch after the warm-up", ylabel="R / loss", yscale="log")
right.axhline(0.1, color="grey", lw=0.8)
left.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** Warm up without noise, choose σ with ``balance``, check it with
# ``expected``, and choose it again from time to time. One seed and one small data set do not say
# which curve is better for you: :ref:`sphx_glr_examples_plot_compare.py` shows how to find out.
