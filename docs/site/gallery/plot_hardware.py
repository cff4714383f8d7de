"""
Noise of analogue hardware
==========================

**Question: will my network still work on noisy hardware?** An analogue chip stores a weight as a
conductance. What it stores is off by a share of the largest weight that it must hold.
``Relative`` is that noise: δ = σ max|W| ε. R says which layer suffers most, and training with the
noise prepares the network for it.
"""

from typing import Any

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float().view(-1, 1, 8, 8) / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1000:]
LEVELS, CHIPS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25], 12


def hardware(sigma: float) -> dict[str, Any]:
    """Noise on all weights; biases are digital. A row of cells has a scale of its own."""
    return {"*.weight": dither.Relative(sigma, per="row")}


def trained(sigma: float) -> nn.Module:
    """A small convolutional network, trained with the hardware's noise."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    with dither.inject(model, hardware(sigma), seed=0):
        for _ in range(12):
            for some in train[torch.randperm(len(train))].split(50):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
                optimiser.step()
    return model.eval()


# %%
# **Which layer needs the most precise cells?** R of each weight tensor at one σ, for the network
# that was trained without noise. No noise is drawn for it. Beside it, what noise on that tensor
# alone does: the measured mean change of the loss.

plain = trained(0.0)
with dither.inject(plain, hardware(0.05)) as noise, torch.no_grad():
    loss, R, parts = dither.explicit(noise, x[test], y[test])
alone = {}
for name in parts:
    with dither.inject(plain, {name: dither.Relative(0.05, per="row")}) as noise:
        alone[name] = dither.expected(noise, x[test], y[test], draws=100, antithetic=True, seed=0)
print(f"loss {loss:.4f}")
for name, part in parts.items():
    print(f"{name:9} R {part:.4f}, measured {alone[name]}")

# %%
# **How much does the network stand?** ``when="always"`` keeps the noise on in ``eval()``. Each
# draw is a chip. The band holds the middle 80 % of the chips.


@torch.no_grad()
def chips(model: nn.Module, sigma: float) -> torch.Tensor:
    """Test accuracy of each chip."""
    with dither.inject(model, hardware(sigma), when="always", seed=1):
        z = [model(x[test]) for _ in range(CHIPS)]
    return torch.stack([(out.argmax(1) == y[test]).double().mean() for out in z])


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
rows = range(len(parts))
left.barh(rows, [part.item() for part in parts.values()], 0.4, color="#c44e52", label="R")
left.barh(
    [row + 0.4 for row in rows],
    [alone[name].value for name in parts],
    0.4,
    xerr=[2 * alone[name].sem for name in parts],
    color="#999999",
    label="measured",
)
left.set(yticks=[row + 0.2 for row in rows], yticklabels=list(parts))
left.set(xlabel="change of the loss at σ = 0.05 on one tensor")
left.invert_yaxis()
left.legend(frameon=False)
for sigma, colour in ((0.0, "#c44e52"), (0.1, "#4c72b0"), (0.2, "#55a868")):
    model = trained(sigma) if sigma else plain
    found = torch.stack([chips(model, level) for level in LEVELS])
    low, high = found.quantile(torch.tensor([0.1, 0.9], dtype=found.dtype), 1)
    right.plot(LEVELS, 100 * found.mean(1), "o-", color=colour, label=f"σ = {sigma}")
    right.fill_between(LEVELS, 100 * low, 100 * high, color=colour, alpha=0.2)
    print(f"trained with σ = {sigma:<4}: accuracy {found[0].mean():.3f} on perfect hardware, "
          f"{found[-1].mean():.3f} ± {found[-1].std():.3f} at σ = {LEVELS[-1]}")  # fmt: skip
right.set(xlabel="σ of the hardware", ylabel="test accuracy, %")
right.legend(frameon=False, title="trained with")
plt.show()

# %%
# **What to take from it.** R ranks the layers before a chip is made: give the precise cells, or
# the digital ones, to the layer with the largest R. Train with the noise that you expect. On
# perfect hardware that costs little here, and on noisy hardware it decides.
