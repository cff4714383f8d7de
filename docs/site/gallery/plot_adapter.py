"""
Weight noise on an adapter
==========================

**Question: how do I regularise a LoRA adapter, and nothing else?** A large model is frozen, and a
product of two small matrices is trained beside each weight. Noise belongs on what is trained. A
pattern over parameter names says so.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither

torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16


class LoRA(nn.Module):
    """A frozen Linear and a trained product of rank r beside it: W x + B A x."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, h):
        return self.base(h) + h @ self.A.T @ self.B.T


def fit(model: nn.Module, x, y, steps: int, lr: float = 0.3) -> None:
    """Train what is not frozen."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        some = torch.randint(len(x), (50,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model.train()(x[some]), y[some]).backward()
        optimiser.step()
    model.eval()


def accuracy(model: nn.Module, x, y) -> float:
    """Without noise."""
    return (model.eval()(x).argmax(1) == y).double().mean().item()


# %%
# The "large" model learns to read digits. Then the task changes: the images are turned upside
# down, and there are 60 of them.

first, second = nn.Linear(64, 128), nn.Linear(128, 10)
base = nn.Sequential(first, nn.ReLU(), second)
fit(base, x[:1000], y[:1000], 400)
turned = x.flip(1)
few, test = slice(1000, 1060), slice(1060, None)
print(f"upright {accuracy(base, x[test], y[test]):.3f}")
print(f"turned  {accuracy(base, turned[test], y[test]):.3f}")

# %%
# ``Weight`` takes a glob over parameter names. The frozen weights get no noise. The table shows
# what matched.

model = nn.Sequential(LoRA(first, 4), nn.ReLU(), LoRA(second, 4))
fit(model, turned[few], y[few], 100)  # a warm-up: B = 0 has no curvature to speak of
noise = dither.inject(model, {"*.A": dither.Weight(0.05), "*.B": dither.Weight(0.05)}, draw="cycle")
print(noise)

# %%
# Which of the four matrices is the sensitive one? R says it without a single draw, and
# ``balance`` turns that into a σ for each.

loss, R, parts = dither.explicit(noise, turned[few], y[few])
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
axes.barh(list(parts), [100 * (part / R).item() for part in parts.values()], color="#4c72b0")
axes.invert_yaxis()
axes.set(xlabel="share of R at one σ for all, %")
plt.show()

sigmas = dither.balance(noise, turned[few], y[few], ratio=0.1)
print({name: f"{sigma:.3f}" for name, sigma in sigmas.items()})
noise.remove()

# %%
# Train on, with the noise and without, from the same point.

start = {name: value.clone() for name, value in model.state_dict().items()}
for what in (None, {name: dither.Weight(sigma) for name, sigma in sigmas.items()}):
    model.load_state_dict(start)
    torch.manual_seed(1)
    if what is None:
        fit(model, turned[few], y[few], 300)
    else:
        with dither.inject(model, what, draw="cycle", seed=0):
            fit(model, turned[few], y[few], 300)
    unit = {"*.A": dither.Weight(1.0), "*.B": dither.Weight(1.0)}
    with dither.inject(model, unit) as noise, torch.no_grad():
        curvature = 2 * dither.explicit(noise, turned[few], y[few]).R
    print(f"{'noise' if what else 'none':6} turned {accuracy(model, turned[test], y[test]):.3f}, "
          f"Gauss–Newton trace {curvature:.1f}")  # fmt: skip

# %%
# The frozen weights are untouched, and the noise has left no trace in the state of the model.

print(all(bool((start[k] == v).all()) for k, v in model.state_dict().items() if "base" in k))

# %%
# **What to take from it.** Noise on the adapter makes its minimum flatter, for about the price of
# training without noise. With 60 images, one seed does not say whether accuracy gains: see
# :ref:`sphx_glr_examples_plot_compare.py`. With PEFT the names are ``"*lora_A*"`` and
# ``"*lora_B*"``.
