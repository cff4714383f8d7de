"""
R against the truth
===================

**Question: how far can I trust R?** Noise changes the loss. ``dither.expected`` measures the mean
change by drawing the noise many times. ``dither.explicit`` computes R, which is the Gauss–Newton
part of the second order, without drawing anything. This script puts both on one picture, for
small and for large σ.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

# %%
# The data are scikit-learn's digits. The network is small, and it is trained for a moment without
# noise: at initialisation a network hardly depends on its input, and all numbers would be tiny.

torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
optimiser = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
    optimiser.step()
x, y = x[1000:1200], y[1000:1200]  # a batch that it has not seen
print(f"loss {nn.functional.cross_entropy(model(x), y):.3f}")

# %%
# For each σ: the measured mean change of the loss with its standard error, R, and the whole
# second order (``curvature="full"``), which adds the residual part that R leaves out. R and the
# second order are proportional to σ², so one computation at σ = 1 is enough for them.
# ``antithetic=True`` draws each noise together with its mirror image. That removes the first
# order, so that few draws are enough at small σ.

sigmas = torch.logspace(-1.5, 0.5, 9).tolist()
with dither.inject(model, dither.Additive(1.0)) as noise, torch.no_grad():
    R = dither.explicit(noise, x, y).R.item()
    second = dither.explicit(noise, x, y, curvature="full", samples=100).R.item()

measured = []
for sigma in sigmas:
    with dither.inject(model, dither.Additive(sigma)) as noise:
        measured.append(dither.expected(noise, x, y, draws=400, antithetic=True, seed=0))
    print(f"σ {sigma:.3f}   measured {measured[-1]!s:22} R {sigma**2 * R:.3g}")

# %%
# On the left, R follows the measured change over three orders of magnitude. On the right, the
# same numbers divided by R. Below σ of about 0.3 the ratio is a constant: what R leaves out is
# the residual part, which is of order σ² too. The whole second order has that constant. Above σ
# of about 0.5 higher orders take over, and no number of second order is right any more.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
grid = torch.logspace(-1.5, 0.5, 100)
values, errors = [m.value for m in measured], [2 * m.sem for m in measured]
left.loglog(grid, grid**2 * R, color="#c44e52", label="R, computed")
left.errorbar(sigmas, values, errors, fmt="o", color="#4c72b0", label="mean change, measured")
left.set(xlabel="σ of the noise", ylabel="change of the loss")
left.legend(frameon=False)
ratio = [value / (s**2 * R) for value, s in zip(values, sigmas, strict=True)]
spread = [error / (s**2 * R) for error, s in zip(errors, sigmas, strict=True)]
right.axhline(1, color="#c44e52", label="R")
right.axhline(second / R, color="#c44e52", ls="--", label="whole second order")
right.errorbar(sigmas, ratio, spread, fmt="o", color="#4c72b0", label="measured")
right.set(xscale="log", xlabel="σ of the noise", ylabel="relative to R", ylim=(0, None))
right.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** R is exact for what it is. Whether it is the whole story is a question
# for ``expected``, and one line answers it: ``dither.remainder(noise, x, y)`` is the measured
# change minus R, with its error.

with dither.inject(model, dither.Additive(0.2)) as noise:
    print(
        "remainder at σ = 0.2:", dither.remainder(noise, x, y, draws=400, antithetic=True, seed=0)
    )
