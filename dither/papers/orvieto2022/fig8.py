"""Figure 8: noise in a shallow and wide network.   Orvieto et al. 2022, Fig. 8, App. F.1

MLP2: three hidden layers of 5000, σ = .1, η = .005, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

Full noise has 19 times the weights' variance, and layer-wise noise 8 times that, in one layer.
"""

from dither.papers.orvieto2022 import mlps

figure = mlps.figure("MLP2")
