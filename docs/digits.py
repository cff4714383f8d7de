"""Which noise helps on scikit-learn's digits: `dither compare docs/digits.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.lab.compare import Method
from dither.lab.training.optimiser import SGD

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:400], order[400:]
data = x[train].float() / 16, y[train], x[test].float() / 16, y[test]


def make_model():
    """The network to train; torch's generator is seeded for it."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


methods = {
    "none": None,
    "input": {"input": dither.Additive(0.2)},
    "R of input": Method({"input": dither.Additive(0.2)}, objective="explicit"),
    "dropout": {"2:in": dither.Multiplicative(law=dither.dropout(0.5))},
    "weights": Method(dither.Weight(0.1), draw="cycle"),
}
settings = {"seeds": 5, "epochs": 100, "batch": 50, "optimiser": SGD(0.2)}
