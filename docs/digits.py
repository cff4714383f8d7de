"""Which noise helps on scikit-learn's digits: `dither compare docs/digits.py`."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.lab.compare import Method, sam, weight_decay

x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order] / 16, y[order]
data = x[:400], y[:400], x[400:], y[400:]


def make_model():
    """The network to train; torch's generator is seeded for it."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


methods = {
    "none": None,
    "input": {"input": dither.Additive(0.2)},
    "R of input": Method({"input": dither.Additive(0.2)}, objective="explicit"),
    "dropout": {"2:in": dither.Multiplicative(law=dither.dropout(0.5))},
    "weights": Method(dither.Weight(0.1), draw="cycle"),
    "decay": weight_decay(1e-3),
    "SAM": sam(0.05),
}
settings = {
    "epochs": 100,
    "batch": 50,
    "optimiser": lambda parameters: torch.optim.SGD(parameters, lr=0.2),
    "measures": ["loss", "accuracy", "calibration", "R", "corruption"],
}
