"""Figure 5: noise in convolutional networks, toy and wide.   Orvieto et al. 2022, Fig. 5, §5

LeNet (left) and four convolutions of up to 128 channels (right): SGD with batches of 1024, cosine
annealing, η = .001 and .005, σ = .05: test accuracy, and the trace of the training loss' Hessian.
"""

from dither.lab import Table
from dither.papers import style
from dither.papers.ends import ACCURACY
from dither.papers.orvieto2022 import cnns
from dither.papers.orvieto2022.schemes import TRACE, panel


def plot(t: Table):
    picture, axes = style.grid(2, 2, height=3.2)
    for column, net in zip(axes.T, ("toy", "wide"), strict=True):
        for ax, quantity in zip(column, (ACCURACY, TRACE), strict=True):
            panel(ax, t, cnns.drawn(t, net), quantity)
        column[0].set_title(f"{net} CNN\n{column[0].get_title()}")
    cnns.legend(picture, axes[0, 0], cnns.drawn(t, "toy"))
    return picture


figure = cnns.figure("toy", "wide", draw=plot)
