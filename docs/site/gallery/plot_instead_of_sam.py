"""
Instead of SAM
==============

**Question: can I have flat minima at the price of one backward pass?** SAM steps to the worst
point near the weights and takes the gradient there: two backward passes a step. Weight noise
takes the gradient at a random point near the weights: one. On average, weight noise penalises the
trace of the Gauss–Newton matrix.
"""

import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither import measures

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:500], order[500:]
labels = y.clone()
wrong = train[:100]  # a fifth of the training labels is wrong: there is something to overfit
labels[wrong] = torch.randint(10, (100,), generator=torch.Generator().manual_seed(0))


def network(seed: int) -> nn.Module:
    """Two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def backward(model: nn.Module, some: torch.Tensor) -> None:
    """The gradient of the loss on some examples."""
    model.zero_grad()
    nn.functional.cross_entropy(model(x[some]), labels[some]).backward()


@torch.no_grad()
def move(model: nn.Module, by: list[torch.Tensor], factor: float) -> None:
    """W ← W + factor · by."""
    for w, step in zip(model.parameters(), by, strict=True):
        w += factor * step


def sam(model: nn.Module, some: torch.Tensor, rho: float = 0.1) -> None:
    """The gradient at the worst point within rho, to first order. Foret et al. 2021."""
    backward(model, some)
    slopes = [w.grad.clone() for w in model.parameters() if w.grad is not None]
    size = torch.stack([g.norm() for g in slopes]).norm()
    move(model, slopes, rho / size.item())
    backward(model, some)
    move(model, slopes, -rho / size.item())


# %%
# Three ways, five seeds. The noise is on one tensor a step.


def trained(way: str, seed: int, epochs: int = 60) -> tuple[nn.Module, float]:
    """The network, and the seconds of processor time that training took."""
    model = network(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    noise = (
        dither.inject(model, dither.Weight(0.1), draw="cycle", seed=seed)
        if way == "noise"
        else None
    )
    begin = time.process_time()
    for _ in range(epochs):
        for some in train[torch.randperm(len(train))].split(50):
            (sam if way == "SAM" else backward)(model, some)
            optimiser.step()
    seconds = time.process_time() - begin
    if noise is not None:
        noise.remove()
    return model.eval(), seconds


def measured(way: str, seeds: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Test accuracy and trace of each seed. It prints their mean ± standard deviation."""
    right, traces, seconds = [], [], []
    for seed in range(seeds):
        model, took = trained(way, seed)
        right.append((model(x[test]).argmax(1) == y[test]).double().mean())
        part = measures.trace(model, "cross_entropy", (x[train], labels[train]), of="gauss_newton")
        traces.append(torch.tensor(part.value))
        seconds.append(took)
    cells = [f"{torch.stack(v).mean():.4g} ± {torch.stack(v).std():.2g}" for v in (right, traces)]
    print(f"{way:6} accuracy {cells[0]:18} trace {cells[1]:14} {sum(seconds) / seeds:.1f} s a run")
    return torch.stack(right), torch.stack(traces)


figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for way, colour in (("plain", "#555555"), ("SAM", "#c44e52"), ("noise", "#4c72b0")):
    right, traces = measured(way)
    axes.plot(traces, right, "o", color=colour, label=way)
axes.set(xlabel="Gauss–Newton trace on the training part", ylabel="test accuracy")
axes.legend(frameon=False)
plt.show()

# %%
# **What to take from it.** Both lower the trace, and both help against the wrong labels. Here SAM
# goes further, at twice the price of a plain step. They are not the same penalty, and another
# problem may decide otherwise. Weight noise has other things for it: one backward pass; nothing
# to restore after a step, so that gradient scalers, closures and accumulation work as they do;
# and R, which says beforehand what a σ is worth.
