"""
Write a noise
=============

**Question: my noise is none of these. Can I still have its R?** A noise is a small frozen class
with two faces: what is added, and the variance of its product with a gradient. Everything else
follows. Here is the noise of a sensor with a floor that grows with the signal, as in analogue
hardware.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import nn

import dither
from dither.noise import Law, Sigma, checked, gaussian, norm2


@dataclass(frozen=True)
class Sensor:
    """δ = σ √(1 + h²) ε, one ε ~ law per element; Var⟨g, δ⟩ = σ²(‖g‖² + ‖g∘h‖²)."""

    sigma: Sigma
    law: Law = gaussian
    side = "in"
    __post_init__ = checked

    def displace(self, site, rng):
        return self.sigma * (1 + site.h.square()).sqrt() * rng(self.law, site.h)

    def variance(self, g, site):  # [columns, samples]
        return self.sigma**2 * self.law.variance * (norm2(g) + norm2(g * site.h))


# %%
# ``site.h`` is the tensor at the place of the noise. ``rng(law, like)`` draws, keyed by seed,
# place and step: never draw from torch's own generator, or a checkpoint would see another draw.
# ``norm2`` sums the squares of a sample.
#
# The new noise works with everything at once.

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 3))
x, y = torch.randn(64, 20), torch.randint(3, (64,))
noise = dither.inject(model, Sensor(0.1))
print(noise)
loss, R, parts = dither.explicit(noise, x, y)
print(f"R {R:.5f}:", {site: f"{part:.5f}" for site, part in parts.items()})
print("measured:", dither.expected(noise, x, y, draws=1000, antithetic=True, seed=0))

# %%
# **The one law**: the mean of δ is 0, and the mean of ⟨g, δ⟩² is the variance. A test of your
# noise is this, and no more.

from dither.noise import Here  # noqa: E402
from dither.noise.draw import Source  # noqa: E402

n, h, g = 100_000, torch.randn(1, 6), torch.randn(1, 1, 6)
site = Here(h.expand(n, 6))
delta = Sensor(0.3).displace(site, Source([1]))
product = (g[0] * delta).sum(-1).square()
told = Sensor(0.3).variance(g, Here(h)).item()
print(f"Var⟨g, δ⟩: {told:.4f}; from {n} draws: {product.mean():.4f} ± {product.std() / n**0.5:.4f}")
noise.remove()

# %%
# **Evaluate on noisy hardware.** ``when="always"`` keeps the noise on in ``eval()``. Train clean
# and with the noise, and look at what the hardware does to both.

from sklearn.datasets import load_digits  # noqa: E402

images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
levels = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8]


def accuracies(sigma: float) -> list[float]:
    """Under noise of each level, of a network that was trained with noise of `sigma`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    with dither.inject(net, Sensor(sigma), seed=0):
        for _ in range(400):
            some = torch.randint(1000, (100,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images[some]), digits[some]).backward()
            optimiser.step()
    found = []
    for level in levels:
        with dither.inject(net.eval(), Sensor(level), when="always", seed=1), torch.no_grad():
            right = [
                (net(images[1000:]).argmax(1) == digits[1000:]).double().mean() for _ in range(5)
            ]
        found.append(torch.stack(right).mean().item())
    return found


figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for sigma, colour in ((0.0, "#c44e52"), (0.4, "#4c72b0")):
    axes.plot(levels, accuracies(sigma), "o-", color=colour, label=f"trained with σ = {sigma}")
axes.set(xlabel="σ of the hardware's noise", ylabel="test accuracy")
axes.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** Fifteen lines are a noise. :doc:`/contributing` says how to add it to
# the library.
