"""
Compare noises on your own data
===============================

**Question: which noise helps on my problem?** ``dither.compare`` trains the same network with
several noises and baselines. For a seed, every method gets the same first weights and the same
order of the data. So differences are taken seed by seed.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import dither
from dither.lab.compare import Method, weight_decay

x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order] / 16, y[order]
data = x[:400], y[:400], x[400:], y[400:]


def make_model() -> nn.Module:
    """The network to train. torch's generator is seeded for it."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


# %%
# A method is ``None``, a noise, a mapping from patterns to noises, or a ``Method`` that says
# more. The first one is what the others are compared with.

methods = {
    "none": None,
    "decay": weight_decay(1e-3),
    "dropout": {"2:in": dither.Multiplicative(law=dither.dropout(0.5))},
    "weights": Method(dither.Weight(0.1), draw="cycle"),
}
result = dither.compare(
    make_model,
    data,
    methods,
    epochs=60,
    batch=50,
    optimiser=lambda parameters: torch.optim.SGD(parameters, lr=0.2),
)
print(result)

# %%
# The third column is what to look at: the difference from the first method, with its 95 %
# interval over seeds. A word stands there only if the interval, corrected for the number of
# methods, excludes 0. As a picture, with a tick for each seed:

_ = result.plot(["accuracy/test", "loss/test"])

# %%
# **What to take from it.** Where no word stands, the data do not tell. Then more seeds or more
# test data are needed, not another look at the mean.
#
# ``result.models["dropout"][0]`` is a trained model, ``result.to_frame()`` has all numbers, and
# ``result.save(folder)`` writes a page. The same on the command line: ``dither compare FILE.py``,
# where the file defines ``make_model``, ``data`` and ``methods``.
