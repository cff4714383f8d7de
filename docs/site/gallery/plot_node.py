"""
A noise node: decay, catapult, divergence
=========================================

**Question: which σ does a noise node take?** A node adds one random number for each sample, times
a vector that is trained too. With a small σ the vector stays. With a larger one, training itself
makes it small: the network learns to ignore the noise. Larger still, the loss rises before it
falls, or training dies. ``measures.phases`` tells the three values of σ before training.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.measures import phases

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = (x.float() - x.float().mean()) / x.float().std()
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:500], order[500:]
RATE = 0.05


def network() -> nn.Module:
    """One hidden layer. The node is one more input of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


# %%
# ``predict`` looks at the untrained network and at one batch: at the local Hessian λ of the loss
# in the direction of the node. The vector w is multiplied by 1 − ησ²λ in a step of gradient
# descent. So it shrinks while σ² < 2/(ηλ), and grows above.

sigmas, steepest = phases.predict(network(), x[train], y[train], RATE, where="0")
print(f"decay from σ = {sigmas.decay:.3g}, catapult from {sigmas.catapult:.3g}, ", end="")
print(f"divergence from {sigmas.divergent:.3g}; λ = {next(iter(steepest.values())):.3g}")

# %%
# Train with some σ around these values, and look at the vector.


def run(sigma: float, steps: int = 200) -> tuple[list[float], list[float], nn.Module]:
    """Per step, the norm of w relative to its start and the loss; and the network."""
    model = network()
    noise = dither.inject(model, {"0": dither.Node(sigma)}, seed=0)
    (w,) = noise.parameters()
    optimiser = torch.optim.SGD([*model.parameters(), w], lr=RATE)
    start, norms, losses = w.norm().item(), [], []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model.train()(x[train]), y[train])
        norms.append(w.norm().item() / start)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    noise.remove()
    return norms, losses, model.eval()


tried = [0.3 * sigmas.decay, *(f * sigmas.catapult for f in (0.5, 1.2)), 3 * sigmas.divergent]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for sigma, colour in zip(tried, ("#555555", "#4c72b0", "#dd8452", "#c44e52"), strict=True):
    norms, losses, model = run(sigma)
    right_answers = (model(x[test]).argmax(1) == y[test]).double().mean()
    label = f"σ = {sigma:.2g}"
    left.plot(norms, color=colour, label=label)
    right.plot(losses, color=colour, label=label)
    print(f"{label:10} predicted {sigmas.phase(sigma):10} found {phases.phase(norms, losses):10} "
          f"test accuracy {right_answers:.3f}")  # fmt: skip
left.set(xlabel="step", ylabel="‖w‖ / its start", yscale="log")
right.set(xlabel="step", ylabel="training loss with noise", yscale="log")
right.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** The boundaries are computed from the network before training, so they
# are where to begin. They hold for plain gradient descent at this learning rate: momentum and Adam
# move them. ``phases.find`` measures them by short runs.
