"""Figure 10: noise in a deep and wide network.   Orvieto et al. 2022, Fig. 10, App. F.1

MLP4: five hidden layers of 5000, σ = .05, η = .001, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

Full noise has 3.1 times the weights' variance in each layer behind the first.
"""

from dither.papers.orvieto2022 import mlps

figure = mlps.figure("MLP4")
