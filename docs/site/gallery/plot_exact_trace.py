"""
The exact trace of a network, or a trace to a precision
=======================================================

**Question: how curved is the loss, and where?** The trace of the Hessian is the usual number for
flatness. ``measures.trace`` gives it for each parameter. Where the network is linear in each
parameter tensor, away from kinks, it is exact. Elsewhere it is an estimate, and you say how
precise it must be.
"""

import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from dither import measures

torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float().view(-1, 1, 8, 8) / 16
train, test = slice(0, 1200), slice(1200, 1328)


class Block(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, h):
        return (h + self.bn2(self.conv2(self.bn1(self.conv1(h)).relu()))).relu()


def resnet() -> nn.Module:
    """A small residual network for images of 8×8."""
    body = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), Block(12), Block(12), Block(12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))


def fit(model: nn.Module, steps: int = 60) -> nn.Module:
    """Train on random batches."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        some = torch.randint(1200, (100,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[some]), y[some]).backward()
        optimiser.step()
    return model.eval()


# %%
# A residual network with ReLU and BatchNorm. In eval mode BatchNorm is a fixed linear map, so the
# trace is exact: ``probes`` is 0, and there is no error.

model = fit(resnet())
accuracy = (model(x[test]).argmax(1) == y[test]).double().mean().item()
begin = time.perf_counter()
exact = measures.trace(model, "cross_entropy", (x[test], y[test]))
print(f"accuracy {accuracy:.3f}")
print(f"trace {exact.value:.6g}, probes {exact.probes}, {time.perf_counter() - begin:.1f} s")

# %%
# Which layers carry it? ``by_parameter`` has an estimate for each parameter, and ``by_layer``
# sums them over a module.

layers = {name: value for name, value in exact.by_layer.items() if value > 0.01 * exact.value}
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
axes.barh(list(layers), list(layers.values()), color="#4c72b0")
axes.invert_yaxis()
axes.set(xlabel="trace of the Hessian in the parameters of the layer")
plt.show()

# %%
# The same network with a smooth activation is not linear in its parameters. The trace is then
# estimated by probes. ``precision`` is the standard error that you need: a pilot of 16 probes
# says how many others are necessary.


def smooth(module: nn.Module) -> nn.Module:
    """The network with tanh."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )


tanh = fit(smooth(model))
for precision in (0.5, 0.15):
    begin = time.perf_counter()
    estimate = measures.trace(tanh, "cross_entropy", (x[test], y[test]), precision=precision)
    seconds = time.perf_counter() - begin
    print(f"asked for ± {precision}: {estimate.value:.2f} ± {estimate.sem:.2f}, ", end="")
    print(f"{estimate.probes} probes, {seconds:.1f} s")

# %%
# The Gauss–Newton part of it is exact for every network, and never negative.

part = measures.trace(tanh, "cross_entropy", (x[test], y[test]), of="gauss_newton")
print(f"Gauss–Newton trace {part.value:.4f}, exact: {part.exact}")

# %%
# **What to take from it.** Ask for ``of="gauss_newton"`` if you compare flatness between runs: it
# is exact, and cheap. Ask for the Hessian with a precision if you need the Hessian.
