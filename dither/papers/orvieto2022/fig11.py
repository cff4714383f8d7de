"""Figure 11: noise in a toy convolutional network.   Orvieto et al. 2022, Fig. 11, App. F.2

LeNet: two convolutions of 6 and 16 channels, kernels of 5, then 120, 84 and 10 units; batches of
1024, η = .001, cosine annealing, σ = .05. Training and test loss, test accuracy and the trace of
the training loss' Hessian. Narrow: both ways of drawing the noise do.
"""

from dither.papers.orvieto2022 import cnns

figure = cnns.figure("toy")
