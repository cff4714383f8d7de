"""
Reliability, and what chance makes of it
========================================

**Question: is my network overconfident, or is that chance?** The expected calibration error is
above 0 for a perfect model too, because each bin has finitely many examples.
``measures.calibration`` gives the error together with the value that a perfectly calibrated model
would show.
"""

from typing import Any

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.measures import calibration

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:150], order[150:]


def trained(what: Any) -> nn.Module:
    """A network that fits its 150 images, with a noise or without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    noise = dither.inject(model, what, seed=0) if what else None
    for _ in range(1500):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model.train()(x[train]), y[train]).backward()
        optimiser.step()
    if noise:
        noise.remove()
    return model.eval()


# %%
# A network without noise, one with noise on its input and its activations. ``chance`` is the
# error that a perfect model with these confidences would show on average.

ways = {"no noise": None, "noise": dither.Additive(0.3)}
diagrams = {}
for name, what in ways.items():
    p = trained(what)(x[test]).detach().softmax(-1)
    d = diagrams[name] = calibration.reliability(p, y[test], bins=10)
    right = (p.argmax(1) == y[test]).double().mean()
    print(f"{name:9} accuracy {right:.3f}, error {d.error:.4f} (chance {d.chance:.4f}), "
          f"overconfident by {d.overconfidence:+.4f}")  # fmt: skip

# %%
# The diagram: accuracy against confidence. Points below the diagonal are overconfident. The bars
# are two standard deviations of the accuracy of a calibrated model: a point whose bar reaches the
# diagonal says nothing. The grey columns are the shares of the examples.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True, layout="constrained")
for ax, (name, d) in zip(axes, diagrams.items(), strict=True):
    d.plot(ax)
    ax.set_title(f"{name}: {ax.get_title()}")
plt.show()

# %%
# With fewer test examples the error grows, and chance with it. An error without its chance
# compares nothing.

for n in (50, 200, len(test)):
    d = calibration.reliability(p[:n], y[test][:n], bins=10)
    print(f"{n:5} examples: error {d.error:.4f}, chance {d.chance:.4f}")
