"""Figure 7: noise in a shallow and narrow network.   Orvieto et al. 2022, Fig. 7, App. F.1

MLP1: three hidden layers of 500, σ = .05, η = .005, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

The noise's variance is .47 of the weights': both ways of drawing it should do.
"""

from dither.papers.orvieto2022 import mlps

figure = mlps.figure("MLP1")
