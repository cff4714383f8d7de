"""Figure 7: noise in a shallow and narrow network.   Orvieto et al. 2022, Fig. 7, App. F.1

MLP1: three hidden layers of 500, σ = .05, η = .005, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

The noise's variance is .47 of the weights': both ways of drawing it should do.
"""

from dataclasses import replace

from dither.lab import Claim
from dither.papers.orvieto2022 import mlps
from dither.papers.orvieto2022.schemes import steadier

base = mlps.figure("MLP1")
figure = replace(
    base,
    claims=[
        *base.claims,
        Claim("O20 (MLP1)", "MLP1: either noise damps the oscillations of the trace, of which the "
              "text speaks for Fig. 12: the standard deviation of its logarithm's differences is "
              "lower, by a tenth of GD's",
              mlps.judged("MLP1", lambda t, of: (steadier(t, of), {}))),
    ],
)  # fmt: skip
