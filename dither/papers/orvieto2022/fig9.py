"""Figure 9: noise in a deep and narrow network.   Orvieto et al. 2022, Fig. 9, App. F.1

MLP3: five hidden layers of 1000, σ = .1, η = .005, ReLU, full-batch gradient descent with
momentum on 1024 Fashion-MNIST images. Training and test loss, test accuracy and the trace of the
training loss' Hessian, without noise, with noise on all tensors, and on one tensor a step.

Full noise has 2.5 times the weights' variance in each layer behind the first. The main text has
σ = .05 ("MLP3 at .05"): .63 times. Drawn is σ = .1 where it was run.
"""

from dither.papers.orvieto2022 import mlps

figure = mlps.figure("MLP3", "MLP3 at .05")
