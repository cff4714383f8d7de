"""Figure 12: noise in a wide convolutional network.   Orvieto et al. 2022, Fig. 12, App. F.2

Four convolutions of 32, 64, 128 and 128 channels, max pooling, channel means and a linear layer;
batches of 1024, η = .005, cosine annealing, σ = .05. Training and test loss, test accuracy and the
trace of the training loss' Hessian.
"""

from dither.papers.orvieto2022 import cnns

figure = cnns.figure("wide")
